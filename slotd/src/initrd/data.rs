//! The data partition: made once, checked at every start, and done without when it cannot be used.
//!
//! The installer leaves [`NEW`] in its last [`TAIL`] bytes, which no file system uses. Only while it is there the partition
//! is formatted: zeros, or anything else that is no file system, may be what is left of somebody's data. It goes when the file
//! system is whole and before it is mounted, so a cut at any time ends in another formatting or in none.

#![expect(clippy::disallowed_methods, reason = "runs mke2fs and e2fsck on the data partition")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::check::process::{Bounds, End, follow};

/// Begins the last [`TAIL`] bytes of a data partition that has never been used.
pub const NEW: &[u8] = b"sps-data 1: make a file system here\n";
/// Bytes at the end of the partition that belong to no file system.
pub const TAIL: u64 = 64 << 10;
/// Label of the file system.
const LABEL: &str = "sps-data";
/// Superblock of ext2, 3 and 4 (Linux: `Documentation/filesystems/ext4/super.rst`): at byte 1024, magic 0xEF53 at +56.
const MAGIC_AT: usize = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Bytes that are looked at.
const HEAD: u64 = 4096;
/// Block of the file system, in bytes.
const BLOCK: u64 = 4096;
/// A repair of the journal takes seconds; a full check of a large disk takes minutes.
const CHECK_TIME: Duration = Duration::from_secs(1800);
const MAKE_TIME: Duration = Duration::from_secs(600);
/// Output of a program that is kept, in bytes.
const OUTPUT: usize = 4096;

/// What a data partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What the installer left: to be formatted.
    New,
    /// A file system.
    FileSystem,
    /// Neither.
    Unknown,
}

/// Why the data partition cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It is not there, or cannot be read.
    #[error("cannot read {}", device.display())]
    Read {
        /// The partition.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a file system nor new.
    #[error(
        "{} holds neither a file system nor the installer's mark; it is left as it is, for somebody to look at",
        device.display()
    )]
    Unknown {
        /// The partition.
        device: PathBuf,
    },
    /// The installer's mark cannot be removed: nothing may be kept beside it.
    #[error("{}: cannot remove the installer's mark", device.display())]
    Mark {
        /// The partition.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} on {}: {end}: {output}", device.display())]
    Failed {
        /// Which.
        program: &'static str,
        /// The partition.
        device: PathBuf,
        /// How it ended.
        end: String,
        /// The end of what it said.
        output: String,
    },
}

/// What its first bytes, and its last [`TAIL`] bytes, say.
pub fn judge(head: &[u8], tail: &[u8]) -> Content {
    if tail.starts_with(NEW) {
        Content::New
    } else if head.get(MAGIC_AT..).is_some_and(|magic| magic.starts_with(&MAGIC)) {
        Content::FileSystem
    } else {
        Content::Unknown
    }
}

/// Makes sure that `device` holds a file system that can be mounted; what it held. Blocks as long as a check of it takes.
///
/// `e2fsck -p` repairs what is safe to repair; what needs a decision is left alone.
pub fn make_ready(device: &Path) -> Result<Content, DataError> {
    let fail = |source| DataError::Read { device: device.to_owned(), source };
    let (head, tail, end) = read(device).map_err(fail)?;
    let content = judge(&head, &tail);
    match content {
        Content::New => {
            let blocks = (end / BLOCK).to_string();
            let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", LABEL];
            run("mke2fs", &arguments, device, &[&blocks], MAKE_TIME, |code| code == 0)?;
            remove_mark(device, end)
                .map_err(|source| DataError::Mark { device: device.to_owned(), source })?;
        }
        // e2fsck(8): 1 repaired, 2 repaired and reboot if it is mounted, which it is not.
        Content::FileSystem => run("e2fsck", &["-p"], device, &[], CHECK_TIME, |code| code & !3 == 0)?,
        Content::Unknown => return Err(DataError::Unknown { device: device.to_owned() }),
    }
    Ok(content)
}

/// The first bytes, the last ones, and where these begin.
fn read(device: &Path) -> io::Result<(Vec<u8>, Vec<u8>, u64)> {
    let mut file = File::open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    let end = size.saturating_sub(TAIL) / BLOCK * BLOCK;
    let mut piece = |at, length| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.by_ref().take(length).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    Ok((piece(0, HEAD)?, piece(end, BLOCK)?, end))
}

/// On stable storage when it returns: from then on nothing of the partition is ever formatted again.
fn remove_mark(device: &Path, at: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(device)?;
    // First what mke2fs has written, then the mark.
    file.sync_all()?;
    file.write_all_at(&[0; NEW.len()], at)?;
    file.sync_all()
}

fn run(
    program: &'static str,
    arguments: &[&str],
    device: &Path,
    more: &[&str],
    time: Duration,
    good: impl FnOnce(i32) -> bool,
) -> Result<(), DataError> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(device)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let bounds = Bounds { time, keep: OUTPUT, cancel: None };
    let finished = command.spawn().and_then(|child| follow(child, &bounds, |child| drop(child.kill())));
    let finished = finished.map_err(|source| DataError::Run { program, source })?;
    if let End::Exited(code) = finished.end
        && good(code)
    {
        return Ok(());
    }
    let output = [finished.stdout.text(), finished.stderr.text()].concat();
    let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(DataError::Failed { program, device: device.to_owned(), end: finished.end.to_string(), output })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SIZE: u64 = 16 << 20;

    /// A partition with these bytes at its start and at its end.
    fn fill(device: &Path, head: &[u8], tail: &[u8]) {
        fs::write(device, head).unwrap();
        let file = File::options().write(true).open(device).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(tail, SIZE - TAIL).unwrap();
    }

    #[test]
    fn only_what_the_installer_left_is_formatted() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("data");
        for head in [&b"\0"[..], b"LUKS", NEW] {
            fill(&device, head, b"");
            let before = fs::read(&device).unwrap();
            assert!(matches!(make_ready(&device).unwrap_err(), DataError::Unknown { .. }));
            assert!(fs::read(&device).unwrap() == before);
        }
        let error = make_ready(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }));
        fs::write(&device, "small").unwrap();
        assert!(matches!(make_ready(&device).unwrap_err(), DataError::Unknown { .. }));

        fill(&device, b"", NEW);
        assert_eq!(make_ready(&device).unwrap(), Content::New);
        // Made once: from now on it is checked.
        assert_eq!(make_ready(&device).unwrap(), Content::FileSystem);
        // What lies behind it is nobody's.
        let head = &fs::read(&device).unwrap()[MAGIC_AT - 56..];
        let blocks = u32::from_le_bytes(*head[4..].first_chunk().unwrap());
        assert!(u64::from(blocks) * BLOCK <= SIZE - TAIL);
    }

    /// Whatever a formatting that was cut has left, while the mark is there it is made again.
    #[test]
    fn a_formatting_that_was_cut_is_done_again() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("data");
        fill(&device, b"", NEW);
        make_ready(&device).unwrap();
        let whole = fs::read(&device).unwrap();
        for cut in [0, 512, 1024, 4096, 65536, 1 << 20, 8 << 20] {
            fill(&device, &whole[..cut], NEW);
            assert_eq!(make_ready(&device).unwrap(), Content::New, "{cut}");
            assert_eq!(make_ready(&device).unwrap(), Content::FileSystem, "{cut}");
        }
    }

    #[test]
    fn what_needs_a_decision_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("data");
        fill(&device, b"", NEW);
        make_ready(&device).unwrap();
        // The superblock's magic number is there, nothing else.
        let file = File::options().write(true).open(&device).unwrap();
        file.write_all_at(&[0xff; 48], 1024).unwrap();
        file.write_all_at(&vec![0xff; 8 << 20], 4096).unwrap();
        let error = make_ready(&device).unwrap_err();
        assert!(matches!(error, DataError::Failed { program: "e2fsck", .. }), "{error}");
    }
}
