//! The superblock: 128 bytes and more at byte 1024 (kernel, `Documentation/filesystems/erofs.rst`).

use super::error::ErofsError;
use super::source::{Image, ReadAt, le16, le32, le64};

/// Where it starts.
pub(super) const OFFSET: u64 = 1024;
const SIZE: u64 = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

/// Zero padding, compression configurations and big clusters, chunked files, second algorithm, tail packing,
/// fragments and deduplication.
const SUPPORTED: u32 = 0x3f;
const COMPR_CFGS: u32 = 0x02;
const FRAGMENTS: u32 = 0x20;
/// Bits with a name that are refused.
const REFUSED: [(u32, &str); 3] =
    [(0x40, "long xattr prefixes"), (0x80, "48-bit layout"), (0x100, "metadata box")];

/// What the walk needs of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    /// Log2 of the block size.
    pub(super) block_bits: u32,
    /// Number of the root directory's inode.
    pub(super) root: u64,
    /// Byte that inode numbers count from.
    pub(super) inodes: u64,
    /// Byte that shared xattr ids count from.
    pub(super) xattrs: u64,
    /// Number of the packed inode, that holds the fragments.
    pub(super) packed: Option<u64>,
    /// Byte after the superblock with its extension slots and compression configurations.
    pub(super) end: u64,
}

impl Superblock {
    pub(super) fn read(image: &Image<'_, impl ReadAt>) -> Result<Self, ErofsError> {
        let bytes = image.read("the superblock", OFFSET, SIZE)?;
        let magic = le32(&bytes, 0);
        if magic != MAGIC {
            return Err(ErofsError::Magic { found: magic });
        }
        let features = le32(&bytes, 80);
        check_features(features)?;
        let block_bits = u32::from(bytes.get(12).copied().unwrap_or(0));
        if !(9..=16).contains(&block_bits) {
            return Err(unsupported("a block size (log2) outside 9..=16", u64::from(block_bits)));
        }
        if le16(&bytes, 86) != 0 {
            return Err(unsupported("extra devices", u64::from(le16(&bytes, 86))));
        }
        let dir_bits = bytes.get(90).copied().unwrap_or(0);
        if dir_bits != 0 {
            return Err(unsupported("directory blocks larger than a block", u64::from(dir_bits)));
        }
        let slots = u64::from(bytes.get(13).copied().unwrap_or(0));
        let mut end = OFFSET + SIZE + 16 * slots;
        if features & COMPR_CFGS != 0 {
            end = after_configurations(image, end, le16(&bytes, 84))?;
        }
        let packed = le64(&bytes, 96);
        Ok(Self {
            block_bits,
            root: u64::from(le16(&bytes, 14)),
            inodes: u64::from(le32(&bytes, 40)) << block_bits,
            xattrs: u64::from(le32(&bytes, 44)) << block_bits,
            packed: (features & FRAGMENTS != 0 && packed != 0).then_some(packed),
            end,
        })
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u64 {
        1 << self.block_bits
    }

    /// Byte offset of an inode.
    pub(super) fn inode(&self, nid: u64) -> Option<u64> {
        nid.checked_mul(32)?.checked_add(self.inodes)
    }
}

fn unsupported(what: &'static str, found: u64) -> ErofsError {
    ErofsError::Unsupported { nid: 0, what, found }
}

fn check_features(features: u32) -> Result<(), ErofsError> {
    let bits = features & !SUPPORTED;
    if bits == 0 {
        return Ok(());
    }
    let known = REFUSED.iter().filter(|(bit, _)| bits & bit != 0);
    let mut names: Vec<&str> = known.clone().map(|(_, name)| *name).collect();
    if known.fold(bits, |rest, (bit, _)| rest & !bit) != 0 {
        names.push("unknown");
    }
    Err(ErofsError::Features { bits, names: names.join(", ") })
}

/// One length-prefixed record, 4-byte aligned, for each algorithm in use.
fn after_configurations(
    image: &Image<'_, impl ReadAt>,
    mut end: u64,
    algorithms: u16,
) -> Result<u64, ErofsError> {
    for _ in 0..algorithms.count_ones() {
        let start = end.next_multiple_of(4);
        let size = u64::from(le16(&image.read("a compression configuration", start, 2)?, 0));
        end = start + 2 + if size == 0 { 65536 } else { size };
    }
    image.check("the superblock", OFFSET, end - OFFSET)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_features_are_named() {
        assert!(check_features(0x3f).is_ok());
        let error = check_features(0x8000_00a3).unwrap_err();
        let ErofsError::Features { bits, names } = error else { panic!("{error}") };
        assert_eq!((bits, names.as_str()), (0x8000_0080, "48-bit layout, unknown"));
    }
}
