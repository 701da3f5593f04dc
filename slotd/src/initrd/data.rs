//! The data partition: made once, checked at every start, and done without when it cannot be used.
//!
//! The installer writes [`NEW`] at its start. Only that is ever formatted: zeros, or anything else that is no file
//! system, may be what is left of somebody's data.

#![expect(clippy::disallowed_methods, reason = "runs mke2fs and e2fsck on the data partition")]

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::check::process::{Bounds, End, follow};

/// First bytes of a data partition that has never been used.
pub const NEW: &[u8] = b"sps-data 1: make a file system here\n";
/// Label of the file system.
const LABEL: &str = "sps-data";
/// Superblock of ext2, 3 and 4 (Linux: `Documentation/filesystems/ext4/super.rst`): at byte 1024, magic 0xEF53 at +56.
const MAGIC_AT: usize = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Bytes that are looked at.
const HEAD: usize = 4096;
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

/// What the first bytes say.
pub fn judge(head: &[u8]) -> Content {
    if head.starts_with(NEW) {
        Content::New
    } else if head.get(MAGIC_AT..).is_some_and(|magic| magic.starts_with(&MAGIC)) {
        Content::FileSystem
    } else {
        Content::Unknown
    }
}

/// Makes sure that `device` holds a file system that can be mounted. Blocks as long as a check of it takes.
///
/// `e2fsck -p` repairs what is safe to repair; what needs a decision is left alone.
pub fn make_ready(device: &Path) -> Result<Content, DataError> {
    let fail = |source| DataError::Read { device: device.to_owned(), source };
    let mut head = Vec::new();
    File::open(device).map_err(fail)?.take(HEAD as u64).read_to_end(&mut head).map_err(fail)?;
    let content = judge(&head);
    match content {
        Content::New => {
            let arguments = ["-q", "-F", "-t", "ext4", "-m", "1", "-L", LABEL];
            run("mke2fs", &arguments, device, MAKE_TIME, |code| code == 0)?;
        }
        // e2fsck(8): 1 repaired, 2 repaired and reboot if it is mounted, which it is not.
        Content::FileSystem => run("e2fsck", &["-p"], device, CHECK_TIME, |code| code & !3 == 0)?,
        Content::Unknown => return Err(DataError::Unknown { device: device.to_owned() }),
    }
    Ok(content)
}

fn run(
    program: &'static str,
    arguments: &[&str],
    device: &Path,
    time: Duration,
    good: impl FnOnce(i32) -> bool,
) -> Result<(), DataError> {
    let mut command = Command::new(program);
    command.args(arguments).arg(device).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn only_what_the_installer_left_is_formatted() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("data");
        for (head, expected) in
            [(&b"\0"[..], Content::Unknown), (b"LUKS", Content::Unknown), (b"", Content::Unknown)]
        {
            fs::write(&device, head).unwrap();
            File::options().write(true).open(&device).unwrap().set_len(16 << 20).unwrap();
            let before = fs::read(&device).unwrap();
            assert_eq!(judge(&before), expected);
            assert!(matches!(make_ready(&device).unwrap_err(), DataError::Unknown { .. }));
            assert!(fs::read(&device).unwrap() == before);
        }
        let error = make_ready(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }));

        fs::write(&device, NEW).unwrap();
        File::options().write(true).open(&device).unwrap().set_len(16 << 20).unwrap();
        assert_eq!(make_ready(&device).unwrap(), Content::New);
        // Made once: from now on it is checked.
        assert_eq!(make_ready(&device).unwrap(), Content::FileSystem);
    }

    #[test]
    fn what_needs_a_decision_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("data");
        fs::write(&device, NEW).unwrap();
        File::options().write(true).open(&device).unwrap().set_len(16 << 20).unwrap();
        make_ready(&device).unwrap();
        // The superblock's magic number is there, nothing else.
        let file = File::options().write(true).open(&device).unwrap();
        file.write_all_at(&[0xff; 48], 1024).unwrap();
        file.write_all_at(&vec![0xff; 8 << 20], 4096).unwrap();
        let error = make_ready(&device).unwrap_err();
        assert!(matches!(error, DataError::Failed { program: "e2fsck", .. }), "{error}");
    }
}
