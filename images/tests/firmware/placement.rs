//! Reads the ISO's primary tree as ECMA-119 describes it, independent of xorriso and of slotd's reader.

use std::fs;

use ::slotd::domain::file_list::Entry;
use sha2::{Digest as _, Sha256};

use crate::sample;

/// A directory record.
#[derive(Debug)]
pub(crate) struct Record {
    /// The bytes of its ISO 9660 name.
    pub(crate) name: String,
    /// First block of 2 KiB.
    pub(crate) lba: usize,
    /// Length in bytes.
    pub(crate) size: usize,
    directory: bool,
}

/// All records of the primary tree but `.` and `..`, in the order of the directories.
pub(crate) fn records(image: &[u8]) -> Vec<Record> {
    let descriptor = &image[16 * 2048..17 * 2048];
    assert_eq!(&descriptor[..7], b"\x01CD001\x01", "no primary volume descriptor");
    let mut found = Vec::new();
    walk(image, number(&descriptor[158..]), number(&descriptor[166..]), &mut found);
    found
}

fn walk(image: &[u8], lba: usize, size: usize, found: &mut Vec<Record>) {
    let directory = &image[lba * 2048..lba * 2048 + size];
    let mut at = 0;
    while at < size {
        let len = usize::from(directory[at]);
        if len == 0 {
            at = (at / 2048 + 1) * 2048;
            continue;
        }
        let record = &directory[at..at + len];
        at += len;
        let name = &record[33..33 + usize::from(record[32])];
        if name == [0] || name == [1] {
            continue;
        }
        let (lba, size) = (number(&record[2..]), number(&record[10..]));
        let is_directory = record[25] & 2 != 0;
        let name = String::from_utf8(name.to_vec()).unwrap();
        found.push(Record { name, lba, size, directory: is_directory });
        if is_directory {
            walk(image, lba, size, found);
        }
    }
}

/// A 32-bit little-endian number.
fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
}

/// Asserts that `image` can be verified while it arrives.
pub(crate) fn assert_streamable(image: &[u8], expected: &[&str]) {
    let records = records(image);
    let (directories, mut files): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| record.directory);
    let names: Vec<&str> = directories.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, ["FIRMWARE"]);
    files.sort_by_key(|record| record.lba);
    let names: Vec<&str> = files.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, expected);
    for pair in files.windows(2) {
        let end = pair[0].lba + pair[0].size.div_ceil(2048);
        assert_eq!(end, pair[1].lba, "{:?} and {:?} do not touch", pair[0], pair[1]);
    }
    let payload = files[0].lba;
    let descriptor = &image[16 * 2048..17 * 2048];
    let path_table = number(&descriptor[140..]);
    assert!(path_table < payload && number(&descriptor[158..]) < payload);
    assert!(directories.iter().all(|record| record.lba < payload));
}

#[test]
fn files_lie_in_the_order_of_the_format_after_all_directories() {
    let scratch = sample::scratch();
    let built = sample::iso(scratch.path());
    let expected = [
        "manifest.json",
        "manifest.p7s",
        "notes.md",
        "news.md",
        "root.verity",
        "files.ndjson.zst",
        "root.erofs",
    ];
    assert_streamable(&fs::read(&built.iso).unwrap(), &expected);

    let mut spec = sample::spec(&scratch.path().join("tree"));
    spec.news = None;
    let without_news = sample::build(&spec, &scratch.path().join("2.iso"));
    let expected: Vec<&str> = expected.into_iter().filter(|name| *name != "news.md").collect();
    assert_streamable(&fs::read(&without_news.iso).unwrap(), &expected);
}

#[test]
fn the_root_is_whole_blocks_and_its_uuid_is_its_hash() {
    let scratch = sample::scratch();
    let built = sample::iso(scratch.path());
    let image = fs::read(&built.iso).unwrap();
    let root = records(&image).into_iter().find(|record| record.name == "root.erofs").unwrap();
    assert_eq!(root.size as u64, built.manifest.root.size);
    assert_eq!(root.size % 4096, 0);
    // EROFS: its magic at 1024.
    assert_eq!(number(&image[root.lba * 2048 + 1024..]), 0xe0f5_e1e2);
}

#[test]
fn the_file_list_says_where_a_file_lies() {
    let scratch = sample::scratch();
    let at = scratch.path().join("tree");
    sample::tree(&at, &["a"]);
    let mut spec = sample::spec(&at);
    spec.compress = false;
    let built = sample::build(&spec, &scratch.path().join("plain.iso"));
    let image = fs::read(&built.iso).unwrap();
    let file = |name: &str| {
        let record = records(&image).into_iter().find(|record| record.name == name).unwrap();
        &image[record.lba * 2048..record.lba * 2048 + record.size]
    };
    let list = zstd::stream::decode_all(file("files.ndjson.zst")).unwrap();
    let entries: Vec<Entry> =
        std::str::from_utf8(&list).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entry = entries.iter().find(|entry| entry.path == "/usr/lib/a").unwrap();
    let content = fs::read(at.join("usr/lib/a")).unwrap();
    assert_eq!(entry.sha256, Some(hex::encode(Sha256::digest(&content))));
    let (offset, length) = entry.extents[0];
    let (offset, length) = (usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
    assert!(length >= 40_000);
    assert!(file("root.erofs")[offset..offset + length].starts_with(&content[..40_000]));
}
