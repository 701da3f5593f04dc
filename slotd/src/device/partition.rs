//! Which partition the ESP is, as a boot entry of the UEFI firmware names it.
//!
//! Sources: kernel documentation `ABI/stable/sysfs-block` (`partition`, `start` and `size` in units of 512 bytes,
//! `queue/logical_block_size`); udev's database (`E:ID_PART_ENTRY_UUID=`); the kernel's `uevent` (`PARTUUID=`, newer than Linux 6.12).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::domain::gpt::parse_guid;
use crate::domain::load_option::Partition;

/// What `start` and `size` are counted in, in bytes.
const UNIT: u64 = 512;

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The kernel does not say.
    #[error("which partition the ESP is cannot be read from {path}: {source}", path = path.display())]
    Io {
        /// From which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says is no number.
    #[error("{path} says {found:?}; expected a number", path = path.display())]
    Number {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Nobody knows its GUID: no GPT, or no udev and a loader that does not say.
    #[error(
        "the GUID of the ESP's partition is not known: neither udev, the kernel nor the boot loader says it"
    )]
    NoGuid,
}

/// Where it is looked up.
#[derive(Clone, Debug)]
pub struct EspDevice {
    /// Mount point of the ESP.
    pub mount: PathBuf,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// udev's database.
    pub udev: PathBuf,
}

impl EspDevice {
    /// The ESP mounted at `mount` of this system.
    pub fn mounted(mount: &Path) -> Self {
        Self { mount: mount.to_owned(), sysfs: "/sys".into(), udev: "/run/udev/data".into() }
    }

    /// The partition; `told` is its GUID as the boot loader says, which counts where nobody else says one.
    pub fn partition(&self, told: Option<&str>) -> Result<Partition, PartitionError> {
        let device = fs::metadata(&self.mount).map_err(|source| fail(&self.mount, source))?.dev();
        self.partition_of(major(device), minor(device), told)
    }

    /// The partition with this device number.
    pub fn partition_of(
        &self,
        major: u64,
        minor: u64,
        told: Option<&str>,
    ) -> Result<Partition, PartitionError> {
        let device = format!("{major}:{minor}");
        let directory = self.sysfs.join("dev/block").join(&device);
        // sysfs has the partition in the directory of its disk.
        let block = number(&directory.join("../queue/logical_block_size"))?.max(UNIT) / UNIT;
        let guid = value(&self.udev.join(format!("b{device}")), "E:ID_PART_ENTRY_UUID=")
            .or_else(|| value(&directory.join("uevent"), "PARTUUID="))
            .or_else(|| told.map(str::to_owned));
        let path = directory.join("partition");
        let place = number(&path)?;
        Ok(Partition {
            number: place
                .try_into()
                .map_err(|_| PartitionError::Number { path, found: place.to_string() })?,
            start: number(&directory.join("start"))? / block,
            size: number(&directory.join("size"))? / block,
            guid: guid.and_then(|text| parse_guid(&text)).ok_or(PartitionError::NoGuid)?,
        })
    }
}

fn fail(path: &Path, source: io::Error) -> PartitionError {
    PartitionError::Io { path: path.to_owned(), source }
}

fn number(path: &Path) -> Result<u64, PartitionError> {
    let text = fs::read_to_string(path).map_err(|source| fail(path, source))?;
    let found = text.trim();
    found.parse().map_err(|_| PartitionError::Number { path: path.to_owned(), found: found.to_owned() })
}

/// What follows `key` on a line of a file; `None` also where there is no such file.
fn value(path: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const GUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    /// Disk 254:0 with the partition 254:1.
    fn system(block: u64) -> (tempfile::TempDir, EspDevice) {
        let root = tempfile::tempdir().unwrap();
        let partition = root.path().join("sys/devices/vda/vda1");
        fs::create_dir_all(partition.join("../queue")).unwrap();
        fs::create_dir_all(root.path().join("sys/dev/block")).unwrap();
        fs::create_dir_all(root.path().join("udev")).unwrap();
        fs::write(partition.join("../queue/logical_block_size"), format!("{block}\n")).unwrap();
        for (name, text) in [("partition", "1\n"), ("start", "2048\n"), ("size", "65536\n")] {
            fs::write(partition.join(name), text).unwrap();
        }
        symlink("../../devices/vda/vda1", root.path().join("sys/dev/block/254:1")).unwrap();
        let device = EspDevice {
            mount: root.path().to_owned(),
            sysfs: root.path().join("sys"),
            udev: root.path().join("udev"),
        };
        (root, device)
    }

    #[test]
    fn a_partition_is_what_the_kernel_and_udev_say() {
        let (root, device) = system(512);
        let found = || device.partition_of(254, 1, Some(GUID));
        let guid = *b"\x67\x45\x23\x01\xab\x89\xef\xcd\x01\x23\x45\x67\x89\xab\xcd\xef";
        let expected = Partition { number: 1, start: 2048, size: 65_536, guid };
        assert_eq!(found().unwrap(), expected);
        assert!(matches!(device.partition_of(254, 1, None), Err(PartitionError::NoGuid)));
        // Who was asked first is right: the loader may have come from another disk.
        let text = GUID.replace("0123", "FFFF");
        fs::write(root.path().join("sys/devices/vda/vda1/uevent"), format!("PARTN=1\nPARTUUID={GUID}\n"))
            .unwrap();
        assert_eq!(device.partition_of(254, 1, Some(&text)).unwrap(), expected);
        fs::write(root.path().join("udev/b254:1"), format!("S:x\nE:ID_PART_ENTRY_UUID={text}\n")).unwrap();
        assert_ne!(found().unwrap().guid, guid);
        // A disk with large blocks counts in those.
        let (_root, device) = system(4096);
        let large = device.partition_of(254, 1, Some(GUID)).unwrap();
        assert_eq!((large.start, large.size), (256, 8192));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let (root, device) = system(512);
        for text in ["", "x", "01234567-01", "0123456789abcdef0123456789abcdef", &GUID.replace('a', "g")] {
            assert!(matches!(device.partition_of(254, 1, Some(text)), Err(PartitionError::NoGuid)), "{text}");
        }
        assert!(matches!(device.partition_of(254, 2, Some(GUID)), Err(PartitionError::Io { .. })));
        fs::write(root.path().join("sys/devices/vda/vda1/start"), "x").unwrap();
        let error = device.partition_of(254, 1, Some(GUID)).unwrap_err().to_string();
        assert!(error.contains("start says \"x\""), "{error}");
        // A directory that is no mount of a partition.
        assert!(device.partition(Some(GUID)).is_err());
    }
}
