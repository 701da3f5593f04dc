//! The taint record: log and state, and a cut anywhere between them.

use std::path::Path;

use anyhow::ensure as require;
use slotd::domain::state::{State, Taint};
use slotd::domain::taint::{Cause, Compared, Log, RECORDS, Record};
use slotd::store::{Store, TaintPlace};
use sps_base::durable;

use super::super::appliance::Appliance;
use super::super::law::read_state;
use super::super::selection::scenarios::lost_state;
use super::super::{Check, ensure};
use super::{Act, Scenario};
use crate::recorder::{Media, Recorder};

const DIRECTORY: &str = "/taint";
const LOG: &str = "/taint/log";
const FULL: (Cause, &str) = (
    Cause::DataFull,
    "the data partition is full: 8192 bytes and 7 files are free; make room and restart. As long as what a failing device \
     is told by: its name, what was tried, and all that is below it",
);
const LOST: (Cause, &str) = (Cause::DataLost, "no file system");

/// slotd starts, and something is so that was not.
#[derive(Debug)]
struct Start {
    conditions: &'static [(Cause, &'static str)],
    /// An operator writes a fresh state where it is lost.
    reset: bool,
    /// What is behind the records may be damage, which stays.
    keeps_damage: bool,
}

fn recorded(appliance: &Appliance, start: Media) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(appliance, start, Start { conditions: &[FULL], reset: false, keeps_damage: false })
}

/// The first record of an appliance.
pub(super) fn first(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    recorded(appliance, appliance.fresh.clone())
}

/// Behind three others.
pub(super) fn another(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    recorded(appliance, with(&appliance.fresh, 3, b"", |_| ())?)
}

/// Behind one that a cut has torn.
pub(super) fn torn(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let half = &record(4).render()[..100];
    recorded(appliance, with(&appliance.fresh, 3, half, |_| ())?)
}

/// There is no room for more.
pub(super) fn full(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    recorded(appliance, with(&appliance.fresh, RECORDS as u64, b"", |_| ())?)
}

/// Two that the log could not take before.
pub(super) fn owed(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let owe = |taint: &mut Taint| {
        taint.owed = vec![Record::new(4, 4, LOST.0, LOST.1), Record::new(5, 5, LOST.0, "a wrong superblock")];
    };
    recorded(appliance, with(&appliance.fresh, 3, b"", owe)?)
}

/// The log is gone.
pub(super) fn lost(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let start = with(&appliance.fresh, 3, b"", |_| ())?;
    let act = Start { conditions: &[FULL], reset: false, keeps_damage: true };
    Scenario::record(appliance, Media { files: std::sync::Arc::default(), ..start }, act)
}

/// The state is lost, and an operator writes a fresh one.
pub(super) fn reset(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let act = Start { conditions: &[], reset: true, keeps_damage: true };
    Scenario::record(appliance, lost_state(&with(&appliance.fresh, 3, b"", |_| ())?, 0), act)
}

fn record(number: u64) -> Record {
    Record::new(number, number, LOST.0, LOST.1)
}

/// Media with so many records, these bytes behind them, and a state that knows of them.
fn with(media: &Media, count: u64, tail: &[u8], change: impl FnOnce(&mut Taint)) -> anyhow::Result<Media> {
    let recorder = Recorder::new(media.clone());
    let (files, bytes) =
        (recorder.files(), (1..=count).flat_map(|n| record(n).render()).collect::<Vec<u8>>());
    files.create_directory(Path::new(DIRECTORY))?;
    files.create_file(Path::new(LOG))?;
    files.write_at(Path::new(LOG), 0, &[&bytes, tail].concat())?;
    let log = Log::parse(&bytes);
    require!(log.newest() == count, "the log has {} records", log.newest());
    let mut taint = Taint { count, digest: log.digest(), ..Taint::default() };
    change(&mut taint);
    let mut media = recorder.media();
    let (sequence, place, state) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    let state = State { taint: Some(taint), ..state };
    let block = durable::render(&durable::Record { sequence, payload: state.render() })?;
    media.state.write(if place == 0 { 0 } else { media.state.size() / 2 }, &block);
    Ok(media)
}

fn log_of(media: &Media) -> Log {
    let listing = media.files.listing();
    Log::parse(listing.get(Path::new(LOG)).map_or(&[][..], |(.., bytes)| bytes))
}

/// What the state knows; `None` where it is lost.
fn known(media: &Media) -> Option<Taint> {
    let (_, _, state) = read_state(&media.state).ok()?;
    Some(state.taint.unwrap_or_default())
}

impl Start {
    fn start(&self, appliance: &Appliance, recorder: &Recorder) -> Store {
        let store = appliance.store(recorder);
        let place = TaintPlace { files: recorder.files(), directory: DIRECTORY.into() };
        let conditions = self.conditions.iter().map(|(cause, detail)| (*cause, (*detail).to_owned()));
        store.keep_taint(Some(place), conditions.collect());
        store
    }
}

impl Act for Start {
    fn run(&self, appliance: &Appliance, recorder: &Recorder) -> anyhow::Result<()> {
        let store = self.start(appliance, recorder);
        if self.reset && store.state().0 != "valid" {
            store.reset_state("in a test")?;
        }
        Ok(())
    }

    fn after_cut(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()> {
        let (log, start) = (log_of(found), log_of(&scenario.start));
        ensure(log.records.starts_with(&start.records), || "a record of before is gone".into())?;
        ensure(log.damaged == 0 || self.keeps_damage, || "a record is half, and others follow it".into())?;
        if let Some(known) = known(found) {
            // Where the log was lost before, the state knew of more.
            let lost =
                log_of(&scenario.start).newest() < self::known(&scenario.start).unwrap_or_default().count;
            let compared = log.compare(&known);
            ensure(
                lost && !log.records.iter().any(|r| r.cause == "log-lost") || compared != Compared::Other,
                || format!("the state knows of {} records, the log has {}", known.count, log.newest()),
            )?;
        }
        let store = self.start(scenario.appliance, &Recorder::new(found.clone()));
        let before = self::known(&scenario.start).unwrap_or_default();
        let least = (before.count.max(start.newest())) + before.owed.len() as u64 + before.beyond;
        ensure(u64::from(store.taint_count()) >= least, || {
            format!("it counts {} records, {least} were there", store.taint_count())
        })
    }

    fn at_end(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()> {
        let (expected, log) = (log_of(&scenario.finished), log_of(found));
        let told = |log: &Log| -> Vec<String> {
            log.records.iter().map(|r| format!("{} {} {} {}", r.number, r.at, r.cause, r.detail)).collect()
        };
        ensure(told(&expected) == told(&log), || {
            format!(
                "the log has {:?}, right is {:?}",
                told(&log).iter().rev().take(4).collect::<Vec<_>>(),
                told(&expected).last()
            )
        })?;
        ensure(log.tail == 0, || format!("{} bytes at the end of the log are no record", log.tail))?;
        let (mut right, known) = (known(&scenario.finished), known(found));
        if let (true, Some(right), Some(known)) = (self.keeps_damage, &mut right, &known) {
            // What a cut has left of a record is in the digest.
            right.digest = known.digest;
        }
        ensure(right == known, || format!("the state knows {known:?}, right is {right:?}"))?;
        ensure(known.is_none_or(|known| log.compare(&known) == Compared::Same), || {
            "log and state are not the same".into()
        })
    }
}
