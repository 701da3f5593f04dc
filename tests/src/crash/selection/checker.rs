//! Starts the states of a scenario and compares what becomes of them with the law.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};
use slotd::device::loader::uefi::LOADER_CONF;

use super::super::states::{Bounds, Key, after_cuts, key};
use super::super::{Check, ensure};
use super::law::{self, End, Lost, Verdict, state};
use super::power::{Power, Settled, Starts};
use super::{Again, Cut, DRAWN, Report, Sample, Scenario, loader, neighbours, spread};
use crate::recorder::{Event, Media};

/// Cuts a scenario everywhere, on two threads.
pub(super) fn check(scenario: &Scenario<'_>, sample: &Sample) -> Report {
    let cuts = scenario.cuts(sample);
    let borders = scenario.borders();
    let is = |which: fn(&Cut) -> bool| cuts.iter().filter(|cut| which(cut)).count();
    let report = Report {
        events: scenario.log.len(),
        borders: borders.len(),
        states: is(|cut| cut.right.is_some()),
        neighbours: is(|cut| cut.lost.neighbour),
        losses: is(|cut| cut.right.is_none()),
        ..Report::default()
    };
    let checker = Checker {
        scenario,
        undisturbed: None,
        starts: Starts::default(),
        repeated: Mutex::default(),
        distinct: cuts.iter().map(|cut| key(&cut.media)).collect(),
        again: sample.again,
        report: Mutex::new(report),
    };
    checker.run(cuts, &borders, sample)
}

struct Checker<'a> {
    scenario: &'a Scenario<'a>,
    /// What the undisturbed one comes to.
    undisturbed: Option<Settled>,
    starts: Starts,
    /// What doing it again came to, by what it was done on.
    repeated: Mutex<HashMap<Key, Check<()>>>,
    distinct: HashSet<Key>,
    again: Bounds,
    report: Mutex<Report>,
}

impl Checker<'_> {
    fn run(mut self, cuts: Vec<Cut>, borders: &[Key], sample: &Sample) -> Report {
        match self.power(Lost::default()).settle(&self.scenario.finished) {
            Ok(settled) => self.undisturbed = Some(settled),
            Err(why) => self.note(|report| report.violations.push(format!("undisturbed: {why}"))),
        }
        if self.undisturbed.is_some() {
            let first = self.check_all(cuts);
            let missing = sample.distinct.saturating_sub(self.distinct.len());
            let (chosen, made) = self.cut_again(&first, (missing / 2).max(sample.again_at_least));
            self.note(|report| report.second = (chosen.len(), made));
            let second = self.check_all(chosen);
            let missing = sample.distinct.saturating_sub(self.distinct.len());
            let (chosen, made) = self.cut_again(&second, missing.max(sample.again_at_least));
            self.note(|report| report.third = (chosen.len(), made));
            self.check_all(chosen);
        }
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.distinct = self.distinct.len();
        report.seen_borders = borders.iter().filter(|border| self.distinct.contains(*border)).count();
        report.violations.sort();
        report
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Checks them on two threads; answers what each of them did in its first start.
    fn check_all(&self, cuts: Vec<Cut>) -> Vec<(Cut, Vec<Event>)> {
        let (next, logs) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(cut) = cuts.get(index) else { break };
                        if let Some(log) = self.check(cut) {
                            logs.lock().unwrap_or_else(PoisonError::into_inner).insert(index, log);
                        }
                    }
                });
            }
        });
        let logs = logs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let started = cuts.into_iter().enumerate();
        started.filter_map(|(index, cut)| Some((cut, logs.get(&index)?.clone()))).collect()
    }

    fn check(&self, cut: &Cut) -> Option<Vec<Event>> {
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_cut(cut)));
        match checked.unwrap_or_else(|_| Err("panicked".into())) {
            Ok(log) => Some(log),
            Err(why) => {
                self.note(|report| report.violations.push(format!("{}: {why}", cut.what)));
                None
            }
        }
    }

    fn power(&self, lost: Lost) -> Power<'_> {
        let power = self.scenario.power();
        let state = lost.state || power.lost.state;
        let lost = Lost { loader: lost.loader || power.lost.loader, state, ..lost };
        Power { lost, starts: Some(&self.starts), ..power }
    }

    /// Starts media until they come to rest, and compares with what the oracle says of them.
    fn settle(&self, media: &Media, lost: Lost) -> Check<Settled> {
        let scenario = self.scenario;
        let power = self.power(lost);
        law::holds(scenario.ground, &scenario.start, media, power.lost)?;
        let settled = power.settle(media)?;
        let (found, right) = (settled.verdict, power.ends(media));
        let same = |right: &End| {
            // With lost settings the default may have to be selected as a fallback, which is a trial like any other.
            let outcome = power.lost.loader || right.outcome == found.end.outcome;
            (right.runs, right.confirmed) == (found.end.runs, found.end.confirmed) && outcome
        };
        ensure(right.iter().any(same), || format!("it ends as {found:?}, right is {right:?}"))?;
        Ok(settled)
    }

    fn check_cut(&self, cut: &Cut) -> Check<Vec<Event>> {
        let settled = self.settle(&cut.media, cut.lost)?;
        if let Some(all) = &cut.right {
            let found = settled.verdict;
            // Where a boot image was lost, another one comes first, or recovery, and puts it back.
            let same =
                |right: &Verdict| right.end == found.end && (right.next == found.next || cut.lost.neighbour);
            ensure(all.iter().any(same), || format!("it is {found:?}, right is {all:?}"))?;
            // Where starting is all that is done again, what ended otherwise stays as it is: that is an operator's.
            let undisturbed = self.undisturbed.as_ref().map(|undisturbed| undisturbed.verdict.end);
            if self.scenario.again != Again::Start || undisturbed == Some(found.end) {
                self.repeat(&settled.media)?;
            }
        }
        Ok(settled.first_start)
    }

    fn repeat(&self, settled: &Media) -> Check<()> {
        let key = law::reads_as(settled);
        let known = self.repeated.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let done = known.unwrap_or_else(|| self.repeat_once(settled));
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner).insert(key, done.clone());
        done
    }

    fn repeat_once(&self, settled: &Media) -> Check<()> {
        let scenario = self.scenario;
        let again = scenario.repeat(settled).map_err(|e| format!("done again: {e:#}"))?;
        if matches!(scenario.again, Again::Start | Again::Confirm(_)) {
            let again =
                self.power(Lost::default()).settle(&again).map_err(|why| format!("done again, {why}"))?;
            same_end(self.undisturbed.as_ref().map_or(&again.media, |settled| &settled.media), &again.media)
        } else {
            same_end(&scenario.finished, &again)
        }
    }

    /// `count` of the states after a cut in a start, none of which was seen before, and how many there are to choose
    /// from. What nobody touched is lost in one start at most.
    fn cut_again(&mut self, started: &[(Cut, Vec<Event>)], count: usize) -> (Vec<Cut>, usize) {
        let started: Vec<_> = started.iter().filter(|(cut, _)| !cut.lost.neighbour).collect();
        let of_each = (16 * count).div_ceil(started.len().max(1));
        let (mut all, mut made, mut again) = (Vec::new(), 0, self.again);
        while all.len() < count && again.drawn < DRAWN {
            (all, made) = self.fresh(&started, of_each, &again);
            again.drawn = (4 * again.drawn).max(4);
        }
        let chosen: Vec<Cut> = spread(&all, count).cloned().collect();
        self.distinct.extend(chosen.iter().map(|cut| key(&cut.media)));
        (chosen, made)
    }

    /// At most `of_each` states after a cut in each of these starts, without those that were seen before, and how many
    /// there are.
    fn fresh(&self, started: &[&(Cut, Vec<Event>)], of_each: usize, again: &Bounds) -> (Vec<Cut>, usize) {
        let (mut all, mut made, mut fresh) = (Vec::new(), 0, HashSet::new());
        for (cut, log) in started {
            let right = vec![vec![()]; log.len() + 1];
            let mut states = after_cuts(&cut.media, log, &right, again);
            states.extend(neighbours(&cut.media, log, &right));
            made += states.len();
            for state in spread(&states, of_each) {
                let key = key(&state.media);
                if self.distinct.contains(&key) || !fresh.insert(key) {
                    continue;
                }
                let lost = Lost { neighbour: state.neighbour, ..cut.lost };
                let what = format!("{}; then {}", cut.what, state.origin);
                all.push(Cut { media: state.media.clone(), right: None, what, lost });
            }
        }
        (all, made)
    }
}

/// Whether two ends are the same but for times, words and what the journal of upgrades says.
fn same_end(expected: &Media, found: &Media) -> Check<()> {
    // `loader.conf` is what it says: what pads it may be cut.
    let images = |media: &Media| {
        let mut files = media.esp.clone();
        files.remove(LOADER_CONF);
        files
    };
    ensure(images(expected) == images(found), || "done again, the ESP is another".into())?;
    let loaders = (loader::selection(expected)?, loader::selection(found)?);
    ensure(loaders.0 == loaders.1, || format!("done again, the loader is another: {loaders:?}"))?;
    let states = (essence(expected), essence(found));
    ensure(states.0 == states.1, || format!("done again, the state is another: {states:?}"))
}

/// What of a state decides.
fn essence(media: &Media) -> Value {
    let Some(state) = state(media) else { return Value::Null };
    let pending =
        state.pending.as_ref().map(|p| (p.slot, p.root_hash.to_string(), p.kind, p.confirming, &p.message));
    let confirmed = state.confirmed.as_ref().map(|c| (c.slot, c.root_hash.to_string(), &c.before));
    json!({
        "pending": pending,
        "confirmed": confirmed,
        // Those of the others say only that they were left behind.
        "boots": state.confirmed.as_ref().and_then(|c| state.boots.get(&c.slot)),
        "epoch_floor": state.epoch_floor,
        "time_floor": state.time_floor,
        "intent": state.intent,
        "unknown": state.unknown,
    })
}
