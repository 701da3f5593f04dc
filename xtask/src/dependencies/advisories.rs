//! Known vulnerabilities, from the `RustSec` advisory database.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use semver::{Version, VersionReq};
use serde::Deserialize;

use super::{Finding, Level, Package};
use crate::{process, workspace};

const DATABASE: &str = "https://github.com/rustsec/advisory-db";

/// `[advisories]` of `deny.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Advisories that do not concern us, each with the reason.
    ignore: Vec<Ignored>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ignored {
    id: String,
    #[expect(dead_code, reason = "required in the file, for its readers")]
    reason: String,
}

/// The front matter of an advisory.
#[derive(Deserialize)]
struct Advisory {
    advisory: About,
    versions: Versions,
}

#[derive(Deserialize)]
struct About {
    id: String,
    /// Set when the advisory was taken back.
    withdrawn: Option<String>,
    /// `unmaintained`, `unsound` or `notice`; absent for a vulnerability.
    informational: Option<String>,
}

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    patched: Vec<VersionReq>,
    #[serde(default)]
    unaffected: Vec<VersionReq>,
}

/// A fresh copy of the database; an error when it cannot be had within a minute.
pub(super) fn database() -> Result<PathBuf> {
    let path = workspace::scratch().join("advisory-db");
    let git = || {
        let mut command = process::command("timeout");
        command.args(["60", "git"]).env("GIT_TERMINAL_PROMPT", "0");
        command
    };
    if path.join(".git").is_dir() {
        process::run(git().arg("-C").arg(&path).args(["pull", "--quiet", "--ff-only", "--depth=1"]))?;
    } else {
        process::run(git().args(["clone", "--quiet", "--depth=1", DATABASE]).arg(&path))?;
    }
    Ok(path)
}

/// Findings for every package that an advisory is about: denied for a vulnerability, else a warning.
pub(super) fn judge(settings: &Settings, database: &Path, packages: &[Package]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in packages.iter().filter(|package| package.source.is_some()) {
        let directory = database.join("crates").join(&package.name);
        if !directory.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            let advisory = parse(&text).with_context(|| path.display().to_string())?;
            let ignored = settings.ignore.iter().any(|ignored| ignored.id == advisory.advisory.id);
            if ignored || !concerns(&advisory, &package.version) {
                continue;
            }
            let About { id, informational, .. } = advisory.advisory;
            let level = if informational.is_none() { Level::Deny } else { Level::Warn };
            let kind = informational.unwrap_or_else(|| "vulnerable".to_owned());
            findings.push((level, format!("{} {} is {kind}: {id}", package.name, package.version)));
        }
    }
    Ok(findings)
}

/// An advisory is Markdown that begins with its data as a fenced TOML block.
fn parse(text: &str) -> Result<Advisory> {
    let toml =
        text.split_once("```toml").and_then(|(_, rest)| rest.split_once("```")).context("no TOML block")?.0;
    Ok(toml::from_str(toml)?)
}

fn concerns(advisory: &Advisory, version: &Version) -> bool {
    let Versions { patched, unaffected } = &advisory.versions;
    advisory.advisory.withdrawn.is_none()
        && !patched.iter().chain(unaffected).any(|safe| safe.matches(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVISORY: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2024-0001\"\npackage = \"x\"\ndate = \"2024-01-01\"\n\
        [versions]\npatched = [\"^1.2.3\", \">=1.4.0\"]\nunaffected = [\"<1.1.0\"]\n```\n\n# Title\n";

    fn findings(advisory: &str, version: &str, ignore: &str) -> Vec<Finding> {
        let database = tempfile::tempdir().unwrap();
        let directory = database.path().join("crates/x");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("RUSTSEC-2024-0001.md"), advisory).unwrap();
        let settings: Settings = toml::from_str(ignore).unwrap();
        let package = Package {
            name: "x".into(),
            version: version.parse().unwrap(),
            license: None,
            source: Some("registry+x".into()),
            dependencies: Vec::new(),
        };
        judge(&settings, database.path(), &[package]).unwrap()
    }

    #[test]
    fn a_vulnerable_version_is_denied_and_others_are_not() {
        for (version, count) in [("1.0.9", 0), ("1.1.0", 1), ("1.2.2", 1), ("1.2.3", 0), ("2.0.0", 0)] {
            let found = findings(ADVISORY, version, "ignore = []");
            assert_eq!(found.len(), count, "{version}");
            assert!(found.iter().all(|(level, _)| *level == Level::Deny));
        }
    }

    #[test]
    fn ignored_and_withdrawn_advisories_are_silent_and_informational_ones_warn() {
        let ignore = "ignore = [{ id = \"RUSTSEC-2024-0001\", reason = \"not used\" }]";
        assert!(findings(ADVISORY, "1.2.2", ignore).is_empty());
        let with = |line: &str| ADVISORY.replace("[versions]", &format!("{line}\n[versions]"));
        assert!(findings(&with("withdrawn = \"2024-02-01\""), "1.2.2", "ignore = []").is_empty());
        let found = findings(&with("informational = \"unmaintained\""), "1.2.2", "ignore = []");
        assert!(matches!(found.as_slice(), [(Level::Warn, text)] if text.contains("unmaintained")));
    }
}
