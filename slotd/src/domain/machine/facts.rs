//! What follows from what is known, and which slots may be changed.

use sps_base::slot::SlotId;

use super::{Firmware, Holds, LoaderFound, Machine, Refusal};
use crate::domain::boot::{Entry, Selection};
use crate::domain::manifest::{Sha256Hex, Version};
use crate::domain::state::{Confirmed, Pending};

impl Machine {
    pub(super) fn selection(&self) -> Option<&Selection> {
        match &self.loader {
            LoaderFound::Set(selection) => Some(selection),
            LoaderFound::None | LoaderFound::Unreadable(_) => None,
        }
    }

    pub(super) fn pending(&self) -> Option<&Pending> {
        self.state.as_ref()?.pending.as_ref()
    }

    pub(super) fn confirmed_record(&self) -> Option<&Confirmed> {
        self.state.as_ref()?.confirmed.as_ref()
    }

    /// The firmware in a slot, where it is sound.
    pub fn firmware(&self, slot: SlotId) -> Option<&Firmware> {
        match self.slots.get(&slot)? {
            Holds::Verified(firmware) => Some(firmware),
            Holds::Nothing | Holds::Writing | Holds::Bad => None,
        }
    }

    /// Whether this very firmware is in that slot, and sound.
    pub(super) fn is_there(&self, slot: SlotId, root_hash: Sha256Hex) -> bool {
        self.firmware(slot).is_some_and(|firmware| firmware.root_hash == root_hash)
    }

    pub(super) fn runs(&self, slot: SlotId) -> bool {
        self.booted.is_some_and(|(booted, _)| booted == slot)
    }

    /// The selection that this start is the trial of: only what the state and the booted root agree on.
    pub(super) fn in_trial(&self) -> Option<&Pending> {
        self.pending().filter(|pending| self.booted == Some((pending.slot, pending.root_hash)))
    }

    /// Whether this start is a trial that is not decided.
    pub fn trial(&self) -> bool {
        self.in_trial().is_some_and(|pending| !pending.confirming)
    }

    /// Whether the running firmware has proven itself.
    pub fn confirmed(&self) -> bool {
        let record = self.confirmed_record().map(|confirmed| (confirmed.slot, confirmed.root_hash));
        self.booted.is_some() && record == self.booted && !self.trial()
    }

    /// The slot that the loader starts unless told otherwise.
    pub fn default_slot(&self) -> Option<SlotId> {
        match &self.loader {
            // Without a loader to set, what runs now runs again.
            LoaderFound::None => self.booted.map(|(slot, _)| slot),
            LoaderFound::Unreadable(_) => self.confirmed_record().map(|confirmed| confirmed.slot),
            LoaderFound::Set(selection) => selection.default.as_ref().and_then(Entry::slot),
        }
    }

    /// The slot that the next start is for; `None` when it is none of the firmware slots.
    pub fn after_reboot(&self) -> Option<SlotId> {
        match self.selection().and_then(|selection| selection.one_shot.as_ref()) {
            Some(entry) => entry.slot(),
            None => self.default_slot(),
        }
    }

    /// The slot to go back to.
    pub fn fallback(&self) -> Option<SlotId> {
        if self.trial() {
            return self.default_slot().filter(|slot| !self.runs(*slot) && self.firmware(*slot).is_some());
        }
        let before = self.confirmed_record().and_then(|confirmed| confirmed.before);
        let before = before.filter(|(slot, root_hash)| self.is_there(*slot, *root_hash) && !self.runs(*slot));
        before
            .map(|(slot, _)| slot)
            .or_else(|| self.newest(|slot, firmware| self.is_candidate(slot, firmware)))
    }

    /// Whether the last trial of the firmware in a slot has failed.
    pub fn has_failed(&self, slot: SlotId) -> bool {
        self.firmware(slot).is_some_and(|firmware| self.refused(firmware.root_hash))
    }

    /// Whether it may be gone back to, though nobody knows that it ever ran well.
    pub(super) fn is_candidate(&self, slot: SlotId, firmware: &Firmware) -> bool {
        !self.runs(slot) && !self.selected(slot) && !self.refused(firmware.root_hash)
    }

    pub(super) fn selected(&self, slot: SlotId) -> bool {
        self.pending().is_some_and(|pending| pending.slot == slot)
    }

    /// The sound slot with the highest version among those that `wanted` names.
    pub(super) fn newest(&self, wanted: impl Fn(SlotId, &Firmware) -> bool) -> Option<SlotId> {
        let sound = self.slots.keys().filter_map(|slot| Some((*slot, self.firmware(*slot)?)));
        let wanted = sound.filter(|(slot, firmware)| wanted(*slot, firmware));
        // The lower number where versions are the same.
        wanted
            .max_by_key(|(slot, firmware)| (Version::parse(&firmware.version), std::cmp::Reverse(*slot)))
            .map(|(slot, _)| slot)
    }

    pub(super) fn refused(&self, root_hash: Sha256Hex) -> bool {
        self.state.as_ref().is_some_and(|state| state.refused.iter().any(|old| old.root_hash == root_hash))
    }

    pub(super) fn boots(&self, slot: SlotId) -> u32 {
        self.state.as_ref().and_then(|state| state.boots.get(&slot).copied()).unwrap_or(0)
    }

    /// Whether a slot may be overwritten or emptied: never what runs, what runs next, or what is on trial.
    pub fn admit_change(&self, slot: SlotId) -> Result<(), Refusal> {
        if self.runs(slot) {
            return Err(Refusal::Runs(slot));
        }
        if self.selected(slot) {
            return Err(Refusal::Selected(slot));
        }
        if let LoaderFound::Unreadable(why) = &self.loader {
            return Err(Refusal::Loader(why.clone()));
        }
        let next = self.selection().and_then(|selection| selection.one_shot.as_ref()).and_then(Entry::slot);
        // What is no firmware can be no default that anybody wants kept.
        let default = self.default_slot().filter(|slot| self.firmware(*slot).is_some());
        if next == Some(slot) || default == Some(slot) {
            return Err(Refusal::RunsNext(slot));
        }
        Ok(())
    }

    /// Whether a firmware may be installed at all while this one runs.
    pub fn admit_install(&self) -> Result<(), Refusal> {
        if self.booted.is_some() && self.loader != LoaderFound::None && !self.confirmed() {
            return Err(Refusal::NotConfirmed);
        }
        Ok(())
    }
}
