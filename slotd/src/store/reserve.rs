//! Preconditions that are decided at once, and the hold on a slot that they give.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use super::Store;
use super::inspect::Known;
use super::state_store::Health;
use super::types::{Failure, InstallRequest, SlotView, SlotWord};
use crate::domain::machine::LoaderFound;
use crate::domain::slot_state::Content;

/// A slot that is held for one task; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    slot: SlotId,
    busy: Arc<Mutex<BTreeSet<SlotId>>>,
    _writer: Option<WriterLock>,
}

impl Reservation {
    /// Which slot.
    pub fn slot(&self) -> SlotId {
        self.slot
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

/// The right to write to slots and state; one at a time.
#[derive(Debug)]
pub(super) struct WriterLock(Arc<Mutex<bool>>);

impl Drop for WriterLock {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

impl Store {
    /// Chooses the slot of an install and holds it. Answers at once.
    pub fn reserve_install(&self, request: &InstallRequest) -> Result<Reservation, Failure> {
        if let Err(why) = &self.keyring {
            let message = format!("no image can be trusted: {why}; repair the keyring and restart slotd");
            return Err(Failure::new(ErrorKind::Untrusted, message));
        }
        if let Health::Lost(why) = &self.state.get().health {
            let message =
                format!("the state is lost ({why}); look at it, then run `spsctl state reset --reason …`");
            return Err(Failure::new(ErrorKind::Device, message));
        }
        self.machine().admit_install()?;
        let slot = self.choose_slot(request)?;
        let reservation = self.reserve_for_writing(slot)?;
        // Only now nobody can select it any more.
        self.refuse_in_use(slot)?;
        Ok(reservation)
    }

    /// Holds a slot for a check at rest. Answers at once.
    pub fn reserve_verify(&self, slot: SlotId) -> Result<Reservation, Failure> {
        if slot == SlotId::RECOVERY {
            return if self.has_recovery() { self.hold(slot, None) } else { Err(Self::empty(slot)) };
        }
        let (_, known) = self.find(slot)?;
        match known.content {
            Content::Empty | Content::Writing => Err(Self::empty(slot)),
            Content::Verified | Content::Bad { .. } => self.hold(slot, None),
        }
    }

    pub(super) fn reserve_for_writing(&self, slot: SlotId) -> Result<Reservation, Failure> {
        let writer = self.lock_writer()?;
        self.hold(slot, Some(writer))
    }

    pub(super) fn lock_writer(&self) -> Result<WriterLock, Failure> {
        let mut taken = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken {
            let message = "another install or deletion is under way; wait for it or cancel it";
            return Err(Failure::new(ErrorKind::SlotBusy, message));
        }
        *taken = true;
        Ok(WriterLock(Arc::clone(&self.writer)))
    }

    pub(super) fn hold(&self, slot: SlotId, writer: Option<WriterLock>) -> Result<Reservation, Failure> {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(slot) {
            let message = format!("another job works on slot {slot}; wait for it or cancel it");
            return Err(Failure::new(ErrorKind::SlotBusy, message));
        }
        Ok(Reservation { slot, busy: Arc::clone(&self.busy), _writer: writer })
    }

    pub(super) fn refuse_in_use(&self, slot: SlotId) -> Result<(), Failure> {
        self.machine().admit_change(slot)?;
        // Something runs from a slot, but no slot proves to be the one: then it may be any whose firmware cannot be
        // told (a damaged trailer, a keyring that refuses).
        let unknown =
            |known: &Known| known.installed.is_none() && matches!(known.content, Content::Bad { .. });
        let (_, known) = self.find(slot)?;
        if self.booted_hash.is_some() && self.booted().is_none() && unknown(&known) {
            let message = format!(
                "slot {slot} is bad, and no slot proves to be the running one: it may run from this slot, so it is not written; \
                 boot the recovery image to replace it"
            );
            return Err(Failure::new(ErrorKind::SlotInUse, message));
        }
        Ok(())
    }

    fn choose_slot(&self, request: &InstallRequest) -> Result<SlotId, Failure> {
        if let Some(intent) = self.resumable(request) {
            if request.slot.is_some_and(|slot| slot != intent) {
                let message = format!("this transaction writes to slot {intent}");
                return Err(Failure::new(ErrorKind::InvalidArgument, message));
            }
            return Ok(intent);
        }
        if request.offset > 0 {
            let message = "offset needs the transaction_id of an interrupted install, and there is none of that name; \
                           send the image from its first byte";
            return Err(Failure::new(ErrorKind::InvalidArgument, message));
        }
        match request.slot {
            Some(slot) => self.admit_slot(slot, request),
            None => self.first_free(request),
        }
    }

    /// The slot that the named transaction was writing to.
    fn resumable(&self, request: &InstallRequest) -> Option<SlotId> {
        let id = request.transaction_id.as_deref()?;
        self.state
            .get()
            .state
            .intent
            .as_ref()
            .filter(|intent| intent.transaction == id)
            .map(|intent| intent.slot)
    }

    fn admit_slot(&self, slot: SlotId, request: &InstallRequest) -> Result<SlotId, Failure> {
        let (_, known) = self.find(slot)?;
        match &known.content {
            Content::Verified | Content::Bad { .. } if !(request.replace || request.repair) => {
                self.refuse_in_use(slot)?;
                let version = known.installed.as_ref().map_or("a bad image", |i| i.manifest.version.as_str());
                let message = format!("slot {slot} holds {version}; delete it or ask for replace");
                Err(Failure::new(ErrorKind::NoEmptySlot, message))
            }
            _ => Ok(slot),
        }
    }

    fn first_free(&self, request: &InstallRequest) -> Result<SlotId, Failure> {
        if request.repair {
            return Err(Failure::new(ErrorKind::InvalidArgument, "repair needs the slot to repair"));
        }
        let views = self.slots();
        let free = |word: &[SlotWord]| {
            views.iter().find(|v| word.contains(&v.state) && self.may_change(v)).map(|v| v.id)
        };
        let found = free(&[SlotWord::Empty]).or_else(|| free(&[SlotWord::Writing]));
        let found = if request.replace {
            found.or_else(|| free(&[SlotWord::Bad, SlotWord::Verified]))
        } else {
            found.or_else(|| self.recyclable(&views))
        };
        found.ok_or_else(|| {
            let deletable: Vec<String> = views
                .iter()
                .filter(|v| self.may_change(v))
                .map(|v| {
                    format!("{} ({})", v.id, if v.version.is_empty() { v.state.as_str() } else { &v.version })
                })
                .collect();
            let what = if deletable.is_empty() { "none".into() } else { deletable.join(", ") };
            let message = format!("no empty slot; may be deleted or replaced: {what}");
            Failure::new(ErrorKind::NoEmptySlot, message)
        })
    }

    /// What a full appliance may do without: first what is no use to anybody, then the fallback of a confirmed firmware.
    fn recyclable(&self, views: &[SlotView]) -> Option<SlotId> {
        let machine = self.machine();
        if !self.recycle_fallback || machine.loader == LoaderFound::None || !machine.confirmed() {
            return None;
        }
        let useless = |view: &&SlotView| view.state == SlotWord::Bad || machine.has_failed(view.id);
        let useless = views.iter().filter(|view| self.may_change(view)).find(useless).map(|view| view.id);
        useless.or_else(|| machine.fallback().filter(|slot| self.refuse_in_use(*slot).is_ok()))
    }

    fn may_change(&self, view: &SlotView) -> bool {
        view.id != SlotId::RECOVERY && self.refuse_in_use(view.id).is_ok()
    }
}
