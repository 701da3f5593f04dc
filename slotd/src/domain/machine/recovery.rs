//! What happens when the recovery image runs: its starts are counted, and a sound firmware is started by itself, a few times.

use std::fmt;

use sps_base::slot::SlotId;

use super::{Change, DEFAULT_LIMIT, Effect, LoaderFound, Machine, RECOVERY_LIMIT, TRIAL_LIMIT};

/// Why recovery starts nothing by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// The loader was told to start recovery.
    Told,
    /// Without the state starts cannot be counted.
    StateLost,
    /// What the loader would start cannot be told.
    Loader(String),
    /// The loader has no firmware to start.
    NoDefault,
    /// What it would start is not sound.
    NotSound(SlotId),
    /// That was started so often without a sign of health.
    Spent(SlotId, u32),
    /// Recovery was started so often in a row.
    TooOften,
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => write!(f, "the boot loader was told to start recovery"),
            Self::StateLost => write!(f, "the durable state was lost, so starts cannot be counted"),
            Self::Loader(why) => write!(f, "the boot loader's settings could not be used: {why}"),
            Self::NoDefault => write!(f, "no firmware was the default"),
            Self::NotSound(slot) => write!(f, "slot {slot}, which would have been started, was not sound"),
            Self::Spent(slot, count) => {
                write!(f, "slot {slot} was started {count} times without a sign of health")
            }
            Self::TooOften => {
                write!(
                    f,
                    "recovery was started more than {RECOVERY_LIMIT} times in a row, and no firmware came up"
                )
            }
        }
    }
}

impl Machine {
    /// Counts this start, and ends it where a firmware can be started. Counted only up to the limit: what follows does not
    /// change any more.
    pub(super) fn recovery(&self, told: bool) -> Vec<Effect> {
        let counts = self.state.is_some() && self.boots(SlotId::RECOVERY) < RECOVERY_LIMIT;
        let mut effects = Vec::new();
        effects.extend(counts.then_some(Effect::Write(Change::CountBoot(SlotId::RECOVERY))));
        effects.extend(self.recovery_goes_on(told).is_ok().then_some(Effect::StartAgain));
        effects
    }

    /// Starts of recovery since a firmware was last healthy.
    pub fn starts_of_recovery(&self) -> u32 {
        self.boots(SlotId::RECOVERY)
    }

    /// The slot that a restart would start, where recovery restarts by itself; else why not.
    pub fn recovery_goes_on(&self, told: bool) -> Result<SlotId, Stays> {
        if self.state.is_none() {
            return Err(Stays::StateLost);
        }
        if let LoaderFound::Unreadable(why) = &self.loader {
            return Err(Stays::Loader(why.clone()));
        }
        let slot = self.after_reboot().ok_or(Stays::NoDefault)?;
        if self.firmware(slot).is_none() {
            return Err(Stays::NotSound(slot));
        }
        let limit = if self.selected(slot) { TRIAL_LIMIT } else { DEFAULT_LIMIT };
        if self.boots(slot) >= limit {
            return Err(Stays::Spent(slot, self.boots(slot)));
        }
        if told {
            return Err(Stays::Told);
        }
        if self.boots(SlotId::RECOVERY) >= RECOVERY_LIMIT {
            return Err(Stays::TooOften);
        }
        Ok(slot)
    }
}
