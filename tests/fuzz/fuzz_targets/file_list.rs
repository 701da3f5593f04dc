//! The file list: never more out of it than its limits allow, whatever the compression says; and what is no entry ends
//! it.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::file_list::{Entries, Entry, FileListError, MAX_ENTRIES, MAX_LINE};

/// Reads the list to its end; the number of entries, and the error that ended it.
fn read(packed: &[u8]) -> (Vec<Entry>, Option<FileListError>) {
    let mut list = match Entries::new(packed) {
        Ok(list) => list,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut entries = Vec::new();
    let mut count = 0_usize;
    let mut ended = None;
    for entry in &mut list {
        match entry {
            // The first ones are enough to compare.
            Ok(entry) if entries.len() < 1000 => entries.push(entry),
            Ok(_) => {}
            Err(error) => ended = Some(error),
        }
        count += 1;
        assert!(count <= MAX_ENTRIES + 1, "more entries than the limit");
    }
    assert!(list.next().is_none(), "it goes on after its end");
    (entries, ended)
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    if mode & 1 == 0 {
        let (_, error) = read(data);
        if let Some(error) = error {
            assert_printable(&error);
        }
        return;
    }
    // The same text, once through the compression and once line by line.
    let packed = ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest);
    let (entries, error) = read(&packed);
    let mut lines = data.split_inclusive(|byte| *byte == b'\n');
    for entry in &entries {
        let line = lines.next().unwrap_or_default();
        assert!(line.len() <= MAX_LINE && serde_json::from_slice(line).ok().as_ref() == Some(entry));
    }
    assert!(error.is_some() == (lines.next().is_some() && entries.len() < 1000), "{error:?}");
});
