//! The adapters of `slotd::device` on temporary files, pipes, sockets and loop devices.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests make their own files"
)]

mod esp;
mod firmware;
mod grub;
mod loader;
mod medium;
mod source;
mod uefi;
