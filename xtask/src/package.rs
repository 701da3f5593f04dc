//! `cargo xtask package`: the programs as they are installed, in the Debian package `sps-agent`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sps_images::package::{self, Package, Programs};
use system_tests::static_program;

use crate::packages::{self, For};
use crate::{process, workspace};

/// The profile of `Cargo.toml` for what is installed.
const PROFILE: &str = "appliance";

/// `cargo xtask package`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Directory where it goes [default: target/sps/package]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds the package and says where it is.
pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure(For::Test)?;
    let out = args.out.clone().unwrap_or_else(|| workspace::scratch().join("package"));
    let file = build(&std::path::absolute(out)?)?;
    println!("{}", file.display());
    Ok(())
}

/// Builds programs and package into the directory `out`; the package's path.
pub(crate) fn build(out: &Path) -> Result<PathBuf> {
    let programs = programs()?;
    let sources = workspace::root();
    let package = Package {
        sources: &sources,
        programs: &programs,
        version: env!("CARGO_PKG_VERSION"),
        epoch: epoch()?,
    };
    package::build(&package, out)
}

/// Builds what goes into it.
pub(crate) fn programs() -> Result<Programs> {
    let (root, target) = (workspace::root(), workspace::scratch().join(PROFILE));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let flags = flags(&root)?;
    // A directory of its own: these flags would have everything else built again.
    let environment =
        [("CARGO_ENCODED_RUSTFLAGS", flags.as_os_str()), ("CARGO_TARGET_DIR", target.as_os_str())];
    let slotboot =
        static_program::build_slotboot(Path::new(&cargo), PROFILE, &environment, &target.join("static"))?;
    let needs = static_program::needs(&slotboot)?;
    ensure!(needs.is_empty(), "{} needs more than itself: {needs:?}", slotboot.display());
    let mut build = process::cargo();
    build.args([
        "build",
        "--quiet",
        "--locked",
        "--profile",
        PROFILE,
        "--package",
        "recovery",
        "--package",
        "slotd",
        "--package",
        "spsctl",
    ]);
    // Without slotboot, which is there already: each program is optimised as a whole, and that takes its time.
    build.args(package::programs().filter(|name| *name != "slotboot").flat_map(|name| ["--bin", name]));
    process::run(build.envs(environment))?;
    Ok(Programs { directory: target.join(PROFILE), slotboot })
}

/// Names instead of the paths of this machine, which the programs would otherwise carry in the texts of their panics.
fn flags(root: &Path) -> Result<OsString> {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || std::env::home_dir().map(|home| home.join(".cargo")).context("no CARGO_HOME and no HOME"),
        |home| Ok(PathBuf::from(home)),
    )?;
    let mut flags = OsString::new();
    for (from, to) in [(home.as_path(), "cargo"), (root, "sps-agent")] {
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=/");
        flags.push(to);
    }
    Ok(flags)
}

/// Every time stamp: `SOURCE_DATE_EPOCH`, else the time of the commit.
fn epoch() -> Result<u64> {
    let (text, from) = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => (text, "SOURCE_DATE_EPOCH"),
        Err(_) => (workspace::commit_time()?, "the time of the commit"),
    };
    text.trim().parse().with_context(|| format!("{from} is {text:?}; expected seconds since 1970"))
}
