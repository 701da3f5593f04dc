//! A medium in memory that fails when it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::device::medium::{Medium, MediumError};
use crate::device::probe::Readback;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// This write fails, counted from 0.
    pub write: Option<usize>,
    /// The failing write leaves so many bytes of its data behind.
    pub torn: usize,
    /// This flush fails, counted from 0.
    pub flush: Option<usize>,
    /// Reads that touch one of these bytes fail.
    pub unreadable: BTreeSet<u64>,
    /// Bytes that come back with a bit flipped, whatever was written.
    pub flipped: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// 4 KiB blocks that are not zero.
    blocks: BTreeMap<u64, Vec<u8>>,
    faults: Faults,
    writes: usize,
    flushes: usize,
}

/// Sparse bytes in memory.
#[derive(Debug)]
pub(super) struct MemoryMedium {
    size: u64,
    inner: Mutex<Inner>,
}

impl MemoryMedium {
    pub(super) fn new(size: u64) -> Self {
        Self { size, inner: Mutex::default() }
    }

    /// What goes wrong from now on; writes and flushes are counted from here.
    pub(super) fn fail(&self, faults: Faults) {
        let mut inner = self.inner.lock().unwrap();
        (inner.writes, inner.flushes) = (0, 0);
        inner.faults = faults;
    }

    /// Writes since the last [`MemoryMedium::fail`].
    pub(super) fn writes(&self) -> usize {
        self.inner.lock().unwrap().writes
    }

    fn error(operation: &'static str, offset: u64, length: usize) -> MediumError {
        let source = io::Error::from_raw_os_error(nix::libc::EIO);
        MediumError { path: PathBuf::from("memory"), operation, offset, length: length as u64, source }
    }
}

impl Medium for MemoryMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        let inner = self.inner.lock().unwrap();
        let end = offset + buf.len() as u64;
        if end > self.size || inner.faults.unreadable.range(offset..end).next().is_some() {
            return Err(Self::error("read", offset, buf.len()));
        }
        buf.fill(0);
        for (number, block) in inner.blocks.range(offset / 4096..end.div_ceil(4096)) {
            let (from, to) = ((number * 4096).max(offset), (number * 4096 + 4096).min(end));
            let at = |byte: u64| usize::try_from(byte).unwrap();
            buf[at(from - offset)..at(to - offset)]
                .copy_from_slice(&block[at(from - number * 4096)..at(to - number * 4096)]);
        }
        for byte in inner.faults.flipped.range(offset..end) {
            buf[usize::try_from(byte - offset).unwrap()] ^= 1;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        assert!(offset.is_multiple_of(4096) && data.len().is_multiple_of(4096), "whole blocks only");
        assert!(offset + data.len() as u64 <= self.size, "write past the end");
        let mut inner = self.inner.lock().unwrap();
        inner.writes += 1;
        let fails = inner.faults.write == Some(inner.writes - 1);
        let kept = if fails { inner.faults.torn } else { data.len() };
        for (number, bytes) in (offset / 4096..).zip(data[..kept].chunks(4096)) {
            let block = inner.blocks.entry(number).or_insert_with(|| vec![0; 4096]);
            block[..bytes.len()].copy_from_slice(bytes);
            if block.iter().all(|b| *b == 0) {
                inner.blocks.remove(&number);
            }
        }
        if fails { Err(Self::error("write", offset, data.len())) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), MediumError> {
        let mut inner = self.inner.lock().unwrap();
        inner.flushes += 1;
        if inner.faults.flush == Some(inner.flushes - 1) { Err(Self::error("flush", 0, 0)) } else { Ok(()) }
    }

    fn readback(&self) -> Readback {
        Readback::Direct
    }
}
