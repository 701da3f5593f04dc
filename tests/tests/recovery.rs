//! The console of the recovery image, on a private bus. In a machine: `cargo xtask vm 3 9`.
#![expect(clippy::unwrap_used, reason = "a broken test bench or machine fails here")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use slotd::domain::state::UpgradeOutcome;
use sps_base::recovery::Report;
use sps_base::slot::SlotId;
use sps_images::Built;
use sps_images::appliance::put_program;
use system_tests::bus::{Appliance, Layout};
use system_tests::client::spsctl;
use system_tests::firmware::Workshop;
use system_tests::loader::environment;

fn layout() -> Layout {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    Layout { keyring, slot_size: 24 << 20, ..Layout::default() }
}

fn bootable(version: &str) -> Built {
    let build = |workshop: &Workshop| {
        workshop.build_bootable(&workshop.spec(version, 2)?, &format!("boot-{version}.iso"))
    };
    Workshop::shared().unwrap().once(version, build).unwrap()
}

/// A console with a system directory of its own, where restarting ends the console.
fn console(appliance: &Appliance, more: &[&str]) -> Child {
    let root = appliance.path("root");
    let mark = appliance.path("ended");
    let stop = format!("#!/bin/sh\necho \"$@\" >{}\nkill $PPID\n", mark.display());
    put_program(&root, "systemctl", &stop).unwrap();
    Command::new(appliance.program("sps-recovery").unwrap())
        .args(["--bus", &appliance.address(), "--patience", "0"])
        .arg("--spsctl")
        .arg(appliance.program("spsctl").unwrap())
        .arg("--systemctl")
        .arg(root.join("systemctl"))
        .arg("--run")
        .arg(appliance.path("run/sps"))
        .arg("--root")
        .arg(&root)
        .arg("--logs")
        .arg(root.join("no-logs"))
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Types this, and gives what was said until the console ended.
fn typed(mut console: Child, input: &[u8]) -> String {
    let mut said = console.stdout.take().unwrap();
    let mut typing = console.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // It may end before all is typed.
        let _ = typing.write_all(&input);
    });
    let mut text = Vec::new();
    said.read_to_end(&mut text).unwrap();
    writer.join().unwrap();
    console.wait().unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// How the machine was ended.
fn ended(appliance: &Appliance) -> String {
    let words = fs::read_to_string(appliance.path("ended")).unwrap_or_default();
    words.split_whitespace().last().unwrap_or_default().to_owned()
}

/// A medium in the console's system directory.
fn put_in(appliance: &Appliance, name: &str, iso: &Path) {
    let root = appliance.path("root");
    for directory in [format!("sys/class/block/{name}"), "dev".to_owned()] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink(iso, root.join("dev").join(name)).unwrap();
}

#[test]
fn a_firmware_is_installed_from_a_medium_and_from_the_line() {
    let workshop = Workshop::shared().unwrap();
    let (first, second) = (workshop.sample("8.0.1", 2).unwrap(), workshop.sample("8.0.2", 2).unwrap());
    let appliance = Appliance::with(Layout { loader: true, ..layout() }).unwrap();
    put_in(&appliance, "sdb", &first.iso);
    let file = fs::read(&second.iso).unwrap();
    let mut input = b"nonsense\n3\n7\n\n3\n1\n\n\n".to_vec();
    input.extend(format!("4\n2\n{}\n", file.len()).bytes());
    input.extend(&file);
    input.extend(b"\n1\n9\n\n1\n2\n\n5\n\n8\n");
    let said = typed(console(&appliance, &[]), &input);
    for part in [
        "Nothing was put in order at this start",
        "Slot 1: not sound: empty\n",
        "A number from 1 to 9, please.",
        "That is none of them.",
        "Slot 1: 8.0.1, sound",
        "Send the file now",
        "Slot 2: 8.0.2, sound",
        "There is no slot \"9\"; there are 1, 2.",
        "The firmware's log cannot be read.",
    ] {
        assert!(said.contains(part), "{part:?} in:\n{said}");
    }
    assert_eq!(ended(&appliance), "reboot.target", "{said}");
    let slots = spsctl(&appliance, &["slots"]).json;
    for number in [1, 2] {
        assert_eq!(slots["slots"][number]["state"], "verified", "{slots:#}");
    }
}

#[test]
fn what_does_not_come_as_a_whole_is_refused_and_the_console_goes_on() {
    let workshop = Workshop::shared().unwrap();
    let file = fs::read(&workshop.sample("8.0.1", 2).unwrap().iso).unwrap();
    let appliance = Appliance::with(layout()).unwrap();
    let mut broken = file.clone();
    for byte in broken.iter_mut().skip(60_000).step_by(4096) {
        *byte ^= 1;
    }
    let mut input = format!("4\n0\n4\nx\n4\n1\nx\n\n4\n1\n{}\n", broken.len()).into_bytes();
    input.extend(&broken);
    let said = typed(console(&appliance, &[]), &input);
    assert!(said.contains("The file did not come as a whole, or was refused."), "{said}");
    assert!(said.contains("Choice: "), "{said}");
    assert!(!said.contains("sound,"), "{said}");
}

/// Starts the recovery image: slotboot, then slotd.
fn recover(appliance: &mut Appliance) -> Report {
    if appliance.slotd_pid().is_some() {
        appliance.stop_slotd().unwrap();
    }
    fs::write(appliance.path("cmdline"), "quiet").unwrap();
    let status = Command::new(appliance.program("static/slotboot").unwrap())
        .arg("--config")
        .arg(appliance.path("slotd.toml"))
        .arg("--cmdline")
        .arg(appliance.path("cmdline"))
        .arg("--run")
        .arg(appliance.path("run/sps"))
        .arg("recovery")
        .env_remove("JOURNAL_STREAM")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    appliance.start_slotd().unwrap();
    serde_json::from_slice(&fs::read(appliance.path("run/sps/recovery.json")).unwrap()).unwrap()
}

#[test]
fn a_failed_trial_is_recorded_and_the_default_is_started_a_few_times() {
    let mut appliance = Appliance::installed(layout(), &bootable("8.0.1").iso).unwrap();
    let new = bootable("8.0.2").iso;
    for words in
        [&["install", new.to_str().unwrap()][..], &["revert", "--slot", "2", "--reason", "in a test"]]
    {
        let done = spsctl(&appliance, words);
        assert_eq!(done.code, 0, "{}", done.errors);
    }
    // The loader starts it, fails, and has forgotten it.
    environment::set(&appliance.path("grubenv"), environment::ONE_SHOT, "").unwrap();
    appliance.lose_boot_image("sps-slot-1.efi").unwrap();
    let report = recover(&mut appliance);
    assert_eq!((report.starts, report.restarts.map(SlotId::get)), (1, Some(1)), "{report:?}");
    let state = appliance.state().unwrap().unwrap();
    assert_eq!(state.last_upgrade.unwrap().outcome, UpgradeOutcome::Failed);
    assert!(appliance.path("esp/EFI/Linux/sps-slot-1.efi").exists(), "what can be mended is mended");

    // Somebody who stays is believed by every console.
    let said = typed(console(&appliance, &[]), b"\n9\n");
    assert!(said.contains("Slot 1 (8.0.1) is sound and is started again in 15 s"), "{said}");
    assert!(said.contains("Last upgrade from 8.0.1 to 8.0.2: failed"), "{said}");
    assert_eq!(ended(&appliance), "poweroff.target", "{said}");
    let said = typed(console(&appliance, &["--grace", "60"]), b"");
    assert!(said.contains("Choice: "), "{said}");
    fs::remove_file(appliance.path("run/sps/recovery-stays")).unwrap();

    // With nobody there the machine restarts, but not for ever.
    for starts in 2..=3 {
        fs::remove_file(appliance.path("ended")).unwrap();
        assert_eq!(recover(&mut appliance).starts, starts);
        let mut silent = console(&appliance, &["--grace", "1"]);
        let typing = silent.stdin.take();
        let mut said = String::new();
        silent.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        silent.wait().unwrap();
        drop(typing);
        assert_eq!(ended(&appliance), "reboot.target", "{said}");
    }
    let report = recover(&mut appliance);
    assert_eq!((report.starts, report.restarts), (3, None), "{report:?}");
    assert!(report.why.contains("more than 3 times in a row"), "{report:?}");
    let said = typed(console(&appliance, &[]), b"");
    assert!(said.contains("Nothing was started by itself: recovery was started more than 3 times"), "{said}");
}

#[test]
fn without_slotd_the_page_still_comes_up() {
    let appliance = Appliance::without_slotd(layout()).unwrap();
    let said = typed(console(&appliance, &[]), b"1\n1\n\n8\n");
    assert!(said.contains("slotd does not answer"), "{said}");
    assert_eq!(ended(&appliance), "reboot.target", "{said}");
}
