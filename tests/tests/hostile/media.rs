//! Media that fail under an install, and boot images that are not where they belong.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use slotd::device::medium::{FileMedium, Medium, MediumError};
use slotd::device::probe::Readback;
use slotd::domain::layout::{Layout, Part};
use slotd::domain::manifest::{Boot, MANIFEST_NAME, Manifest, PAYLOAD_ORDER, SIGNATURE_NAME, Sha256Hex};
use slotd::domain::verity::Geometry;
use slotd::store::{InstallRequest, Progress, SlotWord, Store, VerifyMode};
use sps_base::error::ErrorKind;
use system_tests::lab::install;

use super::{Bench, index, named, part, pipe, plain, shelf, slot};

/// A slot whose tree cannot be read block by block, as a resume reads it, for the first `sick` times.
#[derive(Debug)]
struct SickTree {
    inner: FileMedium,
    tree: std::ops::Range<u64>,
    sick: AtomicU64,
}

impl Medium for SickTree {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        let fails =
            || self.sick.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        if buf.len() == 4096 && self.tree.contains(&offset) && fails() {
            let source = std::io::Error::from_raw_os_error(nix::libc::EIO);
            return Err(MediumError { path: "sick".into(), operation: "read", offset, length: 4096, source });
        }
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        self.inner.write_at(offset, data)
    }
    fn flush(&self) -> Result<(), MediumError> {
        self.inner.flush()
    }
    fn readback(&self) -> Readback {
        self.inner.readback()
    }
}

#[test]
fn a_resume_keeps_nothing_that_the_tree_could_not_prove() {
    let good = &shelf().good[..];
    let found = index(good);
    let root = found.get(Part::Root).unwrap();
    let level = Geometry::new(root.size / 4096).levels[0];
    let start = root.size + level.start * 4096;
    let bench = Bench::new();
    // Cut at the first byte of the root: none of its data is in the slot.
    let cut = usize::try_from(root.offset).unwrap();
    install(&bench.store, pipe(good, 0, cut, || {}), &named("t")).unwrap_err();
    let medium = SickTree {
        inner: FileMedium::open(&bench.lab.slot(1)).unwrap(),
        tree: start..start + level.blocks * 4096,
        sick: AtomicU64::new(level.blocks),
    };
    let mut assembly = bench.lab.assembly("").unwrap();
    assembly.slots[0].2 = Ok(Arc::new(medium));
    let store = Store::assemble(assembly);
    match install(&store, bench.descriptor(good), &named("t")) {
        Ok(_) => {}
        Err(failure) => assert_eq!(failure.kind, ErrorKind::Device, "{failure}"),
    }
    let bench = Bench { store: bench.lab.store("").unwrap(), ..bench };
    if bench.word(1) == SlotWord::Verified {
        bench.assert_healthy(1);
    }
}

/// The small image with a boot image, signed anew: only its manifest says that it boots.
fn bootable() -> Vec<u8> {
    let (workshop, small) = (&shelf().workshop, &shelf().small);
    let directory = tempfile::tempdir().unwrap();
    let found = index(small);
    let mut manifest = Manifest::parse(part(small, &found, Part::Manifest)).unwrap();
    for (part_, _) in &found.parts {
        fs::write(directory.path().join(part_.name()), part(small, &found, *part_)).unwrap();
    }
    manifest.boot = Boot::Uki;
    for name in ["boot.efi", "recovery.efi"] {
        let bytes = format!("{name} of a test").repeat(5000);
        fs::write(directory.path().join(name), &bytes).unwrap();
        let sha256 = Sha256Hex(Sha256::digest(&bytes).into());
        manifest.files.push(slotd::domain::manifest::File {
            name: name.into(),
            pieces: Vec::new(),
            sha256,
            size: bytes.len() as u64,
        });
    }
    let text = directory.path().join(MANIFEST_NAME);
    fs::write(&text, manifest.render()).unwrap();
    let at = system_tests::lab::now();
    workshop.pki.sign(&text, at, &directory.path().join(SIGNATURE_NAME)).unwrap();
    let iso = tempfile::NamedTempFile::new().unwrap();
    fs::remove_file(iso.path()).unwrap();
    let mut tool = std::process::Command::new("xorriso");
    tool.args(["-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-U"]);
    for (number, name) in [MANIFEST_NAME, SIGNATURE_NAME].iter().chain(&PAYLOAD_ORDER).enumerate() {
        if !directory.path().join(name).exists() {
            continue;
        }
        tool.args(["--sort-weight", &(1000 - number).to_string(), &format!("/FIRMWARE/{name}")]);
    }
    tool.arg("-o")
        .arg(iso.path())
        .arg("-graft-points")
        .arg(format!("/FIRMWARE={}", directory.path().display()));
    let out = tool.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    fs::read(iso.path()).unwrap()
}

#[test]
fn a_boot_image_is_put_back_and_a_slot_without_it_is_not_called_verified() {
    let image = bootable();
    let bench = Bench::new();
    bench.install(&image, &plain()).unwrap();
    let directory = bench.lab.root.join("esp/EFI/Linux");
    let file = directory.join("sps-slot-1.efi");
    let right = fs::read(&file).unwrap();
    // Missing, short, other: put back from the slot at the next start.
    for damage in [None, Some(right[..7].to_vec()), Some(vec![0; right.len()])] {
        fs::remove_file(&file).unwrap();
        if let Some(bytes) = damage {
            fs::write(&file, bytes).unwrap();
        }
        let store = bench.lab.store("").unwrap();
        assert_eq!(store.slots()[1].state, SlotWord::Verified);
        assert_eq!(fs::read(&file).unwrap(), right);
    }
    // Where the ESP does not take it, the slot is not called verified, for it would not boot.
    fs::remove_file(&file).unwrap();
    fs::remove_dir(&directory).unwrap();
    let assembly = bench.lab.assembly("").unwrap();
    fs::remove_dir(&directory).unwrap();
    let store = Store::assemble(assembly);
    let view = &store.slots()[1];
    assert_eq!(view.state, SlotWord::Bad);
    assert!(view.reason.starts_with("boot-image"), "{}", view.reason);
    assert_eq!(bench.lab.store("").unwrap().slots()[1].state, SlotWord::Verified);
}

/// Found by the crash checker on a medium with a flipped bit: the sequence number of a slot that cannot be read any more
/// was given out again, and the finding of the old check with it.
#[test]
fn what_was_found_in_a_slot_is_not_said_of_the_next_firmware() {
    let (bench, newer) = (Bench::new(), &shelf().small);
    bench.install(&shelf().good, &plain()).unwrap();
    let mut bench = bench.running_slot_1();
    bench.install(newer, &plain()).unwrap();
    let flip = |bench: &Bench, offset: u64| {
        let file = fs::File::options().read(true).write(true).open(bench.lab.slot(2)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    };
    flip(&bench, 4096);
    let reservation = bench.store.reserve_verify(slot(2)).unwrap();
    let report = bench.store.verify(&reservation, VerifyMode::Full, false, &Progress::default()).unwrap();
    assert!(!report.healthy && bench.word(2) == SlotWord::Bad, "{report:?}");
    drop(reservation);

    let found = index(newer);
    let text = part(newer, &found, Part::Manifest);
    let signature = part(newer, &found, Part::Signature).len() as u64;
    let layout = Layout::of(&Manifest::parse(text).unwrap(), text.len() as u64, signature);
    flip(&bench, layout.get(Part::Manifest).unwrap().offset);
    bench = bench.running_slot_1();
    assert_eq!(bench.word(2), SlotWord::Bad);
    let over = InstallRequest { slot: Some(slot(2)), replace: true, ..plain() };
    bench.install(newer, &over).unwrap();
    assert_eq!(bench.word(2), SlotWord::Verified);
    bench.assert_healthy(2);
}
