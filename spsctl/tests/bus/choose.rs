//! The commands that choose the firmware, and `doctor`.

use std::process::Command;

use serde_json::json;

use super::fake::{CONFIGURATION, Part, Stage};
use super::{run, run_json};

fn calls(stage: &Stage) -> Vec<String> {
    stage.seen(|seen| seen.calls.clone())
}

// rows: A7
#[test]
fn test_shows_every_check() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, progress) = run(&stage, &["test", "2"]);
    assert_eq!(code, Some(0), "{progress}");
    assert_eq!(
        text,
        "test of slot 2: passed\nStorage check started\nStorage check finished\n\
         passed   storage  1 GiB free\nverity  guarded\n"
    );
    assert_eq!(run(&stage, &["test", "2", "--again"]).0, Some(0));
    assert_eq!(calls(&stage), ["Test 2 []", "Test 2 [\"again\"]"]);
}

// rows: A7 A8
#[test]
fn failed_test_says_what_to_do_and_nothing_is_activated() {
    let stage = Stage::new(Part::Fail);
    for command in [&["test", "2"][..], &["upgrade", "2", "--reboot"]] {
        let (code, text, complaint) = run(&stage, command);
        assert_eq!(code, Some(24));
        assert!(
            text.starts_with("test of slot 2: failed\nStorage check started\nStorage check failed\n"),
            "{text}"
        );
        assert!(text.contains("hint: free 100 MiB\n"), "{text}");
        assert!(complaint.ends_with("error: slot 2 cannot take over: Storage check failed\n"), "{complaint}");
    }
    let (_, document) = run_json(&stage, &["test", "2"]);
    assert_eq!(document["error"]["name"], "TestFailed");
    assert_eq!(
        document["job"]["result"]["checks"],
        json!([["storage", "failed", "12 MiB free", "free 100 MiB"]])
    );
    assert!(calls(&stage).iter().all(|call| call == "Test 2 []"), "{:?}", calls(&stage));
}

// rows: A9
#[test]
fn upgrade_tests_and_activates_and_leaves_the_restart_to_the_operator() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, _) = run(&stage, &["upgrade", "2", "--message", "ticket 4711"]);
    assert_eq!(code, Some(0));
    assert!(text.ends_with("slot 2 is selected; it starts at the next reboot, for one trial\n"), "{text}");
    assert_eq!(calls(&stage), ["Test 2 []", "Activate 2 \"ticket 4711\" 0"]);
}

#[test]
fn upgrade_with_reboot_asks_logind() {
    let stage = Stage::new(Part::Succeed);
    let (code, document) = run_json(&stage, &["upgrade", "2", "--again", "--reboot"]);
    assert_eq!(code, Some(0));
    assert_eq!(document["activated"], json!({ "slot": 2, "message": null }));
    assert_eq!(document["rebooting"], true);
    assert_eq!(document["job"]["kind"], "test");
    assert_eq!(calls(&stage), ["Test 2 [\"again\"]", "Activate 2 \"\" 0", "Reboot false"]);
}

#[test]
fn choices_reach_slotd() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, _) = run(&stage, &["activate", "2", "--message", "m"]);
    assert_eq!(code, Some(0));
    assert_eq!(text, "slot 2 is selected; it starts at the next reboot, for one trial\n");
    assert_eq!(
        run_json(&stage, &["deactivate", "2"]).1,
        json!({ "format": 1, "deactivated": { "slot": 2 } })
    );
    assert_eq!(run_json(&stage, &["confirm"]).1, json!({ "format": 1, "confirmed": true }));
    assert_eq!(
        run_json(&stage, &["reject", "--reason", "no link"]).1,
        json!({ "format": 1, "rejected": { "reason": "no link" } })
    );
    assert_eq!(calls(&stage), ["Activate 2 \"m\" 0", "Deactivate 2", "Confirm", "Reject no link"]);
}

#[test]
fn refused_choices_have_their_exit_codes() {
    let stage = Stage::new(Part::Fail);
    for command in [&["activate", "2"][..], &["deactivate", "2"], &["confirm"], &["reject", "--reason", "x"]]
    {
        let (code, text, complaint) = run(&stage, command);
        assert_eq!((code, text.as_str()), (Some(25), ""), "{command:?}");
        assert_eq!(complaint, "error: test slot 2 first\n");
    }
}

#[test]
fn too_long_message_never_reaches_slotd() {
    let stage = Stage::new(Part::Succeed);
    let long = "x".repeat(1025);
    for command in [&["upgrade", "2", "--message", &long][..], &["reject", "--reason", &long]] {
        assert_eq!(run(&stage, command).0, Some(2));
    }
    assert!(calls(&stage).is_empty());
}

#[test]
fn revert_without_the_date_prints_the_command_that_names_it() {
    let stage = Stage::new(Part::Succeed);
    let (code, _, complaint) = run(&stage, &["revert", "--reason", "printing broken", "--reboot"]);
    assert_eq!(code, Some(28));
    let expected = format!(
        "found None; to accept that configuration, run: spsctl --bus {} revert --reason 'printing broken' \
         --accept-config {CONFIGURATION} --reboot\n",
        stage.address
    );
    assert!(
        complaint.starts_with("error: option accept_config") && complaint.ends_with(&expected),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1);

    // What was printed is what works.
    let (_, command) = complaint.split_once("run: spsctl ").unwrap();
    let program = assert_cmd::cargo::cargo_bin!("spsctl");
    let line = format!("{} {}", program.display(), command.trim());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "slot 2 is selected; the appliance restarts into it now, for one trial\n"
    );
    let last = calls(&stage);
    assert_eq!(
        last[1..],
        [
            format!("Revert printing broken {{\"accept_config\": \"\\\"{CONFIGURATION}\\\"\"}}"),
            "Reboot false".to_owned()
        ]
    );
}

#[test]
fn status_and_slots_show_the_choice() {
    let stage = Stage::new(Part::Succeed);
    let (_, text, _) = run(&stage, &["status"]);
    for row in [
        "running       slot 1, confirmed\n",
        "default       slot 1\n",
        "next start    slot 2\n",
        "fallback      slot 2\n",
        "boot loader   grub\n",
        "last upgrade  failed  upgrade to 2.2.0 in slot 2  2026-05-28T20:26:40Z  no link\n",
    ] {
        assert!(text.contains(row), "{row:?} is not in\n{text}");
    }
    let (_, document) = run_json(&stage, &["status"]);
    assert_eq!(document["status"]["last_upgrade"]["reason"], "no link");
    assert_eq!(document["slots"][1]["configuration"], CONFIGURATION);
}

#[test]
fn doctor_warns_and_fails() {
    let stage = Stage::new(Part::Succeed);
    let (code, text, complaint) = run(&stage, &["doctor"]);
    assert_eq!((code, complaint.as_str()), (Some(1), "error: 1 of 12 checks failed\n"), "{text}");
    for row in [
        "ok    slotd         answers on the bus\n",
        "ok    state         valid\n",
        "ok    boot loader   grub is driven\n",
        "warn  next start    slot 2 is selected for one trial -> ",
        "warn  last upgrade  failed",
        "fail  fallback      slot 2 is not verified -> ",
        "warn  warnings      state was lost -> ",
        "warn  polkit        not on the bus",
    ] {
        assert!(text.contains(row), "{row:?} is not in\n{text}");
    }
    let (code, document) = run_json(&stage, &["doctor"]);
    assert_eq!(code, Some(1));
    assert_eq!(document["error"]["name"], "Unhealthy");
    assert_eq!(
        document["checks"][0],
        json!({ "name": "slotd", "result": "ok", "detail": "answers on the bus", "next": null })
    );
    assert!(calls(&stage).is_empty());
}

#[test]
fn doctor_without_a_bus_says_so() {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("spsctl"));
    let output = command.args(["--bus", "unix:path=/nonexistent/bus", "doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("fail  slotd  cannot reach the bus at unix:path=/nonexistent/bus: "), "{text}");
    assert_eq!(text.lines().count(), 1);
}
