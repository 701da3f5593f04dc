//! The EROFS reader against images of `mkfs.erofs` and what `dump.erofs` says of them.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod tools;
mod tree;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use slotd::domain::file_list::{Entry, Kind};
use sps_images::erofs::{self, ErofsError, PACKED, SHARED_XATTRS, SUPERBLOCK, escape};

use tools::Tools;

const BLOCK: u64 = 4096;

/// Paths of the source tree without the leading slash, the root as the empty one.
fn paths(tree: &Path) -> Vec<Vec<u8>> {
    let mut found = vec![Vec::new()];
    let mut next = 0;
    while next < found.len() {
        let path: PathBuf = tree.join(OsStr::from_bytes(&found[next]));
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap().path();
                found.push(entry.strip_prefix(tree).unwrap().as_os_str().as_bytes().to_vec());
            }
        }
        next += 1;
    }
    found
}

fn walk(tree: &Path, image: &Path) -> Vec<Entry> {
    let file = File::open(image).unwrap();
    let hashed = RefCell::new(BTreeSet::new());
    let sha256 = |path: &Path| {
        let path = tree.join(path);
        assert!(hashed.borrow_mut().insert(path.metadata()?.ino()), "hashed twice: {}", path.display());
        Ok(Sha256::digest(fs::read(path)?).into())
    };
    erofs::walk(&file, file.metadata().unwrap().len(), &sha256).unwrap()
}

fn in_tree(entries: &[Entry]) -> BTreeMap<&str, &Entry> {
    entries
        .iter()
        .filter(|entry| entry.path.starts_with('/'))
        .map(|entry| (entry.path.as_str(), entry))
        .collect()
}

/// The list says what the source tree is.
fn compare_with_tree(tree: &Path, paths: &[Vec<u8>], entries: &[Entry]) {
    let listed = in_tree(entries);
    let inner = entries.len() - listed.len();
    assert_eq!(listed.len(), paths.len(), "each path once");
    assert!(entries.is_sorted_by(|a, b| a.path.as_bytes() < b.path.as_bytes()));
    assert!((1..=3).contains(&inner), "{inner} entries without a path");
    let mut inodes = BTreeMap::new();
    for path in paths {
        let name = format!("/{}", escape(path));
        let entry = listed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is missing"));
        let file = tree.join(OsStr::from_bytes(path));
        let meta = fs::symlink_metadata(&file).unwrap();
        let kind = meta.file_type();
        let expected = if kind.is_file() {
            Kind::File
        } else if kind.is_dir() {
            Kind::Dir
        } else if kind.is_symlink() {
            Kind::Symlink
        } else if kind.is_char_device() {
            Kind::Char
        } else if kind.is_block_device() {
            Kind::Block
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            Kind::Socket
        };
        let found = (entry.kind, entry.mode, entry.uid, entry.gid);
        assert_eq!(found, (expected, meta.mode() & 0o7777, meta.uid(), meta.gid()), "{name}");
        let rdev = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let is_device = matches!(expected, Kind::Char | Kind::Block);
        assert_eq!(entry.device, is_device.then_some(rdev), "{name}");
        let target = fs::read_link(&file).ok().map(|target| escape(target.as_os_str().as_bytes()));
        assert_eq!(entry.target, target, "{name}");
        let hash = kind.is_file().then(|| hex::encode(Sha256::digest(fs::read(&file).unwrap())));
        assert_eq!(entry.sha256, hash, "{name}");
        if expected != Kind::Dir {
            assert_eq!(entry.size, meta.len(), "{name}");
        }
        assert_eq!(*inodes.entry(meta.ino()).or_insert(entry.inode), entry.inode, "{name}: hard links");
    }
    let numbers: BTreeSet<u64> = inodes.values().copied().collect();
    assert_eq!(numbers.len(), inodes.len(), "different files, different inodes");
}

/// Every byte of the image that is not zero has an owner, and inodes do not overlap.
fn compare_with_bytes(image: &Path, entries: &[Entry]) {
    let bytes = fs::read(image).unwrap();
    let mut owned = vec![false; bytes.len()];
    let mut inodes = BTreeMap::new();
    for entry in entries {
        inodes.insert(entry.at.0, entry.at.1);
        for (at, len) in entry.extents.iter().chain([&entry.at]) {
            let (at, len) = (usize::try_from(*at).unwrap(), usize::try_from(*len).unwrap());
            owned[at..at + len].fill(true);
        }
    }
    let lost = bytes.iter().zip(&owned).position(|(byte, owned)| *byte != 0 && !owned);
    assert_eq!(lost, None, "byte without an owner");
    let ends = inodes.iter().map(|(at, len)| at + len);
    assert!(ends.zip(inodes.keys().skip(1)).all(|(end, next)| end <= *next), "inodes overlap");
}

/// What `dump.erofs` says, in the form of the list: whole blocks, merged; fragments as the packed inode's.
fn expected_extents(dump: &tools::Dump, at: (u64, u64)) -> (Vec<(u64, u64)>, bool) {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut fragment = false;
    for (_, physical, len) in &dump.extents {
        if *len == 0 {
            fragment = true;
            continue;
        }
        if *physical >= at.0 && physical + len <= at.0 + at.1 {
            assert_eq!(physical + len, at.0 + at.1, "an inline tail ends the inode");
            continue;
        }
        assert_eq!(physical % BLOCK, 0);
        let len = len.next_multiple_of(BLOCK);
        match extents.last_mut() {
            Some(last) if last.0 + last.1 == *physical => last.1 += len,
            Some(last) if *last == (*physical, len) => {}
            _ => extents.push((*physical, len)),
        }
    }
    (extents, fragment)
}

fn compare_with_dump(tools: &Tools, image: &Path, paths: &[Vec<u8>], entries: &[Entry]) -> usize {
    let listed = in_tree(entries);
    let mut seen = 0;
    for (index, path) in paths.iter().enumerate() {
        if path.starts_with(b"many/") && index % 60 != 0 {
            continue;
        }
        let name = format!("/{}", escape(path));
        let entry = listed[name.as_str()];
        let dump = tools.by_path(image, path);
        let found = (entry.inode, entry.size, entry.mode & 0o777, entry.uid, entry.gid);
        assert_eq!(found, (dump.nid, dump.size, dump.mode & 0o777, dump.uid, dump.gid), "{name}");
        assert_eq!(entry.at.0, 32 * dump.nid, "{name}: metadata starts at block 0");
        assert!(entry.at.1 >= dump.inode, "{name}: {} bytes of inode, {dump:?}", entry.at.1);
        let (extents, fragment) = expected_extents(&dump, entry.at);
        if fragment {
            assert!(entry.extents.starts_with(&extents) || extents.is_empty(), "{name}: {dump:?} {entry:?}");
            assert!(entry.extents.len() >= extents.len().max(1), "{name} {entry:?}");
        } else {
            assert_eq!(entry.extents, extents, "{name}: {dump:?}");
        }
        seen += 1;
    }
    if let Some(packed) = entries.iter().find(|entry| entry.path == PACKED) {
        let dump = tools.by_nid(image, packed.inode);
        assert_eq!(packed.extents, expected_extents(&dump, packed.at).0, "packed inode");
        assert_eq!(packed.size, dump.size);
    }
    seen
}

fn check(tools: &Tools, tree: &Path, options: &[&str]) -> (PathBuf, Vec<Entry>) {
    let paths = paths(tree);
    let image = tools.mkfs(options, "image", tree);
    let entries = walk(tree, &image);
    compare_with_tree(tree, &paths, &entries);
    compare_with_bytes(&image, &entries);
    let seen = compare_with_dump(tools, &image, &paths, &entries);
    assert!(seen >= 200, "only {seen} files compared");
    println!("mkfs.erofs {options:?}: {} entries, {seen} compared with dump.erofs", entries.len());
    (image, entries)
}

fn host_tree() -> (Tools, PathBuf) {
    let tools = Tools::host();
    let tree = tools.path("tree");
    fs::create_dir(&tree).unwrap();
    tree::make(&tree, tools::is_root());
    (tools, tree)
}

#[test]
fn lists_what_this_systems_mkfs_makes() {
    let (tools, tree) = host_tree();
    for options in [
        &["-T0"][..],
        &["-zlz4hc,12", "-C65536", "-T0"],
        &["-zlz4hc", "-C65536", "-Eztailpacking"],
        &["-zlz4", "-Elegacy-compress", "-T0"],
        &["-zlz4", "-C16384", "-Elegacy-compress,ztailpacking", "-x-1"],
        &["-zlz4", "-T0", "-x0"],
        &["--chunksize=4096", "-T0"],
        &["--chunksize=16384", "-Eforce-chunk-indexes"],
        &["-Eforce-inode-extended,noinline_data"],
    ] {
        let (_, entries) = check(&tools, &tree, options);
        let shared = entries.iter().any(|entry| entry.path == SHARED_XATTRS);
        assert_eq!(shared, !options.contains(&"-x-1"), "shared extended attributes, {options:?}");
        assert!(entries.iter().any(|entry| entry.path == SUPERBLOCK));
    }
}

/// The same tree within the Debian tree, for the tools that run there.
fn debian_tree() -> Option<(Tools, PathBuf)> {
    let tools = Tools::debian()?;
    let (_host, source) = host_tree();
    let tree = tools.path("tree");
    let copied = Command::new("cp").arg("-a").arg(&source).arg(&tree).status().unwrap();
    assert!(copied.success());
    Some((tools, tree))
}

#[test]
fn lists_what_debian_13s_mkfs_makes() {
    let Some((tools, tree)) = debian_tree() else { return };
    for options in [
        &["-T0"][..],
        &["-zlz4hc,level=12", "-C65536", "-Efragments,dedupe,ztailpacking", "-T0"],
        &["-zlz4", "-Ededupe"],
        &["-zlz4", "-Eztailpacking", "-C16384", "-T0"],
        &["-zlz4", "-Efragments", "-Elegacy-compress"],
        &["-zzstd,level=3", "-C65536", "-Efragments", "-T0"],
        &["-zlz4:lzma,level=1", "-C32768", "-Eall-fragments,dedupe"],
        &["--chunksize=4096"],
        &["--chunksize=16384", "-Eforce-chunk-indexes", "-T0"],
    ] {
        let (image, entries) = check(&tools, &tree, options);
        let fragments = options.iter().any(|option| option.contains("fragments"));
        assert_eq!(entries.iter().any(|entry| entry.path == PACKED), fragments, "{options:?}");
        if fragments {
            only_listed_bytes_matter(&tools, &tree, &image, &entries);
        }
    }
}

/// With all content but a file's own extents wiped, the file reads as before; with its own wiped, it does not.
fn only_listed_bytes_matter(tools: &Tools, tree: &Path, image: &Path, entries: &[Entry]) {
    let original = fs::read(image).unwrap();
    let wiped = tools.path("wiped");
    let listed = in_tree(entries);
    let wipe = |extents: &mut dyn Iterator<Item = (u64, u64)>, keep: &[(u64, u64)]| {
        let mut bytes = original.clone();
        let range = |(at, len): (u64, u64)| usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        extents.for_each(|extent| bytes[range(extent)].fill(0xa5));
        keep.iter().for_each(|extent| bytes[range(*extent)].copy_from_slice(&original[range(*extent)]));
        fs::write(&wiped, bytes).unwrap();
    };
    for path in [
        "etc/text-1",
        "etc/text-33",
        "etc/small-59",
        "lib/shifted-20",
        "lib/mixed",
        "lib/sparse",
        "lib/noise-50",
    ] {
        let content = fs::read(tree.join(path)).unwrap();
        let entry = listed[format!("/{path}").as_str()];
        let files = entries.iter().filter(|entry| entry.kind == Kind::File && entry.path != SHARED_XATTRS);
        // The packed inode's inline tail is one of the extents that the files list.
        let packed = entries.iter().find(|entry| entry.path == PACKED).unwrap();
        let metadata = [&entry.extents[..], &[(packed.at.0, 64)]].concat();
        wipe(&mut files.flat_map(|entry| entry.extents.clone()), &metadata);
        assert!(
            tools.cat(&wiped, path.as_bytes()).as_ref() == Some(&content),
            "{path} needs more than {entry:?}"
        );
        for extent in &entry.extents {
            wipe(&mut [*extent].into_iter(), &[]);
            assert!(
                tools.cat(&wiped, path.as_bytes()).as_ref() != Some(&content),
                "{path} does not need {extent:?}"
            );
        }
    }
}

#[test]
fn list_is_rendered_and_compressed_reproducibly() {
    let (tools, tree) = host_tree();
    let image = tools.mkfs(&["-zlz4hc", "-T0"], "image", &tree);
    let entries = walk(&tree, &image);
    let list = erofs::render(&entries).unwrap();
    let read: Vec<Entry> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, entries);
    let compressed = erofs::compress(&list).unwrap();
    assert_eq!(compressed, erofs::compress(&list).unwrap());
    assert!(compressed.len() < list.len() / 3);
    assert_eq!(zstd::decode_all(&compressed[..]).unwrap(), list.as_bytes());
}

fn small_image(tools: &Tools, options: &[&str]) -> Vec<u8> {
    let tree = tools.path("small");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    for index in 0..30 {
        fs::write(tree.join(format!("a/b/file-{index}")), tree::noise(1, index * 997)).unwrap();
        fs::write(tree.join(format!("a/{index}")), vec![b'a'; index * 30_011]).unwrap();
    }
    std::os::unix::fs::symlink("a/b", tree.join("link")).ok();
    fs::read(tools.mkfs(options, "small.img", &tree)).unwrap()
}

fn walk_bytes(image: &Vec<u8>) -> Result<Vec<Entry>, ErofsError> {
    erofs::walk(image, image.len() as u64, &|_| Ok([0; 32]))
}

#[test]
fn damage_is_told_and_neither_panics_nor_loops() {
    let mut images = Vec::new();
    let host = Tools::host();
    for options in [
        &["-T0"][..],
        &["-zlz4", "-C65536", "-Eztailpacking"],
        &["-zlz4", "-Elegacy-compress"],
        &["--chunksize=4096"],
    ] {
        images.push(small_image(&host, options));
    }
    if let Some(debian) = Tools::debian() {
        images.push(small_image(&debian, &["-zlz4", "-C65536", "-Efragments,dedupe,ztailpacking"]));
    }
    // Where the metadata lies: flips elsewhere change nothing.
    let places: Vec<Vec<usize>> = images
        .iter()
        .map(|image| {
            let range =
                |(at, len): (u64, u64)| usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
            let entries = walk_bytes(image).unwrap();
            let directories = entries.iter().filter(|entry| entry.kind == Kind::Dir);
            let directories = directories.flat_map(|entry| entry.extents.clone());
            entries.iter().map(|entry| entry.at).chain(directories).flat_map(range).collect()
        })
        .collect();
    let refused = RefCell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    let case = (0..images.len(), flips);
    let result = runner.run(&case, |(which, flips)| {
        let mut image = images[which].clone();
        for (index, value) in &flips {
            image[*index.get(&places[which])] ^= value;
        }
        // Every walk ends: what it reads is bounded by the image's length.
        if walk_bytes(&image).is_err() {
            *refused.borrow_mut() += 1;
        }
        Ok(())
    });
    result.unwrap();
    assert!(*refused.borrow() > 400, "most damage is noticed: {}", refused.borrow());
    for image in &images {
        for len in (0..image.len()).step_by(1013) {
            walk_bytes(&image[..len].to_vec()).expect_err("a cut image has less than it says");
        }
    }
}

#[test]
fn refuses_what_it_does_not_know() {
    let mut image = small_image(&Tools::host(), &["-T0"]);
    image[1024 + 80 + 1] = 0x81;
    let error = walk_bytes(&image).unwrap_err();
    assert!(
        matches!(&error, ErofsError::Features { bits: 0x8100, names } if names == "metadata box, unknown"),
        "{error}"
    );
    image[1024] = 0;
    assert!(matches!(walk_bytes(&image), Err(ErofsError::Magic { .. })));
    let failing = |_: &Path| Err(anyhow::anyhow!("gone"));
    let image = small_image(&Tools::host(), &["-T0"]);
    let error = erofs::walk(&image, image.len() as u64, &failing).unwrap_err();
    assert!(matches!(&error, ErofsError::Hash { path, .. } if path.starts_with("/a/")), "{error}");
}
