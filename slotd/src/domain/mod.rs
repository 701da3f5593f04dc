//! The functional core: formats, decisions and the order law. No I/O, no clock, no panic.

pub mod file_list;
pub mod manifest;
pub mod signature;
