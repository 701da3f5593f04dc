//! The parts of a slot other than the root image: proven piece by piece, written, read back.

use sha2::{Digest, Sha256};

use super::blocks::to_usize;
use super::error::StoreError;
use super::types::Progress;
use crate::device::buffer::Buffer;
use crate::device::medium::Medium;
use crate::device::source::Source;
use crate::domain::layout::{Extent, Part, padded};
use crate::domain::manifest::{BLOCK, File, PIECE, Sha256Hex};
use crate::domain::verity::{BLOCK_LEN, Tree};

/// SHA-256 of bytes in memory.
pub(super) fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex(Sha256::digest(bytes).into())
}

/// The signed digests of a file, piece by piece: offset in the file, length, digest.
fn pieces(file: &File) -> impl Iterator<Item = (u64, usize, Sha256Hex)> + '_ {
    let whole = std::slice::from_ref(&file.sha256);
    let digests = if file.pieces.is_empty() { whole } else { &file.pieces };
    digests.iter().zip(0..).map(|(digest, number)| {
        let at = number * PIECE;
        (at, to_usize(PIECE.min(file.size.saturating_sub(at))), *digest)
    })
}

/// Writes bytes that were proven before, padded with zeros to whole blocks.
pub(super) fn write(medium: &dyn Medium, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let mut buffer = Buffer::new(to_usize(padded(bytes.len() as u64)));
    if let Some(place) = buffer.get_mut(..bytes.len()) {
        place.copy_from_slice(bytes);
    }
    Ok(medium.write_at(at, &buffer)?)
}

/// Receives a file of the ISO, which lies at `from` there, into its place in the slot.
pub(super) fn receive(
    source: &mut Source<'_>,
    from: Extent,
    part: Part,
    file: &File,
    medium: &dyn Medium,
    to: Extent,
    progress: &Progress,
) -> Result<(), StoreError> {
    let mut buffer = Buffer::new(to_usize(PIECE.min(padded(file.size))));
    source.skip_to(from.offset, &mut buffer)?;
    let mut whole = Sha256::new();
    for (at, len, expected) in pieces(file) {
        source.read(&mut buffer[..len])?;
        let found = sha256(&buffer[..len]);
        if found != expected {
            return Err(StoreError::Content { file: part.name(), at, expected, found });
        }
        whole.update(&buffer[..len]);
        let end = to_usize(padded(len as u64));
        buffer[len..end].fill(0);
        medium.write_at(to.offset + at, &buffer[..end])?;
        progress.advance(len as u64);
    }
    let found = Sha256Hex(whole.finalize().into());
    if found != file.sha256 {
        // The signed pieces match but the signed whole does not: the builder contradicts itself.
        return Err(StoreError::Content { file: part.name(), at: 0, expected: file.sha256, found });
    }
    medium.flush()?;
    prove(medium, part, file, to)
}

/// Reads a part of the slot and proves it.
pub(super) fn prove(medium: &dyn Medium, part: Part, file: &File, place: Extent) -> Result<(), StoreError> {
    let mut buffer = Buffer::new(to_usize(PIECE.min(padded(file.size))));
    for (at, len, expected) in pieces(file) {
        let span = to_usize(padded(len as u64));
        medium.read_at(place.offset + at, &mut buffer[..span])?;
        let found = sha256(&buffer[..len]);
        if found != expected {
            return Err(StoreError::ReadBack { file: part.name(), at, expected, found });
        }
    }
    Ok(())
}

/// A part of the slot, read into memory and proven. Only for parts whose size the manifest bounds.
pub(super) fn read(
    medium: &dyn Medium,
    part: Part,
    file: &File,
    place: Extent,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; to_usize(file.size)];
    medium.read_at(place.offset, &mut bytes)?;
    let found = sha256(&bytes);
    if found != file.sha256 {
        return Err(StoreError::ReadBack { file: part.name(), at: 0, expected: file.sha256, found });
    }
    Ok(bytes)
}

/// Proves the upper levels of a tree from `head`: the superblock and all levels above the lowest, as they lie in
/// `root.verity`. A superblock lies outside the root hash, so it must equal `superblock` byte for byte.
pub(super) fn prove_tree_head(
    tree: &mut Tree,
    head: &[u8],
    superblock: &[u8; BLOCK_LEN],
) -> Result<(), StoreError> {
    let mut blocks = head.chunks_exact(BLOCK_LEN);
    let found = blocks.next().unwrap_or_default();
    if found != superblock {
        return Err(StoreError::Content {
            file: Part::Verity.name(),
            at: 0,
            expected: sha256(superblock),
            found: sha256(found),
        });
    }
    for (block, number) in blocks.zip(1..) {
        tree.prove_upper(block).map_err(|source| StoreError::Tree { at: number * BLOCK, source })?;
    }
    Ok(())
}

/// Length of what [`prove_tree_head`] takes, in bytes.
pub(super) fn tree_head_len(tree: &Tree) -> u64 {
    (1 + tree.upper_blocks()) * BLOCK
}

/// Receives the lowest level of the tree, proving each block before it is written, and reads it back.
pub(super) fn receive_leaf_hashes(
    source: &mut Source<'_>,
    from: Extent,
    tree: &Tree,
    medium: &dyn Medium,
    tree_at: u64,
    progress: &Progress,
) -> Result<(), StoreError> {
    let Some(level) = tree.geometry().levels.first().copied() else { return Ok(()) };
    let mut buffer = Buffer::new(to_usize(PIECE.min(level.blocks * BLOCK)));
    source.skip_to(from.offset + level.start * BLOCK, &mut buffer)?;
    let mut index = 0;
    while index < level.blocks {
        let blocks = (PIECE / BLOCK).min(level.blocks - index);
        let len = to_usize(blocks * BLOCK);
        source.read(&mut buffer[..len])?;
        for (number, block) in (index..).zip(buffer[..len].chunks_exact(BLOCK_LEN)) {
            let at = (level.start + number) * BLOCK;
            tree.prove_leaf_hashes(number, block).map_err(|source| StoreError::Tree { at, source })?;
        }
        medium.write_at(tree_at + (level.start + index) * BLOCK, &buffer[..len])?;
        progress.advance(len as u64);
        index += blocks;
    }
    medium.flush()?;
    prove_leaf_hashes(tree, medium, tree_at)
}

/// Reads the lowest level of the tree from the slot and proves it; the first bad block, or what the medium said, if not.
pub(super) fn prove_leaf_hashes(tree: &Tree, medium: &dyn Medium, tree_at: u64) -> Result<(), StoreError> {
    let Some(level) = tree.geometry().levels.first().copied() else { return Ok(()) };
    let mut buffer = Buffer::new(to_usize(PIECE.min(level.blocks * BLOCK)));
    let mut index = 0;
    while index < level.blocks {
        let blocks = (PIECE / BLOCK).min(level.blocks - index);
        let len = to_usize(blocks * BLOCK);
        medium.read_at(tree_at + (level.start + index) * BLOCK, &mut buffer[..len])?;
        for (number, block) in (index..).zip(buffer[..len].chunks_exact(BLOCK_LEN)) {
            tree.prove_leaf_hashes(number, block).map_err(|bad| StoreError::ReadBack {
                file: Part::Verity.name(),
                at: (level.start + number) * BLOCK,
                expected: Sha256Hex(bad.expected),
                found: Sha256Hex(bad.found),
            })?;
        }
        index += blocks;
    }
    Ok(())
}
