//! Which configuration a firmware starts with.
//!
//! Each firmware has a generation of its own, named by its root hash, so that going back finds exactly what was left. An
//! upgrade starts from a copy of what ran before it (`docs/appliance.md`, "What can be written").

use serde::{Deserialize, Serialize};
use sps_base::slot::SlotId;

use super::manifest::Sha256Hex;
use super::state::{SelectionKind, State};

/// Where the generation of the starting firmware comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// What is there under its name stays; nothing there is an empty one.
    Keep,
    /// What is there stays; where nothing is, a copy of this one.
    KeepOrCopy(Sha256Hex),
    /// A copy of this one, also in place of what is there: the trial of an upgrade starts from what runs now, not from
    /// what an earlier trial left.
    Copy(Sha256Hex),
}

/// What `slotboot` hands to what comes after it in the initrd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The slot that starts.
    pub slot: SlotId,
    /// Its root hash.
    pub root_hash: Sha256Hex,
    /// Where its configuration comes from.
    pub configuration: Origin,
}

impl Start {
    /// Its file, in `/run/sps`.
    pub const FILE: &str = "start.json";
}

/// What the firmware with root hash `starting` begins with.
pub fn origin(state: &State, starting: &Sha256Hex) -> Origin {
    let Some(confirmed) = state.confirmed.as_ref().filter(|confirmed| confirmed.root_hash != *starting)
    else {
        return Origin::Keep;
    };
    let trial = state.pending.as_ref().filter(|pending| pending.root_hash == *starting);
    match trial {
        Some(trial) if trial.kind == SelectionKind::Upgrade && !trial.confirming => {
            Origin::Copy(confirmed.root_hash)
        }
        // Gone back to on purpose or in need, or picked by hand: its own, as it was.
        _ => Origin::KeepOrCopy(confirmed.root_hash),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::state::{Confirmed, Pending};

    const OLD: Sha256Hex = Sha256Hex([1; 32]);
    const NEW: Sha256Hex = Sha256Hex([2; 32]);

    fn state(pending: Option<(SelectionKind, bool)>) -> State {
        let unknown = BTreeMap::new;
        let slot = |number| SlotId::new(number).unwrap();
        let confirmed = Confirmed { slot: slot(1), root_hash: OLD, at: 1, before: None, unknown: unknown() };
        let pending = pending.map(|(kind, confirming)| Pending {
            slot: slot(2),
            root_hash: NEW,
            version: "2".into(),
            from_version: "1".into(),
            kind,
            message: String::new(),
            who: String::new(),
            at: 2,
            confirming,
            unknown: unknown(),
        });
        State { confirmed: Some(confirmed), pending, ..State::default() }
    }

    #[test]
    fn each_start_has_its_configuration() {
        use SelectionKind::{Fallback, Revert, Upgrade};
        for (state, starting, expected) in [
            (State::default(), NEW, Origin::Keep),
            (state(None), OLD, Origin::Keep),
            (state(None), NEW, Origin::KeepOrCopy(OLD)),
            (state(Some((Upgrade, false))), OLD, Origin::Keep),
            (state(Some((Upgrade, false))), NEW, Origin::Copy(OLD)),
            // Its checks have passed: what it has written since is its own.
            (state(Some((Upgrade, true))), NEW, Origin::KeepOrCopy(OLD)),
            (state(Some((Revert, false))), NEW, Origin::KeepOrCopy(OLD)),
            (state(Some((Fallback, false))), NEW, Origin::KeepOrCopy(OLD)),
        ] {
            assert_eq!(origin(&state, &starting), expected, "{state:?}");
        }
    }
}
