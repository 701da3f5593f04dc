//! The program without a bus: usage, help, and what it does with closed pipes.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::fs;

use assert_cmd::Command;
use serde_json::Value;

fn spsctl(line: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("spsctl"));
    command.args(line).env_remove("DBUS_SYSTEM_BUS_ADDRESS");
    command
}

fn out(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_shows_every_command_and_examples() {
    let output = spsctl(&["--help"]).assert().code(0).get_output().clone();
    let help = out(&output.stdout);
    for word in [
        "slots",
        "status",
        "install",
        "test",
        "upgrade",
        "activate",
        "deactivate",
        "confirm",
        "reject",
        "revert",
        "doctor",
        "completion",
        "notes",
        "news",
        "verify",
        "delete",
        "jobs",
        "wait",
        "cancel",
        "state",
        "Examples:",
        "Exit codes:",
        "docs/errors.md",
        "NO_COLOR",
    ] {
        assert!(help.contains(word), "{word} is not in the help:\n{help}");
    }
    for command in ["slots", "install", "verify", "delete", "wait", "test", "upgrade", "revert", "doctor"] {
        spsctl(&[command, "--help"]).assert().code(0);
    }
    let install = out(&spsctl(&["install", "--help"]).assert().code(0).get_output().stdout);
    for word in ["--proxy", "--ca", "--stall-timeout", "--retries", "no_proxy"] {
        assert!(install.contains(word), "{word} is not in the help:\n{install}");
    }
}

#[test]
fn usage_errors_are_2_and_print_nothing_on_stdout() {
    for line in [
        &["frobnicate"][..],
        &[],
        &["verify", "1", "--full", "--quick"],
        &["notes", "10"],
        &["install", "x.iso", "--offset", "1"],
        &["install", "http://example.com/x.iso"],
        &["install", "ftp://example.com/x.iso"],
        &["install", "https://me:secret@example.com/x.iso"],
        &["install", "https://example.com/x.iso", "--detach"],
        &["install", "https://example.com/x.iso", "--ca", "/nonexistent"],
        &["install", "https://example.com/x.iso", "--proxy", "http://me:secret@proxy:3128"],
        &["install", "https://example.com/x.iso", "--stall-timeout", "0"],
        &["install", "x.iso", "--ca", "/nonexistent"],
        &["test", "0"],
        &["upgrade"],
        &["revert"],
        &["completion", "cmd"],
        &["state", "reset"],
        &["--bus", "nonsense", "slots"],
    ] {
        let output = spsctl(line).assert().code(2).get_output().clone();
        assert_eq!(out(&output.stdout), "", "{line:?}");
        assert!(!output.stderr.is_empty(), "{line:?}");
        assert!(!out(&output.stderr).contains("secret"), "{line:?}");
    }
}

#[test]
fn image_that_cannot_be_opened_is_2_before_the_bus_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.iso");
    let dead = "unix:path=/nonexistent/bus";
    for (file, why) in [(missing.as_path(), "cannot open it"), (directory.path(), "this is a directory")] {
        let output = spsctl(&["--bus", dead, "install"]).arg(file).assert().code(2).get_output().clone();
        let text = out(&output.stderr);
        assert!(text.starts_with("error: ") && text.contains(why), "{text}");
    }
}

#[test]
fn bus_that_is_not_there_is_3() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("x.iso");
    fs::write(&image, b"x").unwrap();
    let image = image.to_str().unwrap();
    for line in [
        &["slots"][..],
        &["status"],
        &["install", image],
        &["test", "1"],
        &["upgrade", "1"],
        &["activate", "1"],
        &["deactivate", "1"],
        &["confirm"],
        &["reject", "--reason", "x"],
        &["revert", "--reason", "x"],
        &["notes", "1"],
        &["news", "1"],
        &["verify", "1"],
        &["delete", "1"],
        &["jobs"],
        &["wait", "1"],
        &["cancel", "1"],
        &["state", "show"],
        &["state", "reset", "--reason", "x"],
    ] {
        let output =
            spsctl(&["--bus", "unix:path=/nonexistent/bus"]).args(line).assert().code(3).get_output().clone();
        let text = out(&output.stderr);
        assert!(text.starts_with("error: cannot reach the bus at unix:path=/nonexistent/bus: "), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
    }
}

#[test]
fn failure_is_json_too() {
    let line = ["--bus", "unix:path=/nonexistent/bus", "slots", "--json"];
    let output = spsctl(&line).assert().code(3).get_output().clone();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["format"], 1);
    assert_eq!(document["error"]["name"], "Unreachable");
    assert_eq!(document["error"]["exit_code"], 3);
}

#[test]
fn closed_pipe_ends_quietly() {
    for line in [&["--help"][..], &["--bus", "unix:path=/nonexistent/bus", "slots", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("spsctl"))
            .args(line)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut complaints = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut complaints).unwrap();
        assert!(!complaints.contains("panicked") && !complaints.contains("standard output"), "{complaints}");
        let code = child.wait().unwrap().code();
        assert!(code == Some(0) || code == Some(3), "{code:?}");
    }
}

#[test]
fn completion_needs_no_bus() {
    for shell in ["bash", "zsh", "fish"] {
        let output = spsctl(&["completion", shell]).assert().code(0).get_output().clone();
        assert!(out(&output.stdout).contains("spsctl"), "{shell}");
    }
    let output = spsctl(&["completion", "bash", "--json"]).assert().code(0).get_output().clone();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["completion"]["shell"], "bash");
    // What is printed is what bash takes.
    let script = document["completion"]["script"].as_str().unwrap();
    Command::new("bash").args(["-n"]).write_stdin(script).assert().code(0);
}

// rows: J10 J12
#[test]
fn a_slot_must_be_named_and_nothing_else_is_guessed() {
    for verb in ["test", "upgrade", "activate", "deactivate", "verify", "delete", "notes"] {
        let output = spsctl(&[verb]).assert().code(2).get_output().clone();
        let text = out(&output.stderr);
        assert!(
            text.contains("required arguments were not provided") && text.contains("<SLOT>"),
            "{verb}: {text}"
        );
        let output = spsctl(&[verb, "0x1"]).assert().code(2).get_output().clone();
        assert!(out(&output.stderr).contains("<SLOT>"), "{verb}");
    }
}

// rows: A14
#[test]
fn the_way_without_the_web_interface_and_the_help_for_a_bad_day_are_named() {
    let help = out(&spsctl(&["upgrade", "--help"]).assert().code(0).get_output().stdout);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("works over SSH too, without the web interface"), "{help}");
    assert!(help.contains("docs/troubleshooting.md"), "{help}");
    let page = include_str!("../../docs/troubleshooting.md");
    for word in ["spsctl doctor", "journalctl -b -1", "spsctl revert", "spsctl upgrade N --again"] {
        assert!(page.contains(word), "{word} is not in docs/troubleshooting.md");
    }
}
