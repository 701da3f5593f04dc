//! The crash checker for what lies on the data partition, a journaling file system: a switch of configuration generations
//! and the taint record.
//!
//! The model is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014) for ext4: changes of names
//! happen in their order, as many of them as the journal has written; sync of a directory makes those in it durable, with all
//! before them. The content of a file is there once that file was synced; until then each write may be lost, short, or as
//! long as it was with zeros in it. That ext4 is kinder (sync of a new file writes its name, too) is not relied on.

mod checker;
pub mod faults;
mod generation;
mod taint;

use std::collections::HashSet;

use super::appliance::Appliance;
use super::states::Bounds;
use super::{Check, Cut, Report};
use crate::recorder::{Change, Digest, Event, Media, Recorder};

/// Something that was recorded, to be cut everywhere.
#[derive(Debug)]
pub struct Scenario<'a> {
    appliance: &'a Appliance,
    /// The media before it.
    pub start: Media,
    /// What happened: as recorded, or altered to plant a fault.
    pub log: Vec<Event>,
    /// The media after it, undisturbed.
    pub finished: Media,
    act: Box<dyn Act>,
}

/// What is done, and what must hold.
trait Act: std::fmt::Debug + Send + Sync {
    /// Does it, with the shipped code; after a cut again.
    fn run(&self, appliance: &Appliance, recorder: &Recorder) -> anyhow::Result<()>;
    /// What a cut has left, before anything runs on it.
    fn after_cut(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()>;
    /// Once it has ended, whatever was cut before.
    fn at_end(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()>;
}

/// Records a scenario.
pub type Make = for<'a> fn(&'a Appliance) -> anyhow::Result<Scenario<'a>>;

/// Every scenario, to be recorded when it is its turn.
pub const ALL: &[(&str, Make)] = &[
    ("generation switch", generation::first_trial),
    ("generation switch, tried before", generation::tried_before),
    ("generation switch, nothing to copy", generation::nothing_to_copy),
    ("taint record, the first one", taint::first),
    ("taint record", taint::another),
    ("taint record after a torn one", taint::torn),
    ("taint record, the log is full", taint::full),
    ("taint record, owed ones", taint::owed),
    ("taint record, the log is lost", taint::lost),
    ("taint record of a state reset", taint::reset),
];

/// How many states of each.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The states after a first cut.
    pub bounds: Bounds,
    /// States after a second cut, and after a third.
    pub again: usize,
}

impl Sample {
    /// One cut: for planted faults.
    pub const fn once() -> Self {
        Self { bounds: Bounds { drawn: 8, ..Bounds::quick() }, again: 0 }
    }

    /// For every run of the tests.
    pub const fn quick() -> Self {
        Self { bounds: Bounds::quick(), again: 8 }
    }

    /// About so many states, of this seed.
    pub const fn reaching(states: usize, seed: u64) -> Self {
        let bounds = Bounds { drawn: states / 12, ..Bounds::ci() };
        Self { bounds: bounds.seeded(seed), again: states / 3 }
    }
}

impl<'a> Scenario<'a> {
    fn record(appliance: &'a Appliance, start: Media, act: impl Act + 'static) -> anyhow::Result<Self> {
        let recorder = Recorder::new(start.clone());
        act.run(appliance, &recorder)?;
        let (log, finished) = (recorder.log(), recorder.media());
        Ok(Self { appliance, start, log, finished, act: Box::new(act) })
    }

    /// Cuts it everywhere, does it again, cuts that, and again.
    pub fn check(&self, sample: &Sample) -> Report {
        checker::check(self, sample)
    }

    /// Checks the state that these cuts lead to.
    pub fn replay(&self, cuts: &[Cut]) -> Check<()> {
        checker::replay(self, cuts)
    }

    /// The media at the beginning, at the end, and wherever something became durable.
    fn borders(&self) -> HashSet<Digest> {
        let (mut now, mut borders) = (self.start.clone(), HashSet::from([self.start.digest()]));
        for event in &self.log {
            now.apply(event);
            if matches!(event, Event::Flush { .. } | Event::File(Change::Sync { .. })) {
                borders.insert(now.digest());
            }
        }
        borders.insert(now.digest());
        borders
    }
}
