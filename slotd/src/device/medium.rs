//! A medium: bytes at offsets, with a flush. Slots and the state partition are media.
//!
//! The trait is small so that a recorder can stand in front of a real one and log every write and flush in order.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::buffer::{Buffer, is_aligned};
use super::probe::{self, Readback};
use crate::domain::manifest::BLOCK;

/// Bytes at offsets. All offsets and lengths are bytes. Every call blocks until the device answers.
pub trait Medium: Send + Sync + fmt::Debug {
    /// Capacity.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`. What was written before is read back from the device where [`Medium::readback`]
    /// says `Direct`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError>;
    /// Writes whole 4 KiB blocks at a 4 KiB boundary.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError>;
    /// Returns when everything written before it is on stable storage.
    fn flush(&self) -> Result<(), MediumError>;
    /// What reading back proves.
    fn readback(&self) -> Readback;
}

/// A device that failed, or was asked for what it does not have.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot {operation} {length} bytes at byte {offset}: {source}", path = path.display())]
pub struct MediumError {
    /// Device or file.
    pub path: PathBuf,
    /// `open`, `read`, `write` or `flush`.
    pub operation: &'static str,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u64,
    /// What the kernel said. It stands in the message because nothing else would carry it to the operator.
    pub source: io::Error,
}

/// A block device or a file of fixed length, opened for direct I/O where that works.
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    file: File,
    size: u64,
    direct: bool,
    readback: Readback,
}

impl FileMedium {
    /// Opens `path` for reading and writing. It must exist: slotd makes no devices.
    pub fn open(path: &Path) -> Result<Self, MediumError> {
        let fail =
            |source| MediumError { path: path.to_owned(), operation: "open", offset: 0, length: 0, source };
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_DIRECT | nix::libc::O_CLOEXEC)
            .open(path);
        let (file, direct) = match direct {
            Ok(file) => (file, true),
            Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {
                (OpenOptions::new().read(true).write(true).open(path).map_err(fail)?, false)
            }
            Err(e) => return Err(fail(e)),
        };
        let kind = file.metadata().map_err(fail)?;
        if !(kind.is_file() || kind.file_type().is_block_device()) {
            return Err(fail(io::Error::other("neither a block device nor a regular file")));
        }
        let size = probe::size(&file).map_err(fail)?;
        let readback = probe::readback(&file, direct);
        Ok(Self { path: path.to_owned(), file, size: size / BLOCK * BLOCK, direct, readback })
    }

    fn fail(
        &self,
        operation: &'static str,
        offset: u64,
        length: usize,
    ) -> impl FnOnce(io::Error) -> MediumError {
        let path = self.path.clone();
        move |source| MediumError { path, operation, offset, length: length as u64, source }
    }

    fn read_aligned(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            // Drop what the page cache holds, so that the device is asked (only a hint; the probe says "cached").
            let (at, len) = (i64::try_from(offset), i64::try_from(buf.len()));
            if let (Ok(at), Ok(len)) = (at, len) {
                let _ = posix_fadvise(self.file.as_fd(), at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            }
        }
        self.file.read_exact_at(buf, offset)
    }
}

impl Medium for FileMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        let fail = self.fail("read", offset, buf.len());
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else { return Err(fail(io::ErrorKind::UnexpectedEof.into())) };
        if is_aligned(buf) && offset.is_multiple_of(BLOCK) {
            return self.read_aligned(offset, buf).map_err(fail);
        }
        let start = offset / BLOCK * BLOCK;
        let span = usize::try_from(end.next_multiple_of(BLOCK) - start).unwrap_or(usize::MAX);
        let mut bounce = Buffer::new(span);
        self.read_aligned(start, &mut bounce).map_err(fail)?;
        let skip = usize::try_from(offset - start).unwrap_or(0);
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        let fail = self.fail("write", offset, data.len());
        let whole = offset.is_multiple_of(BLOCK) && (data.len() as u64).is_multiple_of(BLOCK);
        let inside = offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.size);
        if !(whole && inside) {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        if is_aligned(data) {
            return self.file.write_all_at(data, offset).map_err(fail);
        }
        let mut bounce = Buffer::new(data.len());
        bounce.copy_from_slice(data);
        self.file.write_all_at(&bounce, offset).map_err(fail)
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.file.sync_data().map_err(self.fail("flush", 0, 0))
    }

    fn readback(&self) -> Readback {
        self.readback
    }
}
