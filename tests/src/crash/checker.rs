//! Recovers the states of a scenario and compares what becomes of them with the order law.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use slotd::domain::trailer::{self, Found};
use slotd::store::{SlotWord, Store};
use sps_base::error::ErrorKind;

use super::appliance::{RUNNING, TARGET, full_check, outcome, target};
use super::cores::{self, lock, on_all_cores};
use super::law::{self, Outcome, read_state};
use super::states::{Bounds, CrashState, at_end, each_after_cuts, fingerprint, rebuild, sample};
use super::{
    BOOT_IMAGE, Check, Cut, During, RUNNING_BOOT_IMAGE, Report, Scenario, Violation, ensure, in_order,
};
use crate::recorder::{Digest, Event, Faults, Media, Recorder};

/// Checks every state within `bounds`, on all cores.
pub(super) fn check(scenario: &Scenario<'_>, bounds: &Bounds) -> Report {
    let checker = Checker::new(scenario, bounds);
    on_all_cores(
        |send| each_after_cuts(&scenario.start, &scenario.log, &checker.right, bounds, send),
        |state| checker.check(state),
    );
    checker.check_end();
    checker.report()
}

pub(super) struct Checker<'a> {
    scenario: &'a Scenario<'a>,
    bounds: Bounds,
    /// What is right after each cut.
    right: Vec<Vec<Outcome>>,
    distinct: Mutex<HashSet<Digest>>,
    /// Results of full checks, by the digest of the slot.
    healthy: Mutex<HashMap<Digest, bool>>,
    /// Recoveries that a second one has left as they were.
    steady: Mutex<HashSet<Digest>>,
    report: Mutex<Report>,
}

/// What a recovery left.
pub(super) struct Recovered {
    pub(super) media: Media,
    log: Vec<Event>,
    pub(super) outcome: Outcome,
}

impl Recovered {
    pub(super) fn new(recorder: &Recorder, outcome: Outcome) -> Self {
        Self { media: recorder.media(), log: recorder.log(), outcome }
    }
}

impl<'a> Checker<'a> {
    pub(super) fn new(scenario: &'a Scenario<'a>, bounds: &Bounds) -> Self {
        let right = scenario.law(scenario.before.clone()).after_each(&scenario.start, &scenario.log);
        Self {
            scenario,
            bounds: *bounds,
            right,
            distinct: Mutex::default(),
            healthy: Mutex::default(),
            steady: Mutex::default(),
            report: Mutex::default(),
        }
    }

    fn report(self) -> Report {
        let distinct = self.distinct.into_inner().unwrap_or_else(PoisonError::into_inner);
        let borders = self.scenario.borders();
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.events = self.scenario.log.len();
        report.distinct = distinct.len();
        report.borders = borders.len();
        report.seen_borders = borders.intersection(&distinct).count();
        report.violations.sort();
        report
    }

    fn count(&self, cuts: &[Cut], media: &Media, which: fn(&mut Report) -> &mut usize) {
        cores::count();
        lock(&self.distinct).insert(media.digest());
        let mut report = lock(&self.report);
        *which(&mut report) += 1;
        report.set ^= fingerprint(cuts);
    }

    fn guarded(&self, cuts: &[Cut], check: impl FnOnce() -> Check<()>) {
        let checked = catch_unwind(AssertUnwindSafe(check));
        if let Err(why) = checked.unwrap_or_else(|_| Err("panicked".into())) {
            lock(&self.report).violations.push(Violation { cuts: cuts.to_vec(), why });
        }
    }

    fn check(&self, state: CrashState<Outcome>) {
        let cuts = vec![Cut::new(During::Run, state.origin)];
        if !state.known {
            self.count(&cuts, &state.media, |report| &mut report.states);
        }
        self.guarded(&cuts, || {
            let media = self.with_room(&state.media)?;
            let recovered = self.recover(&media, &state.right)?;
            if state.repeat && !state.known {
                lock(&self.report).repeated += 1;
                let log = self.repeat(&recovered)?;
                if sample(&cuts, self.bounds.seed, self.bounds.second) {
                    self.cut_again(&cuts, &media, &recovered, &log);
                }
            }
            Ok(())
        });
    }

    /// Where the ESP is full: the recovery as far as it comes, and then room is made.
    fn with_room(&self, media: &Media) -> Check<Media> {
        let Some(limit) = self.scenario.esp_limit else { return Ok(media.clone()) };
        let faults = Faults { esp_limit: Some(limit), ..Faults::default() };
        let recorder = Recorder::faulty(media.clone(), faults);
        let store = self.scenario.appliance.store(&recorder);
        let found = outcome(&store).ok_or("slot 2 is not listed")?;
        ensure(found != Outcome::Empty || self.scenario.before == Outcome::Empty, || {
            "while the ESP is full slot 2 is called empty".into()
        })?;
        let unfinished = Recovered::new(&recorder, found);
        self.check_running(&store, &unfinished)?;
        Ok(unfinished.media)
    }

    /// Runs the recovery and looks at what it leaves.
    pub(super) fn recover(&self, media: &Media, right: &[Outcome]) -> Check<Recovered> {
        let recorder = Recorder::new(media.clone());
        let store = self.scenario.appliance.store(&recorder);
        let found = outcome(&store).ok_or("slot 2 is not listed")?;
        ensure(right.contains(&found), || format!("slot 2 is {found:?}, right is {right:?}"))?;
        ensure(store.state().0 == "valid", || format!("the state is {}", store.state().0))?;
        let recovered = Recovered::new(&recorder, found);
        check_intent(&recovered)?;
        self.check_state(&recovered)?;
        self.check_running(&store, &recovered)?;
        self.check_boot_image(&recovered)?;
        self.check_blocks(&recovered)?;
        self.check_steady(&recovered)?;
        Ok(recovered)
    }

    /// The states behind the last event: they are not new where nothing was done for them.
    fn check_end(&self) {
        for (origin, media) in at_end(&self.scenario.start, &self.scenario.log, &self.bounds) {
            let cuts = [Cut::new(During::Run, origin)];
            self.guarded(&cuts, || {
                let recorder = Recorder::new(media);
                let found = outcome(&self.scenario.appliance.store(&recorder)).unwrap_or(Outcome::Empty);
                self.check_ended(&cuts, &Recovered::new(&recorder, found))
            });
        }
    }

    /// What has returned is durable: nothing is left to a recovery.
    fn check_ended(&self, cuts: &[Cut], recovered: &Recovered) -> Check<()> {
        let ended = cuts.len() == 1 && cuts.iter().all(|cut| cut.origin.cut == self.scenario.log.len());
        let left = ended && self.scenario.esp_limit.is_none() && !recovered.log.is_empty();
        ensure(!left, || format!("it had ended, and yet a recovery writes: {:?}", recovered.log))
    }

    /// Another recovery changes nothing.
    fn check_steady(&self, recovered: &Recovered) -> Check<()> {
        if !lock(&self.steady).insert(recovered.media.digest()) {
            return Ok(());
        }
        let again = Recorder::new(recovered.media.clone());
        let second = outcome(&self.scenario.appliance.store(&again));
        ensure(again.log().is_empty(), || format!("a second recovery writes: {:?}", again.log()))?;
        ensure(second.as_ref() == Some(&recovered.outcome), || format!("a second recovery finds {second:?}"))
    }

    /// No floor went back, and nothing was lost that another version has written.
    fn check_state(&self, recovered: &Recovered) -> Check<()> {
        let before = read_state(&self.scenario.start.state)?.2;
        let now = read_state(&recovered.media.state)?.2;
        let floors = (before.epoch_floor, before.time_floor);
        ensure(now.epoch_floor >= floors.0 && now.time_floor >= floors.1, || {
            format!("the floors sank from {floors:?} to {:?}", (now.epoch_floor, now.time_floor))
        })?;
        ensure(now.unknown == before.unknown, || {
            format!("unknown fields were {:?}, are {:?}", before.unknown, now.unknown)
        })
    }

    /// The slot that runs is as it was, and so is its boot image: it boots.
    pub(super) fn check_running(&self, store: &Store, recovered: &Recovered) -> Check<()> {
        let scenario = self.scenario;
        let running = store.slots().into_iter().find(|view| view.current);
        let hash = scenario.appliance.running.root_hash();
        let right = running.as_ref().is_some_and(|view| {
            view.state == SlotWord::Verified && view.root_hash == hash && view.id.get() == 1
        });
        ensure(right, || format!("the running slot is {running:?}"))?;
        ensure(store.slot_of_root().is_some_and(|slot| slot.get() == 1), || {
            "slotboot finds no slot for the root hash of the running boot image".into()
        })?;
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
        if !matches!(recovered.outcome, Outcome::Verified(_)) {
            return Ok(());
        }
        ensure(self.is_healthy(&recovered.media)?, || "slot 2 is called verified but has bad blocks".into())
    }

    /// Whether a full check of slot 2 finds nothing.
    pub(super) fn is_healthy(&self, media: &Media) -> Check<bool> {
        let digest = media.slots.get(1).ok_or("no slot 2")?.digest();
        let known = lock(&self.healthy).get(&digest).copied();
        if let Some(healthy) = known {
            return Ok(healthy);
        }
        let store = self.scenario.appliance.store(&Recorder::new(media.clone()));
        let healthy = full_check(&store, target()).map_err(|e| format!("full check: {e}"))?;
        lock(&self.healthy).insert(digest, healthy);
        Ok(healthy)
    }

    /// Does the operation again: it must end as if nothing had happened.
    pub(super) fn repeat(&self, recovered: &Recovered) -> Check<Vec<Event>> {
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
        Ok(in_order(recorder.log()))
    }

    /// Another cut: in the recovery, and in the operation that is done again.
    fn cut_again(&self, cuts: &[Cut], media: &Media, recovered: &Recovered, repeated: &[Event]) {
        let steady = vec![vec![recovered.outcome.clone()]; recovered.log.len() + 1];
        let right = self.scenario.law(recovered.outcome.clone()).after_each(&recovered.media, repeated);
        let bounds = self.bounds.again().seeded(self.bounds.seed ^ fingerprint(cuts));
        for (during, start, log, right) in [
            (During::Recovery, media, recovered.log.as_slice(), &steady),
            (During::Repetition, &recovered.media, repeated, &right),
        ] {
            each_after_cuts(start, log, right, &bounds, &mut |state| {
                let cuts = [cuts, &[Cut::new(during, state.origin.clone())]].concat();
                if state.origin.cut > 0 {
                    self.guarded(&cuts, || self.check_later(&cuts, &state));
                }
            });
        }
    }

    /// A state after a second or a third cut.
    fn check_later(&self, cuts: &[Cut], state: &CrashState<Outcome>) -> Check<()> {
        if !state.known {
            let which: fn(&mut Report) -> &mut usize =
                if cuts.len() == 2 { |report| &mut report.second } else { |report| &mut report.third };
            self.count(cuts, &state.media, which);
        }
        let recovered = self.recover(&state.media, &state.right)?;
        if cuts.len() == 2 && !state.known && sample(cuts, self.bounds.seed, self.bounds.third) {
            let log = self.repeat(&recovered)?;
            self.cut_again(cuts, &state.media, &recovered, &log);
        }
        Ok(())
    }

    /// Checks the state that these cuts lead to, and nothing else.
    pub(super) fn replay(&self, cuts: &[Cut]) -> Check<()> {
        let Some((first, later)) = cuts.split_first() else { return Ok(()) };
        let allowed = |right: &[Vec<Outcome>], cut: usize| right.get(cut).cloned().unwrap_or_default();
        let mut right = allowed(&self.right, first.origin.cut);
        let mut media = rebuild(&self.scenario.start, &self.scenario.log, &first.origin);
        media = self.with_room(&media)?;
        for cut in later {
            let recovered = self.recover(&media, &right)?;
            if cut.during == During::Recovery {
                media = rebuild(&media, &recovered.log, &cut.origin);
                right = vec![recovered.outcome];
            } else {
                let log = self.repeat(&recovered)?;
                let law = self.scenario.law(recovered.outcome).after_each(&recovered.media, &log);
                right = allowed(&law, cut.origin.cut);
                media = rebuild(&recovered.media, &log, &cut.origin);
            }
        }
        let recovered = self.recover(&media, &right)?;
        self.check_ended(cuts, &recovered)?;
        self.repeat(&recovered).map(drop)
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
pub(super) fn same_end(expected: &Media, found: &Media) -> Check<()> {
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
