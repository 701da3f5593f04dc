//! Machines in QEMU, without hardware virtualization: the real kernel, systemd, UEFI firmware and boot loader.

pub mod appliance;
mod channel;
pub mod direct;
pub mod machine;
mod qmp;
