//! Media that a firmware can be installed from: block devices that begin like an ISO image, but for the machine's own disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Where the first volume descriptor lies (ECMA-119, 6.2.1 and 8.1), and how much of it is read.
const DESCRIPTOR: u64 = 16 * 2048;
const READ: usize = 72;
/// Most devices that are looked at.
const LIMIT: usize = 256;

/// A medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Medium {
    /// Its node.
    pub(crate) node: PathBuf,
    /// Its size in bytes, where the system says so.
    pub(crate) size: Option<u64>,
    /// What it calls itself.
    pub(crate) name: String,
}

/// Every medium in the system below `root`, by name: whole disks and partitions. A disk with one of our partitions is none.
pub(crate) fn list(root: &Path) -> Vec<Medium> {
    let Ok(entries) = fs::read_dir(root.join("sys/class/block")) else { return Vec::new() };
    let mut names: Vec<_> = entries.take(LIMIT).filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    let mut media = Vec::new();
    for name in names {
        let (node, about) = (root.join("dev").join(&name), root.join("sys/class/block").join(&name));
        if is_ours(root, &node) {
            continue;
        }
        if let Some(volume) = volume(&node) {
            let sectors = fs::read_to_string(about.join("size")).ok();
            let size = sectors.and_then(|text| text.trim().parse::<u64>().ok()?.checked_mul(512));
            media.push(Medium { node, size, name: volume });
        }
    }
    media
}

/// Whether a link in `/dev/sps` leads to it: a slot holds no ISO image, but what is in one is not ours to say.
fn is_ours(root: &Path, node: &Path) -> bool {
    let Ok(links) = fs::read_dir(root.join("dev/sps")) else { return false };
    let node = fs::canonicalize(node).ok();
    links.flatten().any(|link| node.is_some() && fs::canonicalize(link.path()).ok() == node)
}

/// The volume's name, where the device begins like an ISO image.
fn volume(node: &Path) -> Option<String> {
    let mut descriptor = [0; READ];
    File::open(node).ok()?.read_exact_at(&mut descriptor, DESCRIPTOR).ok()?;
    parse(&descriptor)
}

fn parse(descriptor: &[u8; READ]) -> Option<String> {
    let (kind, name) = (descriptor.get(..6)?, descriptor.get(40..72)?);
    let name = String::from_utf8_lossy(name);
    let name: String = name.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    (kind == b"\x01CD001").then(|| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn media_are_what_begins_like_an_iso_and_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (name, content, size) in
            [("sdb", true, "409600\n"), ("sda3", true, "8"), ("vda", false, "8"), ("sr0", true, "x")]
        {
            let about = root.join("sys/class/block").join(name);
            fs::create_dir_all(&about).unwrap();
            fs::create_dir_all(root.join("dev/sps")).unwrap();
            fs::write(about.join("size"), size).unwrap();
            let mut bytes = vec![0; 40_000];
            if content {
                bytes[32_768..32_774].copy_from_slice(b"\x01CD001");
                bytes[32_808..32_840].copy_from_slice(b"SPS_FIRMWARE\x1b[2J                ");
            }
            fs::write(root.join("dev").join(name), bytes).unwrap();
        }
        fs::create_dir_all(root.join("sys/class/block/gone")).unwrap();
        symlink("../sda3", root.join("dev/sps/slot-1")).unwrap();
        let name = "SPS_FIRMWARE[2J".to_owned();
        let expected = [("sdb", Some(409_600 * 512)), ("sr0", None)].map(|(node, size)| Medium {
            node: root.join("dev").join(node),
            size,
            name: name.clone(),
        });
        assert_eq!(list(root), expected);
        assert_eq!(list(&root.join("nothing")), []);
    }
}
