//! Reading, installing, checking, and following jobs.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::fake::{Part, Stage};
use super::{run, run_json, spsctl};

fn image() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.iso");
    std::fs::write(&file, b"an image").unwrap();
    (directory, file)
}

#[test]
fn reading_commands_show_what_slotd_has() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, _) = run(&stage, &["slots"]);
    assert_eq!(code, Some(0));
    assert!(
        text.contains("\n1     A      verified  2.1.0") && text.contains("\n2     B      empty"),
        "{text}"
    );
    let (_, text, _) = run(&stage, &["status"]);
    assert!(
        text.contains("running       slot 1, confirmed\n") && text.contains("warning       state was lost\n"),
        "{text}"
    );
    assert_eq!(run(&stage, &["jobs"]).1, "no jobs\n");
    // A pipe gets the notes as they are; only a terminal must not obey them.
    assert_eq!(run(&stage, &["notes", "1"]).1, "# Notes\n\x1b[2Jraw");
    assert_eq!(run_json(&stage, &["news", "1"]).1, json!({ "format": 1, "slot": 1, "news": null }));
    assert_eq!(
        run_json(&stage, &["state", "show"]).1,
        json!({ "format": 1, "health": "valid", "state": { "epoch_floor": 3 } })
    );
    let (_, status) = run_json(&stage, &["status"]);
    assert_eq!(status["status"]["booted"], 1);
    assert_eq!(status["slots"].as_array().map(Vec::len), Some(2));
}

#[test]
fn refusals_have_their_exit_codes() {
    let stage = Stage::new(Part::Succeed);
    let (code, _, complaint) = run(&stage, &["notes", "2"]);
    assert_eq!((code, complaint.as_str()), (Some(18), "error: slot 2 is empty\n"));
    let (code, _, complaint) = run(&stage, &["notes", "7"]);
    assert_eq!((code, complaint.as_str()), (Some(28), "error: there is no slot 7\n"));
    let (code, _, complaint) = run(&stage, &["wait", "9"]);
    assert_eq!((code, complaint.as_str()), (Some(28), "error: there is no job 9\n"));
}

#[test]
fn changing_commands_reach_slotd() {
    let stage = Stage::new(Part::Succeed);
    assert_eq!(run(&stage, &["delete", "2"]).1, "slot 2 is empty now\n");
    assert_eq!(run(&stage, &["state", "reset", "--reason", "lost it"]).0, Some(0));
    assert_eq!(stage.seen(|seen| seen.calls.clone()), ["Delete 2", "ResetState lost it"]);
}

// rows: A5
#[test]
fn install_hands_over_the_file_and_follows() {
    let stage = Stage::new(Part::Succeed);
    let (_directory, file) = image();
    let hash = "AB".repeat(32);
    let file = file.to_str().unwrap();
    let (code, text, progress) =
        run(&stage, &["install", file, "--slot", "2", "--replace", "--manifest-sha256", &hash]);
    assert_eq!(code, Some(0), "{progress}");
    assert!(text.starts_with("slot 2 holds version 2.2.0, verified\n"), "{text}");
    assert!(progress.starts_with("slot 2: writing: "), "{progress}");
    assert_eq!(stage.seen(|seen| seen.image.clone()), b"an image");
    let options = stage.seen(|seen| seen.options.clone());
    assert_eq!(options["replace"], "true");
    assert_eq!(options["slot"], "uint32 2");
    assert_eq!(options["manifest_sha256"], format!("\"{}\"", "ab".repeat(32)));
    assert!(options["transaction_id"].len() > 20, "{options:?}");
    assert_eq!(options.len(), 4);
}

#[test]
fn install_from_a_pipe_works_without_any_signal() {
    let stage = Stage::new(Part::Silent);
    let (_directory, file) = image();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let child =
        spsctl(&stage, &["install", "-", "--json"]).stdin(reader).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut writer, &std::fs::read(file).unwrap()).unwrap();
    drop(writer);
    let output = child.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["job"]["state"], "done");
    assert_eq!(document["job"]["result"]["bytes_written"], 100 << 20);
    assert_eq!(stage.seen(|seen| seen.image.clone()), b"an image");
}

#[test]
fn failed_install_says_how_to_resume() {
    let stage = Stage::new(Part::Fail);
    let (_directory, file) = image();
    let file = file.to_str().unwrap();
    let (code, text, complaint) = run(&stage, &["install", file, "--transaction", "t-1"]);
    assert_eq!((code, text.as_str()), (Some(15), ""));
    let expected = format!(
        "error: firmware.erofs: byte 9 differs\nto resume:\n  spsctl --bus {} install {file} --transaction t-1\n",
        stage.address
    );
    assert!(complaint.ends_with(&expected), "{complaint}\nis not\n{expected}");
    let (code, document) = run_json(&stage, &["wait", "1"]);
    assert_eq!((code, &document["error"]["name"]), (Some(15), &json!("MediaCorrupt")));
}

#[test]
fn detached_job_is_found_again() {
    let stage = Stage::new(Part::Cancellable);
    let (_directory, file) = image();
    assert_eq!(run(&stage, &["install", file.to_str().unwrap(), "--detach"]).1, "1\n");
    let (_, text, _) = run(&stage, &["jobs"]);
    assert!(text.contains("\n1    install  2     running  writing"), "{text}");
    assert_eq!(run(&stage, &["cancel", "1"]).1, "job 1 was asked to stop\n");
    let (code, _, complaint) = run(&stage, &["wait", "1"]);
    assert_eq!(code, Some(26));
    assert!(complaint.ends_with("error: cancelled by its caller\n"), "{complaint}");
}

#[test]
fn unhealthy_slot_is_reported_and_exits_as_slot_bad() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, complaint) = run(&stage, &["verify", "2", "--full", "--scheduled"]);
    assert_eq!(code, Some(21));
    assert!(complaint.ends_with("error: 1 block is bad\n"), "{complaint}");
    assert!(text.starts_with("slot 2 is not healthy\n"), "{text}");
    assert!(text.contains("damaged  file /usr/bin/x\n"), "{text}");
    assert_eq!(stage.seen(|seen| seen.calls.clone()), ["Verify full [\"scheduled\"]"]);
}

#[test]
fn slotd_that_dies_is_3_and_the_install_can_be_resumed() {
    let stage = Stage::new(Part::Die);
    let (_directory, file) = image();
    let (code, document) = run_json(&stage, &["install", file.to_str().unwrap(), "--transaction", "t-9"]);
    assert_eq!(code, Some(3));
    assert_eq!(document["error"]["name"], "Unreachable");
    assert_eq!(document["resume"]["transaction_id"], "t-9");
    assert!(document["resume"]["command"].as_str().unwrap().ends_with("--transaction t-9"), "{document}");
}

/// Starts an install, presses Ctrl-C whenever standard error shows the next of `cues`; exit code and the rest.
pub(super) fn press_ctrl_c_at(stage: &Stage, line: &[&str], cues: &[&str]) -> (Option<i32>, String) {
    let mut child = spsctl(stage, line).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    for cue in cues {
        let mut text = String::new();
        while !text.contains(cue) {
            text.clear();
            assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "ended before {cue:?}");
        }
        kill(pid, Signal::SIGINT).unwrap();
    }
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

#[test]
fn ctrl_c_cancels_and_waits_for_the_end() {
    let stage = Stage::new(Part::Cancellable);
    let (_directory, file) = image();
    let (code, rest) = press_ctrl_c_at(&stage, &["install", file.to_str().unwrap()], &["slot 2: writing"]);
    assert_eq!(code, Some(26), "{rest}");
    assert!(rest.ends_with("error: cancelled by its caller\n"), "{rest}");
    assert_eq!(stage.seen(|seen| seen.calls.clone()), ["Cancel"]);
}

#[test]
fn end_that_slotd_told_before_it_left_counts() {
    let stage = Stage::new(Part::Stopped);
    let (_directory, file) = image();
    let (code, rest) = press_ctrl_c_at(&stage, &["install", file.to_str().unwrap()], &["slot 2: writing"]);
    assert_eq!(code, Some(26), "{rest}");
}

#[test]
fn second_ctrl_c_leaves() {
    let stage = Stage::new(Part::Stubborn);
    let (_directory, file) = image();
    let cues = ["slot 2: writing", "cancelling job 1"];
    let (code, rest) = press_ctrl_c_at(&stage, &["install", file.to_str().unwrap()], &cues);
    assert_eq!(code, Some(130), "{rest}");
    assert!(rest.contains("`spsctl wait 1`"), "{rest}");
}

#[test]
fn ctrl_c_while_waiting_leaves_the_job_alone() {
    let stage = Stage::new(Part::Cancellable);
    let (_directory, file) = image();
    run(&stage, &["install", file.to_str().unwrap(), "--detach"]);
    let (code, _) = press_ctrl_c_at(&stage, &["wait", "1"], &["slot 2: writing"]);
    assert_eq!(code, Some(130));
    assert_eq!(stage.seen(|seen| seen.calls.len()), 0);
}

#[test]
fn bus_without_slotd_is_3() {
    let stage = Stage::new(Part::Die);
    let (_directory, file) = image();
    // Ends the fake.
    run(&stage, &["install", file.to_str().unwrap()]);
    let (code, _, complaint) = run(&stage, &["slots"]);
    assert_eq!(code, Some(3));
    assert!(complaint.starts_with("error: cannot reach slotd (org.spsagent.Slots1)"), "{complaint}");
}

#[test]
fn every_taint_record_is_listed_page_by_page() {
    let stage = Stage::new(Part::Succeed);
    let (_, text, _) = run(&stage, &["taint"]);
    assert_eq!(text.lines().count(), 301, "{text}");
    let first = text.lines().nth(1).unwrap();
    assert_eq!(first, "1       2026-05-28T20:26:40Z  state-lost  state  zeros\\u{1b}[2J");
    let (code, document) = run_json(&stage, &["taint"]);
    assert_eq!((code, document["taint"].as_array().unwrap().len()), (Some(0), 300));
    assert_eq!(
        document["taint"][299],
        json!({
            "number": 300, "id": "0000000000000300", "cause": "state-lost", "place": "state",
            "detail": "zeros\u{1b}[2J", "at": "2026-05-28T20:26:40Z", "cleared_at": null
        })
    );
}
