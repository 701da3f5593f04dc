//! Slot values that cross a process boundary.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a firmware slot. 0 is the recovery image; firmware slots are 1 to 9 (spec section 0, row 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SlotId(u8);

impl SlotId {
    /// The recovery image on the ESP: listed and verified, never installed to, tested or deleted.
    pub const RECOVERY: Self = Self(0);
    /// The highest slot number a layout may use.
    pub const MAX: u8 = 9;

    /// A slot number, if it is in 0..=9.
    pub fn new(id: u32) -> Option<Self> {
        u8::try_from(id).ok().filter(|id| *id <= Self::MAX).map(Self)
    }

    /// The number as D-Bus and JSON carry it.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }
}

impl TryFrom<u32> for SlotId {
    type Error = String;
    fn try_from(id: u32) -> Result<Self, String> {
        Self::new(id).ok_or_else(|| format!("slot {id} is out of range; slots are 0 to {}", Self::MAX))
    }
}

impl From<SlotId> for u32 {
    fn from(id: SlotId) -> u32 {
        id.get()
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
