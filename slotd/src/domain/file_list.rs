//! `files.ndjson.zst`: one JSON object a line for each file of the root, in byte order of the paths.
//!
//! It says which file owns a block that no longer verifies, and is what taint compares with.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use serde::{Deserialize, Serialize};

/// Longest line that is read, in bytes: a file of 64 GiB in 4 KiB extents would need more, but such a file is not
/// built.
pub const MAX_LINE: usize = 4 << 20;
/// Most entries of a list; the builder makes no longer one.
pub const MAX_ENTRIES: usize = 1 << 22;

/// Why a list cannot be read on. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum FileListError {
    /// It does not begin with a zstd frame.
    #[error("not compressed with zstd")]
    Frame(#[source] Box<FrameDecoderError>),
    /// Its bytes cannot be had: the medium fails, or the compression is damaged.
    #[error("line {line} cannot be unpacked")]
    Unpack {
        /// Which line.
        line: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is longer than [`MAX_LINE`].
    #[error("line {line} is longer than {MAX_LINE} bytes")]
    LongLine {
        /// Which line.
        line: usize,
    },
    /// A line is no [`Entry`].
    #[error("line {line} is no entry of a file list")]
    Entry {
        /// Which line.
        line: usize,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// There are more lines than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// The entries of a compressed list, in order, one line in memory at a time. Ends after the first error. What zstd
/// keeps to look back at is bounded by ruzstd (100 MiB).
pub struct Entries<R: Read> {
    lines: BufReader<StreamingDecoder<R, FrameDecoder>>,
    line: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<R: Read> Entries<R> {
    /// Reads the list from `packed`.
    pub fn new(packed: R) -> Result<Self, FileListError> {
        let unpacked =
            StreamingDecoder::new(packed).map_err(|source| FileListError::Frame(Box::new(source)))?;
        Ok(Self { lines: BufReader::new(unpacked), line: Vec::new(), read: 0, ended: false })
    }

    fn entry(&mut self) -> Result<Option<Entry>, FileListError> {
        let line = self.read.saturating_add(1);
        self.line.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX).saturating_add(1);
        let read = self.lines.by_ref().take(limit).read_until(b'\n', &mut self.line);
        if read.map_err(|source| FileListError::Unpack { line, source })? == 0 {
            return Ok(None);
        }
        if self.line.len() > MAX_LINE {
            return Err(FileListError::LongLine { line });
        }
        if line > MAX_ENTRIES {
            return Err(FileListError::TooMany);
        }
        self.read = line;
        serde_json::from_slice(&self.line).map(Some).map_err(|source| FileListError::Entry { line, source })
    }
}

impl<R: Read> Iterator for Entries<R> {
    type Item = Result<Entry, FileListError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = self.entry().transpose();
        self.ended = !matches!(entry, Some(Ok(_)));
        entry
    }
}

impl<R: Read> fmt::Debug for Entries<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entries(after {})", self.read)
    }
}

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
