//! The program against a slotd that plays a part, over a private bus.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod choose;
mod fake;
mod https;
mod jobs;
mod url;

use std::process::{Command, Output, Stdio};

use fake::Stage;
use serde_json::Value;

fn spsctl(stage: &Stage, line: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("spsctl"));
    command.args(["--bus", &stage.address]).args(line).stdin(Stdio::null());
    for name in ["https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

fn run(stage: &Stage, line: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = spsctl(stage, line).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn run_json(stage: &Stage, line: &[&str]) -> (Option<i32>, Value) {
    let (code, stdout, _) = run(stage, &[line, &["--json"]].concat());
    (code, serde_json::from_str(&stdout).unwrap())
}
