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
