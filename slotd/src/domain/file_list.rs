//! `files.ndjson.zst`: one JSON object a line for each file of the root, in byte order of the paths.
//!
//! It says which file owns a block that no longer verifies, and is what taint compares with.

use serde::{Deserialize, Serialize};

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Absolute path in the root, `/` for the root directory. Bytes that are no UTF-8 stand as `\xNN`, and a
    /// backslash as `\\`. What the image holds apart from files is listed too, as files whose path starts
    /// with no `/`: `(superblock)`, `(packed)` (the inode that holds the fragments) and `(shared xattrs)`.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes as `stat` says.
    pub size: u64,
    /// SHA-256 of a regular file's content, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Target of a symbolic link, escaped as `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number of a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Number of the inode: the same for hard links.
    pub inode: u64,
    /// Where the inode itself (with its extended attributes, block map and inline tail) lies: offset, length
    /// in bytes.
    pub at: (u64, u64),
    /// Physical extents of the content outside the inode: offset and length in bytes within `root.erofs`,
    /// in file order, whole blocks, those that touch made one; holes have none. Shared extents (fragments,
    /// deduplicated clusters) are listed by every file that has a part in them; of a fragment it is what of
    /// the packed inode holds it, which is less than a block where that is the packed inode's inline tail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<(u64, u64)>,
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}
