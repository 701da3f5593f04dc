//! The writes of a real guest, as QEMU's `blklogwrites` recorded them, judged at every flush (`docs/reliability.md`,
//! "Replayed from a guest").
//!
//! A recording is a directory: `disk.img`, the disk as it was; `writes.log`; `keyring`, what the appliance trusts.

mod judge;
mod log;

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use judge::Judge;
use log::{Entry, Log};

/// The disk as it was.
pub const DISK: &str = "disk.img";
/// What was written to it.
pub const WRITES: &str = "writes.log";
/// What the appliance trusts.
pub const KEYRING: &str = "keyring";
/// The partitions that are judged. What is in the others is a journaling file system's to keep.
const JUDGED: [&str; 4] = ["esp", "sps-slot-1", "sps-slot-2", "sps-state"];
/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;
/// Violations that are told.
const TOLD: usize = 20;

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Writes of the guest.
    pub writes: u64,
    /// Flushes of the guest.
    pub flushes: u64,
    /// Flushes before which something was written that is judged.
    pub judged: u64,
    /// Full checks of a slot that was called verified.
    pub checks: u64,
    /// What does not hold, and after which flush; the first ones.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.violations.iter().try_for_each(|violation| writeln!(f, "violation: {violation}"))?;
        let Self { writes, flushes, judged, checks, violations } = self;
        let wrong = violations.len();
        write!(
            f,
            "{writes} writes, {flushes} flushes, {judged} judged, {checks} full checks of a slot, {wrong} violations"
        )
    }
}

/// A partition, and its content as a file.
struct Part {
    start: u64,
    size: u64,
    file: File,
    changed: bool,
    spoiled: bool,
}

impl Part {
    /// Writes what of `data`, which lies at `offset` of the disk, lies in this partition.
    fn apply(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        let (from, to) = (offset.max(self.start), end.min(self.start + self.size));
        if from >= to {
            return Ok(());
        }
        let place = |at: u64| usize::try_from(at - offset).unwrap_or(data.len());
        let mut data = data[place(from)..place(to)].to_vec();
        if let Some(first) = data.first_mut().filter(|_| self.spoiled) {
            *first ^= 1;
        }
        self.changed = true;
        self.file.write_all_at(&data, from - self.start)
    }
}

/// Judges the recording in `directory`. Blocks for minutes; needs `sfdisk`, `fsck.vfat` and `mcopy`, and room for a copy of
/// the disk in the directory for temporary files.
///
/// With `spoiled`, the name of a partition, a bit of each write to it flips: what is judged must notice.
pub fn judge(directory: &Path, spoiled: Option<&str>) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let mut parts = Vec::new();
    for (name, start, size) in table(&directory.join(DISK))? {
        let file = copied(&directory.join(DISK), start, size, &judge::file_of(work.path(), &name))?;
        parts.push(Part { start, size, file, changed: true, spoiled: spoiled == Some(&name) });
    }
    ensure!(parts.len() == JUDGED.len(), "{}: not the partitions of an appliance", directory.display());
    let mut judge = Judge::new(work.path(), &directory.join(KEYRING));
    let mut report = Report::default();
    let mut log = Log::open(&directory.join(WRITES))?;
    let mut look = |parts: &mut [Part], report: &mut Report| -> anyhow::Result<()> {
        let changed: Vec<bool> = parts.iter().map(|part| part.changed).collect();
        if changed.contains(&true) {
            report.judged += 1;
            for why in judge.judge(&changed, &mut report.checks)? {
                if report.violations.len() < TOLD {
                    report.violations.push(format!("after flush {}: {why}", report.flushes));
                }
            }
            for part in parts {
                part.changed = false;
            }
        }
        Ok(())
    };
    look(&mut parts, &mut report)?;
    while let Some(entry) = log.next()? {
        match entry {
            Entry::Write { offset, data } => {
                report.writes += 1;
                parts.iter_mut().try_for_each(|part| part.apply(offset, &data))?;
            }
            Entry::Flush => {
                report.flushes += 1;
                look(&mut parts, &mut report)?;
            }
        }
    }
    look(&mut parts, &mut report)?;
    Ok(report)
}

/// Name, start and size in bytes of the partitions that are judged, in the order of [`JUDGED`].
fn table(disk: &Path) -> anyhow::Result<Vec<(String, u64, u64)>> {
    #[derive(Deserialize)]
    struct Found {
        partitiontable: Table,
    }
    #[derive(Deserialize)]
    struct Table {
        partitions: Vec<Partition>,
    }
    #[derive(Deserialize)]
    struct Partition {
        start: u64,
        size: u64,
        name: String,
    }
    let said = stdout(Command::new("sfdisk").arg("--json").arg(disk))?;
    let found: Found = serde_json::from_str(&said).context("sfdisk")?;
    let all = found.partitiontable.partitions;
    let named = JUDGED.iter().filter_map(|name| all.iter().find(|partition| partition.name == *name));
    Ok(named.map(|partition| (partition.name.clone(), partition.start * 512, partition.size * 512)).collect())
}

/// A file with `size` bytes of `disk` from `start` on. Zeros take no room.
fn copied(disk: &Path, start: u64, size: u64, to: &PathBuf) -> anyhow::Result<File> {
    let disk = File::open(disk).with_context(|| format!("{} cannot be read", disk.display()))?;
    let file = File::options().read(true).write(true).create_new(true).open(to)?;
    file.set_len(size)?;
    let mut piece = vec![0; PIECE];
    for at in (0..size).step_by(PIECE) {
        let len = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        disk.read_exact_at(&mut piece[..len], start + at)?;
        if piece[..len].iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece[..len], at)?;
        }
    }
    Ok(file)
}

/// What a program that must succeed says.
fn stdout(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file's bytes, of which there are at most `limit`.
fn bytes(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let (mut bytes, file) = (Vec::new(), fs::File::open(path)?);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_partition_is_written_to_it() {
        let written = |offset: u64, data: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4).unwrap();
            let mut part = Part { start: 10, size: 4, file, changed: false, spoiled: false };
            part.apply(offset, data).unwrap();
            let mut found = [0; 4];
            part.file.read_exact_at(&mut found, 0).unwrap();
            (part.changed, found)
        };
        assert_eq!(written(0, &[9; 10]), (false, [0; 4]), "before");
        assert_eq!(written(14, &[9; 10]), (false, [0; 4]), "behind");
        assert_eq!(written(u64::MAX - 2, &[9; 10]), (false, [0; 4]), "past every disk");
        assert_eq!(written(8, &[1, 2, 3]), (true, [3, 0, 0, 0]), "into its start");
        assert_eq!(written(12, &[1, 2, 3]), (true, [0, 0, 1, 2]), "out of its end");
        assert_eq!(written(11, &[1, 2]), (true, [0, 1, 2, 0]), "inside");
        assert_eq!(written(9, &[1, 2, 3, 4, 5, 6, 7]), (true, [2, 3, 4, 5]), "around it");
    }
}
