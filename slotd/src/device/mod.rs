//! The only code that opens devices: slots, the state partition, the ESP, and the descriptor an image arrives on.

#![expect(clippy::disallowed_methods, reason = "device writes slots, the state and the ESP")]

pub mod buffer;
pub mod esp;
pub mod loader;
pub mod medium;
pub mod probe;
pub mod scheduling;
pub mod source;
