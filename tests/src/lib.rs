//! Simulators and scenarios of the whole system.
pub mod bench;
