//! Simulators and scenarios of the whole system.

pub mod bench;
pub mod crash;
pub mod firmware;
pub mod iso_writer;
pub mod lab;
pub mod recorder;
pub mod synthetic;
