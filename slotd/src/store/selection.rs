//! Choosing what boots: gathers what `domain::machine` decides from, and carries out what it answers. The only code that
//! changes the selection, in the state and in the loader.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use sps_base::error::ErrorKind;
use sps_base::journal;
use sps_base::recovery::Report;
use sps_base::slot::SlotId;
use tracing::{error, info, warn};

use super::error::StoreError;
use super::inspect::{Installed, Known};
use super::state_store::Health;
use super::types::{Failure, LastUpgradeView, RevertRequest};
use super::{Slot, Store};
use crate::device::loader::Loader;
use crate::domain::boot::Entry;
use crate::domain::machine::{
    Change, Effect, Event, Firmware, Holds, LoaderFound, LostRoot, Machine, Order, Refusal, step,
};
use crate::domain::manifest::{Sha256Hex, parse_utc};
use crate::domain::slot_state::Content;
use crate::domain::state::{Confirmed, SelectionKind, State, UpgradeOutcome};

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.kind(), refusal.to_string())
    }
}

/// How the initrd goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The root may be opened.
    GoOn,
    /// Another firmware is to be started: reboot.
    Again,
}

impl Store {
    /// Everything that decides, from memory. Answers at once.
    pub(super) fn machine(&self) -> Machine {
        let published = self.state.get();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let holds = |(slot, known): (&Slot, &std::sync::Arc<Known>)| {
            (slot.id, holds(slot.id, known, &published.state))
        };
        let slots: BTreeMap<SlotId, Holds> = self.slots.iter().zip(&known).map(holds).collect();
        let state = (published.health == Health::Valid).then(|| published.state.clone());
        let hash =
            self.running().and_then(|known| Some(known.installed.as_ref()?.manifest.root.verity.root_hash));
        let loader = self.loader_found.read().unwrap_or_else(PoisonError::into_inner).clone();
        Machine { state, slots, booted: self.booted().zip(hash), loader }
    }

    /// Reads the loader's settings again.
    pub(super) fn look_at_loader(&self) {
        let found = match &self.loader {
            None => LoaderFound::None,
            Some(Err(why)) => LoaderFound::Unreadable(why.clone()),
            Some(Ok(loader)) => match loader.read() {
                Ok(selection) => LoaderFound::Set(selection),
                Err(e) => LoaderFound::Unreadable(super::assembly::describe(&e)),
            },
        };
        *self.loader_found.write().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// Selects a firmware for one start. It must have passed a test.
    pub fn activate(&self, slot: SlotId, message: &str, who: &str) -> Result<(), Failure> {
        if self.require_message && message.trim().is_empty() {
            let message = "argument message: this appliance wants to know why (require_message in slotd.toml); give a message";
            return Err(Failure::new(ErrorKind::InvalidArgument, message));
        }
        let _reservation = self.hold(slot, None)?;
        let _turn = self.turn();
        let decided = self.decide(&Event::Activate { slot, order: self.order(message, who) })?;
        self.require_test(slot)?;
        Ok(self.carry_out(&decided)?)
    }

    /// Takes the selection of a slot back.
    pub fn deactivate(&self, slot: SlotId) -> Result<(), Failure> {
        let _turn = self.turn();
        let decided = self.decide(&Event::Deactivate { slot, at: (self.now)() })?;
        self.forget_tests();
        Ok(self.carry_out(&decided)?)
    }

    /// The running firmware is healthy. True when that ended a trial.
    pub fn confirm(&self) -> Result<bool, Failure> {
        let _turn = self.turn();
        let trial = self.machine().trial();
        let decided = self.decide(&Event::Confirm { at: self.judging_time() })?;
        self.carry_out(&decided)?;
        self.settle_firmware();
        Ok(trial)
    }

    /// The system firmware starts the loader first and the recovery image second, and the loader is that of the running
    /// firmware once it is confirmed. What fails shows in the warnings: nothing hangs on it but a worse day.
    pub(super) fn settle_firmware(&self) {
        let Ok(loader) = self.loader() else { return };
        let recovery = self.recovery_file();
        let done = loader.settle_firmware(recovery.as_deref(), self.machine().confirmed());
        let failed = done.err().map(|e| super::assembly::describe(&e));
        if let Some(why) = &failed {
            warn!(ERROR = %why, "the system firmware is not told what to start: {why}");
        }
        *self.firmware_warning.write().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// The running firmware, in a trial, is not healthy.
    pub fn reject(&self, reason: &str) -> Result<(), Failure> {
        let _turn = self.turn();
        let decided = self.decide(&Event::Reject { reason: reason.to_owned(), at: (self.now)() })?;
        Ok(self.carry_out(&decided)?)
    }

    /// Selects an earlier firmware for one start. Answers which slot that is.
    pub fn revert(&self, reason: &str, request: &RevertRequest, who: &str) -> Result<SlotId, Failure> {
        let _turn = self.turn();
        let slot = request.slot.or_else(|| self.machine().fallback());
        let _reservation = slot.map(|slot| self.hold(slot, None)).transpose()?;
        let decided = self.decide(&Event::Revert { slot, order: self.order(reason, who) })?;
        let slot = slot.ok_or(Refusal::NoFallback)?;
        let date = self.configuration_date(slot)?;
        if let Some(date) = date.filter(|date| !accepts(request.accept_config.as_deref(), date)) {
            let message = format!(
                "the firmware in slot {slot} starts with its own configuration of {date}; what was changed since is not in it. \
                 Option accept_config: expected {:?}",
                day(&date)
            );
            return Err(Failure::new(ErrorKind::InvalidArgument, message));
        }
        self.carry_out(&decided)?;
        Ok(slot)
    }

    /// Counts this start of the booted firmware, before its root is opened; at the limit it chooses another.
    pub fn count_start(&self) -> Result<Start, Failure> {
        let _turn = self.turn();
        let decided = self.decide(&Event::Initrd { at: (self.now)() })?;
        self.carry_out_in_initrd(&decided)?;
        Ok(if decided.contains(&Effect::StartAgain) { Start::Again } else { Start::GoOn })
    }

    /// Chooses another firmware where [`Store::slot_of_root`] finds none; where a slot that cannot be read may hold it, only
    /// at the limit of starts. True when another was chosen.
    pub fn fall_back(&self) -> Result<bool, Failure> {
        let _turn = self.turn();
        let Some(hash) = self.booted_hash.clone().and_then(|hash| Sha256Hex::try_from(hash).ok()) else {
            return Ok(false);
        };
        let unreadable =
            |known: &std::sync::Arc<Known>| matches!(known.content, Content::Bad { class: "unreadable", .. });
        let unsure = self.known.read().unwrap_or_else(PoisonError::into_inner).iter().any(unreadable);
        let root = LostRoot { hash, told: self.started, unsure };
        let decided = self.decide(&Event::RootLost { root, at: (self.now)() })?;
        self.carry_out_in_initrd(&decided)?;
        Ok(decided.contains(&Effect::StartAgain))
    }

    /// Counts this start of the recovery image, and says whether it restarts by itself. For a store that has put in order
    /// what a cut has left.
    pub fn count_recovery(&self) -> Result<Report, Failure> {
        let _turn = self.turn();
        let told = self.loader().ok().and_then(Loader::started) == Some(Entry::Recovery);
        let decided = self.decide(&Event::Recovery { told })?;
        let follows = self.machine().recovery_goes_on(told);
        self.carry_out(&decided)?;
        Ok(Report {
            starts: self.machine().starts_of_recovery(),
            restarts: follows.as_ref().ok().copied(),
            why: follows.err().map(|stays| stays.to_string()).unwrap_or_default(),
            warnings: Vec::new(),
        })
    }

    fn carry_out_in_initrd(&self, decided: &[Effect]) -> Result<(), StoreError> {
        let done = self.carry_out(decided);
        if done.is_err() {
            // A loader that cannot be written does not keep the state from saying that the trial is over.
            let ended = |effect: &&Effect| matches!(effect, Effect::Write(Change::Ended { .. }));
            self.carry_out(&decided.iter().filter(ended).cloned().collect::<Vec<_>>())?;
        }
        done
    }

    /// What an interruption has left of a selection is put in order. What fails shows in the warnings.
    pub(super) fn settle_selection(&self) {
        let _turn = self.turn();
        self.look_at_loader();
        let blind = matches!(self.machine().loader, LoaderFound::Unreadable(_));
        self.settle_selection_once();
        if blind {
            // Now that the loader's settings can be read, what they said of a pending selection is known to be gone.
            self.settle_selection_once();
        }
    }

    /// Selections are decided and carried out one after the other.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.selecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle_selection_once(&self) {
        match self.decide(&Event::Start { at: (self.now)() }) {
            Ok(decided) => {
                told(&decided, &self.machine());
                if let Err(e) = self.carry_out(&decided) {
                    error!(MESSAGE_ID = journal::SELECTION_FAILED, ERROR = %e, "the selection is not in order: {e}");
                }
            }
            Err(refusal) => warn!("the selection is left as it is: {refusal}"),
        }
    }

    /// The running firmware as a fresh state has it: confirmed, if it is the loader's default, or nothing can be told of
    /// that.
    pub(super) fn confirmed_by_operator(&self) -> Option<Confirmed> {
        self.look_at_loader();
        let machine = self.machine();
        let unreadable = matches!(machine.loader, LoaderFound::Unreadable(_));
        let is_default = |slot| unreadable || machine.default_slot() == Some(slot);
        let (slot, root_hash) = machine.booted.filter(|(slot, _)| is_default(*slot))?;
        Some(Confirmed { slot, root_hash, at: (self.now)(), before: None, unknown: BTreeMap::new() })
    }

    /// Nothing is started once any more: a fresh state knows of no selection. A loader that fails keeps nobody from it.
    pub(super) fn forget_selection(&self) {
        let _turn = self.turn();
        self.look_at_loader();
        let found = self.loader_found.read().unwrap_or_else(PoisonError::into_inner).clone();
        let set = matches!(&found, LoaderFound::Set(selection) if selection.one_shot.is_some());
        if let Err(e) = self.carry_out(if set { &[Effect::SetOneShot(None)] } else { &[] }) {
            error!(MESSAGE_ID = journal::SELECTION_FAILED, ERROR = %e, "the selection is not in order: {e}");
        }
    }

    /// What an operator should know of the selection.
    pub(super) fn selection_warnings(machine: &Machine) -> Vec<String> {
        let mut warnings = Vec::new();
        match &machine.loader {
            LoaderFound::Unreadable(why) => {
                warnings.push(format!("The boot loader's settings cannot be used: {why}."));
            }
            LoaderFound::Set(set) => warnings.extend(set.damage.clone()),
            LoaderFound::None => {}
        }
        let Some((booted, _)) = machine.booted.filter(|_| machine.loader != LoaderFound::None) else {
            return warnings;
        };
        if machine.trial() {
            warnings
                .push(format!("This start is the trial of slot {booted}: it ends with confirm or reject."));
        } else if machine.default_slot() != Some(booted) {
            let text = format!(
                "Slot {booted} runs, which is not the default and no trial: it was started by hand, or a trial has failed."
            );
            warnings.push(text);
        } else if !machine.confirmed() {
            warnings.push(format!("The running firmware in slot {booted} is not confirmed yet."));
        }
        warnings
    }

    fn order(&self, message: &str, who: &str) -> Order {
        Order { message: message.to_owned(), who: who.to_owned(), at: (self.now)() }
    }

    fn decide(&self, event: &Event) -> Result<Vec<Effect>, Refusal> {
        // What somebody has set by hand since must not be decided over.
        self.look_at_loader();
        step(&self.machine(), event).map(|(_, effects)| effects)
    }

    /// Carries out effects in order, each durable before the next begins. The first failure ends it; what is left is put
    /// in order at the next start.
    fn carry_out(&self, effects: &[Effect]) -> Result<(), StoreError> {
        let done = effects.iter().try_for_each(|effect| self.carry_out_one(effect));
        self.look_at_loader();
        done
    }

    fn carry_out_one(&self, effect: &Effect) -> Result<(), StoreError> {
        match effect {
            Effect::Write(change) => self.state.update(|state| change.apply(state)),
            Effect::SetOneShot(entry) => Ok(self.loader()?.set_one_shot(entry.as_ref())?),
            Effect::SetDefault(entry) => {
                self.loader()?.set_default(entry)?;
                Ok(())
            }
            Effect::RefreshRecovery(slot) => {
                // The trial is decided whatever becomes of the recovery image; it is tried again at the next start.
                if let Err(e) = self.refresh_recovery(*slot) {
                    warn!(MESSAGE_ID = journal::RECOVERY_IMAGE_OLD, ERROR = %e, "the recovery image stays as it is: {e}");
                }
                Ok(())
            }
            Effect::StartAgain => Ok(()),
        }
    }

    fn loader(&self) -> Result<&dyn Loader, StoreError> {
        match &self.loader {
            Some(Ok(loader)) => Ok(&**loader),
            Some(Err(why)) => Err(StoreError::refused(ErrorKind::Device, why.clone())),
            None => Err(StoreError::refused(ErrorKind::Device, Refusal::NoLoader.to_string())),
        }
    }

    /// Name of the loader in the contract.
    pub(super) fn loader_name(&self) -> &'static str {
        self.loader().map_or("none", Loader::name)
    }

    /// How the last selection went.
    pub(super) fn last_upgrade(machine: &Machine) -> Option<LastUpgradeView> {
        let state = machine.state.as_ref()?;
        let (selection, outcome, ended) = match (&state.pending, &state.last_upgrade) {
            (Some(pending), _) if machine.booted == Some((pending.slot, pending.root_hash)) => {
                (pending, "trial", None)
            }
            (Some(pending), _) => (pending, "selected", None),
            (None, Some(last)) => {
                let outcome = match last.outcome {
                    UpgradeOutcome::Confirmed => "confirmed",
                    UpgradeOutcome::Failed => "failed",
                    UpgradeOutcome::Withdrawn => "withdrawn",
                };
                (&last.selection, outcome, Some(last))
            }
            (None, None) => return None,
        };
        Some(LastUpgradeView {
            outcome,
            kind: match selection.kind {
                SelectionKind::Upgrade => "upgrade",
                SelectionKind::Revert => "revert",
                SelectionKind::Fallback => "fallback",
            },
            slot: selection.slot,
            version: selection.version.clone(),
            from_version: selection.from_version.clone(),
            root_hash: selection.root_hash.to_string(),
            message: selection.message.clone(),
            who: selection.who.clone(),
            selected_at: selection.at,
            ended_at: ended.map_or(0, |last| last.at),
            reason: ended.map(|last| last.reason.clone()).unwrap_or_default(),
        })
    }
}

/// What the slot holds for the machine: sound only when nothing remains to be done to it.
fn holds(id: SlotId, known: &Known, state: &State) -> Holds {
    let changing = state.intent.as_ref().is_some_and(|intent| intent.slot == id);
    match (&known.content, &known.installed) {
        (Content::Empty, _) => Holds::Nothing,
        (Content::Writing, _) => Holds::Writing,
        (Content::Verified, Some(_)) if changing => Holds::Writing,
        (Content::Verified, Some(installed)) if known.remaining.is_empty() => {
            Holds::Verified(firmware(installed))
        }
        (Content::Verified | Content::Bad { .. }, _) => Holds::Bad,
    }
}

fn firmware(installed: &Installed) -> Firmware {
    let manifest = &installed.manifest;
    Firmware {
        root_hash: manifest.root.verity.root_hash,
        version: manifest.version.clone(),
        epoch: manifest.security_epoch,
        revoked_below: manifest.revoked_below,
        built: parse_utc(&manifest.build_date).unwrap_or(0),
    }
}

/// The date of a time in RFC 3339.
fn day(date: &str) -> &str {
    date.split('T').next().unwrap_or(date)
}

fn accepts(given: Option<&str>, date: &str) -> bool {
    given.is_some_and(|given| given == date || given == day(date))
}

/// Tells the journal what a start had to put in order.
fn told(effects: &[Effect], machine: &Machine) {
    for effect in effects {
        match effect {
            Effect::Write(Change::Ended { reason, .. }) => {
                let pending = machine.state.as_ref().and_then(|state| state.pending.as_ref());
                let (slot, version) =
                    pending.map_or((0, ""), |pending| (pending.slot.get(), pending.version.as_str()));
                error!(
                    MESSAGE_ID = journal::TRIAL_FAILED,
                    SLOT = slot,
                    VERSION = version,
                    REASON = reason.as_str(),
                    "the upgrade to {version} in slot {slot} did not happen: {reason}"
                );
            }
            Effect::SetDefault(entry @ Entry::Slot(_)) => info!(
                MESSAGE_ID = journal::LOADER_REPAIRED,
                SLOT = entry.slot().map_or(0, SlotId::get),
                "the boot loader's default is set to {}",
                entry.name()
            ),
            _ => {}
        }
    }
}
