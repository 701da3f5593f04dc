//! What is done to slot 2: every scenario of the first table, by name.

use anyhow::{Context as _, ensure};
use slotd::domain::plan::Step;
use slotd::domain::state::State;
use slotd::store::InstallRequest;
use sps_base::durable::{self, Record};

use super::appliance::{Appliance, Operation, TARGET, request};
use super::law::{read_state, steps};
use super::{Scenario, in_order};
use crate::recorder::{Event, Faults, Media, Recorder};

/// Records a scenario.
pub type Make = for<'a> fn(&'a Appliance) -> anyhow::Result<Scenario<'a>>;

/// Every scenario, to be recorded when it is its turn.
pub const ALL: [(&str, Make); 17] = [
    ("install into an empty slot", install_empty),
    ("install into a used slot", install_used),
    ("repair", repair),
    ("cancel", cancel),
    ("resume", resume),
    ("resume from an offset", resume_from_offset),
    ("delete", delete),
    ("delete an interrupted install", delete_interrupted),
    ("install over an interrupted one", install_over_interrupted),
    ("install over a bad fallback", install_over_bad),
    ("install, the ESP is full", full_disk),
    ("roll forward", roll_forward),
    ("roll back", roll_back),
    ("state rollover, first record", rollover_first),
    ("state rollover, second record", rollover_second),
    ("state rollover, highest sequence", rollover_highest),
    ("state from newer firmware", newer_state),
];

fn replace() -> InstallRequest {
    InstallRequest { replace: true, ..request() }
}

pub(super) fn install_empty(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.fresh.clone(), Operation::Install(&a.new, request()))
}

pub(super) fn install_used(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.filled_with(&a.old)?, Operation::Install(&a.new, replace()))
}

fn repair(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let repair = InstallRequest { repair: true, ..request() };
    Scenario::record(a, a.damaged(&a.old)?, Operation::Install(&a.old, repair))
}

fn cancel(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let operation = Operation::Install(&a.new, replace());
    Scenario::record_with(a, a.filled_with(&a.old)?, operation, |recorder, _| {
        a.cancel(&a.new, &replace(), recorder)
    })
}

/// Without a power cut between them, what the cancelled install wrote is not yet flushed when the second one finds it.
fn resume(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let operation = Operation::Install(&a.new, request());
    Scenario::record_with(a, a.fresh.clone(), operation, |recorder, operation| {
        a.cancel(&a.new, &request(), recorder)?;
        a.carry_out(operation, recorder)
    })
}

fn resume_from_offset(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let operation = Operation::Install(&a.new, request());
    Scenario::record_with(a, a.fresh.clone(), operation, |recorder, _| {
        a.cancel(&a.new, &request(), recorder)?;
        a.resume_at_root(&a.new, &request(), recorder)
    })
}

pub(super) fn delete(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.filled_with(&a.old)?, Operation::Delete)
}

fn delete_interrupted(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.interrupted(&a.old)?, Operation::Delete)
}

fn install_over_interrupted(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.interrupted(&a.old)?, Operation::Install(&a.new, request()))
}

fn install_over_bad(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, a.damaged(&a.old)?, Operation::Install(&a.new, replace()))
}

/// Somebody else fills the ESP after its room was measured; once there is room again, the next start finishes it.
fn full_disk(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let scenario = install_empty(a)?;
    let held: usize = scenario.start.esp.values().map(|file| file.len()).sum();
    let faults = Faults { esp_limit: Some(held as u64 + 8192), ..Faults::default() };
    let esp_limit = faults.esp_limit;
    let recorder = Recorder::faulty(scenario.start.clone(), faults);
    ensure!(a.carry_out(&scenario.operation, &recorder).is_err(), "an install onto a full ESP has ended");
    Ok(Scenario { log: in_order(recorder.log()), esp_limit, ..scenario })
}

/// An install over the old firmware, cut when `step` is durable.
fn cut_behind(a: &Appliance, step: Step) -> anyhow::Result<Media> {
    let Scenario { start, log, .. } = install_used(a)?;
    let last = steps(TARGET, &start, &log).iter().rposition(|found| *found == step);
    let last = last.context("the step was not recorded")?;
    let mut media = start;
    log.iter().take(last + 1).for_each(|event| media.apply(event));
    Ok(media)
}

pub(super) fn roll_forward(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, cut_behind(a, Step::WriteTrailer)?, Operation::Settle(&a.new))
        .and_then(|scenario| settled(a, scenario))
}

fn roll_back(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(a, cut_behind(a, Step::RemoveBootImage)?, Operation::Settle(&a.old))
        .and_then(|scenario| settled(a, scenario))
}

fn settled<'a>(a: &Appliance, scenario: Scenario<'a>) -> anyhow::Result<Scenario<'a>> {
    let recorder = Recorder::new(scenario.start.clone());
    drop(a.store(&recorder));
    ensure!(!recorder.log().is_empty(), "there was nothing to settle");
    Ok(Scenario { log: recorder.log(), ..scenario })
}

/// The same media with another state, as the record of this sequence number.
fn with_record(media: &Media, sequence: u64, change: impl FnOnce(&mut State)) -> anyhow::Result<Media> {
    let mut media = media.clone();
    let (_, at, mut state) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    change(&mut state);
    let block = durable::render(&Record { sequence, payload: state.render() })?;
    media.state.write(at, &block);
    Ok(media)
}

/// The newest record is the second (or the first, with `odd`), so that the next one goes to the other place.
fn at_place(a: &Appliance, first: bool) -> anyhow::Result<Scenario<'_>> {
    let media = a.filled_with(&a.old)?;
    let (sequence, next, _) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    let moved = with_record(&media, sequence + 1, |_| ())?;
    let start = if (next == 0) == first { media } else { moved };
    Scenario::record(a, start, Operation::Install(&a.new, replace()))
}

fn rollover_first(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    at_place(a, true)
}

fn rollover_second(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    at_place(a, false)
}

/// The sequence number goes round in the middle of it.
fn rollover_highest(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let start = with_record(&a.filled_with(&a.old)?, u64::MAX - 1, |_| ())?;
    Scenario::record(a, start, Operation::Delete)
}

fn newer_state(a: &Appliance) -> anyhow::Result<Scenario<'_>> {
    let media = a.filled_with(&a.old)?;
    let (sequence, ..) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    let start = with_record(&media, sequence + 1, |state| {
        state.unknown.insert("of_a_newer_version".into(), 7.into());
    })?;
    Scenario::record(a, start, Operation::Install(&a.new, replace()))
}

/// The steps that were recorded.
pub fn recorded_steps(start: &Media, log: &[Event]) -> Vec<Step> {
    let mut all = steps(TARGET, start, log);
    all.dedup();
    all
}
