//! What a command answers: the text, the JSON and the exit code of each end.

use serde_json::{Map, Value, json};

use crate::error::CtlError;
use crate::model::Job;
use crate::output::{GREEN, RED, Style, YELLOW, line};
use crate::progress::duration;
use crate::render::{list, size};

/// Version of the JSON; raised when a reader of the older one would misread the newer one.
pub const JSON_FORMAT: u32 = 1;
/// Extents shown in text; the JSON has all.
const SHOWN_EXTENTS: usize = 8;
/// Owners shown in text.
const SHOWN_OWNERS: usize = 32;

/// What a command answers.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// For standard output, without `--json`.
    pub text: String,
    /// For standard error.
    pub complaint: String,
    /// For standard output, with `--json`; without `format` and `error`.
    pub json: Map<String, Value>,
    /// Name, message and exit code of what went wrong.
    pub error: Option<(String, String, u8)>,
}

impl Answer {
    /// An answer of one JSON member.
    pub fn new(text: String, member: &str, value: Value) -> Self {
        let json = Map::from_iter([(member.to_owned(), value)]);
        Self { text, json, ..Self::default() }
    }

    /// The answer to a failure.
    pub fn failure(error: &CtlError) -> Self {
        Self::default().with_error(error)
    }

    /// The same answer, with what went wrong.
    #[must_use]
    pub fn with_error(mut self, error: &CtlError) -> Self {
        self.error = Some((error.name().to_owned(), error.full_message(), error.exit_code()));
        self
    }

    /// The same answer, with a hint after the error.
    #[must_use]
    pub fn with_hint(mut self, hint: &str) -> Self {
        self.complaint.push_str(hint);
        self
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.error.as_ref().map_or(0, |(_, _, code)| *code)
    }

    /// The JSON document.
    pub fn document(&self) -> Value {
        let mut document = Map::from_iter([("format".to_owned(), json!(JSON_FORMAT))]);
        document.extend(self.json.clone());
        if let Some((name, message, code)) = &self.error {
            let error = json!({ "name": name, "message": message, "exit_code": code });
            document.insert("error".to_owned(), error);
        }
        Value::Object(document)
    }

    /// What standard error gets.
    pub fn complaint(&self, style: Style) -> String {
        match &self.error {
            Some((_, message, _)) => {
                format!("{} {}\n{}", style.paint(RED, "error:"), line(message), self.complaint)
            }
            None => self.complaint.clone(),
        }
    }
}

/// The answer of a job that is over.
pub fn ended(job: &Job, style: Style) -> Answer {
    let problem = job.problem();
    let text = match (job.kind.as_str(), &problem) {
        // What damage was found is shown however slotd ends such a job.
        ("verify", _) if job.result.contains_key("healthy") => verify_text(job, style),
        ("install", None) => install_text(job, style),
        // And so are the checks of a test.
        ("test", _) if job.result.contains_key("exit_code") => test_text(job, style),
        (_, None) => format!("job {} is done\n", job.number),
        (_, Some(_)) => String::new(),
    };
    let answer = Answer::new(text, "job", json!(job));
    match problem {
        Some(problem) => answer.with_error(&problem),
        None => answer,
    }
}

/// The answer of a job that was started and is left to itself.
pub fn detached(job: &Job) -> Answer {
    Answer::new(format!("{}\n", job.number), "job", json!(job))
}

/// How a cut install goes on. `offset` is given when the image came through a pipe.
pub fn resume_hint(command: &str, offset: Option<u64>) -> String {
    match offset {
        Some(0) => format!("to resume, send the image again to:\n  {command}\n"),
        Some(offset) => format!("to resume, send the image from byte {offset} on to:\n  {command}\n"),
        None => format!("to resume:\n  {command}\n"),
    }
}

fn install_text(job: &Job, style: Style) -> String {
    let text = |key: &str| job.result.get(key).and_then(Value::as_str).map(line);
    let number = |key: &str| job.result.get(key).and_then(Value::as_u64);
    let mut out = format!(
        "slot {} holds version {}, {}\n",
        job.slot,
        text("version").unwrap_or_else(|| "unknown".to_owned()),
        style.paint(GREEN, "verified")
    );
    let mut fields = Vec::new();
    for (name, key) in [
        ("root hash", "root_hash"),
        ("manifest SHA-256", "manifest_sha256"),
        ("transaction", "transaction_id"),
    ] {
        fields.extend(text(key).map(|value| (name, value)));
    }
    fields.extend(number("bytes_written").map(|bytes| ("written", size(bytes))));
    let kept = number("bytes_kept").filter(|bytes| *bytes > 0);
    fields.extend(kept.map(|bytes| ("kept", format!("{} were in place already", size(bytes)))));
    fields.extend(took(job).map(|time| ("time", time)));
    fields.extend(texts(job, "warnings").map(|warning| ("warning", style.paint(YELLOW, &line(warning)))));
    out.push_str(&list(&fields));
    out
}

fn verify_text(job: &Job, style: Style) -> String {
    let healthy = job.result.get("healthy") == Some(&Value::Bool(true));
    let word = if healthy { style.paint(GREEN, "healthy") } else { style.paint(RED, "not healthy") };
    let summary = job.result.get("summary").and_then(Value::as_str).map(line).unwrap_or_default();
    let number = |key: &str| job.result.get(key).and_then(Value::as_u64);
    let mut fields = Vec::new();
    if let Some(checked) = number("blocks_checked") {
        fields.push(("checked", format!("{checked} blocks, {} bad", number("blocks_bad").unwrap_or(0))));
    }
    if let (Some(first), Some(last)) = (number("first_bad"), number("last_bad")) {
        fields.push(("bad blocks", format!("{first} to {last}")));
    }
    fields.extend(extents(job).map(|extents| ("extents", extents)));
    let owners: Vec<_> = texts(job, "owners").collect();
    fields.extend(owners.iter().take(SHOWN_OWNERS).map(|owner| ("damaged", line(owner))));
    if owners.len() > SHOWN_OWNERS {
        fields.push(("damaged", format!("and {} more, see --json", owners.len() - SHOWN_OWNERS)));
    }
    fields.extend(missed_chance(job).map(|chance| ("may have missed", chance)));
    fields.extend(took(job).map(|time| ("time", time)));
    // Of a slot that is not healthy the error says the summary.
    let summary = if healthy { format!(": {summary}") } else { String::new() };
    format!("slot {} is {word}{summary}\n{}", job.slot, list(&fields))
}

/// The summary, and each check with its result, its detail and, where there is one, its hint.
fn test_text(job: &Job, style: Style) -> String {
    let passed = job.result.get("exit_code").is_some_and(|code| code == 0);
    let word = if passed { style.paint(GREEN, "passed") } else { style.paint(RED, "failed") };
    let mut out = format!("test of slot {}: {word}\n", job.slot);
    let summary = job.result.get("test_summary").and_then(Value::as_str).unwrap_or_default();
    out.extend(summary.lines().map(|text| format!("{}\n", line(text))));
    let all: Vec<_> = checks(job).collect();
    let width = all.iter().map(|[name, ..]| name.chars().count()).max().unwrap_or(0);
    for [name, result, detail, hint] in all {
        let colour = match result.as_str() {
            "passed" => GREEN,
            "failed" => RED,
            _ => YELLOW,
        };
        let gap = " ".repeat("skipped".len().saturating_sub(result.chars().count()));
        let row = format!("{}{gap}  {name:width$}  {detail}", style.paint(colour, &result));
        out = format!("{out}{}\n", row.trim_end());
        if !hint.is_empty() {
            out = format!("{out}         {:width$}  hint: {hint}\n", "");
        }
    }
    let mut fields = Vec::new();
    let verity = job.result.get("verity").and_then(Value::as_str).filter(|text| !text.is_empty());
    fields.extend(verity.map(|text| ("verity", line(text))));
    fields.extend(took(job).map(|time| ("time", time)));
    out.push_str(&list(&fields));
    out
}

/// Name, result, detail and hint of each check, on one line each.
fn checks(job: &Job) -> impl Iterator<Item = [String; 4]> {
    let text = |check: &Value, at: usize| check.get(at).and_then(Value::as_str).map(line).unwrap_or_default();
    job.result
        .get("checks")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(move |check| [0, 1, 2, 3].map(|at| text(check, at)))
}

/// Runs of bad blocks as `first+count`.
fn extents(job: &Job) -> Option<String> {
    let all = job.result.get("extents")?.as_array().filter(|all| !all.is_empty())?;
    let pair = |extent: &Value| Some(format!("{}+{}", extent.get(0)?.as_u64()?, extent.get(1)?.as_u64()?));
    let mut text = all.iter().take(SHOWN_EXTENTS).filter_map(pair).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN_EXTENTS {
        text = format!("{text} and {} more, see --json", all.len() - SHOWN_EXTENTS);
    }
    Some(text)
}

/// The chance that a single bad block went unseen, where there is one.
fn missed_chance(job: &Job) -> Option<String> {
    let chance = job.result.get("missed_chance")?.as_f64().filter(|chance| *chance > 0.0)?;
    Some(format!("one bad block, with a chance of {:.2} %", chance * 100.0))
}

fn texts<'a>(job: &'a Job, key: &str) -> impl Iterator<Item = &'a str> {
    job.result.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn took(job: &Job) -> Option<String> {
    Some(duration(job.finished_at?.checked_sub(job.started_at?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobError;
    use sps_base::error::ErrorKind;
    use std::collections::BTreeMap;

    fn job(kind: &str, state: &str, result: Value) -> Job {
        let result: BTreeMap<String, Value> = serde_json::from_value(result).unwrap();
        Job {
            number: 5,
            kind: kind.to_owned(),
            slot: 2,
            state: state.to_owned(),
            result,
            started_at: Some(1_780_000_000),
            finished_at: Some(1_780_000_065),
            ..Job::default()
        }
    }

    // rows: A5
    #[test]
    fn installed_slot_is_summed_up() {
        let job = job(
            "install",
            "done",
            json!({
                "slot": 2, "version": "2.1.0", "root_hash": "ab12", "manifest_sha256": "cd34",
                "transaction_id": "t-1", "bytes_written": 1_u64 << 29, "bytes_kept": 1_u64 << 29,
                "warnings": ["the key is weak"]
            }),
        );
        let answer = ended(&job, Style::PLAIN);
        assert_eq!(
            answer.text,
            "\
slot 2 holds version 2.1.0, verified
root hash         ab12
manifest SHA-256  cd34
transaction       t-1
written           512.0 MiB
kept              512.0 MiB were in place already
time              1 min 05 s
warning           the key is weak
"
        );
        assert_eq!(answer.exit_code(), 0);
        assert_eq!(answer.document()["format"], 1);
        assert_eq!(answer.document()["job"]["result"]["version"], "2.1.0");
        assert_eq!(answer.document().get("error"), None);
    }

    #[test]
    fn damage_is_named_and_exits_as_slot_bad() {
        let extents: Vec<_> = (0..10).map(|n| [n * 10, 1]).collect();
        let mut job = job(
            "verify",
            "failed",
            json!({
                "healthy": false, "summary": "10 blocks are bad", "blocks_checked": 262_144, "blocks_bad": 10,
                "first_bad": 0, "last_bad": 90, "extents": extents,
                "owners": ["file /usr/bin/x\x1b", "superblock"], "missed_chance": 0.0
            }),
        );
        job.error = Some(JobError { name: "SlotBad".into(), message: "10 blocks are bad".into() });
        let answer = ended(&job, Style::PLAIN);
        assert_eq!(
            answer.text,
            "\
slot 2 is not healthy
checked     262144 blocks, 10 bad
bad blocks  0 to 90
extents     0+1, 10+1, 20+1, 30+1, 40+1, 50+1, 60+1, 70+1 and 2 more, see --json
damaged     file /usr/bin/x\\u{1b}
damaged     superblock
time        1 min 05 s
"
        );
        assert_eq!(answer.exit_code(), ErrorKind::SlotBad.exit_code());
        assert_eq!(answer.document()["error"]["name"], "SlotBad");
    }

    #[test]
    fn quick_check_states_what_it_may_have_missed() {
        let result = json!({ "healthy": true, "summary": "nothing wrong", "blocks_checked": 64,
            "blocks_bad": 0, "missed_chance": 0.875 });
        let answer = ended(&job("verify", "done", result), Style::PLAIN);
        assert_eq!(
            answer.text,
            "\
slot 2 is healthy: nothing wrong
checked          64 blocks, 0 bad
may have missed  one bad block, with a chance of 87.50 %
time             1 min 05 s
"
        );
        assert_eq!(answer.exit_code(), 0);
    }

    fn test_result(exit_code: i32, checks: &Value) -> Value {
        json!({ "exit_code": exit_code, "test_summary": "Version check started\nVersion check finished\nStorage check started\nStorage check failed", "checks": checks,
            "verity": "guarded" })
    }

    // rows: A7
    #[test]
    fn failed_test_names_each_check_and_what_to_do() {
        let checks = json!([
            ["version", "passed", "8.0.2 may go to 8.1.0", ""],
            ["storage", "failed", "/data has 12 MiB free\u{1b}", "free 100 MiB on /data"],
            ["ha", "skipped", "not configured", ""],
        ]);
        let expected = "\
test of slot 2: failed
Version check started
Version check finished
Storage check started
Storage check failed
passed   version  8.0.2 may go to 8.1.0
failed   storage  /data has 12 MiB free\\u{1b}
                  hint: free 100 MiB on /data
skipped  ha       not configured
verity  guarded
time    1 min 05 s
";
        let done = job("test", "done", test_result(1, &checks));
        let answer = ended(&done, Style::PLAIN);
        assert_eq!(answer.text, expected);
        assert_eq!(answer.exit_code(), ErrorKind::TestFailed.exit_code());
        assert_eq!(answer.complaint(Style::PLAIN), "error: slot 2 cannot take over: Storage check failed\n");
        // The same when slotd ends such a job as failed.
        let error = JobError { name: "TestFailed".into(), message: "Storage check failed".into() };
        let failed = Job { state: "failed".into(), error: Some(error), ..done };
        assert_eq!(ended(&failed, Style::PLAIN).text, expected);
        assert_eq!(ended(&failed, Style::PLAIN).exit_code(), ErrorKind::TestFailed.exit_code());
    }

    #[test]
    fn passed_test_is_no_error() {
        let answer = ended(&job("test", "done", test_result(0, &json!([]))), Style::PLAIN);
        assert!(answer.text.starts_with("test of slot 2: passed\n"), "{}", answer.text);
        assert_eq!(answer.exit_code(), 0);
    }

    #[test]
    fn failed_job_complains_with_the_way_on() {
        let mut job = job("install", "failed", json!({}));
        job.error = Some(JobError { name: "Device".into(), message: "no space\non it".into() });
        let answer = ended(&job, Style::PLAIN).with_hint(&resume_hint("spsctl install -", Some(4096)));
        assert_eq!(answer.text, "");
        assert_eq!(
            answer.complaint(Style::PLAIN),
            "error: no space\\non it\nto resume, send the image from byte 4096 on to:\n  spsctl install -\n"
        );
        assert_eq!(
            answer.document()["error"],
            json!({ "name": "Device", "message": "no space\non it", "exit_code": 33 })
        );
    }

    #[test]
    fn failure_without_a_job_is_format_and_error() {
        let error = CtlError::Refused { kind: ErrorKind::SlotEmpty, message: "slot 2 is empty".into() };
        assert_eq!(
            Answer::failure(&error).document(),
            json!({ "format": 1, "error": { "name": "SlotEmpty", "message": "slot 2 is empty", "exit_code": 18 } })
        );
    }
}
