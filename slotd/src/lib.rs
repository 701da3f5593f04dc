//! slotd owns the firmware slots: it is the only program that writes them.
//!
//! `domain` is pure: no I/O, no clock. `device` is the only code that opens devices.

pub mod domain;
pub mod service;
pub mod settings;
pub mod store;
