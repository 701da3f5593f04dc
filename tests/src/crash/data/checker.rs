//! Does again what was cut, from every state that a cut may leave, and compares.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::super::cores::{self, lock, on_all_cores};
use super::super::states::{Bounds, each_after_cuts, fingerprint, rebuild, some_after_cuts};
use super::super::{Check, Cut, During, Report, Violation};
use super::{Sample, Scenario};
use crate::recorder::{Digest, Event, Media, Recorder};

/// States of a cut in what follows a cut that are drawn after each event.
const DRAWN: usize = 4;

/// A state, and how it came about.
struct State {
    media: Media,
    cuts: Vec<Cut>,
    /// Everything had been done: nothing of it may be missing.
    ended: bool,
    /// It was checked before; only now it is known that all had been done.
    known: bool,
}

/// What a state after a cut may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Cut,
    Ended,
}

pub(super) fn check(scenario: &Scenario<'_>, sample: &Sample) -> Report {
    let mut report = Report { events: scenario.log.len(), ..Report::default() };
    let (mut distinct, mut states) = (HashSet::new(), Vec::new());
    let mut right = vec![vec![Right::Cut, Right::Ended]; scenario.log.len()];
    right.push(vec![Right::Ended]);
    each_after_cuts(&scenario.start, &scenario.log, &right, &sample.bounds, &mut |state| {
        let (cuts, ended) = (vec![Cut::new(During::Run, state.origin)], !state.right.contains(&Right::Cut));
        states.push(State { media: state.media, cuts, ended, known: state.known });
    });
    for level in 0..3 {
        let new = states.iter().filter(|state| !state.known);
        for state in new.clone() {
            cores::count();
            distinct.insert(state.media.digest());
            report.set ^= fingerprint(&state.cuts);
        }
        let count = [&mut report.states, &mut report.second, &mut report.third];
        count.into_iter().nth(level).into_iter().for_each(|count| *count = new.clone().count());
        let (logs, violations) = check_all(scenario, &states);
        report.repeated += logs.len();
        report.violations.extend(violations);
        states = cut_again(&states, &logs, sample, &distinct);
    }
    let borders = scenario.borders();
    report.distinct = distinct.len();
    report.borders = borders.len();
    report.seen_borders = borders.intersection(&distinct).count();
    report.violations.sort();
    report
}

/// Checks them on all cores: what each did when it was done again, by its place, and what is wrong.
fn check_all(scenario: &Scenario<'_>, states: &[State]) -> (BTreeMap<usize, Vec<Event>>, Vec<Violation>) {
    let (logs, violations) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    on_all_cores(
        |send| states.iter().enumerate().for_each(send),
        |(place, state): (usize, &State)| {
            let checked = catch_unwind(AssertUnwindSafe(|| check_state(scenario, state)));
            match checked.unwrap_or_else(|_| Err("panicked".into())) {
                Ok(log) => drop(lock(&logs).insert(place, log)),
                Err(why) => lock(&violations).push(Violation { cuts: state.cuts.clone(), why }),
            }
        },
    );
    let owned = |mutex: Mutex<_>| mutex.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    (logs.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), owned(violations))
}

/// What doing it again did.
fn check_state(scenario: &Scenario<'_>, state: &State) -> Check<Vec<Event>> {
    let act = &scenario.act;
    act.after_cut(scenario, &state.media)?;
    if state.ended {
        act.at_end(scenario, &state.media).map_err(|why| format!("it had ended, but {why}"))?;
    }
    let recorder = Recorder::new(state.media.clone());
    act.run(scenario.appliance, &recorder).map_err(|e| format!("done again: {e:#}"))?;
    act.at_end(scenario, &recorder.media()).map_err(|why| format!("done again, {why}"))?;
    Ok(recorder.log())
}

/// States after a cut in what was done again, none of which is known.
fn cut_again(
    states: &[State],
    logs: &BTreeMap<usize, Vec<Event>>,
    sample: &Sample,
    known: &HashSet<Digest>,
) -> Vec<State> {
    let (mut all, mut new, mut left) = (Vec::new(), HashSet::new(), sample.again);
    // Every so many of those that did something, so that the cuts are of all of them.
    let known_before = |place: &usize| states.get(*place).is_none_or(|state| state.known);
    let parents: Vec<_> =
        logs.iter().filter(|(place, log)| !log.is_empty() && !known_before(place)).collect();
    for (number, (place, log)) in parents.iter().enumerate() {
        let Some(state) = states.get(**place) else { continue };
        let count = left / (parents.len() - number) + usize::from(left % (parents.len() - number) > 0);
        let bounds = Bounds { drawn: DRAWN, ..sample.bounds };
        let bounds = bounds.seeded(bounds.seed ^ fingerprint(&state.cuts));
        let seen = |digest: &Digest| known.contains(digest) || new.contains(digest);
        let found = some_after_cuts(&state.media, log, &bounds, count, seen);
        left = left.saturating_sub(found.len());
        for (origin, media) in found {
            new.insert(media.digest());
            let cuts = [state.cuts.as_slice(), &[Cut::new(During::Repetition, origin)]].concat();
            all.push(State { media, cuts, ended: false, known: false });
        }
    }
    all
}

pub(super) fn replay(scenario: &Scenario<'_>, cuts: &[Cut]) -> Check<()> {
    let Some((first, later)) = cuts.split_first() else { return Ok(()) };
    let media = rebuild(&scenario.start, &scenario.log, &first.origin);
    let ended = first.origin.cut == scenario.log.len();
    let mut state = State { media, cuts: vec![first.clone()], ended, known: false };
    for cut in later {
        let log = check_state(scenario, &state)?;
        let media = rebuild(&state.media, &log, &cut.origin);
        let cuts = [state.cuts.as_slice(), std::slice::from_ref(cut)].concat();
        state = State { media, cuts, ended: false, known: false };
    }
    check_state(scenario, &state).map(drop)
}
