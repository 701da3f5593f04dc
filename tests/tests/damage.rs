//! Damage at rest: slots, state, trusted keys and boot images that are not what they were.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;
use slotd::domain::file_list::Entry;
use slotd::domain::layout::{Extent, Part};
use slotd::domain::manifest::BLOCK;
use slotd::domain::trailer::{self, Found};
use slotd::domain::verity::Geometry;
use sps_base::durable::RECORD;
use sps_base::journal;
use sps_images::{Built, erofs};
use system_tests::bus::{Appliance, Layout, STATE_SIZE};
use system_tests::client::{Client, Shown, spsctl};
use system_tests::firmware::Workshop;

const SLOT_SIZE: u64 = 24 << 20;

fn plain() -> Built {
    Workshop::shared().unwrap().sample("8.0.1", 8).unwrap()
}

fn bootable() -> Built {
    let build = |workshop: &Workshop| workshop.build_bootable(&workshop.spec("8.0.2", 8)?, "bootable.iso");
    Workshop::shared().unwrap().once("bootable", build).unwrap()
}

/// An appliance with a keyring of its own, and `built` in slot 1.
async fn installed(built: &Built) -> (Appliance, Client) {
    let layout = Layout { slot_size: SLOT_SIZE, ..Layout::default() };
    let mut appliance = Appliance::without_slotd(layout).unwrap();
    for entry in std::fs::read_dir(Workshop::shared().unwrap().keyring()).unwrap() {
        let file = entry.unwrap();
        std::fs::copy(file.path(), appliance.path("keyring").join(file.file_name())).unwrap();
    }
    appliance.start_slotd().unwrap();
    let client = Client::of(&appliance).await;
    let job = client.install_file(&built.iso, &[]).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    (appliance, client)
}

fn restart(appliance: &mut Appliance) {
    appliance.stop_slotd().unwrap();
    appliance.start_slotd().unwrap();
}

/// Flips a bit; a second time flips it back.
fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// The places that the trailer of a slot names.
fn places(slot: &Path) -> Vec<(Part, Extent)> {
    let mut block = [0; 4096];
    File::open(slot).unwrap().read_exact_at(&mut block, SLOT_SIZE - BLOCK).unwrap();
    match trailer::parse(&block) {
        Found::Valid(trailer) => trailer.parts,
        other => unreachable!("{other:?}"),
    }
}

fn place(places: &[(Part, Extent)], part: Part) -> Extent {
    places.iter().find(|(p, _)| *p == part).unwrap().1
}

/// The file list of the root image at the start of a slot, by our own walk.
fn entries(slot: &Path, size: u64) -> Vec<Entry> {
    erofs::walk(&File::open(slot).unwrap(), size, &|_| Ok([0; 32])).unwrap()
}

fn healthy(job: &Shown) {
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    assert!(job.result().get::<bool>("healthy"));
}

#[tokio::test]
async fn a_full_check_names_what_owns_a_bad_block() {
    let (appliance, client) = installed(&bootable()).await;
    let slot = appliance.path("slot-1");
    let places = places(&slot);
    let root = place(&places, Part::Root);
    let entries = entries(&slot, root.size);
    let entry = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap();
    let tree = place(&places, Part::Verity).offset;
    let level = Geometry::new(root.size / BLOCK).levels;
    let noise = entry("/usr/bin/noise").extents[0];
    let cases = [
        ("superblock", 1024 + 16),
        ("file /usr/bin/noise", noise.0 + noise.1 / 2),
        ("inode of directory /usr/lib", entry("/usr/lib").at.0 + 1),
        ("inode table", entry("/etc/issue").at.0 + 1),
        ("verity superblock", tree + 9),
        ("tree level 1", tree + level[1].start * BLOCK + 3),
        ("tree level 0", tree + level[0].start * BLOCK + 4095),
        ("notes.md", place(&places, Part::Notes).offset),
        ("files.ndjson.zst", place(&places, Part::FileList).end() - 1),
        ("boot.efi", place(&places, Part::Boot).offset + (1 << 20) + 5),
        ("recovery.efi", place(&places, Part::Recovery).end() - 1),
    ];
    for (owner, at) in cases {
        flip(&slot, at);
        let job = client.verified(1, "full").await;
        flip(&slot, at);
        assert_eq!(job.ended(), ("failed".into(), "SlotBad".into()), "{owner} at {at}");
        let result = job.result();
        let owners: Vec<String> = result.get("owners");
        assert!(owners.iter().any(|found| found == owner), "{owner} at {at}: {owners:?}");
        // Files are checked in pieces of 1 MiB: what is named is where the piece begins.
        let exact = !matches!(owner, "boot.efi" | "recovery.efi" | "files.ndjson.zst");
        let first: u64 = result.get("first_bad");
        assert!(if exact { first == at / BLOCK } else { first <= at / BLOCK }, "{owner}: {first}");
        assert_eq!((result.get::<u64>("last_bad"), result.get::<u64>("blocks_bad")), (first, 1), "{owner}");
        assert_eq!(result.get::<Vec<(u64, u64)>>("extents"), [(first, 1)], "{owner}");
        assert!(job.error().message.contains("install the firmware again with repair"), "{:?}", job.error());
        let shown = client.slot(1).await;
        assert_eq!(shown.text("State"), "bad", "{owner}");
        assert_eq!(shown.text("Reason"), format!("blocks: {}", job.error().message));
        assert_eq!(shown.text("Version"), "8.0.2", "what is bad still says what it was");
        // Whole again: the next full check says so.
        healthy(&client.verified(1, "full").await);
        assert_eq!(client.word(1).await, "verified", "{owner}");
    }
    assert!(appliance.log().contains(journal::VERIFY_FAILED));
}

#[tokio::test]
async fn a_file_in_a_data_block_is_the_only_owner_and_runs_are_counted() {
    let (appliance, client) = installed(&plain()).await;
    let slot = appliance.path("slot-1");
    let (first, count) = (512, 3);
    for block in first..first + count {
        flip(&slot, block * BLOCK + 77);
    }
    flip(&slot, 1500 * BLOCK);
    let checked = spsctl(&appliance, &["verify", "1", "--full"]);
    assert_eq!(checked.refusal(), (21, "SlotBad"));
    let result = &checked.json["job"]["result"];
    assert_eq!(result["owners"], json!(["file /usr/bin/noise"]));
    assert_eq!(result["extents"], json!([[512, 3], [1500, 1]]));
    assert_eq!((&result["first_bad"], &result["last_bad"]), (&json!(512), &json!(1500)));
    assert_eq!((&result["blocks_bad"], &result["healthy"]), (&json!(4), &json!(false)));
    let summary = result["summary"].as_str().unwrap();
    assert!(summary.contains("the first at byte 2097152: file /usr/bin/noise"), "{summary}");
    assert_eq!(spsctl(&appliance, &["slots"]).json["slots"][1]["state"], "bad");
    let warnings: Vec<String> = client.manager().await.get("Warnings");
    assert!(warnings.iter().any(|warning| warning.starts_with("Slot 1 is bad: blocks:")), "{warnings:?}");
    // Its texts can still be read.
    assert!(client.notes(1).await.unwrap().contains("8.0.1"));
}

#[tokio::test]
async fn bytes_that_belong_to_nothing_are_not_judged() {
    let (appliance, client) = installed(&plain()).await;
    let slot = appliance.path("slot-1");
    let places = places(&slot);
    let last = places.last().unwrap().1;
    // Behind the end of a text in its last block, and between the last part and the trailer.
    flip(&slot, place(&places, Part::Notes).end() + 1);
    flip(&slot, last.end().next_multiple_of(BLOCK) + 5);
    flip(&slot, SLOT_SIZE - BLOCK - 1);
    healthy(&client.verified(1, "full").await);
    assert_eq!(client.word(1).await, "verified");
}

#[tokio::test]
async fn findings_are_remembered_until_a_full_check_or_a_repair() {
    let (mut appliance, client) = installed(&plain()).await;
    let slot = appliance.path("slot-1");
    healthy(&client.verified(1, "full").await);
    let checked = client.slot(1).await;
    assert_eq!(checked.text("VerifiedHow"), "full");
    restart(&mut appliance);
    let again = client.slot(1).await;
    assert_eq!((again.text("State"), again.text("VerifiedHow")), ("verified".into(), "full".into()));
    assert_eq!(again.get::<u64>("VerifiedAt"), checked.get::<u64>("VerifiedAt"));
    assert_eq!(again.get::<u64>("InstalledAt"), checked.get::<u64>("InstalledAt"));

    let at = 1000 * BLOCK;
    flip(&slot, at);
    assert_eq!(client.verified(1, "full").await.ended().1, "SlotBad");
    restart(&mut appliance);
    assert_eq!(client.word(1).await, "bad");
    // The block is whole again; a quick check, which cannot know about it, clears nothing.
    flip(&slot, at);
    let quick = client.verified(1, "quick").await;
    healthy(&quick);
    let missed: f64 = quick.result().get("missed_chance");
    assert!(missed > 0.0 && missed < 1.0, "{missed}");
    assert_eq!(client.word(1).await, "bad");
    restart(&mut appliance);
    assert_eq!(client.word(1).await, "bad");
    healthy(&client.verified(1, "full").await);
    assert_eq!(client.word(1).await, "verified");

    // A repair writes the same firmware over the damage, and the finding is void.
    flip(&slot, at);
    assert_eq!(client.verified(1, "full").await.ended().1, "SlotBad");
    let job = client.install_file(&plain().iso, &[("slot", 1_u32.into()), ("repair", true.into())]).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    let repaired = client.slot(1).await;
    assert_eq!(
        (repaired.text("State"), repaired.text("VerifiedHow")),
        ("verified".into(), "installed".into())
    );
    healthy(&client.verified(1, "full").await);
}

#[tokio::test]
async fn a_slot_without_valid_trailer_manifest_or_signature_is_bad_and_says_which() {
    let (mut appliance, client) = installed(&plain()).await;
    let slot = appliance.path("slot-1");
    let places = places(&slot);
    for (at, class, owner) in [
        (SLOT_SIZE - BLOCK + 20, "trailer: ", "trailer"),
        (SLOT_SIZE - BLOCK, "trailer: ", "trailer"),
        (place(&places, Part::Manifest).offset + 30, "corrupt: ", "manifest.json"),
        (place(&places, Part::Signature).end() - 20, "untrusted: ", "manifest.p7s"),
    ] {
        flip(&slot, at);
        let job = client.verified(1, "quick").await;
        assert_eq!(job.ended(), ("failed".into(), "SlotBad".into()), "{class}{at}");
        let result = job.result();
        assert!(result.text("summary").starts_with(class), "{}", result.text("summary"));
        assert_eq!(result.get::<Vec<String>>("owners"), [owner]);
        assert_eq!(result.get::<u64>("first_bad"), at / BLOCK, "{owner}");
        for restarted in [false, true] {
            if restarted {
                restart(&mut appliance);
            }
            let shown = client.slot(1).await;
            assert_eq!(shown.text("State"), "bad");
            assert!(shown.text("Reason").starts_with(class), "{}", shown.text("Reason"));
            assert_eq!(shown.text("Version"), "", "nothing proves what it says");
            assert_eq!(client.notes(1).await.unwrap_err().name, "SlotBad");
            assert_eq!(spsctl(&appliance, &["verify", "1"]).refusal(), (21, "SlotBad"));
        }
        // It is not empty, so nothing is written over it unasked.
        assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 1);
        flip(&slot, at);
        restart(&mut appliance);
        assert_eq!(client.word(1).await, "verified");
    }
    flip(&slot, SLOT_SIZE - BLOCK);
    restart(&mut appliance);
    client.delete(1).await.unwrap();
    assert_eq!(client.word(1).await, "empty");
}

#[tokio::test]
async fn boot_images_follow_their_slot() {
    let (mut appliance, client) = installed(&bootable()).await;
    let image = appliance.path("esp/EFI/Linux/sps-slot-1.efi");
    let wanted = std::fs::read(&image).unwrap();
    let boot = place(&places(&appliance.path("slot-1")), Part::Boot);
    let mut held = vec![0; wanted.len()];
    File::open(appliance.path("slot-1")).unwrap().read_exact_at(&mut held, boot.offset).unwrap();
    assert!(held == wanted && boot.size == wanted.len() as u64);
    // Lost, cut short, altered: rebuilt from the slot at the next start.
    std::fs::remove_file(&image).unwrap();
    restart(&mut appliance);
    assert!(std::fs::read(&image).unwrap() == wanted);
    File::options().write(true).open(&image).unwrap().set_len(4096).unwrap();
    restart(&mut appliance);
    assert!(std::fs::read(&image).unwrap() == wanted);
    flip(&image, 1_234_567);
    restart(&mut appliance);
    assert!(std::fs::read(&image).unwrap() == wanted);
    assert_eq!(client.word(1).await, "verified");
    client.delete(1).await.unwrap();
    assert!(!image.exists());
}

#[tokio::test]
async fn a_lost_state_is_told_stops_installs_and_is_healed_by_a_reset() {
    let (mut appliance, client) = installed(&plain()).await;
    let iso = plain().iso;
    let other = Workshop::shared().unwrap().sample("8.0.3", 1).unwrap().iso;
    appliance.stop_slotd().unwrap();
    std::fs::write(appliance.path("state"), vec![0; usize::try_from(STATE_SIZE).unwrap()]).unwrap();
    appliance.start_slotd().unwrap();
    assert!(appliance.log().contains(journal::STATE_LOST));
    let warnings: Vec<String> = client.manager().await.get("Warnings");
    assert!(
        warnings.iter().any(|w| w.starts_with("The state is lost") && w.contains("spsctl state reset")),
        "{warnings:?}"
    );
    assert!(client.state().await.0.starts_with("lost: "));
    assert!(spsctl(&appliance, &["state", "show"]).json["health"].as_str().unwrap().starts_with("lost: "));
    // What the slots say of themselves still stands and can be checked.
    assert_eq!(client.slot(1).await.text("Version"), "8.0.1");
    assert_eq!(client.word(1).await, "verified");
    healthy(&client.verified(1, "full").await);
    // And what a check finds is not kept back because it cannot be written down.
    flip(&appliance.path("slot-1"), 1000 * BLOCK);
    assert_eq!(client.verified(1, "full").await.ended(), ("failed".into(), "SlotBad".into()));
    flip(&appliance.path("slot-1"), 1000 * BLOCK);
    let refused = client.install(File::open(&other).unwrap(), &[]).await.unwrap_err();
    assert_eq!(refused.name, "Device");
    assert!(refused.message.contains("spsctl state reset --reason"), "{}", refused.message);
    assert_eq!(client.delete(1).await.unwrap_err().name, "Device");
    assert_eq!(spsctl(&appliance, &["install", other.to_str().unwrap()]).refusal(), (33, "Device"));
    // A reason is needed, on one line.
    assert_eq!(
        spsctl(&appliance, &["state", "reset", "--reason", "a\nb"]).refusal(),
        (28, "InvalidArgument")
    );

    let reset = spsctl(&appliance, &["state", "reset", "--reason", "disk swapped"]);
    assert_eq!((reset.code, &reset.json["reset"]["reason"]), (0, &json!("disk swapped")), "{}", reset.errors);
    assert!(appliance.log().contains(journal::STATE_RESET) && appliance.log().contains("disk swapped"));
    assert_eq!(client.manager().await.get::<Vec<String>>("Warnings"), Vec::<String>::new());
    let (health, text) = client.state().await;
    assert_eq!(health, "valid");
    // The floor is that of the firmware that is there.
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["epoch_floor"], 1);
    restart(&mut appliance);
    assert_eq!(client.state().await.0, "valid");
    assert_eq!(client.install_file(&iso, &[]).await.ended().1, "AlreadyInstalled");
    assert_eq!(client.install_file(&other, &[]).await.text("State"), "done");
}

#[tokio::test]
async fn one_of_two_state_records_is_enough() {
    let (mut appliance, client) = installed(&plain()).await;
    healthy(&client.verified(1, "full").await);
    let state = appliance.path("state");
    for place in [0, STATE_SIZE / 2] {
        appliance.stop_slotd().unwrap();
        let file = File::options().read(true).write(true).open(&state).unwrap();
        let mut record = vec![0; RECORD];
        file.read_exact_at(&mut record, place).unwrap();
        flip(&state, place + 70);
        appliance.start_slotd().unwrap();
        assert_eq!(client.state().await.0, "valid");
        assert_eq!(client.word(1).await, "verified");
        // The next write takes the damaged one's place; both are needed again after it.
        healthy(&client.verified(1, "full").await);
        restart(&mut appliance);
        assert_eq!(client.slot(1).await.text("VerifiedHow"), "full");
    }
}

#[tokio::test]
async fn without_usable_keys_nothing_is_trusted_and_the_daemon_says_so() {
    let (mut appliance, client) = installed(&plain()).await;
    let other = Workshop::shared().unwrap().sample("8.0.3", 1).unwrap().iso;
    let keyring = appliance.path("keyring");
    let root = std::fs::read(keyring.join("root.pem")).unwrap();
    let foreign = Workshop::shared().unwrap();
    let spec = foreign.spec("8.0.4", 1).unwrap();
    foreign.once("foreign.iso", |workshop| workshop.build_foreign(&spec, "foreign.iso")).unwrap();
    for damage in ["empty", "garbage", "missing"] {
        match damage {
            "empty" => std::fs::remove_file(keyring.join("root.pem")).unwrap(),
            "garbage" => {
                std::fs::write(keyring.join("root.pem"), "-----BEGIN CERTIFICATE-----\nnone\n").unwrap();
            }
            _ => std::fs::rename(&keyring, appliance.path("keyring-away")).unwrap(),
        }
        restart(&mut appliance);
        let shown = client.slot(1).await;
        assert_eq!(shown.text("State"), "bad", "{damage}");
        assert!(shown.text("Reason").starts_with("untrusted: "), "{damage}: {}", shown.text("Reason"));
        let warnings: Vec<String> = client.manager().await.get("Warnings");
        assert!(
            warnings.iter().any(|w| w.starts_with("The keyring cannot be used")),
            "{damage}: {warnings:?}"
        );
        let refused = client.install(File::open(&other).unwrap(), &[]).await.unwrap_err();
        assert_eq!(refused.name, "Untrusted", "{damage}");
        assert!(refused.message.contains("repair the keyring"), "{damage}: {}", refused.message);
        assert_eq!(spsctl(&appliance, &["install", other.to_str().unwrap()]).refusal(), (11, "Untrusted"));
        assert_eq!(spsctl(&appliance, &["status"]).code, 0);
        assert!(appliance.log().contains(journal::KEYRING_UNUSABLE), "{damage}");
        if damage == "missing" {
            std::fs::rename(appliance.path("keyring-away"), &keyring).unwrap();
        }
        std::fs::write(keyring.join("root.pem"), &root).unwrap();
        restart(&mut appliance);
        assert_eq!(client.word(1).await, "verified", "{damage}");
        std::fs::write(appliance.path("slotd.log"), "").unwrap();
    }
}
