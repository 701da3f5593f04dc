//! The trailer of a slot: what is valid renders to something valid that says the same; zeros alone are no trailer.
#![no_main]

use fuzz_targets::sum_trailer;
use libfuzzer_sys::fuzz_target;
use slotd::domain::trailer::{Found, parse, render};
use slotd::domain::verity::BLOCK_LEN;

/// Room for entries of 24 bytes between the head and the checksum.
const MOST: usize = (BLOCK_LEN - 64 - 32) / 24;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let mut block = [0; BLOCK_LEN];
    let len = data.len().min(BLOCK_LEN);
    block[..len].copy_from_slice(&data[..len]);
    if mode & 1 == 1 {
        sum_trailer(&mut block);
    }
    match parse(&block) {
        Found::Absent => assert!(block == [0; BLOCK_LEN]),
        Found::Torn(why) => assert!(!why.is_empty()),
        Found::Valid(trailer) => {
            assert!(trailer.parts.len() <= MOST);
            let again = render(&trailer);
            assert!(parse(&again) == Found::Valid(trailer), "it does not read back");
        }
    }
});
