//! What the words of the second table make of any media: a small model of its own, which knows nothing of how slotd
//! decides. It says how an appliance ends that is left alone, wherever the power was cut, and how often.

use slotd::domain::boot::Entry;
use slotd::domain::state::{Pending, State, UpgradeOutcome};
use sps_base::slot::SlotId;

use super::ground::id;
use super::law::{End, state};
use super::loader;
use super::power::{Health, Power};
use crate::recorder::Media;

/// Starts of a firmware that is not on trial before it counts as dead.
const STARTS: u32 = 3;

impl Power<'_> {
    /// How these media may end. More than one way only where the loader's settings, or a boot image, are lost.
    pub fn ends(&self, media: &Media) -> Vec<End> {
        let seen = loader::seen(media);
        let default = seen.default.as_ref().and_then(Entry::slot);
        let Some(known) = state(media) else {
            let runs = default.or(Some(id(media.slots.len()))).map(number);
            return vec![End { runs, confirmed: None, outcome: None }];
        };
        let once = seen.one_shot.as_ref().and_then(Entry::slot);
        let due = known.pending.as_ref().is_some_and(|pending| once == Some(pending.slot));
        let mut ends = vec![self.end(media, &known, due)];
        if (self.lost.loader || self.lost.neighbour) && known.pending.is_some() {
            // Without settings the loader may start it by chance, and without its image it cannot.
            ends.push(self.end(media, &known, !due));
        }
        let of_default = |pending: &Pending| {
            known.confirmed.as_ref().is_some_and(|confirmed| confirmed.slot == pending.slot)
        };
        if self.lost.loader {
            // What a loader without settings started by chance was counted, and not tried.
            let confirmed = known.confirmed.as_ref().map(|confirmed| confirmed.slot);
            let mut untried = known.clone();
            untried.boots.retain(|slot, _| Some(*slot) == confirmed);
            ends.push(self.end(media, &untried, due));
        }
        if self.lost.loader && known.pending.as_ref().is_some_and(of_default) {
            // The default was forgotten and found again as a fallback. Cut off in its only trial it has failed, and the
            // recovery image waits.
            let confirmed = known.confirmed.as_ref().map(|confirmed| number(confirmed.slot));
            ends.push(End { runs: None, confirmed, outcome: Some(UpgradeOutcome::Failed) });
        }
        ends
    }

    fn end(&self, media: &Media, known: &State, due: bool) -> End {
        let confirmed = known.confirmed.as_ref().map(|confirmed| confirmed.slot);
        let mut now = Now {
            power: self,
            slots: media.slots.len(),
            confirmed,
            before: known.confirmed.as_ref().and_then(|confirmed| Some(confirmed.before?.0)),
            outcome: known.last_upgrade.as_ref().map(|last| last.outcome),
            spent: known.boots.iter().filter(|(_, count)| **count > 0).map(|(slot, _)| *slot).collect(),
            given_up: known.pending.as_ref().filter(|_| !due).map(|pending| pending.slot),
        };
        now.spent.retain(|slot| Some(*slot) != confirmed);
        let refused = |slot: &SlotId| {
            let hash = self
                .ground
                .firmware
                .get(number(*slot) - 1)
                .map(|firmware| firmware.manifest.root.verity.root_hash);
            known.refused.iter().any(|refused| Some(refused.root_hash) == hash)
        };
        now.spent.extend((1..=now.slots).map(id).filter(refused));
        if let Some(pending) = &known.pending {
            let ran = known.boots.get(&pending.slot).copied().unwrap_or(0) > 0;
            if pending.confirming {
                return Now::taken_over(pending.slot);
            }
            if due && !ran && self.health(number(pending.slot)) == Health::Good {
                return Now::taken_over(pending.slot);
            }
            now.outcome = Some(UpgradeOutcome::Failed);
            if due || ran {
                now.spent.push(pending.slot);
            } else {
                now.spent.retain(|slot| *slot != pending.slot);
            }
        }
        let worn = confirmed.and_then(|slot| known.boots.get(&slot).copied()).unwrap_or(0) >= STARTS;
        now.default_starts(worn)
    }
}

/// A model appliance.
struct Now<'a> {
    power: &'a Power<'a>,
    slots: usize,
    confirmed: Option<SlotId>,
    before: Option<SlotId>,
    outcome: Option<UpgradeOutcome>,
    /// What was tried, and is not tried again.
    spent: Vec<SlotId>,
    /// What was being selected when the default came to its end: another one is chosen, if there is one.
    given_up: Option<SlotId>,
}

impl Now<'_> {
    fn taken_over(slot: SlotId) -> End {
        let runs = Some(number(slot));
        End { runs, confirmed: runs, outcome: Some(UpgradeOutcome::Confirmed) }
    }

    /// The default runs unless it is dead, or was started too often without a sign of health. Then each of the others
    /// is tried once, the one before it first, then the newest; and recovery is left.
    fn default_starts(&mut self, worn: bool) -> End {
        let confirmed = self.confirmed.map(number);
        let dead = confirmed.is_none_or(|slot| self.power.health(slot) == Health::Dead);
        if !dead && !worn {
            return End { runs: confirmed, confirmed, outcome: self.outcome };
        }
        while let Some(slot) = self.fallback(self.given_up).or_else(|| self.fallback(None)) {
            self.spent.push(slot);
            self.given_up = None;
            if self.power.health(number(slot)) == Health::Good {
                return Self::taken_over(slot);
            }
            self.outcome = Some(UpgradeOutcome::Failed);
        }
        End { runs: None, confirmed, outcome: self.outcome }
    }

    fn fallback(&self, but: Option<SlotId>) -> Option<SlotId> {
        let free =
            |slot: &SlotId| Some(*slot) != self.confirmed && Some(*slot) != but && !self.spent.contains(slot);
        self.before.filter(free).or_else(|| (1..=self.slots).rev().map(id).find(free))
    }
}

fn number(slot: SlotId) -> usize {
    slot.get() as usize
}
