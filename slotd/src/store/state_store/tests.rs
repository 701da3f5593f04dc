use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Health, RECORD, StateStore, offset};
use crate::device::medium::Medium;
use crate::domain::state::State;
use crate::store::memory_medium::{Faults, MemoryMedium};

fn medium() -> Arc<MemoryMedium> {
    Arc::new(MemoryMedium::new(1 << 20))
}

fn open(medium: &Arc<MemoryMedium>) -> StateStore {
    StateStore::open(Ok(Arc::clone(medium) as Arc<dyn Medium>))
}

fn floor(store: &StateStore) -> Option<u32> {
    let published = store.get();
    (published.health == Health::Valid).then_some(published.state.epoch_floor)
}

fn reason(store: &StateStore) -> String {
    match &store.get().health {
        Health::Lost(why) => why.clone(),
        Health::Valid => panic!("the state is valid"),
    }
}

/// A valid state whose floor is `floor`, written as often.
fn written(floor: u32) -> Arc<MemoryMedium> {
    let medium = medium();
    let store = open(&medium);
    store.reset(State::default()).unwrap();
    for value in 1..=floor {
        store.update(|state| state.epoch_floor = value).unwrap();
    }
    medium
}

fn overwrite(medium: &MemoryMedium, place: usize) {
    medium.write_at(offset(medium, place), &[0xaa; 4096]).unwrap();
}

#[test]
fn what_was_written_is_read_after_a_restart() {
    for count in 0..5 {
        assert_eq!(floor(&open(&written(count))), Some(count));
    }
}

#[test]
fn a_write_torn_anywhere_leaves_the_state_before_it() {
    for count in 0..4 {
        for torn in [0, 1, 16, 63, 64, 70, 512, 4096, RECORD - 1] {
            let medium = written(count);
            let store = open(&medium);
            medium.fail(Faults { write: Some(0), torn, ..Faults::default() });
            store.update(|state| state.epoch_floor = 99).unwrap_err();
            assert_eq!(floor(&store), Some(count), "nobody sees what was not written");
            let found = floor(&open(&medium));
            // All of the payload arrived with a tear behind it, or none of it counts.
            let whole = torn >= 512;
            assert_eq!(found, Some(if whole { 99 } else { count }), "{count}, torn at {torn}");
            // And the same store goes on.
            store.update(|state| state.epoch_floor = 100).unwrap();
            assert_eq!(floor(&open(&medium)), Some(100));
        }
    }
}

#[test]
fn a_failing_flush_or_a_record_that_reads_back_otherwise_is_an_error() {
    let medium = written(3);
    let store = open(&medium);
    medium.fail(Faults { flush: Some(0), ..Faults::default() });
    store.update(|state| state.epoch_floor = 99).unwrap_err();
    assert_eq!(floor(&store), Some(3));
    for place in [0, 1] {
        let medium = written(3);
        let store = open(&medium);
        medium.fail(Faults { flipped: BTreeSet::from([offset(&*medium, place) + 70]), ..Faults::default() });
        // Only one of the two places is written next.
        let results = [store.update(|s| s.epoch_floor = 4), store.update(|s| s.epoch_floor = 5)];
        let error = results.into_iter().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("does not read back"), "{error}");
    }
}

#[test]
fn either_record_alone_is_enough_and_none_is_a_loss() {
    let medium = written(3);
    overwrite(&medium, 0);
    let one = floor(&open(&medium));
    let medium = written(3);
    overwrite(&medium, 1);
    let other = floor(&open(&medium));
    assert_eq!(BTreeSet::from([one, other]), BTreeSet::from([Some(2), Some(3)]));
    overwrite(&medium, 0);
    let store = open(&medium);
    assert!(reason(&store).contains("record 0") && reason(&store).contains("record 1"));
    assert!(reason(&store).contains("no magic"));
    let error = store.update(|state| state.epoch_floor = 9).unwrap_err();
    assert!(error.to_string().contains("spsctl state reset"), "{error}");
    assert_eq!(floor(&open(&medium)), None, "an update does not heal a loss");
    store.reset(State { epoch_floor: 7, ..State::default() }).unwrap();
    assert_eq!(floor(&store), Some(7));
    assert_eq!(floor(&open(&medium)), Some(7));
}

#[test]
fn a_fresh_medium_a_small_one_and_none_are_losses_with_a_reason() {
    assert!(reason(&open(&medium())).contains("no magic"));
    let small = Arc::new(MemoryMedium::new(RECORD as u64));
    assert!(reason(&open(&small)).contains("65536 bytes; it needs 131072"));
    let none = StateStore::open(Err("no such device".into()));
    assert_eq!(reason(&none), "no such device");
    assert!(none.reset(State::default()).unwrap_err().to_string().contains("no such device"));
}

#[test]
fn a_medium_that_cannot_be_read_is_a_loss_and_nothing_old_comes_back_after_a_reset() {
    let medium = written(9);
    let places = BTreeSet::from([offset(&*medium, 0), offset(&*medium, 1)]);
    medium.fail(Faults { unreadable: places, ..Faults::default() });
    let store = open(&medium);
    assert!(reason(&store).contains("cannot be read"), "{}", reason(&store));
    // By the time of the reset the medium answers again; the old records, with higher sequences, must not.
    medium.fail(Faults::default());
    store.reset(State { epoch_floor: 1, ..State::default() }).unwrap();
    assert_eq!(floor(&open(&medium)), Some(1));
}

#[test]
fn a_record_that_is_no_state_is_a_loss_and_can_be_reset() {
    let medium = medium();
    let payload = br#"{"epoch_floor":"high"}"#.to_vec();
    let block = sps_base::durable::render(&sps_base::durable::Record { sequence: 40, payload }).unwrap();
    medium.write_at(0, &block).unwrap();
    let store = open(&medium);
    assert!(reason(&store).contains("no state of this schema"));
    store.reset(State { epoch_floor: 2, ..State::default() }).unwrap();
    assert_eq!(floor(&open(&medium)), Some(2));
}

#[test]
fn a_state_that_grows_too_large_is_refused_and_the_old_one_stays() {
    let medium = written(2);
    let store = open(&medium);
    let large = serde_json::Value::from("x".repeat(RECORD));
    let error = store.update(|state| drop(state.unknown.insert("x".into(), large))).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert_eq!((floor(&store), floor(&open(&medium))), (Some(2), Some(2)));
}
