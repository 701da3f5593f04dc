//! The simulated loader itself: what a slotboot that errs makes of a start.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use system_tests::bus::Appliance;
use system_tests::loader::{Machine, Mishaps, Outcome, Report, SlotFile, start};

use crate::with_both;

/// One start with this shell script for slotboot; `$6` is where it leaves what it has found.
fn with_script(appliance: &Appliance, script: &str) -> Report {
    let slotboot = appliance.path("script");
    fs::write(&slotboot, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&slotboot, fs::Permissions::from_mode(0o755)).unwrap();
    let slot = |number: u32| SlotFile { number, file: appliance.path(&format!("slot-{number}")) };
    let machine = Machine {
        environment: appliance.path("grubenv"),
        esp: appliance.path("esp"),
        slots: vec![slot(1), slot(2)],
        slotboot,
        config: appliance.path("slotd.toml"),
        run: appliance.path("run"),
    };
    start(&machine, &Mishaps::default()).unwrap().0
}

#[tokio::test]
async fn only_a_root_that_verifies_behind_the_link_is_started() {
    let (mut appliance, _client) = with_both().await;
    appliance.power_cut().unwrap();
    let link = |slot: u32| {
        format!("mkdir -p $6; ln -s {} $6/root", appliance.path(&format!("slot-{slot}")).display())
    };
    let right = with_script(&appliance, &link(1));
    assert_eq!((right.running(), &right.starts[0].verified), (Some(1), &vec![1]), "{right:?}");
    let wrong = with_script(&appliance, &link(2));
    assert_eq!((wrong.outcome, wrong.running()), (Outcome::Panic, None), "{wrong:?}");
    assert!(wrong.reason.contains("Some(2) does not verify; those do: [1]"), "{}", wrong.reason);
    let none = with_script(&appliance, "exit 0");
    assert_eq!(none.outcome, Outcome::Panic, "{none:?}");
}

#[tokio::test]
async fn a_slotboot_that_fails_or_never_ends_it_leads_to_recovery() {
    let (mut appliance, _client) = with_both().await;
    appliance.power_cut().unwrap();
    let fails = with_script(&appliance, "echo broken >&2; exit 3");
    assert_eq!((fails.outcome, fails.codes()), (Outcome::Recovery, vec![Some(3); 3]));
    assert!(fails.reason.contains("broken"), "{}", fails.reason);
    let again = with_script(&appliance, "exit 10");
    assert_eq!((again.outcome, again.codes()), (Outcome::Recovery, vec![Some(10); 6]));
}
