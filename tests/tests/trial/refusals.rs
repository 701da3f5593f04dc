//! What may not be done, and what the refusal says.

use system_tests::bus::Layout;
use system_tests::client::Client;
use system_tests::firmware::Workshop;
use system_tests::upgrade::Selection;

use crate::{
    appliance, firmware, install, layout, pick, select, selected, special, upgraded, with, with_both,
};

// rows: A7 J9 J15
#[tokio::test]
async fn an_empty_slot_can_be_neither_tested_nor_selected() {
    let (_appliance, client) = appliance().await;
    for refusal in [client.test(2, &[]).await.map(drop), client.activate(2, "").await] {
        let refusal = refusal.unwrap_err();
        assert_eq!(
            (refusal.name.as_str(), refusal.message.as_str()),
            ("SlotEmpty", "slot 2 holds no firmware")
        );
    }
    assert_eq!(client.revert("back", &[]).await.unwrap_err().name, "SlotEmpty");
    assert_eq!(client.revert("back", &[("slot", 2_u32.into())]).await.unwrap_err().name, "SlotEmpty");
    let unknown = client.revert("back", &[("slot", 7_u32.into())]).await.unwrap_err();
    assert_eq!(unknown.name, "InvalidArgument", "{}", unknown.message);
    // Nor is there anything to test in slot 0.
    assert_eq!(client.test(0, &[]).await.unwrap_err().name, "InvalidArgument");
    assert_eq!(client.activate(0, "").await.unwrap_err().name, "InvalidArgument");
}

// rows: J13 J16
#[tokio::test]
async fn activating_takes_a_message_that_may_be_empty_and_not_too_long() {
    let (appliance, client) = with_both().await;
    client.tested(2, &[]).await;
    let slot = "/org/spsagent/slots1/slot/2";
    let missing = std::process::Command::new("gdbus")
        .args(["call", "--address", &appliance.address(), "--dest", "org.spsagent.Slots1"])
        .args(["--object-path", slot, "--method", "org.spsagent.Slots1.Slot.Activate"])
        .output()
        .unwrap();
    assert!(!missing.status.success(), "{missing:?}");
    assert_eq!(client.selection().await.2, 1);
    let long = client.activate(2, &"x".repeat(1025)).await.unwrap_err();
    assert_eq!(long.name, "InvalidArgument", "{}", long.message);
    let control = client.activate(2, "a\nb\u{7}").await.unwrap_err();
    assert_eq!(control.name, "InvalidArgument", "{}", control.message);
    client.activate(2, &"x".repeat(1024)).await.unwrap();
    client.deactivate(2).await.unwrap();
    client.tested(2, &[]).await;
    client.activate(2, "").await.unwrap();
    assert_eq!(client.last_upgrade().await.text("message"), "");
}

// rows: J13 J18
#[tokio::test]
async fn where_a_message_is_required_none_is_selected_without() {
    let layout = Layout { require_message: true, ..layout() };
    let (_appliance, client) = with(layout, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    let test = client.tested(2, &[]).await;
    assert_eq!(test.text("State"), "done", "{test:?}");
    for message in ["", "  "] {
        let refusal = client.activate(2, message).await.unwrap_err();
        assert_eq!(refusal.name, "InvalidArgument", "{}", refusal.message);
        assert!(refusal.message.contains("argument message"), "{}", refusal.message);
    }
    client.activate(2, "ticket 4711").await.unwrap();
    assert_eq!(client.last_upgrade().await.text("message"), "ticket 4711");
}

#[tokio::test]
async fn the_running_firmware_may_be_tested_and_not_selected() {
    let (_appliance, client) = with_both().await;
    let test = client.tested(1, &[]).await;
    assert_eq!(test.result().get::<i32>("exit_code"), 0, "{test:?}");
    let refusal = client.activate(1, "").await.unwrap_err();
    assert_eq!(refusal.name, "SlotInUse");
    assert!(refusal.message.contains("running firmware"), "{}", refusal.message);
    assert_eq!(client.revert("x", &[("slot", 1_u32.into())]).await.unwrap_err().name, "SlotInUse");
}

// rows: J4
#[tokio::test]
async fn what_runs_and_what_runs_next_is_not_deleted() {
    let (mut appliance, client) = selected().await;
    for (slot, why) in [(1, "running"), (2, "selected")] {
        let refusal = client.delete(slot).await.unwrap_err();
        assert_eq!(refusal.name, "SlotInUse");
        assert!(refusal.message.contains(why), "{}", refusal.message);
        let options = [("slot", slot.into()), ("replace", true.into())];
        assert_eq!(refused(&client, &options).await.0, "SlotInUse");
    }
    // In the trial the default is what runs next.
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    for slot in [1, 2] {
        assert_eq!(client.delete(slot).await.unwrap_err().name, "SlotInUse");
    }
    client.confirm().await.unwrap();
    assert_eq!(client.delete(2).await.unwrap_err().name, "SlotInUse");
    client.delete(1).await.unwrap();
    assert_eq!(client.manager().await.get::<u32>("Fallback"), 0);
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
}

async fn refused(client: &Client, options: &[(&str, zbus::wire::Variant<'static>)]) -> (String, String) {
    let iso = std::fs::File::open(&firmware("8.0.3").iso).unwrap();
    let refusal = client.install(iso, options).await.unwrap_err();
    (refusal.name, refusal.message)
}

#[tokio::test]
async fn nothing_is_installed_or_selected_over_a_firmware_that_is_not_confirmed() {
    let (mut appliance, client) = selected().await;
    let states: [(&str, Selection); 2] =
        [("trial", (2, 1, 1, true, false, 1)), ("hand", (2, 1, 1, false, false, 1))];
    for (how, selection) in states {
        let report = if how == "trial" {
            appliance.reboot().unwrap()
        } else {
            // The default ends the trial first.
            assert_eq!(appliance.reboot().unwrap().running(), Some(1));
            appliance.restart_with(&pick("sps-slot-2")).unwrap()
        };
        assert_eq!(report.running(), Some(2));
        assert_eq!(client.selection().await, selection, "{how}");
        assert_eq!(refused(&client, &[]).await.0, "NotConfirmed", "{how}");
        assert_eq!(refused(&client, &[("replace", true.into())]).await.0, "NotConfirmed", "{how}");
        assert_eq!(client.tested(1, &[]).await.result().get::<i32>("exit_code"), 1, "{how}");
        assert_eq!(client.activate(1, "").await.unwrap_err().name, "NotConfirmed", "{how}");
    }
    let (mut appliance, client) = selected().await;
    appliance.reboot().unwrap();
    let refusal = client.revert("back", &[]).await.unwrap_err();
    assert_eq!(refusal.name, "InvalidArgument");
    assert!(refusal.message.contains("confirm or reject"), "{}", refusal.message);
}

#[tokio::test]
async fn with_two_slots_the_fallback_of_a_confirmed_firmware_is_overwritten() {
    let (mut appliance, client) = upgraded().await;
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 0);
    install(&client, &firmware("8.0.3"), 1).await;
    assert_eq!(client.slot(1).await.text("Version"), "8.0.3");
    select(&client, 1).await;
    // What is selected is no fallback any more.
    assert_eq!(refused(&client, &[]).await.0, "NoEmptySlot");
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(refused(&client, &[]).await.0, "NotConfirmed");
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
}

#[tokio::test]
async fn without_recycling_a_full_appliance_says_what_may_be_deleted() {
    let (_appliance, client) =
        with(Layout { recycle_fallback: Some(false), ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    let (name, message) = refused(&client, &[]).await;
    assert_eq!(
        (name.as_str(), message.as_str()),
        ("NoEmptySlot", "no empty slot; may be deleted or replaced: 2 (8.0.2)")
    );
    select(&client, 2).await;
    let (name, message) = refused(&client, &[]).await;
    assert!(name == "NoEmptySlot" && message.ends_with("none"), "{message}");
}

#[tokio::test]
async fn with_three_slots_nothing_is_recycled_unless_the_configuration_says_so() {
    let (_appliance, client) = with(Layout { slots: 3, ..layout() }, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    install(&client, &firmware("8.0.3"), 3).await;
    let iso = std::fs::File::open(&firmware("8.0.4").iso).unwrap();
    let refusal = client.install(iso, &[]).await.unwrap_err();
    assert_eq!(refusal.message, "no empty slot; may be deleted or replaced: 2 (8.0.2), 3 (8.0.3)");

    let three = Layout { slots: 3, recycle_fallback: Some(true), ..layout() };
    let (_appliance, client) = with(three, &firmware("8.0.1")).await;
    install(&client, &firmware("8.0.2"), 2).await;
    install(&client, &firmware("8.0.3"), 3).await;
    assert_eq!(client.selection().await.5, 3, "the fallback");
    let job = client.install_file(&firmware("8.0.4").iso, &[]).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    for (slot, version) in [(1, "8.0.1"), (2, "8.0.2"), (3, "8.0.4")] {
        assert_eq!(client.slot(slot).await.text("Version"), version);
    }
}

// rows: A3
#[tokio::test]
async fn hardware_that_is_no_longer_supported_gets_no_newer_firmware() {
    let pyramid = Layout { hardware: "Pyramid 200".to_owned(), ..layout() };
    let (_appliance, client) = with(pyramid, &firmware("8.0.1")).await;
    let newer = special("hardware", "8.0.2", |spec| spec.hardware = vec!["T4".into(), "T10".into()]);
    let job = client.install_file(&newer.iso, &[]).await;
    assert_eq!(job.ended(), ("failed".into(), "Incompatible".into()));
    assert!(job.error().message.contains("hardware not supported"), "{:?}", job.error());
    assert_eq!(client.word(2).await, "empty");
}

// rows: A7 J7 J11 J17
#[tokio::test]
async fn a_firmware_that_does_not_fit_fails_its_test_and_is_not_selected() {
    let (appliance, client) = upgraded().await;
    // Older than what runs; nothing but revert goes back.
    let test = client.tested(1, &[]).await;
    assert_eq!(test.ended(), ("failed".into(), "TestFailed".into()));
    let (result, error) = (test.result(), test.error());
    assert_eq!(result.get::<i32>("exit_code"), 1);
    assert_eq!(result.text("test_summary"), "Version check started\nVersion check failed");
    assert!(error.message.contains("older than the running 8.0.2"), "{error:?}");
    assert_eq!(client.activate(1, "").await.unwrap_err().name, "TestRequired");

    let schema = special("schema", "8.0.5", |spec| spec.config_schema = 1);
    let running = special("later-schema", "8.0.4", |spec| spec.config_schema = 2);
    drop(appliance);
    let (appliance, client) = with(layout(), &running).await;
    install(&client, &schema, 2).await;
    let test = client.tested(2, &[]).await;
    let summary = test.result().text("test_summary");
    assert!(summary.ends_with("Configuration check started\nConfiguration check failed"), "{summary}");
    // One that cannot be read is not taken for none.
    let root_hash = running.manifest.root.verity.root_hash.to_string();
    crate::write_head(&appliance, &root_hash, "../../etc");
    let fits = special("fits", "8.0.6", |spec| spec.config_schema = 2);
    install(&client, &fits, 2).await;
    let test = client.tested(2, &[]).await;
    assert_eq!(test.result().get::<i32>("exit_code"), 1);
    assert!(test.error().message.contains("no revision number"), "{:?}", test.error());
    crate::write_head(&appliance, &root_hash, "000009");
    select(&client, 2).await;
}

#[tokio::test]
async fn without_a_loader_nothing_is_selected() {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    let plain = Layout { keyring, slot_size: 16 << 20, ..Layout::default() };
    let appliance = system_tests::bus::Appliance::with(plain).unwrap();
    let client = Client::of(&appliance).await;
    install(&client, &firmware("8.0.1"), 1).await;
    assert_eq!(client.manager().await.text("Loader"), "none");
    let refusal = client.activate(1, "").await.unwrap_err();
    assert_eq!(refusal.name, "Device");
    assert!(refusal.message.contains("no boot loader is configured"), "{}", refusal.message);
}
