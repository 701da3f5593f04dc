//! What `slotboot` tells the console page of the recovery image.

use serde::{Deserialize, Serialize};

use crate::slot::SlotId;

/// Its file in the directory that holds what others have to know of a start (`/run/sps`), as JSON.
pub const FILE: &str = "recovery.json";

/// What was found and decided before slotd runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Starts of recovery since a firmware was last healthy, this one among them; no longer counted at the limit.
    pub starts: u32,
    /// The slot that a restart starts, where recovery is to restart by itself.
    pub restarts: Option<SlotId>,
    /// Why not; empty where it is.
    pub why: String,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}
