//! Simulators and scenarios of the whole system.
//!
//! The programs under test are the ones that ship: they get a private bus, file-backed slots and a configuration of
//! their own, and know nothing of being tested.

pub mod bench;
pub mod bus;
pub mod client;
pub mod crash;
pub mod demo;
pub mod firmware;
pub mod fuzz_seeds;
pub mod iso_writer;
pub mod lab;
pub mod loader;
pub mod overlay;
pub mod polkit;
pub mod polkitd;
pub mod recorder;
pub mod replay;
pub mod static_program;
pub mod synthetic;
pub mod upgrade;
pub mod vm;
