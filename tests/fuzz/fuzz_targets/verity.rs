//! The hash tree: exactly the blocks of the tree are accepted, each in its own place; the superblock says what the
//! manifest says.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use fuzz_targets::edits::{Edit, MOST};
use fuzz_targets::fixtures::MANIFEST;
use libfuzzer_sys::fuzz_target;
use slotd::domain::manifest::{BLOCK, Manifest, Sha256Hex};
use slotd::domain::verity::{BLOCK_LEN, Geometry, Hasher, PER_BLOCK, Tree, superblock};

#[derive(Arbitrary, Debug)]
struct Case {
    tree: u8,
    edits: Vec<Edit>,
    order: u8,
    salt: Vec<u8>,
    uuid: [u8; 16],
    blocks: u64,
}

/// Data blocks of the trees: without a level, with one block, with two levels, and with three.
const SHAPES: [u64; 4] = [1, 100, PER_BLOCK + 1, PER_BLOCK * PER_BLOCK + 1];

/// Manifests with their trees, without superblocks, as `root.verity` has them.
static TREES: LazyLock<Vec<(Manifest, Vec<u8>)>> = LazyLock::new(|| SHAPES.map(grow).into());

/// A tree over data that exists by its digests alone.
fn grow(blocks: u64) -> (Manifest, Vec<u8>) {
    let mut manifest = MANIFEST.clone();
    manifest.root.size = blocks * BLOCK;
    let hasher = Hasher::new(&manifest.salt().unwrap_or_default());
    let mut below: Vec<u8> = (0..blocks).flat_map(|number| hasher.hash(&number.to_le_bytes())).collect();
    let mut levels = Vec::new();
    for _ in Geometry::new(blocks).levels {
        below.resize(below.len().next_multiple_of(BLOCK_LEN), 0);
        let above = below.chunks(BLOCK_LEN).flat_map(|block| hasher.hash(block)).collect();
        levels.push(std::mem::replace(&mut below, above));
    }
    manifest.root.verity.root_hash = Sha256Hex(below.try_into().unwrap_or_default());
    (manifest, levels.into_iter().rev().flatten().collect())
}

fn prove(manifest: &Manifest, good: &[u8], case: &Case) {
    let mut bytes = good.to_vec();
    case.edits.iter().take(MOST).for_each(|edit| edit.apply(&mut bytes));
    let is_good = |number: usize, block: &[u8]| good.chunks(BLOCK_LEN).nth(number) == Some(block);
    let mut tree = Tree::new(manifest);
    let upper = usize::try_from(tree.upper_blocks()).unwrap_or(usize::MAX);
    // Leaves before the level above them is proven: none is, unless it is the top itself.
    if upper > 0 {
        let early = good.chunks(BLOCK_LEN).nth(upper).unwrap_or_default();
        assert!(tree.prove_leaf_hashes(0, early).is_err(), "proven by nothing");
    }
    for (number, block) in bytes.chunks(BLOCK_LEN).take(upper).enumerate() {
        let proven = tree.prove_upper(block).is_ok();
        assert!(proven == is_good(number, block), "upper block {number}");
        if !proven {
            return;
        }
    }
    if bytes.len() < upper * BLOCK_LEN {
        return;
    }
    // All blocks of the tree have the level under the top in common; a case looks at every 16th of the many.
    let leaves = bytes.chunks(BLOCK_LEN).enumerate().skip(upper);
    let step = if good.len() > 64 * BLOCK_LEN { 16 } else { 1 };
    for (number, block) in leaves.filter(|(number, _)| number % step == usize::from(case.order) % step) {
        let proven = tree.prove_leaf_hashes((number - upper) as u64, block).is_ok();
        assert!(proven == is_good(number, block), "leaf block {}", number - upper);
    }
}

/// The fields as cryptsetup's on-disk format has them.
fn judge_superblock(manifest: &Manifest) {
    let block = superblock(manifest);
    let number =
        |at: usize, len: usize| block[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let salt = manifest.salt().unwrap_or_default();
    assert!(block.starts_with(b"verity\0\0") && (number(8, 4), number(12, 4)) == (1, 1));
    assert!(block[16..32] == manifest.uuid().unwrap_or_default() && block[32..64].starts_with(b"sha256\0"));
    assert!((number(64, 4), number(68, 4), number(72, 8)) == (BLOCK, BLOCK, manifest.root.size / BLOCK));
    assert!(number(80, 2) == salt.len() as u64 && block[88..].starts_with(&salt));
    assert!(block[88 + salt.len()..].iter().all(|byte| *byte == 0));
}

fn judge_geometry(blocks: u64) {
    let geometry = Geometry::new(blocks);
    let mut next = 1;
    for level in geometry.levels.iter().rev() {
        assert!(level.start == next && level.blocks > 0);
        next += level.blocks;
    }
    assert!(next == geometry.file_blocks && geometry.levels.len() <= 10);
    assert!(geometry.locate(0).is_none() && geometry.locate(next).is_none());
    for block in [1, blocks % next, next - 1] {
        let found = geometry.locate(block).map(|(level, index)| geometry.levels[level].start + index);
        assert!(found == (1..next).contains(&block).then_some(block));
    }
}

fuzz_target!(|case: Case| {
    if let Some((manifest, tree)) = TREES.get(usize::from(case.tree) % SHAPES.len()) {
        prove(manifest, tree, &case);
    }
    let mut manifest = MANIFEST.clone();
    let digits = |byte: u8| char::from_digit(u32::from(byte), 16).unwrap_or('0');
    let hex = |bytes: &[u8]| {
        bytes.iter().flat_map(|byte| [digits(byte >> 4), digits(byte & 15)]).collect::<String>()
    };
    manifest.root.verity.salt = hex(case.salt.get(..256).unwrap_or(&case.salt));
    let id = hex(&case.uuid);
    manifest.root.verity.uuid = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
    manifest.root.size = (case.blocks % (1 << 24) + 1) * BLOCK;
    judge_superblock(&manifest);
    judge_geometry(case.blocks);
});
