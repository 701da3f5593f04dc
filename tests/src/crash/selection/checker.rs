//! Starts the states of a scenario and compares what becomes of them with the law.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use slotd::device::loader::uefi::LOADER_CONF;

use super::super::cores::{self, lock, on_all_cores};
use super::super::states::{Bounds, fingerprint, rebuild, some_after_cuts};
use super::super::{Check, Cut, Violation, ensure};
use super::law::{self, End, Lost, Verdict, state};
use super::power::{Power, Settled, Starts};
use super::{Again, DRAWN, Report, Sample, Scenario, State, loader};
use crate::recorder::{Digest, Event, Media};

/// Starts whose log is in memory at a time.
const BATCH: usize = 256;
/// States after a second cut that are in memory at a time, about.
const HELD: usize = 4096;

/// Cuts a scenario everywhere, on all cores.
pub(super) fn check(scenario: &Scenario<'_>, sample: &Sample) -> Report {
    let mut checker = Checker::new(scenario, &sample.again);
    let bounds = checker.reach(sample);
    if checker.undisturbed.is_some() {
        let most = (HELD * checker.left / checker.wanted[0].max(1)).clamp(1, BATCH);
        let mut batch = Vec::new();
        scenario.first_cuts(&bounds, sample, &mut |state| {
            batch.push(state);
            if batch.len() == most {
                checker.check_batch(std::mem::take(&mut batch), 0);
            }
        });
        checker.check_batch(batch, 0);
    }
    checker.report()
}

/// Checks the state that these cuts lead to, and nothing else.
pub(super) fn replay(scenario: &Scenario<'_>, cuts: &[Cut]) -> Check<()> {
    let checker = Checker::new(scenario, &Bounds::quick());
    if checker.undisturbed.is_none() {
        return checker.report().violations.into_iter().next().map_or(Ok(()), |found| Err(found.why));
    }
    let Some((first, later)) = cuts.split_first() else { return Ok(()) };
    let mut state = scenario.state_at(first).ok_or("there is no such loss")?;
    for cut in later {
        let settled = checker.check_state(&state)?;
        let media = rebuild(&state.media, &settled.first_start, &cut.origin);
        state = state.cut_again(cut.origin.clone(), media);
    }
    checker.check_state(&state).map(drop)
}

pub(super) struct Checker<'a> {
    scenario: &'a Scenario<'a>,
    /// What the undisturbed one comes to.
    undisturbed: Option<Settled>,
    starts: Starts,
    /// What doing it again came to, by what it was done on.
    repeated: Mutex<HashMap<Digest, Check<()>>>,
    distinct: HashSet<Digest>,
    again: Bounds,
    /// How many states to make of one start.
    of_one_start: usize,
    /// States after a second cut that are still asked for, and those after a third.
    wanted: [usize; 2],
    /// States after a first cut that are still to be cut again.
    left: usize,
    violations: Mutex<Vec<Violation>>,
    report: Report,
}

impl<'a> Checker<'a> {
    fn new(scenario: &'a Scenario<'a>, again: &Bounds) -> Self {
        let mut checker = Self {
            scenario,
            undisturbed: None,
            starts: Starts::default(),
            repeated: Mutex::default(),
            distinct: HashSet::new(),
            again: *again,
            of_one_start: 1,
            wanted: [0; 2],
            left: 0,
            violations: Mutex::default(),
            report: Report::default(),
        };
        checker.undisturbed =
            checker.guarded(&[], || checker.power(Lost::default()).settle(&scenario.finished));
        checker
    }

    /// How closely to look after each event, and how often to cut again, to come to as many states as are asked for.
    fn reach(&mut self, sample: &Sample) -> Bounds {
        let (mut bounds, mut before) = (sample.bounds, 0);
        let (first, neighbours) = loop {
            let (mut first, mut neighbours) = (HashSet::new(), 0_usize);
            self.scenario.first_cuts(&bounds, sample, &mut |state| {
                let new = first.insert(state.media.digest());
                neighbours += usize::from(new && state.lost.neighbour);
            });
            // A short log: what it writes is torn in more ways. Where others make up for it, only while that shows more.
            let no_more = bounds.misses < usize::MAX && first.len() < before + before / 8;
            if first.len() >= sample.distinct / 4 || bounds.drawn >= DRAWN || no_more {
                break (first, neighbours);
            }
            before = first.len();
            // Each look makes all of them again: of millions few looks, and the last one not much too far.
            let times = match bounds.misses {
                usize::MAX => 2,
                _ => (sample.distinct / 4).div_ceil(before.max(1)).clamp(2, 32),
            };
            bounds.drawn = (times * bounds.drawn).max(4);
        };
        let missing = sample.distinct.saturating_sub(first.len());
        self.wanted = [missing.div_ceil(2).max(sample.again_at_least); 2];
        self.left = first.len() - neighbours;
        self.of_one_start = sample.of_one_start;
        bounds
    }

    fn report(mut self) -> Report {
        let borders = self.scenario.borders();
        self.report.events = self.scenario.log.len();
        self.report.distinct = self.distinct.len();
        self.report.borders = borders.len();
        self.report.seen_borders = borders.iter().filter(|border| self.distinct.contains(*border)).count();
        self.report.violations = self.violations.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.report.violations.sort();
        self.report
    }

    fn guarded<T>(&self, cuts: &[Cut], check: impl FnOnce() -> Check<T>) -> Option<T> {
        let checked = catch_unwind(AssertUnwindSafe(check));
        let why = match checked.unwrap_or_else(|_| Err("panicked".into())) {
            Ok(found) => return Some(found),
            Err(why) => why,
        };
        lock(&self.violations).push(Violation { cuts: cuts.to_vec(), why });
        None
    }

    /// Checks states after so many cuts and one, and states after a cut in their starts. Which ones does not hang on
    /// which thread was first.
    fn check_batch(&mut self, states: Vec<State>, level: usize) {
        let parents = |states: &[State]| states.iter().filter(|state| state.is_cut_again()).count();
        let mut rest = parents(&states);
        if level == 0 {
            self.left = self.left.saturating_sub(rest);
        }
        let mut states = states.into_iter();
        loop {
            let some: Vec<State> = states.by_ref().take(BATCH).collect();
            if some.is_empty() {
                break;
            }
            for state in &some {
                self.count(state);
            }
            let share = (parents(&some), rest + self.to_come(level));
            rest -= share.0;
            let started = self.check_all(some);
            let next = self.cut_again(&started, level, share);
            drop(started);
            self.check_batch(next, level + 1);
        }
    }

    /// How many states are still to be cut again at this level that are not made yet.
    fn to_come(&self, level: usize) -> usize {
        match level {
            0 => self.left,
            _ if self.left == 0 => 0,
            _ => self.wanted[0],
        }
    }

    fn count(&mut self, state: &State) {
        if state.known {
            return;
        }
        self.distinct.insert(state.media.digest());
        let report = &mut self.report;
        report.set ^= fingerprint(&state.cuts);
        match state.cuts.len() {
            1 if state.right.is_none() => report.losses += 1,
            1 => report.states += 1,
            2 => report.second += 1,
            _ => report.third += 1,
        }
        report.neighbours += usize::from(state.lost.neighbour && state.cuts.len() == 1);
    }

    /// Checks them on all cores; answers those that held, with what each did in its first start.
    fn check_all(&self, states: Vec<State>) -> Vec<(State, Vec<Event>)> {
        let logs = Mutex::new(BTreeMap::new());
        on_all_cores(
            |send| states.iter().enumerate().for_each(send),
            |(index, state): (usize, &State)| {
                cores::count();
                if let Some(settled) = self.guarded(&state.cuts, || self.check_state(state)) {
                    lock(&logs).insert(index, settled.first_start);
                }
            },
        );
        let mut logs = logs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let started = states.into_iter().enumerate();
        started.filter_map(|(index, state)| Some((state, logs.remove(&index)?))).collect()
    }

    /// States after a cut in these starts, none of which was seen before: what falls to so many of so many. What one
    /// start does not have, the others make up for.
    fn cut_again(
        &mut self,
        started: &[(State, Vec<Event>)],
        level: usize,
        (some, of): (usize, usize),
    ) -> Vec<State> {
        let parents: Vec<_> = started.iter().filter(|(state, _)| state.is_cut_again()).collect();
        let Some(wanted) = self.wanted.get_mut(level) else { return Vec::new() };
        let mut missing = if some < of { wanted.saturating_mul(some) / of } else { *wanted };
        let (mut all, mut new, mut again) = (Vec::new(), HashSet::new(), self.again);
        // At first some of the starts, from all over, then each of them.
        let mut every = (self.of_one_start * parents.len() / missing.max(1)).max(1);
        while missing > 0 && again.drawn < DRAWN {
            let (some, asked) = (parents.len().div_ceil(every), missing);
            for (place, (state, log)) in parents.iter().step_by(every).enumerate() {
                let count = missing.div_ceil(some - place);
                let bounds = again.seeded(again.seed ^ fingerprint(&state.cuts));
                let known = |digest: &Digest| self.distinct.contains(digest) || new.contains(digest);
                let found = some_after_cuts(&state.media, log, &bounds, count, known);
                missing = missing.saturating_sub(found.len());
                for (origin, media) in found {
                    new.insert(media.digest());
                    all.push(state.cut_again(origin, media));
                }
            }
            again.drawn = (4 * again.drawn).max(4);
            if every == 1 && self.again.misses < usize::MAX && missing > asked - asked / 8 {
                break;
            }
            every = 1;
        }
        *wanted = wanted.saturating_sub(all.len());
        all
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

    fn check_state(&self, cut: &State) -> Check<Settled> {
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
        Ok(settled)
    }

    fn repeat(&self, settled: &Media) -> Check<()> {
        let key = law::reads_as(settled);
        let known = lock(&self.repeated).get(&key).cloned();
        let done = known.unwrap_or_else(|| self.repeat_once(settled));
        lock(&self.repeated).insert(key, done.clone());
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
