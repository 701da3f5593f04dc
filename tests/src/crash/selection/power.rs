//! Switching the appliance on: the loader's rule, the initrd as `slotboot` runs it, and slotd's start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use slotd::domain::boot::Entry;
use slotd::domain::plan::SelectStep;
use slotd::store::{SlotWord, Start, Store};

use super::super::{Check, ensure};
use super::ground::{Ground, id};
use super::law::{self, End, Lost, Verdict, state};
use super::loader;
use crate::recorder::{Digest, Event, Media, Recorder};

/// Starts after which an appliance that is left alone must have come to rest.
const STARTS: usize = 16;
/// Starts that are kept, so that the same media need not be started twice.
const KEPT: usize = 2_000;

/// How the firmware of a slot behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Its checks pass.
    Good,
    /// Its checks fail: in a trial it says so.
    Ill,
    /// It runs slotd and says nothing.
    Silent,
    /// It dies after the initrd, or hangs until the watchdog resets.
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
    /// What may be lost.
    pub lost: Lost,
    /// What was started before.
    pub starts: Option<&'a Starts>,
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

/// One start that was recorded.
#[derive(Debug)]
struct Started {
    came: Check<Came>,
    media: Media,
    log: Vec<Event>,
    /// Whether it did no more than to count.
    quiet: bool,
}

/// What was started with which health and which doubts.
type What = (Digest, [Health; 3], Lost);

/// Starts by what was started.
#[derive(Debug, Default)]
pub struct Starts(Mutex<HashMap<What, Arc<Started>>>);

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
    /// How the firmware in a slot behaves. A root that does not verify stops the kernel.
    pub fn health(&self, slot: usize) -> Health {
        let health = slot.checked_sub(1).and_then(|index| self.health.get(index)).copied();
        health.filter(|_| self.ground.verifies(self.before, slot)).unwrap_or(Health::Dead)
    }

    /// One start, from the loader to a running slotd.
    pub fn start(&self, recorder: &Recorder) -> Check<Came> {
        let media = recorder.media();
        let (set, entry) = loader::choose(&media);
        if !self.lost.loader && !self.lost.neighbour {
            let strict = loader::selection(&media)?;
            ensure(strict == set && entry.is_some(), || {
                format!("the loader sees {set:?}, set is {strict:?}")
            })?;
        }
        if self.forgets {
            loader::forget_one_shot(recorder)?;
        }
        let once = set.one_shot.as_ref().and_then(Entry::slot);
        let slot = entry.as_ref().and_then(Entry::slot).map(|slot| slot.get() as usize);
        let Some(slot) = slot.filter(|slot| self.boots(&media, *slot)) else {
            ensure(self.ground.has_recovery(&media), || format!("{entry:?} and recovery: nothing boots"))?;
            drop(Store::assemble(self.ground.assembly(recorder, None)));
            return Ok(Came::Recovery);
        };
        let Some(trial) = self.initrd(recorder, slot, once == Some(id(slot)))? else {
            return Ok(Came::Again);
        };
        match self.health(slot) {
            Health::Dead => {}
            health => self.run(recorder, slot, trial, health)?,
        }
        Ok(Came::Up(slot, trial))
    }

    /// slotd and the health checks of this firmware.
    fn run(&self, recorder: &Recorder, slot: usize, trial: bool, health: Health) -> Check<()> {
        let store = self.ground.assemble(recorder, slot);
        self.check_running(&store, slot)?;
        let known = !(self.lost.state && store.state().0 != "valid");
        match health {
            Health::Good if known => {
                store.confirm().map(drop).map_err(|e| format!("slot {slot} is healthy, but: {e}"))
            }
            // What was found healthy before a cut is confirmed, whatever it says now.
            Health::Ill if known && trial && store.summary().trial => {
                store.reject("ill").map_err(|e| format!("slot {slot} is ill, but: {e}"))
            }
            _ => Ok(()),
        }
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
            ensure(self.lost.state, || "the state is lost".into())?;
            // A start that cannot be counted is still a start.
            let _ = store.count_start();
            return Ok(Some(trial));
        };
        let confirming = known.pending.as_ref().is_some_and(|pending| pending.confirming);
        let agreed = trial == once || (once && confirming) || (once && summary.confirmed);
        ensure(agreed || self.lost.loader, || {
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

    fn started(&self, media: &Media) -> Arc<Started> {
        let recorder = Recorder::new(media.clone());
        let came = self.start(&recorder);
        let log = recorder.log();
        let counts =
            |step: &Option<SelectStep>| matches!(step, Some(SelectStep::CountBoot | SelectStep::ResetBoots));
        let quiet = law::steps(media, &log).iter().all(counts);
        Arc::new(Started { came, media: recorder.media(), log, quiet })
    }

    /// Starts these media, unless media that read the same were started before.
    fn started_like(&self, media: &Media) -> Arc<Started> {
        let Some(Starts(known)) = self.starts else { return self.started(media) };
        let key = (law::reads_as(media), self.health, self.lost);
        if let Some(found) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(found);
        }
        let started = self.started(media);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, Arc::clone(&started));
        started
    }

    /// Switches it on again and again until nothing changes any more. The laws hold after every start. The first start is
    /// always carried out.
    pub fn settle(&self, media: &Media) -> Check<Settled> {
        let (mut now, mut next, mut first_start) = (media.clone(), None, None);
        let (mut tried, mut floor, mut rescued, mut neighbour) = (Vec::new(), 0, 0, self.lost.neighbour);
        for _ in 0..STARTS {
            let again = first_start.is_some();
            let started = if again { self.started_like(&now) } else { self.started(&now) };
            let came = started.came.clone()?;
            first_start.get_or_insert_with(|| started.log.clone());
            now = started.media.clone();
            // slotd puts a lost boot image back, once it runs.
            neighbour &= match came {
                Came::Again => true,
                Came::Recovery => false,
                Came::Up(slot, _) => self.health(slot) == Health::Dead,
            };
            law::holds(self.ground, self.before, &now, Lost { neighbour, ..self.lost })?;
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
                    (Some((slot, trial)), !(started.quiet && self.health(slot) == Health::Good))
                }
            };
            let next = *next.get_or_insert(up);
            if !again {
                // Whatever was lost of the loader's settings has been put in order by now.
                law::holds(
                    self.ground,
                    self.before,
                    &now,
                    Lost { neighbour: false, loader: false, ..self.lost },
                )?;
                let whole = up.is_none() || known.confirmed.is_none() || loader::is_whole(&now);
                ensure(whole, || "the copies of the default do not say the same".into())?;
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
