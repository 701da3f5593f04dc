//! Where the content of an inode lies.

use slotd::domain::file_list::Kind;

use super::error::{ErofsError, Fault};
use super::inode::{Inode, Layout};
use super::lcluster::{Header, Held, Index};
use super::source::{Image, ReadAt, le32};
use super::superblock::Superblock;

/// A chunk that is a hole.
const HOLE: u32 = u32::MAX;
/// Most chunks of one file.
const MAX_CHUNKS: u64 = 1 << 24;

/// Where one piece of the content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Whole blocks of the image: offset and length in bytes.
    Blocks(u64, u64),
    /// Bytes behind the inode: offset and length in bytes.
    Inline(u64, u64),
    /// Nowhere: all zero.
    Hole,
    /// In the packed inode, from this byte.
    Fragment(u64),
}

/// All pieces of one inode's content.
#[derive(Clone, Debug)]
pub(super) struct Map {
    /// Content offset where each piece starts, and its place; in file order.
    pub(super) pieces: Vec<(u64, Place)>,
    /// Length of the content in bytes.
    pub(super) size: u64,
    /// Byte after all of the inode: attributes, index, inline tail.
    pub(super) end: u64,
}

impl Map {
    /// Finds the pieces of an inode.
    pub(super) fn read(
        image: &Image<'_, impl ReadAt>,
        superblock: &Superblock,
        inode: &Inode,
    ) -> Result<Self, ErofsError> {
        let empty = Self { pieces: Vec::new(), size: inode.size, end: inode.body };
        if !matches!(inode.kind, Kind::File | Kind::Dir | Kind::Symlink) || inode.size == 0 {
            return Ok(empty);
        }
        let map = match inode.layout {
            Layout::Plain | Layout::Inline => flat(superblock, inode),
            Layout::Full | Layout::Compact => compressed(image, superblock, inode),
            Layout::Chunks { bits, indexes } => chunks(image, superblock, inode, bits, indexes),
        }?;
        for (_, place) in &map.pieces {
            match *place {
                Place::Blocks(at, len) => image.check("content", at, len)?,
                Place::Inline(at, len) => check_inline(image, superblock, inode, at, len)?,
                Place::Hole | Place::Fragment(_) => {}
            }
        }
        image.check("an inode with what follows it", inode.at, map.end.saturating_sub(inode.at))?;
        Ok(map)
    }

    /// Pieces that hold some of `len` bytes of content from `offset`.
    pub(super) fn covering(&self, offset: u64, len: u64) -> impl Iterator<Item = Place> {
        let after = self.pieces.partition_point(|(logical, _)| *logical <= offset);
        let end = offset.saturating_add(len);
        let from = self.pieces.iter().skip(after.saturating_sub(1));
        from.take_while(move |(logical, _)| *logical < end).map(|(_, place)| *place)
    }

    /// Bytes of content of a piece.
    pub(super) fn piece_len(&self, index: usize) -> u64 {
        let start = self.pieces.get(index).map_or(self.size, |(logical, _)| *logical);
        let next = self.pieces.get(index + 1).map_or(self.size, |(logical, _)| *logical);
        next.saturating_sub(start)
    }
}

/// A tail behind the inode lies in one block.
fn check_inline(
    image: &Image<'_, impl ReadAt>,
    superblock: &Superblock,
    inode: &Inode,
    at: u64,
    len: u64,
) -> Result<(), ErofsError> {
    if at % superblock.block() + len > superblock.block() {
        return Err(Fault::Corrupt("its inline tail goes over the end of a block", len).of(inode.nid));
    }
    image.check("an inline tail", at, len)
}

fn flat(superblock: &Superblock, inode: &Inode) -> Result<Map, ErofsError> {
    let block = superblock.block();
    let blocks = inode.size.div_ceil(block) - u64::from(inode.layout == Layout::Inline);
    let mut map = Map { pieces: Vec::new(), size: inode.size, end: inode.body };
    let len = blocks.checked_mul(block);
    let len = len.ok_or(Fault::Corrupt("its size is impossible", inode.size).of(inode.nid))?;
    if len > 0 {
        map.pieces.push((0, Place::Blocks(u64::from(inode.address) << superblock.block_bits, len)));
    }
    if inode.layout == Layout::Inline {
        let tail = inode.size - len;
        map.pieces.push((len, Place::Inline(inode.body, tail)));
        map.end += tail;
    }
    Ok(map)
}

fn compressed(
    image: &Image<'_, impl ReadAt>,
    superblock: &Superblock,
    inode: &Inode,
) -> Result<Map, ErofsError> {
    let fault = |fault: Fault| fault.of(inode.nid);
    if inode.kind != Kind::File {
        let what = "compression of something that is not a regular file";
        return Err(fault(Fault::Unsupported(what, u64::from(inode.mode))));
    }
    let start = inode.body.next_multiple_of(8);
    let bytes = image.read("a compression header", start, 8)?;
    let header = bytes.try_into().map_err(|_| fault(Fault::Corrupt("a short compression header", 8)))?;
    let header = Header::parse(header).map_err(fault)?;
    if let Some(offset) = header.whole {
        return Ok(Map { pieces: vec![(0, Place::Fragment(offset))], size: inode.size, end: start + 8 });
    }
    let compact = inode.layout == Layout::Compact;
    let clusters = inode.size.div_ceil(superblock.block());
    let bits = superblock.block_bits;
    let index = Index::new(compact, start, &header, clusters, bits).map_err(fault)?;
    let bytes = image.read("a compression index", index.start, index.len)?;
    let pclusters = index.pclusters(&bytes, &header, inode.size, bits).map_err(fault)?;
    let tail_at = index.start + index.len;
    let tail_len = header.inline().unwrap_or(0);
    let place = |held| match held {
        Held::Blocks(first, count) => Place::Blocks(first << bits, count << bits),
        Held::Inline => Place::Inline(tail_at, tail_len),
        Held::Fragment(offset) => Place::Fragment(offset),
    };
    let pieces = pclusters.iter().map(|pcluster| (pcluster.logical, place(pcluster.held))).collect();
    Ok(Map { pieces, size: inode.size, end: tail_at + tail_len })
}

fn chunks(
    image: &Image<'_, impl ReadAt>,
    superblock: &Superblock,
    inode: &Inode,
    bits: u32,
    indexes: bool,
) -> Result<Map, ErofsError> {
    let fault = |fault: Fault| fault.of(inode.nid);
    let unit: u8 = if indexes { 8 } else { 4 };
    let size = 1_u64 << (superblock.block_bits + bits);
    let count = inode.size.div_ceil(size);
    if count > MAX_CHUNKS {
        return Err(fault(Fault::Limit("chunks in a file", MAX_CHUNKS)));
    }
    let start = inode.body.next_multiple_of(u64::from(unit));
    let bytes = image.read("a chunk map", start, count * u64::from(unit))?;
    let mut map = Map { pieces: Vec::new(), size: inode.size, end: start + count * u64::from(unit) };
    for (entry, chunk) in bytes.chunks_exact(usize::from(unit)).zip(0_u64..) {
        let logical = chunk * size;
        let (device, block) =
            if indexes { (le32(entry, 0) >> 16, le32(entry, 4)) } else { (0, le32(entry, 0)) };
        if device != 0 {
            return Err(fault(Fault::Unsupported("an extra device", u64::from(device))));
        }
        let rest = (inode.size - logical).min(size).next_multiple_of(superblock.block());
        let place = match block {
            HOLE => Place::Hole,
            block => Place::Blocks(u64::from(block) << superblock.block_bits, rest),
        };
        map.pieces.push((logical, place));
    }
    Ok(map)
}
