//! The walk over an EROFS image: sorted, inside the image, and it ends.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::file_list::Entry;
use sps_images::erofs;

fn judge(entries: &[Entry], len: u64) {
    assert!(entries.is_sorted_by(|a, b| a.path <= b.path), "not sorted");
    assert!(entries.iter().any(|entry| entry.path == "/"), "no root");
    for entry in entries {
        let places = entry.extents.iter().chain([&entry.at]);
        for (offset, size) in places {
            assert!(offset.checked_add(*size).is_some_and(|end| end <= len), "{entry:?} in {len} bytes");
        }
        assert!(entry.path.starts_with(['/', '(']) && entry.mode <= 0o7777, "{entry:?}");
    }
    let text = erofs::render(entries).unwrap_or_default();
    let again: Vec<Entry> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
    assert!(again == entries, "the list does not read back");
}

fuzz_target!(|data: &[u8]| {
    let image = data.to_vec();
    match erofs::walk(&image, image.len() as u64, &|_| Ok([7; 32])) {
        Ok(entries) => judge(&entries, image.len() as u64),
        Err(error) => assert_printable(&error),
    }
});
