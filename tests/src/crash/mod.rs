//! The crash checker: the media after every cut of an operation, the shipped recovery on each, and what the order law
//! says it must find.

pub mod appliance;
pub mod faults;
pub mod law;
pub mod selection;
pub mod states;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use slotd::domain::trailer::{self, Found};
use slotd::store::{SlotWord, Store};
use sps_base::error::ErrorKind;

use crate::recorder::{Event, Media, Recorder};
use appliance::{Appliance, Operation, RUNNING, TARGET, full_check, outcome, target};
use law::{Law, Outcome};
use states::{Bounds, CrashState, after_cuts};

/// The boot image of the slot that is changed.
const BOOT_IMAGE: &str = "sps-slot-2.efi";
/// The boot image of the slot that runs.
const RUNNING_BOOT_IMAGE: &str = "sps-slot-1.efi";
/// Of the states from which the operation is repeated, one in so many is cut a second time.
const SECOND_CUTS: usize = 40;

/// An operation that was recorded, to be cut everywhere.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// The appliance.
    pub appliance: &'a Appliance,
    /// The media before it.
    pub start: Media,
    /// What slot 2 was before it.
    pub before: Outcome,
    /// What is done, and done again after a cut.
    pub operation: Operation<'a>,
    /// What happened: as recorded, or altered to plant a fault.
    pub log: Vec<Event>,
    /// The media after the undisturbed operation.
    pub finished: Media,
}

/// What checking a scenario showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Distinct contents of the media that were recovered.
    pub states: usize,
    /// Of these: from so many the operation was repeated.
    pub repeated: usize,
    /// Distinct contents after a second cut, in the recovery or in the repetition.
    pub second_cuts: usize,
    /// What should not be, with the state it was found in.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, repeated, second_cuts, violations } = self;
        write!(
            f,
            "{states} states, {repeated} repeated, {second_cuts} after a second cut, {} violations",
            violations.len()
        )?;
        violations.iter().take(8).try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl<'a> Scenario<'a> {
    /// Records `operation` from `start` on, in one undisturbed run.
    pub fn record(appliance: &'a Appliance, start: Media, operation: Operation<'a>) -> anyhow::Result<Self> {
        Self::record_with(appliance, start, operation, |recorder, operation| {
            appliance.carry_out(operation, recorder)
        })
    }

    /// Records what `run` does on the way to what `operation` does at once.
    pub fn record_with(
        appliance: &'a Appliance,
        start: Media,
        operation: Operation<'a>,
        run: impl FnOnce(&Recorder, &Operation<'a>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let undisturbed = Recorder::new(start.clone());
        let store = appliance.store(&undisturbed);
        let before = outcome(&store).unwrap_or(Outcome::Empty);
        appliance.carry_out_in(&store, &operation)?;
        let recorder = Recorder::new(start.clone());
        run(&recorder, &operation)?;
        let (log, finished) = (recorder.log(), undisturbed.media());
        Ok(Self { appliance, start, before, operation, log, finished })
    }

    fn law(&self, before: Outcome) -> Law {
        let after = match &self.operation {
            Operation::Install(firmware, _) => Outcome::Verified(firmware.root_hash()),
            Operation::Delete => Outcome::Empty,
        };
        Law { target: TARGET, before, after }
    }

    /// Cuts it everywhere, recovers, and compares with the law.
    pub fn check(&self, bounds: &Bounds) -> Report {
        let right = self.law(self.before.clone()).after_each(&self.start, &self.log);
        let states = after_cuts(&self.start, &self.log, &right, bounds);
        let checker = Checker { scenario: self, healthy: Mutex::default(), report: Mutex::default() };
        let (next, repeats) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(state) = states.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let twice = state.repeat
                            && repeats.fetch_add(1, Ordering::Relaxed).is_multiple_of(SECOND_CUTS);
                        checker.check(state, twice);
                    }
                });
            }
        });
        checker.report.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Checker<'a> {
    scenario: &'a Scenario<'a>,
    /// Results of full checks, by the digest of the slot.
    healthy: Mutex<HashMap<[u8; 32], bool>>,
    report: Mutex<Report>,
}

/// What a recovery left.
struct Recovered {
    media: Media,
    log: Vec<Event>,
    outcome: Outcome,
}

pub(crate) type Check<T> = Result<T, String>;

pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check<()> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl Checker<'_> {
    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn check(&self, state: &CrashState<Outcome>, twice: bool) {
        self.note(|report| {
            report.states += 1;
            report.repeated += usize::from(state.repeat);
        });
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let recovered = self.recover(state)?;
            if state.repeat {
                let log = self.repeat(&recovered)?;
                if twice {
                    self.cut_again(state, &recovered, &log)?;
                }
            }
            Check::Ok(())
        }));
        if let Err(why) = checked.unwrap_or_else(|_| Err("panicked".into())) {
            self.note(|report| report.violations.push(format!("{}: {why}", state.origin)));
        }
    }

    /// Runs the recovery and looks at what it leaves.
    fn recover(&self, state: &CrashState<Outcome>) -> Check<Recovered> {
        let recorder = Recorder::new(state.media.clone());
        let store = self.scenario.appliance.store(&recorder);
        let found = outcome(&store).ok_or("slot 2 is not listed")?;
        ensure(state.right.contains(&found), || format!("slot 2 is {found:?}, right is {:?}", state.right))?;
        ensure(store.state().0 == "valid", || format!("the state is {}", store.state().0))?;
        let recovered = Recovered { media: recorder.media(), log: recorder.log(), outcome: found };
        check_intent(&recovered)?;
        self.check_running(&store, &recovered)?;
        self.check_boot_image(&recovered)?;
        self.check_blocks(&recovered)?;
        let again = Recorder::new(recovered.media.clone());
        let second = outcome(&self.scenario.appliance.store(&again));
        ensure(again.log().is_empty(), || format!("a second recovery writes: {:?}", again.log()))?;
        ensure(second.as_ref() == Some(&recovered.outcome), || {
            format!("a second recovery finds {second:?}")
        })?;
        Ok(recovered)
    }

    /// The slot that runs is as it was, and so is its boot image.
    fn check_running(&self, store: &Store, recovered: &Recovered) -> Check<()> {
        let scenario = self.scenario;
        let running = store.slots().into_iter().find(|view| view.current);
        let hash = scenario.appliance.running.root_hash();
        let right = running.as_ref().is_some_and(|view| {
            view.state == SlotWord::Verified && view.root_hash == hash && view.id.get() == 1
        });
        ensure(right, || format!("the running slot is {running:?}"))?;
        let same = recovered.media.slots.first() == scenario.start.slots.first();
        ensure(same, || "a byte of the running slot has changed".into())?;
        let boot = |media: &Media| media.esp.get(RUNNING_BOOT_IMAGE).cloned();
        ensure(boot(&recovered.media) == boot(&scenario.start), || {
            "the running boot image has changed".into()
        })?;
        let touched = recovered.log.iter().chain(&scenario.log).find(|event| match event {
            Event::Write { device, .. } => *device == RUNNING,
            Event::EspCreate { name } | Event::EspWrite { name, .. } | Event::EspRemove { name } => {
                name != BOOT_IMAGE
            }
            _ => false,
        });
        ensure(touched.is_none(), || format!("written where nothing may be: {touched:?}"))
    }

    /// A verified firmware has its own boot image on the ESP, anything unfinished or empty has none.
    fn check_boot_image(&self, recovered: &Recovered) -> Check<()> {
        let found = recovered.media.esp.get(BOOT_IMAGE);
        let appliance = self.scenario.appliance;
        let right = match &recovered.outcome {
            Outcome::Verified(hash) => [&appliance.old, &appliance.new]
                .into_iter()
                .find(|firmware| firmware.root_hash() == *hash)
                .is_some_and(|firmware| found.is_some_and(|found| found[..] == firmware.boot[..])),
            Outcome::Writing | Outcome::Empty => found.is_none(),
            Outcome::Bad(_) => true,
        };
        ensure(right, || {
            let length = found.map(|found| found.len());
            format!("slot 2 is {:?}, its boot image has {length:?} bytes", recovered.outcome)
        })
    }

    /// What is called verified passes a full check.
    fn check_blocks(&self, recovered: &Recovered) -> Check<()> {
        let Some(image) = recovered.media.slots.get(1) else { return Err("no slot 2".into()) };
        if !matches!(recovered.outcome, Outcome::Verified(_)) {
            return Ok(());
        }
        let digest = image.digest();
        let known = self.healthy.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied();
        let healthy = if let Some(healthy) = known {
            healthy
        } else {
            let store = self.scenario.appliance.store(&Recorder::new(recovered.media.clone()));
            full_check(&store, target()).map_err(|e| format!("full check: {e}"))?
        };
        self.healthy.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, healthy);
        ensure(healthy, || "slot 2 is called verified but has bad blocks".into())
    }

    /// Does the operation again: it must end as if nothing had happened.
    fn repeat(&self, recovered: &Recovered) -> Check<Vec<Event>> {
        let scenario = self.scenario;
        let recorder = Recorder::new(recovered.media.clone());
        let store = scenario.appliance.store(&recorder);
        if let Err(e) = scenario.appliance.carry_out_in(&store, &scenario.operation) {
            let kind = e.downcast_ref::<slotd::store::Failure>().map(|failure| failure.kind);
            let done = scenario.law(Outcome::Empty).after == recovered.outcome
                && matches!(
                    kind,
                    Some(ErrorKind::AlreadyInstalled | ErrorKind::NoEmptySlot | ErrorKind::SlotEmpty)
                );
            ensure(done, || format!("from {:?} again: {e:#}", recovered.outcome))?;
        }
        same_end(&scenario.finished, &recorder.media())?;
        Ok(recorder.log())
    }

    /// A second cut: in the recovery, and in the operation that is done again.
    fn cut_again(&self, state: &CrashState<Outcome>, recovered: &Recovered, repeated: &[Event]) -> Check<()> {
        let steady = vec![vec![recovered.outcome.clone()]; recovered.log.len() + 1];
        let in_recovery = after_cuts(&state.media, &recovered.log, &steady, &Bounds::quick().again());
        let law = self.scenario.law(recovered.outcome.clone());
        let right = law.after_each(&recovered.media, repeated);
        let in_repetition = after_cuts(&recovered.media, repeated, &right, &Bounds::quick().again());
        for second in in_recovery.iter().chain(&in_repetition) {
            self.note(|report| report.second_cuts += 1);
            self.recover(second).map_err(|why| format!("then {}: {why}", second.origin))?;
        }
        Ok(())
    }
}

/// An intent stands exactly as long as something is unfinished.
fn check_intent(recovered: &Recovered) -> Check<()> {
    let intent = law::intent(&recovered.media.state)?;
    let unfinished = intent.as_ref().is_some_and(|intent| intent.slot == target());
    ensure(unfinished == (recovered.outcome == Outcome::Writing), || {
        format!("slot 2 is {:?}, the intent {intent:?}", recovered.outcome)
    })
}

/// Whether two ends are the same but for the sequence number, which rises with each attempt.
fn same_end(expected: &Media, found: &Media) -> Check<()> {
    let intent = law::intent(&found.state)?;
    ensure(intent.is_none(), || format!("done again, the intent stays: {intent:?}"))?;
    ensure(expected.esp == found.esp, || "done again, the ESP is another".into())?;
    let (mut expected, mut found) = (expected.clone(), found.clone());
    let trailer = |media: &mut Media| {
        let image = media.image(TARGET);
        let mut block = [0; 4096];
        let at = image.size() - 4096;
        image.read(at, &mut block);
        image.write(at, &[0; 4096]);
        match trailer::parse(&block) {
            Found::Valid(mut trailer) => {
                trailer.sequence = 0;
                Found::Valid(trailer)
            }
            other => other,
        }
    };
    let trailers = (trailer(&mut expected), trailer(&mut found));
    ensure(trailers.0 == trailers.1, || format!("done again, the trailer is another: {trailers:?}"))?;
    ensure(expected.slots == found.slots, || "done again, the slot holds other bytes".into())
}
