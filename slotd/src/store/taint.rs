//! The taint record on its medium: a log that is appended to, and what the state knows of it.
//!
//! The log first, the state next: after a cut between them the log has more than the state knows, which is taken over at the
//! next start. What cannot be written into the log is owed by the state until it can.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use sps_base::journal;
use tracing::{error, warn};

use super::Store;
use super::assembly::describe;
use super::state_store::Health;
use crate::device::file_system::{FileSystem, Kind};
use crate::domain::state::Taint;
use crate::domain::taint::{Cause, Compared, LINE, LOG, Log, OWED, RECORDS, Record, lost_detail};

/// The log's name in its directory.
const NAME: &str = "log";

/// Where the log is.
#[derive(Clone, Debug)]
pub struct TaintPlace {
    /// The file system.
    pub files: Arc<dyn FileSystem>,
    /// The directory; made where it is not.
    pub directory: PathBuf,
}

impl TaintPlace {
    /// The directory's name on the data partition.
    pub const DIRECTORY: &str = "taint";
}

/// Why something is not in the log.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("there is no place for the log")]
    Nowhere,
    #[error("the log has {RECORDS} records or {LOG} bytes and takes no more")]
    Full,
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} does not read back as it was written; the medium is failing", path.display())]
    ReadBack { path: PathBuf },
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { operation, path, source }
}

/// The log as it was last read, and what else a start has to tell.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// Somebody asked for it to be kept.
    asked: bool,
    place: Option<TaintPlace>,
    log: Log,
    /// The log could be read.
    readable: bool,
    /// What is so, as told.
    conditions: Vec<(Cause, String)>,
    /// The loss of the state, where the log could not take it: the state's medium still shows it.
    unkept: Option<Record>,
}

/// What is shown of it.
#[derive(Debug, Default)]
pub(super) struct Shown {
    records: Arc<Vec<Record>>,
    count: u64,
}

impl Store {
    /// Keeps the taint record at `place`; where that is `None`, in the state. What was noticed before slotd started
    /// (`conditions`) is recorded once, for as long as it is so.
    pub fn keep_taint(&self, place: Option<TaintPlace>, conditions: Vec<(Cause, String)>) {
        let mut keeper = Keeper { asked: true, place, conditions, ..Keeper::default() };
        if let Err(e) = keeper.read() {
            warn!("the taint log cannot be used: {}", describe(&e));
        }
        *self.taint.lock().unwrap_or_else(PoisonError::into_inner) = keeper;
        self.settle_taint();
    }

    /// Every record that is known, the oldest first.
    pub fn taint(&self) -> Arc<Vec<Record>> {
        Arc::clone(&self.taint_shown.read().unwrap_or_else(PoisonError::into_inner).records)
    }

    /// How many there were, also those that found no room.
    pub fn taint_count(&self) -> u32 {
        let count = self.taint_shown.read().unwrap_or_else(PoisonError::into_inner).count;
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Brings log and state together.
    pub(super) fn settle_taint(&self) {
        let mut keeper = self.taint.lock().unwrap_or_else(PoisonError::into_inner);
        if !keeper.asked {
            return;
        }
        let published = self.state.get();
        if let Health::Lost(why) = &published.health {
            keeper.note_lost_state(why, (self.now)());
        } else {
            let before = published.state.taint.clone().unwrap_or_default();
            let after = keeper.bring_up(before.clone(), (self.now)());
            if after != before
                && let Err(e) = self.state.update(|state| state.taint = Some(after))
            {
                error!("the taint record is not in the state: {e}");
            }
        }
        let taint = self.state.get().state.taint.clone().unwrap_or_default();
        let shown = keeper.shown(&taint);
        *self.taint_shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// What a fresh state says of the taint record: all that is known, and that it is fresh.
    pub(super) fn taint_of_fresh_state(&self, reason: &str) -> Option<Taint> {
        let mut keeper = self.taint.lock().unwrap_or_else(PoisonError::into_inner);
        let published = self.state.get();
        let known = (published.health == Health::Valid).then(|| published.state.taint.clone());
        if !keeper.asked {
            return known.flatten();
        }
        let mut taint = known.map_or_else(
            || Taint { count: keeper.log.newest(), digest: keeper.log.digest(), ..Taint::default() },
            Option::unwrap_or_default,
        );
        let reset = Record::new(0, (self.now)(), Cause::StateReset, reason);
        keeper.unkept.take().into_iter().chain([reset]).for_each(|record| owe(&mut taint, record));
        Some(taint)
    }
}

fn owe(taint: &mut Taint, record: Record) {
    if taint.owed.len() < OWED {
        taint.owed.push(record);
    } else {
        taint.beyond = taint.beyond.saturating_add(1);
    }
}

impl Keeper {
    fn shown(&self, taint: &Taint) -> Shown {
        let mut records = self.log.records.clone();
        let newest = taint.count.max(self.log.newest());
        let more = taint.owed.iter().chain(&self.unkept).zip(newest.saturating_add(1)..);
        records.extend(more.map(|(record, number)| Record { number, ..record.clone() }));
        let last = records.last().map_or(0, |record| record.number);
        Shown { records: Arc::new(records), count: last.max(newest).saturating_add(taint.beyond) }
    }

    /// The state is lost: the log alone can tell so, once for each loss.
    fn note_lost_state(&mut self, why: &str, now: u64) {
        let record = Record::new(self.log.newest().saturating_add(1), now, Cause::StateLost, why);
        let newest = self.log.records.iter().rev().find(|known| known.place == record.place);
        if newest.is_some_and(|known| (&known.cause, &known.detail) == (&record.cause, &record.detail)) {
            return;
        }
        Self::tell(&record);
        // Of a tail nobody knows whether it was a record that counted.
        if let Err(e) = self.append(&record, true) {
            warn!("the loss of the state is not in the taint log: {}", describe(&e));
            self.unkept = Some(record);
        }
    }

    /// Takes over what the log has more, writes what is owed and what is news. Whatever the answer says of the log is on
    /// stable storage.
    fn bring_up(&mut self, mut taint: Taint, now: u64) -> Taint {
        let mut conditions = self.conditions.clone();
        let compared = if self.readable { self.log.compare(&taint) } else { Compared::Same };
        let lost = compared == Compared::Other;
        if !lost {
            self.cut_tail();
        }
        if compared == Compared::Longer {
            self.take_over(&mut taint);
        }
        let owed = std::mem::take(&mut taint.owed);
        if lost {
            // Before all others: it says what they follow.
            conditions.push((Cause::LogLost, lost_detail(&taint)));
            if taint.standing.insert(Cause::LogLost.as_str().into()) {
                let told = Record::new(0, now, Cause::LogLost, &lost_detail(&taint));
                Self::tell(&told);
                self.record(&mut taint, told, lost);
            }
        }
        for record in owed {
            self.record(&mut taint, record, lost);
        }
        for (cause, detail) in &conditions {
            if taint.standing.insert(cause.as_str().into()) {
                let record = Record::new(0, now, *cause, detail);
                Self::tell(&record);
                self.record(&mut taint, record, lost);
            }
        }
        taint.standing.retain(|known| conditions.iter().any(|(cause, _)| cause.as_str() == known));
        if lost && self.log.compare(&taint) == Compared::Same {
            taint.standing.remove(Cause::LogLost.as_str());
        }
        taint
    }

    fn take_over(&mut self, taint: &mut Taint) {
        // Written by a start that may have died before it was flushed.
        if let Err(e) = self.sync() {
            warn!("the taint log cannot be used: {}", describe(&e));
            self.readable = false;
            return;
        }
        for record in self.log.behind(taint.count) {
            taint.owed.retain(|owed| !owed.is_same(record));
            taint.standing.insert(record.cause.clone());
        }
        (taint.count, taint.digest) = (self.log.newest(), self.log.digest());
    }

    /// What is news goes into the journal, too.
    fn tell(record: &Record) {
        let (cause, detail) = (record.cause.as_str(), record.detail.as_str());
        warn!(MESSAGE_ID = journal::TAINTED, ERROR = detail, CAUSE = cause, "taint record {cause}: {detail}");
    }

    /// Into the log, or else owed, or else only counted.
    fn record(&mut self, taint: &mut Taint, record: Record, keep_tail: bool) {
        let number = taint.count.max(self.log.newest()).saturating_add(1);
        let record = Record { number, ..record };
        // The order is kept: nothing passes what is owed.
        let done =
            if taint.owed.is_empty() { self.append(&record, keep_tail) } else { Err(LogError::Nowhere) };
        match done {
            Ok(()) => (taint.count, taint.digest) = (self.log.newest(), self.log.digest()),
            Err(LogError::Full) => taint.beyond = taint.beyond.saturating_add(1),
            Err(e) => {
                warn!("{} is not in the taint log yet: {}", record.cause, describe(&e));
                owe(taint, record);
            }
        }
    }

    fn place(&self) -> Result<(&dyn FileSystem, &Path, PathBuf), LogError> {
        let place = self.place.as_ref().filter(|_| self.readable).ok_or(LogError::Nowhere)?;
        Ok((&*place.files, &place.directory, place.directory.join(NAME)))
    }

    /// Reads the log anew.
    fn read(&mut self) -> Result<(), LogError> {
        self.readable = false;
        let Some(TaintPlace { files, directory }) = &self.place else { return Ok(()) };
        let path = directory.join(NAME);
        let bytes = match files.look(&path).map_err(fail("look at", &path))? {
            None => Vec::new(),
            Some(found) if found.kind == Kind::File => {
                files.read_at(&path, 0, LOG).map_err(fail("read", &path))?
            }
            Some(_) => return Err(fail("read", &path)(io::ErrorKind::InvalidInput.into())),
        };
        self.log = Log::parse(&bytes);
        self.readable = true;
        if self.log.tail > 0 {
            warn!("{}: {} bytes at the end are no record", path.display(), self.log.tail);
        }
        Ok(())
    }

    /// What a cut has left of a record is not kept: the state does not know of it.
    fn cut_tail(&mut self) {
        if self.log.tail == 0 {
            return;
        }
        let cut = self.place().and_then(|(files, _, path)| {
            files.truncate(&path, self.log.whole as u64).map_err(fail("cut", &path))?;
            files.sync(&path).map_err(fail("flush", &path))
        });
        if let Err(e) = cut.and_then(|()| self.read()) {
            warn!("the end of the taint log is not cut off: {}", describe(&e));
        }
    }

    /// Appends a record: written, flushed with its name, read back. What is there already is kept for whoever looks for the
    /// damage, where `keep_tail` says so.
    fn append(&mut self, record: &Record, keep_tail: bool) -> Result<(), LogError> {
        let (files, directory, path) = self.place()?;
        if self.log.records.len() >= RECORDS || self.log.whole + self.log.tail + LINE + 1 > LOG {
            return Err(LogError::Full);
        }
        if files.look(directory).map_err(fail("look at", directory))?.is_none() {
            files.create_directory(directory).map_err(fail("make", directory))?;
        }
        if files.look(&path).map_err(fail("look at", &path))?.is_none() {
            files.create_file(&path).map_err(fail("make", &path))?;
        }
        let mut at = self.log.whole;
        let mut line = Vec::new();
        if keep_tail {
            at += self.log.tail;
            line.extend((!self.log.ends_line).then_some(b'\n'));
        } else if self.log.tail > 0 {
            files.truncate(&path, at as u64).map_err(fail("cut", &path))?;
        }
        line.extend(record.render());
        let written = files.write_at(&path, at as u64, &line).map_err(fail("write", &path));
        let done = written.and_then(|()| self.sync());
        self.read()?;
        done?;
        if self.log.records.last() == Some(record) { Ok(()) } else { Err(LogError::ReadBack { path }) }
    }

    /// The log, its name, and the name of its directory are on stable storage.
    fn sync(&self) -> Result<(), LogError> {
        let (files, directory, path) = self.place()?;
        for path in [Some(&*path), Some(directory), directory.parent()].into_iter().flatten() {
            files.sync(path).map_err(fail("flush", path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
