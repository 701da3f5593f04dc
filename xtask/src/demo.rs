//! `cargo xtask demo`: builds the programs and hands over to the demo itself.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use sps_images::BuildDirs;
use system_tests::demo::{Args, Setting};
use system_tests::static_program;

use crate::packages::{self, For};
use crate::{process, workspace};

/// Shows the product at work; true when every step showed what it should.
pub(crate) fn run(args: &Args) -> Result<bool> {
    packages::ensure(For::Test)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "firmware from Debian needs root, for owners, mounts and a chroot; run: sudo -E cargo xtask demo"
        );
    }
    let start = Instant::now();
    let root = workspace::root();
    let programs = root.join("target/debug");
    // First: the next build puts the usual one where this one is made.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    static_program::build_slotboot(Path::new(&cargo), "dev", &[], &programs.join("static"))?;
    // The profile of development: it optimises what hashes. With this package among those built, the crates that all
    // three share get the features that they were built with for this program, and are not built a second time.
    process::run(process::cargo().args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "slotd",
        "--package",
        "spsctl",
        "--package",
        "system-tests",
        "--package",
        "xtask",
        "--bins",
    ]))?;
    println!("the programs are built in {:.0} s", start.elapsed().as_secs_f64());
    let dirs = BuildDirs::new(workspace::scratch())?;
    system_tests::demo::run(args, &Setting { dirs: &dirs, programs: &programs, sources: &root })
}
