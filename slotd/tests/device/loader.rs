//! The contract of `Loader`, which every boot loader passes.

use std::os::unix::fs::symlink;
use std::path::Path;

use slotd::device::loader::efivarfs::Efivarfs;
use slotd::device::loader::grub::{FileBlock, Grub};
use slotd::device::loader::uefi::{LOADER_CONF, SystemdBoot};
use slotd::device::loader::{Loader, LoaderError};
use slotd::domain::boot::{Entry, Selection};
use slotd::domain::{efivar, envblk};
use sps_base::slot::SlotId;

pub(crate) fn slot(id: u32) -> Entry {
    Entry::Slot(SlotId::new(id).unwrap())
}

pub(crate) fn selected(default: Option<Entry>, one_shot: Option<Entry>) -> Selection {
    Selection { default, one_shot, damage: None }
}

/// A loader that is set to nothing, with its files in `directory`.
type Make = fn(&Path) -> Box<dyn Loader>;

const LOADERS: [(&str, Make); 2] = [("grub", grub), ("systemd-boot", systemd_boot)];

fn grub(directory: &Path) -> Box<dyn Loader> {
    let path = directory.join("grubenv");
    std::fs::write(&path, envblk::Environment::default().render().unwrap()).unwrap();
    Box::new(Grub::new(FileBlock::new(&path)))
}

fn systemd_boot(directory: &Path) -> Box<dyn Loader> {
    let (variables, esp) = (directory.join("efivars"), directory.join("esp"));
    std::fs::create_dir_all(&variables).unwrap();
    std::fs::create_dir_all(&esp).unwrap();
    Box::new(SystemdBoot::new(Efivarfs::new(&variables), &esp))
}

#[test]
fn settings_are_kept_until_they_are_changed() {
    for (name, make) in LOADERS {
        let directory = tempfile::tempdir().unwrap();
        let loader = make(directory.path());
        assert_eq!(loader.name(), name);
        let expect = |default: Option<&Entry>, one_shot: Option<&Entry>| {
            assert_eq!(loader.read().unwrap(), selected(default.cloned(), one_shot.cloned()), "{name}");
        };
        expect(None, None);
        loader.set_one_shot(None).unwrap();
        expect(None, None);
        loader.set_default(&slot(1)).unwrap();
        expect(Some(&slot(1)), None);
        loader.set_one_shot(Some(&slot(2))).unwrap();
        expect(Some(&slot(1)), Some(&slot(2)));
        loader.set_one_shot(Some(&slot(3))).unwrap();
        expect(Some(&slot(1)), Some(&slot(3)));
        loader.set_default(&slot(2)).unwrap();
        expect(Some(&slot(2)), Some(&slot(3)));
        loader.set_one_shot(None).unwrap();
        expect(Some(&slot(2)), None);
        loader.set_one_shot(None).unwrap();
        expect(Some(&slot(2)), None);
        loader.set_default(&slot(2)).unwrap();
        expect(Some(&slot(2)), None);
    }
}

#[test]
fn every_kind_of_entry_reads_back_whatever_was_set_before() {
    let other = |name: &str| Entry::Other(name.to_owned());
    let entries = [
        slot(1),
        other("a-much-longer-name-than-any-of-ours-6.12.48+deb13-amd64.efi"),
        slot(9),
        Entry::Recovery,
        other("a b.efi"),
        other("ü€🦀"),
    ];
    for (name, make) in LOADERS {
        let directory = tempfile::tempdir().unwrap();
        let loader = make(directory.path());
        for entry in &entries {
            loader.set_default(entry).unwrap();
            loader.set_one_shot(Some(entry)).unwrap();
            assert_eq!(loader.read().unwrap(), selected(Some(entry.clone()), Some(entry.clone())), "{name}");
        }
    }
}

#[test]
fn what_cannot_be_named_is_refused_and_changes_nothing() {
    for (name, make) in LOADERS {
        let directory = tempfile::tempdir().unwrap();
        let loader = make(directory.path());
        loader.set_default(&slot(1)).unwrap();
        loader.set_one_shot(Some(&slot(2))).unwrap();
        for entry in ["", "a\0b", &"x".repeat(5000)].map(|name| Entry::Other(name.to_owned())) {
            let refused = [loader.set_default(&entry), loader.set_one_shot(Some(&entry))];
            for result in refused {
                assert!(matches!(result, Err(LoaderError::Refused { .. })), "{name}: {result:?}");
            }
        }
        assert_eq!(loader.read().unwrap(), selected(Some(slot(1)), Some(slot(2))), "{name}");
    }
}

#[test]
fn another_instance_reads_the_same() {
    for (name, make) in LOADERS {
        let directory = tempfile::tempdir().unwrap();
        let loader = make(directory.path());
        loader.set_default(&slot(1)).unwrap();
        loader.set_one_shot(Some(&Entry::Recovery)).unwrap();
        let written: Vec<_> = ["grubenv", "efivars", "esp"].map(|name| directory.path().join(name)).into();
        let again: Box<dyn Loader> = match name {
            "grub" => Box::new(Grub::new(FileBlock::new(&written[0]))),
            _ => Box::new(SystemdBoot::new(Efivarfs::new(&written[1]), &written[2])),
        };
        assert_eq!(again.read().unwrap(), loader.read().unwrap());
        assert_eq!(again.read().unwrap().one_shot, Some(Entry::Recovery));
    }
}

/// What `result` could not do, to which file, and why.
fn io_error(result: Result<(), LoaderError>) -> (String, &'static str, std::io::ErrorKind) {
    match result {
        Err(LoaderError::Io { path, operation, source }) => {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), operation, source.kind())
        }
        other => panic!("expected an I/O error, found {other:?}"),
    }
}

#[test]
fn no_room_is_an_error_that_says_where() {
    // /dev/full takes no byte and says why: no space left.
    let full = std::io::ErrorKind::StorageFull;
    let directory = tempfile::tempdir().unwrap();
    symlink("/dev/full", directory.path().join("grubenv")).unwrap();
    let loader = Grub::new(FileBlock::new(&directory.path().join("grubenv")));
    assert_eq!(io_error(loader.set_default(&slot(1))), ("grubenv".into(), "write", full));

    let loader = systemd_boot(directory.path());
    let variable = efivar::file_name(efivar::ONE_SHOT);
    symlink("/dev/full", directory.path().join("efivars").join(&variable)).unwrap();
    assert_eq!(io_error(loader.set_one_shot(Some(&slot(1)))), (variable, "write", full));
    let conf = directory.path().join("esp").join(LOADER_CONF);
    std::fs::create_dir_all(conf.parent().unwrap()).unwrap();
    symlink("/dev/full", conf).unwrap();
    assert_eq!(io_error(loader.set_default(&slot(1))), ("loader.conf".into(), "write", full));
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_says_where() {
    // Nobody, not even root, makes a file in /proc.
    let nowhere = Path::new("/proc/self");
    let loader = Grub::new(FileBlock::new(&nowhere.join("grubenv")));
    let missing = std::io::ErrorKind::NotFound;
    assert_eq!(io_error(loader.set_default(&slot(1))), ("grubenv".into(), "open", missing));
    assert!(matches!(loader.read(), Err(LoaderError::Io { operation: "open", .. })));

    let esp = tempfile::tempdir().unwrap();
    let loader = SystemdBoot::new(Efivarfs::new(nowhere), esp.path());
    let (file, operation, _) = io_error(loader.set_one_shot(Some(&slot(1))));
    assert_eq!((file, operation), (efivar::file_name(efivar::ONE_SHOT), "make"));
    io_error(loader.set_default(&slot(1)));
    assert!(!esp.path().join(LOADER_CONF).exists(), "the second copy waits for the first");

    let variables = tempfile::tempdir().unwrap();
    let loader = SystemdBoot::new(Efivarfs::new(variables.path()), nowhere);
    let (file, operation, _) = io_error(loader.set_default(&slot(1)));
    assert_eq!((file.as_str(), operation), ("loader.conf", "make the directory of"));
    assert_eq!(loader.read().unwrap().default, Some(slot(1)), "the variable is set");
}
