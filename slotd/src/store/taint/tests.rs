use std::fs;

use super::*;
use crate::device::file_system::Mounted;

fn keeper(directory: &Path, conditions: &[(Cause, &str)]) -> Keeper {
    let place = TaintPlace { files: Arc::new(Mounted), directory: directory.join("taint") };
    let conditions = conditions.iter().map(|(cause, detail)| (*cause, (*detail).to_owned())).collect();
    let mut keeper = Keeper { asked: true, place: Some(place), conditions, ..Keeper::default() };
    keeper.read().unwrap();
    keeper
}

fn causes(keeper: &Keeper, taint: &Taint) -> Vec<String> {
    keeper.shown(taint).records.iter().map(|record| record.cause.clone()).collect()
}

const FULL: (Cause, &str) = (Cause::DataFull, "the data partition is full");

#[test]
fn nothing_is_written_where_nothing_has_happened() {
    let directory = tempfile::tempdir().unwrap();
    let mut keeper = keeper(directory.path(), &[]);
    assert_eq!(keeper.bring_up(Taint::default(), 1), Taint::default());
    assert_eq!(keeper.shown(&Taint::default()).count, 0);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_is_so_is_recorded_once_for_as_long_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut taint = Taint::default();
    for (now, conditions, expected) in
        [(1, &[FULL][..], 1), (2, &[FULL], 1), (3, &[], 1), (4, &[FULL], 2), (5, &[FULL], 2)]
    {
        let mut keeper = keeper(directory.path(), conditions);
        taint = keeper.bring_up(taint, now);
        assert_eq!((taint.count, keeper.shown(&taint).count), (expected, expected), "at {now}");
    }
    let log = Log::parse(&fs::read(directory.path().join("taint/log")).unwrap());
    assert_eq!(log.records.iter().map(|record| record.at).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_cut_before_the_state_loses_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let first = keeper(directory.path(), &[FULL]).bring_up(Taint::default(), 1);
    let mut again = keeper(directory.path(), &[FULL]);
    assert_eq!(again.bring_up(Taint::default(), 2), first);
    // A torn record behind it is cut off.
    let path = directory.path().join("taint/log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole, &whole[..100]].concat()).unwrap();
    assert_eq!(keeper(directory.path(), &[FULL]).bring_up(first.clone(), 3), first);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn a_log_that_is_missing_or_damaged_is_not_empty() {
    let directory = tempfile::tempdir().unwrap();
    let known = keeper(directory.path(), &[FULL]).bring_up(Taint::default(), 1);
    let path = directory.path().join("taint/log");
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[80] ^= 1;
    for (content, left) in [(None, 0), (Some(&whole[..90]), 90), (Some(&damaged), damaged.len())] {
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let mut found = keeper(directory.path(), &[FULL]);
        let taint = found.bring_up(known.clone(), 2);
        assert_eq!(causes(&found, &taint), ["log-lost"]);
        assert_eq!((taint.count, found.shown(&taint).count), (2, 2), "the number goes on");
        // What was there is kept for whoever looks for the damage.
        assert_eq!(fs::read(&path).unwrap()[..left], content.unwrap_or_default()[..left]);
        // A cut before the state, and the next start: told once.
        assert_eq!(keeper(directory.path(), &[FULL]).bring_up(known.clone(), 3), taint);
        let later = keeper(directory.path(), &[FULL]).bring_up(taint, 4);
        assert_eq!(later.count, 2);
    }
}

#[test]
fn a_full_log_takes_no_more_and_they_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let records = (1..=RECORDS as u64).map(|number| Record::new(number, number, FULL.0, FULL.1));
    let bytes: Vec<u8> = records.flat_map(|record| record.render()).collect();
    let log = Log::parse(&bytes);
    fs::create_dir(directory.path().join("taint")).unwrap();
    fs::write(directory.path().join("taint/log"), &bytes).unwrap();
    let known = Taint { count: log.newest(), digest: log.digest(), ..Taint::default() };
    let mut full = keeper(directory.path(), &[FULL]);
    let taint = full.bring_up(known.clone(), 1);
    assert_eq!((taint.count, taint.beyond), (RECORDS as u64, 1));
    assert_eq!(full.shown(&taint).count, RECORDS as u64 + 1);
    assert_eq!(fs::read(directory.path().join("taint/log")).unwrap(), bytes);
    assert_eq!(keeper(directory.path(), &[FULL]).bring_up(taint.clone(), 2), taint);
}

#[test]
fn what_cannot_be_written_is_owed_and_written_later() {
    let directory = tempfile::tempdir().unwrap();
    let lost = [(Cause::DataLost, "no file system".to_owned())];
    let mut nowhere = Keeper { asked: true, conditions: lost.into(), ..Keeper::default() };
    let taint = nowhere.bring_up(Taint::default(), 1);
    assert_eq!((taint.count, taint.owed.len(), nowhere.shown(&taint).count), (0, 1, 1));
    assert_eq!(nowhere.bring_up(taint.clone(), 2), taint);
    let mut back = keeper(directory.path(), &[]);
    let later = back.bring_up(taint.clone(), 3);
    assert_eq!((later.count, later.owed.len(), back.shown(&later).count), (1, 0, 1));
    assert_eq!(back.log.records[0].at, 1);
    // A cut before the state: it is not written twice.
    assert_eq!(keeper(directory.path(), &[]).bring_up(taint, 4), later);
}

#[test]
fn the_loss_of_the_state_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    for now in 1..4 {
        let mut keeper = keeper(directory.path(), &[]);
        keeper.note_lost_state("record 0: zeros; record 1: zeros", now);
        assert_eq!(causes(&keeper, &Taint::default()), ["state-lost"]);
    }
    let mut nowhere = Keeper::default();
    nowhere.note_lost_state("zeros", 1);
    assert_eq!(nowhere.shown(&Taint::default()).count, 1);
}
