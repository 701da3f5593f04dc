//! The taint log: what is no record is told from one, and what a state knows of it from what it does not.
#![no_main]

use std::fmt::Write as _;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use slotd::domain::state::Taint;
use slotd::domain::taint::{Cause, Compared, Log, Record};

/// A line whose checksum is right, whatever it says.
fn line(text: &[u8]) -> Vec<u8> {
    let mut sum = String::new();
    for byte in Sha256::digest(text) {
        let _ = write!(sum, "{byte:02x}");
    }
    [sum.as_bytes(), b" ", text, b"\n"].concat()
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 1 {
        bytes = data.split(|byte| *byte == b'\n').flat_map(line).collect();
    }
    let log = Log::parse(&bytes);
    assert!(log.whole + log.tail == bytes.len());
    assert!(log.records.is_sorted_by(|one, other| one.number < other.number));
    let (whole, tail) = bytes.split_at(log.whole);
    let again = Log::parse(whole);
    assert!((&again.records, again.digest(), again.tail) == (&log.records, log.digest(), 0), "{tail:?}");
    let known = Taint { count: log.newest(), digest: log.digest(), ..Taint::default() };
    assert!(log.compare(&known) == Compared::Same);
    let Some(number) = log.newest().checked_add(1) else { return };
    let next = Record::new(number, 1, Cause::StateLost, &String::from_utf8_lossy(data));
    let longer = Log::parse(&[whole, &next.render()].concat());
    assert!(longer.records.last() == Some(&next) && longer.compare(&known) == Compared::Longer);
});
