//! The only code that opens devices: slots, the state partition, the ESP, and the descriptor an image arrives on.

#![expect(clippy::disallowed_methods, reason = "device writes slots, the state and the ESP")]

pub mod buffer;
pub mod device_mapper;
pub mod esp;
pub mod file_system;
pub mod kernel;
pub mod loader;
pub mod medium;
pub mod partition;
pub mod probe;
pub mod source;
