//! Firmware ISOs are reproducible, lie as the format demands, and stock tools agree with them or say what is wrong.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot prepare its input fails")]

mod debian;
mod inspect;
mod placement;
mod reproducible;
mod sample;
mod slotd;
