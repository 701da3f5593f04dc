//! The log that QEMU's `blklogwrites` writes (`block/blklogwrites.c`); it is that of Linux's dm-log-writes
//! (`Documentation/admin-guide/device-mapper/log-writes.rst`, `drivers/md/dm-log-writes.c`).

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
/// The write itself is durable when it has ended.
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Sizes of a sector of the log: what dm-log-writes and QEMU allow.
const SECTORS: std::ops::RangeInclusive<usize> = 512..=4096;
/// The longest write that is believed, in bytes.
const LONGEST: usize = 1 << 30;

/// What the guest did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It wrote.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// It had everything before this made durable.
    Flush,
}

/// A log that is read from its start.
#[derive(Debug)]
pub(super) struct Log {
    file: BufReader<File>,
    sector: usize,
    left: u64,
    /// A write that was durable by itself is followed by a flush.
    flush: bool,
}

fn number(bytes: &[u8], at: usize) -> anyhow::Result<u64> {
    let number =
        bytes.get(at..).and_then(|bytes| bytes.first_chunk::<8>()).context("the log is cut short")?;
    Ok(u64::from_le_bytes(*number))
}

impl Log {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut log =
            Self { file: BufReader::with_capacity(1 << 20, file), sector: 512, left: 0, flush: false };
        let head = log.sector()?;
        ensure!(
            number(&head, 0)? == MAGIC && number(&head, 8)? == VERSION,
            "{}: no log of writes",
            path.display()
        );
        let sector = u32::try_from(number(&head, 24)? & u64::from(u32::MAX))? as usize;
        ensure!(SECTORS.contains(&sector) && sector.is_power_of_two(), "sectors of {sector} bytes");
        log.file.seek_relative(i64::try_from(sector)? - 512)?;
        (log.left, log.sector) = (number(&head, 16)?, sector);
        Ok(log)
    }

    fn sector(&mut self) -> anyhow::Result<Vec<u8>> {
        self.bytes(self.sector)
    }

    fn bytes(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact(&mut bytes).context("the log is cut short")?;
        Ok(bytes)
    }

    /// What comes next; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Entry>> {
        if std::mem::take(&mut self.flush) {
            return Ok(Some(Entry::Flush));
        }
        while self.left > 0 {
            self.left -= 1;
            let head = self.sector()?;
            let (sector, count, flags) = (number(&head, 0)?, number(&head, 8)?, number(&head, 16)?);
            // The last entry may be under way when the power goes.
            if head.iter().all(|byte| *byte == 0) {
                self.left = 0;
                break;
            }
            ensure!(flags & !(FLUSH | FUA | DISCARD | MARK) == 0, "an entry with the flags {flags:#x}");
            let len = usize::try_from(count)?.saturating_mul(self.sector);
            ensure!(len <= LONGEST, "a write of {count} sectors");
            let data = if flags & DISCARD == 0 { self.bytes(len)? } else { vec![0; len] };
            let flush = flags & (FLUSH | FUA) != 0;
            if data.is_empty() {
                if flush {
                    return Ok(Some(Entry::Flush));
                }
                continue;
            }
            self.flush = flush;
            let offset = sector.checked_mul(self.sector as u64).context("a sector past every disk")?;
            return Ok(Some(Entry::Write { offset, data }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[(u64, u64, u64)], count: u64) -> tempfile::NamedTempFile {
        let mut bytes = [MAGIC, VERSION, count, 512].map(u64::to_le_bytes).concat();
        bytes.resize(512, 0);
        for (sector, sectors, flags) in entries {
            let from = bytes.len();
            bytes.extend([*sector, *sectors, *flags, 0].map(u64::to_le_bytes).concat());
            bytes.resize(from + 512, 0);
            if flags & DISCARD == 0 {
                bytes.resize(bytes.len() + usize::try_from(*sectors).unwrap() * 512, 7);
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn read(file: &tempfile::NamedTempFile) -> anyhow::Result<Vec<Entry>> {
        let mut log = Log::open(file.path())?;
        let mut all = Vec::new();
        while let Some(entry) = log.next()? {
            all.push(entry);
        }
        Ok(all)
    }

    #[test]
    fn writes_discards_and_flushes_are_read_in_order() {
        let file = log(&[(2, 1, 0), (0, 0, FLUSH), (9, 2, DISCARD), (4, 1, FUA), (99, 1, 0)], 4);
        let write = |sector: u64, data: Vec<u8>| Entry::Write { offset: sector * 512, data };
        let expected = [
            write(2, vec![7; 512]),
            Entry::Flush,
            write(9, vec![0; 1024]),
            write(4, vec![7; 512]),
            Entry::Flush,
        ];
        assert_eq!(read(&file).unwrap(), expected);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        for (file, why) in [
            (log(&[(0, 1, 0)], 2), "the log is cut short"),
            (log(&[(0, 1 << 40, DISCARD)], 1), "a write of 1099511627776 sectors"),
            (log(&[(0, 1, 32)], 1), "an entry with the flags 0x20"),
            (tempfile::NamedTempFile::new().unwrap(), "the log is cut short"),
        ] {
            assert_eq!(format!("{}", read(&file).unwrap_err()), why);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 512]).unwrap();
        assert!(read(&file).unwrap_err().to_string().ends_with("no log of writes"));
    }
}
