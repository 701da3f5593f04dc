//! The slots of this appliance and everything that may be done with them.
//!
//! Reading never waits: what the properties show is kept in memory and replaced after each change. Everything that
//! touches a device blocks and belongs on a thread of its own.

mod assembly;
mod blocks;
mod boot_image;
mod change;
mod error;
mod inspect;
mod install;
#[cfg(test)]
mod memory_medium;
mod owners;
mod parts;
mod recovery;
mod reserve;
mod scan;
mod selection;
mod state_store;
mod surroundings;
mod taint;
mod types;
mod upgrade_test;
mod verify;
mod view;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use sps_base::error::ErrorKind;
use sps_base::journal;
use sps_base::slot::SlotId;
use tracing::info;

pub(crate) use assembly::describe;
pub use assembly::{Assembly, Environment, Files, SlotMedium, Trust};
pub use reserve::Reservation;
pub use selection::Start;
pub use surroundings::{Configuration, Host, Nowhere, Programs, Root, Surroundings};
pub use taint::TaintPlace;
pub use types::{
    Failure, InstallReport, InstallRequest, LastUpgradeView, Progress, RevertRequest, SlotView, SlotWord,
    Summary, TestReport, VerifyMode, VerifyReport,
};
pub use upgrade_test::TEST_LIFETIME;

use crate::device::esp::Esp;
use crate::device::loader::Loader;
use crate::device::medium::Medium;
use crate::domain::generation;
use crate::domain::layout::Part;
use crate::domain::machine::LoaderFound;
use crate::domain::manifest::Sha256Hex;
use crate::domain::plan::{self, Step};
use crate::domain::signature::Keyring;
use crate::domain::slot_state::Content;
use crate::domain::state::{Action, Intent, State};
use change::Change;
use error::StoreError;
use inspect::Known;
use recovery::RecoveryImage;
use state_store::{Health, StateStore};
use upgrade_test::Passed;

/// The slots.
#[derive(Debug)]
pub struct Store {
    product: String,
    hardware: String,
    stall: Duration,
    read_back: bool,
    now: fn() -> u64,
    /// Root hash on the kernel's command line.
    booted_hash: Option<String>,
    /// The slot that the loader says it has started.
    started: Option<SlotId>,
    keyring: Result<Arc<Keyring>, String>,
    slots: Vec<Slot>,
    esp: Result<Arc<dyn Esp>, String>,
    state: StateStore,
    /// What is known of each slot, in the order of `slots`.
    known: RwLock<Vec<Arc<Known>>>,
    busy: Arc<Mutex<BTreeSet<SlotId>>>,
    /// Held while something is being written to a slot.
    writer: Arc<Mutex<bool>>,
    /// The boot loader; `None` where none is configured.
    loader: Option<Result<Arc<dyn Loader>, String>>,
    /// What it is set to, as last seen.
    loader_found: RwLock<LoaderFound>,
    /// Held while a selection is carried out.
    selecting: Mutex<()>,
    /// Whether the fallback of a confirmed firmware may be overwritten when no slot is empty.
    recycle_fallback: bool,
    /// Whether nothing is selected without a message.
    require_message: bool,
    surroundings: Arc<dyn Surroundings>,
    /// Tests that passed not long ago.
    tests: Mutex<Vec<Passed>>,
    /// What is known of the recovery image.
    recovery: RwLock<Arc<RecoveryImage>>,
    /// Why the system firmware cannot be told what to start.
    firmware_warning: RwLock<Option<String>>,
    /// The taint record; held while it is written.
    taint: Mutex<taint::Keeper>,
    /// What is shown of it.
    taint_shown: RwLock<taint::Shown>,
}

#[derive(Debug)]
struct Slot {
    id: SlotId,
    label: String,
    medium: Result<Arc<dyn Medium>, String>,
}

impl Store {
    /// The upgrade notes of a slot's firmware.
    pub fn notes(&self, slot: SlotId) -> Result<String, Failure> {
        self.text(slot, Part::Notes)
    }

    /// The upgrade news of a slot's firmware; empty when it has none.
    pub fn news(&self, slot: SlotId) -> Result<String, Failure> {
        self.text(slot, Part::News)
    }

    fn text(&self, id: SlotId, part: Part) -> Result<String, Failure> {
        let (slot, known) = self.filled(id)?;
        let Some(installed) = &known.installed else { return Err(Self::empty(id)) };
        let (Some(file), Some(place)) = (installed.manifest.file(part.name()), installed.layout.get(part))
        else {
            return Ok(String::new());
        };
        let bytes = parts::read(slot.medium()?, part, file, place)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Empties a slot.
    pub fn delete(&self, id: SlotId) -> Result<(), Failure> {
        let (index, known) = self.find(id)?;
        self.refuse_in_use(id)?;
        if known.content == Content::Empty {
            return Err(Self::empty(id));
        }
        let _reservation = self.reserve_for_writing(id)?;
        // It may have been selected meanwhile; from here on it cannot be.
        self.refuse_in_use(id)?;
        let slot = self.slot(index)?;
        let intent = Intent {
            slot: id,
            action: Action::Delete,
            manifest: known
                .installed
                .as_ref()
                .map_or_else(Default::default, inspect::Installed::manifest_sha256),
            transaction: String::new(),
            sequence: 0,
            source: Vec::new(),
            unknown: std::collections::BTreeMap::default(),
        };
        let mut change = Change::new(self, slot)?.intent(intent);
        let done = change.carry_out(&plan::DELETE);
        self.refresh(index);
        self.refresh_abandoned();
        Ok(done?)
    }

    /// Health and text of the durable state.
    pub fn state(&self) -> (String, String) {
        let published = self.state.get();
        let health = match &published.health {
            Health::Valid => "valid".into(),
            Health::Lost(why) => format!("lost: {why}"),
        };
        (health, String::from_utf8_lossy(&published.state.render()).into_owned())
    }

    /// What `slotboot` hands on of the start of `slot`; `None` without a root hash on the kernel's command line.
    pub fn start_of(&self, slot: SlotId) -> Option<generation::Start> {
        let root_hash = Sha256Hex::try_from(self.booted_hash.clone()?).ok()?;
        let configuration = generation::origin(&self.state.get().state, &root_hash);
        Some(generation::Start { slot, root_hash, configuration })
    }

    /// Writes a fresh state. The epoch floor becomes that of the running firmware or, when none runs, the highest
    /// among the verified slots; the time floor likewise. An install that was cut is forgotten: its slot is empty. A
    /// running firmware that is the loader's default counts as confirmed: that is what the operator says. So it does
    /// where the loader's settings cannot be read, and they are made anew. Nothing is selected any more.
    pub fn reset_state(&self, reason: &str) -> Result<(), Failure> {
        let _writer = self.lock_writer()?;
        let (epoch_floor, time_floor) = self.floors();
        let confirmed = self.confirmed_by_operator();
        self.forget_selection();
        let taint = self.taint_of_fresh_state(reason);
        self.state.reset(State { epoch_floor, time_floor, confirmed, taint, ..State::default() })?;
        for index in 0..self.slots.len() {
            self.refresh(index);
        }
        self.settle_selection();
        self.settle_taint();
        Ok(())
    }

    /// Carries out what an interruption left to do, slot by slot. What fails shows in the slot's state.
    fn settle(&self) {
        for index in 0..self.slots.len() {
            self.settle_slot(index);
            self.refresh(index);
        }
    }

    fn settle_slot(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else { return };
        let known = self.inspect(slot);
        if known.remaining.is_empty() {
            return;
        }
        if known.remaining.contains(&Step::CopyBootImage) {
            let id = slot.id;
            info!(
                MESSAGE_ID = journal::BOOT_IMAGE_REPAIRED,
                SLOT = id.get(),
                "boot image of slot {id} is copied from the slot"
            );
        }
        if let Ok(mut change) = Change::new(self, slot) {
            change = change.intent_of(self.intent_of(slot.id));
            if let Some(installed) = known.installed {
                change = change.installed(installed);
            }
            // A step that fails leaves evidence, which the next inspection judges and shows.
            let _ = change.carry_out(known.remaining);
        }
    }

    /// The highest sequence number that a trailer, an intent or a check carries.
    fn newest_sequence(&self) -> u64 {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let installed = known.iter().filter_map(|known| known.installed.as_ref()).map(|i| i.sequence).max();
        let published = self.state.get();
        let intent = published.state.intent.as_ref().map(|intent| intent.sequence);
        // A slot whose own number cannot be read any more may have been checked while it could.
        let checked = published.state.checks.values().map(|check| check.sequence).max();
        installed.max(intent).max(checked).unwrap_or(0)
    }

    fn intent_of(&self, slot: SlotId) -> Option<Intent> {
        self.state.get().state.intent.clone().filter(|intent| intent.slot == slot)
    }

    fn known(&self, index: usize) -> Option<Arc<Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }

    fn slot(&self, index: usize) -> Result<&Slot, Failure> {
        self.slots.get(index).ok_or_else(|| Failure::new(ErrorKind::InvalidArgument, "no such slot"))
    }

    /// Index and knowledge of a firmware slot.
    fn find(&self, id: SlotId) -> Result<(usize, Arc<Known>), Failure> {
        let index = self.slots.iter().position(|slot| slot.id == id);
        let found = index.and_then(|index| Some((index, self.known(index)?)));
        found.ok_or_else(|| {
            let ids: Vec<String> = self.slots.iter().map(|slot| slot.id.to_string()).collect();
            let message = match id {
                SlotId::RECOVERY => {
                    "slot 0 is the recovery image: it can be verified, and comes and goes with the confirmed firmware"
                        .into()
                }
                id => format!("there is no slot {id}; this appliance has {}", ids.join(", ")),
            };
            Failure::new(ErrorKind::InvalidArgument, message)
        })
    }

    /// A slot that holds a firmware whose parts can be read.
    fn filled(&self, id: SlotId) -> Result<(&Slot, Arc<Known>), Failure> {
        let (index, known) = self.find(id)?;
        match &known.content {
            Content::Empty | Content::Writing => Err(Self::empty(id)),
            Content::Bad { reason, .. } if known.installed.is_none() => {
                Err(Failure::new(ErrorKind::SlotBad, format!("slot {id} cannot be read: {reason}")))
            }
            Content::Verified | Content::Bad { .. } => Ok((self.slot(index)?, known)),
        }
    }

    fn empty(id: SlotId) -> Failure {
        Failure::new(ErrorKind::SlotEmpty, format!("slot {id} holds no firmware"))
    }

    /// Looks at a slot again and shows the result.
    fn refresh(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else { return };
        let mut known = self.inspect(slot);
        if known.content == Content::Verified && known.remaining.contains(&Step::CopyBootImage) {
            // What could not be settled is not called verified: it would not boot.
            let reason =
                "its boot image is not on the ESP; it is copied from the slot when slotd starts".into();
            known.content = Content::Bad { class: "boot-image", reason };
        }
        self.show(index, known);
    }

    /// There is one intent: where it was another slot's, that slot's interrupted install is abandoned, which shows.
    fn refresh_abandoned(&self) {
        for index in 0..self.slots.len() {
            if self.known(index).is_some_and(|known| known.content == Content::Writing) {
                self.refresh(index);
            }
        }
    }

    fn show(&self, index: usize, known: Known) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get_mut(index) {
            *place = Arc::new(known);
        }
    }
}

impl Slot {
    fn medium(&self) -> Result<&dyn Medium, StoreError> {
        match &self.medium {
            Ok(medium) => Ok(&**medium),
            Err(why) => Err(StoreError::refused(ErrorKind::Device, why.clone())),
        }
    }
}
