//! What the SPS daemons must agree on, and nothing else: slot values, D-Bus names, errors and client
//! proxies, the durable state record, and the shell every service runs in.
//!
//! Nothing here opens a device, starts a process or reads a clock.

// What `clippy.toml` forbids is forbidden to the program; its tests may make files.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests make their own files"))]

pub mod dbus;
pub mod durable;
pub mod error;
pub mod journal;
pub mod recovery;
pub mod service;
pub mod slot;
