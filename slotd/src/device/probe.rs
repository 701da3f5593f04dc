//! What a device is: its size, and what reading back from it proves.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{self, fstatfs};

/// What reading back proves. Ordered: the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readback {
    /// Nothing: memory answers, or another cache that we cannot get past (tmpfs, a loop device without direct I/O).
    Impossible,
    /// The page cache was asked to forget, but may not have.
    Cached,
    /// The device answered (its own cache was flushed before).
    Direct,
}

impl Readback {
    /// Spelling on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Impossible => "impossible",
            Self::Cached => "cached",
            Self::Direct => "direct",
        }
    }
}

/// Length of a file or block device in bytes.
pub(super) fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// What reading back from `file` proves; `direct` says whether it took direct I/O.
pub(super) fn readback(file: &File, direct: bool) -> Readback {
    let in_memory = fstatfs(file).is_ok_and(|fs| {
        [statfs::TMPFS_MAGIC, nix::sys::statfs::FsType(0x8584_58f6)].contains(&fs.filesystem_type())
    });
    let Ok(metadata) = file.metadata() else { return Readback::Impossible };
    let block = metadata.file_type().is_block_device();
    let loop_without_direct = block && loop_direct_io(metadata.rdev()) == Some(false);
    let ram_disk = block && major(metadata.rdev()) == 1;
    // The file system that a device node lives on says nothing about the device.
    if (in_memory && !block) || loop_without_direct || ram_disk {
        Readback::Impossible
    } else if direct {
        Readback::Direct
    } else {
        Readback::Cached
    }
}

/// Whether a loop device passes direct I/O on to its file; `None` when it is no loop device.
fn loop_direct_io(device: u64) -> Option<bool> {
    let path = format!("/sys/dev/block/{}:{}/loop/dio", major(device), minor(device));
    fs::read_to_string(path).ok().map(|text| text.trim() == "1")
}
