//! The compressed file list: read line by line, and within its limits.

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use slotd::domain::file_list::{Entries, Entry, FileListError, MAX_LINE};

const LINE: &str = r#"{"path":"/a","type":"file","mode":420,"uid":0,"gid":0,"size":1,"inode":1,"at":[0,32]}"#;

fn packed(text: &str) -> Vec<u8> {
    compress_to_vec(text.as_bytes(), CompressionLevel::Fastest)
}

fn read(packed: &[u8]) -> (usize, Option<FileListError>) {
    let entries = match Entries::new(packed) {
        Ok(entries) => entries,
        Err(error) => return (0, Some(error)),
    };
    let read: Vec<Result<Entry, FileListError>> = entries.collect();
    let good = read.iter().filter(|entry| entry.is_ok()).count();
    (good, read.into_iter().find_map(Result::err))
}

#[test]
fn every_line_is_an_entry_and_the_last_needs_no_end() {
    let (count, error) = read(&packed(&format!("{LINE}\n{LINE}\n{LINE}")));
    assert!(count == 3 && error.is_none(), "{count}, {error:?}");
    assert!(matches!(read(&packed("")), (0, None)));
}

#[test]
fn what_is_no_entry_ends_the_list_with_its_line() {
    let (count, error) = read(&packed(&format!("{LINE}\n\n{LINE}\n")));
    assert!(matches!((count, &error), (1, Some(FileListError::Entry { line: 2, .. }))), "{count}, {error:?}");
    assert!(matches!(read(b"{}"), (0, Some(FileListError::Frame(_)))));
    let mut short = packed(LINE);
    short.truncate(short.len() - 10);
    assert!(matches!(read(&short), (0, Some(FileListError::Unpack { line: 1, .. }))));
}

#[test]
fn a_line_is_held_up_to_its_limit_and_no_further() {
    let padding = " ".repeat(MAX_LINE - LINE.len() - 1);
    let (count, error) = read(&packed(&format!("{LINE}{padding}\n")));
    assert!(count == 1 && error.is_none(), "{error:?}");
    let (count, error) = read(&packed(&format!("{LINE}{padding} \n{LINE}\n")));
    assert!(matches!((count, &error), (0, Some(FileListError::LongLine { line: 1 }))), "{error:?}");
}
