//! Installs that succeed, and what others say of them.

use anyhow::Result;
use serde_json::json;
use sps_base::error::ErrorKind;

use super::console::Show;
use super::firmware::Shelf;
use super::machine::Machine;
use super::refusals::code;
use super::transcript::Transcript;

/// An appliance that has never run: fresh state, then the first firmware into slot 1.
pub(super) fn first(machine: &mut Machine, shelf: &Shelf, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("First start: private bus, real slotd, two empty slots in files");
    Transcript::say("spsctl is called with --bus unix:path=…/bus; it is left out below");
    machine.start_slotd()?;
    machine.console.spsctl("state reset --reason \"first installation\"")?;
    machine.console.spsctl("status")?;
    let status = &machine.console.json("status")?["status"];
    transcript.equal(&status["empty_slots"], &json!(2), "two empty slots, nothing runs from one");
    transcript.equal(&status["warnings"], &json!([]), "no warnings");

    transcript.heading("Install 8.0.1");
    let running = machine.console.start("install firmware-8.0.1.iso")?;
    let ran = machine.console.finish(running, Show::All)?;
    transcript.equal(&ran.code, &0, "exit code 0");
    check_slot(machine, transcript, 1, "8.0.1", "installed")?;
    let written = machine.newest_job()?["result"]["bytes_written"].as_u64().unwrap_or(0);
    let root = shelf.old.manifest.root.size;
    transcript
        .check(written > root, format!("{written} bytes written: the root of {root} bytes, and the rest"));
    let notes = machine.console.spsctl("notes 1")?;
    transcript.check(notes.stdout.starts_with("# Version 8.0.1\n"), "the upgrade notes come from the slot");
    verify(machine, transcript, 1, "")?;
    verify(machine, transcript, 1, " --full")?;
    machine.console.spsctl("slots")?;
    check_slot(machine, transcript, 1, "8.0.1", "full")
}

/// Slot 1 runs; the second firmware goes into slot 2, and stock tools judge it.
pub(super) fn second(machine: &mut Machine, shelf: &Shelf, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("Boot slot 1 through the simulated loader, confirm it, install 8.0.2");
    machine.console.tool("grub-editenv grubenv set saved_entry=sps-slot-1")?;
    let report = machine.reboot()?;
    transcript.equal(&report.running(), &Some(1), "the loader starts slot 1, whose root verifies");
    let ran = machine.console.spsctl("install firmware-8.0.2.iso")?;
    transcript.equal(
        &ran.code,
        &code(ErrorKind::NotConfirmed),
        "exit code 23: the running firmware is not confirmed",
    );
    transcript.equal(&machine.health("overlay")?, &0, "its health checks pass");
    machine.console.spsctl("status")?;
    let status = &machine.console.json("status")?["status"];
    transcript.equal(&status["booted"], &json!(1), "slot 1 runs");
    transcript.equal(&status["security_epoch"], &json!(2), "the epoch floor is that of the running firmware");
    let ran = machine.console.spsctl("install firmware-8.0.2.iso")?;
    transcript.equal(&ran.code, &0, "exit code 0");
    check_slot(machine, transcript, 2, "8.0.2", "installed")?;
    machine.console.spsctl("slots")?;
    judge(machine, shelf, transcript)
}

/// Slot 2 as `veritysetup` and `cmp` see it.
pub(super) fn judge(machine: &Machine, shelf: &Shelf, transcript: &mut Transcript) -> Result<()> {
    let root = &shelf.new.manifest.root;
    let ran = machine.console.tool(&format!(
        "veritysetup verify slot-2 slot-2 {} --hash-offset={}",
        root.verity.root_hash, root.size
    ))?;
    transcript.check(ran.code == 0, "stock veritysetup agrees with every block of slot 2");
    let ran = machine.console.tool("cmp boot.efi esp/EFI/Linux/sps-slot-2.efi")?;
    transcript.check(ran.code == 0, "the boot image on the ESP is boot.efi of the ISO, byte for byte");
    Ok(())
}

/// A check at rest that must find the slot healthy.
pub(super) fn verify(machine: &Machine, transcript: &mut Transcript, slot: u64, option: &str) -> Result<()> {
    let ran = machine.console.spsctl(&format!("verify {slot}{option}"))?;
    let result = &machine.newest_job()?["result"];
    let healthy = ran.code == 0 && result["healthy"] == json!(true);
    let checked = &result["blocks_checked"];
    transcript.check(healthy, format!("slot {slot} is healthy, {checked} blocks checked"));
    Ok(())
}

/// The slot is verified, of this version, and last checked like this.
pub(super) fn check_slot(
    machine: &Machine,
    transcript: &mut Transcript,
    slot: u64,
    version: &str,
    how: &str,
) -> Result<()> {
    let found = machine.slot(slot)?;
    let found = ["state", "version", "verified_how"].map(|key| found[key].as_str().unwrap_or("").to_owned());
    let expected = ["verified", version, how].map(str::to_owned);
    transcript.equal(&found, &expected, format!("slot {slot}: verified, {version}, {how}"));
    Ok(())
}

/// What must hold when all is done.
pub(super) fn end(machine: &mut Machine, slot_1: &str, transcript: &mut Transcript) -> Result<()> {
    transcript.heading("After all that");
    machine.console.spsctl("slots")?;
    check_slot(machine, transcript, 2, "8.0.2", "full")?;
    let found = machine.fingerprint()?;
    transcript
        .check(found.slot_1() == slot_1, format!("slot 1, which runs, was never written: sha256 {slot_1}"));
    machine.kill_slotd()
}
