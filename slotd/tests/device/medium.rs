//! `FileMedium` on files and loop devices.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use slotd::device::buffer::Buffer;
use slotd::device::medium::{FileMedium, Medium};
use slotd::device::probe::Readback;

const SIZE: usize = 64 << 10;

/// A file of [`SIZE`] bytes whose every byte differs from its neighbours.
fn file(directory: &Path) -> (PathBuf, Vec<u8>) {
    let path = directory.join("medium");
    let bytes: Vec<u8> = (0..SIZE).map(|i| u8::try_from((i * 7 + i / 251) % 251).unwrap()).collect();
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_range_is_read(offset in 0..SIZE, length in 0..SIZE, shift in 0_usize..3) {
        let directory = on_disk();
        let (path, bytes) = file(directory.path());
        let medium = FileMedium::open(&path).unwrap();
        let length = length.min(SIZE - offset);
        let mut buf = vec![0xee; length + shift];
        medium.read_at(offset as u64, &mut buf[shift..]).unwrap();
        prop_assert_eq!(&buf[shift..], &bytes[offset..offset + length]);
    }
}

#[test]
fn whole_blocks_are_written_from_any_memory_and_nothing_else() {
    let directory = on_disk();
    let (path, mut bytes) = file(directory.path());
    let medium = FileMedium::open(&path).unwrap();
    let mut aligned = Buffer::new(8192);
    aligned.fill(0xa1);
    medium.write_at(4096, &aligned).unwrap();
    bytes[4096..12288].fill(0xa1);
    let unaligned = vec![0xb2; 4097];
    medium.write_at(SIZE as u64 - 4096, &unaligned[1..]).unwrap();
    bytes[SIZE - 4096..].fill(0xb2);
    medium.flush().unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    for (offset, length) in [(1, 4096), (512, 4096), (0, 512), (0, 4095)] {
        let error = medium.write_at(offset, &vec![0; length]).unwrap_err();
        assert_eq!((error.operation, error.source.kind()), ("write", io::ErrorKind::InvalidInput));
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn nothing_outside_its_size_is_touched() {
    let directory = on_disk();
    let (path, bytes) = file(directory.path());
    let medium = FileMedium::open(&path).unwrap();
    assert_eq!(medium.size(), SIZE as u64);
    for offset in [SIZE as u64, SIZE as u64 - 1, u64::MAX, u64::MAX - 4095] {
        let error = medium.read_at(offset, &mut [0; 2]).unwrap_err();
        assert_eq!((error.operation, error.offset, error.length), ("read", offset, 2));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    for offset in [SIZE as u64, u64::MAX - 4095] {
        assert_eq!(medium.write_at(offset, &[0; 4096]).unwrap_err().operation, "write");
    }
    assert!(medium.write_at(SIZE as u64 - 4096, &[0; 8192]).is_err(), "half in, half out");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // A file that ends within a block has only the blocks before it.
    File::options().write(true).open(&path).unwrap().set_len(SIZE as u64 - 1).unwrap();
    assert_eq!(FileMedium::open(&path).unwrap().size(), SIZE as u64 - 4096);
    // A file that shrinks later is an error, not a panic.
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(medium.read_at(8192, &mut [0; 4096]).is_err());
}

#[test]
fn what_is_no_medium_is_refused_with_its_path() {
    let directory = on_disk();
    let missing = directory.path().join("none");
    for path in [missing.as_path(), Path::new("/dev/null"), directory.path()] {
        let error = FileMedium::open(path).unwrap_err();
        assert_eq!(error.operation, "open");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(!missing.exists(), "slotd makes no devices");
}

#[test]
fn read_back_from_memory_proves_nothing_and_from_a_disk_something() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let medium = FileMedium::open(&file(memory.path()).0).unwrap();
    assert_eq!(medium.readback(), Readback::Impossible);
    medium.write_at(0, &[7; 4096]).unwrap();
    let mut byte = [0];
    medium.read_at(4095, &mut byte).unwrap();
    assert_eq!(byte, [7]);

    let disk = on_disk();
    let path = file(disk.path()).0;
    let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(&path).output().unwrap().stdout;
    let kind = String::from_utf8(kind).unwrap();
    if kind.starts_with("ext") || kind.starts_with("xfs") || kind.starts_with("btrfs") {
        assert_eq!(FileMedium::open(&path).unwrap().readback(), Readback::Direct);
    } else {
        println!("skipped: the build directory is on {kind}, whose read-back is not known here");
    }
    assert!(Readback::Impossible < Readback::Cached && Readback::Cached < Readback::Direct);
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path, direct: bool) -> Option<Self> {
        let mode = if direct { "--direct-io=on" } else { "--direct-io=off" };
        let out = Command::new("losetup").args(["--find", "--show", mode]).arg(file).output().ok()?;
        let path = String::from_utf8(out.stdout).ok()?;
        out.status.success().then(|| Self(PathBuf::from(path.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_loop_device_proves_as_much_as_it_passes_on() {
    let directory = on_disk();
    let (path, bytes) = file(directory.path());
    for (direct, expected) in [(false, Readback::Impossible), (true, Readback::Direct)] {
        let Some(device) = Loop::attach(&path, direct) else {
            println!("skipped: no loop device can be attached here");
            return;
        };
        let name = device.0.file_name().unwrap().to_str().unwrap();
        let dio = fs::read_to_string(format!("/sys/block/{name}/loop/dio")).unwrap();
        if direct && dio.trim() != "1" {
            println!("skipped: this file system gives loop devices no direct I/O");
            return;
        }
        let medium = FileMedium::open(&device.0).unwrap();
        assert_eq!((medium.readback(), medium.size()), (expected, SIZE as u64));
        let mut buf = vec![0; 5000];
        medium.read_at(1000, &mut buf).unwrap();
        assert_eq!(buf, bytes[1000..6000]);
        medium.write_at(8192, &bytes[8192..12288]).unwrap();
        medium.flush().unwrap();
    }
    let mut after = vec![0; SIZE];
    File::open(&path).unwrap().read_exact_at(&mut after, 0).unwrap();
    assert_eq!(after, bytes);
}
