//! The engine on real files: install, verify, delete, resume.
#![expect(clippy::unwrap_used, reason = "tests and what they share")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use slotd::device::loader::efivarfs::Efivarfs;
use slotd::device::loader::uefi::SystemdBoot;
use slotd::domain::efivar;
use slotd::store::{InstallRequest, Progress, SlotWord, Store, VerifyMode};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;
use system_tests::firmware::Workshop;
use system_tests::lab::{Lab, install};

fn slot(id: u32) -> SlotId {
    SlotId::new(id).unwrap()
}

fn word(store: &Store, id: u32) -> SlotWord {
    store.slots().iter().find(|v| v.id == slot(id)).unwrap().state
}

// rows: A5 A6 J3
#[test]
fn an_iso_is_installed_verified_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let workshop = Workshop::new(&dir.path().join("build")).unwrap();
    let built = workshop.build(&workshop.spec("8.0.1", 24).unwrap(), "a.iso").unwrap();
    let lab = Lab::new(&dir.path().join("lab"), &workshop.keyring(), 2, 64 << 20).unwrap();
    let store = lab.store("").unwrap();
    let report = install(&store, File::open(&built.iso).unwrap(), &InstallRequest::default()).unwrap();
    assert_eq!((report.slot, report.version.as_str()), (slot(1), "8.0.1"));
    assert_eq!(word(&store, 1), SlotWord::Verified);
    assert!(store.notes(slot(1)).unwrap().contains("8.0.1"));
    for mode in [VerifyMode::Quick, VerifyMode::Full] {
        let report =
            store.verify(&store.reserve_verify(slot(1)).unwrap(), mode, false, &Progress::default()).unwrap();
        assert!(report.healthy, "{report:?}");
    }
    // The same again after a restart: nothing but the slot says so.
    let store = lab.store("").unwrap();
    assert_eq!(word(&store, 1), SlotWord::Verified);
    // A flipped byte in a file is found and named.
    let file = File::options().read(true).write(true).open(lab.slot(1)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5 << 20).unwrap();
    let report = store
        .verify(&store.reserve_verify(slot(1)).unwrap(), VerifyMode::Full, false, &Progress::default())
        .unwrap();
    assert!(!report.healthy);
    assert_eq!(report.extents, [((5 << 20) / 4096, 1)]);
    assert_eq!(report.owners, ["file /usr/bin/noise"]);
    assert_eq!(word(&store, 1), SlotWord::Bad);
    store.delete(slot(1)).unwrap();
    assert_eq!(word(&store, 1), SlotWord::Empty);
    assert_eq!(store.delete(slot(1)).unwrap_err().kind, ErrorKind::SlotEmpty);
    assert!(fs::metadata(lab.slot(1)).unwrap().len() == 64 << 20);
}

#[test]
fn of_two_slots_with_the_same_root_the_one_runs_that_the_loader_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let workshop = Workshop::new(&dir.path().join("build")).unwrap();
    let built = workshop.build(&workshop.spec("8.0.1", 1).unwrap(), "a.iso").unwrap();
    let lab = Lab::new(&dir.path().join("lab"), &workshop.keyring(), 2, 16 << 20).unwrap();
    install(&lab.store("").unwrap(), File::open(&built.iso).unwrap(), &InstallRequest::default()).unwrap();
    fs::copy(lab.slot(1), lab.slot(2)).unwrap();
    let cmdline = format!("roothash={} ro", built.manifest.root.verity.root_hash);
    let variables = lab.root.join("efivars");
    fs::create_dir(&variables).unwrap();
    for (started, slot_of_root) in
        [("", 1), ("sps-slot-1.efi", 1), ("sps-slot-2.efi", 2), ("sps-recovery-8.efi", 1)]
    {
        if let Ok(bytes) = efivar::encode(started) {
            fs::write(variables.join(efivar::file_name(efivar::STARTED)), bytes).unwrap();
        }
        let mut parts = lab.assembly(&cmdline).unwrap();
        let loader = SystemdBoot::new(Efivarfs::new(&variables), &lab.root.join("esp"));
        parts.loader = Some(Ok(Arc::new(loader)));
        let store = Store::look(parts);
        assert_eq!(store.slot_of_root(), Some(slot(slot_of_root)), "{started}");
        assert_eq!(store.summary().booted, slot(slot_of_root), "{started}");
    }
}
