use proptest::prelude::*;

use super::{BadBlocks, MAX_RUNS, Pace, scan};
use crate::store::blocks::tests::Fixture;
use crate::store::memory_medium::Faults;
use crate::store::types::Progress;

fn found(fixture: &Fixture, threads: usize) -> BadBlocks {
    let pace = Pace { threads, idle: false };
    scan(fixture.image(), 0, fixture.size, pace, &Progress::default()).unwrap()
}

#[test]
fn a_sound_image_has_no_bad_block_and_progress_ends_at_its_size() {
    for size in Fixture::SIZES {
        let fixture = Fixture::installed(size);
        let progress = Progress::default();
        let bad = scan(fixture.image(), 0, size, Pace { threads: 0, idle: false }, &progress).unwrap();
        assert_eq!((bad, progress.done()), (BadBlocks::default(), size));
    }
}

#[test]
fn damage_is_named_block_by_block_and_unreadable_sectors_take_nobody_along() {
    let fixture = Fixture::installed(20 << 20);
    let flipped = [0, 4096 * 700 + 5, (8 << 20) - 1, 8 << 20, (20 << 20) - 1];
    let faults = Faults {
        flipped: flipped.into(),
        unreadable: [4096 * 703, 4096 * 1000 + 4095].into(),
        ..Faults::default()
    };
    fixture.medium.fail(faults);
    for threads in [0, 1, 5] {
        let bad = found(&fixture, threads);
        let extents = [(0, 1), (700, 1), (703, 1), (1000, 1), (2047, 2), (5119, 1)];
        assert_eq!(bad.extents(), extents);
        assert_eq!((bad.count, bad.first(), bad.last), (7, Some(0), Some(5119)));
    }
}

#[test]
fn under_a_bad_hash_block_nothing_is_judged_but_it_is_named_itself() {
    let fixture = Fixture::installed(20 << 20);
    let level = fixture.tree.geometry().levels[0];
    let block = (fixture.tree_at / 4096) + level.start + 3;
    for faults in [
        Faults { flipped: [block * 4096 + 100].into(), ..Faults::default() },
        Faults { unreadable: [block * 4096].into(), ..Faults::default() },
    ] {
        let mut faults = faults;
        faults.flipped.extend([4096 * (3 * 128 + 7), 4096 * 5]);
        fixture.medium.fail(faults);
        assert_eq!(found(&fixture, 0).extents(), [(5, 1), (block, 1)]);
    }
}

#[test]
fn a_cancelled_scan_has_no_result() {
    let fixture = Fixture::installed(1 << 20);
    let progress = Progress::default();
    progress.cancel();
    assert_eq!(scan(fixture.image(), 0, 1 << 20, Pace { threads: 0, idle: true }, &progress), None);
}

proptest! {
    #[test]
    fn bad_blocks_are_a_set(blocks in prop::collection::vec(0_u64..300, 0..200), cut in 0_usize..200) {
        let set: std::collections::BTreeSet<u64> = blocks.iter().copied().collect();
        let mut bad = BadBlocks::default();
        for block in &blocks {
            bad.add(*block);
        }
        let listed: Vec<u64> = bad.extents().iter().flat_map(|(first, count)| *first..first + count).collect();
        prop_assert_eq!(&listed, &set.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!((bad.count, bad.first(), bad.last), (set.len() as u64, set.first().copied(), set.last().copied()));
        // The same in two parts.
        let (one, two) = blocks.split_at(cut.min(blocks.len()));
        let (mut a, mut b) = (BadBlocks::default(), BadBlocks::default());
        for block in one {
            a.add(*block);
        }
        for block in two {
            b.add(*block);
        }
        a.merge(&b);
        prop_assert_eq!((a.count, a.extents()), (bad.count, bad.extents()));
    }
}

#[test]
fn more_runs_than_are_kept_are_counted() {
    let mut bad = BadBlocks::default();
    for block in (0..10_000).rev() {
        bad.add(block * 2);
    }
    assert_eq!((bad.count, bad.last, bad.first()), (10_000, Some(19_998), Some(0)));
    assert_eq!(bad.extents().len(), MAX_RUNS);
    let mut all = BadBlocks::default();
    all.add(1);
    all.merge(&bad);
    assert_eq!((all.count, all.last, all.extents()[0]), (10_001, Some(19_998), (0, 3)));
}
