//! `cargo xtask test`: everything that must hold before a change is taken.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::packages::{self, For};
use crate::{dependencies, fuzz, process, prove, suite, typos, units, vm, workspace};

/// A check: an error says what does not hold.
type Check = fn() -> Result<()>;

/// The checks before the tests, quick ones first.
const CHECKS: &[(&str, Check)] = &[
    ("format", format),
    ("spelling", typos::check),
    ("units", units::check),
    ("dependencies", dependencies::check),
    ("clippy", clippy),
    ("documentation", documentation),
    ("build prove", prove::build),
    ("prove", || prove::check(&[])),
    ("fuzzing", fuzz::check),
    ("build vm", vm::build),
    ("vm", vm::check_some),
];

/// Runs all checks and then all tests, whatever fails on the way. True when everything held.
pub(crate) fn run() -> Result<bool> {
    packages::ensure(For::Test)?;
    components()?;
    let mut times = Vec::new();
    let mut failures = Vec::new();
    for (name, check) in CHECKS {
        if let Err(error) = timed(name, &mut times, check) {
            eprintln!("{name}: {error:#}");
            failures.push(format!("{name}: {error:#}"));
        }
    }
    let (mut passed, mut failed) = (0, 0);
    match timed("tests", &mut times, suite::run) {
        Ok(results) => {
            (passed, failed) = (results.counts.passed, results.counts.failed);
            if passed + failed == 0 {
                failures.push("tests: not one was run".to_owned());
            }
        }
        Err(error) => failures.push(format!("tests: {error:#}")),
    }

    println!();
    for (name, time) in times {
        println!("{name:<14} {:>6.1} s", time.as_secs_f64());
    }
    for failure in &failures {
        println!("failed: {failure}");
    }
    // A check that failed counts as one failure beside those of the tests.
    println!("{}", summary(passed, failed + failures.len()));
    Ok(failures.is_empty() && failed == 0)
}

fn summary(passed: usize, failed: usize) -> String {
    format!("{passed} passed, {failed} failed")
}

fn timed<T>(
    name: &'static str,
    times: &mut Vec<(&'static str, Duration)>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    println!("== {name}");
    let begin = Instant::now();
    let done = work();
    times.push((name, begin.elapsed()));
    done
}

/// The manifests of both workspaces: the product's, and the fuzz targets'.
const MANIFESTS: [&str; 2] = ["Cargo.toml", fuzz::MANIFEST];

fn format() -> Result<()> {
    MANIFESTS.iter().try_for_each(|manifest| {
        process::run(process::cargo().args(["fmt", "--all", "--check", "--manifest-path", manifest]))
    })
}

fn clippy() -> Result<()> {
    MANIFESTS.iter().try_for_each(|manifest| {
        let command = ["clippy", "--manifest-path", manifest, "--workspace", "--all-targets", "--locked"];
        // In one directory, so that what both need is checked once.
        let built = std::env::var_os("CARGO_TARGET_DIR");
        let built = built.unwrap_or_else(|| workspace::root().join("target").into());
        let mut cargo = process::cargo();
        cargo.args(command).args(["--", "-D", "warnings"]).env("CARGO_TARGET_DIR", built);
        process::run(&mut cargo)
    })
}

fn documentation() -> Result<()> {
    process::run(
        process::cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// A minimal toolchain comes without rustfmt and clippy.
fn components() -> Result<()> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| {
            let mut command = process::cargo();
            command.args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
            !command.status().is_ok_and(|status| status.success())
        })
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !process::exists("rustup") {
        bail!("the Rust toolchain lacks: {}", missing.join(" "));
    }
    println!("== installing missing toolchain components: {}", missing.join(" "));
    process::run(process::command("rustup").args(["component", "add"]).args(&missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_one_line() {
        assert_eq!(summary(12, 0), "12 passed, 0 failed");
    }

    #[test]
    fn time_is_taken_of_what_fails_too() {
        let mut times = Vec::new();
        assert!(timed::<()>("x", &mut times, || bail!("no")).is_err());
        assert_eq!(times.len(), 1);
    }
}
