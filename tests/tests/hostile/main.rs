//! Images that are damaged, forged, too old, for somebody else, or that never arrive in full.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests and what they share")]

mod media;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use slotd::domain::iso::{Head, Index, parse_head};
use slotd::domain::layout::{Layout, Part};
use slotd::domain::manifest::{Manifest, UpgradeFrom};
use slotd::domain::verity::Geometry;
use slotd::store::{Failure, InstallReport, InstallRequest, Progress, SlotWord, Store, VerifyMode};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;
use sps_images::FirmwareSpec;
use system_tests::firmware::Workshop;
use system_tests::lab::{Lab, install};

const SLOT: u64 = 32 << 20;

/// A directory of this program, with images that every test may use.
struct Shelf {
    workshop: Workshop,
    _directory: tempfile::TempDir,
    /// 8.0.1 with 12 MiB of noise: several chunks.
    good: Vec<u8>,
    /// 8.0.2, small.
    small: Vec<u8>,
}

fn shelf() -> &'static Shelf {
    static SHELF: OnceLock<Shelf> = OnceLock::new();
    SHELF.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let workshop = Workshop::new(&directory.path().join("build")).unwrap();
        let read = |version: &str, mib: usize| {
            let spec = workshop.spec(version, mib).unwrap();
            fs::read(workshop.build(&spec, &format!("shelf-{version}.iso")).unwrap().iso).unwrap()
        };
        let (good, small) = (read("8.0.1", 12), read("8.0.2", 1));
        Shelf { workshop, _directory: directory, good, small }
    })
}

/// A small image that differs from 8.0.2 in what `change` says.
fn variant(name: &str, change: impl FnOnce(&mut FirmwareSpec)) -> Vec<u8> {
    let workshop = &shelf().workshop;
    let mut spec = workshop.spec("8.0.2", 1).unwrap();
    change(&mut spec);
    fs::read(workshop.build(&spec, &format!("{name}.iso")).unwrap().iso).unwrap()
}

/// Two empty slots in memory, and their store.
struct Bench {
    directory: tempfile::TempDir,
    lab: Lab,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        Self::with_slots_of(SLOT)
    }

    fn with_slots_of(size: u64) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let lab = Lab::new(&directory.path().join("lab"), &shelf().workshop.keyring(), 2, size).unwrap();
        let store = lab.store("").unwrap();
        Self { directory, lab, store }
    }

    /// The same media after a restart, running the firmware of slot 1.
    fn running_slot_1(mut self) -> Self {
        let hash = self.store.slots().into_iter().find(|v| v.id == slot(1)).unwrap().root_hash;
        self.store = self.lab.store(&format!("quiet roothash={hash} ro")).unwrap();
        self
    }

    /// SHA-256 of every medium: slots, state, and each file of the ESP.
    fn digests(&self) -> BTreeMap<String, String> {
        let mut digests = BTreeMap::new();
        digest_tree(&self.lab.root, &mut digests);
        assert!(digests.len() >= 3);
        digests
    }

    fn descriptor(&self, image: &[u8]) -> OwnedFd {
        let path = self.directory.path().join("image.iso");
        fs::write(&path, image).unwrap();
        File::open(path).unwrap().into()
    }

    fn install(&self, image: &[u8], request: &InstallRequest) -> Result<InstallReport, Failure> {
        install(&self.store, self.descriptor(image), request)
    }

    fn word(&self, id: u32) -> SlotWord {
        self.store.slots().iter().find(|v| v.id == slot(id)).unwrap().state
    }

    /// Refused with `kind`, in words that name `text`, and no byte of any medium is another.
    fn refuses(&self, image: &[u8], request: &InstallRequest, kind: ErrorKind, text: &str) {
        let before = self.digests();
        let failure = self.install(image, request).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(text), "{failure:?} does not name {text:?}");
        assert_eq!(self.digests(), before, "{failure}");
    }

    /// Slot 1 holds zeros and bytes of the signed image, nothing else.
    fn assert_only_proven(&self, good: &[u8]) {
        let index = index(good);
        let text = part(good, &index, Part::Manifest);
        let manifest = Manifest::parse(text).unwrap();
        let signature = part(good, &index, Part::Signature);
        let layout = Layout::of(&manifest, text.len() as u64, signature.len() as u64);
        let slot = fs::read(self.lab.slot(1)).unwrap();
        let mut wanted = vec![0; slot.len()];
        for (part_, place) in layout.parts() {
            let bytes = part(good, &index, *part_);
            wanted[usize::try_from(place.offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
        }
        for (number, (there, wanted)) in slot.chunks(4096).zip(wanted.chunks(4096)).enumerate() {
            assert!(there == wanted || there.iter().all(|b| *b == 0), "block {number} is of no signed image");
        }
    }

    fn assert_healthy(&self, id: u32) {
        let reservation = self.store.reserve_verify(slot(id)).unwrap();
        let report = self.store.verify(&reservation, VerifyMode::Full, false, &Progress::default()).unwrap();
        assert!(report.healthy, "{report:?}");
    }
}

fn digest_tree(path: &Path, digests: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            digest_tree(&path, digests);
        } else {
            let digest = hex::encode(Sha256::digest(fs::read(&path).unwrap()));
            digests.insert(path.display().to_string(), digest);
        }
    }
}

fn slot(id: u32) -> SlotId {
    SlotId::new(id).unwrap()
}

fn index(image: &[u8]) -> Index {
    match parse_head(image, Some(image.len() as u64)).unwrap() {
        Head::Complete(index) => index,
        Head::Needs(n) => panic!("{n} bytes are needed"),
    }
}

fn part<'a>(image: &'a [u8], index: &Index, part: Part) -> &'a [u8] {
    let extent = index.get(part).unwrap();
    &image[usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap()]
}

/// The image with one bit flipped, `at` bytes into a part (from its end when negative).
fn flipped(image: &[u8], in_part: Part, at: i64) -> Vec<u8> {
    let extent = index(image).get(in_part).unwrap();
    let base = if at < 0 { extent.end() } else { extent.offset };
    let mut bad = image.to_vec();
    bad[usize::try_from(base.checked_add_signed(at).unwrap()).unwrap()] ^= 1;
    bad
}

fn named(transaction: &str) -> InstallRequest {
    InstallRequest { transaction_id: Some(transaction.into()), ..InstallRequest::default() }
}

fn plain() -> InstallRequest {
    InstallRequest::default()
}

// rows: A6
#[test]
fn what_is_forged_or_damaged_up_to_the_top_of_the_tree_changes_nothing() {
    let bench = Bench::new();
    let good = &shelf().good;
    let signature = "signature";
    for at in [0, 200, -1] {
        bench.refuses(&flipped(good, Part::Manifest, at), &plain(), ErrorKind::SignatureInvalid, "");
    }
    bench.refuses(&flipped(good, Part::Signature, -1), &plain(), ErrorKind::SignatureInvalid, signature);
    bench.refuses(&flipped(good, Part::Signature, 0), &plain(), ErrorKind::SignatureInvalid, "");
    bench.refuses(&flipped(good, Part::Notes, 0), &plain(), ErrorKind::MediaCorrupt, "notes.md, byte 0");
    for at in [0, 20, 88, 4095] {
        bench.refuses(
            &flipped(good, Part::Verity, at),
            &plain(),
            ErrorKind::MediaCorrupt,
            "root.verity, byte 0",
        );
    }
    for at in [4096, 8191] {
        let text = "root.verity, byte 4096";
        bench.refuses(&flipped(good, Part::Verity, at), &plain(), ErrorKind::MediaCorrupt, text);
    }
    // A file that is shorter than its directory says is known to be before anything is written.
    let found = index(good);
    let end = usize::try_from(found.payload_end()).unwrap();
    for keep in [end - 1, end / 2, usize::try_from(found.get(Part::Root).unwrap().offset).unwrap()] {
        bench.refuses(&good[..keep], &plain(), ErrorKind::MediaCorrupt, "truncated");
    }
    for keep in [0, 1, 32 << 10, 34 << 10] {
        bench.refuses(&good[..keep], &plain(), ErrorKind::MediaCorrupt, "ends at byte");
    }
    bench.refuses(&vec![0; 1 << 20], &plain(), ErrorKind::MediaCorrupt, "no ISO 9660 volume");
    assert_eq!((bench.word(1), bench.word(2)), (SlotWord::Empty, SlotWord::Empty));
}

#[test]
fn what_nobody_trusted_signed_is_refused() {
    let bench = Bench::new();
    let unsigned = variant("unsigned", |spec| spec.signed = false);
    bench.refuses(&unsigned, &plain(), ErrorKind::SignatureInvalid, "manifest.p7s");
    let workshop = &shelf().workshop;
    let spec = workshop.spec("8.0.2", 1).unwrap();
    let foreign = fs::read(workshop.build_foreign(&spec, "foreign.iso").unwrap().iso).unwrap();
    bench.refuses(&foreign, &plain(), ErrorKind::Untrusted, "");
}

// rows: A6
#[test]
fn what_policy_forbids_is_refused_with_its_reason() {
    let bench = Bench::new();
    let other = variant("product", |spec| spec.product = "box".into());
    bench.refuses(&other, &plain(), ErrorKind::Incompatible, "box");
    let other = variant("hardware", |spec| spec.hardware = vec!["m1".into(), "m2".into()]);
    bench.refuses(&other, &plain(), ErrorKind::Incompatible, "hardware not supported");
    let fifth = variant("epoch", |spec| spec.security_epoch = 5);
    bench.install(&fifth, &plain()).unwrap();
    let bench = bench.running_slot_1();
    bench.refuses(&shelf().good, &plain(), ErrorKind::EpochTooOld, "epoch 1 is below 5");
    let older = variant("older", |spec| {
        spec.version = "8.0.0".into();
        spec.security_epoch = 5;
    });
    bench.refuses(&older, &plain(), ErrorKind::VersionPolicy, "older");
    let unlisted = variant("unlisted", |spec| {
        spec.version = "9.0".into();
        spec.security_epoch = 5;
        spec.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.5".into() }];
    });
    bench.refuses(&unlisted, &plain(), ErrorKind::VersionPolicy, "8 from 8.5");
    // What nothing runs from may be anything that is trusted: the floor of a fresh state is that of the slots.
    let Bench { lab, directory, .. } = bench;
    let store = lab.store("").unwrap();
    store.reset_state("test").unwrap();
    let bench = Bench { directory, lab, store };
    bench.refuses(&shelf().good, &plain(), ErrorKind::EpochTooOld, "below 5");
}

#[test]
fn what_the_request_or_the_slots_forbid_is_refused() {
    let bench = Bench::with_slots_of(4 << 20);
    bench.refuses(&shelf().good, &plain(), ErrorKind::NoSpace, "slot 1 has 4194304");
    let bench = Bench::new();
    let small = &shelf().small;
    let wrong = InstallRequest { manifest_sha256: Some([7; 32]), ..plain() };
    bench.refuses(small, &wrong, ErrorKind::InvalidArgument, &"07".repeat(32));
    let nothing = InstallRequest { offset: 4096, ..named("t") };
    bench.refuses(small, &nothing, ErrorKind::InvalidArgument, "offset");
    let right = Sha256::digest(part(small, &index(small), Part::Manifest)).into();
    bench.install(small, &InstallRequest { manifest_sha256: Some(right), ..plain() }).unwrap();
    bench.refuses(small, &plain(), ErrorKind::AlreadyInstalled, "slot 1");
    let into_1 = InstallRequest { slot: Some(slot(1)), ..plain() };
    bench.refuses(&shelf().good, &into_1, ErrorKind::NoEmptySlot, "replace");
    let repair = InstallRequest { repair: true, ..into_1.clone() };
    bench.refuses(&shelf().good, &repair, ErrorKind::NoEmptySlot, "does not repair");
    bench.install(small, &repair).unwrap();
    bench.assert_healthy(1);
    let replace = InstallRequest { replace: true, ..into_1.clone() };
    let bench = bench.running_slot_1();
    for request in [&into_1, &replace, &repair] {
        bench.refuses(&shelf().good, request, ErrorKind::SlotInUse, "running");
    }
}

#[test]
fn a_slot_that_may_be_the_running_one_is_spared() {
    let bench = Bench::new();
    bench.install(&shelf().small, &plain()).unwrap();
    let bench = bench.running_slot_1();
    // The trailer of the running slot is damaged: no slot proves to carry the booted root hash.
    let hash = bench.store.slots()[1].root_hash.clone();
    let Bench { lab, directory, .. } = bench;
    let file = File::options().write(true).open(lab.slot(1)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", SLOT - 4096).unwrap();
    let store = lab.store(&format!("roothash={hash}")).unwrap();
    let bench = Bench { directory, lab, store };
    assert_eq!(bench.word(1), SlotWord::Bad);
    let before = bench.digests();
    assert_eq!(bench.store.delete(slot(1)).unwrap_err().kind, ErrorKind::SlotInUse);
    assert_eq!(bench.digests(), before);
    let replace = InstallRequest { slot: Some(slot(1)), replace: true, ..plain() };
    bench.refuses(&shelf().good, &replace, ErrorKind::SlotInUse, "may run from this slot");
    // The empty one is free.
    assert_eq!(bench.install(&shelf().good, &plain()).unwrap().slot, slot(2));
    // And where nothing runs from a slot, a bad one may be deleted.
    bench.lab.store("").unwrap().delete(slot(1)).unwrap();
}

// rows: A6
#[test]
fn damage_that_shows_while_writing_leaves_a_slot_that_says_so_and_goes_on() {
    let good = &shelf().good;
    let found = index(good);
    let root = found.get(Part::Root).unwrap();
    let level = Geometry::new(root.size / 4096).levels[0];
    let middle = i64::try_from(root.size / 2).unwrap();
    let leaf_hash = i64::try_from((level.start + level.blocks / 2) * 4096).unwrap();
    // Part, place of the damage, and whether something is in place for the next run.
    let cases = [
        (Part::Verity, leaf_hash, "root.verity, byte", false),
        (Part::Verity, -1, "root.verity, byte", false),
        (Part::FileList, 0, "files.ndjson.zst, byte 0", true),
        (Part::FileList, -1, "files.ndjson.zst, byte 0", true),
        (Part::Root, 0, "root.erofs, byte 0", true),
        (Part::Root, middle, "root.erofs, byte", true),
        (Part::Root, -1, "root.erofs, byte", true),
    ];
    for (damaged, at, text, kept) in cases {
        let bench = Bench::new();
        let failure = bench.install(&flipped(good, damaged, at), &named("t-1")).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::MediaCorrupt, "{failure}");
        assert!(failure.message.contains(text), "{failure}");
        assert_eq!((bench.word(1), bench.word(2)), (SlotWord::Writing, SlotWord::Empty));
        bench.assert_only_proven(good);
        // Another image of that name is refused; the good one goes on where it can.
        let before = bench.digests();
        let other = bench.install(&shelf().small, &named("t-1")).unwrap_err();
        assert_eq!((other.kind, bench.digests() == before), (ErrorKind::InvalidArgument, true), "{other}");
        let report = bench.install(good, &named("t-1")).unwrap();
        assert_eq!((report.slot, report.bytes_kept > 0), (slot(1), kept), "{damaged:?} at {at}: {report:?}");
        bench.assert_healthy(1);
    }
}

/// A pipe that carries `image` from `from` to `to`; then `end` is called, and the pipe ends when that is over.
fn pipe(image: &'static [u8], from: u64, to: usize, end: impl FnOnce() + Send + 'static) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    thread::spawn(move || {
        // Whoever has enough stops reading.
        let _ = writer.write_all(&image[usize::try_from(from).unwrap()..to]);
        end();
    });
    reader.into()
}

#[test]
fn a_pipe_that_breaks_is_gone_on_with_over_a_new_one() {
    let good = &shelf().good[..];
    let found = index(good);
    let at = |part: Part, bytes: u64| usize::try_from(found.get(part).unwrap().offset + bytes).unwrap();
    let cuts = [
        0,
        40_000,
        at(Part::Manifest, 10),
        at(Part::Verity, 4096),
        at(Part::Verity, 3 * 4096 + 17),
        at(Part::FileList, 1),
        at(Part::Root, 0),
        at(Part::Root, 5_000_001),
        usize::try_from(found.payload_end()).unwrap() - 1,
    ];
    for cut in cuts {
        let bench = Bench::new();
        let run = |request: &InstallRequest, descriptor: OwnedFd| {
            let progress = Progress::default();
            let reservation = bench.store.reserve_install(request).unwrap();
            (bench.store.install(reservation, descriptor, request, &progress), progress.next_offset())
        };
        let request = named("job-7");
        let (failed, next) = run(&request, pipe(good, 0, cut, || {}));
        let failure = failed.unwrap_err();
        assert_eq!(failure.kind, ErrorKind::MediaCorrupt, "cut at {cut}: {failure}");
        assert!(failure.message.contains(&format!("ends at byte {cut}")), "{failure}");
        assert!(next <= cut as u64, "{next} is asked for, {cut} bytes were sent");
        let word = if next == 0 { SlotWord::Empty } else { SlotWord::Writing };
        assert_eq!(bench.word(1), word, "cut at {cut}");
        bench.assert_only_proven(good);
        let request = InstallRequest { offset: next, ..request };
        let (done, _) = run(&request, pipe(good, next, good.len(), || {}));
        let report = done.unwrap_or_else(|e| panic!("cut at {cut}, resumed at {next}: {e}"));
        assert_eq!(
            (report.slot, report.bytes_kept > 0),
            (slot(1), next > index_of_tree(&found)),
            "{report:?}"
        );
        bench.assert_healthy(1);
    }
}

fn index_of_tree(index: &Index) -> u64 {
    index.get(Part::Verity).unwrap().offset
}

#[test]
fn a_new_transfer_that_begins_too_late_is_refused_and_the_right_one_still_works() {
    let good = &shelf().good[..];
    let found = index(good);
    let root = found.get(Part::Root).unwrap().offset;
    let bench = Bench::new();
    let cut = usize::try_from(root).unwrap() + 100;
    let request = named("late");
    install(&bench.store, pipe(good, 0, cut, || {}), &request).unwrap_err();
    for offset in [root + 4096, good.len() as u64, u64::MAX] {
        let late = InstallRequest { offset, ..request.clone() };
        let failure = install(&bench.store, bench.descriptor(&[]), &late).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::InvalidArgument, "{failure}");
        assert_eq!(bench.word(1), SlotWord::Writing);
        bench.assert_only_proven(good);
    }
    // Bytes from elsewhere in the image are not taken for those that are due.
    let shifted = InstallRequest { offset: root, ..request.clone() };
    let failure = install(&bench.store, pipe(good, root + 4096, good.len(), || {}), &shifted).unwrap_err();
    assert_eq!(failure.kind, ErrorKind::MediaCorrupt, "{failure}");
    bench.assert_only_proven(good);
    let report = install(&bench.store, pipe(good, root, good.len(), || {}), &shifted).unwrap();
    assert!(report.bytes_kept > 0);
    bench.assert_healthy(1);
}

#[test]
fn a_deletion_elsewhere_abandons_an_interrupted_install_and_says_so() {
    let bench = Bench::new();
    bench.install(&shelf().small, &plain()).unwrap();
    let good = &shelf().good[..];
    install(&bench.store, pipe(good, 0, good.len() / 2, || {}), &named("cut")).unwrap_err();
    assert_eq!(bench.word(2), SlotWord::Writing);
    bench.store.delete(slot(1)).unwrap();
    assert_eq!((bench.word(1), bench.word(2)), (SlotWord::Empty, SlotWord::Empty));
    let restarted = bench.lab.store("").unwrap();
    assert_eq!(restarted.slots(), bench.store.slots(), "a restart shows the same");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cancelled_install_leaves_an_honest_slot(point in any::<prop::sample::Index>()) {
        let good = &shelf().good[..];
        let bench = Bench::new();
        let end = usize::try_from(index(good).payload_end()).unwrap();
        let point = point.index(end);
        let request = named("c");
        let progress = Arc::new(Progress::default());
        let canceller = Arc::clone(&progress);
        // Cancelled after so many bytes; the pipe stays open until the install has heard of it.
        let (heard, wait) = std::sync::mpsc::channel::<()>();
        let descriptor = pipe(good, 0, point, move || {
            canceller.cancel();
            let _ = wait.recv();
        });
        let reservation = bench.store.reserve_install(&request).unwrap();
        let failure = bench.store.install(reservation, descriptor, &request, &progress).unwrap_err();
        drop(heard);
        prop_assert_eq!(failure.kind, ErrorKind::Cancelled);
        let word = bench.word(1);
        prop_assert!(word == SlotWord::Writing || word == SlotWord::Empty, "{:?}", word);
        bench.assert_only_proven(good);
        let report = bench.install(good, &request).unwrap();
        prop_assert_eq!(report.slot, slot(1));
        bench.assert_healthy(1);
    }

    #[test]
    fn no_damaged_image_is_ever_verified(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..=255), 1..4),
        head in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let good = &shelf().small[..];
        let found = index(good);
        let end = usize::try_from(found.payload_end()).unwrap();
        let mut bad = good.to_vec();
        // Half of the cases damage the structures, which are a small part of the image.
        let range = if head { usize::try_from(found.get(Part::Verity).unwrap().end()).unwrap() } else { end };
        for (at, mask) in damage {
            bad[at.index(range)] ^= mask;
        }
        if let Some(cut) = cut {
            bad.truncate(cut.index(end));
        }
        let bench = Bench::new();
        match bench.install(&bad, &plain()) {
            // The damage lies where nothing is looked at; what is in the slot is right all the same.
            Ok(_) => {
                prop_assert_eq!(bench.word(1), SlotWord::Verified);
                bench.assert_healthy(1);
            }
            Err(failure) => {
                let kinds = [ErrorKind::MediaCorrupt, ErrorKind::SignatureInvalid, ErrorKind::Untrusted];
                prop_assert!(kinds.contains(&failure.kind), "{:?}", failure);
                prop_assert_ne!(bench.word(1), SlotWord::Verified);
                bench.assert_only_proven(good);
            }
        }
        let restarted = bench.lab.store("").unwrap();
        prop_assert_eq!(restarted.slots(), bench.store.slots(), "a restart shows the same");
    }
}
