//! What the initrd does besides counting starts: which disk is ours, and the writable parts of the system.

pub mod boot_disk;
pub mod configuration;
pub mod data;
pub mod mounts;
