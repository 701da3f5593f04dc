//! What may be done with the slots, and what follows from it: [`step`] decides, the caller carries out.
//!
//! Everything is decided from one [`Machine`]: the durable state, what the slots hold, what runs, and what the loader is
//! set to. A step answers the effects in the order of [`super::plan`]; after a cut between any two of them the
//! [`Event::Start`] of the next start puts the rest in order.

use std::collections::BTreeMap;

use sps_base::slot::SlotId;

use super::boot::{Entry, Selection};
use super::manifest::Sha256Hex;
use super::plan::SelectStep;
use super::state::{
    Confirmed, LastUpgrade, Pending, REFUSED_LIMIT, Refused, SelectionKind, State, TEXT_LIMIT, UpgradeOutcome,
};

mod facts;
mod initrd;
mod recovery;
mod refusal;

pub use recovery::Stays;
pub use refusal::Refusal;

/// Starts of a trial that are allowed without a confirmation.
pub const TRIAL_LIMIT: u32 = 1;
/// Starts of any other firmware that are allowed without a sign of health.
pub const DEFAULT_LIMIT: u32 = 3;
/// Starts of recovery, without a sign of health between them, that end by themselves where a firmware can be started.
pub const RECOVERY_LIMIT: u32 = 3;

/// What is known of the firmware in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Its root hash.
    pub root_hash: Sha256Hex,
    /// Its version.
    pub version: String,
    /// Its security epoch.
    pub epoch: u32,
    /// It does not let firmware of a lower epoch come back.
    pub revoked_below: u32,
    /// When it was built, Unix seconds.
    pub built: u64,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// An install that has not ended.
    Writing,
    /// A firmware, complete and signed, whose boot image is in place.
    Verified(Firmware),
    /// Something that must not be started.
    Bad,
}

/// The boot loader as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoaderFound {
    /// None is configured: nothing can be selected.
    None,
    /// Its settings cannot be read.
    Unreadable(String),
    /// What it is set to.
    Set(Selection),
}

/// Everything that decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The durable state; `None` when it is lost.
    pub state: Option<State>,
    /// What each firmware slot holds.
    pub slots: BTreeMap<SlotId, Holds>,
    /// The slot that runs and its root hash.
    pub booted: Option<(SlotId, Sha256Hex)>,
    /// The loader.
    pub loader: LoaderFound,
}

/// Something that is asked for, or has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An operator selects a slot for one start.
    Activate {
        /// Which.
        slot: SlotId,
        /// Why and by whom.
        order: Order,
    },
    /// An operator takes the selection of this slot back.
    Deactivate {
        /// Which.
        slot: SlotId,
        /// When.
        at: u64,
    },
    /// The running firmware is healthy.
    Confirm {
        /// When.
        at: u64,
    },
    /// The running firmware, in a trial, is not.
    Reject {
        /// Why.
        reason: String,
        /// When.
        at: u64,
    },
    /// An operator wants an earlier firmware back.
    Revert {
        /// Which; else the fallback.
        slot: Option<SlotId>,
        /// Why and by whom.
        order: Order,
    },
    /// slotd has started: what a cut has left is put in order.
    Start {
        /// When.
        at: u64,
    },
    /// The initrd of the booted firmware runs.
    Initrd {
        /// When.
        at: u64,
    },
    /// The initrd runs, and the root that it was booted for is in no slot.
    RootLost {
        /// What is known of it.
        root: LostRoot,
        /// When.
        at: u64,
    },
    /// The recovery image runs, and what a cut has left is in order.
    Recovery {
        /// The loader was told to start it: by an operator, or at the limit of starts.
        told: bool,
    },
}

/// A root that is in no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRoot {
    /// Its hash, of the kernel's command line.
    pub hash: Sha256Hex,
    /// The slot that the loader says it has started.
    pub told: Option<SlotId>,
    /// A slot cannot be read at all, so it may be in that one.
    pub unsure: bool,
}

/// Who wants a selection, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The operator's words.
    pub message: String,
    /// Bus name and user.
    pub who: String,
    /// When, Unix seconds.
    pub at: u64,
}

/// One thing to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// State.
    Write(Change),
    /// Loader: started once, or nothing is.
    SetOneShot(Option<Entry>),
    /// Loader and ESP: started from now on.
    SetDefault(Entry),
    /// ESP: the recovery image of this slot replaces an older one.
    RefreshRecovery(SlotId),
    /// This start ends here; the next one is another's. Only in an initrd, recovery's among them.
    StartAgain,
}

/// A change of the durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This firmware is selected.
    Pending(Pending),
    /// This slot is being started.
    CountBoot(SlotId),
    /// The pending firmware is healthy.
    Confirming,
    /// This firmware is the default.
    Confirmed {
        /// Which slot.
        slot: SlotId,
        /// Its firmware.
        firmware: Firmware,
        /// When.
        at: u64,
    },
    /// The pending selection has ended.
    Ended {
        /// How.
        outcome: UpgradeOutcome,
        /// Why.
        reason: String,
        /// Whether it has run and is remembered as refused.
        refused: bool,
        /// When.
        at: u64,
    },
    /// This slot's firmware is healthy.
    ResetBoots(SlotId),
}

impl Effect {
    /// The step of the order law that it is.
    pub fn step(&self) -> Option<SelectStep> {
        Some(match self {
            Self::Write(Change::Pending(_)) => SelectStep::WritePending,
            Self::Write(Change::CountBoot(_)) => SelectStep::CountBoot,
            Self::Write(Change::Confirming) => SelectStep::WriteConfirming,
            Self::Write(Change::Confirmed { .. }) => SelectStep::WriteConfirmed,
            Self::Write(Change::Ended { .. }) => SelectStep::WriteEnded,
            Self::Write(Change::ResetBoots(_)) => SelectStep::ResetBoots,
            Self::SetOneShot(Some(_)) => SelectStep::SetOneShot,
            Self::SetOneShot(None) => SelectStep::ClearOneShot,
            Self::SetDefault(_) => SelectStep::SetDefault,
            Self::RefreshRecovery(_) => SelectStep::RefreshRecovery,
            Self::StartAgain => return None,
        })
    }
}

impl Change {
    /// Makes it in `state`.
    pub fn apply(&self, state: &mut State) {
        match self {
            Self::Pending(pending) => {
                state.boots.remove(&pending.slot);
                state.pending = Some(pending.clone());
            }
            Self::CountBoot(slot) => {
                let count = state.boots.entry(*slot).or_default();
                *count = count.saturating_add(1);
            }
            Self::Confirming => {
                if let Some(pending) = &mut state.pending {
                    pending.confirming = true;
                }
            }
            Self::Confirmed { slot, firmware, at } => confirm(state, *slot, firmware, *at),
            Self::Ended { outcome, reason, refused, at } => end(state, *outcome, reason, *refused, *at),
            Self::ResetBoots(slot) => {
                state.boots.remove(slot);
            }
        }
    }
}

fn confirm(state: &mut State, slot: SlotId, firmware: &Firmware, at: u64) {
    let root_hash = firmware.root_hash;
    let before = match &state.confirmed {
        Some(old) if (old.slot, old.root_hash) != (slot, root_hash) => Some((old.slot, old.root_hash)),
        Some(old) => old.before,
        None => None,
    };
    state.confirmed = Some(Confirmed { slot, root_hash, at, before, unknown: BTreeMap::new() });
    state.boots.remove(&slot);
    state.boots.remove(&SlotId::RECOVERY);
    state.refused.retain(|refused| refused.root_hash != root_hash);
    state.epoch_floor = state.epoch_floor.max(firmware.epoch);
    state.time_floor = state.time_floor.max(firmware.built);
    if let Some(selection) = state.pending.take_if(|pending| pending.slot == slot) {
        let outcome = UpgradeOutcome::Confirmed;
        state.last_upgrade =
            Some(LastUpgrade { selection, outcome, reason: String::new(), at, unknown: BTreeMap::new() });
    }
}

fn end(state: &mut State, outcome: UpgradeOutcome, reason: &str, refused: bool, at: u64) {
    let Some(selection) = state.pending.take() else { return };
    state.boots.remove(&selection.slot);
    if refused {
        let root_hash = selection.root_hash;
        state.refused.retain(|old| old.root_hash != root_hash);
        state.refused.push(Refused {
            root_hash,
            reason: shortened(reason, 256),
            at,
            unknown: BTreeMap::new(),
        });
        let surplus = state.refused.len().saturating_sub(REFUSED_LIMIT);
        state.refused.drain(..surplus);
    }
    let reason = shortened(reason, TEXT_LIMIT);
    state.last_upgrade = Some(LastUpgrade { selection, outcome, reason, at, unknown: BTreeMap::new() });
}

/// The first `limit` bytes, whole characters.
fn shortened(text: &str, limit: usize) -> String {
    let ends = text.char_indices().map(|(at, one)| at + one.len_utf8());
    let end = ends.take_while(|end| *end <= limit).last().unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}

/// Decides, and says what the machine is once everything is carried out.
pub fn step(machine: &Machine, event: &Event) -> Result<(Machine, Vec<Effect>), Refusal> {
    let effects = machine.decide(event)?;
    let mut after = machine.clone();
    for effect in &effects {
        after.apply(effect);
    }
    Ok((after, effects))
}

impl Machine {
    fn decide(&self, event: &Event) -> Result<Vec<Effect>, Refusal> {
        match event {
            Event::Activate { slot, order } => self.activate(*slot, order),
            Event::Deactivate { slot, at } => self.deactivate(*slot, *at),
            Event::Confirm { at } => self.confirm(*at),
            Event::Reject { reason, at } => self.reject(reason, *at),
            Event::Revert { slot, order } => self.revert(*slot, order),
            Event::Start { at } => Ok(self.start(*at)),
            Event::Initrd { at } => Ok(self.initrd(*at)),
            Event::RootLost { root, at } => Ok(self.root_lost(root, *at)),
            Event::Recovery { told } => Ok(self.recovery(*told)),
        }
    }

    /// What one effect makes of it, once it is carried out.
    pub fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Write(change) => {
                if let Some(state) = &mut self.state {
                    change.apply(state);
                }
            }
            Effect::SetOneShot(entry) => {
                if let LoaderFound::Set(selection) = &mut self.loader {
                    selection.one_shot.clone_from(entry);
                }
            }
            Effect::SetDefault(entry) => {
                let one_shot = self.selection().and_then(|selection| selection.one_shot.clone());
                let default = Some(entry.clone());
                self.loader = LoaderFound::Set(Selection { default, one_shot, damage: None });
            }
            Effect::RefreshRecovery(_) | Effect::StartAgain => {}
        }
    }

    fn ready(&self) -> Result<&State, Refusal> {
        match &self.loader {
            LoaderFound::None => return Err(Refusal::NoLoader),
            LoaderFound::Unreadable(why) => return Err(Refusal::Loader(why.clone())),
            LoaderFound::Set(_) => {}
        }
        self.state.as_ref().ok_or(Refusal::StateLost)
    }

    fn select(&self, slot: SlotId, kind: SelectionKind, order: &Order) -> Result<Vec<Effect>, Refusal> {
        let firmware = match self.slots.get(&slot) {
            None => return Err(Refusal::NoSlot(slot)),
            Some(Holds::Nothing | Holds::Writing) => return Err(Refusal::Empty(slot)),
            Some(Holds::Bad) => return Err(Refusal::Bad(slot)),
            Some(Holds::Verified(firmware)) => firmware,
        };
        let running = self.booted.and_then(|(slot, _)| self.firmware(slot));
        let pending = Pending {
            slot,
            root_hash: firmware.root_hash,
            version: firmware.version.clone(),
            from_version: running.map(|running| running.version.clone()).unwrap_or_default(),
            kind,
            message: shortened(&order.message, TEXT_LIMIT),
            who: shortened(&order.who, 256),
            at: order.at,
            confirming: false,
            unknown: BTreeMap::new(),
        };
        let mut effects = Vec::new();
        if self.selection().is_some_and(|selection| selection.one_shot.is_some()) {
            // First nothing, then another: or a cut would start what is not pending.
            effects.push(Effect::SetOneShot(None));
        }
        effects.push(Effect::Write(Change::Pending(pending)));
        effects.push(Effect::SetOneShot(Some(Entry::Slot(slot))));
        Ok(effects)
    }

    fn activate(&self, slot: SlotId, order: &Order) -> Result<Vec<Effect>, Refusal> {
        self.ready()?;
        if self.runs(slot) {
            return Err(Refusal::RunsAlready(slot));
        }
        if self.booted.is_some() && !self.confirmed() {
            return Err(Refusal::NotConfirmed);
        }
        self.select(slot, SelectionKind::Upgrade, order)
    }

    fn revert(&self, slot: Option<SlotId>, order: &Order) -> Result<Vec<Effect>, Refusal> {
        self.ready()?;
        if self.in_trial().is_some() {
            return Err(Refusal::InTrial);
        }
        let slot = slot.or_else(|| self.fallback()).ok_or(Refusal::NoFallback)?;
        if self.runs(slot) {
            return Err(Refusal::RunsAlready(slot));
        }
        let running = self.booted.and_then(|(slot, _)| self.firmware(slot));
        if let (Some(running), Some(target)) = (running, self.firmware(slot))
            && target.epoch < running.revoked_below
        {
            return Err(Refusal::Revoked { slot, epoch: target.epoch, below: running.revoked_below });
        }
        self.select(slot, SelectionKind::Revert, order)
    }

    fn deactivate(&self, slot: SlotId, at: u64) -> Result<Vec<Effect>, Refusal> {
        self.ready()?;
        if !self.selected(slot) {
            return Err(Refusal::NotSelected(slot));
        }
        if self.in_trial().is_some() {
            return Err(Refusal::InTrial);
        }
        let outcome = UpgradeOutcome::Withdrawn;
        let ended = Change::Ended { outcome, reason: String::new(), refused: false, at };
        Ok(vec![Effect::SetOneShot(None), Effect::Write(ended)])
    }

    fn confirm(&self, at: u64) -> Result<Vec<Effect>, Refusal> {
        let Some((slot, root_hash)) = self.booted else { return Err(Refusal::NothingRuns) };
        let unreadable = matches!(self.loader, LoaderFound::Unreadable(_)) && self.in_trial().is_none();
        if !unreadable || self.state.is_none() {
            self.ready()?;
        }
        let firmware = self.firmware(slot).filter(|firmware| firmware.root_hash == root_hash);
        let firmware = firmware.ok_or(Refusal::Bad(slot))?;
        if let Some(pending) = self.in_trial() {
            let first = (!pending.confirming).then_some(Effect::Write(Change::Confirming));
            return Ok(first.into_iter().chain(Self::settle_confirmed(slot, firmware, at)).collect());
        }
        let record = self.confirmed_record().filter(|known| self.is_there(known.slot, known.root_hash));
        // The first firmware of an appliance, or one that recovery has put in the place of the last. Settings that say
        // nothing are made anew.
        if record.is_none() && (unreadable || self.default_slot().is_none_or(|default| default == slot)) {
            return Ok(Self::settle_confirmed(slot, firmware, at));
        }
        // The default, or one that somebody picked by hand, which stays what it is.
        let healed = self.heal_loader().filter(|_| unreadable);
        let counted = [slot, SlotId::RECOVERY].into_iter().filter(|counted| self.boots(*counted) > 0);
        let counted = counted.map(|counted| Effect::Write(Change::ResetBoots(counted)));
        Ok(healed.into_iter().chain(counted).collect())
    }

    fn settle_confirmed(slot: SlotId, firmware: &Firmware, at: u64) -> Vec<Effect> {
        vec![
            Effect::SetDefault(Entry::Slot(slot)),
            Effect::Write(Change::Confirmed { slot, firmware: firmware.clone(), at }),
            Effect::RefreshRecovery(slot),
        ]
    }

    fn reject(&self, reason: &str, at: u64) -> Result<Vec<Effect>, Refusal> {
        self.ready()?;
        match self.in_trial() {
            None => Err(Refusal::NoTrial),
            Some(pending) if pending.confirming => Err(Refusal::Confirming),
            Some(_) => Ok(vec![Self::failed(reason, true, at)]),
        }
    }

    fn failed(reason: &str, refused: bool, at: u64) -> Effect {
        let outcome = UpgradeOutcome::Failed;
        Effect::Write(Change::Ended { outcome, reason: reason.to_owned(), refused, at })
    }

    /// What an interruption has left. Never refused: what cannot be put in order stays as it is and is shown.
    fn start(&self, at: u64) -> Vec<Effect> {
        let Ok(state) = self.ready() else { return self.heal_loader().into_iter().collect() };
        let mut effects = Vec::new();
        let one_shot = self.selection().and_then(|selection| selection.one_shot.as_ref());
        match &state.pending {
            Some(pending) if pending.confirming => match self.firmware(pending.slot) {
                Some(firmware) if firmware.root_hash == pending.root_hash => {
                    return Self::settle_confirmed(pending.slot, firmware, at);
                }
                _ => {
                    effects.push(Self::failed(
                        "its slot was damaged before it became the default",
                        false,
                        at,
                    ));
                }
            },
            // The loader did not forget it, so the next start would be this one's again.
            Some(_) if self.in_trial().is_some() => {
                effects.extend(one_shot.is_some().then_some(Effect::SetOneShot(None)));
            }
            Some(pending) if !self.is_there(pending.slot, pending.root_hash) => {
                effects.push(Effect::SetOneShot(None));
                effects.push(Self::failed(
                    "its slot is damaged, or its signature is not accepted",
                    false,
                    at,
                ));
            }
            Some(pending) if one_shot != Some(&Entry::Slot(pending.slot)) => {
                let ran = self.boots(pending.slot) > 0;
                let reason = if ran {
                    "it was started and another firmware runs now, without a word from it"
                } else {
                    "it was not started: power was cut while it was being selected, or the loader could not start it"
                };
                effects.push(Self::failed(reason, ran, at));
            }
            Some(_) | None => {}
        }
        effects.extend(self.heal_loader());
        if let Some(known) =
            self.confirmed_record().filter(|known| self.is_there(known.slot, known.root_hash))
        {
            // A cut may have come before it was replaced.
            effects.push(Effect::RefreshRecovery(known.slot));
        }
        effects
    }

    /// What has proven itself is the default, also after the loader has lost its settings.
    fn heal_loader(&self) -> Option<Effect> {
        let confirmed = self.confirmed_record()?;
        let wanted = Entry::Slot(confirmed.slot);
        let as_wanted = match &self.loader {
            LoaderFound::None => true,
            LoaderFound::Unreadable(_) => false,
            LoaderFound::Set(set) => set.damage.is_none() && set.default.as_ref() == Some(&wanted),
        };
        (!as_wanted && self.is_there(confirmed.slot, confirmed.root_hash))
            .then_some(Effect::SetDefault(wanted))
    }
}

#[cfg(test)]
mod tests;
