//! What a check program said, as one line of printable text, and the document of the helper.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::process::{End, Finished};

/// Longest name of a check in a report, in bytes.
pub const NAME_LIMIT: usize = 255;
/// Longest detail or hint, in bytes.
pub const TEXT_LIMIT: usize = 1024;

/// Passed or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing speaks against the firmware.
    Passed,
    /// The firmware must not take over.
    Failed,
}

/// One check program's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// File name of the program.
    pub name: String,
    /// Its verdict.
    pub result: Outcome,
    /// Why, in one line; may be empty when it passed.
    pub detail: String,
    /// What an operator can do, in one line; may be empty.
    pub hint: String,
}

impl Check {
    /// A failure that the program did not tell itself.
    pub fn failed(name: &str, detail: &str) -> Self {
        Self {
            name: one_line(name, NAME_LIMIT),
            result: Outcome::Failed,
            detail: one_line(detail, TEXT_LIMIT),
            hint: String::new(),
        }
    }
}

/// What the helper answers, as one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// Version of this document: 1.
    pub schema: Schema,
    /// `none: ` and why, where no dm-verity guarded the mounted root.
    pub verity: String,
    /// In the order in which they ran.
    pub checks: Vec<Check>,
}

/// The number 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Schema;

impl TryFrom<u32> for Schema {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        if found == 1 { Ok(Self) } else { Err(format!("schema {found}, expected 1")) }
    }
}

impl From<Schema> for u32 {
    fn from(_: Schema) -> Self {
        1
    }
}

/// The verdict on a program that ended: 0 passed, 1 failed, anything else failed with what happened.
pub fn judge(name: &str, finished: &Finished, limit: Duration) -> Check {
    let said = finished.stdout.text();
    let (hints, lines): (Vec<&str>, Vec<&str>) = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .partition(|line| line.starts_with("hint:"));
    let last = lines.last().copied().unwrap_or_default();
    let or_stderr = || match last {
        "" => last_line(&finished.stderr.text()),
        last => last.to_owned(),
    };
    let with = |what: String| match or_stderr() {
        said if said.is_empty() => what,
        said => format!("{what}: {said}"),
    };
    let (result, detail) = match finished.end {
        End::Exited(0) => (Outcome::Passed, last.to_owned()),
        End::Exited(1) => (
            Outcome::Failed,
            match or_stderr() {
                said if said.is_empty() => "failed and did not say why".to_owned(),
                said => said,
            },
        ),
        End::Exited(code) => (Outcome::Failed, with(format!("ended with exit code {code}, expected 0 or 1"))),
        End::Signalled(_) => (Outcome::Failed, with(format!("was ended by {}", finished.end))),
        End::Deadline => (Outcome::Failed, with(format!("did not end within {} s", limit.as_secs()))),
        End::Cancelled => (Outcome::Failed, "was cancelled".to_owned()),
    };
    let hint: Vec<&str> = hints.iter().filter_map(|line| line.strip_prefix("hint:")).map(str::trim).collect();
    Check {
        name: one_line(name, NAME_LIMIT),
        result,
        detail: one_line(&detail, TEXT_LIMIT),
        hint: one_line(&hint.join(" "), TEXT_LIMIT),
    }
}

/// The last line that is not empty, printable.
pub fn last_line(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    one_line(line, TEXT_LIMIT)
}

/// `text` in one line: what a terminal or a log might obey becomes U+FFFD, and at most `limit` bytes stay.
pub fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for character in text.trim().chars() {
        let shown = match character {
            '\t' => ' ',
            c if c.is_control() || is_invisible(c) => '\u{fffd}',
            c => c,
        };
        if line.len() + shown.len_utf8() + '…'.len_utf8() > limit {
            line.push('…');
            break;
        }
        line.push(shown);
    }
    line
}

/// Characters that take no place or turn the direction of those around them (Unicode categories Cf, Zl, Zp).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Failed, Passed};

    fn finished(end: End, stdout: &str, stderr: &str) -> Finished {
        let tail = |text: &str| {
            use std::process::{Command, Stdio};
            let mut echo = Command::new("printf");
            let child = echo.args(["%s", text]).stdout(Stdio::piped()).spawn().unwrap();
            let bounds =
                super::super::process::Bounds { time: Duration::from_secs(20), keep: 4096, cancel: None };
            super::super::process::follow(child, &bounds, |_| ()).unwrap().stdout
        };
        Finished { end, stdout: tail(stdout), stderr: tail(stderr) }
    }

    fn judged(end: End, stdout: &str, stderr: &str) -> (Outcome, String, String) {
        let check = judge("10-disk", &finished(end, stdout, stderr), Duration::from_secs(3));
        (check.result, check.detail, check.hint)
    }

    #[test]
    fn verdict_detail_and_hint_follow_the_contract() {
        let own = |result, detail: &str, hint: &str| (result, detail.to_owned(), hint.to_owned());
        assert_eq!(judged(End::Exited(0), "a\nall good\n\n", "noise"), own(Passed, "all good", ""));
        assert_eq!(judged(End::Exited(0), "", ""), own(Passed, "", ""));
        assert_eq!(
            judged(End::Exited(1), "disk is full\nhint: delete logs\nhint:or buy one\n", ""),
            own(Failed, "disk is full", "delete logs or buy one")
        );
        assert_eq!(judged(End::Exited(1), "", "sh: not found\n"), own(Failed, "sh: not found", ""));
        assert_eq!(judged(End::Exited(1), "", ""), own(Failed, "failed and did not say why", ""));
        assert_eq!(
            judged(End::Exited(127), "", "no such\n").1,
            "ended with exit code 127, expected 0 or 1: no such"
        );
        assert_eq!(judged(End::Signalled(11), "", "").1, "was ended by signal 11, SIGSEGV");
        assert_eq!(judged(End::Deadline, "at step 2", "").1, "did not end within 3 s: at step 2");
    }

    #[test]
    fn untrusted_text_becomes_one_bounded_printable_line() {
        assert_eq!(
            one_line("  a\tb\u{1b}[2J\r\nc\u{202e}d ", 100),
            "a b\u{fffd}[2J\u{fffd}\u{fffd}c\u{fffd}d"
        );
        let long = one_line(&"ä".repeat(2000), TEXT_LIMIT);
        assert!(long.len() <= TEXT_LIMIT && long.ends_with('…'), "{}", long.len());
        assert_eq!(last_line("one\ntwo\n\n"), "two");
    }

    #[test]
    fn only_the_document_of_this_version_is_read() {
        let report =
            CheckReport { schema: Schema, verity: "none: x".into(), checks: vec![Check::failed("n", "d")] };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            text,
            r#"{"schema":1,"verity":"none: x","checks":[{"name":"n","result":"failed","detail":"d","hint":""}]}"#
        );
        assert_eq!(serde_json::from_str::<CheckReport>(&text).unwrap(), report);
        assert!(serde_json::from_str::<CheckReport>(&text.replace("\"schema\":1", "\"schema\":2")).is_err());
    }
}
