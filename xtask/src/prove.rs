//! `cargo xtask prove`: the crash checker, built for release and run.

use std::ffi::OsString;

use anyhow::Result;

use crate::packages::{self, For};
use crate::{process, workspace};

/// Runs it with these arguments; an error when something did not hold.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    packages::ensure(For::Test)?;
    build()?;
    check(arguments)
}

/// Builds it.
pub(crate) fn build() -> Result<()> {
    process::run(process::cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "system-tests",
        "--bin",
        "prove",
    ]))
}

/// Runs what was built.
pub(crate) fn check(arguments: &[OsString]) -> Result<()> {
    process::run(process::command(workspace::root().join("target/release/prove")).args(arguments))
}
