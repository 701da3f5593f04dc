//! The appliance as it ships, in QEMU with UEFI firmware: it starts, is upgraded, and comes back from an upgrade that fails.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a machine that does not do what it should fails the test here"
)]

use std::time::Duration;

use serde_json::Value;
use sps_images::appliance::{Overlays, put_program};
use system_tests::vm::appliance::Builder;
use system_tests::vm::direct::build_dirs;
use system_tests::vm::machine::{BOOT, Hardware, Machine};

/// Health checks, or a trial, on a busy machine.
const SETTLED: Duration = Duration::from_secs(300);
/// What the operator must be shown.
const ILLNESS: &str = "no address on nic1";

fn ill(overlays: &Overlays) -> anyhow::Result<()> {
    let check = format!("#!/bin/sh\necho {ILLNESS}\nexit 1\n");
    put_program(&overlays.root, "/usr/lib/sps/health-checks.d/20-network", &check)
}

/// The slot that runs, once the health checks have ended.
fn settled(machine: &mut Machine) -> Value {
    let command = "systemctl is-system-running --wait; spsctl status --json";
    let said = machine.run_within(command, SETTLED).unwrap().output;
    let json = &said[said.find('{').unwrap_or(0)..];
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// The status once the health checks have ended, with the firmware of this slot confirmed.
fn settled_in(machine: &mut Machine, slot: u32) -> Value {
    let now = settled(machine)["status"].take();
    let found = (&now["booted"], &now["confirmed"], &now["default"]);
    assert_eq!(found, (&slot.into(), &true.into(), &slot.into()), "{now:#}");
    now
}

/// Restarts, and waits for the next login prompt.
fn reboot(machine: &mut Machine) {
    // The answer may be lost with the machine.
    let _ = machine.run_within("systemctl reboot", Duration::from_secs(5));
    machine.wait(&["BdsDxe: starting"], BOOT).unwrap();
    machine.login().unwrap();
}

#[test]
fn an_appliance_is_upgraded_and_comes_back_from_what_fails() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: firmware from Debian needs root");
        return;
    }
    let dirs = build_dirs().unwrap();
    let work = dirs.work().unwrap();
    let builder = Builder::new(dirs, work.path()).unwrap();
    let first = builder.firmware("8.0.1", |_| Ok(())).unwrap();
    let second = builder.firmware("8.0.2", |_| Ok(())).unwrap();
    let third = builder.firmware("8.0.3", ill).unwrap();
    let disk = builder.disk(&first).unwrap();
    let hardware = Hardware::new(&disk).unwrap();
    let mut machine = hardware.power_on(&[&second.iso, &third.iso]).unwrap();
    let took = machine.login().unwrap();
    println!("login prompt after {:.1} s", took.as_secs_f64());
    let status = settled(&mut machine);
    println!("{}", machine.must("systemd-analyze time").unwrap());
    let failed = machine.must("systemctl --failed --no-legend --plain").unwrap();
    assert_eq!(failed, "", "failed units");
    assert_eq!(status["status"]["confirmed"], true, "{status:#}");
    assert_eq!(status["status"]["warnings"], Value::Array(Vec::new()));
    assert_eq!(status["slots"][0]["state"], "verified", "the recovery image");

    // What the operator sets belongs to the firmware that runs.
    let generation = "/data/config/$(sed 's/.*roothash=\\([0-9a-f]*\\).*/\\1/' /proc/cmdline)";
    machine.must(&format!("echo old >{generation}/setting; sync")).unwrap();
    let identity = machine.must("cat /etc/machine-id").unwrap();

    upgrade(&mut machine, "/dev/vdb");
    let now = settled_in(&mut machine, 2);
    println!("{}", machine.must("systemd-analyze time").unwrap());
    assert_eq!(now["last_upgrade"]["outcome"], "confirmed", "{now:#}");
    assert_eq!(machine.must("cat /etc/machine-id").unwrap(), identity);
    // The new firmware has a copy, and migrates it.
    assert_eq!(machine.must(&format!("cat {generation}/setting")).unwrap(), "old\n");
    machine.must(&format!("echo migrated >{generation}/setting; sync")).unwrap();

    // One that is ill: it is started once, and left.
    machine.must("spsctl delete 1").unwrap();
    upgrade(&mut machine, "/dev/vdc");
    machine.wait(&["BdsDxe: starting"], BOOT).unwrap();
    machine.login().unwrap();
    let now = settled_in(&mut machine, 2);
    assert_eq!(now["last_upgrade"]["outcome"], "failed", "{now:#}");
    let reason = now["last_upgrade"]["reason"].as_str().unwrap();
    assert!(reason.contains(ILLNESS), "{reason}");
    assert_eq!(machine.must(&format!("cat {generation}/setting")).unwrap(), "migrated\n");
    // What the firmware that failed has logged is there.
    let logged = machine.must("journalctl --no-pager -o cat -u sps-health.service").unwrap();
    assert!(logged.contains(ILLNESS), "{logged}");
}

/// Installs from a medium, tests, selects and restarts.
fn upgrade(machine: &mut Machine, medium: &str) {
    let installed = machine.json(&format!("spsctl install --json - <{medium}")).unwrap();
    let slot = installed["job"]["slot"].as_u64().unwrap_or_else(|| panic!("{installed:#}"));
    machine.must(&format!("spsctl test {slot}")).unwrap();
    machine.must(&format!("spsctl activate {slot} --message 'in a test'")).unwrap();
    reboot(machine);
}
