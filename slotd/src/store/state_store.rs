//! The durable state on its medium: two records, written in turn.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use sps_base::durable::{self, RECORD, Record, RecordError};
use sps_base::error::ErrorKind;

use super::error::StoreError;
use crate::device::buffer::Buffer;
use crate::device::medium::Medium;
use crate::domain::state::State;

/// Whether what was found can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// A valid record was read.
    Valid,
    /// None was; the sentence says why.
    Lost(String),
}

/// What everybody may read at any time.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub state: State,
    pub health: Health,
}

/// The state, in memory and on its medium.
#[derive(Debug)]
pub(super) struct StateStore {
    medium: Result<Arc<dyn Medium>, String>,
    /// Sequence of the newest record and the place of the next; held while writing.
    writer: Mutex<(u64, usize)>,
    published: RwLock<Arc<Published>>,
}

impl StateStore {
    /// Reads both records. Never fails: a lost state is an answer.
    pub(super) fn open(medium: Result<Arc<dyn Medium>, String>) -> Self {
        let (published, writer) = match &medium {
            Ok(medium) => load(&**medium),
            Err(why) => (lost(why.clone()), (0, 0)),
        };
        Self { medium, writer: Mutex::new(writer), published: RwLock::new(Arc::new(published)) }
    }

    /// The state as it stands on the medium. Never waits for a write.
    pub(super) fn get(&self) -> Arc<Published> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nothing valid was found.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.get().health, Health::Lost(_))
    }

    /// Changes the state: written, flushed and read back before anybody sees it. Refused while the state is lost.
    pub(super) fn update(&self, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        if let Health::Lost(why) = &self.get().health {
            return Err(StoreError::refused(
                ErrorKind::Device,
                format!("the state is lost ({why}); look at it, then run `spsctl state reset --reason …`"),
            ));
        }
        self.write(|state| {
            change(state);
        })
    }

    /// Writes a fresh state in place of a lost (or a valid) one.
    pub(super) fn reset(&self, fresh: State) -> Result<(), StoreError> {
        let lost = self.get().health != Health::Valid;
        self.write(|state| *state = fresh)?;
        if lost {
            // Over the other record too: one that could not be read today may be readable tomorrow, with a higher
            // sequence. That it cannot be written takes nothing from the fresh one.
            let _ = self.write(|_| {});
        }
        Ok(())
    }

    fn write(&self, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let medium =
            self.medium.as_ref().map_err(|why| StoreError::refused(ErrorKind::Device, why.clone()))?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, place) = *writer;
        let mut state = self.get().state.clone();
        change(&mut state);
        let record = Record { sequence: durable::next_sequence(sequence), payload: state.render() };
        let block = durable::render(&record).map_err(|e| {
            StoreError::refused(ErrorKind::Device, format!("the state has grown too large: {e}"))
        })?;
        let at = offset(&**medium, place);
        medium.write_at(at, &block)?;
        medium.flush()?;
        let mut back = Buffer::new(RECORD);
        medium.read_at(at, &mut back)?;
        if *back != *block {
            return Err(StoreError::refused(
                ErrorKind::Device,
                "the state record does not read back as it was written; the state medium is failing",
            ));
        }
        *writer = (record.sequence, 1 - place);
        let published = Arc::new(Published { state, health: Health::Valid });
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = published;
        Ok(())
    }
}

fn lost(why: String) -> Published {
    Published { state: State::default(), health: Health::Lost(why) }
}

/// The two records lie at the start and in the middle of the medium.
fn offset(medium: &dyn Medium, place: usize) -> u64 {
    if place == 0 { 0 } else { medium.size() / 2 / RECORD as u64 * RECORD as u64 }
}

fn load(medium: &dyn Medium) -> (Published, (u64, usize)) {
    if medium.size() < 2 * RECORD as u64 {
        return (
            lost(format!("the state medium has {} bytes; it needs {}", medium.size(), 2 * RECORD)),
            (0, 0),
        );
    }
    let read = |place| {
        let mut block = Buffer::new(RECORD);
        medium
            .read_at(offset(medium, place), &mut block)
            .map_err(|e| (RecordError::Unreadable(e.to_string()), String::new()))
            .and_then(|()| {
                durable::parse(&block).map_err(|e| (e, hex::encode(&Sha256::digest(&*block)[..8])))
            })
    };
    let (first, second) = (read(0), read(1));
    let name = |found: &Result<Record, (RecordError, String)>| match found {
        Ok(_) => String::new(),
        Err((error, digest)) => format!("{error} (sha256 {digest}…)"),
    };
    let why = format!("record 0: {}; record 1: {}", name(&first), name(&second));
    // Lost records stay for inspection until a reset.
    match durable::choose(first.map_err(|e| e.0), second.map_err(|e| e.0)) {
        Err(_) => (lost(why), (0, 0)),
        Ok((record, next)) => match State::parse(&record.payload) {
            Ok(state) => (Published { state, health: Health::Valid }, (record.sequence, next)),
            Err(e) => {
                let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
                (lost(format!("{e}: {cause}")), (record.sequence, next))
            }
        },
    }
}

#[cfg(test)]
mod tests;
