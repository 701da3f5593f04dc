//! The checks of a firmware test that need no more than what is known, and how a test is told (spec J7, resolution 41).

use super::manifest::{Manifest, Version};
use super::policy;

/// Names of the built-in checks, in the order in which they run; the firmware's own come before the last.
pub const VERSION: &str = "Version";
/// Room for what the firmware writes.
pub const STORAGE: &str = "Storage";
/// Whether the configuration can be migrated.
pub const CONFIGURATION: &str = "Configuration";
/// Whether the running system is as it was signed.
pub const TAINTED: &str = "Tainted";
/// Whether the peer node can follow.
pub const HA: &str = "HA";

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong.
    Passed,
    /// Something wrong.
    Failed,
    /// There was nothing to check.
    Skipped,
}

impl Verdict {
    /// Spelling on D-Bus and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// `Version`, `Storage`, …, or the name of the firmware's program.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, one line.
    pub detail: String,
    /// What to do, one line; empty where nothing has to be done.
    pub hint: String,
}

impl CheckResult {
    /// A check that passed.
    pub fn passed(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Passed, detail: detail.into(), hint: String::new() }
    }

    /// A check that had nothing to look at.
    pub fn skipped(name: &str, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::passed(name, detail) }
    }

    /// A check that failed.
    pub fn failed(name: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, hint: hint.into(), ..Self::passed(name, detail) }
    }
}

/// What the version check looks at.
#[derive(Clone, Debug)]
pub struct VersionFacts<'a> {
    /// Version that runs; `None` when none runs from a slot.
    pub running: Option<&'a str>,
    /// Whether it is the firmware that is tested.
    pub is_running: bool,
    /// Lowest security epoch that this appliance takes.
    pub epoch_floor: u32,
    /// Why its last trial failed, where it did and the caller does not want it again.
    pub refused: Option<&'a str>,
}

/// Whether the release rules let this firmware take over (spec 2.4, A2, A3).
pub fn version(manifest: &Manifest, facts: &VersionFacts<'_>) -> CheckResult {
    let failed = |detail: String, hint: &str| CheckResult::failed(VERSION, detail, hint);
    let new = &manifest.version;
    if facts.is_running {
        return CheckResult::passed(VERSION, format!("{new} is the running firmware"));
    }
    if let Some(why) = facts.refused {
        let detail = format!("the last trial of {new} failed: {why}");
        return failed(
            detail,
            "Remove the cause, then test it again with the option again (spsctl: --again).",
        );
    }
    if manifest.security_epoch < facts.epoch_floor {
        let found = manifest.security_epoch;
        let detail = format!(
            "security epoch {found} of {new} is below {}, which this appliance has reached",
            facts.epoch_floor
        );
        return failed(detail, "Use a newer firmware, or revert to go back.");
    }
    let Some(running) = facts.running else {
        return CheckResult::passed(VERSION, format!("{new}; no firmware runs from a slot"));
    };
    let (Some(from), Some(to)) = (Version::parse(running), Version::parse(new)) else {
        return failed(format!("{running:?} or {new:?} is no version"), "Report this to the vendor.");
    };
    if to < from {
        return failed(format!("{new} is older than the running {running}"), "To go back, use revert.");
    }
    if policy::is_listed(manifest, &from) {
        return CheckResult::passed(VERSION, format!("{new} can follow {running}"));
    }
    match manifest.upgrade_from.iter().find(|rule| from.is_of_line(&rule.from)) {
        Some(rule) => failed(
            format!("{new} can follow {} from {} on; {running} runs", rule.from, rule.min),
            "Upgrade to the newest maintenance release of the running line first.",
        ),
        None => failed(
            format!("{new} cannot follow {running}"),
            "Upgrade in steps; the upgrade notes say which releases come between.",
        ),
    }
}

/// Whether there is room for what the firmware needs beside its slot. `free` is `None` where that is not known.
pub fn storage(manifest: &Manifest, free: Result<Option<u64>, String>) -> CheckResult {
    let needed = manifest.required_space;
    match free {
        _ if needed == 0 => CheckResult::passed(STORAGE, "no space is needed beside the slot"),
        Ok(None) => CheckResult::skipped(STORAGE, "no data directory is configured"),
        Ok(Some(free)) if free >= needed => {
            CheckResult::passed(STORAGE, format!("{free} bytes are free, {needed} are needed"))
        }
        Ok(Some(free)) => CheckResult::failed(
            STORAGE,
            format!("{free} bytes are free, {needed} are needed"),
            format!("Free {} bytes: remove old logs, recordings or support bundles.", needed - free),
        ),
        Err(why) => CheckResult::failed(STORAGE, why, "Repair the data partition."),
    }
}

/// Whether the running configuration can be migrated: never to an older schema. `revision` names it.
pub fn configuration(
    manifest: &Manifest,
    running: Option<u32>,
    revision: &Result<String, String>,
) -> CheckResult {
    let new = manifest.config_schema;
    match (revision, running) {
        (Err(why), _) => {
            CheckResult::failed(CONFIGURATION, why.clone(), "Repair or restore the configuration.")
        }
        (Ok(_), Some(running)) if running > new => CheckResult::failed(
            CONFIGURATION,
            format!("the configuration has schema {running}, {} reads up to {new}", manifest.version),
            "Use a newer firmware.",
        ),
        (Ok(revision), Some(running)) => {
            let what = if revision.is_empty() { "no revision" } else { revision };
            CheckResult::passed(CONFIGURATION, format!("schema {running} can become {new}; {what}"))
        }
        (Ok(_), None) => CheckResult::skipped(CONFIGURATION, "no firmware runs from a slot"),
    }
}

/// Two lines for each check, up to the first that failed.
pub fn summary(checks: &[CheckResult]) -> String {
    let lines = checks.iter().map(|check| {
        let end = if check.verdict == Verdict::Failed { "failed" } else { "finished" };
        format!("{0} check started\n{0} check {end}", check.name)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: J8 J11
    #[test]
    fn a_summary_ends_with_the_check_that_failed() {
        let checks = [CheckResult::passed(VERSION, ""), CheckResult::skipped(STORAGE, "")];
        let lines =
            "Version check started\nVersion check finished\nStorage check started\nStorage check finished";
        assert_eq!(summary(&checks), lines);
        assert_eq!(summary(&[CheckResult::passed(HA, "")]), "HA check started\nHA check finished");
        assert_eq!(summary(&[CheckResult::failed(HA, "", "")]), "HA check started\nHA check failed");
    }
}
