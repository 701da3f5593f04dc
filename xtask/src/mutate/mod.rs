//! `cargo xtask mutate`: takes each check out of the verifier of signatures, one at a time, and shows which case of the
//! signature tests notices. A check that nobody would miss is not tested.

mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::{self, For};
use crate::{process, workspace};
use table::MUTATIONS;

/// How many checks `docs/signature.md` numbers.
const CHECKS: u8 = 12;
/// A test that takes longer than this many times what it takes undisturbed hangs, and has noticed.
const PATIENCE: u32 = 10;

/// The module that declares the others, and what it is in the copy.
const ROOT_MODULE: &str = "slotd/src/lib.rs";
const DOMAIN_ONLY: &str = "pub mod domain;\n";

/// A text of a source file and what stands in its place.
#[derive(Debug)]
struct Mutation {
    /// Number of the check in `docs/signature.md`.
    check: u8,
    file: &'static str,
    /// What is accepted then.
    what: &'static str,
    /// Stands in the file exactly once.
    find: &'static str,
    replace: &'static str,
}

impl Mutation {
    fn apply(&self, source: &str) -> Result<String> {
        let found = source.matches(self.find).count();
        ensure!(found == 1, "{}: {:?} is found {found} times, expected once", self.file, self.find);
        Ok(source.replacen(self.find, self.replace, 1))
    }
}

/// Carries out the mutations of the checks with these numbers, or all. True when each made a test fail.
pub(crate) fn run(checks: &[u8]) -> Result<bool> {
    packages::ensure(For::Test)?;
    let wanted = |mutation: &&Mutation| checks.is_empty() || checks.contains(&mutation.check);
    let chosen: Vec<&Mutation> = MUTATIONS.iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "no mutation has such a number; the checks are 1 to {CHECKS}");
    let copy = Copy::make()?;
    println!("the tests of the copy as it is …");
    copy.build()?;
    let start = Instant::now();
    ensure!(copy.test(Duration::from_secs(3600))?.status.success(), "they fail without any mutation");
    let limit = start.elapsed() * PATIENCE;
    println!("… pass in {:.0} s", start.elapsed().as_secs_f64());
    let mut survivors = 0;
    for mutation in &chosen {
        let noticed = copy.mutate(mutation, limit)?;
        survivors += usize::from(noticed.is_none());
        let end = noticed.map_or_else(|| "SURVIVED".to_owned(), |by| format!("killed by {by}"));
        println!("{:>2}  {:<52} {end}", mutation.check, mutation.what);
    }
    println!("{} mutations, {survivors} survived", chosen.len());
    Ok(survivors == 0)
}

/// A copy of the sources with a build directory of its own, so that the user's tree is never touched. Of slotd it has
/// the module `domain` only, which needs no other and is all that the signature tests use: so a build takes seconds.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Brings the copy up to date; what has not changed keeps its time, so that it is not built again.
    fn make() -> Result<Self> {
        let scratch = workspace::scratch().join("mutate");
        let (tree, target) = (scratch.join("tree"), scratch.join("target"));
        let mut kept = BTreeSet::new();
        for file in workspace::files(&[])?.into_iter().filter(|file| is_needed(file)) {
            let (from, to) = (workspace::root().join(&file), tree.join(&file));
            fs::create_dir_all(to.parent().context("a file without a directory")?)?;
            let mut new = fs::read(&from).with_context(|| from.display().to_string())?;
            if file == Path::new(ROOT_MODULE) {
                new = DOMAIN_ONLY.into();
            }
            if fs::read(&to).ok().as_deref() != Some(new.as_slice()) {
                fs::write(&to, new).with_context(|| to.display().to_string())?;
            }
            kept.insert(to);
        }
        remove_others(&tree, &kept)?;
        Ok(Self { tree, target })
    }

    /// Which test failed under `mutation`; `None` when none did. The copy is then as before.
    fn mutate(&self, mutation: &Mutation, limit: Duration) -> Result<Option<String>> {
        let path = self.tree.join(mutation.file);
        let before = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, mutation.apply(&before)?)?;
        let done = self
            .build()
            .with_context(|| format!("{:?} does not build", mutation.what))
            .and_then(|()| self.test(limit));
        fs::write(&path, before)?;
        let output = done?;
        // `timeout` answers 124 where it had to end what it started.
        Ok(match output.status.code() {
            Some(0) => None,
            Some(124) => Some(format!("a test that takes more than {} s", limit.as_secs())),
            _ => Some(culprit(&String::from_utf8_lossy(&output.stdout))),
        })
    }

    fn build(&self) -> Result<()> {
        let output = self.cargo(process::cargo(), &["--no-run"])?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn test(&self, limit: Duration) -> Result<Output> {
        let mut timeout = process::command("timeout");
        timeout.arg(limit.as_secs().max(60).to_string()).arg(process::cargo().get_program());
        self.cargo(timeout, &[])
    }

    /// The signature tests alone. Lints are no question here: a mutation leaves things unused.
    fn cargo(&self, mut command: Command, arguments: &[&str]) -> Result<Output> {
        command
            .args(["test", "--quiet", "--locked", "--package", "slotd", "--test", "signature"])
            .args(arguments)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            // Chance is not asked to find what a named case must show.
            .env("PROPTEST_CASES", "8")
            .env("RUSTFLAGS", "--cap-lints allow")
            .output()
            .with_context(|| format!("cannot start {}", process::shown(&command)))
    }
}

fn is_needed(file: &Path) -> bool {
    let inside = file.strip_prefix("slotd/src");
    inside.is_err()
        || file == Path::new(ROOT_MODULE)
        || inside.is_ok_and(|inside| inside.starts_with("domain"))
}

/// Removes what an earlier copy has left and this one does not have.
fn remove_others(directory: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The first test that failed, and of a table of cases the first that did.
fn culprit(output: &str) -> String {
    let mut lines = output.lines();
    let test = lines.by_ref().find_map(|line| {
        let name = line.strip_prefix("---- ")?.strip_suffix(" stdout ----")?;
        Some(name.to_owned())
    });
    let case =
        lines.skip_while(|line| !line.ends_with(" faults:")).nth(1).and_then(|line| line.split(": ").next());
    let test = test.unwrap_or_else(|| "the test program, which died".into());
    case.map_or_else(|| test.clone(), |case| format!("{test}: {case}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_still_finds_its_text_and_every_check_has_one() {
        for mutation in MUTATIONS {
            let source = fs::read_to_string(workspace::root().join(mutation.file)).unwrap();
            let changed = mutation.apply(&source).unwrap_or_else(|error| panic!("{error}"));
            assert_ne!(changed, source, "{}", mutation.what);
            assert!(mutation.file.starts_with("slotd/src/domain/signature/"), "{}", mutation.file);
        }
        let numbers: BTreeSet<u8> = MUTATIONS.iter().map(|mutation| mutation.check).collect();
        assert_eq!(numbers, (1..=CHECKS).collect());
        let names: BTreeSet<&str> = MUTATIONS.iter().map(|mutation| mutation.what).collect();
        assert_eq!(names.len(), MUTATIONS.len(), "two mutations of one name");
    }

    #[test]
    fn a_text_that_is_gone_or_there_twice_is_an_error() {
        let mutation = Mutation { check: 1, file: "a.rs", what: "", find: "x", replace: "y" };
        assert_eq!(mutation.apply("a x b").unwrap(), "a y b");
        for source in ["", "x x"] {
            assert!(mutation.apply(source).unwrap_err().to_string().contains("expected once"));
        }
    }

    #[test]
    fn the_case_that_failed_is_told() {
        let output = "running 2 tests\n\nfailures:\n\n---- cases::point_9 stdout ----\n\nthread 'x' panicked at y:\n\
                      2 faults:\nroot at notAfter: Ok(..)\nanother: Ok(..)\n";
        assert_eq!(culprit(output), "cases::point_9: root at notAfter");
        assert_eq!(culprit("---- keyring::good stdout ----\nassertion failed\n"), "keyring::good");
        assert_eq!(culprit(""), "the test program, which died");
    }
}
