//! systemd-boot's variables and `loader.conf`, the variables judged by `efivar`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use slotd::device::loader::efivarfs::{Efivarfs, ImmutableFlag, InodeFlag, Variables};
use slotd::device::loader::uefi::{LOADER_CONF, SystemdBoot};
use slotd::device::loader::{Loader, LoaderError};
use slotd::domain::boot::Entry;
use slotd::domain::efivar::{DEFAULT, LIMIT, ONE_SHOT, VENDOR, encode, file_name};

use crate::loader::{selected, slot};

struct Machine {
    _directory: tempfile::TempDir,
    variables: PathBuf,
    conf: PathBuf,
    loader: SystemdBoot<Efivarfs>,
}

fn machine() -> Machine {
    let directory = tempfile::tempdir().unwrap();
    let (variables, esp) = (directory.path().join("efivars"), directory.path().join("esp"));
    fs::create_dir(&variables).unwrap();
    fs::create_dir_all(esp.join("loader")).unwrap();
    let loader = SystemdBoot::new(Efivarfs::new(&variables), &esp);
    Machine { conf: esp.join(LOADER_CONF), _directory: directory, variables, loader }
}

impl Machine {
    fn variable(&self, name: &str) -> PathBuf {
        self.variables.join(file_name(name))
    }

    /// Sets both copies of the default.
    fn defaults(&self, variable: Bytes, conf: Bytes) {
        for (path, content) in [(self.variable(DEFAULT), variable), (self.conf.clone(), conf)] {
            match content {
                Some(content) => fs::write(path, content).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
    }
}

/// A copy of the default as it lies there.
type Bytes<'a> = Option<&'a [u8]>;

/// `efivar` on a directory in the place of efivarfs; it must succeed.
fn efivar(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("efivar")
        .env("EFIVARFS_PATH", format!("{}/", directory.display()))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn efivar_prints_what_is_set() {
    let machine = machine();
    machine.loader.set_one_shot(Some(&slot(2))).unwrap();
    machine.loader.set_default(&Entry::Recovery).unwrap();
    let listed = efivar(&machine.variables, &["--list"]);
    let mut listed: Vec<_> = listed.split_whitespace().collect();
    listed.sort_unstable();
    let names = [DEFAULT, ONE_SHOT].map(|name| format!("{VENDOR}-{name}"));
    assert_eq!(listed, names);
    let printed = efivar(&machine.variables, &["--print", "--name", &names[1]]);
    for part in [
        "Non-Volatile\n",
        "Boot Service Access\n",
        "Runtime Service Access\n",
        "00000000  73 00 70 00 73 00 2d 00  73 00 6c 00 6f 00 74 00  |s.p.s.-.s.l.o.t.|",
        "00000010  2d 00 32 00 2e 00 65 00  66 00 69 00 00 00        |-.2...e.f.i...  |",
    ] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
}

#[test]
fn what_efivar_writes_is_read() {
    let machine = machine();
    let text = machine.variables.with_file_name("text");
    for (name, entry) in [("sps-slot-1.efi", slot(1)), ("sps-recovery-8.0.4.efi", Entry::Recovery)] {
        let units: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        fs::write(&text, units).unwrap();
        let _ = fs::remove_file(machine.variable(ONE_SHOT));
        let variable = format!("{VENDOR}-{ONE_SHOT}");
        let file = text.to_str().unwrap();
        efivar(
            &machine.variables,
            &["--write", "--name", &variable, "--fromfile", file, "--attributes", "7"],
        );
        assert_eq!(fs::read(machine.variable(ONE_SHOT)).unwrap(), encode(name).unwrap());
        assert_eq!(machine.loader.read().unwrap(), selected(None, Some(entry)));
    }
}

#[test]
fn both_copies_say_the_same_and_other_lines_stay() {
    let machine = machine();
    machine.defaults(None, Some(b"timeout 5\ndefault old.efi\n# mine\n"));
    machine.loader.set_default(&slot(1)).unwrap();
    assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), None));
    assert_eq!(fs::read(machine.variable(DEFAULT)).unwrap(), encode("sps-slot-1.efi").unwrap());
    let conf = fs::read_to_string(&machine.conf).unwrap();
    assert_eq!(conf.trim_end(), "default sps-slot-1.efi\ntimeout 5\n# mine");
    machine.loader.set_default(&slot(2)).unwrap();
    let next = fs::read_to_string(&machine.conf).unwrap();
    assert_eq!(next, conf.replace("slot-1", "slot-2"), "same length: one sector changes");
    assert_eq!(conf.len(), 512);
}

#[test]
fn a_default_that_one_copy_cannot_hold_is_set_in_none() {
    let machine = machine();
    let large = format!("default old.efi\n# {}\n", "x".repeat(65_517));
    for (conf, name) in
        [(None, " a"), (None, "a\nb"), (None, "#a"), (Some(large.as_bytes()), "long-name.efi")]
    {
        machine.defaults(None, conf);
        let result = machine.loader.set_default(&Entry::Other(name.into()));
        assert!(matches!(result, Err(LoaderError::Refused { .. })), "{name:?}: {result:?}");
        assert!(!machine.variable(DEFAULT).exists(), "{name:?}");
        assert_eq!(fs::read(&machine.conf).ok().as_deref(), conf);
    }
}

#[test]
fn one_copy_is_enough_and_the_other_is_reported_until_it_is_written() {
    let one = encode("sps-slot-1.efi").unwrap();
    let conf_1: &[u8] = b"default sps-slot-1.efi\n";
    let odd = &one[..one.len() - 1];
    let cases: [(Bytes, Bytes, &str); 9] = [
        (Some(&one), None, "names no default"),
        (Some(&one), Some(b"timeout 0\n"), "names no default"),
        (Some(&one), Some(b""), "names no default"),
        (Some(&one), Some(&[0; 60]), "loader.conf: byte 0: no text"),
        (Some(&one), Some(b"default sps-slot-2.efi\n"), "says sps-slot-2"),
        (None, Some(conf_1), "is lost"),
        (Some(b""), Some(conf_1), "is lost"),
        (Some(odd), Some(conf_1), "odd length of 29 bytes"),
        (Some(&[7; LIMIT + 10]), Some(conf_1), "at most 4096"),
    ];
    for (variable, conf, damage) in cases {
        let machine = machine();
        machine.defaults(variable, conf);
        let read = machine.loader.read().unwrap();
        assert_eq!(read.default, Some(slot(1)), "{damage}");
        assert!(read.damage.as_ref().is_some_and(|text| text.contains(damage)), "{damage}: {read:?}");
        machine.loader.set_default(&slot(1)).unwrap();
        assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), None), "{damage}");
    }
}

#[test]
fn no_copy_that_can_be_read_is_an_error_and_the_default_repairs_it() {
    let machine = machine();
    let surrogate = [7, 0, 0, 0, 0, 0xd8, 0, 0];
    let cases: [(Bytes, Bytes); 4] = [
        (Some(&surrogate), None),
        (None, Some(&[0; 9])),
        (Some(&[7, 0]), Some(&[0])),
        (Some(&surrogate), Some(b"")),
    ];
    for (variable, conf) in cases {
        machine.defaults(variable, conf);
        assert!(matches!(machine.loader.read(), Err(LoaderError::Corrupt { .. })), "{variable:?} {conf:?}");
        machine.loader.set_default(&slot(1)).unwrap();
        assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), None));
    }
}

#[test]
fn a_broken_one_shot_is_an_error_and_can_be_taken_back_or_set_anew() {
    let machine = machine();
    machine.loader.set_default(&slot(1)).unwrap();
    for repair in [None, Some(slot(2))] {
        fs::write(machine.variable(ONE_SHOT), [7, 0, 0, 0, 1]).unwrap();
        let error = machine.loader.read().unwrap_err();
        assert!(error.to_string().contains(ONE_SHOT), "{error}");
        machine.loader.set_one_shot(repair.as_ref()).unwrap();
        assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), repair));
    }
}

/// Found by the crash checker: no start puts a one-shot in order that is no text, so slotd must.
#[test]
fn the_default_takes_a_broken_one_shot_away_and_no_other() {
    let machine = machine();
    fs::write(machine.variable(ONE_SHOT), [7, 0, 0, 0, 1]).unwrap();
    machine.loader.set_default(&slot(1)).unwrap();
    assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), None));
    machine.loader.set_one_shot(Some(&slot(2))).unwrap();
    machine.loader.set_default(&slot(1)).unwrap();
    assert_eq!(machine.loader.read().unwrap(), selected(Some(slot(1)), Some(slot(2))));
}

#[test]
fn without_efivarfs_nothing_can_be_told() {
    let machine = machine();
    fs::remove_dir(&machine.variables).unwrap();
    assert!(matches!(machine.loader.read(), Err(LoaderError::Io { .. })));
    machine.loader.set_one_shot(None).unwrap_err();
}

/// Variables in memory that refuse or lose what is written.
#[derive(Debug)]
struct Firmware {
    stored: Mutex<Option<Vec<u8>>>,
    writes: Arc<Mutex<u32>>,
    locked: bool,
    forgets: bool,
    conf: PathBuf,
}

impl Variables for Firmware {
    fn path(&self, variable: &str) -> PathBuf {
        PathBuf::from(variable)
    }
    fn read(&self, _: &str) -> Result<Option<Vec<u8>>, LoaderError> {
        Ok(self.stored.lock().unwrap().clone())
    }
    fn write(&self, variable: &str, bytes: &[u8]) -> Result<(), LoaderError> {
        assert!(!self.conf.exists(), "the variable comes first");
        *self.writes.lock().unwrap() += 1;
        if self.locked {
            let source = io::ErrorKind::StorageFull.into();
            return Err(LoaderError::Io { path: self.path(variable), operation: "write", source });
        }
        *self.stored.lock().unwrap() = Some(bytes.to_vec()).filter(|_| !self.forgets);
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<(), LoaderError> {
        *self.stored.lock().unwrap() = None;
        Ok(())
    }
}

#[test]
fn the_second_copy_is_written_only_after_the_first_reads_back() {
    for (locked, forgets) in [(true, false), (false, true), (false, false)] {
        let esp = tempfile::tempdir().unwrap();
        let conf = esp.path().join(LOADER_CONF);
        let writes = Arc::default();
        let (stored, count) = (Mutex::default(), Arc::clone(&writes));
        let loader = SystemdBoot::new(
            Firmware { stored, writes: count, locked, forgets, conf: conf.clone() },
            esp.path(),
        );
        let result = loader.set_default(&slot(1));
        assert_eq!(matches!(result, Err(LoaderError::Io { .. })), locked, "{result:?}");
        assert_eq!(matches!(result, Err(LoaderError::ReadBack { .. })), forgets, "{result:?}");
        assert_eq!(conf.exists(), result.is_ok());
        if result.is_ok() {
            loader.set_default(&slot(1)).unwrap();
            assert_eq!(*writes.lock().unwrap(), 1, "what is set already costs no flash");
        }
    }
}

/// Notes what is done to the flag, and the file's length at that time.
#[derive(Clone, Debug, Default)]
struct Flag {
    immutable: Arc<Mutex<bool>>,
    log: Arc<Mutex<Vec<(bool, u64)>>>,
}

impl ImmutableFlag for Flag {
    fn is_set(&self, _: &File) -> io::Result<bool> {
        Ok(*self.immutable.lock().unwrap())
    }
    fn set(&self, file: &File, immutable: bool) -> io::Result<()> {
        *self.immutable.lock().unwrap() = immutable;
        self.log.lock().unwrap().push((immutable, file.metadata()?.len()));
        Ok(())
    }
}

#[test]
fn the_immutable_flag_is_off_during_a_change_and_on_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let flag = Flag::default();
    let variables = Efivarfs::with_flag(directory.path(), flag.clone());
    let log = || std::mem::take(&mut *flag.log.lock().unwrap());
    variables.write(DEFAULT, b"1234").unwrap();
    assert_eq!(log(), [], "a new file has its flag from the kernel");
    variables.write(DEFAULT, b"12345").unwrap();
    assert_eq!(log(), [], "what is not protected stays so");
    *flag.immutable.lock().unwrap() = true;
    variables.write(DEFAULT, b"123456").unwrap();
    assert_eq!(log(), [(false, 5), (true, 6)]);
    variables.write(DEFAULT, b"1").unwrap();
    assert_eq!(log(), [(false, 6), (true, 1)]);
    assert_eq!(variables.read(DEFAULT).unwrap().as_deref(), Some(b"1".as_slice()));
    variables.remove(DEFAULT).unwrap();
    assert_eq!(log(), [(false, 1)]);
    assert_eq!(variables.read(DEFAULT).unwrap(), None);
    variables.remove(DEFAULT).unwrap();

    *flag.immutable.lock().unwrap() = true;
    std::os::unix::fs::symlink("/dev/full", variables.path(ONE_SHOT)).unwrap();
    let error = variables.write(ONE_SHOT, b"1").unwrap_err();
    assert!(matches!(error, LoaderError::Io { operation: "write", .. }), "{error:?}");
    assert_eq!(log(), [(false, 0), (true, 0)], "also after a write that failed");
}

#[test]
fn the_kernels_own_flag_is_cleared_and_comes_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let variables = Efivarfs::new(directory.path());
    variables.write(DEFAULT, b"1").unwrap();
    let file = File::open(variables.path(DEFAULT)).unwrap();
    if let Err(error) = InodeFlag.set(&file, true) {
        // Without the capability (no root, most containers) nobody can have set it either.
        let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported];
        assert!(kinds.contains(&error.kind()) || error.raw_os_error() == Some(25), "{error:?}");
        return;
    }
    assert_eq!(fs::write(variables.path(DEFAULT), "2").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let written = variables.write(DEFAULT, b"2");
    let protected = InodeFlag.is_set(&file);
    let removed = variables.remove(DEFAULT);
    let _ = InodeFlag.set(&file, false);
    written.unwrap();
    assert!(protected.unwrap());
    removed.unwrap();
}

#[test]
fn a_file_system_without_the_flag_has_none_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    assert!(!InodeFlag.is_set(&File::open(&path).unwrap()).unwrap());
    // The kernel's own file systems have no such flag.
    assert!(!InodeFlag.is_set(&File::open("/proc/self/status").unwrap()).unwrap());
}
