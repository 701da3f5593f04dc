//! Faults planted in a log, as an engine that breaks the order law would leave it: at least one in each step.

use std::fmt;

use anyhow::{Context as _, ensure};
use slotd::domain::plan::Step::{
    self, CopyBootImage, DropIntent, RemoveBootImage, WriteIntent, WriteParts, WriteTrailer, ZeroTrailer,
};

use super::appliance::{Appliance, TARGET};
use super::law::steps;
use super::scenarios::{Make, delete, install_used, roll_forward};
use super::{Scenario, in_order};
use crate::recorder::{Event, Faults, Recorder, Silent};

/// A row of the order law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// `plan::INSTALL`.
    Install,
    /// `plan::DELETE`.
    Delete,
    /// `plan::SETTLE`.
    Settle,
}

/// A fault in one step.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Whose step.
    pub plan: Plan,
    /// The step that it concerns.
    pub step: Step,
    /// What is wrong.
    pub name: &'static str,
    /// Plants it.
    pub plant: fn(&mut Scenario<'_>),
    /// What a violation says that shows it.
    pub sign: &'static str,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}: {}", self.plan, self.step, self.name)
    }
}

impl Fault {
    /// The scenario that it is planted in.
    pub fn make(&self) -> Make {
        match self.plan {
            Plan::Install => install_used,
            Plan::Delete => delete,
            Plan::Settle => roll_forward,
        }
    }

    /// The same with the fault in it.
    pub fn planted<'a>(&self, appliance: &'a Appliance) -> anyhow::Result<Scenario<'a>> {
        let mut scenario = self.make()(appliance)?;
        let log = scenario.log.clone();
        (self.plant)(&mut scenario);
        ensure!(scenario.log != log, "{self:?}: nothing was planted");
        Ok(scenario)
    }
}

const fn fault(
    plan: Plan,
    step: Step,
    name: &'static str,
    plant: fn(&mut Scenario<'_>),
    sign: &'static str,
) -> Fault {
    Fault { plan, step, name, plant, sign }
}

const EMPTY: &str = "is Empty";
const IMAGE: &str = "its boot image has";
const OTHERWISE: &str = "right is";
const ENDED: &str = "it had ended";
const BLOCKS: &str = "bad blocks";

/// Every planted fault of the first table.
pub const ALL: [Fault; 31] = [
    fault(Plan::Install, WriteIntent, "not flushed", |s| s.unflushed(WriteIntent), EMPTY),
    fault(Plan::Install, WriteIntent, "left out", |s| s.without(WriteIntent), EMPTY),
    fault(Plan::Install, RemoveBootImage, "not synced", |s| s.unflushed(RemoveBootImage), IMAGE),
    fault(Plan::Install, RemoveBootImage, "left out", |s| s.without(RemoveBootImage), IMAGE),
    fault(Plan::Install, ZeroTrailer, "old trailer kept", |s| s.without(ZeroTrailer), "right is [Writing]"),
    fault(Plan::Install, ZeroTrailer, "not flushed", |s| s.unflushed(ZeroTrailer), OTHERWISE),
    fault(Plan::Install, WriteParts, "not flushed before the trailer", |s| s.unflushed(WriteParts), BLOCKS),
    fault(Plan::Install, WriteParts, "a chunk left out", |s| s.without_chunk_at(0), BLOCKS),
    fault(Plan::Install, WriteParts, "not read back", |s| s.not_read_back(WriteParts), BLOCKS),
    fault(
        Plan::Install,
        WriteTrailer,
        "before the parts",
        |s| s.earlier(WriteTrailer, WriteParts),
        OTHERWISE,
    ),
    fault(Plan::Install, WriteTrailer, "not flushed", |s| s.unflushed(WriteTrailer), OTHERWISE),
    fault(Plan::Install, WriteTrailer, "not read back", |s| s.not_read_back(WriteTrailer), OTHERWISE),
    fault(Plan::Install, WriteTrailer, "left out", |s| s.without(WriteTrailer), OTHERWISE),
    fault(
        Plan::Install,
        CopyBootImage,
        "before the trailer",
        |s| s.earlier(CopyBootImage, WriteTrailer),
        IMAGE,
    ),
    fault(Plan::Install, CopyBootImage, "not synced", |s| s.unflushed(CopyBootImage), ENDED),
    fault(Plan::Install, CopyBootImage, "not read back", |s| s.not_read_back(CopyBootImage), ENDED),
    fault(Plan::Install, CopyBootImage, "left out", |s| s.without(CopyBootImage), ENDED),
    fault(Plan::Install, DropIntent, "before the parts", |s| s.earlier(DropIntent, WriteParts), EMPTY),
    fault(Plan::Install, DropIntent, "not flushed", |s| s.unflushed(DropIntent), ENDED),
    fault(Plan::Install, DropIntent, "left out", |s| s.without(DropIntent), ENDED),
    fault(Plan::Delete, WriteIntent, "not flushed", |s| s.unflushed(WriteIntent), OTHERWISE),
    fault(Plan::Delete, WriteIntent, "left out", |s| s.without(WriteIntent), OTHERWISE),
    fault(Plan::Delete, RemoveBootImage, "not synced", |s| s.unflushed(RemoveBootImage), IMAGE),
    fault(Plan::Delete, RemoveBootImage, "left out", |s| s.without(RemoveBootImage), IMAGE),
    fault(Plan::Delete, ZeroTrailer, "left out", |s| s.without(ZeroTrailer), OTHERWISE),
    fault(Plan::Delete, ZeroTrailer, "not flushed", |s| s.unflushed(ZeroTrailer), OTHERWISE),
    fault(
        Plan::Delete,
        DropIntent,
        "before the trailer goes",
        |s| s.earlier(DropIntent, ZeroTrailer),
        OTHERWISE,
    ),
    fault(Plan::Delete, DropIntent, "left out", |s| s.without(DropIntent), ENDED),
    fault(Plan::Settle, CopyBootImage, "not synced", |s| s.unflushed(CopyBootImage), ENDED),
    fault(Plan::Settle, CopyBootImage, "left out", |s| s.without(CopyBootImage), ENDED),
    fault(Plan::Settle, DropIntent, "left out", |s| s.without(DropIntent), ENDED),
];

impl Scenario<'_> {
    /// Leaves all of `step` out.
    pub fn without(&mut self, step: Step) {
        self.leave_out(|found, _| found == step);
    }

    /// Does not flush or sync `step`.
    pub fn unflushed(&mut self, step: Step) {
        let barrier =
            |event: &Event| matches!(event, Event::Flush { .. } | Event::EspSync | Event::EspSyncFile { .. });
        self.leave_out(|found, event| found == step && barrier(event));
    }

    fn leave_out(&mut self, leave_out: impl Fn(Step, &Event) -> bool) {
        let steps = steps(TARGET, &self.start, &self.log);
        let kept = self.log.iter().zip(steps).filter(|(event, step)| !leave_out(*step, event));
        self.log = kept.map(|(event, _)| event.clone()).collect();
    }

    /// Carries it out once more, on media that silently leave another bit in the lowest write of `step`. Where that is
    /// `unseen`, what is read back is what was meant.
    pub fn on_silent_media(&self, step: Step, unseen: bool) -> anyhow::Result<Recorder> {
        let steps = steps(TARGET, &self.start, &self.log);
        let places = steps.iter().zip(&self.log).enumerate().filter(|(_, (found, _))| **found == step);
        let places = places.filter_map(|(at, (_, event))| Some((at, event.place()?)));
        let first = places.min_by_key(|(_, (_, offset))| *offset);
        let (at, place) = first.context("the step writes nothing")?;
        let before = self.log[..at].iter().filter(|event| event.place().as_ref() == Some(&place)).count();
        let silent = Some(Silent { place, after: Some(before), unseen });
        let recorder = Recorder::faulty(self.start.clone(), Faults { silent, ..Faults::default() });
        self.appliance.carry_out(&self.operation, &recorder)?;
        Ok(recorder)
    }

    /// Leaves out what reading back `step` is for: a medium has written something else, and nobody noticed.
    fn not_read_back(&mut self, step: Step) {
        if let Ok(recorder) = self.on_silent_media(step, true) {
            self.log = in_order(recorder.log());
        }
    }

    /// Does not write what lies at this byte of the slot.
    fn without_chunk_at(&mut self, at: u64) {
        let there = |event: &Event| matches!(event, Event::Write { device, offset, .. } if *device == TARGET && *offset == at);
        self.log.retain(|event| !there(event));
    }

    /// Carries all of `step` out in front of the first of `before`.
    pub fn earlier(&mut self, step: Step, before: Step) {
        let steps = steps(TARGET, &self.start, &self.log);
        let (early, mut rest): (Vec<_>, Vec<_>) =
            self.log.drain(..).zip(steps).partition(|(_, found)| *found == step);
        let at = rest.iter().position(|(_, found)| *found == before).unwrap_or(rest.len());
        rest.splice(at..at, early);
        self.log = rest.into_iter().map(|(event, _)| event).collect();
    }
}
