use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;

use super::{BlockError, CHUNK, Image, Marks, SEGMENT, write};
use crate::device::medium::Medium;
use crate::device::source::{Source, SourceError};
use crate::domain::manifest::{BLOCK, Manifest, Sha256Hex};
use crate::domain::verity::{BLOCK_LEN, Geometry, Hash, Hasher, PER_BLOCK, Tree};
use crate::store::memory_medium::{Faults, MemoryMedium};

const TEXT: &str = r#"{"boot":"none","boot_version":"8","build_date":"2026-11-22T00:00:00Z","compatible":{"hardware":["*"],"product":"sps"},"config_schema":1,"files":[],"meta":{},"required_space":0,"revoked_below":0,"root":{"size":4096,"verity":{"algorithm":"sha256","data_block":4096,"hash_block":4096,"root_hash":"0000000000000000000000000000000000000000000000000000000000000000","salt":"5a","uuid":"01234567-89ab-cdef-0123-456789abcdef"}},"schema":1,"security_epoch":1,"state_schema":1,"upgrade_from":[],"version":"8"}"#;

/// A root image, sparse but with something in it, and a slot whose tree is written.
pub(in crate::store) struct Fixture {
    pub medium: MemoryMedium,
    pub tree: Tree,
    pub tree_at: u64,
    pub size: u64,
    data: File,
}

impl Fixture {
    pub(in crate::store) const SIZES: [u64; 5] =
        [BLOCK, (1 << 20) - BLOCK, 1 << 20, (1 << 20) + BLOCK, SEGMENT + BLOCK];

    /// The tree is in the slot, the image is not.
    pub(in crate::store) fn new(size: u64) -> Self {
        let data = tempfile::tempfile().unwrap();
        data.set_len(size).unwrap();
        for at in (0..size).step_by(777 * 4096).chain([size - 8]) {
            data.write_all_at(&(at + 1).to_le_bytes(), at).unwrap();
        }
        let mut manifest: Manifest = serde_json::from_str(TEXT).unwrap();
        manifest.root.size = size;
        let (levels, root) = hash(&data, size / BLOCK);
        manifest.root.verity.root_hash = Sha256Hex(root);
        let mut tree = Tree::new(&manifest);
        let geometry = Geometry::new(size / BLOCK);
        let tree_at = size;
        let medium = MemoryMedium::new(tree_at + geometry.file_blocks * BLOCK);
        for (level, bytes) in geometry.levels.iter().zip(&levels) {
            medium.write_at(tree_at + level.start * BLOCK, bytes).unwrap();
        }
        for block in levels.iter().skip(1).rev().flat_map(|level| level.chunks(BLOCK_LEN)) {
            tree.prove_upper(block).unwrap();
        }
        medium.fail(Faults::default());
        Self { medium, tree, tree_at, size, data }
    }

    /// The image is in the slot too.
    pub(in crate::store) fn installed(size: u64) -> Self {
        let fixture = Self::new(size);
        fixture.write(0).unwrap();
        fixture.medium.fail(Faults::default());
        fixture
    }

    pub(in crate::store) fn image(&self) -> Image<'_> {
        Image { medium: &self.medium, tree: &self.tree, tree_at: self.tree_at, size: self.size }
    }

    /// Writes from byte `from` on; what was told to be durable at the end.
    fn write(&self, from: u64) -> Result<u64, BlockError> {
        let told = Mutex::new(vec![from]);
        let marks = Marks { received: &|_| {}, durable: &|at| told.lock().unwrap().push(at) };
        let descriptor = OwnedFd::from(File::open(format!("/proc/self/fd/{}", raw(&self.data))).unwrap());
        let mut source = Source::new(descriptor, 0, Duration::from_secs(5), &|| false).unwrap();
        source.skip_to(from, &mut []).unwrap();
        let done = write(self.image(), &mut source, from, true, &marks);
        let told = told.into_inner().unwrap();
        assert!(told.windows(2).all(|pair| pair[0] <= pair[1]), "durable goes back: {told:?}");
        done.map(|()| told.last().copied().unwrap())
    }

    /// The slot holds nothing but zeros and blocks of the image.
    fn assert_nothing_foreign(&self) {
        let (mut there, mut wanted) = (vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]);
        for at in (0..self.size).step_by(BLOCK_LEN) {
            self.medium.read_at(at, &mut there).unwrap();
            self.data.read_exact_at(&mut wanted, at).unwrap();
            assert!(there == wanted || there.iter().all(|b| *b == 0), "byte {at}");
        }
    }
}

fn raw(file: &File) -> i32 {
    use std::os::fd::AsRawFd as _;
    file.as_raw_fd()
}

/// All levels, lowest first, and the root hash.
fn hash(data: &File, blocks: u64) -> (Vec<Vec<u8>>, Hash) {
    let hasher = Hasher::new(&[0x5a]);
    let mut block = vec![0; BLOCK_LEN];
    let mut below: Vec<Hash> = (0..blocks)
        .map(|number| {
            data.read_exact_at(&mut block, number * BLOCK).unwrap();
            hasher.hash(&block)
        })
        .collect();
    let mut levels = Vec::new();
    while below.len() > 1 {
        let per_block = usize::try_from(PER_BLOCK).unwrap();
        let mut level = below.concat();
        level.resize(below.len().div_ceil(per_block) * BLOCK_LEN, 0);
        below = level.chunks(BLOCK_LEN).map(|block| hasher.hash(block)).collect();
        levels.push(level);
    }
    (levels, below[0])
}

#[test]
fn images_of_every_length_are_written_and_all_of_it_is_durable() {
    for size in Fixture::SIZES {
        let fixture = Fixture::new(size);
        assert_eq!(fixture.write(0).unwrap(), size);
        let (mut there, mut wanted) = (vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]);
        for at in (0..size).step_by(BLOCK_LEN) {
            fixture.medium.read_at(at, &mut there).unwrap();
            fixture.data.read_exact_at(&mut wanted, at).unwrap();
            assert!(there == wanted, "byte {at} of {size}");
        }
    }
}

#[test]
fn writing_goes_on_in_the_middle() {
    for from in [CHUNK, 5 * CHUNK, SEGMENT - CHUNK, SEGMENT, SEGMENT + CHUNK] {
        let size = SEGMENT + 3 * CHUNK + BLOCK;
        let fixture = Fixture::new(size);
        assert_eq!(fixture.write(from).unwrap(), size, "from {from}");
        assert_eq!(fixture.medium.writes() as u64, (size - from).div_ceil(CHUNK));
    }
}

#[test]
fn a_damaged_block_is_named_and_never_written() {
    for (size, at) in [(BLOCK, 9), (3 << 20, 0), (3 << 20, (2 << 20) + 4097), (SEGMENT + BLOCK, SEGMENT)] {
        let fixture = Fixture::new(size);
        let mut byte = [0];
        fixture.data.read_exact_at(&mut byte, at).unwrap();
        fixture.data.write_all_at(&[byte[0] ^ 1], at).unwrap();
        match fixture.write(0) {
            Err(BlockError::Arrived { at: named, expected, found }) => {
                assert_eq!(named, at / BLOCK * BLOCK);
                assert_ne!(expected, found);
            }
            other => panic!("{other:?}"),
        }
        fixture.data.write_all_at(&byte, at).unwrap();
        fixture.assert_nothing_foreign();
    }
}

#[test]
fn a_write_that_fails_ends_it_wherever_it_is() {
    let size = 20 * CHUNK + BLOCK;
    for number in [0, 1, 7, 19, 20] {
        let fixture = Fixture::new(size);
        fixture.medium.fail(Faults { write: Some(number), torn: 4096, ..Faults::default() });
        match fixture.write(0) {
            Err(BlockError::Medium(e)) => assert_eq!(e.operation, "write"),
            other => panic!("write {number}: {other:?}"),
        }
        fixture.assert_nothing_foreign();
        // The same fixture again, with nothing failing.
        fixture.medium.fail(Faults::default());
        assert_eq!(fixture.write(0).unwrap(), size);
    }
}

#[test]
fn what_reads_back_otherwise_is_named_with_its_place() {
    for (size, at) in [(BLOCK, 0), (20 << 20, (13 << 20) + 4099), (SEGMENT + BLOCK, SEGMENT + 17)] {
        let fixture = Fixture::new(size);
        fixture.medium.fail(Faults { flipped: [at].into(), ..Faults::default() });
        match fixture.write(0) {
            Err(BlockError::ReadBack { at: named, .. }) => assert_eq!(named, at / BLOCK * BLOCK),
            other => panic!("{other:?}"),
        }
        fixture.medium.fail(Faults { unreadable: [at].into(), ..Faults::default() });
        match fixture.write(0) {
            Err(BlockError::Medium(e)) => assert_eq!(e.operation, "read"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_flushed_is_not_durable() {
    let size = 2 * SEGMENT + BLOCK;
    for number in 0..3 {
        let fixture = Fixture::new(size);
        fixture.medium.fail(Faults { flush: Some(number), ..Faults::default() });
        match fixture.write(0) {
            Err(BlockError::Medium(e)) => assert_eq!(e.operation, "flush"),
            other => panic!("flush {number}: {other:?}"),
        }
    }
}

#[test]
fn a_bad_tree_block_in_the_slot_ends_it_before_its_leaves() {
    let fixture = Fixture::new(2 << 20);
    let level = fixture.tree.geometry().levels[0];
    let at = fixture.tree_at + (level.start + 2) * BLOCK;
    fixture.medium.fail(Faults { flipped: [at + 4000].into(), ..Faults::default() });
    match fixture.write(0) {
        Err(BlockError::Tree(e)) => assert_eq!((e.level, e.index), (0, 2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.medium.writes(), 0);
}

#[test]
fn an_image_that_ends_early_ends_it() {
    for keep in [0, 5000, CHUNK, 3 * CHUNK + 1] {
        let fixture = Fixture::new(4 * CHUNK);
        fixture.data.set_len(keep).unwrap();
        match fixture.write(0) {
            Err(BlockError::Source(SourceError::Ended { at, .. })) => assert_eq!(at, keep),
            other => panic!("{other:?}"),
        }
        fixture.data.set_len(4 * CHUNK).unwrap();
    }
}
