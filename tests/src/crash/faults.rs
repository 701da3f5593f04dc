//! Faults planted in a log, as an engine that breaks the order law would leave it.

use slotd::domain::plan::Step;

use super::appliance::TARGET;
use super::law::steps;
use crate::recorder::{Device, Event, Media};

/// The slot is not flushed between its parts and its trailer.
pub fn unflushed_parts(start: &Media, log: &[Event]) -> Vec<Event> {
    without(start, log, |step, event| step == Step::WriteParts && matches!(event, Event::Flush { .. }))
}

/// The trailer is written before the parts.
pub fn trailer_before_parts(start: &Media, log: &[Event]) -> Vec<Event> {
    moved(start, log, Step::WriteTrailer, Step::WriteParts)
}

/// The old trailer stays while the parts are written.
pub fn trailer_not_zeroed(start: &Media, log: &[Event]) -> Vec<Event> {
    without(start, log, |step, _| step == Step::ZeroTrailer)
}

/// The intent is dropped before the parts are written.
pub fn intent_dropped_early(start: &Media, log: &[Event]) -> Vec<Event> {
    moved(start, log, Step::DropIntent, Step::WriteParts)
}

/// The removal of the boot image is not synced before the slot changes.
pub fn removal_not_synced(start: &Media, log: &[Event]) -> Vec<Event> {
    without(start, log, |step, event| step == Step::RemoveBootImage && *event == Event::EspSync)
}

/// The intent is written but not flushed before the slot changes.
pub fn intent_not_flushed(start: &Media, log: &[Event]) -> Vec<Event> {
    without(start, log, |step, event| {
        step == Step::WriteIntent && *event == Event::Flush { device: Device::State }
    })
}

/// The boot image is copied before the trailer says that it may be.
pub fn boot_image_before_trailer(start: &Media, log: &[Event]) -> Vec<Event> {
    moved(start, log, Step::CopyBootImage, Step::WriteTrailer)
}

fn without(start: &Media, log: &[Event], leave_out: impl Fn(Step, &Event) -> bool) -> Vec<Event> {
    let steps = steps(TARGET, start, log);
    log.iter().zip(steps).filter(|(event, step)| !leave_out(*step, event)).map(|(e, _)| e.clone()).collect()
}

/// `log` with all of `step` in front of the first of `before`.
fn moved(start: &Media, log: &[Event], step: Step, before: Step) -> Vec<Event> {
    let steps = steps(TARGET, start, log);
    let (early, mut rest): (Vec<_>, Vec<_>) =
        log.iter().cloned().zip(steps).partition(|(_, found)| *found == step);
    let at = rest.iter().position(|(_, found)| *found == before).unwrap_or(rest.len());
    rest.splice(at..at, early);
    rest.into_iter().map(|(event, _)| event).collect()
}
