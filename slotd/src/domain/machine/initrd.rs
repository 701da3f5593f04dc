//! What happens before a root is opened: starts are counted, and another firmware is chosen where one does not start.

use sps_base::slot::SlotId;

use super::{Change, DEFAULT_LIMIT, Effect, Firmware, LoaderFound, LostRoot, Machine, Order, TRIAL_LIMIT};
use crate::domain::boot::Entry;
use crate::domain::manifest::Sha256Hex;
use crate::domain::state::SelectionKind;

/// Why a start ends.
struct GivenUp {
    /// The slot that was started.
    slot: Option<SlotId>,
    /// Why the pending selection has failed.
    reason: String,
    /// Whether that firmware is remembered as refused.
    refused: bool,
    /// Why another firmware is selected.
    message: String,
}

impl Machine {
    /// Counts this start, or ends it when there were too many. With a lost state nothing is counted: boot goes on. Loader
    /// settings that cannot be read keep nothing from being counted, and are made anew at the limit.
    pub(super) fn initrd(&self, at: u64) -> Vec<Effect> {
        let counts = self.state.is_some() && self.loader != LoaderFound::None;
        let Some((slot, _)) = self.booted.filter(|_| counts) else { return Vec::new() };
        let limit = if self.trial() { TRIAL_LIMIT } else { DEFAULT_LIMIT };
        let count = self.boots(slot);
        if count < limit {
            return vec![Effect::Write(Change::CountBoot(slot))];
        }
        if let Some(decided) = self.roll_forward(Some(slot), at) {
            return decided;
        }
        let given_up = GivenUp {
            slot: Some(slot),
            reason: if self.trial() {
                format!("it was started {} and never confirmed", times(count))
            } else {
                format!("slot {slot} was started {} meanwhile and never confirmed", times(count))
            },
            refused: self.trial() || self.pending_has_run(),
            message: format!("slot {slot} was started {count} times without a sign of health"),
        };
        self.give_up(&given_up, at)
    }

    /// There is no root to open, so this start ends: at once where every slot could be read, else when it was counted as
    /// often as any other. Without a state only the loader is told where to go.
    pub(super) fn root_lost(&self, root: &LostRoot, at: u64) -> Vec<Effect> {
        if self.loader == LoaderFound::None {
            return Vec::new();
        }
        let slot = root.told.or_else(|| self.last_slot_of(root.hash));
        let trial = self.pending().is_some_and(|pending| pending.root_hash == root.hash);
        let limit = if trial { TRIAL_LIMIT } else { DEFAULT_LIMIT };
        if let Some(slot) = slot.filter(|_| root.unsure && self.state.is_some())
            && self.boots(slot) < limit
        {
            return vec![Effect::Write(Change::CountBoot(slot))];
        }
        if let Some(decided) = self.roll_forward(slot, at) {
            return decided;
        }
        let what = slot.map_or_else(|| "the firmware".to_owned(), |slot| format!("slot {slot}"));
        let message = format!("{what} was started and its root is in no slot");
        let reason = if trial { "its root is in no slot any more".to_owned() } else { message.clone() };
        // What cannot be read does not speak against the firmware.
        self.give_up(&GivenUp { slot, reason, refused: !trial && self.pending_has_run(), message }, at)
    }

    fn pending_has_run(&self) -> bool {
        self.pending().is_some_and(|pending| self.boots(pending.slot) > 0)
    }

    /// The slot that held this firmware when it was selected or confirmed.
    fn last_slot_of(&self, root_hash: Sha256Hex) -> Option<SlotId> {
        let pending = self.pending().map(|pending| (pending.slot, pending.root_hash));
        let confirmed = self.confirmed_record().map(|confirmed| (confirmed.slot, confirmed.root_hash));
        pending.into_iter().chain(confirmed).find(|(_, hash)| *hash == root_hash).map(|(slot, _)| slot)
    }

    /// The pending selection ends, and the next start is another's.
    fn give_up(&self, why: &GivenUp, at: u64) -> Vec<Effect> {
        // First nothing is started once: a loader that could not forget it would start what is not pending any more.
        let left = self.selection().is_some_and(|selection| selection.one_shot.is_some());
        let mut effects: Vec<Effect> = left.then_some(Effect::SetOneShot(None)).into_iter().collect();
        if matches!(self.loader, LoaderFound::Unreadable(_)) {
            // Or what is started now is started for ever: no slotd has come so far as to do it. A one-shot entry cannot be
            // put into settings that are not there.
            effects.push(self.heal_loader().unwrap_or(Effect::SetDefault(Entry::Recovery)));
        }
        let mut given_up = None;
        if let Some(pending) = self.pending() {
            effects.push(Self::failed(&why.reason, why.refused, at));
            given_up = Some(pending.slot);
        }
        effects.extend(self.elsewhere(why, given_up, at));
        effects.retain(|effect| self.state.is_some() || !matches!(effect, Effect::Write(_)));
        effects.push(Effect::StartAgain);
        effects
    }

    /// At the limit, a firmware that was found healthy is the default all the same; it gets the starts of one.
    fn roll_forward(&self, running: Option<SlotId>, at: u64) -> Option<Vec<Effect>> {
        let pending = self.pending().filter(|pending| pending.confirming)?;
        let firmware = self.firmware(pending.slot).filter(|found| found.root_hash == pending.root_hash)?;
        let mut effects = Self::settle_confirmed(pending.slot, firmware, at);
        // Not in the initrd: slotd does it when it starts.
        effects.retain(|effect| !matches!(effect, Effect::RefreshRecovery(_)));
        effects.push(if Some(pending.slot) == running {
            Effect::Write(Change::CountBoot(pending.slot))
        } else {
            Effect::StartAgain
        });
        Some(effects)
    }

    /// Where to go when the firmware that was started does not start well.
    fn elsewhere(&self, why: &GivenUp, given_up: Option<SlotId>, at: u64) -> Vec<Effect> {
        let spent = |other: SlotId| self.boots(other) >= DEFAULT_LIMIT;
        let default = self.default_slot().filter(|default| Some(*default) != why.slot && !spent(*default));
        if default.is_some_and(|default| self.firmware(default).is_some()) {
            return Vec::new();
        }
        let before = self.confirmed_record().and_then(|confirmed| confirmed.before);
        let candidate = |other: SlotId, firmware: &Firmware| {
            Some(other) != why.slot
                && Some(other) != given_up
                && self.boots(other) == 0
                && !self.refused(firmware.root_hash)
        };
        let earlier = before.map(|(other, _)| other).filter(|other| {
            self.firmware(*other)
                .is_some_and(|f| candidate(*other, f) && Some((*other, f.root_hash)) == before)
        });
        let order = Order { message: why.message.clone(), who: "slotboot".to_owned(), at };
        let chosen = earlier.or_else(|| self.newest(candidate));
        chosen
            .and_then(|other| self.select(other, SelectionKind::Fallback, &order).ok())
            .unwrap_or_else(|| vec![Effect::SetOneShot(Some(Entry::Recovery))])
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}
