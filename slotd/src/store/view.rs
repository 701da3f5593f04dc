//! What is shown: computed from what is known, never stored.

use std::sync::{Arc, PoisonError};

use sps_base::slot::SlotId;

use super::inspect::Known;
use super::state_store::Health;
use super::types::{SlotView, SlotWord, Summary};
use super::{Slot, Store};
use crate::device::probe::Readback;
use crate::domain::machine::Machine;
use crate::domain::manifest::parse_utc;
use crate::domain::slot_state::Content;
use crate::domain::state::{CheckKind, State};

impl Store {
    /// Every slot, the recovery image first. Answers at once.
    pub fn slots(&self) -> Vec<SlotView> {
        let published = self.state.get();
        let booted = self.booted();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let next = self.machine().after_reboot();
        let firmware = self.slots.iter().zip(&known).map(|(slot, known)| {
            let mut view = view(slot, known, &published.state);
            view.current = booted == Some(slot.id);
            view.after_reboot = next == Some(slot.id);
            view.configuration.clone_from(&known.configuration);
            view
        });
        std::iter::once(self.recovery_view()).chain(firmware).collect()
    }

    /// The manager's properties. Answers at once.
    pub fn summary(&self) -> Summary {
        self.summary_of(&self.slots())
    }

    /// The same, for who has the slots already.
    pub(crate) fn summary_of(&self, slots: &[SlotView]) -> Summary {
        let free = |v: &&SlotView| {
            v.id != SlotId::RECOVERY
                && !v.current
                && !v.after_reboot
                && matches!(v.state, SlotWord::Empty | SlotWord::Writing)
        };
        let readback = self.slots.iter().filter_map(|s| s.medium.as_ref().ok()).map(|m| m.readback()).min();
        let machine = self.machine();
        let number = |slot: Option<SlotId>| slot.unwrap_or(SlotId::RECOVERY);
        Summary {
            booted: number(self.booted()),
            default: number(machine.default_slot()),
            after_reboot: number(machine.after_reboot()),
            trial: machine.trial(),
            confirmed: machine.confirmed(),
            fallback: number(machine.fallback()),
            last_upgrade: Self::last_upgrade(&machine),
            loader: self.loader_name(),
            compatible: self.product.clone(),
            security_epoch: self.epoch_floor(),
            empty_slots: u32::try_from(slots.iter().filter(free).count()).unwrap_or(0),
            taint_count: self.taint_count(),
            readback: readback.unwrap_or(Readback::Impossible).as_str(),
            revocation: if self.keyring.as_ref().is_ok_and(|keyring| keyring.checks_revocation()) {
                "checked"
            } else {
                "none"
            },
            warnings: self.warnings(slots, &machine),
        }
    }

    /// Why no signature can be trusted, where that is so.
    pub fn keyring_error(&self) -> Option<&str> {
        self.keyring.as_ref().err().map(String::as_str)
    }

    fn warnings(&self, slots: &[SlotView], machine: &Machine) -> Vec<String> {
        let mut warnings = Self::selection_warnings(machine);
        let firmware = self.firmware_warning.read().unwrap_or_else(PoisonError::into_inner).clone();
        warnings.extend(firmware.map(|why| {
            format!(
                "The system firmware cannot be told to start the loader first and recovery second: {why}."
            )
        }));
        if let Health::Lost(why) = &self.state.get().health {
            warnings.push(format!(
                "The state is lost ({why}). Nothing can be installed until `spsctl state reset --reason …`."
            ));
        }
        match &self.keyring {
            Err(why) => {
                warnings.push(format!("The keyring cannot be used, so nothing can be trusted: {why}."));
            }
            Ok(keyring) => warnings.extend(keyring.warnings().iter().cloned()),
        }
        if let Err(why) = &self.esp {
            warnings.push(format!("The ESP cannot be used: {why}."));
        }
        if self.booted_hash.is_some() && self.booted().is_none() {
            warnings.push("The running root hash is that of no slot.".into());
        }
        for slot in slots.iter().filter(|slot| slot.state == SlotWord::Bad) {
            warnings.push(format!("Slot {} is bad: {}.", slot.id, slot.reason));
        }
        warnings
    }

    /// The slot whose root hash is on the kernel's command line.
    pub(super) fn booted(&self) -> Option<SlotId> {
        let hash = self.booted_hash.as_ref()?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let runs = |known: &Arc<Known>| {
            known.installed.as_ref().is_some_and(|i| i.manifest.root.verity.root_hash.to_string() == *hash)
        };
        self.started_of(
            self.slots.iter().zip(known.iter()).filter(|(_, known)| runs(known)).map(|(slot, _)| slot.id),
        )
    }

    /// Of slots that hold the same root, the one that the loader says it has started; else the first.
    pub(super) fn started_of(&self, same: impl Iterator<Item = SlotId>) -> Option<SlotId> {
        let same: Vec<SlotId> = same.collect();
        self.started.filter(|started| same.contains(started)).or_else(|| same.first().copied())
    }

    /// What is known of the running firmware.
    pub(super) fn running(&self) -> Option<Arc<Known>> {
        let booted = self.booted()?;
        let index = self.slots.iter().position(|slot| slot.id == booted)?;
        self.known(index)
    }

    /// Lowest security epoch that may be installed.
    pub(super) fn epoch_floor(&self) -> u32 {
        let running =
            self.running().and_then(|known| Some(known.installed.as_ref()?.manifest.security_epoch));
        self.state.get().state.epoch_floor.max(running.unwrap_or(0))
    }

    /// The time at which signatures are judged: never before the running firmware was built.
    pub(super) fn judging_time(&self) -> u64 {
        let running =
            self.running().and_then(|known| parse_utc(&known.installed.as_ref()?.manifest.build_date));
        (self.now)().max(self.state.get().state.time_floor).max(running.unwrap_or(0))
    }

    /// Epoch and time floor as the valid slots show them.
    pub(super) fn floors(&self) -> (u32, u64) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let running = self.running().map(|running| vec![running]);
        let judged = running.unwrap_or_else(|| {
            known.into_iter().filter(|known| known.content == Content::Verified).collect()
        });
        let manifests = || judged.iter().filter_map(|known| known.installed.as_ref()).map(|i| &i.manifest);
        let epoch = manifests().map(|m| m.security_epoch).max().unwrap_or(0);
        let time = manifests().filter_map(|m| parse_utc(&m.build_date)).max().unwrap_or(0);
        (epoch, time)
    }
}

pub(super) fn nothing() -> SlotView {
    SlotView {
        id: SlotId::RECOVERY,
        label: "recovery".into(),
        state: SlotWord::Empty,
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
        configuration: String::new(),
        current: false,
        after_reboot: false,
    }
}

fn view(slot: &Slot, known: &Known, state: &State) -> SlotView {
    let (word, reason) = match &known.content {
        Content::Empty => (SlotWord::Empty, String::new()),
        Content::Writing => (SlotWord::Writing, writing_reason(slot.id, state)),
        Content::Verified => (SlotWord::Verified, String::new()),
        Content::Bad { class, reason } => (SlotWord::Bad, format!("{class}: {reason}")),
    };
    let mut view = SlotView { id: slot.id, label: slot.label.clone(), state: word, reason, ..nothing() };
    view.size = slot.medium.as_ref().map_or(0, |medium| medium.size());
    if let Some(installed) = &known.installed {
        let manifest = &installed.manifest;
        view.version.clone_from(&manifest.version);
        view.boot_version.clone_from(&manifest.boot_version);
        view.build_date.clone_from(&manifest.build_date);
        view.root_hash = manifest.root.verity.root_hash.to_string();
        view.security_epoch = manifest.security_epoch;
        view.installed_at = installed.installed_at;
        let check = state.checks.get(&slot.id).filter(|check| check.sequence == installed.sequence);
        (view.verified_at, view.verified_how) = match check.map(|check| (check.at, check.how)) {
            Some((at, CheckKind::Full)) => (at, "full"),
            Some((at, CheckKind::Quick)) => (at, "quick"),
            None => (installed.installed_at, "installed"),
        };
    }
    view
}

fn writing_reason(id: SlotId, state: &State) -> String {
    state.intent.as_ref().filter(|intent| intent.slot == id).map_or_else(String::new, |intent| {
        format!("install {} of manifest {} has not ended", intent.transaction, intent.manifest)
    })
}
