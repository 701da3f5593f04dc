//! The trailer: the last 4 KiB of a slot. With it a slot describes itself; nothing else says what is in it.
//!
//! Layout, little endian: magic (8) · format u32 · entry count u32 · sequence u64 · installed-at u64 (Unix seconds) ·
//! manifest SHA-256 (32) · entries of 24 bytes {part u32, zero u32, offset u64, size u64} · zeros · SHA-256 over all
//! that precedes it, in the last 32 bytes.

use sha2::{Digest, Sha256};

use super::layout::{Extent, Part};
use super::manifest::Sha256Hex;
use super::verity::BLOCK_LEN;

const MAGIC: [u8; 8] = *b"SPSSLOT1";
const FORMAT: u32 = 1;
const HEAD: usize = 64;
const ENTRY: usize = 24;
const SUM: usize = BLOCK_LEN - 32;

/// What a slot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Rises with each install on this appliance.
    pub sequence: u64,
    /// When the install ended, Unix seconds.
    pub installed_at: u64,
    /// SHA-256 of the manifest.
    pub manifest: Sha256Hex,
    /// Where each part lies.
    pub parts: Vec<(Part, Extent)>,
}

/// What the last block of a slot turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros.
    Absent,
    /// Valid.
    Valid(Trailer),
    /// Neither.
    Torn(&'static str),
}

/// The block that stores `trailer`.
pub fn render(trailer: &Trailer) -> [u8; BLOCK_LEN] {
    let mut bytes = Vec::with_capacity(BLOCK_LEN);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(trailer.parts.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&trailer.sequence.to_le_bytes());
    bytes.extend_from_slice(&trailer.installed_at.to_le_bytes());
    bytes.extend_from_slice(&trailer.manifest.0);
    for (part, extent) in &trailer.parts {
        bytes.extend_from_slice(&part.code().to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&extent.offset.to_le_bytes());
        bytes.extend_from_slice(&extent.size.to_le_bytes());
    }
    bytes.resize(SUM, 0);
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend_from_slice(&sum);
    let mut block = [0; BLOCK_LEN];
    block.copy_from_slice(&bytes);
    block
}

/// What `block` holds.
pub fn parse(block: &[u8; BLOCK_LEN]) -> Found {
    if block.iter().all(|b| *b == 0) {
        return Found::Absent;
    }
    if !block.starts_with(&MAGIC) {
        return Found::Torn("its last block is neither zero nor a trailer");
    }
    let (summed, sum) = block.split_at(SUM);
    if Sha256::digest(summed).as_slice() != sum {
        return Found::Torn("its trailer does not match its own checksum");
    }
    if u32_at(block, 8) != FORMAT {
        return Found::Torn("its trailer has a format that this version does not know");
    }
    let count = u32_at(block, 12) as usize;
    if HEAD + count.saturating_mul(ENTRY) > SUM {
        return Found::Torn("its trailer lists more parts than it has room for");
    }
    let mut parts = Vec::with_capacity(count);
    for at in (0..count).map(|i| HEAD + i * ENTRY) {
        let Some(part) = Part::from_code(u32_at(block, at)) else {
            return Found::Torn("its trailer lists a part that this version does not know");
        };
        parts.push((part, Extent { offset: u64_at(block, at + 8), size: u64_at(block, at + 16) }));
    }
    let mut manifest = [0; 32];
    manifest.copy_from_slice(&block[32..64]);
    Found::Valid(Trailer {
        sequence: u64_at(block, 16),
        installed_at: u64_at(block, 24),
        manifest: Sha256Hex(manifest),
        parts,
    })
}

fn u32_at(block: &[u8; BLOCK_LEN], at: usize) -> u32 {
    block.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(block: &[u8; BLOCK_LEN], at: usize) -> u64 {
    block.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
