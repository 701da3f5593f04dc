//! What the order law of `slotd::domain::plan` promises after a cut, derived from a log alone.

use slotd::domain::plan::Step;
use slotd::domain::state::{Intent, State};
use slotd::store::{SlotView, SlotWord};
use sps_base::durable::{self, RECORD};

use crate::recorder::{Device, Event, Image, Media};

/// What a slot turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing in it.
    Empty,
    /// An install that has not ended.
    Writing,
    /// The firmware with this root hash.
    Verified(String),
    /// Of this class.
    Bad(String),
}

impl Outcome {
    /// What a store shows.
    pub fn of(view: &SlotView) -> Self {
        match view.state {
            SlotWord::Empty => Self::Empty,
            SlotWord::Writing => Self::Writing,
            SlotWord::Verified => Self::Verified(view.root_hash.clone()),
            SlotWord::Bad => Self::Bad(view.reason.split(':').next().unwrap_or_default().into()),
        }
    }
}

/// What an operation makes of which slot.
#[derive(Clone, Debug)]
pub struct Law {
    /// The slot that is changed.
    pub target: Device,
    /// What it was.
    pub before: Outcome,
    /// What it becomes; `Empty` for a deletion.
    pub after: Outcome,
}

impl Law {
    /// The outcomes that are right after a cut behind each of the first 0, 1, … events of `log`.
    pub fn after_each(&self, start: &Media, log: &[Event]) -> Vec<Vec<Outcome>> {
        let steps = steps(self.target, start, log);
        let mut right = vec![vec![self.before.clone()]];
        let mut before = self.before.clone();
        let mut last = None;
        for (event, step) in log.iter().zip(steps) {
            // A second operation in the same log begins with what the first one left.
            if step == Step::WriteIntent && last != Some(Step::WriteIntent) {
                before = right.last().and_then(|right| right.first()).cloned().unwrap_or(before);
            }
            last = Some(step);
            let flushed = matches!(event, Event::Flush { .. } | Event::EspSync);
            right.push(self.right(&before, step, flushed));
        }
        right
    }

    /// The table's last column: what is right after a cut in `step`, before or after its flush.
    fn right(&self, before: &Outcome, step: Step, flushed: bool) -> Vec<Outcome> {
        let (begun, ended) = match (&self.after, step) {
            // A deletion is carried out from its intent on.
            (Outcome::Empty, Step::WriteIntent) => (before.clone(), Outcome::Empty),
            (Outcome::Empty, _) => (Outcome::Empty, Outcome::Empty),
            // An empty slot has no old content to go back to.
            (_, Step::WriteIntent) if *before == Outcome::Empty => (Outcome::Empty, Outcome::Writing),
            (_, Step::RemoveBootImage | Step::ZeroTrailer) if *before == Outcome::Empty => {
                (Outcome::Writing, Outcome::Writing)
            }
            (_, Step::WriteIntent | Step::RemoveBootImage) => (before.clone(), before.clone()),
            (_, Step::ZeroTrailer) => (before.clone(), Outcome::Writing),
            (_, Step::WriteParts) => (Outcome::Writing, Outcome::Writing),
            (after, Step::WriteTrailer) => (Outcome::Writing, after.clone()),
            (after, Step::CopyBootImage | Step::DropIntent) => (after.clone(), after.clone()),
        };
        if flushed || begun == ended { vec![ended] } else { vec![begun, ended] }
    }
}

/// The step of the order law that each event belongs to.
pub fn steps(target: Device, start: &Media, log: &[Event]) -> Vec<Step> {
    let mut media = start.clone();
    let trailer_at = media.image(target).size() - 4096;
    let (mut state, mut slot, mut esp) = (Step::WriteIntent, Step::WriteParts, Step::RemoveBootImage);
    let mut step_of = |event: &Event| match event {
        Event::Write { device: Device::State, data, .. } => {
            let intent = durable::parse(data).ok().and_then(|r| State::parse(&r.payload).ok()?.intent);
            state = if intent.is_some() { Step::WriteIntent } else { Step::DropIntent };
            state
        }
        Event::Flush { device: Device::State } => state,
        Event::Write { offset, data, .. } => {
            slot = match (*offset == trailer_at, data.iter().all(|b| *b == 0)) {
                (true, true) => Step::ZeroTrailer,
                (true, false) => Step::WriteTrailer,
                (false, _) => Step::WriteParts,
            };
            slot
        }
        Event::Flush { .. } => slot,
        Event::EspRemove { .. } => {
            esp = Step::RemoveBootImage;
            esp
        }
        Event::EspCreate { .. } | Event::EspWrite { .. } | Event::EspSyncFile { .. } => {
            esp = Step::CopyBootImage;
            esp
        }
        // Neither an install nor a deletion tells the boot loader or the data partition anything.
        Event::EspSync | Event::Loader { .. } | Event::Variable { .. } | Event::File(_) => esp,
    };
    log.iter().map(&mut step_of).collect()
}

/// The write intent on a state medium; `Err` when neither record is valid.
pub fn intent(state: &Image) -> Result<Option<Intent>, String> {
    Ok(read_state(state)?.2.intent)
}

/// Sequence number of the valid record on a state medium, offset of the next in bytes, and the state; `Err` when
/// neither record is valid.
pub fn read_state(state: &Image) -> Result<(u64, u64, State), String> {
    let read = |at: u64| {
        let mut block = vec![0; RECORD];
        state.read(at, &mut block);
        durable::parse(&block)
    };
    let (record, next) = durable::choose(read(0), read(state.size() / 2)).map_err(|e| format!("{e:?}"))?;
    let at = if next == 0 { 0 } else { state.size() / 2 };
    Ok((record.sequence, at, State::parse(&record.payload).map_err(|e| e.to_string())?))
}
