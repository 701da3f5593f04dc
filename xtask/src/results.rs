//! Results of a test run, kept with the commit that they are about.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::workspace::{self, Commit};

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Ignored,
}

/// One test and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TestResult {
    /// Package whose target the test belongs to; the crate's name for documentation tests.
    pub(crate) package: String,
    /// Root source of the test's target, relative to the workspace; empty for documentation tests.
    pub(crate) source: String,
    /// Name as the test harness prints it, with its modules.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

/// How many tests ended how, as the test programs themselves say at their ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Format of this file.
    pub(crate) schema: u32,
    pub(crate) commit: String,
    /// Whether every file was as committed.
    pub(crate) clean: bool,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) tests: Vec<TestResult>,
}

const SCHEMA: u32 = 1;

impl Results {
    pub(crate) fn new(commit: Commit, counts: Counts, tests: Vec<TestResult>) -> Self {
        Self { schema: SCHEMA, commit: commit.id, clean: commit.clean, counts, tests }
    }

    /// Whether this run says something about `now`: same commit, nothing changed then or since.
    pub(crate) fn is_about(&self, now: &Commit) -> bool {
        self.schema == SCHEMA && self.clean && now.clean && self.commit == now.id
    }

    pub(crate) fn store(&self) -> Result<()> {
        let path = path();
        fs::create_dir_all(workspace::scratch())?;
        fs::write(&path, serde_json::to_string_pretty(self)?).with_context(|| path.display().to_string())
    }

    /// The last run, if there was one that this version understands.
    pub(crate) fn load() -> Option<Self> {
        serde_json::from_slice(&fs::read(path()).ok()?).ok()
    }
}

fn path() -> PathBuf {
    workspace::scratch().join("test-results.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_about_a_clean_tree_of_the_same_commit_only() {
        let clean = Commit { id: "a".into(), clean: true };
        let dirty = Commit { clean: false, ..clean.clone() };
        let other = Commit { id: "b".into(), clean: true };
        let results = Results::new(clean.clone(), Counts::default(), Vec::new());
        assert!(results.is_about(&clean));
        assert!(!results.is_about(&dirty) && !results.is_about(&other));
        assert!(!Results::new(dirty, Counts::default(), Vec::new()).is_about(&clean));
    }
}
