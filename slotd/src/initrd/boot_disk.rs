//! The disk that the boot loader came from. Only its partitions carry our names: a second disk with the same labels, an
//! old one put into a free bay for instance, must never be mixed with it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::device::loader::LoaderError;
use crate::device::loader::efivarfs::Variables;
use crate::domain::efivar::{self, EfivarError};
use crate::domain::gpt::{self, GptError};

/// Where a disk does not say how large its blocks are.
const SECTOR: usize = 512;

/// Why it cannot be said whether a partition is on the boot disk.
#[derive(Debug, thiserror::Error)]
pub enum BootDiskError {
    /// The variable cannot be read.
    #[error("cannot read {}", efivar::DEVICE)]
    Variable(#[source] LoaderError),
    /// The variable is no text.
    #[error("{} is not what a boot loader writes", efivar::DEVICE)]
    Text(#[source] EfivarError),
    /// The name is none of a block device.
    #[error("{name:?} is not the name of a block device, such as sda1")]
    Name {
        /// What was given.
        name: String,
    },
    /// The disk's table cannot be read.
    #[error("{}", disk.display())]
    Table {
        /// The disk.
        disk: PathBuf,
        /// Why.
        #[source]
        source: GptError,
    },
    /// A file or the disk cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// GUID of the partition that the boot loader was started from, in lower case; `None` where it does not say.
pub fn loader_partition(variables: &impl Variables) -> Result<Option<String>, BootDiskError> {
    let bytes = variables.read(efivar::DEVICE).map_err(BootDiskError::Variable)?;
    let text = bytes.map(|bytes| efivar::decode(&bytes)).transpose().map_err(BootDiskError::Text)?;
    Ok(text.filter(|text| !text.is_empty()).map(|text| text.to_ascii_lowercase()))
}

/// Whether partition `name` (`sda1`) lies on the disk of the partition with the GUID `loader`. `sys` is where sysfs is
/// mounted, `dev` holds the nodes of devices.
///
/// The disk's own table is asked: Linux 6.12 does not tell GUIDs, and udev may not have seen the other
/// partitions yet.
pub fn is_on_boot_disk(sys: &Path, dev: &Path, name: &str, loader: &str) -> Result<bool, BootDiskError> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(BootDiskError::Name { name: name.to_owned() });
    }
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| BootDiskError::Read { path, source }
    };
    let link = sys.join("class/block").join(name);
    let partition = fs::canonicalize(&link).map_err(fail(&link))?;
    let no_disk = || BootDiskError::Name { name: name.to_owned() };
    let disk = partition.parent().filter(|_| partition.join("partition").exists()).ok_or_else(no_disk)?;
    let node = dev.join(disk.file_name().ok_or_else(no_disk)?);
    let size = disk.join("queue/logical_block_size");
    let block = fs::read_to_string(&size).map_err(fail(&size))?.trim().parse().unwrap_or(SECTOR);
    let mut head = Vec::new();
    let file = File::open(&node).map_err(fail(&node))?;
    file.take(gpt::LIMIT as u64).read_to_end(&mut head).map_err(fail(&node))?;
    let guids = gpt::partition_guids(&head, block)
        .map_err(|source| BootDiskError::Table { disk: node.clone(), source })?;
    Ok(gpt::parse_guid(loader).is_some_and(|loader| guids.contains(&loader)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::device::loader::efivarfs::Efivarfs;

    const ESP: &str = "0a1b2c3d-0000-4000-8000-000000000001";

    /// A disk with two partitions, whose table has one entry with this first byte of its GUID.
    fn disk(base: &Path, name: &str, first: u8) {
        for number in [1, 2] {
            let partition = format!("{name}{number}");
            let directory = base.join("devices/pci0/block").join(name).join(&partition);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("partition"), format!("{number}\n")).unwrap();
            fs::create_dir_all(base.join("class/block")).unwrap();
            let link = format!("../../devices/pci0/block/{name}/{partition}");
            symlink(link, base.join("class/block").join(partition)).unwrap();
        }
        let queue = base.join("devices/pci0/block").join(name).join("queue");
        fs::create_dir_all(&queue).unwrap();
        fs::write(queue.join("logical_block_size"), "4096\n").unwrap();
        let mut head = vec![0; 3 * 4096];
        head[4096..4104].copy_from_slice(b"EFI PART");
        head[4096 + 72] = 2;
        head[4096 + 80] = 4;
        head[4096 + 84] = 128;
        head[8192] = 1;
        head[8192 + 16..8192 + 32]
            .copy_from_slice(&[0x3d, 0x2c, 0x1b, first, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 1]);
        fs::write(base.join(name), head).unwrap();
    }

    #[test]
    fn the_other_disk_is_not_ours() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        disk(base, "sda", 0x0a);
        disk(base, "sdb", 0xff);
        for (name, ours) in [("sda1", true), ("sda2", true), ("sdb1", false), ("sdb2", false)] {
            let loader = ESP.to_ascii_uppercase();
            assert_eq!(is_on_boot_disk(base, base, name, &loader).unwrap(), ours, "{name}");
        }
        for name in ["", "../sda1", ".", "sda9"] {
            is_on_boot_disk(base, base, name, ESP).unwrap_err();
        }
        fs::write(base.join("sda"), "no table").unwrap();
        let error = is_on_boot_disk(base, base, "sda1", ESP).unwrap_err();
        assert!(matches!(error, BootDiskError::Table { .. }), "{error}");
    }

    #[test]
    fn the_loader_says_where_it_came_from() {
        let directory = tempfile::tempdir().unwrap();
        let variables = Efivarfs::new(directory.path());
        assert_eq!(loader_partition(&variables).unwrap(), None);
        let path = directory.path().join(efivar::file_name(efivar::DEVICE));
        fs::write(&path, efivar::encode(&ESP.to_ascii_uppercase()).unwrap()).unwrap();
        assert_eq!(loader_partition(&variables).unwrap().as_deref(), Some(ESP));
        fs::write(&path, [6, 0, 0, 0, 1]).unwrap();
        loader_partition(&variables).unwrap_err();
    }
}
