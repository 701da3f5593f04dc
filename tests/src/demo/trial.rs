//! Choosing a firmware: tested, tried for one start, confirmed; refused by itself; failing and coming back; reverted.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sps_base::error::ErrorKind;

use super::firmware::{ILL, ILLNESS, REFUSAL, Shelf};
use super::machine::Machine;
use super::refusals::code;
use super::transcript::Transcript;

/// 8.0.1 runs from slot 1; 8.0.2 in slot 2 takes over.
pub(super) fn upgrade(machine: &mut Machine, shelf: &Shelf, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("Upgrade to 8.0.2: tested, tried for one start, confirmed");
    // The configuration's own program comes later; this is what it leaves.
    let generation = machine.path("configuration").join(shelf.old.manifest.root.verity.root_hash.to_string());
    fs::create_dir_all(&generation)?;
    fs::write(generation.join("HEAD"), "000017\n")?;
    let report = machine.power_on()?;
    transcript.equal(&report.running(), &Some(1), "slot 1 runs");
    transcript.equal(&machine.health("overlay")?, &0, "and is healthy");
    let ran = machine.console.spsctl("activate 2")?;
    transcript.equal(&ran.code, &code(ErrorKind::TestRequired), "exit code 25: no test, no upgrade");
    let ran = machine.console.spsctl("test 2")?;
    transcript.equal(&ran.code, &0, "the test passes");
    let result = &machine.newest_job()?["result"];
    let names = names_of(result);
    let expected = ["Version", "Storage", "Configuration", "Tainted", "10-memory", "HA"];
    transcript.equal(&names, &expected.map(str::to_owned).to_vec(), "its own program ran, from its own root");
    let summary = result["test_summary"].as_str().unwrap_or_default();
    transcript
        .check(summary.ends_with("HA check started\nHA check finished"), "and the summary is as documented");
    let ran = machine.console.spsctl("upgrade 2 --message \"maintenance window\"")?;
    transcript.equal(&ran.code, &0, "slot 2 is selected");
    let status = machine.status()?;
    transcript.equal(
        &(&status["default"], &status["after_reboot"]),
        &(&json!(1), &json!(2)),
        "for one start: the default stays",
    );

    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(2), "slot 2 runs");
    let status = machine.status()?;
    transcript.equal(&(&status["trial"], &status["confirmed"]), &(&json!(true), &json!(false)), "on trial");
    transcript.equal(&machine.health("overlay")?, &0, "its health checks pass");
    machine.console.spsctl("status")?;
    confirmed(machine, transcript, 2)?;
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(2), "and runs again after the next start");
    Ok(())
}

/// The earlier firmware comes back, with its own configuration.
pub(super) fn revert(machine: &mut Machine, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("Revert to 8.0.1, which starts with its own configuration");
    machine.health("overlay")?;
    let ran = machine.console.spsctl("revert --reason \"the new one is too loud\"")?;
    transcript.equal(&ran.code, &code(ErrorKind::InvalidArgument), "not without knowing what comes back");
    let date = machine.slot(1)?["configuration"].as_str().unwrap_or_default().to_owned();
    let day = date.split('T').next().unwrap_or_default();
    transcript.check(!day.is_empty() && ran.stderr.contains(day), format!("its date is named: {day}"));
    let ran = machine
        .console
        .spsctl(&format!("revert --reason \"the new one is too loud\" --accept-config {day}"))?;
    transcript.equal(&ran.code, &0, "slot 1 is selected");
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(1), "slot 1 runs");
    transcript.equal(&machine.health("overlay")?, &0, "its health checks pass");
    confirmed(machine, transcript, 1)
}

/// A firmware whose own check program says no, before anything is selected.
pub(super) fn refused_by_itself(machine: &mut Machine, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("8.0.3 refuses to take over, with its own words");
    let ran = machine.console.spsctl("install firmware-8.0.3.iso")?;
    transcript.equal(&ran.code, &0, "installed over the fallback, as two slots have it");
    transcript.equal(&machine.slot(2)?["version"], &json!("8.0.3"), "slot 2 holds it");
    let ran = machine.console.spsctl("upgrade 2")?;
    transcript.equal(&ran.code, &code(ErrorKind::TestFailed), "exit code 24, TestFailed");
    transcript.check(ran.said().contains(REFUSAL), "the operator is shown its message");
    transcript.check(ran.said().contains("Archive the logs"), "and what to do");
    let status = machine.status()?;
    transcript.equal(&status["after_reboot"], &json!(1), "nothing is selected");
    Ok(())
}

/// A firmware that starts and is not healthy comes back by itself.
pub(super) fn unhealthy(machine: &mut Machine, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("8.0.4 starts, is not healthy, and the old firmware comes back by itself");
    let ran = machine.console.spsctl("install firmware-8.0.4.iso")?;
    transcript.equal(&ran.code, &0, "installed");
    let ran = machine.console.spsctl("upgrade 2")?;
    transcript.equal(&ran.code, &0, "its test passes");
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(2), "slot 2 runs, on trial");
    transcript.check(machine.health(ILL)? != 0, "its health check fails; its unit reboots");
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(1), "slot 1 runs");
    machine.health("overlay")?;
    machine.console.spsctl("status")?;
    let last = last_upgrade(machine)?;
    transcript.equal(&last["outcome"], &json!("failed"), "the upgrade has failed");
    let reason = last["reason"].as_str().unwrap_or_default();
    transcript.check(
        reason.contains(ILLNESS) || reason.contains("20-network"),
        format!("and why is known: {reason}"),
    );
    let ran = machine.console.spsctl("upgrade 2")?;
    transcript.equal(&ran.code, &code(ErrorKind::TestFailed), "it is not tried again unasked");
    Ok(())
}

/// Power goes in the middle of a trial.
pub(super) fn power_cut(machine: &mut Machine, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("Power goes in the middle of a trial");
    let ran = machine.console.spsctl("upgrade 2 --again")?;
    transcript.equal(&ran.code, &0, "once more, because it was asked for");
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(2), "slot 2 runs, on trial");
    Transcript::say("power cut");
    machine.kill_slotd()?;
    let report = machine.power_on()?;
    transcript.equal(&report.running(), &Some(1), "slot 1 runs");
    let last = last_upgrade(machine)?;
    transcript.equal(&last["outcome"], &json!("failed"), "the upgrade has failed");
    let reason = last["reason"].as_str().unwrap_or_default();
    transcript.check(!reason.is_empty(), format!("and why is known: {reason}"));
    machine.console.spsctl("slots")?;
    machine.kill_slotd()
}

fn confirmed(machine: &Machine, transcript: &mut Transcript, slot: u64) -> Result<()> {
    let status = machine.status()?;
    transcript.equal(
        &(&status["default"], &status["confirmed"], &last_upgrade(machine)?["outcome"]),
        &(&json!(slot), &json!(true), &json!("confirmed")),
        format!("slot {slot} is confirmed and the default"),
    );
    Ok(())
}

fn last_upgrade(machine: &Machine) -> Result<Value> {
    machine.status()?.get_mut("last_upgrade").map(Value::take).context("no last upgrade")
}

fn names_of(result: &Value) -> Vec<String> {
    let checks = result["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    checks
        .iter()
        .map(|check| check["name"].as_str().or(check[0].as_str()).unwrap_or_default().to_owned())
        .collect()
}
