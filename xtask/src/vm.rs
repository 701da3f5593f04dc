//! `cargo xtask vm`: the appliance in QEMU.

use std::ffi::OsString;

use anyhow::Result;

use crate::packages::{self, For};
use crate::{process, workspace};

/// Runs it with these arguments; an error when a scenario failed. What boots is the release build, as it ships.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    packages::ensure(For::Test)?;
    build()?;
    check(arguments)
}

/// The scenarios that every change is checked with.
pub(crate) fn check_some() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: firmware from Debian needs root");
        return Ok(());
    }
    check(&[])
}

/// Builds it, and what it puts into the firmware.
pub(crate) fn build() -> Result<()> {
    let packages =
        ["recovery", "slotd", "spsctl", "system-tests"].map(|package| format!("--package={package}"));
    process::run(process::cargo().args(["build", "--release", "--locked", "--bins"]).args(packages))
}

/// Runs what was built.
pub(crate) fn check(arguments: &[OsString]) -> Result<()> {
    process::run(process::command(workspace::root().join("target/release/vm")).args(arguments))
}
