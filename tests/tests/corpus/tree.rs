//! Hash trees that are not those of the image or of the manifest.

use slotd::domain::manifest::Manifest;
use slotd::domain::verity::superblock;
use sps_base::error::ErrorKind::MediaCorrupt;

use crate::firmware::{Firmware, stage};
use crate::judge::Case;

const SUPERBLOCK: &str = "root.verity, byte 0: SHA-256 is";
const TOP: &str = "root.verity, byte 4096: hash block 0 of tree level 1 is";

/// The tree with the superblock that belongs to this manifest.
fn with_superblock(tree: &[u8], manifest: &Manifest) -> Vec<u8> {
    [&superblock(manifest)[..], &tree[4096..]].concat()
}

/// The good firmware, its manifest changed and signed, and a superblock that says the same.
fn agreed(change: impl Fn(&mut Manifest)) -> Firmware {
    let new = stage().good.with_manifest(change);
    let tree = with_superblock(new.file("root.verity"), &new.manifest);
    new.with_file("root.verity", tree)
}

/// The manifest of the good firmware says something else, signed; the tree does not.
fn signed(name: &str, text: &str, change: impl Fn(&mut Manifest) + Send + Sync + 'static) -> Case {
    Case::refused(name, MediaCorrupt, text, move || stage().good.with_manifest(&change).iso())
}

/// Bytes of the superblock are others, the manifest is as it was.
fn superblock_says(name: &str, at: usize, bytes: &'static [u8]) -> Case {
    Case::refused(name, MediaCorrupt, SUPERBLOCK, move || {
        let mut tree = stage().good.file("root.verity").to_vec();
        assert_ne!(tree[at..at + bytes.len()], *bytes);
        tree[at..at + bytes.len()].copy_from_slice(bytes);
        stage().good.with_file("root.verity", tree).iso()
    })
}

pub(crate) fn salt() -> Vec<Case> {
    let other = |manifest: &mut Manifest| manifest.root.verity.salt = "ab".repeat(32);
    let field = "root.verity.salt is";
    vec![
        signed("another salt in the manifest", SUPERBLOCK, other),
        Case::refused("another salt in both", MediaCorrupt, TOP, move || agreed(other).iso()),
        Case::refused("no salt in both", MediaCorrupt, TOP, || agreed(|m| m.root.verity.salt.clear()).iso()),
        superblock_says("another salt in the superblock", 88, &[0xab; 32]),
        superblock_says("a shorter salt in the superblock", 80, &[31, 0]),
        signed("a salt of 257 bytes", field, |m| m.root.verity.salt = "00".repeat(257)),
        signed("a salt of half a byte", field, |m| m.root.verity.salt = "0".into()),
        signed("a salt in upper case", field, |m| m.root.verity.salt = "AB".into()),
    ]
}

pub(crate) fn block_size() -> Vec<Case> {
    let field =
        |data: u32, hash: u32| format!("root.verity.data_block, hash_block is {data}, {hash}; expected 4096");
    let mut cases: Vec<Case> = [0_u32, 512, 1024, 8192, 65536, u32::MAX]
        .into_iter()
        .flat_map(|size| {
            [
                signed(&format!("data blocks of {size} in the manifest"), &field(size, 4096), move |m| {
                    m.root.verity.data_block = size;
                }),
                signed(&format!("hash blocks of {size} in the manifest"), &field(4096, size), move |m| {
                    m.root.verity.hash_block = size;
                }),
            ]
        })
        .collect();
    cases.push(superblock_says("data blocks of 1024 in the superblock", 64, &[0, 4, 0, 0]));
    cases.push(superblock_says("hash blocks of 1024 in the superblock", 68, &[0, 4, 0, 0]));
    cases
}

pub(crate) fn algorithm() -> Vec<Case> {
    let mut cases: Vec<Case> = ["sha512", "sha1", "md5", "SHA256", "sha256 ", "", "crc32"]
        .into_iter()
        .map(|name| {
            let text = format!("root.verity.algorithm is {name}; expected sha256");
            signed(&format!("{name:?} in the manifest"), &text, move |m| {
                m.root.verity.algorithm = name.into();
            })
        })
        .collect();
    cases.push(superblock_says("sha512 in the superblock", 32, b"sha512"));
    cases.push(superblock_says("sha256 and more in the superblock", 38, b"x"));
    cases
}

pub(crate) fn shorter() -> Vec<Case> {
    let whole = stage().good.file("root.verity").len();
    let wrong = |found: usize, expected: usize| {
        format!("root.verity has {found} bytes on the ISO, the manifest says {expected}")
    };
    let cut = |len: usize| {
        move || {
            let mut tree = stage().good.file("root.verity").to_vec();
            tree.resize(len, 0);
            stage().good.with_file("root.verity", tree)
        }
    };
    let mut cases = Vec::new();
    for len in [0, 1, 4096, whole - 4096, whole - 1, whole + 4096] {
        cases.push(Case::refused(
            format!("{len} bytes on the ISO"),
            MediaCorrupt,
            wrong(len, whole),
            move || cut(len)().iso(),
        ));
        // The manifest says the same; the geometry of the root does not.
        cases.push(Case::refused(
            format!("{len} bytes on the ISO and signed"),
            MediaCorrupt,
            wrong(len, whole),
            move || {
                let change = |m: &mut Manifest| {
                    m.files.iter_mut().find(|f| f.name == "root.verity").unwrap().size = len as u64;
                };
                cut(len)().with_manifest(change).iso()
            },
        ));
    }
    cases.push(signed("none in the manifest", "files is no root.verity", |m| {
        m.files.retain(|f| f.name != "root.verity");
    }));
    cases
}

pub(crate) fn of_another_image() -> Vec<Case> {
    let tree = |firmware: &'static Firmware| firmware.file("root.verity");
    let (good, other) = (&stage().good, &stage().other);
    let mixed = move |upper: &'static Firmware, leaves: &'static Firmware| {
        let tree = [&tree(upper)[..8192], &tree(leaves)[8192..]].concat();
        move || good.with_file("root.verity", with_superblock(&tree, &good.manifest)).iso()
    };
    // All that is signed belongs to the other image, only the root does not.
    let claimed = move || {
        let new = good.with_manifest(|m| m.root.verity = other.manifest.root.verity.clone());
        new.with_file("root.verity", tree(other).to_vec())
    };
    vec![
        Case::refused("its whole tree", MediaCorrupt, SUPERBLOCK, move || {
            good.with_file("root.verity", tree(other).to_vec()).iso()
        }),
        Case::refused("its tree under our superblock", MediaCorrupt, TOP, mixed(other, other)),
        Case::refused("its top over our leaves", MediaCorrupt, TOP, mixed(other, good)),
        Case::stopped(
            "our top over its leaves",
            MediaCorrupt,
            "root.verity, byte 8192: hash block 0 of tree level 0 is",
            mixed(good, other),
        ),
        signed("its root hash in our manifest", TOP, move |m| {
            m.root.verity.root_hash = other.manifest.root.verity.root_hash;
        }),
        Case::stopped(
            "its tree and root hash, our root",
            MediaCorrupt,
            "root.erofs, byte 0: block is",
            move || claimed().iso(),
        )
        .signed(claimed),
        Case::stopped("our tree, its root", MediaCorrupt, "root.erofs, byte 0: block is", move || {
            good.with_file("root.erofs", other.file("root.erofs").to_vec()).iso()
        }),
        Case::stopped(
            "our tree, its last block",
            MediaCorrupt,
            "root.erofs, byte 651264: block is",
            move || {
                let (ours, its) = (good.file("root.erofs"), other.file("root.erofs"));
                let at = ours.len() - 4096;
                good.with_file("root.erofs", [&ours[..at], &its[at..]].concat()).iso()
            },
        ),
    ]
}

pub(crate) fn superblock_and_manifest() -> Vec<Case> {
    vec![
        superblock_says("signature", 0, b"VERITY"),
        superblock_says("version 2", 8, &[2]),
        superblock_says("Chrome's hash type", 12, &[0]),
        superblock_says("another uuid", 16, &[0; 16]),
        superblock_says("one block more", 72, &[161]),
        superblock_says("no blocks", 72, &[0; 8]),
        superblock_says("salt of 65535 bytes", 80, &[0xff, 0xff]),
        superblock_says("reserved bytes", 82, &[1]),
        superblock_says("bytes behind the salt", 88 + 32, &[1]),
        superblock_says("the last byte", 4095, &[1]),
        signed("another uuid in the manifest", SUPERBLOCK, |m| {
            m.root.verity.uuid = "01234567-89ab-cdef-0123-456789abcdef".into();
        }),
    ]
}
