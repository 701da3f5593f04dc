//! What the UEFI firmware starts: entries and order judged by `efibootmgr`, the loader replaced with a cut anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::stat::{major, minor};
use slotd::device::loader::LoaderError;
use slotd::device::loader::efivarfs::{Efivarfs, Variables};
use slotd::device::loader::firmware::Firmware;
use slotd::device::loader::uefi::Conf;
use slotd::device::partition::EspDevice;
use slotd::domain::load_option::{self, LoadOption, Partition, parse_order, render_order};
use slotd::domain::systemd_boot::Place;

const GUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// A program that says to be systemd-boot of this version.
fn loader(version: &str) -> Vec<u8> {
    let mut program = vec![0; 0x200];
    program[..2].copy_from_slice(b"MZ");
    program[0x3c] = 0x80;
    program[0x80..0x84].copy_from_slice(b"PE\0\0");
    (program[0x86], program[0x94]) = (1, 8);
    (program[0xa0 + 17], program[0xa0 + 21]) = (2, 2);
    let mut section = format!("#### LoaderInfo: systemd-boot {version} ####").into_bytes();
    section.resize(0x200, 1);
    [program, section].concat()
}

/// A system whose ESP is the first partition of a disk.
struct System {
    root: tempfile::TempDir,
}

impl System {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let system = Self { root };
        let device = fs::metadata(system.path("")).unwrap().dev();
        let partition = system.path("sys/devices/vda/vda1");
        for directory in ["sys/devices/vda/queue", "sys/devices/vda/vda1", "sys/dev/block", "esp", "efivars"]
        {
            fs::create_dir_all(system.path(directory)).unwrap();
        }
        fs::write(system.path("sys/devices/vda/queue/logical_block_size"), "512\n").unwrap();
        for (name, text) in [("partition", "1\n"), ("start", "2048\n"), ("size", "65536\n")] {
            fs::write(partition.join(name), text).unwrap();
        }
        let link = format!("sys/dev/block/{}:{}", major(device), minor(device));
        symlink("../../devices/vda/vda1", system.path(&link)).unwrap();
        system
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn device(&self) -> EspDevice {
        EspDevice { mount: self.path("esp"), sysfs: self.path("sys"), udev: self.path("udev") }
    }

    fn firmware(&self) -> Firmware {
        let variables = Efivarfs::of_firmware(&self.path("efivars"));
        Firmware::new(variables, self.device(), &self.path("esp"), &self.path("program.efi"))
    }

    fn put(&self, place: Place, program: &[u8]) {
        let path = self.path("esp").join(place.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, program).unwrap();
    }

    /// What the stock tool reads.
    fn efibootmgr(&self) -> String {
        let output = Command::new("efibootmgr")
            .arg("-v")
            .env("EFIVARFS_PATH", format!("{}/", self.path("efivars").display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every variable and when it was written.
    fn written(&self) -> Vec<(PathBuf, i64)> {
        let entries = fs::read_dir(self.path("efivars")).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::metadata(path).unwrap().mtime_nsec())).collect()
    }
}

// The stock tool judges.
#[test]
fn loader_and_recovery_are_the_first_that_the_firmware_starts() {
    let system = System::new();
    for place in [Place::Installed, Place::Removable] {
        system.put(place, &loader("257"));
    }
    let other = LoadOption {
        path: vec![0x7f, 0xff, 4, 0],
        attributes: 1,
        description: "PXE".into(),
        optional: vec![],
    };
    let variable = |name: &str| system.path("efivars").join(format!("{name}-{}", load_option::VENDOR));
    let with_attributes = |content: Vec<u8>| [vec![7, 0, 0, 0], content].concat();
    fs::write(variable("Boot0000"), with_attributes(other.render().unwrap())).unwrap();
    fs::write(variable("BootOrder"), with_attributes(render_order(&[0]))).unwrap();
    system.firmware().settle(Some(GUID), Some("sps-recovery-8.0.1.efi"), true).unwrap();
    let drive = format!("HD(1,GPT,{GUID},0x800,0x10000)");
    let shown = system.efibootmgr();
    for line in [
        "BootOrder: 0001,0002,0000\n".to_owned(),
        "Boot0000* PXE\t".to_owned(),
        format!("Boot0001* SPS firmware\t{drive}/File(\\EFI\\systemd\\systemd-bootx64.efi)\n"),
        format!("Boot0002* SPS recovery\t{drive}/File(\\EFI\\Linux\\sps-recovery-8.0.1.efi)\n"),
    ] {
        assert!(shown.contains(&line), "{line:?} is not in {shown}");
    }
    // What is right is not written again.
    let before = system.written();
    system.firmware().settle(Some(GUID), Some("sps-recovery-8.0.1.efi"), true).unwrap();
    system.firmware().settle(Some(GUID), None, false).unwrap();
    assert_eq!(system.written(), before);
    // A newer recovery image takes the place of the older one; order and others stay.
    system.firmware().settle(Some(GUID), Some("sps-recovery-8.0.2.efi"), false).unwrap();
    let newer = system.efibootmgr();
    assert_eq!(newer, shown.replace("sps-recovery-8.0.1", "sps-recovery-8.0.2"));
}

#[test]
fn where_something_is_not_known_nothing_is_written() {
    // Whose partition it is.
    let system = System::new();
    system.put(Place::Installed, &loader("257"));
    system.firmware().settle(None, Some("sps-recovery-8.0.1.efi"), true).unwrap();
    assert!(system.written().is_empty());
    // There is no loader of ours: recovery alone is no order.
    let system = System::new();
    system.firmware().settle(Some(GUID), Some("sps-recovery-8.0.1.efi"), true).unwrap();
    assert!(system.written().is_empty());
    // There are no variables, or an order that is none.
    let name = format!("BootOrder-{}", load_option::VENDOR);
    system.put(Place::Installed, &loader("257"));
    fs::write(system.path("efivars").join(name), [7, 0, 0, 0, 1]).unwrap();
    let error = system.firmware().settle(Some(GUID), None, true).unwrap_err().to_string();
    assert!(error.contains("BootOrder") && error.contains("an order of 1 bytes"), "{error}");
    fs::remove_dir_all(system.path("efivars")).unwrap();
    let error = system.firmware().settle(Some(GUID), None, true).unwrap_err();
    assert!(matches!(error, LoaderError::Io { operation: "list", .. }), "{error:?}");
}

#[test]
fn the_signed_program_is_preferred_and_a_huge_one_refused() {
    let system = System::new();
    for place in [Place::Installed, Place::Removable] {
        system.put(place, &loader("256"));
    }
    fs::write(system.path("program.efi"), loader("257")).unwrap();
    let installed = || fs::read(system.path("esp").join(Place::Installed.path())).unwrap();
    // Only what is confirmed brings its loader.
    system.firmware().settle(Some(GUID), None, false).unwrap();
    assert_eq!(installed(), loader("256"));
    system.firmware().settle(Some(GUID), None, true).unwrap();
    assert_eq!(installed(), loader("257"));
    let signed = [loader("257"), vec![9; 100]].concat();
    fs::write(system.path("program.efi.signed"), &signed).unwrap();
    system.firmware().settle(Some(GUID), None, true).unwrap();
    assert_eq!(installed(), signed);
    fs::File::create(system.path("program.efi.signed")).unwrap().set_len((4 << 20) + 1).unwrap();
    let error = system.firmware().settle(Some(GUID), None, true).unwrap_err();
    assert!(matches!(error, LoaderError::Corrupt { .. }), "{error:?}");
    assert_eq!(installed(), signed);
}

/// Variables and the two copies in memory; the write with this number is the last, and leaves this.
#[derive(Debug, Default)]
struct Memory {
    variables: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<&'static str, Vec<u8>>,
    left: usize,
    tear: Tear,
    /// Every variable that is set is refused, as by a firmware that is locked or full.
    locked: bool,
    writes: usize,
}

/// What a write that power is cut in leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tear {
    #[default]
    Old,
    New,
    Absent,
    Short,
    Zero,
}

const TEARS: [Tear; 5] = [Tear::Old, Tear::New, Tear::Absent, Tear::Short, Tear::Zero];

impl Memory {
    /// Whether power lasts; else what the write leaves.
    fn power(&mut self) -> Result<(), Tear> {
        self.writes += 1;
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.tear),
        }
    }
}

fn gone(path: &Path, errno: i32) -> LoaderError {
    LoaderError::Io { path: path.to_owned(), operation: "write", source: io::Error::from_raw_os_error(errno) }
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Memory>>);

impl Variables for Shared {
    fn path(&self, variable: &str) -> PathBuf {
        variable.into()
    }

    fn read(&self, variable: &str) -> Result<Option<Vec<u8>>, LoaderError> {
        Ok(self.0.lock().unwrap().variables.get(variable).cloned())
    }

    /// The firmware replaces a variable as a whole.
    fn write(&self, variable: &str, bytes: &[u8]) -> Result<(), LoaderError> {
        let mut memory = self.0.lock().unwrap();
        if memory.locked {
            return Err(gone(Path::new(variable), nix::libc::ENOSPC));
        }
        let tear = memory.power().err();
        if tear.is_none_or(|tear| tear == Tear::New) {
            memory.variables.insert(variable.to_owned(), bytes.to_vec());
        }
        tear.map_or(Ok(()), |_| Err(gone(Path::new(variable), nix::libc::EIO)))
    }

    fn remove(&self, _: &str) -> Result<(), LoaderError> {
        unreachable!("nothing is removed")
    }

    fn names(&self) -> Result<Vec<String>, LoaderError> {
        Ok(self.0.lock().unwrap().variables.keys().cloned().collect())
    }
}

#[derive(Debug)]
struct Copy(Shared, Place);

impl Conf for Copy {
    fn path(&self) -> &Path {
        Path::new(self.1.path())
    }

    fn read(&self) -> Result<Option<Vec<u8>>, LoaderError> {
        Ok(self.0.0.lock().unwrap().files.get(self.1.path()).cloned())
    }

    fn write(&self, new: &[u8]) -> Result<(), LoaderError> {
        let mut memory = self.0.0.lock().unwrap();
        let power = memory.power();
        let left = match power {
            Ok(()) | Err(Tear::New) => Some(new.to_vec()),
            Err(Tear::Old) => memory.files.get(self.1.path()).cloned(),
            Err(Tear::Absent) => None,
            Err(Tear::Short) => Some(new[..new.len() / 2].to_vec()),
            Err(Tear::Zero) => Some(vec![0; new.len()]),
        };
        match left {
            Some(left) => drop(memory.files.insert(self.1.path(), left)),
            None => drop(memory.files.remove(self.1.path())),
        }
        power.map_err(|_| gone(self.path(), nix::libc::EIO))
    }
}

/// One start of slotd of a confirmed firmware.
fn settle(system: &System, memory: &Arc<Mutex<Memory>>) -> Result<(), LoaderError> {
    let shared = Shared(Arc::clone(memory));
    let copy = |place| Box::new(Copy(shared.clone(), place));
    Firmware::new(shared.clone(), system.device(), &system.path("esp"), &system.path("program.efi"))
        .with_copies(copy(Place::Installed), copy(Place::Removable))
        .settle(Some(GUID), Some("sps-recovery-8.0.1.efi"), true)
}

/// The copy that the first entry of the order starts.
fn starts(memory: &Memory) -> Option<Vec<u8>> {
    let content = |name: &str| memory.variables.get(name).map(|bytes| bytes[4..].to_vec());
    let first = *parse_order(&content("BootOrder")?).unwrap().first()?;
    let entry = LoadOption::parse(&content(&load_option::variable(first))?).unwrap();
    let guid = [0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
    let esp = Partition { number: 1, start: 2048, size: 65_536, guid };
    let names = |place: &Place| LoadOption::of_file(&entry.description, &esp, &place.entry()) == entry;
    let place = [Place::Installed, Place::Removable].into_iter().find(names)?;
    memory.files.get(place.path()).cloned()
}

#[test]
fn a_loader_is_replaced_with_a_cut_anywhere_and_always_starts() {
    let system = System::new();
    let (old, new) = (loader("257.8-1"), loader("257.9-1"));
    fs::write(system.path("program.efi"), &old).unwrap();
    let files =
        BTreeMap::from([(Place::Installed.path(), old.clone()), (Place::Removable.path(), old.clone())]);
    let memory = Arc::new(Mutex::new(Memory { files, left: 100, ..Memory::default() }));
    settle(&system, &memory).unwrap();
    let variables = memory.lock().unwrap().variables.clone();
    fs::write(system.path("program.efi"), &new).unwrap();
    let on = |left, tear| {
        let files =
            BTreeMap::from([(Place::Installed.path(), old.clone()), (Place::Removable.path(), old.clone())]);
        Arc::new(Mutex::new(Memory { variables: variables.clone(), files, left, tear, ..Memory::default() }))
    };
    let whole = on(100, Tear::Old);
    settle(&system, &whole).unwrap();
    let writes = whole.lock().unwrap().writes;
    assert_eq!(writes, 4, "entry, copy, entry, copy");
    let mut states = 0;
    for first in 0..writes {
        for tear in TEARS {
            for second in 0..=writes {
                for again in TEARS {
                    let memory = on(first, tear);
                    settle(&system, &memory).unwrap_err();
                    let check = |when: &str| {
                        let memory = memory.lock().unwrap();
                        let started = starts(&memory);
                        let whole =
                            started.as_ref().is_some_and(|started| *started == old || *started == new);
                        assert!(
                            whole,
                            "{first} {tear:?} {second} {again:?}, {when}: {:?}",
                            memory.files.keys()
                        );
                    };
                    check("after a cut");
                    (memory.lock().unwrap().left, memory.lock().unwrap().tear) = (second, again);
                    let _ = settle(&system, &memory);
                    check("after another one");
                    memory.lock().unwrap().left = 100;
                    settle(&system, &memory).unwrap();
                    let memory = memory.lock().unwrap();
                    assert!(memory.files.values().all(|copy| *copy == new) && memory.files.len() == 2);
                    assert_eq!(memory.variables, variables, "the entry names the installed copy again");
                    states += 1;
                }
            }
        }
    }
    assert_eq!(states, writes * 5 * (writes + 1) * 5);
}

#[test]
fn a_firmware_that_is_locked_or_full_keeps_its_loader() {
    let system = System::new();
    let old = loader("257.8-1");
    fs::write(system.path("program.efi"), loader("257.9-1")).unwrap();
    let files =
        BTreeMap::from([(Place::Installed.path(), old.clone()), (Place::Removable.path(), old.clone())]);
    let memory = Arc::new(Mutex::new(Memory { files, left: 100, locked: true, ..Memory::default() }));
    let error = settle(&system, &memory).unwrap_err();
    assert!(matches!(error, LoaderError::Io { operation: "write", .. }), "{error:?}");
    let memory = memory.lock().unwrap();
    assert!(memory.files.values().all(|copy| *copy == old) && memory.variables.is_empty());
}
