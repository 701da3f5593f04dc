//! What an operator does with slots, over D-Bus and with spsctl: install, list, read, delete.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sps_base::journal;
use sps_images::Built;
use system_tests::bus::{Appliance, Layout};
use system_tests::client::{Client, spsctl, spsctl_with};
use system_tests::firmware::Workshop;

const NEWS: &str = "# News\n\nSlots prove every block.\n";

/// Version 8.0.1, without news.
fn old() -> Built {
    Workshop::shared().unwrap().sample("8.0.1", 4).unwrap()
}

/// Version 8.0.2, with news.
fn new() -> Built {
    let build = |workshop: &Workshop| {
        let mut spec = workshop.spec("8.0.2", 4)?;
        spec.news = Some(NEWS.to_owned());
        workshop.build(&spec, "new.iso")
    };
    Workshop::shared().unwrap().once("new", build).unwrap()
}

fn appliance(slots: u32) -> Appliance {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    Appliance::with(Layout { keyring, slots, slot_size: 24 << 20, ..Layout::default() }).unwrap()
}

/// Tells the kernel that the firmware `built` runs, as after a boot.
fn boot(appliance: &mut Appliance, built: &Built) {
    let hash = built.manifest.root.verity.root_hash;
    std::fs::write(appliance.path("cmdline"), format!("quiet roothash={hash} ro")).unwrap();
    appliance.stop_slotd().unwrap();
    appliance.start_slotd().unwrap();
}

fn path(built: &Built) -> &str {
    built.iso.to_str().unwrap()
}

fn sha256(file: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(file).unwrap()))
}

// rows: A5 A6 J3 J5
#[tokio::test]
async fn an_iso_becomes_a_verified_slot_whose_notes_and_news_can_be_read() {
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    let built = new();
    let before = client.slot(1).await;
    assert_eq!((before.text("State"), before.text("Version")), ("empty".into(), String::new()));
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 2);

    let job = client.install_file(&built.iso, &[]).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    let result = job.result();
    assert_eq!((result.get::<u32>("slot"), result.text("version")), (1, "8.0.2".to_owned()));
    assert_eq!(result.text("root_hash"), built.manifest.root.verity.root_hash.to_string());
    assert_eq!(result.text("manifest_sha256"), built.manifest_sha256.to_string());
    assert_eq!(result.get::<u64>("bytes_kept"), 0);
    assert_eq!(result.get::<u64>("bytes_written"), job.get::<u64>("BytesDone"));
    assert_eq!(job.get::<u64>("BytesTotal"), job.get::<u64>("BytesDone"));

    let slot = client.slot(1).await;
    for (name, value) in [
        ("State", "verified"),
        ("Reason", ""),
        ("Version", "8.0.2"),
        ("BootVersion", "8.0.2"),
        ("BuildDate", "2026-01-01T00:00:00Z"),
        ("VerifiedHow", "installed"),
    ] {
        assert_eq!(slot.text(name), value, "{name}");
    }
    assert_eq!(slot.text("RootHash"), result.text("root_hash"));
    assert_eq!((slot.get::<u32>("SecurityEpoch"), slot.get::<u64>("Size")), (1, 24 << 20));
    assert!(slot.get::<u64>("InstalledAt") > 1_767_225_600);
    // Not activated: it neither runs nor will run.
    assert!(!slot.get::<bool>("Current") && !slot.get::<bool>("AfterReboot"));
    assert_eq!(client.notes(1).await.unwrap(), "# Version 8.0.2\n\nBuilt for development.\n");
    assert_eq!(client.news(1).await.unwrap(), NEWS);
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 1);
    assert_eq!(client.word(2).await, "empty");
    for event in [journal::INSTALL_STARTED, journal::INSTALL_SUCCEEDED] {
        assert!(appliance.log().contains(event), "{}", appliance.log());
    }
}

// rows: A5 A6 J3 J5
#[test]
fn spsctl_installs_lists_and_reads() {
    let appliance = appliance(2);
    let (old, new) = (old(), new());
    let installed = spsctl(&appliance, &["install", path(&new), "--transaction", "t-1"]);
    assert_eq!(installed.code, 0, "{}", installed.errors);
    let job = &installed.json["job"];
    assert_eq!((&job["state"], &job["slot"], &job["error"]), (&json!("done"), &json!(1), &Value::Null));
    assert_eq!(job["result"]["version"], "8.0.2");
    assert_eq!(job["result"]["transaction_id"], "t-1");
    assert!(installed.json.get("resume").is_none());
    // From standard input, without a name: the other slot.
    let installed = spsctl_with(&appliance, &["install", "-"], File::open(&old.iso).unwrap());
    assert_eq!((installed.code, &installed.json["job"]["slot"]), (0, &json!(2)), "{}", installed.errors);

    let listed = spsctl(&appliance, &["slots"]);
    assert_eq!(listed.code, 0);
    let slots = listed.json["slots"].as_array().unwrap();
    assert_eq!(slots.iter().map(|slot| &slot["id"]).collect::<Vec<_>>(), [0, 1, 2]);
    let slot = &slots[1];
    for (name, value) in [
        ("state", json!("verified")),
        ("version", json!("8.0.2")),
        ("reason", Value::Null),
        ("label", json!("S1")),
        ("current", json!(false)),
        ("after_reboot", json!(false)),
        ("verified_how", json!("installed")),
        ("root_hash", json!(new.manifest.root.verity.root_hash.to_string())),
        ("build_date", json!("2026-01-01T00:00:00Z")),
    ] {
        assert_eq!(slot[name], value, "{name}");
    }
    let notes = spsctl(&appliance, &["notes", "1"]);
    assert_eq!((notes.code, &notes.json["slot"]), (0, &json!(1)));
    assert_eq!(notes.json["notes"], "# Version 8.0.2\n\nBuilt for development.\n");
    let news = spsctl(&appliance, &["news", "1"]);
    assert_eq!((news.code, &news.json["news"]), (0, &json!(NEWS)));
    // A firmware without news has null, not an empty text.
    let news = spsctl(&appliance, &["news", "2"]);
    assert_eq!((news.code, &news.json["news"]), (0, &Value::Null));
    let status = spsctl(&appliance, &["status"]);
    assert_eq!((status.code, &status.json["status"]["empty_slots"]), (0, &json!(0)));
}

// rows: J3
#[tokio::test]
async fn a_deleted_slot_is_empty_on_both_surfaces() {
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    for built in [old(), new()] {
        assert_eq!(client.install_file(&built.iso, &[]).await.text("State"), "done");
    }
    client.delete(1).await.unwrap();
    let slot = client.slot(1).await;
    assert_eq!(
        (slot.text("State"), slot.text("Version"), slot.text("RootHash")),
        ("empty".into(), String::new(), String::new())
    );
    assert_eq!(slot.get::<u64>("InstalledAt"), 0);
    assert_eq!(client.word(2).await, "verified");
    let deleted = spsctl(&appliance, &["delete", "2"]);
    assert_eq!((deleted.code, &deleted.json["deleted"]), (0, &json!({ "slot": 2 })), "{}", deleted.errors);
    let listed = spsctl(&appliance, &["slots"]).json;
    for slot in [1, 2] {
        assert_eq!(listed["slots"][slot]["state"], "empty");
        assert_eq!(listed["slots"][slot]["version"], Value::Null);
    }
    assert!(appliance.log().contains(journal::SLOT_DELETED));
    // A slot that was deleted takes a firmware again.
    assert_eq!(client.install_file(&old().iso, &[("slot", 2_u32.into())]).await.text("State"), "done");
}

// rows: J4 J5
#[tokio::test]
async fn the_running_slot_cannot_be_deleted_or_written() {
    let mut appliance = appliance(2);
    let client = Client::of(&appliance).await;
    assert_eq!(client.install_file(&old().iso, &[]).await.text("State"), "done");
    boot(&mut appliance, &old());
    let slot = client.slot(1).await;
    assert!(slot.get::<bool>("Current") && slot.get::<bool>("AfterReboot"));
    assert_eq!(client.manager().await.get::<u32>("Booted"), 1);
    let before = sha256(&appliance.path("slot-1"));
    assert_eq!(client.delete(1).await.unwrap_err().name, "SlotInUse");
    for option in ["replace", "repair"] {
        let options = [("slot", 1_u32.into()), (option, true.into())];
        let refused = client.install(File::open(new().iso).unwrap(), &options).await.unwrap_err();
        assert_eq!(refused.name, "SlotInUse", "{option}: {}", refused.message);
    }
    let refused = spsctl(&appliance, &["delete", "1"]);
    assert_eq!(refused.refusal(), (20, "SlotInUse"));
    let refused = spsctl(&appliance, &["install", path(&new()), "--slot", "1", "--replace"]);
    assert_eq!(refused.refusal(), (20, "SlotInUse"));
    let status = spsctl(&appliance, &["status"]).json;
    assert_eq!((&status["status"]["booted"], &status["status"]["empty_slots"]), (&json!(1), &json!(1)));
    assert_eq!(status["slots"][1]["current"], true);
    assert_eq!(status["slots"][1]["after_reboot"], true);
    assert_eq!(status["slots"][2]["current"], false);

    // The other slot is free, and when it is filled nothing else is offered for replacement.
    assert_eq!(client.install_file(&new().iso, &[]).await.result().get::<u32>("slot"), 2);
    let refused = client.install(File::open(old().iso).unwrap(), &[]).await.unwrap_err();
    assert_eq!(refused.name, "NoEmptySlot");
    assert!(refused.message.ends_with("may be deleted or replaced: 2 (8.0.2)"), "{}", refused.message);
    assert_eq!(sha256(&appliance.path("slot-1")), before);
    assert_eq!(client.word(1).await, "verified");
    client.delete(2).await.unwrap();
}

#[tokio::test]
async fn an_older_firmware_is_refused_over_the_running_one() {
    let mut appliance = appliance(2);
    let client = Client::of(&appliance).await;
    assert_eq!(client.install_file(&new().iso, &[]).await.text("State"), "done");
    boot(&mut appliance, &new());
    let job = client.install_file(&old().iso, &[]).await;
    assert_eq!(job.ended(), ("failed".into(), "VersionPolicy".into()));
    assert!(job.error().message.contains("8.0.1 is older than the running 8.0.2"), "{:?}", job.error());
    assert_eq!(spsctl(&appliance, &["install", path(&old())]).refusal(), (14, "VersionPolicy"));
    assert_eq!(client.word(2).await, "empty");
}

// rows: J9
#[tokio::test]
async fn an_empty_slot_has_nothing_to_read_check_or_delete() {
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    assert_eq!(client.notes(2).await.unwrap_err().name, "SlotEmpty");
    assert_eq!(client.news(2).await.unwrap_err().name, "SlotEmpty");
    assert_eq!(client.verify(2, "full").await.unwrap_err().name, "SlotEmpty");
    let refused = client.delete(2).await.unwrap_err();
    assert_eq!(refused.name, "SlotEmpty");
    assert!(refused.message.contains("slot 2"), "{}", refused.message);
    for command in ["notes", "news", "verify", "delete"] {
        let refused = spsctl(&appliance, &[command, "2"]);
        assert_eq!(refused.refusal(), (18, "SlotEmpty"), "{command}");
        assert!(refused.errors.starts_with("error: "), "{}", refused.errors);
    }
    // A slot that the appliance does not have is another matter.
    assert_eq!(spsctl(&appliance, &["notes", "3"]).refusal(), (28, "InvalidArgument"));
    assert_eq!(client.word(2).await, "empty");
}

// rows: A3
#[tokio::test]
async fn firmware_for_other_hardware_is_refused_before_a_byte_is_written() {
    let build = |workshop: &Workshop| {
        let mut spec = workshop.spec("8.0.3", 1)?;
        spec.hardware = vec!["pyramid-2015".into(), "pyramid-2019".into()];
        workshop.build(&spec, "pyramid.iso")
    };
    let pyramid = Workshop::shared().unwrap().once("pyramid", build).unwrap();
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    let (slot, state) = (sha256(&appliance.path("slot-1")), sha256(&appliance.path("state")));
    let job = client.install_file(&pyramid.iso, &[]).await;
    assert_eq!(job.ended(), ("failed".into(), "Incompatible".into()));
    let message = job.error().message;
    assert!(
        message.contains("hardware not supported")
            && message.contains("pyramid-2015, pyramid-2019")
            && message.contains("test-bench"),
        "{message}"
    );
    let refused = spsctl(&appliance, &["install", path(&pyramid)]);
    assert_eq!(refused.refusal(), (12, "Incompatible"));
    assert_eq!(refused.json["job"]["state"], "failed");
    assert!(refused.json.get("resume").is_none(), "{}", refused.json);
    assert_eq!(client.word(1).await, "empty");
    assert_eq!((sha256(&appliance.path("slot-1")), sha256(&appliance.path("state"))), (slot, state));
    assert!(appliance.log().contains(journal::INSTALL_REFUSED));
}

#[tokio::test]
async fn other_products_lower_epochs_foreign_and_missing_signatures_are_refused() {
    let workshop = Workshop::shared().unwrap();
    let build = |name: &str, change: fn(&mut sps_images::FirmwareSpec)| {
        let build = |workshop: &Workshop| {
            let mut spec = workshop.spec("8.0.4", 1)?;
            change(&mut spec);
            workshop.build(&spec, name)
        };
        workshop.once(name, build).unwrap()
    };
    let foreign = |workshop: &Workshop| workshop.build_foreign(&workshop.spec("8.0.4", 1)?, "foreign.iso");
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    // The running firmware has reached epoch 3.
    let running = build("epoch-3.iso", |spec| spec.security_epoch = 3);
    assert_eq!(client.install_file(&running.iso, &[]).await.text("State"), "done");
    let mut appliance = appliance;
    boot(&mut appliance, &running);
    let slot = sha256(&appliance.path("slot-2"));
    for (built, name, code) in [
        (build("other.iso", |spec| spec.product = "other".into()), "Incompatible", 12),
        (build("epoch-2.iso", |spec| spec.security_epoch = 2), "EpochTooOld", 13),
        (build("unsigned.iso", |spec| spec.signed = false), "SignatureInvalid", 10),
        (workshop.once("foreign", foreign).unwrap(), "Untrusted", 11),
    ] {
        assert_eq!(client.install_file(&built.iso, &[]).await.ended(), ("failed".into(), name.into()));
        assert_eq!(spsctl(&appliance, &["install", path(&built)]).refusal(), (code, name));
    }
    assert_eq!(client.word(2).await, "empty");
    assert_eq!(sha256(&appliance.path("slot-2")), slot);
}

#[tokio::test]
async fn the_slot_is_chosen_as_documented() {
    let workshop = Workshop::shared().unwrap();
    let [first, second, third] =
        ["8.1.1", "8.1.2", "8.1.3"].map(|version| workshop.sample(version, 1).unwrap());
    let appliance = appliance(3);
    let client = Client::of(&appliance).await;
    let slot_of = |job: &system_tests::client::Shown| {
        assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
        job.result().get::<u32>("slot")
    };
    let refused = async |built: &Built, options: &[_]| {
        client.install(File::open(&built.iso).unwrap(), options).await.unwrap_err()
    };
    // Damaged in its last block, which is noticed when the rest is in the slot.
    let mut bytes = std::fs::read(&third.iso).unwrap();
    let last = bytes.len() - 3000;
    bytes[last] ^= 1;
    let damaged = appliance.path("damaged.iso");
    std::fs::write(&damaged, bytes).unwrap();
    let abandon = async || {
        let job = client.install_file(&damaged, &[]).await;
        assert_eq!(job.ended(), ("failed".into(), "MediaCorrupt".into()));
        assert_eq!(client.word(1).await, "writing");
    };
    // Empty ones first, then the one that an install was abandoned in.
    assert_eq!(slot_of(&client.install_file(&first.iso, &[("slot", 2_u32.into())]).await), 2);
    abandon().await;
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 2);
    assert_eq!(slot_of(&client.install_file(&second.iso, &[]).await), 3);
    abandon().await;
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 1);
    assert_eq!(slot_of(&client.install_file(&third.iso, &[]).await), 1);

    // All full.
    let fourth = workshop.sample("8.1.4", 1).unwrap();
    let full = refused(&fourth, &[]).await;
    assert_eq!(full.name, "NoEmptySlot");
    assert!(full.message.contains("1 (8.1.3), 2 (8.1.1), 3 (8.1.2)"), "{}", full.message);
    assert_eq!(spsctl(&appliance, &["install", path(&fourth)]).refusal(), (17, "NoEmptySlot"));
    assert_eq!(refused(&fourth, &[("slot", 2_u32.into())]).await.name, "NoEmptySlot");
    assert_eq!(refused(&fourth, &[("repair", true.into())]).await.name, "InvalidArgument");
    assert_eq!(refused(&fourth, &[("slot", 7_u32.into())]).await.name, "InvalidArgument");

    // The same firmware a second time: not beside itself, only as a repair in place.
    let job = client.install_file(&first.iso, &[("replace", true.into()), ("slot", 3_u32.into())]).await;
    assert_eq!(job.ended(), ("failed".into(), "AlreadyInstalled".into()));
    let job = client.install_file(&first.iso, &[("repair", true.into()), ("slot", 3_u32.into())]).await;
    assert_eq!(job.ended(), ("failed".into(), "AlreadyInstalled".into()));
    let again = spsctl(&appliance, &["install", path(&first), "--slot", "2", "--replace"]);
    assert_eq!(again.refusal(), (22, "AlreadyInstalled"));
    let repaired = spsctl(&appliance, &["install", path(&first), "--slot", "2", "--repair"]);
    assert_eq!((repaired.code, &repaired.json["job"]["slot"]), (0, &json!(2)), "{}", repaired.errors);
    // A repair writes the same again, never something else.
    let job = client.install_file(&fourth.iso, &[("repair", true.into()), ("slot", 3_u32.into())]).await;
    assert_eq!(job.ended(), ("failed".into(), "NoEmptySlot".into()), "{:?}", job.error());
    assert_eq!(client.slot(3).await.text("Version"), "8.1.2");

    let asked =
        [("slot", 3_u32.into()), ("replace", true.into()), ("manifest_sha256", "0".repeat(64).into())];
    assert_eq!(
        client.install_file(&fourth.iso, &asked).await.ended(),
        ("failed".into(), "InvalidArgument".into())
    );
    assert_eq!(client.slot(3).await.text("Version"), "8.1.2");
    let asked = [
        ("slot", 3_u32.into()),
        ("replace", true.into()),
        ("manifest_sha256", fourth.manifest_sha256.to_string().into()),
    ];
    assert_eq!(slot_of(&client.install_file(&fourth.iso, &asked).await), 3);
    assert_eq!(client.slot(3).await.text("Version"), "8.1.4");
}

#[tokio::test]
async fn an_image_that_is_none_or_too_large_is_refused_by_name() {
    let appliance = appliance(2);
    let client = Client::of(&appliance).await;
    let none = appliance.path("none.iso");
    std::fs::write(&none, vec![7; 1 << 20]).unwrap();
    assert_eq!(client.install_file(&none, &[]).await.ended(), ("failed".into(), "MediaCorrupt".into()));
    std::fs::write(&none, "").unwrap();
    assert_eq!(client.install_file(&none, &[]).await.ended(), ("failed".into(), "MediaCorrupt".into()));
    // A file that is too short is found out before anything is written.
    let bytes = std::fs::read(old().iso).unwrap();
    std::fs::write(&none, &bytes[..bytes.len() - 4096]).unwrap();
    assert_eq!(client.install_file(&none, &[]).await.ended(), ("failed".into(), "MediaCorrupt".into()));
    assert_eq!(client.word(1).await, "empty");
    let large = Workshop::shared().unwrap().sample("8.0.5", 25).unwrap();
    let job = client.install_file(&large.iso, &[]).await;
    assert_eq!(job.ended(), ("failed".into(), "NoSpace".into()));
    assert!(job.error().message.contains(&(24 << 20).to_string()), "{:?}", job.error());
    assert_eq!(spsctl(&appliance, &["install", path(&large)]).refusal(), (16, "NoSpace"));
    assert_eq!(client.word(1).await, "empty");
}
