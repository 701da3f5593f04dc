//! The way forward, and every way in which a trial comes back by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use system_tests::bus::{Appliance, Layout};
use system_tests::loader::{Cut, Mishaps, Outcome};

use crate::{appliance, cut, firmware, install, layout, locked, select, selected, upgraded, with, with_both};

/// What a test that passes says (resolution 41).
const SUMMARY: &str = "Version check started\nVersion check finished\n\
    Storage check started\nStorage check finished\n\
    Configuration check started\nConfiguration check finished\n\
    Tainted check started\nTainted check finished\n\
    HA check started\nHA check finished";

// rows: A7 A8 A9 A11 J7 J8 J13 J14
#[tokio::test]
async fn an_upgrade_is_tested_selected_tried_and_confirmed() {
    let (mut appliance, client) = appliance().await;
    assert_eq!(client.manager().await.text("Loader"), "grub");
    assert!(!client.last_upgrade().await.has("outcome"));
    install(&client, &firmware("8.0.2"), 2).await;
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));

    let untested = client.activate(2, "new release").await.unwrap_err();
    assert_eq!(untested.name, "TestRequired", "{}", untested.message);
    let test = client.tested(2, &[]).await;
    assert_eq!(test.ended(), ("done".to_owned(), String::new()), "{:?}", test.error());
    let result = test.result();
    assert_eq!((result.get::<i32>("exit_code"), result.text("test_summary")), (0, SUMMARY.to_owned()));
    let checks: Vec<(String, String, String, String)> = result.get("checks");
    let names: Vec<&str> = checks.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["Version", "Storage", "Configuration", "Tainted", "HA"]);

    // Activating is not rebooting.
    client.activate(2, "new release").await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 2, false, true, 0));
    assert!(client.slot(2).await.get::<bool>("AfterReboot") && client.slot(1).await.get::<bool>("Current"));
    let last = client.last_upgrade().await;
    for (name, value) in [
        ("outcome", "selected"),
        ("kind", "upgrade"),
        ("version", "8.0.2"),
        ("from_version", "8.0.1"),
        ("message", "new release"),
        ("reason", ""),
    ] {
        assert_eq!(last.text(name), value, "{name}");
    }
    let name = client.connection.unique_name().unwrap();
    assert_eq!(last.text("who"), format!("user 0 ({name})"));
    assert_eq!(appliance.grubenv("next_entry").unwrap(), "sps-slot-2");

    let report = appliance.reboot().unwrap();
    assert_eq!((report.running(), report.starts[0].chosen_by.as_str()), (Some(2), "next_entry"));
    assert!(report.starts[0].trial && report.starts[0].verified == [2], "{report:?}");
    assert_eq!(client.selection().await, (2, 1, 1, true, false, 1));
    assert_eq!(client.outcome().await, ("trial".into(), String::new()));
    assert!(client.warnings().await.contains("trial of slot 2"), "{}", client.warnings().await);

    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    assert_eq!(client.outcome().await, ("confirmed".into(), String::new()));
    assert_eq!(client.warnings().await, "");
    assert_eq!(client.slot(0).await.text("Version"), "8.0.2");
    for _ in 0..2 {
        let report = appliance.reboot().unwrap();
        assert_eq!((report.running(), report.starts[0].chosen_by.as_str()), (Some(2), "saved_entry"));
        assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    }
    assert_eq!(client.outcome().await.0, "confirmed");
}

// rows: A11 J11 J17
#[tokio::test]
async fn a_rejected_trial_goes_back_and_is_refused_until_it_is_wanted_again() {
    let (mut appliance, client) = selected().await;
    assert_eq!(client.reject("no").await.unwrap_err().name, "InvalidArgument");
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    client.reject("the web interface does not answer").await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
    let failed = ("failed".to_owned(), "the web interface does not answer".to_owned());
    assert_eq!(client.outcome().await, failed);

    let test = client.tested(2, &[]).await;
    assert_eq!(test.ended(), ("failed".into(), "TestFailed".into()));
    let result = test.result();
    assert_eq!(result.get::<i32>("exit_code"), 1);
    assert_eq!(result.text("test_summary"), "Version check started\nVersion check failed");
    let checks: Vec<(String, String, String, String)> = result.get("checks");
    assert!(checks[0].2.contains("the web interface does not answer"), "{checks:?}");
    assert_eq!(client.activate(2, "").await.unwrap_err().name, "TestRequired");

    let again = client.tested(2, &[("again", true.into())]).await;
    assert_eq!(again.result().get::<i32>("exit_code"), 0, "{again:?}");
    client.activate(2, "").await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    client.confirm().await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    // It has proven itself: nobody remembers that it failed.
    assert!(appliance.state().unwrap().unwrap().refused.is_empty());
}

#[tokio::test]
async fn power_cut_before_slotboot_ends_the_trial_without_blame() {
    let (mut appliance, client) = selected().await;
    let report = appliance.restart_with(&cut(Cut::BeforeSlotboot)).unwrap();
    assert_eq!((report.outcome, report.entries()), (Outcome::PowerCut, vec!["sps-slot-2"]));
    assert_eq!(appliance.power_on(&Mishaps::default()).unwrap().running(), Some(1));
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    let (outcome, reason) = client.outcome().await;
    assert!(outcome == "failed" && reason.contains("it was not started"), "{outcome}: {reason}");
    // Nothing is known against it.
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
}

#[tokio::test]
async fn power_cut_after_slotboot_or_before_the_confirmation_ends_the_trial() {
    for running in [false, true] {
        let (mut appliance, client) = selected().await;
        if running {
            assert_eq!(appliance.restart().unwrap().running(), Some(2));
            appliance.power_cut().unwrap();
        } else {
            let report = appliance.restart_with(&cut(Cut::AfterSlotboot)).unwrap();
            assert_eq!((report.outcome, report.codes()), (Outcome::PowerCut, vec![Some(0)]));
        }
        assert_eq!(appliance.power_on(&Mishaps::default()).unwrap().running(), Some(1));
        assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
        let (outcome, reason) = client.outcome().await;
        assert!(outcome == "failed" && reason.contains("without a word from it"), "{outcome}: {reason}");
        let test = client.tested(2, &[]).await;
        assert_eq!(test.ended(), ("failed".into(), "TestFailed".into()));
        let again = client.tested(2, &[("again", true.into())]).await;
        assert_eq!(again.result().get::<i32>("exit_code"), 0, "{again:?}");
    }
}

#[tokio::test]
async fn power_cut_after_the_confirmation_changes_nothing() {
    let (mut appliance, client) = upgraded().await;
    assert_eq!(appliance.restart().unwrap().running(), Some(2));
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    assert_eq!(client.outcome().await.0, "confirmed");
}

#[tokio::test]
async fn a_trial_whose_root_is_damaged_panics_and_the_default_comes_back() {
    let (mut appliance, client) = selected().await;
    appliance.power_cut().unwrap();
    crate::flip(&appliance.path("slot-2"), 1 << 20);
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.outcome, report.codes()), (Outcome::Panic, vec![Some(0)]), "{report:?}");
    assert_eq!(appliance.power_on(&Mishaps::default()).unwrap().running(), Some(1));
    assert_eq!(client.outcome().await.0, "failed");
    let test = client.tested(2, &[("again", true.into())]).await;
    assert_eq!(test.ended(), ("failed".into(), "SlotBad".into()));
    assert_eq!(client.activate(2, "").await.unwrap_err().name, "SlotBad");
}

#[tokio::test]
async fn a_trial_whose_boot_image_is_garbage_ends_in_recovery_then_in_the_default() {
    let (mut appliance, client) = selected().await;
    appliance.power_cut().unwrap();
    crate::flip(&appliance.path("esp/EFI/Linux/sps-slot-2.efi"), 0);
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.outcome, report.entries()), (Outcome::Recovery, vec!["sps-slot-2"]));
    assert!(report.reason.contains("begin with MZ"), "{}", report.reason);
    assert_eq!(client.manager().await.get::<u32>("Booted"), 0);
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    let (outcome, reason) = client.outcome().await;
    assert!(outcome == "failed" && reason.contains("the loader could not start it"), "{outcome}: {reason}");
    // Recovery's slotd has put it back from the slot.
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
}

#[tokio::test]
async fn a_selection_can_be_taken_back() {
    let (mut appliance, client) = selected().await;
    let other = client.deactivate(1).await.unwrap_err();
    assert_eq!(other.name, "InvalidArgument", "{}", other.message);
    client.deactivate(2).await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    assert_eq!(client.outcome().await, ("withdrawn".into(), String::new()));
    assert_eq!(client.deactivate(2).await.unwrap_err().name, "InvalidArgument");
    assert_eq!(client.activate(2, "").await.unwrap_err().name, "TestRequired");
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.outcome().await.0, "withdrawn");
    // In the trial it is too late.
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    assert_eq!(client.deactivate(2).await.unwrap_err().name, "InvalidArgument");
}

#[tokio::test]
async fn a_loader_that_cannot_forget_starts_a_trial_twice_and_slotboot_ends_it() {
    let (mut appliance, client) = selected().await;
    appliance.power_cut().unwrap();
    let first = appliance.power_on(&Mishaps { cut: Some(Cut::AfterSlotboot), ..locked() }).unwrap();
    assert_eq!((first.outcome, first.entries()), (Outcome::PowerCut, vec!["sps-slot-2"]));
    assert_eq!(appliance.grubenv("next_entry").unwrap(), "sps-slot-2");
    let second = appliance.power_on(&locked()).unwrap();
    assert_eq!(second.entries(), ["sps-slot-2", "sps-slot-1"]);
    assert_eq!(second.codes(), [Some(10), Some(0)]);
    assert_eq!(second.running(), Some(1));
    let (outcome, reason) = client.outcome().await;
    assert!(outcome == "failed" && reason.contains("started once"), "{outcome}: {reason}");
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
}

#[tokio::test]
async fn a_trial_that_runs_makes_a_loader_forget_it() {
    let (mut appliance, client) = selected().await;
    assert_eq!(appliance.restart_with(&locked()).unwrap().running(), Some(2));
    assert_eq!(client.selection().await, (2, 1, 1, true, false, 1));
    assert_eq!(appliance.grubenv("next_entry").unwrap(), "");
    assert_eq!(appliance.restart_with(&locked()).unwrap().running(), Some(1));
}

// rows: A8
#[tokio::test]
async fn a_test_is_void_after_a_restart_or_a_change() {
    let (mut appliance, client) = with_both().await;
    assert_eq!(client.tested(2, &[]).await.result().get::<i32>("exit_code"), 0);
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.activate(2, "").await.unwrap_err().name, "TestRequired");

    let running = firmware("8.0.1").manifest.root.verity.root_hash.to_string();
    crate::write_head(&appliance, &running, "000001");
    assert_eq!(client.tested(2, &[]).await.result().get::<i32>("exit_code"), 0);
    crate::write_head(&appliance, &running, "000002");
    let changed = client.activate(2, "").await.unwrap_err();
    assert_eq!(changed.name, "TestRequired");
    assert!(changed.message.contains("configuration changed"), "{}", changed.message);
    select(&client, 2).await;
    // Another firmware in the slot is another subject.
    client.deactivate(2).await.unwrap();
    assert_eq!(client.tested(2, &[]).await.result().get::<i32>("exit_code"), 0);
    client.delete(2).await.unwrap();
    install(&client, &firmware("8.0.3"), 2).await;
    let replaced = client.activate(2, "").await.unwrap_err();
    assert_eq!(replaced.name, "TestRequired", "{}", replaced.message);
}

#[tokio::test]
async fn a_crash_of_slotd_changes_nothing() {
    let (mut appliance, client) = selected().await;
    let crash = async |appliance: &mut Appliance| {
        let before = (client.selection().await, client.outcome().await);
        appliance.kill_slotd().unwrap();
        appliance.start_slotd().unwrap();
        assert_eq!((client.selection().await, client.outcome().await), before);
    };
    crash(&mut appliance).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    crash(&mut appliance).await;
    client.confirm().await.unwrap();
    crash(&mut appliance).await;
    client.revert("back", &[]).await.unwrap();
    crash(&mut appliance).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.reject("no").await.unwrap();
    crash(&mut appliance).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
}

#[tokio::test]
async fn with_three_slots_a_later_selection_takes_the_place_of_an_earlier_one() {
    let (mut appliance, client) = with(Layout { slots: 3, ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    install(&client, &firmware("8.0.3"), 3).await;
    select(&client, 2).await;
    select(&client, 3).await;
    assert_eq!(client.last_upgrade().await.get::<u32>("slot"), 3);
    assert_eq!(client.deactivate(2).await.unwrap_err().name, "InvalidArgument");
    assert_eq!(client.selection().await.2, 3);
    assert_eq!(appliance.reboot().unwrap().running(), Some(3));
    client.confirm().await.unwrap();
    // What was confirmed before comes before what is newer.
    assert_eq!(client.selection().await, (3, 3, 3, false, true, 1));
    // Reject ends a trial and nothing else.
    assert_eq!(client.reject("late").await.unwrap_err().name, "InvalidArgument");
}

// rows: A8
#[tokio::test]
async fn a_test_is_good_for_fifteen_minutes() {
    let directories = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut libraries = directories.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
    let library = libraries.find(|library| library.exists()).expect("libfaketime (package faketime)");
    let clock = tempfile::NamedTempFile::new().unwrap();
    fs::write(clock.path(), "+0").unwrap();
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let (_appliance, client) = with(Layout { environment, ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    client.tested(2, &[]).await;
    fs::write(clock.path(), "+14m").unwrap();
    client.activate(2, "").await.unwrap();
    client.deactivate(2).await.unwrap();
    client.tested(2, &[]).await;
    fs::write(clock.path(), "+30m").unwrap();
    let late = client.activate(2, "").await.unwrap_err();
    assert_eq!(late.name, "TestRequired");
    assert!(late.message.contains("in the last 15 minutes"), "{}", late.message);
}

/// Without the right to write what its mode forbids, for slotd and for everything that the loader starts.
const OBEDIENT: &[&str] = &["setpriv", "--bounding-set=-dac_override,-dac_read_search"];

#[tokio::test]
async fn settings_that_cannot_be_written_stop_no_start_and_nothing_is_called_confirmed() {
    let (mut appliance, client) = with(Layout { launcher: OBEDIENT, ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    select(&client, 2).await;
    let block = appliance.path("grubenv");
    fs::set_permissions(&block, fs::Permissions::from_mode(0o444)).unwrap();
    let refused = client.deactivate(2).await.unwrap_err();
    assert!(refused.name == "Device" && refused.message.contains("grubenv"), "{refused:?}");
    assert_eq!(client.selection().await, (1, 1, 2, false, true, 0));

    for start in 1..=6 {
        let report = appliance.restart_with(&locked()).unwrap();
        assert_eq!((report.running(), report.entries()), (Some(2), vec!["sps-slot-2"]), "{start}");
        assert_eq!(client.manager().await.get::<u32>("Default"), 1);
        assert!(!client.manager().await.get::<bool>("Confirmed"), "{start}");
        assert_eq!(appliance.grubenv("next_entry").unwrap(), "sps-slot-2");
    }
    assert_eq!(client.outcome().await.0, "failed");
    assert!(client.warnings().await.contains("not the default and no trial"), "{}", client.warnings().await);
    // As soon as the loader obeys again, so does everything else.
    fs::set_permissions(&block, fs::Permissions::from_mode(0o644)).unwrap();
    let report = appliance.reboot().unwrap();
    assert_eq!((report.running(), report.entries()), (Some(1), vec!["sps-slot-2", "sps-slot-1"]));
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
}

#[tokio::test]
async fn a_confirmation_whose_default_cannot_be_written_is_completed_later() {
    let (mut appliance, client) = with(Layout { launcher: OBEDIENT, ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    let block = appliance.path("grubenv");
    fs::set_permissions(&block, fs::Permissions::from_mode(0o444)).unwrap();
    let refused = client.confirm().await.unwrap_err();
    assert!(refused.name == "Device" && refused.message.contains("grubenv"), "{refused:?}");
    assert_eq!(client.manager().await.get::<u32>("Default"), 1);
    assert!(!client.manager().await.get::<bool>("Confirmed"));
    fs::set_permissions(&block, fs::Permissions::from_mode(0o644)).unwrap();
    // Its checks had passed, so it becomes the default whichever firmware runs next.
    assert_eq!(appliance.restart().unwrap().running(), Some(1));
    assert_eq!(client.manager().await.get::<u32>("Default"), 2);
    assert_eq!(client.outcome().await.0, "confirmed");
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
}

#[tokio::test]
async fn a_trial_without_keys_cannot_be_confirmed_and_ends_at_the_next_start() {
    let (mut appliance, client) = selected().await;
    let config = appliance.path("slotd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let keyring = text.lines().find(|line| line.starts_with("keyring")).unwrap();
    let nowhere = format!("keyring = '{}'", appliance.path("nowhere").display());
    fs::write(&config, text.replace(keyring, &nowhere)).unwrap();
    let report = appliance.reboot().unwrap();
    assert_eq!((report.running(), report.starts[0].trial), (Some(2), false));
    assert_eq!(client.selection().await, (0, 1, 1, false, false, 0));
    let (outcome, reason) = client.outcome().await;
    assert!(outcome == "failed" && reason.contains("signature is not accepted"), "{outcome}: {reason}");
    assert!(client.warnings().await.contains("nothing can be trusted"), "{}", client.warnings().await);
    assert_eq!(client.confirm().await.unwrap_err().name, "InvalidArgument");
    fs::write(&config, &text).unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    assert_eq!(client.outcome().await, (outcome, reason));
}
