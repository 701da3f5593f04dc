//! GRUB's environment block as a file, judged by `grub-editenv`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use slotd::device::loader::grub::{Block, FileBlock, Grub};
use slotd::device::loader::{Loader, LoaderError};
use slotd::domain::boot::Entry;
use slotd::domain::envblk::{DEFAULT, Environment, ONE_SHOT, SIZE, WRITE_LIMIT};

use crate::loader::{selected, slot};

/// Runs `grub-editenv FILE …`, which must succeed.
fn editenv(file: &Path, arguments: &[&str]) -> String {
    let output = Command::new("grub-editenv").arg(file).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A block as GRUB's tool makes it, and a loader on it.
fn made() -> (tempfile::TempDir, PathBuf, Grub<FileBlock>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("grubenv");
    editenv(&path, &["create"]);
    let loader = Grub::new(FileBlock::new(&path));
    (directory, path, loader)
}

#[test]
fn what_grub_editenv_sets_is_read() {
    let (_directory, path, loader) = made();
    assert_eq!(loader.read().unwrap(), selected(None, None));
    editenv(&path, &["set", "saved_entry=sps-slot-1", "next_entry=sps-recovery"]);
    assert_eq!(loader.read().unwrap(), selected(Some(slot(1)), Some(Entry::Recovery)));
    editenv(&path, &["set", "next_entry="]);
    assert_eq!(loader.read().unwrap(), selected(Some(slot(1)), None), "as grub.cfg clears it");
    editenv(&path, &["unset", "saved_entry"]);
    assert_eq!(loader.read().unwrap(), selected(None, None));
    let odd = r"Debian\GNU Linux>6.1 \\ #1=";
    editenv(&path, &["set", &format!("saved_entry={odd}")]);
    assert_eq!(loader.read().unwrap().default, Some(Entry::Other(odd.into())));
}

#[test]
fn grub_editenv_lists_what_is_set_and_goes_on_with_it() {
    let (_directory, path, loader) = made();
    let long = format!("long={}", "v".repeat(300));
    editenv(&path, &["set", r"menu=a b\c", &long, "empty=", "two=1\n2"]);
    loader.set_default(&slot(1)).unwrap();
    loader.set_one_shot(Some(&slot(2))).unwrap();
    let kept = format!("menu=a b\\c\n{long}\nempty=\ntwo=1\n2\n");
    assert_eq!(editenv(&path, &["list"]), format!("saved_entry=sps-slot-1\nnext_entry=sps-slot-2\n{kept}"));
    editenv(&path, &["set", "next_entry=", "saved_entry=sps-slot-2"]);
    assert_eq!(loader.read().unwrap(), selected(Some(slot(2)), None));
    loader.set_one_shot(None).unwrap();
    assert_eq!(editenv(&path, &["list"]), format!("saved_entry=sps-slot-2\n{kept}"));
    for odd in [r"\", r"a\\b \n", "a\nb", "x#", "# y", "=", " z "] {
        loader.set_default(&Entry::Other(odd.into())).unwrap();
        assert_eq!(editenv(&path, &["list"]), format!("saved_entry={odd}\n{kept}"));
        assert_eq!(loader.read().unwrap().default, Some(Entry::Other(odd.into())));
    }
    assert!(fs::read_to_string(&path).unwrap().contains("# WARNING: Do not edit"), "its comment is kept");
}

#[test]
fn the_file_keeps_its_place_and_length() {
    use std::os::unix::fs::MetadataExt;
    let (directory, path, loader) = made();
    let before = fs::metadata(&path).unwrap();
    loader.set_default(&slot(1)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.ino(), after.len()), (before.ino(), SIZE as u64));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn more_than_one_sector_is_read_but_not_written() {
    let (_directory, path, loader) = made();
    let long = format!("long={}", "v".repeat(WRITE_LIMIT));
    editenv(&path, &["set", &long, "saved_entry=sps-slot-1"]);
    let before = fs::read(&path).unwrap();
    assert_eq!(loader.read().unwrap().default, Some(slot(1)));
    for result in [loader.set_default(&slot(2)), loader.set_one_shot(Some(&slot(2)))] {
        let Err(LoaderError::Refused { what, .. }) = result else { panic!("{result:?}") };
        assert!(what.contains("grub-editenv unset"), "{what}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    editenv(&path, &["unset", "long"]);
    loader.set_default(&slot(2)).unwrap();
}

#[test]
fn a_broken_block_is_never_nothing_set_and_the_default_repairs_it() {
    let (_directory, path, loader) = made();
    editenv(&path, &["set", "saved_entry=sps-slot-1", "next_entry=sps-slot-2"]);
    let whole = fs::read(&path).unwrap();
    let torn = |range: std::ops::Range<usize>| {
        let mut torn = whole.clone();
        torn[range].fill(0);
        torn
    };
    let mut latin = whole.clone();
    let value = latin.windows(10).position(|part| part == b"sps-slot-1").unwrap();
    latin[value] = 0xff;
    let longer = [whole.as_slice(), b"saved_entry=x\n"].concat();
    let broken = [
        vec![],
        vec![0; SIZE],
        whole[..512].to_vec(),
        longer,
        torn(0..512),
        torn(512..SIZE),
        torn(100..101),
        latin,
    ];
    for block in broken {
        fs::write(&path, &block).unwrap();
        assert!(matches!(loader.read(), Err(LoaderError::Corrupt { .. })), "{block:?}");
        if block.len() != SIZE || block.contains(&0) {
            for entry in [None, Some(&slot(2))] {
                let result = loader.set_one_shot(entry);
                assert!(matches!(result, Err(LoaderError::Corrupt { .. })), "{result:?}");
            }
            assert_eq!(fs::read(&path).unwrap(), block, "nothing was written");
        }
        loader.set_default(&slot(3)).unwrap();
        assert_eq!(loader.read().unwrap().default, Some(slot(3)));
        assert!(editenv(&path, &["list"]).starts_with("saved_entry=sps-slot-3\n"));
    }
    fs::remove_file(&path).unwrap();
    loader.set_default(&slot(1)).unwrap_err();
    assert!(!path.exists(), "a file that the installer did not make is not made");
}

/// A medium on which a write has an effect of its choice.
#[derive(Debug)]
struct Medium {
    block: Mutex<[u8; SIZE]>,
    writes: Arc<Mutex<Vec<[u8; SIZE]>>>,
    loses_writes: bool,
}

impl Block for Medium {
    fn path(&self) -> &Path {
        Path::new("medium")
    }
    fn read(&self) -> Result<[u8; SIZE], LoaderError> {
        Ok(*self.block.lock().unwrap())
    }
    fn write(&self, block: &[u8; SIZE]) -> Result<(), LoaderError> {
        self.writes.lock().unwrap().push(*block);
        if !self.loses_writes {
            *self.block.lock().unwrap() = *block;
        }
        Ok(())
    }
}

#[test]
fn a_write_that_does_not_read_back_is_an_error() {
    for loses_writes in [false, true] {
        let block = Mutex::new(Environment::default().render().unwrap());
        let writes = Arc::default();
        let loader = Grub::new(Medium { block, writes: Arc::clone(&writes), loses_writes });
        let result = loader.set_one_shot(Some(&slot(1)));
        assert_eq!(matches!(result, Err(LoaderError::ReadBack { .. })), loses_writes, "{result:?}");
        assert_eq!(writes.lock().unwrap().len(), 1, "one write for one change");
    }
}

#[test]
fn a_change_is_written_even_when_the_cache_says_it_is_there() {
    let mut environment = Environment::default();
    environment.set(DEFAULT, b"sps-slot-1").unwrap();
    environment.set(ONE_SHOT, b"sps-slot-1").unwrap();
    let writes = Arc::default();
    let block = Mutex::new(environment.render().unwrap());
    let loader = Grub::new(Medium { block, writes: Arc::clone(&writes), loses_writes: false });
    loader.set_default(&slot(1)).unwrap();
    loader.set_one_shot(Some(&slot(1))).unwrap();
    assert_eq!(*writes.lock().unwrap(), [environment.render().unwrap(); 2]);
}
