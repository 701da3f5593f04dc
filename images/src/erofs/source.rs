//! Bounded reading of an image.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::ErofsError;

/// Something that can be read at an offset.
pub trait ReadAt {
    /// Fills `buf` from byte `offset`, or fails.
    ///
    /// # Errors
    /// Whatever the system says, `UnexpectedEof` when there are too few bytes.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Bytes that the result may take, roughly.
const HELD: u64 = 2 << 30;

/// An image with the limits of one walk: what is read is charged, so that structures that point at each other
/// many times end the walk early instead of making it long.
pub(super) struct Image<'a, R: ReadAt> {
    source: &'a R,
    /// Length in bytes.
    pub(super) len: u64,
    work: u64,
    work_left: Cell<u64>,
    held_left: Cell<u64>,
}

impl<'a, R: ReadAt> Image<'a, R> {
    /// A valid image has each byte of its metadata read about twice; eight times its whole length is ample.
    pub(super) fn new(source: &'a R, len: u64) -> Self {
        let work = len.saturating_mul(8);
        Self { source, len, work, work_left: Cell::new(work), held_left: Cell::new(HELD) }
    }

    /// Checks that a range lies within the image.
    pub(super) fn check(&self, what: &'static str, offset: u64, len: u64) -> Result<(), ErofsError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(ErofsError::Outside { what, offset, len, image: self.len }),
        }
    }

    /// Reads a range that must lie within the image; callers bound `len`.
    pub(super) fn read(&self, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>, ErofsError> {
        self.check(what, offset, len)?;
        self.work(len)?;
        let size = usize::try_from(len).map_err(|_| ErofsError::Limit { what, limit: usize::MAX as u64 })?;
        let mut bytes = vec![0; size];
        self.source.read_exact_at(&mut bytes, offset).map_err(|source| ErofsError::Read {
            offset,
            len,
            source,
        })?;
        Ok(bytes)
    }

    /// Charges work, in bytes looked at.
    pub(super) fn work(&self, bytes: u64) -> Result<(), ErofsError> {
        let left = self.work_left.get().checked_sub(bytes);
        self.work_left.set(left.ok_or(ErofsError::Limit {
            what: "bytes of metadata to read (does it point in circles?)",
            limit: self.work,
        })?);
        Ok(())
    }

    /// Charges memory that stays.
    pub(super) fn hold(&self, bytes: u64) -> Result<(), ErofsError> {
        let left = self.held_left.get().checked_sub(bytes);
        self.held_left
            .set(left.ok_or(ErofsError::Limit { what: "bytes of names and extents", limit: HELD })?);
        Ok(())
    }
}

/// Little-endian number at `at`, 0 past the end: callers hand in whole structures.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    array(bytes, at).map_or(0, u16::from_le_bytes)
}

/// As [`le16`], 32 bits.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map_or(0, u32::from_le_bytes)
}

/// As [`le16`], 64 bits.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
