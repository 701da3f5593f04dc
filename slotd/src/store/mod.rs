//! TEMP stand-in: the engine replaces this file.

mod types;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use crate::settings::Settings;

pub use types::{
    Failure, InstallReport, InstallRequest, Progress, SlotView, SlotWord, Summary, VerifyMode, VerifyReport,
};

/// What the store is told about its surroundings.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Text of /proc/cmdline.
    pub cmdline: String,
    /// Unix seconds.
    pub now: fn() -> u64,
    /// Hardware model.
    pub hardware: String,
}

/// The slots.
#[derive(Debug)]
pub struct Store {
    busy: Arc<Mutex<BTreeSet<SlotId>>>,
    slots: Vec<(SlotId, String)>,
    compatible: String,
    stall: Duration,
}

/// A slot that is kept for one task.
#[derive(Debug)]
pub struct Reservation {
    slot: SlotId,
    busy: Arc<Mutex<BTreeSet<SlotId>>>,
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

#[allow(clippy::missing_errors_doc, clippy::unused_self, missing_docs)]
impl Store {
    pub fn open(settings: &Settings, _environment: Environment) -> Result<Self, Failure> {
        let mut slots = vec![(SlotId::RECOVERY, "recovery".to_owned())];
        slots.extend(settings.slots.iter().map(|slot| (slot.id, slot.label.clone())));
        Ok(Self {
            busy: Arc::default(),
            slots,
            compatible: settings.compatible.clone(),
            stall: settings.stall_timeout,
        })
    }

    pub fn slots(&self) -> Vec<SlotView> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.slots
            .iter()
            .map(|(id, label)| SlotView {
                id: *id,
                label: label.clone(),
                state: if busy.contains(id) { SlotWord::Writing } else { SlotWord::Empty },
                reason: String::new(),
                version: String::new(),
                boot_version: String::new(),
                build_date: String::new(),
                root_hash: String::new(),
                security_epoch: 0,
                size: 0,
                installed_at: 0,
                verified_at: 0,
                verified_how: "",
                current: false,
                after_reboot: false,
            })
            .collect()
    }

    pub fn summary(&self) -> Summary {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner).len();
        Summary {
            booted: SlotId::RECOVERY,
            compatible: self.compatible.clone(),
            security_epoch: 0,
            empty_slots: u32::try_from(self.slots.len() - 1 - busy).unwrap_or(0),
            readback: "cached",
            revocation: "none",
            warnings: Vec::new(),
        }
    }

    fn reserve(&self, slot: SlotId) -> Result<Reservation, Failure> {
        if !self.slots.iter().any(|(id, _)| *id == slot) {
            return Err(Failure::new(ErrorKind::InvalidArgument, format!("there is no slot {slot}")));
        }
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(slot) {
            return Err(Failure::new(ErrorKind::SlotBusy, format!("slot {slot} is being worked on")));
        }
        Ok(Reservation { slot, busy: Arc::clone(&self.busy) })
    }

    pub fn reserve_install(&self, request: &InstallRequest) -> Result<Reservation, Failure> {
        match request.slot {
            Some(SlotId::RECOVERY) => {
                Err(Failure::new(ErrorKind::InvalidArgument, "slot 0 takes no firmware"))
            }
            Some(slot) => self.reserve(slot),
            None => self
                .slots
                .iter()
                .skip(1)
                .find_map(|(id, _)| self.reserve(*id).ok())
                .ok_or_else(|| Failure::new(ErrorKind::NoEmptySlot, "no slot is empty")),
        }
    }

    pub fn install(
        &self,
        reservation: Reservation,
        image: OwnedFd,
        _request: &InstallRequest,
        progress: &Progress,
    ) -> Result<InstallReport, Failure> {
        progress.begin("reading", 0);
        let mut heard = Instant::now();
        let mut bytes = [0; 4096];
        while heard.elapsed() < self.stall {
            if progress.is_cancelled() {
                return Err(Failure::new(ErrorKind::Cancelled, "cancelled on request"));
            }
            let mut ready = [PollFd::new(image.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(250_u8)) != Ok(0) {
                heard = Instant::now();
                match nix::unistd::read(&image, &mut bytes) {
                    Ok(0) | Err(_) => {
                        return Err(Failure::new(ErrorKind::MediaCorrupt, "the image ends too early"));
                    }
                    Ok(length) => progress.advance(length as u64),
                }
            }
        }
        drop(reservation);
        Err(Failure::new(ErrorKind::MediaCorrupt, "no byte arrives"))
    }

    pub fn reserve_verify(&self, slot: SlotId) -> Result<Reservation, Failure> {
        drop(self.reserve(slot)?);
        Err(Failure::new(ErrorKind::SlotEmpty, format!("slot {slot} is empty")))
    }

    pub fn verify(
        &self,
        _reservation: Reservation,
        _mode: VerifyMode,
        _scheduled: bool,
        progress: &Progress,
    ) -> Result<VerifyReport, Failure> {
        progress.set_next_offset(0);
        Err(Failure::new(ErrorKind::SlotEmpty, "the slot is empty"))
    }

    pub fn notes(&self, slot: SlotId) -> Result<String, Failure> {
        Err(Failure::new(ErrorKind::SlotEmpty, format!("slot {slot} is empty")))
    }

    pub fn news(&self, slot: SlotId) -> Result<String, Failure> {
        self.notes(slot)
    }

    pub fn delete(&self, slot: SlotId) -> Result<(), Failure> {
        self.notes(slot).map(drop)
    }

    pub fn state(&self) -> (String, String) {
        ("valid".to_owned(), "{}".to_owned())
    }

    pub fn reset_state(&self, _reason: &str) -> Result<(), Failure> {
        Ok(())
    }
}
