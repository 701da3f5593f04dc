//! Why something may not be done now, and what to do instead.

use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such slot.
    #[error("there is no slot {0}")]
    NoSlot(SlotId),
    /// Nothing in it.
    #[error("slot {0} holds no firmware")]
    Empty(SlotId),
    /// Not sound.
    #[error("slot {0} is not sound; verify it, repair it, or install another firmware")]
    Bad(SlotId),
    /// It runs, so it is never written.
    #[error("slot {0} holds the running firmware; it is never written")]
    Runs(SlotId),
    /// It runs, so it cannot be selected.
    #[error("slot {0} holds the running firmware; choose another slot")]
    RunsAlready(SlotId),
    /// It runs after the next reboot.
    #[error("slot {0} will boot next or is the default; select another firmware first")]
    RunsNext(SlotId),
    /// It is selected.
    #[error("slot {0} is selected for a trial; deactivate it first")]
    Selected(SlotId),
    /// It is not selected.
    #[error("slot {0} is not selected")]
    NotSelected(SlotId),
    /// The running firmware has not proven itself.
    #[error("the running firmware is not confirmed yet; wait for its health checks, or reject it")]
    NotConfirmed,
    /// A trial is under way.
    #[error("a trial is under way; confirm or reject it")]
    InTrial,
    /// No trial is under way.
    #[error("no trial is under way: the running firmware was not selected for this start")]
    NoTrial,
    /// Too late.
    #[error("the running firmware is confirmed already; use revert to go back")]
    Confirming,
    /// Nothing runs from a slot.
    #[error("the running system was started from no slot")]
    NothingRuns,
    /// Nothing to go back to.
    #[error("no other slot holds a sound firmware to go back to")]
    NoFallback,
    /// The running firmware forbids it.
    #[error(
        "the firmware in slot {slot} has security epoch {epoch}; the running firmware takes nothing below {below} back"
    )]
    Revoked {
        /// Where.
        slot: SlotId,
        /// Its epoch.
        epoch: u32,
        /// Lowest epoch that may come back.
        below: u32,
    },
    /// None is configured.
    #[error("no boot loader is configured in slotd.toml, so nothing can be selected")]
    NoLoader,
    /// It cannot be read.
    #[error("the boot loader's settings cannot be used: {0}")]
    Loader(String),
    /// The state is lost.
    #[error("the state is lost; look at it, then run `spsctl state reset --reason …`")]
    StateLost,
}

impl Refusal {
    /// Contract name.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSlot(_)
            | Self::NotSelected(_)
            | Self::NoTrial
            | Self::Confirming
            | Self::InTrial
            | Self::NothingRuns => ErrorKind::InvalidArgument,
            Self::Empty(_) | Self::NoFallback => ErrorKind::SlotEmpty,
            Self::Bad(_) => ErrorKind::SlotBad,
            Self::Runs(_) | Self::RunsAlready(_) | Self::RunsNext(_) | Self::Selected(_) => {
                ErrorKind::SlotInUse
            }
            Self::NotConfirmed => ErrorKind::NotConfirmed,
            Self::Revoked { .. } => ErrorKind::EpochTooOld,
            Self::NoLoader | Self::Loader(_) | Self::StateLost => ErrorKind::Device,
        }
    }
}
