//! Simulators and scenarios of the whole system.

pub mod bench;
pub mod firmware;
pub mod lab;
