//! The durable record and the state in it: what was read is written back the same, fields of a newer firmware too.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::state::State;
use sps_base::durable::{MAX_PAYLOAD, RECORD, Record, choose, parse, render};

/// A record with any payload reads back.
fn store(payload: &[u8], sequence: u64) -> Option<Record> {
    let record = Record { sequence, payload: payload.to_vec() };
    let Ok(block) = render(&record) else {
        assert!(payload.len() > MAX_PAYLOAD);
        return None;
    };
    assert!(block.len() == RECORD && parse(&block).as_ref() == Ok(&record));
    Some(record)
}

fn judge_state(payload: &[u8]) {
    match State::parse(payload) {
        Ok(state) => {
            let again = State::parse(&state.render());
            assert!(again.as_ref().is_ok_and(|again| *again == state), "{state:?} became {again:?}");
        }
        Err(error) => drop(error.to_string()),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    if mode & 1 == 1 {
        judge_state(data);
        store(data, u64::from(*mode));
        return;
    }
    let (first, second) = data.split_at(data.len() / 2);
    let records = [first, second].map(|block| match parse(block) {
        Ok(record) => {
            assert!(record.payload.len() + 64 <= block.len());
            judge_state(&record.payload);
            store(&record.payload, record.sequence).ok_or(sps_base::durable::RecordError::Magic)
        }
        Err(error) => {
            assert_printable(&error);
            Err(error)
        }
    });
    let [first, second] = records;
    let valid: Vec<u64> = first.iter().chain(&second).map(|record| record.sequence).collect();
    match choose(first, second) {
        Ok((record, next)) => {
            // Sequence numbers go round (RFC 1982).
            let later = |other: &u64| (1..1 << 63).contains(&other.wrapping_sub(record.sequence));
            assert!(valid.contains(&record.sequence) && !valid.iter().any(later) && next < 2);
        }
        Err(_) => assert!(valid.is_empty(), "a valid record was taken for none"),
    }
});
