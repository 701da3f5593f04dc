//! `cargo xtask demo`: builds the programs and hands over to the demo itself.

use std::time::Instant;

use anyhow::{Result, bail};
use sps_images::BuildDirs;
use system_tests::demo::{Args, Setting};

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
        "xtask",
        "--bins",
    ]))?;
    println!("slotd and spsctl built in {:.0} s", start.elapsed().as_secs_f64());
    let root = workspace::root();
    let dirs = BuildDirs::new(workspace::scratch())?;
    let (programs, units) = (root.join("target/debug"), root.join("systemd"));
    system_tests::demo::run(args, &Setting { dirs: &dirs, programs: &programs, units: &units })
}
