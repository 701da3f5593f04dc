//! Where the workspace is and which commit it shows.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;

/// The root directory. `cargo run` names it; the path from compile time serves a binary started by hand.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let package = PathBuf::from(package);
    package.parent().map_or(package.clone(), PathBuf::from)
}

/// What the tasks make: tools, caches, results. Below `target`, so that `cargo clean` removes it.
pub(crate) fn scratch() -> PathBuf {
    root().join("target/sps")
}

/// The commit, and whether every file is as committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) clean: bool,
}

/// The commit that the working tree shows; `unknown` and never clean outside a git checkout.
pub(crate) fn commit() -> Commit {
    let ask = || -> Result<Commit> {
        let id = git(&["rev-parse", "HEAD"])?.trim().to_owned();
        let clean = git(&["status", "--porcelain"])?.trim().is_empty();
        Ok(Commit { id, clean })
    };
    ask().unwrap_or_else(|error| {
        eprintln!("note: results cannot be tied to a commit: {error:#}");
        Commit { id: "unknown".to_owned(), clean: false }
    })
}

/// Seconds since 1970 of the commit, as git prints them.
pub(crate) fn commit_time() -> Result<String> {
    git(&["log", "-1", "--format=%ct"])
}

/// Every Rust source that is, or could be, committed; relative to the root.
pub(crate) fn rust_sources() -> Result<Vec<PathBuf>> {
    files(&["*.rs"])
}

/// Every file of these patterns (none: all) that is, or could be, committed; relative to the root.
pub(crate) fn files(patterns: &[&str]) -> Result<Vec<PathBuf>> {
    let all = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = git(&[&all, patterns].concat())?;
    let mut files: Vec<PathBuf> =
        listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.retain(|file| root().join(file).is_file());
    files.sort();
    Ok(files)
}

/// Asks git, also about a checkout of another user (root in CI), which it refuses otherwise.
fn git(arguments: &[&str]) -> Result<String> {
    let trusted = format!("safe.directory={}", root().display());
    process::output("git", ["-c", &trusted].iter().chain(arguments))
}
