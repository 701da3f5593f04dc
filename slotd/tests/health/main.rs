//! The program sps-health against a slotd that plays a part, over a private bus.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests make their own files and processes"
)]

mod fake;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake::{Bus, Said};
use serde_json::Value;

fn sps_health(address: &str, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sps-health"));
    command.args(["--bus", address]).args(line);
    command.env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Exit code, JSON document, log.
fn check(bus: &Bus, directory: &Path, more: &[&str]) -> (Option<i32>, Value, String) {
    let directory = directory.display().to_string();
    let line = [&["check", "--json", "--directory", &directory], more].concat();
    let Output { status, stdout, stderr } = sps_health(&bus.address, &line).output().unwrap();
    let log = String::from_utf8(stderr).unwrap();
    (status.code(), serde_json::from_slice(&stdout).unwrap_or_default(), log)
}

/// `name=result` of each check.
fn results(document: &Value) -> Vec<String> {
    let brief = |check: &Value| format!("{}={}", check["name"], check["result"]).replace('"', "");
    document["checks"].as_array().unwrap().iter().map(brief).collect()
}

fn detail<'a>(document: &'a Value, name: &str) -> &'a str {
    let checks = document["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()["detail"].as_str().unwrap()
}

#[test]
fn a_healthy_firmware_is_confirmed_and_the_journal_says_so() {
    let (mut bus, directory) = (Bus::new(), tempfile::tempdir().unwrap());
    let said = bus.serve(Said { failed_units: Some(Vec::new()), ..Said::default() });
    program(directory.path(), "20-web", "echo answers");
    program(directory.path(), "10-disk", "echo 90 % free");
    let data = tempfile::tempdir().unwrap();
    let (code, document, log) = check(&bus, directory.path(), &["--data", data.path().to_str().unwrap()]);
    assert_eq!(
        (code, &document["healthy"], &document["trial"]),
        (Some(0), &true.into(), &true.into()),
        "{log}"
    );
    let passed = ["slotd", "booted-slot", "clock", "units", "data", "10-disk", "20-web"];
    assert_eq!(results(&document), passed.map(|name| format!("{name}=passed")));
    assert_eq!(detail(&document, "20-web"), "answers");
    assert_eq!(said.lock().unwrap().calls, ["Confirm"]);
    assert!(log.contains("279e359ef459a88801c75e7885e908fa") && log.contains("slot 2 is healthy"), "{log}");
    assert!(log.contains("20-web: passed. answers"), "{log}");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0, "the probe is gone");
}

#[test]
fn what_failed_is_named_to_slotd_in_a_trial() {
    let (mut bus, directory) = (Bus::new(), tempfile::tempdir().unwrap());
    let said = bus.serve(Said { failed_units: Some(vec!["nginx.service"]), ..Said::default() });
    program(directory.path(), "10-good", "true");
    program(directory.path(), "20-web", "echo 'no answer on port 443'; echo 'hint: see nginx'; exit 1");
    program(directory.path(), "30-hang", "sleep 454545 & sleep 454545");
    program(directory.path(), "40-last", "true");
    let (code, document, log) = check(&bus, directory.path(), &["--deadline", "1"]);
    assert_eq!((code, &document["healthy"]), (Some(1), &false.into()), "{log}");
    let calls = said.lock().unwrap().calls.clone();
    let [rejected] = calls.as_slice() else { panic!("{calls:?}") };
    let start = "Reject health checks failed: units (1 failed: nginx.service), 20-web (";
    assert!(rejected.starts_with(start) && rejected.contains("30-hang ("), "{rejected}");
    assert_eq!(
        results(&document)[4..],
        ["10-good=passed", "20-web=failed", "30-hang=failed", "40-last=passed"]
    );
    assert_eq!(detail(&document, "units"), "1 failed: nginx.service");
    assert_eq!(detail(&document, "30-hang"), "did not end within 1 s");
    assert!(log.contains("b516df4e530ba3c51ba306390724e3fc"), "{log}");
    assert_eq!(processes_with("454545"), 0, "what a program left is ended with it");
}

#[test]
fn outside_a_trial_a_failure_is_logged_and_nothing_is_rejected() {
    let (mut bus, directory) = (Bus::new(), tempfile::tempdir().unwrap());
    let said = bus.serve(Said { trial: false, confirmed: true, ..Said::default() });
    program(directory.path(), "10-bad", "exit 1");
    let (code, document, log) = check(&bus, directory.path(), &[]);
    assert_eq!((code, &document["trial"]), (Some(1), &false.into()));
    assert_eq!(detail(&document, "units"), "systemd does not run here");
    assert!(said.lock().unwrap().calls.is_empty());
    assert!(log.contains("not healthy: health checks failed: 10-bad ("), "{log}");
}

#[test]
fn own_checks_see_the_clock_the_slot_and_the_data() {
    let (mut bus, directory) = (Bus::new(), tempfile::tempdir().unwrap());
    let said = bus.serve(Said { build_date: "2999-01-01T00:00:00Z", ..Said::default() });
    let missing = directory.path().join("missing");
    let (_, document, _) = check(&bus, directory.path(), &["--data", missing.to_str().unwrap()]);
    assert!(detail(&document, "clock").contains("the clock is before 2999"), "{document}");
    assert!(detail(&document, "data").contains("No such file"), "{document}");
    let calls = said.lock().unwrap().calls.clone();
    let [rejected] = calls.as_slice() else { panic!("{calls:?}") };
    assert!(
        rejected.starts_with("Reject health checks failed: clock (") && rejected.contains("data ("),
        "{rejected}"
    );

    said.lock().unwrap().booted = 0;
    let (code, document, _) = check(&bus, directory.path(), &[]);
    assert_eq!((code, results(&document)[1].as_str()), (Some(1), "booted-slot=failed"));
}

#[test]
fn a_verdict_that_slotd_does_not_take_is_a_failure() {
    let (mut bus, directory) = (Bus::new(), tempfile::tempdir().unwrap());
    bus.serve(Said { refuses: true, ..Said::default() });
    let (code, document, log) = check(&bus, directory.path(), &[]);
    assert_eq!((code, &document["healthy"]), (Some(1), &false.into()));
    assert!(document["refusal"].as_str().unwrap().contains("the loader is read-only"), "{document} {log}");
    // Nobody to ask: a failed check like any other.
    let (code, document, _) = check(&Bus::new(), directory.path(), &[]);
    assert_eq!((code, results(&document)), (Some(1), vec!["slotd=failed".to_owned()]));
    assert_eq!(document["trial"], Value::Null);
}

fn trial(address: &str, more: &[&str]) -> Child {
    sps_health(address, &[&["trial"], more].concat()).spawn().unwrap()
}

fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_start_that_is_no_trial_ends_at_once() {
    let mut bus = Bus::new();
    let said = bus.serve(Said { trial: false, confirmed: true, ..Said::default() });
    let start = Instant::now();
    assert_eq!(ended(trial(&bus.address, &[])).0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    // The same for a system that came from no slot.
    *said.lock().unwrap() = Said { booted: 0, trial: false, ..Said::default() };
    assert_eq!(ended(trial(&bus.address, &[])).0, Some(0));
    assert!(said.lock().unwrap().calls.is_empty());
}

#[test]
fn a_trial_ends_well_with_the_confirmation() {
    let mut bus = Bus::new();
    let said = bus.serve(Said::default());
    let mut child = trial(&bus.address, &["--deadline", "60"]);
    assert!(child.try_wait().unwrap().is_none());
    {
        let mut said = said.lock().unwrap();
        (said.trial, said.confirmed) = (false, true);
    }
    // Whether it saw the trial before or not, this is no reason to reboot.
    assert_eq!(ended(child).0, Some(0));
    // On trial and confirmed at once is confirmed as well.
    *said.lock().unwrap() = Said { confirmed: true, ..Said::default() };
    assert_eq!(ended(trial(&bus.address, &["--deadline", "60"])).0, Some(0));
}

#[test]
fn a_rejected_firmware_reboots_before_the_deadline() {
    let mut bus = Bus::new();
    let said = bus.serve(Said { last_upgrade: vec![("outcome", "failed")], ..Said::default() });
    let (code, log) = ended(trial(&bus.address, &["--deadline", "60"]));
    assert_eq!(code, Some(1));
    assert!(log.contains("28cda8547c7ed91da721f055a54a4778") && log.contains("was rejected"), "{log}");
    assert!(said.lock().unwrap().calls.is_empty(), "it is rejected already");
}

#[test]
fn a_trial_that_is_not_confirmed_in_time_is_rejected_and_reboots() {
    let mut bus = Bus::new();
    let said = bus.serve(Said::default());
    let (code, log) = ended(trial(&bus.address, &["--deadline", "1"]));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(said.lock().unwrap().calls, ["Reject not healthy within 1 s"]);
    assert!(log.contains("28cda8547c7ed91da721f055a54a4778"), "{log}");
}

#[test]
fn a_slotd_that_comes_late_or_goes_away_changes_nothing() {
    let mut bus = Bus::new();
    // No slotd at first; it comes up in a trial and goes away for good.
    let child = trial(&bus.address, &["--deadline", "4"]);
    let said = bus.serve(Said::default());
    bus.silence();
    drop(said);
    let again = bus.serve(Said::default());
    let (code, log) = ended(child);
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(again.lock().unwrap().calls, ["Reject not healthy within 4 s"]);
}

#[test]
fn a_slotd_that_never_answers_reboots_only_where_the_initrd_said_trial() {
    let directory = tempfile::tempdir().unwrap();
    let marker = directory.path().join("trial");
    let marker_path = marker.to_str().unwrap();
    let nowhere = format!("unix:path={}", directory.path().join("bus").display());
    let line = ["--deadline", "1", "--trial-marker", marker_path];
    let (code, log) = ended(trial(&nowhere, &line));
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("nothing says that this is a trial"), "{log}");
    fs::write(&marker, "").unwrap();
    let (code, log) = ended(trial(&nowhere, &line));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("slotd never answered"), "{log}");
    // A bus without slotd is the same.
    assert_eq!(ended(trial(&Bus::new().address, &line)).0, Some(1));
}

// rows: A13
#[test]
fn versions_are_logged_at_every_boot() {
    let mut bus = Bus::new();
    let last = vec![
        ("outcome", "trial"),
        ("kind", "upgrade"),
        ("from_version", "2.1.0"),
        ("version", "2.2.0"),
        ("message", "x\ny"),
    ];
    // It waits for slotd.
    let child = sps_health(&bus.address, &["report"]).spawn().unwrap();
    let said = bus.serve(Said { last_upgrade: last, ..Said::default() });
    let (code, log) = ended(child);
    assert_eq!(code, Some(0), "{log}");
    let line = "slot 2 runs firmware 2.2.0, boot version 6.12.1, root hash c0ffee, on trial; last upgrade: trial upgrade of 2.1.0 to 2.2.0";
    assert!(log.contains(line) && log.contains("b5d0a9c7e68fb806267fa5905c5852b4"), "{log}");
    *said.lock().unwrap() = Said { booted: 0, trial: false, ..Said::default() };
    let (_, log) = ended(sps_health(&bus.address, &["report"]).spawn().unwrap());
    assert!(log.contains("the running system came from no slot; last upgrade: none"), "{log}");
    bus.silence();
    let (code, log) = ended(sps_health(&bus.address, &["report", "--deadline", "0"]).spawn().unwrap());
    assert_eq!(code, Some(1), "{log}");
}

/// Processes with this word on their command line.
fn processes_with(word: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())).count()
}
