//! slotd owns the firmware slots: it is the only program that writes them.
//!
//! `domain` is pure: no I/O, no clock. `device` is the only code that opens devices.

// What `clippy.toml` forbids is forbidden to the program; its tests may make files.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests make their own files"))]

pub mod check;
pub mod device;
pub mod domain;
pub mod health;
pub mod initrd;
pub mod service;
pub mod settings;
pub mod store;
