//! Switching the appliance on: the loader's rule, the initrd as `slotboot` runs it, and slotd's start.

use slotd::domain::boot::Entry;
use slotd::domain::plan::SelectStep;
use slotd::store::{SlotWord, Start, Store};

use super::super::{Check, ensure};
use super::ground::{Ground, id};
use super::law::{self, End, Verdict, selection, state};
use crate::recorder::{Event, Media, Recorder};

/// Starts after which an appliance that is left alone must have come to rest.
const STARTS: usize = 12;

/// How the firmware of a slot behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its checks pass.
    Good,
    /// It runs slotd and says nothing.
    Silent,
    /// It dies after the initrd.
    Dead,
}

/// An appliance to be switched on and off.
#[derive(Clone, Copy, Debug)]
pub struct Power<'a> {
    /// Its firmware.
    pub ground: &'a Ground,
    /// The media as they were before anything happened.
    pub before: &'a Media,
    /// How the firmware in slot 1, 2, 3 behaves.
    pub health: [Health; 3],
    /// Whether the loader can clear its one-shot entry; a full or locked variable store cannot.
    pub forgets: bool,
    /// Whether the state may be lost.
    pub may_be_lost: bool,
}

/// What one start came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// This slot runs; whether that is a trial.
    Up(usize, bool),
    /// The recovery image runs.
    Recovery,
    /// The initrd sent it away.
    Again,
}

/// A state that was left alone.
#[derive(Debug)]
pub struct Settled {
    /// What became of it.
    pub verdict: Verdict,
    /// The media in the end.
    pub media: Media,
    /// What the first start did.
    pub first_start: Vec<Event>,
}

impl Power<'_> {
    fn health(&self, slot: usize) -> Health {
        slot.checked_sub(1).and_then(|index| self.health.get(index)).copied().unwrap_or(Health::Dead)
    }

    /// One start, from the loader to a running slotd.
    pub fn start(&self, recorder: &Recorder) -> Check<Came> {
        let media = recorder.media();
        let set = selection(&media)?;
        if set.one_shot.is_some() && self.forgets {
            recorder.loader().set_one_shot(None).map_err(|e| e.to_string())?;
        }
        let once = set.one_shot.as_ref().and_then(Entry::slot);
        let entry = set.one_shot.or(set.default);
        let slot = entry.as_ref().and_then(Entry::slot).map(|slot| slot.get() as usize);
        let Some(slot) = slot.filter(|slot| self.boots(&media, *slot)) else {
            ensure(self.ground.has_recovery(&media), || format!("{entry:?} and recovery: nothing boots"))?;
            drop(Store::assemble(self.ground.assembly(recorder, None)));
            return Ok(Came::Recovery);
        };
        let Some(trial) = self.initrd(recorder, slot, once == Some(id(slot)))? else {
            return Ok(Came::Again);
        };
        if self.health(slot) != Health::Dead {
            let store = self.ground.assemble(recorder, slot);
            self.check_running(&store, slot)?;
            if self.health(slot) == Health::Good && !(self.may_be_lost && store.state().0 != "valid") {
                store.confirm().map_err(|e| format!("slot {slot} is healthy, but: {e}"))?;
            }
        }
        Ok(Came::Up(slot, trial))
    }

    /// Whether the loader finds a boot image of this slot, and that proves the root in it.
    fn boots(&self, media: &Media, slot: usize) -> bool {
        let firmware = slot.checked_sub(1).and_then(|index| self.ground.firmware.get(index));
        let image = media.esp.get(&format!("sps-slot-{slot}.efi"));
        image.zip(firmware).is_some_and(|(found, firmware)| found[..] == firmware.boot[..])
    }

    /// What slotboot does. `None`: another one is started; else whether this is a trial.
    fn initrd(&self, recorder: &Recorder, slot: usize, once: bool) -> Check<Option<bool>> {
        let store = Store::look(self.ground.assembly(recorder, Some(slot)));
        self.check_running(&store, slot)?;
        let summary = store.summary();
        let (trial, before) = (summary.trial, recorder.media());
        let Some(known) = state(&before) else {
            ensure(self.may_be_lost, || "the state is lost".into())?;
            // A start that cannot be counted is still a start.
            let _ = store.count_start();
            return Ok(Some(trial));
        };
        let confirming = known.pending.as_ref().is_some_and(|pending| pending.confirming);
        ensure(trial == once || (once && confirming) || (once && summary.confirmed), || {
            format!("slot {slot} starts, trial for the state: {trial}, for the loader: {once}")
        })?;
        if store.count_start().map_err(|e| e.to_string())? == Start::Again {
            return Ok(None);
        }
        let counted = |media: &Media| state(media).and_then(|state| state.boots.get(&id(slot)).copied());
        let counts = (counted(&before).unwrap_or(0), counted(&recorder.media()).unwrap_or(0));
        // What is rolled forward in the initrd is counted afresh.
        ensure(counts.1 == counts.0 + 1 || (confirming && counts.1 == 1), || {
            format!("slot {slot} goes on, its starts are {counts:?}")
        })?;
        ensure(!trial || counts.1 == 1, || format!("the trial of slot {slot} starts {} times", counts.1))?;
        Ok(Some(trial))
    }

    fn check_running(&self, store: &Store, slot: usize) -> Check<()> {
        let running = store.slots().into_iter().find(|view| view.current);
        let right = running.as_ref().is_some_and(|view| {
            view.id == id(slot) && view.state == SlotWord::Verified && {
                self.ground.number(&view.root_hash) == Some(slot)
            }
        });
        ensure(right, || format!("slot {slot} was started, what runs is {running:?}"))
    }

    /// Switches it on again and again until nothing changes any more. The laws hold after every start.
    pub fn settle(&self, media: &Media) -> Check<Settled> {
        let (mut now, mut next, mut first_start) = (media.clone(), None, None);
        let (mut tried, mut floor, mut rescued) = (Vec::new(), 0, 0);
        for _ in 0..STARTS {
            let recorder = Recorder::new(now.clone());
            let came = self.start(&recorder)?;
            let log = recorder.log();
            let quiet = law::steps(&now, &log)
                .iter()
                .all(|step| matches!(step, Some(SelectStep::CountBoot | SelectStep::ResetBoots)));
            first_start.get_or_insert(log);
            now = recorder.media();
            law::holds(self.ground, self.before, &now, (self.may_be_lost, false))?;
            let known = state(&now).unwrap_or_default();
            ensure(known.epoch_floor >= floor, || format!("the epoch floor sank below {floor}"))?;
            floor = known.epoch_floor;
            let (up, again) = match came {
                Came::Again => continue,
                Came::Recovery => {
                    rescued += 1;
                    (None, rescued < 3)
                }
                Came::Up(slot, trial) => {
                    ensure(!(trial && tried.contains(&slot)), || format!("slot {slot} is tried twice"))?;
                    tried.extend(trial.then_some(slot));
                    (Some((slot, trial)), !(quiet && self.health(slot) == Health::Good))
                }
            };
            let next = *next.get_or_insert(up);
            if !again {
                let confirmed = known.confirmed.as_ref().map(|confirmed| confirmed.slot.get() as usize);
                let outcome = known.last_upgrade.as_ref().map(|last| last.outcome);
                let end = End { runs: up.map(|(slot, _)| slot), confirmed, outcome };
                let first_start = first_start.unwrap_or_default();
                return Ok(Settled { verdict: Verdict { next, end }, media: now, first_start });
            }
        }
        Err(format!("left alone it does not come to rest in {STARTS} starts"))
    }
}
