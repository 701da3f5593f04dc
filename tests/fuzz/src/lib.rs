//! What the fuzz targets share: fixtures, structured edits, media that fail, and checksums put right.
//!
//! A target is a file of `fuzz_targets/`. It asserts what must hold whatever bytes arrive; a panic of the product is a
//! find as well. `cargo xtask fuzz` builds and runs them, and `system_tests::fuzz_seeds` writes what they begin with.

pub mod appliance;
pub mod edits;
pub mod fixtures;
pub mod sick;

use std::error::Error;

use sha2::{Digest as _, Sha256};
use slotd::domain::verity::BLOCK_LEN;

/// Puts the checksum of a trailer right, so that what it sums is judged and not only the sum.
pub fn sum_trailer(block: &mut [u8; BLOCK_LEN]) {
    let (summed, sum) = block.split_at_mut(BLOCK_LEN - 32);
    sum.copy_from_slice(&Sha256::digest(summed));
}

/// Asserts that a message with its causes is one printable line of bearable length: it goes to a log and a terminal.
pub fn assert_printable(error: &dyn Error) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "control character in {text:?}");
        assert!(text.len() <= 4096, "{} bytes of message", text.len());
        cause = error.source();
    }
}
