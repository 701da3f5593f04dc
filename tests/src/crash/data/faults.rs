//! Faults planted in a log, as a slotd without one of the barriers would leave it.
#![expect(clippy::redundant_closure_for_method_calls, reason = "a method's path is of one lifetime only")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::appliance::Appliance;
use super::{ALL, Scenario};
use crate::recorder::{Change, Event};

/// A fault.
#[derive(Clone, Copy)]
pub struct Fault {
    /// In which scenario.
    pub scenario: &'static str,
    /// What is wrong.
    pub name: &'static str,
    plant: fn(&mut Scenario<'_>),
    /// Words of the violation that shows it.
    pub sign: &'static str,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.scenario, self.name)
    }
}

impl Fault {
    /// The scenario with the fault in it.
    pub fn planted<'a>(&self, appliance: &'a Appliance) -> anyhow::Result<Scenario<'a>> {
        let make = ALL.iter().find(|(name, _)| *name == self.scenario).map(|(_, make)| make);
        let make = make.ok_or_else(|| anyhow::anyhow!("no scenario {:?}", self.scenario))?;
        let mut scenario = make(appliance)?;
        let recorded = scenario.log.clone();
        (self.plant)(&mut scenario);
        anyhow::ensure!(scenario.log != recorded, "{self:?} changes nothing");
        Ok(scenario)
    }
}

/// Every fault.
pub const FAULTS: &[Fault] = &[
    fault("generation switch", "files not flushed", |s| s.unsynced(is_file), "the new generation is half"),
    fault(
        "generation switch",
        "put in place, then flushed",
        |s| s.last(is_rename, is_file_sync),
        "the new generation is half",
    ),
    fault(
        "generation switch",
        "the directory not flushed",
        |s| s.unsynced(|path| path == Path::new("/config")),
        "it had ended",
    ),
    fault("generation switch", "copied in place", |s| s.in_place(), "the new generation is half"),
    fault("generation switch", "the old one renamed", |s| s.old_renamed(), "the old generation is another"),
    fault(
        "generation switch, tried before",
        "files not flushed",
        |s| s.unsynced(is_file),
        "the new generation is half",
    ),
    fault(
        "generation switch, tried before",
        "the directory not flushed",
        |s| s.unsynced(|path| path == Path::new("/config")),
        "it had ended",
    ),
    fault("taint record", "the log not flushed", |s| s.unsynced(is_log), "the state knows of"),
    fault("taint record", "the state first", |s| s.state_first(), "the state knows of"),
    fault("taint record", "the log written anew", |s| s.log_anew(), "a record of before is gone"),
    fault(
        "taint record, the first one",
        "the directory not flushed",
        |s| s.unsynced(|path| !is_log(path)),
        "the state knows of",
    ),
    fault("taint record, the first one", "the state first", |s| s.state_first(), "the state knows of"),
    fault("taint record after a torn one", "the torn one kept", |s| s.tail_kept(), "the state knows of"),
    fault("taint record, owed ones", "the state first", |s| s.state_first(), "the state knows of"),
    fault("taint record, the log is lost", "the state first", |s| s.state_first(), "done again, the log has"),
];

const fn fault(
    scenario: &'static str,
    name: &'static str,
    plant: fn(&mut Scenario<'_>),
    sign: &'static str,
) -> Fault {
    Fault { scenario, name, plant, sign }
}

fn is_file(path: &Path) -> bool {
    path.extension().is_some()
}

fn is_log(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "log")
}

fn is_rename(change: &Change) -> bool {
    matches!(change, Change::Rename { .. })
}

fn is_file_sync(change: &Change) -> bool {
    matches!(change, Change::Sync { path, .. } if is_file(path))
}

impl Scenario<'_> {
    /// Leaves out the syncs of what `which` names.
    fn unsynced(&mut self, which: fn(&Path) -> bool) {
        self.log.retain(|event| !matches!(event, Event::File(Change::Sync { path, .. }) if which(path)));
    }

    /// Moves what is `late` behind what is `first`.
    fn last(&mut self, first: fn(&Change) -> bool, late: fn(&Change) -> bool) {
        let is =
            |event: &Event, which: fn(&Change) -> bool| matches!(event, Event::File(change) if which(change));
        let (moved, mut rest): (Vec<_>, Vec<_>) = self.log.drain(..).partition(|event| is(event, late));
        let at = rest.iter().position(|event| is(event, first)).map_or(rest.len(), |at| at + 1);
        rest.splice(at..at, moved);
        self.log = rest;
    }

    /// Makes the copy under its name.
    fn in_place(&mut self) {
        let renamed = self.log.iter().find_map(|event| match event {
            Event::File(Change::Rename { from, to, .. }) => Some((from.clone(), to.clone())),
            _ => None,
        });
        let Some((from, to)) = renamed else { return };
        let moved = |path: &PathBuf| path.strip_prefix(&from).map_or(path.clone(), |rest| to.join(rest));
        self.log.retain(|event| !matches!(event, Event::File(Change::Rename { .. })));
        for event in &mut self.log {
            if let Event::File(Change::Make { path, .. } | Change::Sync { path, .. }) = event {
                *path = moved(path);
            }
        }
    }

    /// Gives the old generation the new name.
    fn old_renamed(&mut self) {
        let listing = self.start.files.listing();
        let old = listing.keys().find(|path| path.components().count() == 3).map(|path| path.to_path_buf());
        let new = self.log.iter().find_map(|event| match event {
            Event::File(Change::Rename { to, .. }) => Some(to.clone()),
            _ => None,
        });
        let Some((from, to)) = old.zip(new) else { return };
        self.log = vec![Event::File(Change::Rename { from, to, exchange: false })];
    }

    /// Writes the state before the data partition.
    fn state_first(&mut self) {
        let (files, mut rest): (Vec<_>, Vec<_>) =
            self.log.drain(..).partition(|event| matches!(event, Event::File(_)));
        rest.extend(files);
        self.log = rest;
    }

    /// Writes the whole log again.
    fn log_anew(&mut self) {
        let place = self.log.iter().position(|event| matches!(event, Event::File(Change::Write { .. })));
        let listing = self.finished.files.listing();
        let all = listing.get(Path::new("/taint/log")).map(|(.., bytes)| bytes.to_vec());
        let Some((place, all)) = place.zip(all) else { return };
        let Some(Event::File(Change::Write { node, .. })) = self.log.get(place).cloned() else { return };
        let anew =
            [Change::Truncate { node, length: 0 }, Change::Write { node, offset: 0, data: Arc::from(all) }];
        self.log.splice(place..=place, anew.map(Event::File));
    }

    /// Writes behind what a cut has left of another.
    fn tail_kept(&mut self) {
        let mut tail = 0;
        let listing = self.start.files.listing();
        let length = listing.get(Path::new("/taint/log")).map_or(0, |(.., bytes)| bytes.len());
        self.log.retain(|event| match event {
            Event::File(Change::Truncate { length: whole, .. }) => {
                tail = length - whole;
                false
            }
            _ => true,
        });
        for event in &mut self.log {
            if let Event::File(Change::Write { offset, .. }) = event {
                *offset += tail;
            }
        }
    }
}
