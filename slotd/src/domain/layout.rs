//! Where each part of a firmware lies in a slot. Computed from the manifest alone, so it needs no trust of its own.

use serde::{Deserialize, Serialize};

use super::manifest::{BLOCK, MANIFEST_NAME, Manifest, SIGNATURE_NAME};

/// A part of a slot, in the order in which the slot holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `root.erofs`.
    Root,
    /// `root.verity`.
    Verity,
    /// `manifest.json`.
    Manifest,
    /// `manifest.p7s`.
    Signature,
    /// `notes.md`.
    Notes,
    /// `news.md`.
    News,
    /// `files.ndjson.zst`.
    FileList,
    /// `boot.efi`.
    Boot,
    /// `recovery.efi`.
    Recovery,
}

impl Part {
    /// Every part, in slot order.
    pub const ALL: [Self; 9] = [
        Self::Root,
        Self::Verity,
        Self::Manifest,
        Self::Signature,
        Self::Notes,
        Self::News,
        Self::FileList,
        Self::Boot,
        Self::Recovery,
    ];

    /// Its file name on the ISO.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root.erofs",
            Self::Verity => "root.verity",
            Self::Manifest => MANIFEST_NAME,
            Self::Signature => SIGNATURE_NAME,
            Self::Notes => "notes.md",
            Self::News => "news.md",
            Self::FileList => "files.ndjson.zst",
            Self::Boot => "boot.efi",
            Self::Recovery => "recovery.efi",
        }
    }

    /// The part with this file name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// Its number in the trailer.
    pub fn code(self) -> u32 {
        match self {
            Self::Root => 1,
            Self::Verity => 2,
            Self::Manifest => 3,
            Self::Signature => 4,
            Self::Notes => 5,
            Self::News => 6,
            Self::FileList => 7,
            Self::Boot => 8,
            Self::Recovery => 9,
        }
    }

    /// The part with this number.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.code() == code)
    }
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Extent {
    /// First byte after it; saturates, so that a hostile value stays out of range instead of wrapping into it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

/// Places of all parts of one firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    parts: Vec<(Part, Extent)>,
}

impl Layout {
    /// The layout of this firmware, whose manifest and signature have these lengths. Every part begins on a 4 KiB
    /// boundary; the file system comes first, so that `veritysetup verify DEV DEV HASH --hash-offset=N` works.
    pub fn of(manifest: &Manifest, manifest_len: u64, signature_len: u64) -> Self {
        let mut at = 0_u64;
        let mut parts = Vec::new();
        for part in Part::ALL {
            let size = match part {
                Part::Root => Some(manifest.root.size),
                Part::Manifest => Some(manifest_len),
                Part::Signature => Some(signature_len),
                _ => manifest.file(part.name()).map(|file| file.size),
            };
            if let Some(size) = size {
                parts.push((part, Extent { offset: at, size }));
                at = at.saturating_add(padded(size));
            }
        }
        Self { parts }
    }

    /// Every part with its place.
    pub fn parts(&self) -> &[(Part, Extent)] {
        &self.parts
    }

    /// The place of a part, if the firmware has it.
    pub fn get(&self, part: Part) -> Option<Extent> {
        self.parts.iter().find(|(p, _)| *p == part).map(|(_, extent)| *extent)
    }

    /// Bytes that a slot needs for it, trailer included.
    pub fn needed(&self) -> u64 {
        self.parts
            .last()
            .map_or(0, |(_, extent)| extent.offset.saturating_add(padded(extent.size)))
            .saturating_add(BLOCK)
    }
}

/// `size` rounded up to whole blocks.
pub fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}
