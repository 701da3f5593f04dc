//! The durable record: how a small state survives any power cut without a file system.
//!
//! Two records of [`RECORD`] bytes lie far apart and are written in turn; the valid one with the later sequence
//! number counts. Sequence numbers go round: after the largest comes 0 (serial number arithmetic, RFC 1982). Pure:
//! reading and writing them is the caller's.
//!
//! Layout, little endian: magic (8) · sequence u64 · payload length u32 · zero (12) · SHA-256 over those 32 bytes and
//! the payload (32) · payload · zeros.

use sha2::{Digest, Sha256};

/// Length of a record in bytes.
pub const RECORD: usize = 64 << 10;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = RECORD - HEADER;

const MAGIC: [u8; 8] = *b"SPSREC1\0";
const SUMMED: usize = 32;
const HEADER: usize = 64;

/// A record that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Rises by one with each write, as [`next_sequence`] does.
    pub sequence: u64,
    /// What was stored.
    pub payload: Vec<u8>,
}

/// Why bytes are no record. None of these means "never written": the installer writes the first record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing but zeros, or not a record at all.
    #[error("no record here (no magic)")]
    Magic,
    /// The stated length is impossible, or the block is too short.
    #[error("record with an impossible length of {0} bytes")]
    Length(u64),
    /// Torn or altered.
    #[error("record whose checksum does not match")]
    Checksum,
    /// The medium could not be read.
    #[error("record that cannot be read: {0}")]
    Unreadable(String),
    /// The payload does not fit.
    #[error("payload of {0} bytes; a record holds {MAX_PAYLOAD}")]
    TooLong(usize),
}

/// The block that stores `record`.
pub fn render(record: &Record) -> Result<Vec<u8>, RecordError> {
    let length = u32::try_from(record.payload.len())
        .ok()
        .filter(|_| record.payload.len() <= MAX_PAYLOAD)
        .ok_or(RecordError::TooLong(record.payload.len()))?;
    let mut block = Vec::with_capacity(RECORD);
    block.extend_from_slice(&MAGIC);
    block.extend_from_slice(&record.sequence.to_le_bytes());
    block.extend_from_slice(&length.to_le_bytes());
    block.resize(SUMMED, 0);
    let sum = checksum(&block, &record.payload);
    block.extend_from_slice(&sum);
    block.extend_from_slice(&record.payload);
    block.resize(RECORD, 0);
    Ok(block)
}

/// The record in `block`, which holds [`RECORD`] bytes.
pub fn parse(block: &[u8]) -> Result<Record, RecordError> {
    let (Some(head), Some(sum)) = (block.get(..SUMMED), block.get(SUMMED..HEADER)) else {
        return Err(RecordError::Length(block.len() as u64));
    };
    if !head.starts_with(&MAGIC) {
        return Err(RecordError::Magic);
    }
    let sequence = u64::from_le_bytes(head[8..16].try_into().unwrap_or_default());
    let length = u32::from_le_bytes(head[16..20].try_into().unwrap_or_default());
    let payload = usize::try_from(length)
        .ok()
        .and_then(|length| block.get(HEADER..HEADER.checked_add(length)?))
        .ok_or(RecordError::Length(u64::from(length)))?;
    if checksum(head, payload) != sum {
        return Err(RecordError::Checksum);
    }
    Ok(Record { sequence, payload: payload.to_vec() })
}

/// Which of the two records counts, and where the next one goes (0 or 1). `Err` when neither is valid.
pub fn choose(
    first: Result<Record, RecordError>,
    second: Result<Record, RecordError>,
) -> Result<(Record, usize), [RecordError; 2]> {
    match (first, second) {
        (Ok(a), Ok(b)) if is_later(b.sequence, a.sequence) => Ok((b, 0)),
        (Ok(a), _) => Ok((a, 1)),
        (Err(_), Ok(b)) => Ok((b, 0)),
        (Err(a), Err(b)) => Err([a, b]),
    }
}

/// The sequence number of the next write.
pub fn next_sequence(sequence: u64) -> u64 {
    sequence.wrapping_add(1)
}

/// Whether `one` comes after `other`: it is less than half way round ahead.
fn is_later(one: u64, other: u64) -> bool {
    (1..1 << 63).contains(&one.wrapping_sub(other))
}

fn checksum(head: &[u8], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(head).chain_update(payload).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Record {
        Record { sequence, payload: format!("state {sequence}").into_bytes() }
    }

    #[test]
    fn a_rendered_record_parses_and_every_flipped_bit_is_found() {
        let block = render(&record(7)).unwrap();
        assert_eq!((block.len(), parse(&block)), (RECORD, Ok(record(7))));
        for at in 0..HEADER + 7 {
            let mut torn = block.clone();
            torn[at] ^= 1;
            assert!(parse(&torn).is_err(), "a flipped bit at {at} was not found");
        }
    }

    #[test]
    fn the_newer_valid_record_counts_and_the_other_is_written_next() {
        assert_eq!(choose(Ok(record(4)), Ok(record(5))), Ok((record(5), 0)));
        assert_eq!(choose(Ok(record(6)), Ok(record(5))), Ok((record(6), 1)));
        assert_eq!(choose(Err(RecordError::Checksum), Ok(record(5))), Ok((record(5), 0)));
        assert_eq!(choose(Ok(record(6)), Err(RecordError::Magic)), Ok((record(6), 1)));
        assert!(choose(Err(RecordError::Magic), Err(RecordError::Checksum)).is_err());
    }

    #[test]
    fn the_sequence_goes_round() {
        let last = u64::MAX;
        assert_eq!(next_sequence(last), 0);
        assert_eq!(choose(Ok(record(last)), Ok(record(0))), Ok((record(0), 0)));
        assert_eq!(choose(Ok(record(0)), Ok(record(last))), Ok((record(0), 1)));
        assert_eq!(choose(Ok(record(last - 1)), Ok(record(last))), Ok((record(last), 0)));
        assert_eq!(choose(Ok(record(1 << 63)), Ok(record((1 << 63) - 1))), Ok((record(1 << 63), 1)));
    }

    #[test]
    fn zeros_and_short_blocks_are_no_record() {
        assert_eq!(parse(&vec![0; RECORD]), Err(RecordError::Magic));
        assert_eq!(parse(&MAGIC), Err(RecordError::Length(8)));
        assert!(matches!(
            render(&Record { sequence: 0, payload: vec![0; MAX_PAYLOAD + 1] }),
            Err(RecordError::TooLong(_))
        ));
    }
}
