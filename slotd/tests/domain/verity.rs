//! Hash trees against `veritysetup format`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use slotd::domain::manifest::{BLOCK, Manifest, Sha256Hex};
use slotd::domain::verity::{BLOCK_LEN, Geometry, Tree, superblock};

use super::sample;

/// A sparse image of `blocks` blocks with something in its first, a middle and its last block, and what
/// `veritysetup` makes of it: manifest and `root.verity`.
fn format(directory: &Path, blocks: u64, salt: &[u8]) -> (Manifest, Vec<u8>) {
    let (data, tree) = (directory.join("data"), directory.join("tree"));
    let file = File::create(&data).unwrap();
    file.set_len(blocks * BLOCK).unwrap();
    for (block, text) in [(blocks - 1, b"last."), (blocks / 2, b"amid."), (0, b"first")] {
        file.write_all_at(text, block * BLOCK).unwrap();
    }
    let _ = fs::remove_file(&tree);
    let salt = if salt.is_empty() { "-".to_owned() } else { hex::encode(salt) };
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let out = Command::new("veritysetup")
        .args(["format", "--salt", &salt, "--uuid", uuid, "--hash", "sha256"])
        .args([&data, &tree])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let root = text.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned();
    let mut manifest = sample();
    manifest.root.size = blocks * BLOCK;
    manifest.root.verity.root_hash = Sha256Hex::try_from(root).unwrap();
    manifest.root.verity.salt = if salt == "-" { String::new() } else { salt };
    (manifest, fs::read(&tree).unwrap())
}

/// Proves a whole `root.verity`; the level and index of the first bad block, if not.
fn prove(manifest: &Manifest, file: &[u8]) -> Result<Tree, (usize, u64)> {
    let mut tree = Tree::new(manifest);
    let blocks: Vec<&[u8]> = file.chunks_exact(BLOCK_LEN).collect();
    for number in 0..tree.upper_blocks() {
        tree.prove_upper(blocks[usize::try_from(1 + number).unwrap()]).map_err(|e| (e.level, e.index))?;
    }
    if let Some(level) = tree.geometry().levels.first().copied() {
        for index in 0..level.blocks {
            let block = blocks[usize::try_from(level.start + index).unwrap()];
            tree.prove_leaf_hashes(index, block).map_err(|e| (e.level, e.index))?;
        }
    }
    Ok(tree)
}

#[test]
fn trees_are_those_of_veritysetup() {
    let directory = tempfile::tempdir().unwrap();
    let long: Vec<u8> = (0..=255).collect();
    for (blocks, levels) in [(1, 0), (2, 1), (127, 1), (128, 1), (129, 2), (128 * 128, 2), (128 * 128 + 1, 3)]
    {
        for salt in [&[][..], &long[..32], &long[..]] {
            let (manifest, file) = format(directory.path(), blocks, salt);
            let what = format!("{blocks} blocks, salt of {} bytes", salt.len());
            assert_eq!(file[..BLOCK_LEN], superblock(&manifest)[..], "superblock: {what}");
            let geometry = Geometry::new(blocks);
            assert_eq!(geometry.levels.len(), levels, "levels: {what}");
            assert_eq!(file.len() as u64, geometry.file_blocks * BLOCK, "length: {what}");
            let tree = prove(&manifest, &file).unwrap_or_else(|at| panic!("{what}: {at:?} does not prove"));
            // The leaves are those of the data, and the root is that of the only block where there is no level.
            let mut data = [0; BLOCK_LEN];
            data[..5].copy_from_slice(b"first");
            let leaf = tree.hasher().hash(&data);
            match geometry.levels.first() {
                None => assert_eq!(leaf, *tree.root(), "{what}"),
                Some(level) => {
                    let at = usize::try_from(level.start * BLOCK).unwrap();
                    assert_eq!(file[at..at + 32], leaf, "first leaf: {what}");
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_any_level_is_found_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let (manifest, file) = format(directory.path(), 128 * 128 + 1, b"salt");
    let geometry = Geometry::new(128 * 128 + 1);
    for (number, level) in geometry.levels.iter().enumerate() {
        for index in [0, level.blocks - 1] {
            // The first and the very last bit: padding behind the last digest counts too.
            for (byte, bit) in [(0, 1), (BLOCK_LEN - 1, 0x80)] {
                let mut bad = file.clone();
                bad[usize::try_from((level.start + index) * BLOCK).unwrap() + byte] ^= bit;
                assert_eq!(prove(&manifest, &bad).unwrap_err(), (number, index));
            }
        }
    }
    let mut other = manifest.clone();
    other.root.verity.root_hash.0[0] ^= 1;
    assert_eq!(prove(&other, &file).unwrap_err(), (2, 0), "another root hash");
    let mut salted = manifest;
    salted.root.verity.salt = "00".into();
    assert_eq!(prove(&salted, &file).unwrap_err(), (2, 0), "another salt");
}

#[test]
fn nothing_proves_under_a_level_that_is_not_proven() {
    let mut manifest = sample();
    manifest.root.size = 129 * BLOCK;
    let tree = Tree::new(&manifest);
    assert!(tree.prove_leaf_hashes(0, &[0; BLOCK_LEN]).is_err());
    assert!(tree.prove_leaf_hashes(u64::MAX, &[0; BLOCK_LEN]).is_err());
}

#[test]
fn every_block_of_a_tree_file_has_one_place() {
    for blocks in [1, 2, 128, 129, 16384, 16385, 128 * 128 * 128 + 1] {
        let geometry = Geometry::new(blocks);
        assert_eq!(geometry.locate(0), None, "the superblock");
        assert_eq!(geometry.locate(geometry.file_blocks), None, "past the end");
        let total: u64 = geometry.levels.iter().map(|level| level.blocks).sum();
        assert_eq!(total + 1, geometry.file_blocks);
        for (number, level) in geometry.levels.iter().enumerate() {
            assert_eq!(geometry.locate(level.start), Some((number, 0)));
            assert_eq!(geometry.locate(level.start + level.blocks - 1), Some((number, level.blocks - 1)));
        }
        // Highest level first in the file.
        assert!(geometry.levels.windows(2).all(|pair| pair[1].start < pair[0].start));
    }
}
