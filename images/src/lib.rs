//! Builds and inspects firmware ISOs (`docs/formats.md`, "The firmware ISO") with stock tools.
//!
//! [`build_firmware`] turns a tree into an ISO, the same bits for the same input; [`inspect::inspect`] takes an ISO apart
//! again with tools that share no code with the builder or with slotd.

pub mod appliance;
pub mod cli;
pub mod debian;
pub mod dirs;
pub mod erofs;
mod firmware;
pub mod inspect;
mod iso;
pub mod package;
pub mod packages_lock;
pub mod pki;
mod product;
mod root;
pub mod sbom;
pub mod secure_boot;
mod spec;
pub mod tool;

pub use debian::boot_files;
pub use dirs::BuildDirs;
pub use firmware::{Built, build_firmware};
pub use pki::Pki;
pub use root::uuid as root_uuid;
pub use secure_boot::BootKey;
pub use spec::{FirmwareSpec, Source};
