//! dm-verity hash trees (format version 1, SHA-256, 4 KiB blocks) as `veritysetup` writes them.
//!
//! One tree, five jobs: what is signed, verification before writing, hashing on all cores, the index of an adaptive
//! install, and the check at rest. Source: the kernel's `admin-guide/device-mapper/verity.rst` and cryptsetup's
//! on-disk format.

use sha2::{Digest, Sha256};

use super::manifest::{BLOCK, Manifest};

/// A digest of one block.
pub type Hash = [u8; 32];
/// Digests in one hash block.
pub const PER_BLOCK: u64 = BLOCK / 32;
/// [`BLOCK`] as the length of a slice.
pub const BLOCK_LEN: usize = 4096;

/// Hashes blocks with the salt in front.
#[derive(Clone, Debug)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A hasher of this salt.
    pub fn new(salt: &[u8]) -> Self {
        Self(Sha256::new_with_prefix(salt))
    }

    /// The digest of one block.
    pub fn hash(&self, block: &[u8]) -> Hash {
        self.0.clone().chain_update(block).finalize().into()
    }
}

/// One level of a tree. Level 0 holds the digests of the data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// First block, counted from the start of `root.verity` (whose block 0 is the superblock).
    pub start: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// Where everything lies in `root.verity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Data blocks covered.
    pub data_blocks: u64,
    /// Levels, lowest first; they lie in the file highest first.
    pub levels: Vec<Level>,
    /// Length of `root.verity` in blocks, superblock included.
    pub file_blocks: u64,
}

impl Geometry {
    /// The geometry of a tree over `data_blocks` blocks. One data block has no level: its digest is the root hash.
    pub fn new(data_blocks: u64) -> Self {
        let mut counts = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(PER_BLOCK);
            counts.push(below);
        }
        let mut next = 1;
        let mut levels: Vec<Level> = counts
            .iter()
            .rev()
            .map(|&blocks| {
                let level = Level { start: next, blocks };
                next += blocks;
                level
            })
            .collect();
        levels.reverse();
        Self { data_blocks, levels, file_blocks: next }
    }

    /// The level and the index within it of block `block` of `root.verity`; `None` for the superblock and past the end.
    pub fn locate(&self, block: u64) -> Option<(usize, u64)> {
        self.levels
            .iter()
            .enumerate()
            .find(|(_, level)| (level.start..level.start + level.blocks).contains(&block))
            .map(|(number, level)| (number, block - level.start))
    }
}

/// The superblock that `veritysetup format` writes for this manifest, padded to one block.
pub fn superblock(manifest: &Manifest) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    let salt = manifest.salt().unwrap_or_default();
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = block.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, b"verity\0\0");
    put(8, &1_u32.to_le_bytes());
    put(12, &1_u32.to_le_bytes());
    put(16, &manifest.uuid().unwrap_or_default());
    put(32, b"sha256");
    put(64, &manifest.root.verity.data_block.to_le_bytes());
    put(68, &manifest.root.verity.hash_block.to_le_bytes());
    put(72, &(manifest.root.size / BLOCK).to_le_bytes());
    put(80, &u16::try_from(salt.len()).unwrap_or(0).to_le_bytes());
    put(88, &salt);
    block
}

/// A tree whose upper levels are proven and held; level 0 is proven block by block as it is read.
#[derive(Debug)]
pub struct Tree {
    hasher: Hasher,
    geometry: Geometry,
    root: Hash,
    /// Digests of the levels above 0: `upper[0]` is level 1.
    upper: Vec<Vec<u8>>,
    /// Blocks of the upper levels that have been proven, counted in file order.
    proven: u64,
}

/// A hash block that does not match what is above it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hash block {index} of tree level {level} is {found}, expected {expected}", found = hex::encode(found), expected = hex::encode(expected))]
pub struct TreeError {
    /// Level, 0 = over the data.
    pub level: usize,
    /// Block within the level.
    pub index: u64,
    /// Digest that the level above (or the signed root hash) demands.
    pub expected: Hash,
    /// Digest that the block has.
    pub found: Hash,
}

impl Tree {
    /// An unproven tree of this manifest.
    pub fn new(manifest: &Manifest) -> Self {
        Self {
            hasher: Hasher::new(&manifest.salt().unwrap_or_default()),
            geometry: Geometry::new(manifest.root.size / BLOCK),
            root: manifest.root.verity.root_hash.0,
            upper: Vec::new(),
            proven: 0,
        }
    }

    /// Its geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Its hasher.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// How many blocks after the superblock [`Tree::prove_upper`] needs, in file order.
    pub fn upper_blocks(&self) -> u64 {
        self.geometry.levels.iter().skip(1).map(|level| level.blocks).sum()
    }

    /// Proves the next block of the levels above 0, in file order (top first), and keeps it.
    pub fn prove_upper(&mut self, block: &[u8]) -> Result<(), TreeError> {
        let Some((level, index)) = self.geometry.locate(1 + self.proven) else { return Ok(()) };
        self.check(level, index, block)?;
        if self.upper.is_empty() {
            self.upper = self.geometry.levels.iter().skip(1).map(|_| Vec::new()).collect();
        }
        if let Some(held) = self.upper.get_mut(level.wrapping_sub(1)) {
            held.extend_from_slice(block);
        }
        self.proven += 1;
        Ok(())
    }

    /// Proves block `index` of level 0 against level 1.
    pub fn prove_leaf_hashes(&self, index: u64, block: &[u8]) -> Result<(), TreeError> {
        self.check(0, index, block)
    }

    /// The digest demanded of the only data block of a tree without levels.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    fn check(&self, level: usize, index: u64, block: &[u8]) -> Result<(), TreeError> {
        let found = self.hasher.hash(block);
        let expected = self.expected(level, index);
        if expected == Some(found) {
            return Ok(());
        }
        Err(TreeError { level, index, expected: expected.unwrap_or_default(), found })
    }

    /// The digest that the level above demands; `None` while that level is not proven.
    fn expected(&self, level: usize, index: u64) -> Option<Hash> {
        if level + 1 == self.geometry.levels.len() {
            return Some(self.root);
        }
        let at = usize::try_from(index).ok()?.checked_mul(32)?;
        self.upper.get(level)?.get(at..at + 32)?.try_into().ok()
    }
}
