//! Builds and runs every test with `cargo test`, shows its output as it comes, and takes the results from it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sps_images::BuildDirs;

use crate::process;
use crate::results::{Counts, Outcome, Results, TestResult};
use crate::workspace;

/// Builds the programs and the tests, runs them all and stores what they said.
pub(crate) fn run() -> Result<Results> {
    let commit = workspace::commit();
    // System tests start target/debug/slotd and spsctl.
    process::run(process::cargo().args(["build", "--workspace", "--bins", "--locked"]))?;
    let targets = build()?;

    let mut command = process::cargo();
    command.args([
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--color=never",
        "--",
        "--color=never",
    ]);
    // With one thread the harness prints a name before its test runs, and what that prints tears the line.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
    command.env("RUST_TEST_THREADS", threads.to_string());
    if let Some(tree) = debian_tree()? {
        command.env("SPS_DEBIAN_TREE", tree);
    }
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot start cargo test")?;
    drop(command); // it holds the pipe's other end

    let mut parser = Parser::new(targets);
    let mut stdout = std::io::stdout().lock();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader);
    while reader.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        stdout.flush()?;
        parser.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait()?;
    let (tests, counts) = parser.finish();
    let unread = (counts.passed + counts.failed + counts.ignored).saturating_sub(tests.len());
    if unread > 0 {
        println!("note: {unread} results were torn apart by other output; they count, but have no name");
    }
    let results = Results::new(commit, counts, tests);
    results.store()?;
    if !status.success() && counts.failed == 0 {
        bail!("cargo test ended with {status} although no test failed");
    }
    Ok(results)
}

/// The Debian tree that image tests work on, made when there is none; without root there cannot be one, and the tests
/// say what they skip.
fn debian_tree() -> Result<Option<PathBuf>> {
    if !nix::unistd::geteuid().is_root() {
        println!("note: not root, so no Debian tree: tests that need it are skipped");
        return Ok(None);
    }
    sps_images::debian::debian_tree(&BuildDirs::new(workspace::scratch())?).map(Some)
}

/// Package and root source of a test target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    package: String,
    source: String,
}

/// One line of cargo's JSON messages; only what a test target's says.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<MessageTarget>,
}

#[derive(Deserialize)]
struct MessageTarget {
    src_path: PathBuf,
}

/// Builds the tests; answers which target each test program is, by its file name.
fn build() -> Result<BTreeMap<String, Target>> {
    let mut command = process::cargo();
    command.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo test")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    targets(&String::from_utf8_lossy(&output.stdout), &workspace::root())
}

fn targets(messages: &str, root: &std::path::Path) -> Result<BTreeMap<String, Target>> {
    let mut targets = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("cargo's JSON messages changed")?;
        let (Some(executable), Some(target), Some(manifest)) =
            (message.executable, message.target, message.manifest_path)
        else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        let directory = manifest.parent().unwrap_or(root);
        let relative =
            |path: &std::path::Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        let name = executable.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = Target { package: relative(directory), source: relative(&target.src_path) };
        targets.insert(name, target);
    }
    Ok(targets)
}

/// Reads what `cargo test` and the test harness print, line by line.
struct Parser {
    targets: BTreeMap<String, Target>,
    current: Option<Target>,
    /// Whether the current program has printed its last line.
    ended: bool,
    tests: Vec<TestResult>,
    counts: Counts,
}

impl Parser {
    fn new(targets: BTreeMap<String, Target>) -> Self {
        Self { targets, current: None, ended: true, tests: Vec::new(), counts: Counts::default() }
    }

    fn line(&mut self, line: &str) {
        let words = line.trim_start();
        if let Some(rest) = words.strip_prefix("Running ")
            && let Some(path) = rest.strip_suffix(')').and_then(|rest| Some(rest.rsplit_once('(')?.1))
        {
            let name = path.rsplit('/').next().unwrap_or(path);
            let unknown = || Target { package: name.to_owned(), source: String::new() };
            let target = self.targets.get(name).cloned().unwrap_or_else(unknown);
            self.begin(target);
        } else if let Some(name) = words.strip_prefix("Doc-tests ") {
            self.begin(Target { package: name.to_owned(), source: String::new() });
        } else if let Some(counts) = last_line(line) {
            self.counts.passed += counts.passed;
            self.counts.failed += counts.failed;
            self.counts.ignored += counts.ignored;
            self.ended = true;
        } else if let (Some((name, outcome)), Some(target)) = (result(line), self.current.clone()) {
            let Target { package, source } = target;
            self.tests.push(TestResult { package, source, name, outcome });
        }
    }

    fn begin(&mut self, target: Target) {
        self.end();
        self.current = Some(target);
        self.ended = false;
    }

    /// A program that printed no last line died: that counts as a failed test.
    fn end(&mut self) {
        if !self.ended
            && let Some(Target { package, source }) = self.current.take()
        {
            let name = "(the test program died)".to_owned();
            self.tests.push(TestResult { package, source, name, outcome: Outcome::Failed });
            self.counts.failed += 1;
        }
    }

    /// The tests, and the counts that the programs printed at their ends.
    fn finish(mut self) -> (Vec<TestResult>, Counts) {
        self.end();
        (self.tests, self.counts)
    }
}

/// `test NAME ... ok`; something that a test's child printed without a line end may stand before it.
fn result(line: &str) -> Option<(String, Outcome)> {
    let (head, tail) = line.rsplit_once(" ... ")?;
    let outcome = match tail {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ if tail == "ignored" || tail.starts_with("ignored, ") => Outcome::Ignored,
        _ => return None,
    };
    let name = &head[head.rfind("test ")? + "test ".len()..];
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    Some((name.to_owned(), outcome))
}

/// The counts of `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn last_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.split_once("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let count = |kind: &str| {
        let part = rest.split("; ").find_map(|part| part.strip_suffix(kind))?;
        part.trim().parse::<usize>().ok()
    };
    Some(Counts { passed: count(" passed")?, failed: count(" failed")?, ignored: count(" ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> (Vec<TestResult>, Counts) {
        let target = Target { package: "slotd".into(), source: "slotd/src/lib.rs".into() };
        let mut parser = Parser::new(BTreeMap::from([("slotd-0f".to_owned(), target)]));
        lines.lines().for_each(|line| parser.line(line));
        parser.finish()
    }

    fn test(package: &str, source: &str, name: &str, outcome: Outcome) -> TestResult {
        TestResult { package: package.into(), source: source.into(), name: name.into(), outcome }
    }

    #[test]
    fn every_result_is_read_with_its_target() {
        let (tests, counts) = parse(
            "     Running unittests src/lib.rs (target/debug/deps/slotd-0f)\n\nrunning 4 tests\n\
             test a::b ... ok\nnoise of a child: test c ... FAILED\ntest d - should panic ... ok\n\
             test e ... ignored, needs root\nthread 'c' panicked at x ... y\n\
             test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             \x20  Doc-tests sps_base\n\ntest base/src/slot.rs - slot (line 3) ... ok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n",
        );
        let lib = "slotd/src/lib.rs";
        assert_eq!(
            tests,
            [
                test("slotd", lib, "a::b", Outcome::Passed),
                test("slotd", lib, "c", Outcome::Failed),
                test("slotd", lib, "d", Outcome::Passed),
                test("slotd", lib, "e", Outcome::Ignored),
                test("sps_base", "", "base/src/slot.rs - slot (line 3)", Outcome::Passed),
            ]
        );
        assert_eq!(counts, Counts { passed: 3, failed: 1, ignored: 1 });
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let (tests, counts) =
            parse("Running unittests src/lib.rs (target/debug/deps/slotd-0f)\ntest a ... ok\n");
        assert_eq!(tests.len(), 2);
        assert_eq!((tests[1].outcome, counts.failed), (Outcome::Failed, 1));
    }

    #[test]
    fn targets_are_known_by_their_program() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/slotd/Cargo.toml","target":{"src_path":"/w/slotd/tests/cli.rs"},"executable":"/w/target/debug/deps/cli-1a"}
{"reason":"compiler-artifact","manifest_path":"/w/base/Cargo.toml","target":{"src_path":"/w/base/src/lib.rs"},"executable":null}
{"reason":"build-finished","success":true}"#;
        let targets = targets(messages, std::path::Path::new("/w")).unwrap();
        let cli = Target { package: "slotd".into(), source: "slotd/tests/cli.rs".into() };
        assert_eq!(targets, BTreeMap::from([("cli-1a".to_owned(), cli)]));
    }
}
