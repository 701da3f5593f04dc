//! How an image arrives, and what becomes of the slot when it stops arriving.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::fs::File;
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use slotd::domain::iso::{Head, Index, parse_head};
use slotd::domain::layout::Part;
use sps_base::journal;
use system_tests::bus::{Appliance, Layout, wait_for};
use system_tests::client::{Client, Shown, spsctl, spsctl_with};
use system_tests::firmware::Workshop;
use zbus::wire::Variant;

const MIB: usize = 1 << 20;

/// An image of 9 MiB, and where its parts lie.
fn image() -> (Vec<u8>, Index) {
    let bytes = std::fs::read(Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso).unwrap();
    let Head::Complete(index) = parse_head(&bytes, Some(bytes.len() as u64)).unwrap() else {
        unreachable!("all bytes were given")
    };
    (bytes, index)
}

/// Where the root image begins on the ISO.
fn root_at(index: &Index) -> usize {
    usize::try_from(index.get(Part::Root).unwrap().offset).unwrap()
}

fn appliance() -> Appliance {
    with(60)
}

fn with(stall_timeout_s: u64) -> Appliance {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    Appliance::with(Layout { keyring, stall_timeout_s, slot_size: 24 << 20, ..Layout::default() }).unwrap()
}

fn named(transaction: &str) -> [(&'static str, Variant<'static>); 1] {
    [("transaction_id", transaction.to_owned().into())]
}

fn from(transaction: &str, offset: u64) -> [(&'static str, Variant<'static>); 2] {
    [("transaction_id", transaction.to_owned().into()), ("offset", offset.into())]
}

/// Sends bytes and keeps the pipe open until the thread is joined and its value dropped.
fn send<W: Write + Send + 'static>(mut to: W, bytes: Vec<u8>) -> JoinHandle<W> {
    std::thread::spawn(move || {
        // A receiver that has seen enough hangs up.
        let _ = to.write_all(&bytes);
        to
    })
}

/// Starts an install over a pipe.
async fn piped(client: &Client, options: &[(&str, Variant<'static>)]) -> (String, PipeWriter) {
    let (image, sender) = std::io::pipe().unwrap();
    (client.install(OwnedFd::from(image), options).await.unwrap(), sender)
}

/// An install that has written 5 MiB of the root image into slot 1 and waits for more.
async fn halfway(appliance: &Appliance, client: &Client, transaction: &str) -> (String, PipeWriter) {
    let (bytes, index) = image();
    let (job, sender) = piped(client, &named(transaction)).await;
    let root = root_at(&index);
    let sender = send(sender, bytes[..root + 5 * MIB].to_vec()).join().unwrap();
    written(appliance, &bytes[root..root + 5 * MIB]);
    (job, sender)
}

/// Waits until slot 1 begins with these bytes.
fn written(appliance: &Appliance, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    let slot = File::open(appliance.path("slot-1")).unwrap();
    let look = || {
        slot.read_exact_at(&mut found, 0)?;
        Ok((found == bytes).then_some(()))
    };
    wait_for("5 MiB in the slot", look).unwrap();
}

async fn assert_sound(client: &Client, slot: u32) {
    assert_eq!(client.word(slot).await, "verified");
    let job = client.verified(slot, "full").await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
}

fn done(job: &Shown) -> Shown {
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    job.result()
}

#[tokio::test]
async fn an_image_arrives_on_a_file_a_pipe_and_a_socket() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    done(&client.install_file(&iso, &[]).await);
    assert_sound(&client, 1).await;
    client.delete(1).await.unwrap();

    let (job, sender) = piped(&client, &[]).await;
    let sending = send(sender, image().0);
    done(&client.end(&job).await);
    sending.join().unwrap();
    assert_sound(&client, 1).await;
    client.delete(1).await.unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    let job = client.install(OwnedFd::from(theirs), &[]).await.unwrap();
    let sending = send(ours, image().0);
    done(&client.end(&job).await);
    sending.join().unwrap();
    assert_sound(&client, 1).await;
    client.delete(1).await.unwrap();

    // A file is read from where it stands.
    let mut shifted =
        File::options().read(true).write(true).create_new(true).open(appliance.path("shifted")).unwrap();
    shifted.write_all(&[0; 777]).unwrap();
    shifted.write_all(&image().0).unwrap();
    std::io::Seek::seek(&mut shifted, std::io::SeekFrom::Start(777)).unwrap();
    let job = client.install(shifted, &[]).await.unwrap();
    done(&client.end(&job).await);
    assert_sound(&client, 1).await;
}

#[tokio::test]
async fn every_question_is_answered_while_an_image_trickles_in() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let other = Workshop::shared().unwrap().sample("8.0.2", 1).unwrap().iso;
    done(&client.install_file(&other, &[("slot", 2_u32.into())]).await);
    let (bytes, _) = image();
    let (job, mut sender) = piped(&client, &[("slot", 1_u32.into())]).await;
    // In step: a piece is sent after each answer, so every question falls into the install.
    for (number, piece) in bytes.chunks(bytes.len().div_ceil(200)).enumerate() {
        assert_eq!(client.manager().await.text("Compatible"), "sps");
        assert_eq!(client.job(&job).await.text("State"), "running", "question {number}");
        if number == 100 {
            let refused = client.install(File::open(&other).unwrap(), &[]).await.unwrap_err();
            assert_eq!(refused.name, "SlotBusy");
            assert_eq!(client.verify(1, "full").await.unwrap_err().name, "SlotEmpty");
            assert_eq!(client.delete(2).await.unwrap_err().name, "SlotBusy");
            assert_eq!(client.verified(2, "full").await.ended(), ("done".to_owned(), String::new()));
            assert_eq!(spsctl(&appliance, &["install", other.to_str().unwrap()]).refusal(), (19, "SlotBusy"));
            client.until_word(1, "writing").await;
        }
        sender.write_all(piece).unwrap();
    }
    drop(sender);
    done(&client.end(&job).await);
    assert_sound(&client, 1).await;
}

#[tokio::test]
async fn a_pipe_that_closes_anywhere_leaves_a_slot_that_resumes() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let (bytes, index) = image();
    let (root, end) = (root_at(&index), usize::try_from(index.payload_end()).unwrap());
    let at = |part: Part| usize::try_from(index.get(part).unwrap().offset).unwrap();
    for cut in [
        0,
        1,
        40_000,
        at(Part::Manifest) + 7,
        at(Part::Verity) + 100,
        at(Part::Verity) + 9000,
        root - 1,
        root,
    ]
    .into_iter()
    .chain([root + 1, root + 2 * MIB, root + 5 * MIB + 4097, end - 1])
    {
        let name = format!("cut-{cut}");
        let (job, sender) = piped(&client, &named(&name)).await;
        drop(send(sender, bytes[..cut].to_vec()).join().unwrap());
        let job = client.end(&job).await;
        assert_eq!(job.ended(), ("failed".into(), "MediaCorrupt".into()), "cut at {cut}");
        assert!(job.error().message.contains(&format!("ends at byte {cut}")), "{:?}", job.error());
        let next = job.get::<u64>("NextOffset");
        assert_eq!(client.word(1).await, if next == 0 { "empty" } else { "writing" }, "cut at {cut}");
        if cut >= root {
            assert_eq!(next, root as u64, "cut at {cut}");
        }
        // Between the parts there may be bytes that nobody needs.
        assert!(next <= cut as u64 || cut == root - 1, "byte {next} cannot be next: only {cut} arrived");

        let options = if next == 0 { named(&name).to_vec() } else { from(&name, next).to_vec() };
        let (job, sender) = piped(&client, &options).await;
        let sending = send(sender, bytes[usize::try_from(next).unwrap()..].to_vec());
        let result = done(&client.end(&job).await);
        sending.join().unwrap();
        assert_eq!(result.text("transaction_id"), name);
        let total: u64 = index.parts.iter().map(|(_, place)| place.size).sum();
        assert_eq!(result.get::<u64>("bytes_kept") + result.get::<u64>("bytes_written"), total);

        assert_sound(&client, 1).await;
        client.delete(1).await.unwrap();
    }
    assert!(appliance.log().contains(journal::INSTALL_FAILED));
}

#[tokio::test]
async fn a_cut_pipe_is_resumed_from_a_file_and_by_spsctl() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let (bytes, index) = image();
    let root = root_at(&index);
    let cut = root + 5 * MIB;
    let (job, sender) = halfway(&appliance, &client, "file").await;
    drop(sender);
    assert_eq!(client.end(&job).await.ended(), ("failed".into(), "MediaCorrupt".into()));
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    let result = done(&client.install_file(&iso, &named("file")).await);
    assert!(result.get::<u64>("bytes_kept") > 5 * MIB as u64);
    assert_sound(&client, 1).await;
    client.delete(1).await.unwrap();

    let (image, sender) = std::io::pipe().unwrap();
    let sending = send(sender, bytes[..cut].to_vec());
    let (slot, expected) = (appliance.path("slot-1"), bytes[root..cut].to_vec());
    // The writing end closes when all that was sent is in the slot.
    let closing = std::thread::spawn(move || {
        let sender = sending.join().unwrap();
        let look = || Ok(std::fs::read(&slot)?.starts_with(&expected).then_some(()));
        wait_for("5 MiB in the slot", look).unwrap();
        drop(sender);
    });
    let failed = spsctl_with(&appliance, &["install", "-", "--transaction", "t"], image);
    closing.join().unwrap();
    assert_eq!(failed.refusal(), (15, "MediaCorrupt"));
    let resume = &failed.json["resume"];
    assert_eq!(resume["transaction_id"], "t");
    let offset = resume["offset"].as_u64().unwrap();
    let expected = format!("install - --transaction t --offset {offset}");
    assert!(resume["command"].as_str().unwrap().ends_with(&expected), "{resume}");
    let (image, sender) = std::io::pipe().unwrap();
    let sending = send(sender, bytes[usize::try_from(offset).unwrap()..].to_vec());
    let words = ["install", "-", "--transaction", "t", "--offset", &offset.to_string()];
    let resumed = spsctl_with(&appliance, &words, image);
    sending.join().unwrap();
    assert_eq!(resumed.code, 0, "{}", resumed.errors);
    assert!(resumed.json["job"]["result"]["bytes_kept"].as_u64().unwrap() > 5 * MIB as u64);
    assert_sound(&client, 1).await;
}

/// Segments of 64 MiB are flushed and read back one by one; from there on nothing has to be sent again.
#[tokio::test]
async fn a_transfer_that_was_cut_late_goes_on_behind_the_last_whole_segment() {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    let appliance = Appliance::with(Layout { keyring, slot_size: 80 << 20, ..Layout::default() }).unwrap();
    let client = Client::of(&appliance).await;
    let bytes = std::fs::read(Workshop::shared().unwrap().sample("8.0.3", 68).unwrap().iso).unwrap();
    let Head::Complete(index) = parse_head(&bytes, None).unwrap() else {
        unreachable!("all bytes were given")
    };
    let segment = root_at(&index) + 64 * MIB;
    let (job, sender) = piped(&client, &named("t")).await;
    let sending = send(sender, bytes[..segment + MIB].to_vec());
    // Told while it runs, so that a client knows it when the daemon is gone.
    client.until(&job, |job| job.get::<u64>("NextOffset") == segment as u64).await;
    drop(sending.join().unwrap());
    let job = client.end(&job).await;
    assert_eq!((job.text("State"), job.get::<u64>("NextOffset")), ("failed".into(), segment as u64));
    let (job, sender) = piped(&client, &from("t", segment as u64)).await;
    let sending = send(sender, bytes[segment..].to_vec());
    let result = done(&client.end(&job).await);
    sending.join().unwrap();
    assert!(result.get::<u64>("bytes_kept") > 64 * MIB as u64);
    assert_sound(&client, 1).await;
}

#[tokio::test]
async fn an_offset_that_cannot_be_is_refused_and_changes_nothing() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let (job, sender) = halfway(&appliance, &client, "t").await;
    drop(sender);
    let next = client.end(&job).await.get::<u64>("NextOffset");
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    let open = || File::open(&iso).unwrap();
    let refused = client.install(open(), &from("another", next)).await.unwrap_err();
    assert_eq!(refused.name, "InvalidArgument");
    let refused = client.install(open(), &[("offset", next.into())]).await.unwrap_err();
    assert_eq!(refused.name, "InvalidArgument");
    let slot_2 = [from("t", next).to_vec(), vec![("slot", 2_u32.into())]].concat();
    assert_eq!(client.install(open(), &slot_2).await.unwrap_err().name, "InvalidArgument");
    // Past what is needed next: the bytes between would be missing.
    for offset in [next + 7 * MIB as u64, u64::MAX - 1, u64::MAX] {
        let job = client.install(open(), &from("t", offset)).await.unwrap();
        assert_eq!(client.end(&job).await.ended(), ("failed".into(), "InvalidArgument".into()), "{offset}");
        assert_eq!(client.word(1).await, "writing");
    }
    // Bytes that are not the image's are found out before they are written.
    let job = client.install(open(), &from("t", next)).await.unwrap();
    assert_eq!(client.end(&job).await.ended(), ("failed".into(), "MediaCorrupt".into()));
    // Another image under the same name is not mixed in.
    let other = Workshop::shared().unwrap().sample("8.0.2", 1).unwrap().iso;
    let job = client.install_file(&other, &named("t")).await;
    assert_eq!(job.ended(), ("failed".into(), "InvalidArgument".into()), "{:?}", job.error());
    assert!(done(&client.install_file(&iso, &named("t")).await).get::<u64>("bytes_kept") > 5 * MIB as u64);
    assert_sound(&client, 1).await;
}

#[tokio::test]
async fn a_cancelled_install_leaves_a_slot_that_resumes_or_is_deleted() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    let (job, _sender) = halfway(&appliance, &client, "t").await;
    client.cancel(&job).await.unwrap();
    assert_eq!(client.end(&job).await.ended(), ("cancelled".into(), "Cancelled".into()));
    let slot = client.slot(1).await;
    assert_eq!((slot.text("State"), slot.text("Version")), ("writing".to_owned(), String::new()));
    assert!(slot.text("Reason").contains("install t of manifest"), "{}", slot.text("Reason"));
    assert_eq!(client.notes(1).await.unwrap_err().name, "SlotEmpty");
    assert_eq!(client.manager().await.get::<u32>("EmptySlots"), 2);
    assert!(appliance.log().contains(journal::INSTALL_CANCELLED));
    assert!(done(&client.install_file(&iso, &named("t")).await).get::<u64>("bytes_kept") > 5 * MIB as u64);
    assert_sound(&client, 1).await;
    client.delete(1).await.unwrap();

    // The other way out, with spsctl.
    let (job, _sender) = halfway(&appliance, &client, "u").await;
    let number = job.rsplit('/').next().unwrap();
    assert_eq!(spsctl(&appliance, &["cancel", number]).code, 0);
    assert_eq!(spsctl(&appliance, &["wait", number]).refusal(), (26, "Cancelled"));
    assert_eq!(spsctl(&appliance, &["slots"]).json["slots"][1]["state"], "writing");
    assert_eq!(spsctl(&appliance, &["delete", "1"]).code, 0);
    assert_eq!(client.word(1).await, "empty");
    // What was deleted does not resume.
    let gone = client.install(File::open(&iso).unwrap(), &from("u", 4096)).await.unwrap_err();
    assert_eq!(gone.name, "InvalidArgument");
}

#[tokio::test]
async fn a_slot_that_is_replaced_shows_nothing_of_what_it_held() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let old = Workshop::shared().unwrap().sample("8.0.2", 1).unwrap().iso;
    done(&client.install_file(&old, &[("slot", 1_u32.into())]).await);
    let (bytes, index) = image();
    let (job, sender) = piped(&client, &[("slot", 1_u32.into()), ("replace", true.into())]).await;
    // Structures are read, nothing is decided: the old firmware still stands.
    let sender = send(sender, bytes[..40_000].to_vec()).join().unwrap();
    assert_eq!(client.slot(1).await.text("Version"), "8.0.2");
    let sender = send(sender, bytes[40_000..root_at(&index) + 5 * MIB].to_vec()).join().unwrap();
    written(&appliance, &bytes[root_at(&index)..root_at(&index) + 5 * MIB]);
    assert_eq!(client.until_word(1, "writing").await.text("Version"), "");
    assert_eq!(client.notes(1).await.unwrap_err().name, "SlotEmpty");
    let sending = send(sender, bytes[root_at(&index) + 5 * MIB..].to_vec());
    done(&client.end(&job).await);
    sending.join().unwrap();
    assert_eq!(client.slot(1).await.text("Version"), "8.0.1");
}

#[tokio::test]
async fn an_install_goes_on_when_its_caller_leaves_the_bus() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let (bytes, _) = image();
    let caller = Client::of(&appliance).await;
    let (job, sender) = piped(&caller, &[]).await;
    caller.connection.graceful_shutdown().await;
    let sending = send(sender, bytes);
    done(&client.end(&job).await);
    sending.join().unwrap();
    client.delete(1).await.unwrap();

    let caller = Client::of(&appliance).await;
    let iso = File::open(Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso).unwrap();
    let job = caller.install(iso, &[]).await.unwrap();
    drop(caller);
    done(&client.end(&job).await);
    assert_sound(&client, 1).await;
}

#[tokio::test]
async fn a_silent_pipe_is_given_up() {
    let appliance = with(1);
    let client = Client::of(&appliance).await;
    for sent in [0, 40_000] {
        // What fits into the pipe is sent before the install starts, so that no slow machine looks silent.
        let (image_end, mut sender) = std::io::pipe().unwrap();
        sender.write_all(&image().0[..sent]).unwrap();
        let job = client.install(OwnedFd::from(image_end), &[]).await.unwrap();
        let job = client.end(&job).await;
        assert_eq!(job.ended(), ("failed".into(), "MediaCorrupt".into()));
        assert!(
            job.error().message.contains(&format!("no byte arrived for 1s at byte {sent}")),
            "{:?}",
            job.error()
        );
        drop(sender);
    }
    assert_eq!(client.word(1).await, "empty");
}

#[tokio::test]
async fn a_daemon_that_is_killed_or_stopped_resumes_after_its_restart() {
    let mut appliance = appliance();
    let client = Client::of(&appliance).await;
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    for kill in [true, false] {
        let (_job, sender) = halfway(&appliance, &client, "t").await;
        if kill {
            appliance.kill_slotd().unwrap();
        } else {
            assert!(appliance.stop_slotd().unwrap().success());
            assert!(appliance.log().contains(journal::INSTALL_CANCELLED));
        }
        drop(sender);
        appliance.start_slotd().unwrap();
        assert_eq!(client.word(1).await, "writing", "killed: {kill}");
        assert_eq!(client.notes(1).await.unwrap_err().name, "SlotEmpty");
        let result = done(&client.install_file(&iso, &named("t")).await);
        assert!(result.get::<u64>("bytes_kept") > 5 * MIB as u64, "{}", result.get::<u64>("bytes_kept"));
        assert_sound(&client, 1).await;
        client.delete(1).await.unwrap();
    }
}

#[tokio::test]
async fn descriptors_that_carry_no_image_are_refused_and_the_slot_is_free_again() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let iso = Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso;
    let write_only = File::options().write(true).open(&iso).unwrap();
    let path_only = {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(0o10_000_000).open(&iso).unwrap()
    };
    let (_, writing_end) = std::io::pipe().unwrap();
    for (what, descriptor) in [
        ("directory", OwnedFd::from(File::open(appliance.path("esp")).unwrap())),
        ("/dev/zero", File::open("/dev/zero").unwrap().into()),
        ("/dev/null", File::open("/dev/null").unwrap().into()),
        ("write-only file", write_only.into()),
        ("O_PATH", path_only.into()),
        ("writing end of a pipe", writing_end.into()),
    ] {
        let job = client.install(descriptor, &[]).await.unwrap();
        let job = client.end(&job).await;
        assert_eq!(job.ended(), ("failed".into(), "InvalidArgument".into()), "{what}: {:?}", job.error());
        assert_eq!(client.word(1).await, "empty", "{what}");
    }
    done(&client.install_file(&iso, &[]).await);
}

#[tokio::test]
async fn a_flood_of_calls_is_answered_and_bounded() {
    let appliance = appliance();
    let client = Client::of(&appliance).await;
    let iso = Workshop::shared().unwrap().sample("8.0.2", 1).unwrap().iso;
    done(&client.install_file(&iso, &[]).await);
    let mut answers = Vec::new();
    // The bus itself lets nobody have many more questions open.
    for _ in 0..10 {
        let calls = (0..100).map(|_| client.verify(1, "full"));
        answers.extend(futures_util::future::join_all(calls).await);
    }
    let mut started = 0;
    for answer in answers {
        match answer {
            Ok(_) => started += 1,
            Err(refused) => assert_eq!(refused.name, "SlotBusy", "{}", refused.message),
        }
    }
    assert!(started > 0);
    let jobs = || Ok(spsctl(&appliance, &["jobs"]).json["jobs"].as_array().unwrap().clone());
    let jobs = wait_for("end of all jobs", || {
        jobs().map(|jobs| jobs.iter().all(|job| job["state"] != "running").then_some(jobs))
    });
    assert!(jobs.unwrap().len() <= 32);
    // Values that are too long stop at the door and are not repeated in full.
    let long = "x".repeat(1 << 20);
    for option in ["transaction_id", "manifest_sha256"] {
        let refused =
            client.install(File::open(&iso).unwrap(), &[(option, long.clone().into())]).await.unwrap_err();
        assert_eq!(refused.name, "InvalidArgument");
        assert!(refused.message.contains(option) && refused.message.len() < 300, "{}", refused.message.len());
    }
    let refused = client.install(File::open(&iso).unwrap(), &[(&long, true.into())]).await.unwrap_err();
    assert!(refused.name == "InvalidArgument" && refused.message.len() < 300, "{}", refused.message.len());
    assert_sound(&client, 1).await;
}
