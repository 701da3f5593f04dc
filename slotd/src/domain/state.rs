//! The durable state of slotd: what cannot be read off the slots themselves.
//!
//! Stored as JSON in a record of `sps_base::durable`. The schema only grows; fields of a newer firmware are kept and
//! written back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sps_base::slot::SlotId;

use super::layout::{Extent, Part};
use super::manifest::Sha256Hex;

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
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
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
