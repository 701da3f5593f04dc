//! Reads the metadata of an EROFS image and lists its files with where they lie: `files.ndjson`.
//!
//! This is our own walk of the on-disk format (kernel, `Documentation/filesystems/erofs.rst` and
//! `fs/erofs/erofs_fs.h`); content is neither read nor decompressed. Nothing that an image holds makes it
//! panic or go on without end.

mod directory;
mod error;
mod inode;
mod lcluster;
mod map;
mod source;
mod superblock;
mod walk;

use slotd::domain::file_list::Entry;

pub use error::ErofsError;
pub use source::ReadAt;
pub use walk::{PACKED, SHARED_XATTRS, SUPERBLOCK, walk};

/// Writes the list: one JSON object a line.
///
/// # Errors
/// None in practice: an entry is plain data.
pub fn render(entries: &[Entry]) -> serde_json::Result<String> {
    let mut text = String::new();
    for entry in entries {
        text.push_str(&serde_json::to_string(entry)?);
        text.push('\n');
    }
    Ok(text)
}

/// Compresses the list with zstd, level 19, one thread: the same bytes each time.
///
/// # Errors
/// What zstd says, which is only that memory is short.
pub fn compress(list: &str) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(19)?;
    compressor.include_checksum(true)?;
    compressor.compress(list.as_bytes())
}

/// Writes a path or link target as the list has it: bytes that are no UTF-8 as `\xNN`, a backslash as `\\`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str("\\x");
            text.push_str(&hex::encode([*byte]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_is_unambiguous() {
        assert_eq!(escape(b"/a b\xc3\xa9"), "/a b\u{e9}");
        assert_eq!(escape(b"/\\xff\xff\xc3"), "/\\\\xff\\xff\\xc3");
    }
}
