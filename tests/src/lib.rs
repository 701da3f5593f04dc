//! Simulators and scenarios of the whole system.
