//! The crash checker: the media after every cut of an operation, the shipped recovery on each, and what the order law
//! says it must find.

pub mod appliance;
pub mod case;
mod checker;
mod cores;
pub mod data;
pub mod faults;
pub mod law;
pub mod mishaps;
pub mod prove;
pub mod scenarios;
pub mod selection;
pub mod stage;
pub mod states;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::recorder::{Device, Digest, Event, Media, Recorder};
use appliance::{Appliance, Operation, TARGET, outcome};
pub use cores::checked;
use law::{Law, Outcome, steps};
use states::{Bounds, Origin};

/// The boot image of the slot that is changed.
const BOOT_IMAGE: &str = "sps-slot-2.efi";
/// The boot image of the slot that runs.
const RUNNING_BOOT_IMAGE: &str = "sps-slot-1.efi";

/// An operation that was recorded, to be cut everywhere.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// The appliance.
    pub appliance: &'a Appliance,
    /// The media before it.
    pub start: Media,
    /// What slot 2 was before it.
    pub before: Outcome,
    /// What is done, and done again after a cut.
    pub operation: Operation<'a>,
    /// What happened: as recorded, or altered to plant a fault.
    pub log: Vec<Event>,
    /// The media after the undisturbed operation.
    pub finished: Media,
    /// While it runs, and in the first recovery, the ESP holds no more bytes than these.
    pub esp_limit: Option<u64>,
}

/// What was going on when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum During {
    /// The operation.
    Run,
    /// The recovery after the cut before.
    Recovery,
    /// The operation, done again after that recovery.
    Repetition,
    /// The start that follows the cut before.
    Start,
}

/// One of several cuts in a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cut {
    /// What was going on.
    pub during: During,
    /// Where, and what was lost.
    pub origin: Origin,
    /// What is lost besides, that no cut takes: the loader's settings, or the state, in this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Cut {
    /// Nothing but what a cut takes.
    pub const fn new(during: During, origin: Origin) -> Self {
        Self { during, origin, lost: None }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let during = match self.during {
            During::Run => "",
            During::Recovery => "in the recovery: ",
            During::Repetition => "done again: ",
            During::Start => "in the start: ",
        };
        write!(f, "{during}{}", self.origin)?;
        self.lost.iter().try_for_each(|lost| write!(f, ", {lost}"))
    }
}

/// What should not be, and how it comes about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The cuts.
    pub cuts: Vec<Cut>,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cuts: Vec<String> = self.cuts.iter().map(ToString::to_string).collect();
        write!(f, "{}: {}", cuts.join("; then "), self.why)
    }
}

/// What checking a scenario showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Events that were recorded.
    pub events: usize,
    /// Distinct contents of the media after a cut.
    pub states: usize,
    /// Of these: from so many the operation was repeated.
    pub repeated: usize,
    /// Of these, in the second table: a file of the ESP that nobody touched is lost.
    pub neighbours: usize,
    /// Contents after a cut with the loader's settings or the state lost that were started; in the second table.
    pub losses: usize,
    /// Contents after a second cut, in the recovery or in the repetition.
    pub second: usize,
    /// Contents after a third cut.
    pub third: usize,
    /// Distinct contents of the media, all of these together.
    pub distinct: usize,
    /// Borders between the steps of the order law, the beginning and the end among them.
    pub borders: usize,
    /// Of these: so many were left as they are in some state.
    pub seen_borders: usize,
    /// A number that tells the set of all cuts that were tried from any other.
    pub set: u64,
    /// What should not be, with the state it was found in.
    pub violations: Vec<Violation>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            events, states, repeated, neighbours, losses, second, third, distinct, violations, ..
        } = self;
        write!(
            f,
            "{distinct} distinct states: {events} events, {states} after a cut ({repeated} repeated, {neighbours} with a \
             lost neighbour), {losses} with lost settings, {second} after a second cut, {third} after a third; {} of {} \
             borders of steps; {} violations",
            self.seen_borders,
            self.borders,
            violations.len()
        )?;
        violations.iter().take(8).try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl<'a> Scenario<'a> {
    /// Records `operation` from `start` on, in one undisturbed run.
    pub fn record(appliance: &'a Appliance, start: Media, operation: Operation<'a>) -> anyhow::Result<Self> {
        Self::record_with(appliance, start, operation, |recorder, operation| {
            appliance.carry_out(operation, recorder)
        })
    }

    /// Records what `run` does on the way to what `operation` does at once.
    pub fn record_with(
        appliance: &'a Appliance,
        start: Media,
        operation: Operation<'a>,
        run: impl FnOnce(&Recorder, &Operation<'a>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let undisturbed = Recorder::new(start.clone());
        let store = appliance.store(&undisturbed);
        let before = outcome(&store).unwrap_or(Outcome::Empty);
        appliance.carry_out_in(&store, &operation)?;
        let recorder = Recorder::new(start.clone());
        run(&recorder, &operation)?;
        let (log, finished) = (in_order(recorder.log()), undisturbed.media());
        Ok(Self { appliance, start, before, operation, log, finished, esp_limit: None })
    }

    fn law(&self, before: Outcome) -> Law {
        let after = match &self.operation {
            Operation::Install(firmware, _) | Operation::Settle(firmware) => {
                Outcome::Verified(firmware.root_hash())
            }
            Operation::Delete => Outcome::Empty,
        };
        Law { target: TARGET, before, after }
    }

    /// Checks the state that these cuts lead to.
    pub fn replay(&self, cuts: &[Cut]) -> Check<()> {
        checker::Checker::new(self, &Bounds::quick()).replay(cuts)
    }

    /// Cuts it everywhere, recovers, and compares with the law.
    pub fn check(&self, bounds: &Bounds) -> Report {
        checker::check(self, bounds)
    }

    /// The media at the beginning, at the end, and wherever one step of the order law follows another.
    fn borders(&self) -> HashSet<Digest> {
        let (mut now, mut last, mut borders) = (self.start.clone(), None, HashSet::new());
        for (event, step) in self.log.iter().zip(steps(TARGET, &self.start, &self.log)) {
            if last != Some(step) {
                borders.insert(now.digest());
            }
            last = Some(step);
            now.apply(event);
        }
        borders.insert(now.digest());
        borders
    }
}

/// The root arrives in chunks that several threads write: any order of those is possible, and the same one is taken
/// each time.
fn in_order(mut log: Vec<Event>) -> Vec<Event> {
    let root = |event: &Event| match event {
        Event::Write { device: Device::Slot(number), offset, .. }
            if *offset < appliance::ROOT_SIZE as u64 =>
        {
            Some((*number, *offset))
        }
        _ => None,
    };
    log.chunk_by_mut(|a, b| root(a).is_some() && root(b).is_some()).for_each(|run| run.sort_by_key(root));
    log
}

/// What holds, or the words of what does not.
pub type Check<T> = Result<T, String>;

pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check<()> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
