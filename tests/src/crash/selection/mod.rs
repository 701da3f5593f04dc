//! The crash checker for the second table: selecting, trying and confirming, cut everywhere, and cut again in the start
//! that follows.

pub mod faults;
pub mod ground;
pub mod law;
pub mod power;
pub mod scenarios;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};
use slotd::domain::plan::SelectStep;
use slotd::store::RevertRequest;

use super::states::{Bounds, CrashState, after_cuts, lost_neighbours};
use super::{Check, ensure};
use crate::recorder::{Event, Media, Recorder};
use ground::Ground;
use law::{End, Flip, Verdict, right_after_each, selection, state};
use power::{Came, Health, Power};

/// What is done again once everything has come to rest, to end as if nothing had happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Nothing: starting is enough.
    Start,
    /// An operator selects this slot.
    Select(usize),
    /// This slot is selected, tried and confirmed, unless it has been.
    Confirm(usize),
    /// The state is reset.
    Reset,
}

/// Something that was recorded, to be cut everywhere.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// The firmware.
    pub ground: &'a Ground,
    /// What it is.
    pub name: &'static str,
    /// The media before it.
    pub start: Media,
    /// What happened: as recorded, or altered to plant a fault.
    pub log: Vec<Event>,
    /// The media after it, undisturbed.
    pub finished: Media,
    /// How the firmware in slot 1, 2, 3 behaves afterwards.
    pub health: [Health; 3],
    /// Whether the loader can clear its one-shot entry.
    pub forgets: bool,
    /// What becomes of a cut before the first event.
    pub first: Verdict,
    /// What each step makes of that.
    pub flips: Vec<Flip>,
    /// What a second cut may come to, besides what it would have come to without.
    pub after_second: Vec<End>,
    /// What is done again.
    pub again: Again,
}

/// What checking a scenario showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Events that were recorded.
    pub events: usize,
    /// Distinct contents of the media after a cut.
    pub states: usize,
    /// Of these: a file of the ESP that nobody touched is lost.
    pub neighbours: usize,
    /// Distinct contents after a second cut, in the start that follows.
    pub second: usize,
    /// Of these: so many were started a third time.
    pub third: usize,
    /// What should not be, with the state it was found in.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, states, neighbours, second, third, violations } = self;
        write!(
            f,
            "{events} events, {states} states ({neighbours} with a lost neighbour), after a second cut {third} of \
             {second} states, {} violations",
            violations.len()
        )?;
        violations.iter().take(8).try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl Scenario<'_> {
    fn power(&self) -> Power<'_> {
        Power {
            ground: self.ground,
            before: &self.start,
            health: self.health,
            forgets: self.forgets,
            may_be_lost: state(&self.start).is_none(),
        }
    }

    /// The steps of the second table that were recorded.
    pub fn steps(&self) -> Vec<SelectStep> {
        let mut steps: Vec<SelectStep> = law::steps(&self.start, &self.log).into_iter().flatten().collect();
        steps.dedup();
        steps
    }

    /// Cuts it everywhere, starts it, cuts that start everywhere, and starts one in `sample` of those again. With 0
    /// neither a second cut nor a lost neighbour is tried.
    pub fn check(&self, sample: usize) -> Report {
        let right = right_after_each(&self.start, &self.log, self.first, &self.flips);
        let mut states = after_cuts(&self.start, &self.log, &right, &Bounds::quick());
        let mut neighbours = lost_neighbours(&self.start, &self.log, &right);
        neighbours.truncate(if sample == 0 { 0 } else { neighbours.len() });
        let mut report = Report {
            events: self.log.len(),
            states: states.len() + neighbours.len(),
            neighbours: neighbours.len(),
            ..Report::default()
        };
        let undisturbed = match self.power().settle(&self.finished) {
            Ok(settled) => settled.media,
            Err(why) => {
                report.violations.push(format!("undisturbed: {why}"));
                return report;
            }
        };
        states.extend(neighbours);
        let checker = Checker { scenario: self, undisturbed, sample, report: Mutex::new(report) };
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(state) = states.get(next.fetch_add(1, Ordering::Relaxed)) {
                        checker.check(state);
                    }
                });
            }
        });
        checker.report.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it again on media that have come to rest.
    fn repeat(&self, settled: &Media) -> anyhow::Result<Media> {
        let recorder = Recorder::new(settled.clone());
        let running = selection(settled).ok().and_then(|set| set.default?.slot());
        let running = running.map_or(0, |slot| slot.get() as usize);
        match self.again {
            Again::Start => {}
            Again::Select(slot) => self.select(&recorder, running, slot)?,
            Again::Confirm(slot) if running == slot => {}
            Again::Confirm(slot) => {
                self.select(&recorder, running, slot)?;
                let mut health = self.health;
                health[slot - 1] = Health::Good;
                let came = Power { health, ..self.power() }.start(&recorder).map_err(anyhow::Error::msg)?;
                anyhow::ensure!(came == Came::Up(slot, true), "done again, {came:?} came up");
            }
            Again::Reset => self.ground.assemble(&recorder, running).reset_state("in a test")?,
        }
        Ok(recorder.media())
    }
}

impl Scenario<'_> {
    /// An older firmware is gone back to, a newer one is tested and selected.
    fn select(&self, recorder: &Recorder, running: usize, slot: usize) -> anyhow::Result<()> {
        if slot > running {
            return self.ground.activate(recorder, running, slot);
        }
        let request = RevertRequest { slot: Some(ground::id(slot)), accept_config: None };
        self.ground.assemble(recorder, running).revert("in a test", &request, "the test")?;
        Ok(())
    }
}

struct Checker<'a> {
    scenario: &'a Scenario<'a>,
    /// What the undisturbed one comes to.
    undisturbed: Media,
    sample: usize,
    report: Mutex<Report>,
}

impl Checker<'_> {
    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn check(&self, state: &CrashState<Verdict>) {
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_state(state)));
        if let Err(why) = checked.unwrap_or_else(|_| Err("panicked".into())) {
            self.note(|report| report.violations.push(format!("{}: {why}", state.origin)));
        }
    }

    fn check_state(&self, state: &CrashState<Verdict>) -> Check<()> {
        let scenario = self.scenario;
        let power = scenario.power();
        let lost = (power.may_be_lost, state.neighbour);
        law::holds(scenario.ground, &scenario.start, &state.media, lost)?;
        let settled = power.settle(&state.media)?;
        let found = settled.verdict;
        // Where a boot image was lost, recovery comes first and puts it back.
        let same = |right: &Verdict| {
            right.end == found.end && (right.next == found.next || (state.neighbour && found.next.is_none()))
        };
        ensure(state.right.iter().any(same), || format!("it is {found:?}, right is {:?}", state.right))?;
        let again = scenario.repeat(&settled.media).map_err(|e| format!("done again: {e:#}"))?;
        if matches!(scenario.again, Again::Start | Again::Confirm(_)) {
            let again = power.settle(&again).map_err(|why| format!("done again, {why}"))?;
            same_end(&self.undisturbed, &again.media)?;
        } else {
            same_end(&scenario.finished, &again)?;
        }
        // One lost neighbour is enough for two cuts.
        if self.sample == 0 || state.neighbour { Ok(()) } else { self.cut_again(state, &settled) }
    }

    /// The start that followed, cut everywhere.
    fn cut_again(&self, state: &CrashState<Verdict>, settled: &power::Settled) -> Check<()> {
        let scenario = self.scenario;
        let log = &settled.first_start;
        let right: Vec<End> =
            [settled.verdict.end].into_iter().chain(scenario.after_second.iter().copied()).collect();
        let right = vec![right; log.len() + 1];
        let mut second = after_cuts(&state.media, log, &right, &Bounds::quick().again());
        second.extend(lost_neighbours(&state.media, log, &right));
        let total = second.len();
        let mut checked = 0;
        for cut in second.iter().step_by(self.sample) {
            let lost = (scenario.power().may_be_lost, cut.neighbour);
            let then = |why| format!("then {}: {why}", cut.origin);
            law::holds(scenario.ground, &scenario.start, &cut.media, lost).map_err(then)?;
            let found = scenario.power().settle(&cut.media).map_err(then)?.verdict;
            ensure(cut.right.contains(&found.end), || {
                then(format!("it is {found:?}, right is {:?}", cut.right))
            })?;
            checked += 1;
        }
        self.note(|report| {
            report.second += total;
            report.third += checked;
        });
        Ok(())
    }
}

/// Whether two ends are the same but for times, words and what the journal of upgrades says.
fn same_end(expected: &Media, found: &Media) -> Check<()> {
    ensure(expected.esp == found.esp, || "done again, the ESP is another".into())?;
    let loaders = (selection(expected)?, selection(found)?);
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
        "boots": state.boots,
        "epoch_floor": state.epoch_floor,
        "time_floor": state.time_floor,
        "intent": state.intent,
        "unknown": state.unknown,
    })
}
