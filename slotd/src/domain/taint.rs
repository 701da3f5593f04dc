//! The taint record: what has happened to this appliance that its firmware did not foresee.
//!
//! A log of lines, each with a checksum of its own, only ever appended to (`docs/formats.md`, "Taint"). The state keeps
//! number and digest of the newest record, so that a log that is missing, shorter or another one is not read as empty.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::manifest::Sha256Hex;
use super::state::Taint;

/// Most records of a log.
pub const RECORDS: usize = 4096;
/// Longest line, in bytes, with its end.
pub const LINE: usize = 2048;
/// Longest log that is read, in bytes. Lines that do not verify take room, too.
pub const LOG: usize = 16 << 20;
/// Longest detail, in bytes.
pub const DETAIL: usize = 512;
/// Most records that the state keeps until the log can be written.
pub const OWED: usize = 8;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No record of the state was valid.
    StateLost,
    /// An operator wrote a fresh state.
    StateReset,
    /// Memory stands in for the data partition.
    DataLost,
    /// Memory stands in for `/var`.
    DataFull,
    /// The log is not the one that the state knows.
    LogLost,
}

impl Cause {
    /// Its name in the log and in the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StateLost => "state-lost",
            Self::StateReset => "state-reset",
            Self::DataLost => "data-lost",
            Self::DataFull => "data-full",
            Self::LogLost => "log-lost",
        }
    }

    /// What it happened to.
    pub const fn place(self) -> &'static str {
        match self {
            Self::StateLost | Self::StateReset => "state",
            Self::DataLost | Self::DataFull => "data",
            Self::LogLost => "taint",
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1. Numbers only grow; one that is missing was lost.
    pub number: u64,
    /// When, Unix seconds.
    pub at: u64,
    /// What: a [`Cause`], or one of a newer version.
    pub cause: String,
    /// What it happened to.
    pub place: String,
    /// In one sentence.
    pub detail: String,
}

impl Record {
    /// A record of `cause`. What of `detail` is no printable text, or too much, is left out.
    pub fn new(number: u64, at: u64, cause: Cause, detail: &str) -> Self {
        let mut text: String =
            detail.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL).collect();
        while text.len() > DETAIL {
            text.pop();
        }
        Self { number, at, cause: cause.as_str().into(), place: cause.place().into(), detail: text }
    }

    /// What it is called: the same wherever it is kept.
    pub fn id(&self) -> String {
        let Self { at, cause, place, detail, .. } = self;
        let digest = Sha256::digest(format!("{at}\n{cause}\n{place}\n{detail}"));
        hex::encode(digest.get(..8).unwrap_or_default())
    }

    /// Whether both tell the same, under whatever number.
    pub fn is_same(&self, other: &Self) -> bool {
        *self == Self { number: self.number, ..other.clone() }
    }

    /// Its line: the SHA-256 of the text, a space, the text as JSON.
    pub fn render(&self) -> Vec<u8> {
        // Numbers and strings: serialising them cannot fail.
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{} {text}\n", hex::encode(Sha256::digest(&text))).into_bytes()
    }

    /// The record in a line without its end.
    fn parse(line: &[u8]) -> Option<Self> {
        let (sum, text) = line.split_at_checked(64)?;
        let text = text.strip_prefix(b" ")?;
        let right = line.len() < LINE && hex::encode(Sha256::digest(text)).as_bytes() == sum;
        right.then(|| serde_json::from_slice(text).ok()).flatten()
    }
}

/// What is in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The records, ascending.
    pub records: Vec<Record>,
    /// Of everything up to the end of each record: its digest.
    digests: Vec<Sha256Hex>,
    /// Bytes up to the end of the newest record.
    pub whole: usize,
    /// Bytes behind it: a record that was cut, or damage.
    pub tail: usize,
    /// The last byte ends a line.
    pub ends_line: bool,
    /// Lines before the newest record that are none.
    pub damaged: usize,
}

/// How a log stands to what the state knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It is that log.
    Same,
    /// It is that log and has more: a cut came between log and state.
    Longer,
    /// It is missing, shorter, or another one.
    Other,
}

impl Log {
    /// The records in `bytes`. Never fails: what is none is counted.
    pub fn parse(bytes: &[u8]) -> Self {
        let (mut log, mut hash, mut bad, mut end) = (Self::default(), Sha256::new(), 0, 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            hash.update(line);
            end += line.len();
            let newest = log.newest();
            let record = line.strip_suffix(b"\n").and_then(Record::parse);
            match record.filter(|record| record.number > newest && log.records.len() < RECORDS) {
                Some(record) => {
                    log.records.push(record);
                    log.digests.push(Sha256Hex(hash.clone().finalize().into()));
                    log.damaged += std::mem::take(&mut bad);
                    log.whole = end;
                }
                None => bad += 1,
            }
        }
        log.tail = bytes.len() - log.whole;
        log.ends_line = bytes.last().is_none_or(|last| *last == b'\n');
        log
    }

    /// Number of the newest record; 0 without one.
    pub fn newest(&self) -> u64 {
        self.records.last().map_or(0, |record| record.number)
    }

    /// Digest of everything up to the newest record; zeros without one.
    pub fn digest(&self) -> Sha256Hex {
        self.digests.last().copied().unwrap_or(Sha256Hex([0; 32]))
    }

    /// How it stands to what the state knows.
    pub fn compare(&self, known: &Taint) -> Compared {
        let place = self.records.iter().position(|record| record.number == known.count);
        let is_known = match place {
            Some(place) => self.digests.get(place) == Some(&known.digest),
            None => known.count == 0,
        };
        // A cut between log and state, after the loss was recorded.
        let told =
            |record: &Record| record.cause == Cause::LogLost.as_str() && record.detail == lost_detail(known);
        match (is_known, self.newest() > known.count) {
            (true, false) => Compared::Same,
            (true, true) => Compared::Longer,
            (false, _) if self.records.iter().any(told) => Compared::Longer,
            (false, _) => Compared::Other,
        }
    }

    /// Those that a state does not know yet that knows of `count`.
    pub fn behind(&self, count: u64) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.number > count)
    }
}

/// What the record of a lost log says.
pub fn lost_detail(known: &Taint) -> String {
    let Taint { count, digest, .. } = known;
    format!("the state knows of {count} records (digest {digest}); the log does not have them as they were")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(number: u64) -> Record {
        Record::new(number, 1000 + number, Cause::DataFull, "the data partition is full")
    }

    fn log(records: impl IntoIterator<Item = u64>) -> Vec<u8> {
        records.into_iter().flat_map(|number| record(number).render()).collect()
    }

    fn known(log: &Log) -> Taint {
        Taint { count: log.newest(), digest: log.digest(), ..Taint::default() }
    }

    #[test]
    fn a_log_says_what_was_written_and_what_was_not() {
        let whole = log(1..=3);
        let parsed = Log::parse(&whole);
        assert_eq!(parsed.records, [record(1), record(2), record(3)]);
        assert_eq!((parsed.whole, parsed.tail, parsed.damaged), (whole.len(), 0, 0));
        // Torn anywhere: the records before it, and never half of one.
        let two = log(1..=2).len();
        for length in two..whole.len() {
            let torn = Log::parse(&whole[..length]);
            assert_eq!((torn.newest(), torn.whole, torn.tail), (2, two, length - two));
            assert_eq!(torn.compare(&known(&Log::parse(&whole[..two]))), Compared::Same);
            assert_eq!(torn.compare(&known(&parsed)), Compared::Other);
        }
        // Any bit flipped in the middle: that record is gone, and the digest with it.
        let mut flipped = whole.clone();
        flipped[two - 10] ^= 1;
        let damaged = Log::parse(&flipped);
        assert_eq!((damaged.records.len(), damaged.damaged, damaged.newest()), (2, 1, 3));
        assert_eq!(damaged.compare(&known(&parsed)), Compared::Other);
    }

    #[test]
    fn the_state_tells_a_log_from_another() {
        let three = Log::parse(&log(1..=3));
        let four = Log::parse(&log(1..=4));
        assert_eq!(three.compare(&known(&three)), Compared::Same);
        assert_eq!(four.compare(&known(&three)), Compared::Longer);
        assert_eq!(four.behind(3).count(), 1);
        assert_eq!(three.compare(&known(&four)), Compared::Other);
        assert_eq!(Log::default().compare(&known(&three)), Compared::Other);
        assert_eq!(Log::default().compare(&Taint::default()), Compared::Same);
        let mut other = log(1..=2);
        other.extend(Record::new(3, 9, Cause::StateLost, "another").render());
        assert_eq!(Log::parse(&other).compare(&known(&three)), Compared::Other);
        // That it was lost is told once.
        let told = Record::new(5, 9, Cause::LogLost, &lost_detail(&known(&four)));
        let after = Log::parse(&[log(1..=2), told.render()].concat());
        assert_eq!(after.compare(&known(&four)), Compared::Longer);
    }

    #[test]
    fn a_log_has_its_limits() {
        let limit = RECORDS as u64;
        let parsed = Log::parse(&log(1..=limit + 1));
        assert_eq!((parsed.records.len(), parsed.newest()), (RECORDS, limit));
        assert!(parsed.tail > 0);
        // A number that does not grow is none.
        assert_eq!(Log::parse(&log([1, 2, 2, 1])).records.len(), 2);
        let long = Record::new(1, 1, Cause::LogLost, &"\"\u{1}ä".repeat(DETAIL));
        assert!(long.detail.len() <= DETAIL && long.render().len() <= LINE, "{}", long.render().len());
        assert_eq!(Log::parse(&long.render()).records, [long]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_log(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let parsed = Log::parse(&bytes);
            prop_assert!(parsed.records.is_empty() && parsed.tail == bytes.len());
        }
    }
}
