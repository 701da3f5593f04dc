//! Inodes, 32 bytes (compact) or 64 bytes (extended), and the extended attributes that follow them.

use slotd::domain::file_list::Kind;

use super::error::{ErofsError, Fault};
use super::source::{Image, ReadAt, le16, le32, le64};
use super::superblock::Superblock;

const FORMAT: u64 = 0x000f;
const CHUNK_BITS: u32 = 0x1f;
const CHUNK_INDEXES: u32 = 0x20;

/// How the content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks, one after the other.
    Plain,
    /// As `Plain`, with the last, partial block behind the inode.
    Inline,
    /// Compressed, 8 bytes of index for a logical cluster.
    Full,
    /// Compressed, 2 or 4 bytes of index for a logical cluster.
    Compact,
    /// Chunks of the same size, each with its own address.
    Chunks {
        /// Log2 of the chunk's blocks.
        bits: u32,
        /// 8-byte indexes instead of 4-byte addresses.
        indexes: bool,
    },
}

/// One inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) nid: u64,
    /// Byte offset in the image.
    pub(super) at: u64,
    /// Byte after the inode and its extended attributes.
    pub(super) body: u64,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) layout: Layout,
    /// First block, or device number.
    pub(super) address: u32,
    /// Bytes of extended attributes.
    pub(super) xattrs: u64,
}

impl Inode {
    pub(super) fn read(
        image: &Image<'_, impl ReadAt>,
        superblock: &Superblock,
        nid: u64,
    ) -> Result<Self, ErofsError> {
        let at = superblock.inode(nid).ok_or(Fault::Corrupt("its number is too large", nid).of(nid))?;
        let mut bytes = image.read("an inode", at, 32)?;
        let extended = le16(&bytes, 0) & 1 != 0;
        if extended {
            bytes.extend(image.read("an extended inode", at + 32, 32)?);
        }
        let inode = Self::parse(&bytes, nid, at).map_err(|fault| fault.of(nid))?;
        image.check("an inode", at, inode.body - at)?;
        Ok(inode)
    }

    fn parse(bytes: &[u8], nid: u64, at: u64) -> Result<Self, Fault> {
        let format = u64::from(le16(bytes, 0));
        if format & !FORMAT != 0 {
            return Err(Fault::Unsupported("inode format bits", format));
        }
        let extended = format & 1 != 0;
        let mode = u32::from(le16(bytes, 4));
        let address = le32(bytes, 16);
        let count = u64::from(le16(bytes, 2));
        // 12 bytes of header; the count takes that for one unit of 4 bytes.
        let xattrs = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let (size, uid, gid) = if extended {
            (le64(bytes, 8), le32(bytes, 24), le32(bytes, 28))
        } else {
            (u64::from(le32(bytes, 8)), u32::from(le16(bytes, 24)), u32::from(le16(bytes, 26)))
        };
        Ok(Self {
            nid,
            at,
            body: at + if extended { 64 } else { 32 } + xattrs,
            kind: kind(mode)?,
            mode: mode & 0o7777,
            uid,
            gid,
            size,
            layout: layout(format >> 1, address)?,
            address,
            xattrs,
        })
    }

    /// Major and minor number of a device node.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        matches!(self.kind, Kind::Char | Kind::Block)
            .then_some((self.address >> 8 & 0xfff, self.address & 0xff | self.address >> 12 & 0xf_ff00))
    }

    /// Ids of the shared extended attributes.
    pub(super) fn shared_xattrs(&self, image: &Image<'_, impl ReadAt>) -> Result<Vec<u32>, ErofsError> {
        if self.xattrs == 0 {
            return Ok(Vec::new());
        }
        let bytes = image.read("extended attributes", self.body - self.xattrs, self.xattrs)?;
        let count = usize::from(bytes.get(4).copied().unwrap_or(0));
        let ids = bytes.get(12..12 + 4 * count);
        let ids = ids.ok_or(
            Fault::Corrupt("more shared extended attributes than it has room for", count as u64).of(self.nid),
        )?;
        Ok(ids.chunks_exact(4).map(|id| le32(id, 0)).collect())
    }
}

fn kind(mode: u32) -> Result<Kind, Fault> {
    Ok(match mode >> 12 {
        0o01 => Kind::Fifo,
        0o02 => Kind::Char,
        0o04 => Kind::Dir,
        0o06 => Kind::Block,
        0o10 => Kind::File,
        0o12 => Kind::Symlink,
        0o14 => Kind::Socket,
        _ => return Err(Fault::Corrupt("its mode has no known file type", u64::from(mode))),
    })
}

fn layout(number: u64, address: u32) -> Result<Layout, Fault> {
    Ok(match number {
        0 => Layout::Plain,
        1 => Layout::Full,
        2 => Layout::Inline,
        3 => Layout::Compact,
        4 => {
            let format = address & 0xffff;
            if format & !(CHUNK_BITS | CHUNK_INDEXES) != 0 {
                return Err(Fault::Unsupported("chunk format bits", u64::from(format)));
            }
            Layout::Chunks { bits: format & CHUNK_BITS, indexes: format & CHUNK_INDEXES != 0 }
        }
        _ => return Err(Fault::Unsupported("a data layout", number)),
    })
}
