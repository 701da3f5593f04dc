//! `cargo xtask fuzz`: builds the fuzz targets of `tests/fuzz` and runs them.
//!
//! The targets are cargo-fuzz's kind, but no tool is compiled for them (decision 0001): these are the compiler flags
//! that cargo-fuzz passes. Without a sanitizer, for the code is safe Rust with checked arithmetic, a run is several
//! times as long in the same time; `--address` adds `AddressSanitizer`, for which the stable compiler needs
//! `RUSTC_BOOTSTRAP=1`.

mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use system_tests::fuzz_seeds;

use crate::packages::{self, For};
use crate::{process, workspace};
use report::Report;

/// What is to be fuzzed, and how.
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(crate) struct Args {
    /// Targets; `--list` names them
    #[arg(value_name = "TARGET", required_unless_present_any = ["all", "list", "smoke", "seeds"])]
    targets: Vec<String>,
    /// Every target, one after the other
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// How long each one runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// With `AddressSanitizer`: slower, for the `unsafe` code of the libraries
    #[arg(long)]
    address: bool,
    /// A fixed number of runs of every target, as `cargo xtask test` does
    #[arg(long, conflicts_with_all = ["targets", "all", "address"])]
    smoke: bool,
    /// Only write fixtures and seeds, for `cargo fuzz` itself
    #[arg(long)]
    seeds: bool,
    /// Print the targets
    #[arg(long)]
    list: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A fuzz target.
struct Target {
    /// Name of its program, and of its file in `tests/fuzz/fuzz_targets`.
    name: &'static str,
    /// Longest input in bytes.
    longest: u32,
    /// Runs in the smoke test: about three seconds of one core.
    smoke: u32,
    /// What is fuzzed.
    about: &'static str,
}

const fn target(name: &'static str, longest: u32, smoke: u32, about: &'static str) -> Target {
    Target { name, longest, smoke, about }
}

const TARGETS: [Target; 17] = [
    target("check_output", 4096, 100_000, "what a firmware's check programs say"),
    target("efivar", 4200, 200_000, "variables of the boot loader, and entry names"),
    target("envblk", 1100, 100_000, "GRUB's environment block"),
    target("erofs", 65_536, 20_000, "the walk over an EROFS image"),
    target("file_list", 4096, 10_000, "the compressed file list"),
    target("install", 4096, 60, "the whole installer: a damaged ISO, media that fail, a resume"),
    target("iso", 16_384, 60_000, "the head of an ISO"),
    target("keyring", 4096, 3000, "roots and revocation lists"),
    target("loader_conf", 4096, 60_000, "systemd-boot's loader.conf"),
    target("manifest", 8192, 40_000, "the manifest, policy, layout"),
    target("media", 4096, 60, "a start on damaged media: slot, state, ESP, loader"),
    target("settings", 8192, 20_000, "slotd.toml"),
    target("signature", 8192, 5000, "the CMS signature"),
    target("state", 8192, 30_000, "the durable record and the state in it"),
    target("taint", 8192, 30_000, "the taint log, and what the state knows of it"),
    target("trailer", 4097, 100_000, "the trailer of a slot"),
    target("verity", 4096, 2000, "superblock and hash tree"),
];

/// Longest that one target may take in the smoke test, in seconds, where the machine is slow.
const SMOKE_SECONDS: u64 = 15;

/// The flags of cargo-fuzz 0.13.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// How long a target runs, and what it begins with.
#[derive(Clone, Copy)]
enum Budget {
    /// A fixed number of runs from the seeds alone, the same each time.
    Smoke,
    /// Seconds, going on from the corpus of earlier runs.
    Seconds(u64),
}

/// Carries out what was asked for. False when something was found.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.list {
        for Target { name, about, .. } in &TARGETS {
            println!("{name:<14} {about}");
        }
        return Ok(true);
    }
    packages::ensure(For::Test)?;
    if args.seeds {
        return fuzz_seeds::write(&scratch()).map(|()| true);
    }
    if args.smoke {
        return smoke(args.json);
    }
    let mut chosen: Vec<&Target> = TARGETS.iter().filter(|_| args.all).collect();
    for name in &args.targets {
        let found = TARGETS.iter().find(|target| target.name == name);
        chosen.push(found.with_context(|| format!("there is no target {name}; --list names them"))?);
    }
    let programs = prepare(args.address)?;
    let budget = Budget::Seconds(args.minutes * 60);
    let mut reports = Vec::new();
    for target in chosen {
        eprintln!("== {} for {} min", target.name, args.minutes);
        reports.push(fuzz(target, &programs, budget)?);
    }
    report::print(&reports, args.json)
}

/// The short run that belongs to every test run.
pub(crate) fn check() -> Result<()> {
    ensure!(smoke(false)?, "a fuzz target has found something");
    Ok(())
}

fn smoke(json: bool) -> Result<bool> {
    let programs = prepare(false)?;
    // First, beside each other, those whose threads yield to everything else: slotd hashes at the lowest priority.
    let mut order: Vec<&Target> = TARGETS.iter().collect();
    order.sort_by_key(|target| target.smoke);
    order.reverse();
    let waiting = Mutex::new(order);
    let done = Mutex::new(Vec::new());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.pop());
    let work = || {
        while let Some(target) = next() {
            let report = fuzz(target, &programs, Budget::Smoke);
            if let Ok(mut done) = done.lock() {
                done.push(report);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut reports = done.into_iter().collect::<Result<Vec<Report>>>()?;
    ensure!(reports.len() == TARGETS.len(), "{} of {} targets ran", reports.len(), TARGETS.len());
    reports.sort_by(|a, b| a.target.cmp(&b.target));
    report::print(&reports, json)
}

/// Where fixtures, seeds, corpora, finds and builds lie.
fn scratch() -> PathBuf {
    workspace::scratch().join("fuzz")
}

/// Builds the targets and writes what they begin with; the directory of the programs.
fn prepare(address: bool) -> Result<PathBuf> {
    let begin = Instant::now();
    let host = process::output("rustc", ["-vV"])?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let build = scratch().join(if address { "build-address" } else { "build" });
    let mut flags = FLAGS.join(" ");
    let mut command = process::cargo();
    if address {
        flags.push_str(" -Zsanitizer=address");
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    // With a target named, programs of the build itself have no such flags.
    command
        .args(["build", "--manifest-path", MANIFEST, "--release", "--locked", "--bins", "--target", host])
        .env("CARGO_TARGET_DIR", &build)
        .env("RUSTFLAGS", flags);
    process::run(&mut command)?;
    let build_time = begin.elapsed();
    fuzz_seeds::write(&scratch()).context("fixtures and seeds")?;
    let seeds_time = begin.elapsed().saturating_sub(build_time);
    eprintln!("built in {:.0} s, seeds in {:.0} s", build_time.as_secs_f64(), seeds_time.as_secs_f64());
    Ok(build.join(host).join("release"))
}

/// The manifest of the targets, from the root.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// Runs one target to the end of its budget or its first find.
fn fuzz(target: &Target, programs: &Path, budget: Budget) -> Result<Report> {
    let scratch = scratch();
    let place = |kind: &str| scratch.join(kind).join(target.name);
    let corpus = place(if matches!(budget, Budget::Smoke) { "smoke" } else { "corpus" });
    if matches!(budget, Budget::Smoke) && corpus.exists() {
        fs::remove_dir_all(&corpus)?;
    }
    let found = place("found");
    for directory in [&corpus, &found, &scratch.join("logs")] {
        fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    let log = scratch.join("logs").join(format!("{}.log", target.name));
    let mut command = process::command(programs.join(target.name));
    command.args(match budget {
        Budget::Smoke => {
            vec![
                "-seed=1".into(),
                format!("-runs={}", target.smoke),
                format!("-max_total_time={SMOKE_SECONDS}"),
            ]
        }
        Budget::Seconds(seconds) => vec![format!("-max_total_time={seconds}")],
    });
    command.args(["-timeout=10", "-rss_limit_mb=512", "-malloc_limit_mb=256", "-print_final_stats=1"]);
    command.arg(format!("-max_len={}", target.longest));
    command.arg(format!("-artifact_prefix={}/", found.display()));
    let words = workspace::root().join(format!("tests/fuzz/dictionaries/{}.dict", target.name));
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.args([&corpus, &place("seeds")]);
    command.env("SPS_FUZZ_FIXTURES", scratch.join("fixtures")).env("RUST_BACKTRACE", "1");
    let begin = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| log.display().to_string())?)
        .status()
        .with_context(|| format!("cannot start {}", process::shown(&command)))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let report = Report::read(target.name, &said, begin.elapsed());
    if !status.success() {
        eprintln!("{}: {status}; the whole output is in {}", target.name, log.display());
        if report.found.is_none() {
            bail!("{} did not run: {}", target.name, said.lines().last().unwrap_or("no output"));
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_names_every_target_that_there_is() {
        let manifest: toml::Table = toml::from_str(include_str!("../../tests/fuzz/Cargo.toml")).unwrap();
        let bins = manifest["bin"].as_array().unwrap();
        let bins: BTreeSet<&str> = bins.iter().map(|bin| bin["name"].as_str().unwrap()).collect();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(bins, names.into_iter().collect());
    }
}
