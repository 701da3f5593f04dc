//! What libFuzzer says of a run, and how it is shown.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::workspace;

/// How a target fared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// Its name.
    pub(super) target: String,
    /// Inputs that it was run with.
    pub(super) executions: u64,
    /// How long that took.
    pub(super) seconds: f64,
    /// Edges of the code that were reached.
    pub(super) cov: u64,
    /// Features: edges with their counts, comparisons.
    pub(super) ft: u64,
    /// Inputs worth keeping.
    pub(super) corpus: u64,
    /// What is wrong, in the words of libFuzzer or of the panic.
    pub(super) why: Option<String>,
    /// The input that shows it.
    pub(super) found: Option<String>,
}

impl Report {
    /// Reads libFuzzer's output.
    pub(super) fn read(target: &str, said: &str, took: Duration) -> Self {
        let last = said.lines().rev().find(|line| line.starts_with('#') && line.contains(" cov: "));
        let after = |word: &str| {
            let text = last?.split(word).nth(1)?.trim_start();
            text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let stat = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let found =
            said.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
        let mut lines = said.lines();
        let panicked = lines.by_ref().find(|line| line.contains("panicked at"));
        let panicked = panicked.map(|line| format!("{line} {}", lines.next().unwrap_or_default()));
        let error = said.lines().find_map(|line| line.split_once("ERROR: ").map(|(_, text)| text.to_owned()));
        Self {
            target: target.to_owned(),
            executions: stat.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            seconds: took.as_secs_f64(),
            cov: after(" cov: ").unwrap_or(0),
            ft: after(" ft: ").unwrap_or(0),
            corpus: after(" corp: ").unwrap_or(0),
            why: panicked.or(error).filter(|_| found.is_some()),
            found: found.map(|path| path.trim().to_owned()),
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    commit: String,
    clean: bool,
    targets: &'a [Report],
}

/// Prints a table, or JSON. False when something was found.
pub(super) fn print(reports: &[Report], json: bool) -> Result<bool> {
    if json {
        let commit = workspace::commit();
        let document = Document { schema: 1, commit: commit.id, clean: commit.clean, targets: reports };
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("{}", table(reports));
    }
    Ok(reports.iter().all(|report| report.found.is_none()))
}

fn table(reports: &[Report]) -> String {
    use std::fmt::Write as _;

    let mut text =
        String::from("target          executions   exec/s      cov       ft  corpus  seconds  found\n");
    for report in reports {
        let Report { target, executions, seconds, cov, ft, corpus, .. } = report;
        // Counts of runs and seconds are far below what a float holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "it is shown without digits after the point")]
        let rate = *executions as f64 / seconds.max(0.001);
        let word = if report.found.is_some() { "YES" } else { "-" };
        let _ = writeln!(
            text,
            "{target:<14} {executions:>11} {rate:>8.0} {cov:>8} {ft:>8} {corpus:>7} {seconds:>8.1}  {word}"
        );
    }
    let total: u64 = reports.iter().map(|report| report.executions).sum();
    let _ = write!(text, "{:<14} {total:>11}", "all");
    for report in reports {
        if let (Some(path), why) = (&report.found, report.why.as_deref().unwrap_or("see the log")) {
            let _ = write!(text, "\n{}: {why}\n    {path}", report.target);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_run_is_read() {
        let said = "INFO: seed corpus: files: 3\n#4\tINITED cov: 10 ft: 11 corp: 2/9b exec/s: 0 rss: 40Mb\n\
                    #5000\tDONE   cov: 120 ft: 340 corp: 25/900b lim: 4096 exec/s: 2500 rss: 50Mb\n\
                    stat::number_of_executed_units: 5000\n";
        let report = Report::read("iso", said, Duration::from_secs(2));
        let Report { executions, cov, ft, corpus, found, why, .. } = &report;
        assert_eq!((*executions, *cov, *ft, *corpus, found, why), (5000, 120, 340, 25, &None, &None));
        assert!(
            table(&[report])
                .contains("iso                   5000     2500      120      340      25      2.0  -")
        );
    }

    #[test]
    fn a_find_is_told_with_its_input() {
        let said = "#4\tINITED cov: 10 ft: 11 corp: 2/9b exec/s: 0 rss: 40Mb\n\
                    thread '<unnamed>' panicked at src/iso.rs:1:2:\nout of range\n\
                    ==7== ERROR: libFuzzer: deadly signal\nstat::number_of_executed_units: 77\n\
                    artifact_prefix='found/'; Test unit written to found/crash-0a\n";
        let report = Report::read("iso", said, Duration::from_secs(1));
        assert_eq!(report.found.as_deref(), Some("found/crash-0a"));
        assert_eq!(report.executions, 77);
        assert!(report.why.as_deref().unwrap().ends_with("iso.rs:1:2: out of range"));
        assert!(table(std::slice::from_ref(&report)).ends_with("found/crash-0a"));
    }

    #[test]
    fn a_timeout_is_told_in_the_words_of_the_fuzzer() {
        let said = "==7== ERROR: libFuzzer: timeout after 10 seconds\nTest unit written to timeout-1\n";
        assert_eq!(
            Report::read("x", said, Duration::ZERO).why.as_deref(),
            Some("libFuzzer: timeout after 10 seconds")
        );
    }
}
