//! `cargo xtask rows`: which row of the specification is shown by which test.
//!
//! A test that shows rows carries a comment line with their ids directly above its attribute. The
//! specification itself is not part of the repository, so only ids are known here.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::packages::{self, For};
use crate::results::{Outcome, Results, TestResult};
use crate::{suite, workspace};

/// Sections 1A to 1N of the specification and the number of rows in each.
const SECTIONS: [(char, u32); 14] = [
    ('A', 14),
    ('B', 12),
    ('C', 7),
    ('D', 8),
    ('E', 4),
    ('F', 9),
    ('G', 7),
    ('H', 4),
    ('I', 6),
    ('J', 19),
    ('K', 10),
    ('L', 6),
    ('M', 6),
    ('N', 16),
];

/// A row's id: section and number, in the specification's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    section: char,
    number: u32,
}

impl Row {
    /// `J3`, if the specification has such a row.
    fn parse(text: &str) -> Option<Self> {
        let mut letters = text.chars();
        let section = letters.next()?;
        let digits = letters.as_str();
        if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok()?;
        let (_, rows) = SECTIONS.iter().find(|(name, _)| *name == section)?;
        (number <= *rows).then_some(Self { section, number })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.section, self.number))
    }
}

/// A test function that shows rows.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    rows: Vec<Row>,
    file: String,
    line: usize,
    function: String,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Shown {
    row: String,
    file: String,
    line: usize,
    test: String,
    /// `None`: no such test was run.
    result: Option<Outcome>,
}

/// Prints the rows with their tests and results; runs the tests first unless their results are at hand.
/// True when every test that shows a row passed.
pub(crate) fn run(json: bool) -> Result<bool> {
    let claims = scan()?;
    let commit = workspace::commit();
    let results = if let Some(stored) = Results::load().filter(|stored| stored.is_about(&commit)) {
        stored
    } else {
        eprintln!("no results of this very state: running the tests first");
        packages::ensure(For::Test)?;
        suite::run()?
    };
    let shown = join(&claims, &results.tests);
    let covered = shown.keys().count();
    let total: u32 = SECTIONS.iter().map(|(_, rows)| rows).sum();
    let not_shown = (total as usize).saturating_sub(covered);
    let lines: Vec<&Shown> = shown.values().flatten().collect();
    if json {
        let answer = serde_json::json!({
            "schema": 1,
            "commit": results.commit,
            "clean": results.clean,
            "rows": lines,
            "rows_shown": covered,
            "rows_not_shown": not_shown,
        });
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        for line in &lines {
            let result = match line.result {
                Some(Outcome::Passed) => "passed",
                Some(Outcome::Failed) => "FAILED",
                Some(Outcome::Ignored) => "ignored",
                None => "NOT RUN",
            };
            println!("{:<4} {result:<8} {} ({}:{})", line.row, line.test, line.file, line.line);
        }
        println!("{covered} rows of sections 1A to 1N shown, {not_shown} not shown by any test yet");
    }
    Ok(lines.iter().all(|line| line.result == Some(Outcome::Passed)))
}

/// Every claim in the sources.
fn scan() -> Result<Vec<Claim>> {
    let root = workspace::root();
    let mut claims = Vec::new();
    for file in workspace::rust_sources()? {
        let text = std::fs::read_to_string(root.join(&file)).with_context(|| file.display().to_string())?;
        claims.extend(claims_of(&file.to_string_lossy(), &text)?);
    }
    Ok(claims)
}

/// The claims of one file: each must stand directly above a test and name existing rows.
fn claims_of(file: &str, text: &str) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(ids) = line.strip_prefix("// rows:") else { continue };
        let line = index + 1;
        let rows = ids
            .split_whitespace()
            .map(|id| {
                Row::parse(id).with_context(|| format!("{file}:{line}: the specification has no row {id}"))
            })
            .collect::<Result<Vec<_>>>()?;
        if rows.is_empty() {
            bail!("{file}:{line}: names no row");
        }
        let mut is_test = false;
        let function = loop {
            let Some((_, next)) = lines.next() else { bail!("{file}:{line}: no test follows") };
            if next.starts_with("#[") {
                is_test |= is_test_attribute(next);
            } else if let Some(name) = function_name(next).filter(|_| is_test) {
                break name;
            } else if !next.starts_with("//") {
                bail!("{file}:{line}: stands not directly above a test");
            }
        };
        claims.push(Claim { rows, file: file.to_owned(), line, function: function.to_owned() });
    }
    Ok(claims)
}

/// `#[test]`, `#[tokio::test]`, `#[tokio::test(…)]`.
fn is_test_attribute(line: &str) -> bool {
    let path = line.trim_start_matches("#[").split(['(', ']']).next().unwrap_or_default();
    path.rsplit("::").next() == Some("test")
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_item = before.split_whitespace().all(|word| ["pub", "async", "pub(crate)"].contains(&word));
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (is_item && !name.is_empty()).then_some(name)
}

/// Rows in order, each with the tests that show it.
fn join(claims: &[Claim], tests: &[TestResult]) -> BTreeMap<Row, Vec<Shown>> {
    let mut rows: BTreeMap<Row, Vec<Shown>> = BTreeMap::new();
    for claim in claims {
        let found = find(claim, tests);
        for row in &claim.rows {
            rows.entry(*row).or_default().push(Shown {
                row: row.to_string(),
                file: claim.file.clone(),
                line: claim.line,
                test: found.map_or(&claim.function, |test| &test.name).clone(),
                result: found.map(|test| test.outcome),
            });
        }
    }
    rows
}

/// The result of the function a claim stands above. Its target is the one whose root source is the file itself
/// or has it among its modules; of functions of the same name, the one in the deepest fitting module.
fn find<'a>(claim: &Claim, tests: &'a [TestResult]) -> Option<&'a TestResult> {
    tests
        .iter()
        .filter(|test| test.name.rsplit("::").next() == Some(&claim.function))
        .filter_map(|test| Some((fit(&claim.file, test)?, test)))
        .max_by_key(|(fit, _)| *fit)
        .map(|(_, test)| test)
}

/// How well a test's name fits `file`: how many of its leading modules lead from its target's root source to the
/// file, then how few modules it needs beyond them. `None` when the target has no such file.
fn fit(file: &str, test: &TestResult) -> Option<(usize, Reverse<usize>)> {
    let name: Vec<&str> = test.name.split("::").collect();
    if test.source.is_empty() {
        return None;
    }
    if test.source == file {
        return Some((0, Reverse(name.len())));
    }
    let directory = Path::new(&test.source).parent()?;
    let inside = Path::new(file).strip_prefix(directory).ok()?.with_extension("");
    let mut modules: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
    if modules.last() == Some(&"mod") {
        modules.pop();
    }
    name.starts_with(&modules).then_some((modules.len(), Reverse(name.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        Row::parse(text).unwrap()
    }

    #[test]
    fn ids_are_those_of_the_specification() {
        assert_eq!(row("J19").to_string(), "J19");
        assert!(row("A5") < row("A10") && row("A14") < row("J3"));
        for wrong in ["", "J", "J0", "J01", "J20", "O1", "a5", "J+3", "5", "J3,"] {
            assert_eq!(Row::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn claims_stand_above_tests_of_every_form() {
        let text = "// rows: A5 J3\n#[test]\nfn one() {}\n\n    // rows: J4\n    /// Says more.\n    \
                    #[tokio::test(flavor = \"current_thread\")]\n    #[cfg(unix)]\n    async fn two() {}\n";
        let claims = claims_of("x.rs", text).unwrap();
        assert_eq!(claims.len(), 2);
        assert_eq!(
            (claims[0].rows.as_slice(), claims[0].function.as_str()),
            (&[row("A5"), row("J3")][..], "one")
        );
        assert_eq!((claims[1].line, claims[1].function.as_str()), (5, "two"));
    }

    #[test]
    fn a_claim_in_the_wrong_place_is_an_error() {
        for text in [
            "// rows: A5\n\n#[test]\nfn blank_line() {}\n",
            "// rows: A5\nfn no_test() {}\n",
            "// rows: A5\n",
            "// rows:\n#[test]\nfn no_row() {}\n",
            "// rows: A5, J3\n#[test]\nfn comma() {}\n",
        ] {
            assert!(claims_of("x.rs", text).is_err(), "{text}");
        }
    }

    #[test]
    fn results_are_found_by_file_and_module() {
        let test = |source: &str, name: &str| TestResult {
            package: "slotd".into(),
            source: source.into(),
            name: name.into(),
            outcome: Outcome::Passed,
        };
        let tests = [
            test("slotd/src/lib.rs", "domain::iso::tests::works"),
            test("slotd/src/lib.rs", "domain::tests::works"),
            test("slotd/tests/works.rs", "works"),
            test("spsctl/tests/works.rs", "works"),
            test("tests/tests/install.rs", "resume::works"),
        ];
        let found = |file: &str| {
            let claim = Claim { rows: vec![row("A5")], file: file.into(), line: 1, function: "works".into() };
            find(&claim, &tests).map(|test| (test.source.as_str(), test.name.as_str()))
        };
        assert_eq!(found("slotd/src/domain/iso.rs"), Some(("slotd/src/lib.rs", "domain::iso::tests::works")));
        assert_eq!(found("slotd/src/domain/mod.rs"), Some(("slotd/src/lib.rs", "domain::tests::works")));
        assert_eq!(found("spsctl/tests/works.rs"), Some(("spsctl/tests/works.rs", "works")));
        assert_eq!(found("tests/tests/resume/mod.rs"), Some(("tests/tests/install.rs", "resume::works")));
        assert_eq!(found("base/src/slot.rs"), None);
    }

    #[test]
    fn rows_without_a_result_stay_visible() {
        let claim = Claim { rows: vec![row("A5")], file: "x.rs".into(), line: 1, function: "gone".into() };
        let shown = join(&[claim], &[]);
        assert_eq!(shown[&row("A5")][0].result, None);
    }
}
