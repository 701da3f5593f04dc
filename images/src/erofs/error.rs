//! What can be wrong with an image.

use std::io;

/// Why the list of an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image could not be read.
    #[error("reading {len} bytes at byte {offset} of the EROFS image failed")]
    Read {
        /// Byte offset within the image.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something points outside the image.
    #[error(
        "{what} at byte {offset}, {len} bytes long, ends after the EROFS image's {image} bytes: \
         the image is cut short or damaged, build it again"
    )]
    Outside {
        /// What was looked for.
        what: &'static str,
        /// Byte offset within the image.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Length of the image in bytes.
        image: u64,
    },
    /// No EROFS superblock.
    #[error("no EROFS superblock at byte 1024: expected magic 0xe0f5e1e2, found {found:#010x}")]
    Magic {
        /// What stands there.
        found: u32,
    },
    /// Features that this reader does not know or support.
    #[error(
        "the EROFS image uses features that this reader does not support: {names} \
         (feature_incompat bits {bits:#x}): build it without them"
    )]
    Features {
        /// The offending bits of `feature_incompat`.
        bits: u32,
        /// Their names, `unknown` for those without one.
        names: String,
    },
    /// Something valid that this reader does not support.
    #[error("EROFS inode {nid} uses {what} (found {found:#x}), which this reader does not support")]
    Unsupported {
        /// Number of the inode, 0 for the superblock.
        nid: u64,
        /// What it is.
        what: &'static str,
        /// The value found.
        found: u64,
    },
    /// Something that no valid image has.
    #[error("EROFS inode {nid} is damaged: {what} (found {found:#x}): build the image again")]
    Corrupt {
        /// Number of the inode, 0 for the superblock.
        nid: u64,
        /// What is wrong.
        what: &'static str,
        /// The value found.
        found: u64,
    },
    /// More of something than this reader takes.
    #[error("the EROFS image has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most that is taken.
        limit: u64,
    },
    /// The hash of a file could not be had.
    #[error("no SHA-256 of `{path}`")]
    Hash {
        /// Path within the root, escaped as in the list.
        path: String,
        /// What the caller's function said.
        #[source]
        source: anyhow::Error,
    },
}

/// A fault in what belongs to one inode, before it is known which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// See [`ErofsError::Corrupt`].
    Corrupt(&'static str, u64),
    /// See [`ErofsError::Unsupported`].
    Unsupported(&'static str, u64),
    /// See [`ErofsError::Limit`].
    Limit(&'static str, u64),
}

impl Fault {
    /// Names the inode.
    pub(super) fn of(self, nid: u64) -> ErofsError {
        match self {
            Self::Corrupt(what, found) => ErofsError::Corrupt { nid, what, found },
            Self::Unsupported(what, found) => ErofsError::Unsupported { nid, what, found },
            Self::Limit(what, limit) => ErofsError::Limit { what, limit },
        }
    }
}
