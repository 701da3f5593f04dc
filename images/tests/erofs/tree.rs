//! A tree with every kind of file, as hard to lay out as the builder's are and more.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

/// Bytes that do not compress (xorshift), the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes that compress to about a third.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    for (line, word) in noise(seed, len / 8 + 8).chunks_exact(2).enumerate() {
        bytes.extend(format!("{line:06} slot {word:?} is read-only\n").bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Makes the tree. Whether device nodes and owners were made is told by `root`.
pub fn make(tree: &Path, root: bool) {
    contents(tree);
    names(tree);
    links(tree);
    attributes(tree);
    UnixListener::bind(tree.join("socket")).unwrap();
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    if root {
        let node = |name: &str, kind, major, minor| {
            mknodat(CWD, tree.join(name), kind, Mode::from_raw_mode(0o600), makedev(major, minor)).unwrap();
        };
        node("char", FileType::CharacterDevice, 5, 300);
        node("block", FileType::BlockDevice, 259, 70_000);
        chown(tree.join("etc/text-3"), Some(70_000), Some(70_001)).unwrap();
        chown(tree.join("etc/text-4"), Some(42), Some(43)).unwrap();
        chown(tree.join("names"), Some(100_000), None).unwrap();
    } else {
        println!("not root: no device nodes and foreign owners in the tree");
    }
    fs::set_permissions(tree.join("etc/text-5"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(tree.join("etc"), fs::Permissions::from_mode(0o1777)).unwrap();
}

fn contents(tree: &Path) {
    for dir in ["etc", "lib", "many", "names"] {
        fs::create_dir(tree.join(dir)).unwrap();
    }
    for index in 0..60_u32 {
        let size = index as usize;
        let seed = u64::from(index) + 1;
        fs::write(tree.join(format!("etc/text-{index}")), text(seed, size * 3001)).unwrap();
        fs::write(tree.join(format!("etc/small-{index}")), noise(seed, size * 61)).unwrap();
        fs::write(tree.join(format!("lib/noise-{index}")), noise(seed + 100, size * 700)).unwrap();
        // The same middle behind heads of different lengths, for deduplication; and equal tails.
        let shifted = [text(seed + 200, size * 131), noise(7, 40_000), text(9, 70_001)].concat();
        fs::write(tree.join(format!("lib/shifted-{index}")), shifted).unwrap();
    }
    fs::write(tree.join("block"), noise(3, 4096)).unwrap();
    fs::rename(tree.join("block"), tree.join("lib/one-block")).unwrap();
    // Stored and compressed clusters in turn, long enough for every form of the index.
    let mixed: Vec<u8> = (0..40).flat_map(|n| [text(n, 90_017), noise(n, 9_000)].concat()).collect();
    fs::write(tree.join("lib/mixed"), mixed).unwrap();
    let sparse = File::create(tree.join("lib/sparse")).unwrap();
    sparse.write_all_at(&text(1, 10_000), 0).unwrap();
    sparse.write_all_at(&noise(1, 10_000), 2 << 20).unwrap();
    sparse.set_len(4 << 20).unwrap();
    File::create(tree.join("lib/hole")).unwrap().set_len(1 << 20).unwrap();
    for index in 0..3100 {
        fs::write(tree.join(format!("many/an-entry-of-a-large-directory-{index}")), index.to_string())
            .unwrap();
    }
}

fn names(tree: &Path) {
    let names = tree.join("names");
    for name in [
        &b"not\xff\xfeutf-8\xc3"[..],
        b"back\\slash",
        b"new\nline",
        "caf\u{e9}".as_bytes(),
        &[b'n'; 255],
        &[0xa0; 255],
        b"!before the dots",
    ] {
        fs::write(names.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for index in 0..40 {
        fs::write(names.join(format!("{index:0>255}")), b"x").unwrap();
    }
    let mut deep = names;
    for _ in 0..70 {
        deep.push("deeper");
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("bottom"), b"reached").unwrap();
}

fn links(tree: &Path) {
    for (name, target) in [
        ("short", &b"etc/text-1"[..]),
        ("long", &[&b"../"[..]; 1360].concat()),
        ("foreign", b"\xfftarget\\"),
        ("medium", &[b'm'; 2000]),
    ] {
        symlink(OsStr::from_bytes(target), tree.join(name)).unwrap();
    }
    fs::hard_link(tree.join("etc/text-20"), tree.join("hard-1")).unwrap();
    fs::hard_link(tree.join("etc/text-20"), tree.join("names/hard-2")).unwrap();
    fs::hard_link(tree.join("etc/small-7"), tree.join("names/hard-3")).unwrap();
}

fn attributes(tree: &Path) {
    let set = |name: String, key: &str, value: &[u8]| {
        setxattr(tree.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    for index in 0..20_u64 {
        set(format!("etc/text-{index}"), "user.shared", b"the same for many files");
        set(format!("lib/noise-{index}"), "user.shared", b"the same for many files");
        set(format!("lib/noise-{index}"), "user.second", &[b'2'; 301]);
        set(format!("etc/small-{index}"), "user.own", &noise(index, 50 + usize::try_from(index).unwrap()));
    }
    set("etc".to_owned(), "user.shared", b"the same for many files");
    set("lib/mixed".to_owned(), "user.large", &noise(5, 1500));
}
