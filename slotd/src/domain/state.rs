//! The durable state of slotd: what cannot be read off the slots themselves.
//!
//! Stored as JSON in a record of `sps_base::durable`. The schema only grows; fields of a newer firmware are kept and
//! written back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sps_base::slot::SlotId;

use super::layout::{Extent, Part};
use super::manifest::Sha256Hex;
use super::taint;

/// Everything that must survive a power cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Lowest security epoch that may be installed.
    #[serde(default)]
    pub epoch_floor: u32,
    /// No certificate is judged at an earlier time than this (Unix seconds): a dead clock must not revive one.
    #[serde(default)]
    pub time_floor: u64,
    /// What is being done to a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// Result of the last check at rest of each slot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<SlotId, Check>,
    /// The firmware that is selected for one trial start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// The firmware that has last proven itself healthy: what runs by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
    /// Starts of each slot that were not confirmed since; counted in the initrd.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub boots: BTreeMap<SlotId, u32>,
    /// Firmware whose trial failed, the oldest first; at most [`REFUSED_LIMIT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// How the last selection ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upgrade: Option<LastUpgrade>,
    /// What the taint log holds, and what it does not hold yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taint: Option<Taint>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// What the state knows of the taint record. Nothing of it goes back but by a reset that the log survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Number of the newest record of the log.
    pub count: u64,
    /// Digest of the log up to that record.
    pub digest: Sha256Hex,
    /// Records that could not be written into the log yet, the oldest first; at most [`taint::OWED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<taint::Record>,
    /// So many more have found no room, neither in the log nor here.
    #[serde(default)]
    pub beyond: u64,
    /// What was so at the last look, and is no news while it stays.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub standing: BTreeSet<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl Default for Taint {
    fn default() -> Self {
        let (owed, standing, unknown) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        Self { count: 0, digest: Sha256Hex([0; 32]), owed, beyond: 0, standing, unknown }
    }
}

/// Refused images that are remembered.
pub const REFUSED_LIMIT: usize = 32;
/// Longest text that somebody else gives and the state keeps, in bytes.
pub const TEXT_LIMIT: usize = 1024;

/// A firmware that is selected for one start, or has been and is not decided yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Which slot.
    pub slot: SlotId,
    /// Its root hash: only this firmware in this slot is the trial.
    pub root_hash: Sha256Hex,
    /// Its version, for people.
    pub version: String,
    /// Version that ran when it was selected; empty when none did.
    #[serde(default)]
    pub from_version: String,
    /// Why it was selected.
    pub kind: SelectionKind,
    /// The operator's words.
    #[serde(default)]
    pub message: String,
    /// Who: the caller's bus name and user, or `slotboot`.
    #[serde(default)]
    pub who: String,
    /// When, Unix seconds.
    pub at: u64,
    /// Its health checks have passed: it becomes the default whatever happens now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirming: bool,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Why a firmware was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectionKind {
    /// An operator wants a newer one.
    Upgrade,
    /// An operator wants an earlier one back.
    Revert,
    /// The default did not start well, and the initrd chose another.
    Fallback,
}

/// A firmware that has proven itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Which slot.
    pub slot: SlotId,
    /// Its root hash.
    pub root_hash: Sha256Hex,
    /// When, Unix seconds.
    pub at: u64,
    /// Slot and root hash of what was confirmed before: the one to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<(SlotId, Sha256Hex)>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// A firmware whose trial failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its root hash.
    pub root_hash: Sha256Hex,
    /// Why.
    pub reason: String,
    /// When, Unix seconds.
    pub at: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How a selection ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUpgrade {
    /// What was selected.
    pub selection: Pending,
    /// How it ended.
    pub outcome: UpgradeOutcome,
    /// Why, in one sentence; empty where all is well.
    #[serde(default)]
    pub reason: String,
    /// When, Unix seconds.
    pub at: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How a selection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeOutcome {
    /// It is healthy and the default now.
    Confirmed,
    /// It did not prove itself; the default was never changed.
    Failed,
    /// It was taken back before it started.
    Withdrawn,
}

/// A slot is being changed. While it stands, a slot without trailer is `Writing` (or being deleted), not empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Which slot.
    pub slot: SlotId,
    /// What for.
    pub action: Action,
    /// Manifest of the image that is being written (of the one that is being deleted).
    pub manifest: Sha256Hex,
    /// Name by which a cut install is resumed.
    pub transaction: String,
    /// Sequence number that the new trailer will carry.
    pub sequence: u64,
    /// Where the parts lie on the ISO, so that a resumed transfer can begin in the middle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<(Part, Extent)>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// What is being done to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A firmware is being written.
    Install,
    /// The slot is being emptied.
    Delete,
}

/// Result of a check at rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Sequence number of the trailer it judged; a later install makes it void.
    pub sequence: u64,
    /// When, Unix seconds.
    pub at: u64,
    /// How.
    pub how: CheckKind,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How a slot was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Trailer, signature, random leaves.
    Quick,
    /// Every block.
    Full,
}

/// Why a payload is no state.
#[derive(Debug, thiserror::Error)]
#[error("the state record verifies but is no state of this schema")]
pub struct StateError(#[source] serde_json::Error);

impl State {
    /// The state in a record's payload.
    pub fn parse(payload: &[u8]) -> Result<Self, StateError> {
        serde_json::from_slice(payload).map_err(StateError)
    }

    /// The payload of a record.
    pub fn render(&self) -> Vec<u8> {
        // Maps with string keys, numbers and strings: serialising them cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
