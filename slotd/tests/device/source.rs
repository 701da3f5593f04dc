//! Images that arrive on files, pipes and sockets.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use slotd::device::buffer::Buffer;
use slotd::device::source::{Source, SourceError};

const STALL: Duration = Duration::from_secs(20);
const LENGTH: usize = 100_000;

fn never() -> bool {
    false
}

fn bytes() -> Vec<u8> {
    (0..LENGTH).map(|i| u8::try_from((i * 31 + i / 253) % 256).unwrap()).collect()
}

/// A file that holds [`bytes`] behind `offset` other bytes, and stands there.
fn file(offset: usize) -> File {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&vec![0xff; offset]).unwrap();
    file.write_all(&bytes()).unwrap();
    file.seek(SeekFrom::Start(offset as u64)).unwrap();
    file
}

/// A pipe that carries [`bytes`] and ends.
fn pipe() -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Whoever stops reading early ends the writer by SIGPIPE's error, which is fine.
    thread::spawn(move || drop(writer.write_all(&bytes())));
    reader.into()
}

fn socket() -> OwnedFd {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    thread::spawn(move || drop(writer.write_all(&bytes())));
    reader.into()
}

#[test]
fn every_kind_of_descriptor_carries_the_same_bytes() {
    let kinds: Vec<(&str, OwnedFd, Option<u64>)> = vec![
        ("a file", file(0).into(), Some(LENGTH as u64)),
        ("a file that stands in its middle", file(12_345).into(), Some(LENGTH as u64)),
        ("a pipe", pipe(), None),
        ("a socket", socket(), None),
    ];
    for (what, descriptor, length) in kinds {
        let mut source = Source::new(descriptor, 0, STALL, &never).unwrap();
        assert_eq!((source.length(), source.position()), (length, 0), "{what}");
        let mut got = vec![0; 70_000];
        let (one, two) = got.split_at_mut(9);
        source.read(one).unwrap();
        source.read(two).unwrap();
        assert_eq!(got, bytes()[..70_000], "{what}");
        source.skip_to(90_000, &mut [0; 4096]).unwrap();
        let mut aligned = Buffer::new(4096);
        source.read(&mut aligned).unwrap();
        assert_eq!(aligned[..], bytes()[90_000..94_096], "{what}");
        assert_eq!(source.position(), 94_096);
        match source.read(&mut vec![0; 10_000]) {
            Err(SourceError::Ended { at, wanted }) => assert_eq!((at, wanted), (100_000, 4096), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_transfer_that_begins_in_the_middle_counts_in_bytes_of_the_image() {
    for (descriptor, length) in [(OwnedFd::from(file(100)), Some(500_000 + LENGTH as u64)), (pipe(), None)] {
        let mut source = Source::new(descriptor, 500_000, STALL, &never).unwrap();
        assert_eq!((source.length(), source.position()), (length, 500_000));
        match source.skip_to(499_999, &mut [0; 16]) {
            Err(SourceError::Passed { wanted, at }) => assert_eq!((wanted, at), (499_999, 500_000)),
            other => panic!("{other:?}"),
        }
        source.skip_to(500_010, &mut [0; 16]).unwrap();
        let mut got = [0; 10];
        source.read(&mut got).unwrap();
        assert_eq!(got, bytes()[10..20]);
        match source.read(&mut vec![0; LENGTH]) {
            Err(SourceError::Ended { at, wanted }) => assert_eq!((at, wanted), (600_000, 20)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_goes_back_and_a_stream_does_not() {
    let mut source = Source::new(file(7).into(), 0, STALL, &never).unwrap();
    let mut got = [0; 100];
    source.read(&mut got).unwrap();
    source.skip_to(50, &mut []).unwrap();
    source.read(&mut got).unwrap();
    assert_eq!(got, bytes()[50..150]);
    let mut source = Source::new(pipe(), 0, STALL, &never).unwrap();
    source.read(&mut got).unwrap();
    assert!(matches!(source.skip_to(50, &mut [0; 9]), Err(SourceError::Passed { wanted: 50, at: 100 })));
}

#[test]
fn far_beyond_the_end_is_an_early_end() {
    let mut source = Source::new(file(0).into(), 0, STALL, &never).unwrap();
    source.skip_to(1 << 60, &mut []).unwrap();
    assert!(matches!(source.read(&mut [0; 1]), Err(SourceError::Ended { at: 100_000, .. })));
    let mut past = file(0);
    past.seek(SeekFrom::Start(1 << 40)).unwrap();
    let mut source = Source::new(past.into(), 0, STALL, &never).unwrap();
    assert_eq!(source.length(), Some(0));
    assert!(matches!(source.read(&mut [0; 1]), Err(SourceError::Ended { at: 0, wanted: 1 })));
}

#[test]
fn silence_is_given_up_and_named() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"abc").unwrap();
    let stall = Duration::from_millis(300);
    let mut source = Source::new(reader.into(), 0, stall, &never).unwrap();
    let begun = Instant::now();
    match source.read(&mut [0; 10]) {
        Err(SourceError::Stalled { at, waited }) => assert_eq!((at, waited), (3, stall)),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= stall);
    drop(writer);
}

#[test]
fn a_waiting_read_hears_that_it_is_cancelled() {
    let (reader, writer) = std::io::pipe().unwrap();
    let asked = AtomicU32::new(0);
    // Not before the read waits: the first question comes from its beginning.
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) >= 2;
    let mut source = Source::new(reader.into(), 0, STALL, &cancelled).unwrap();
    let begun = Instant::now();
    assert!(matches!(source.read(&mut [0; 1]), Err(SourceError::Cancelled)));
    assert!(begun.elapsed() < STALL / 4, "{:?}", begun.elapsed());
    drop(writer);
    let flag = AtomicBool::new(true);
    let cancelled = || flag.load(Ordering::Relaxed);
    let mut source = Source::new(file(0).into(), 0, STALL, &cancelled).unwrap();
    assert!(matches!(source.read(&mut [0; 1]), Err(SourceError::Cancelled)));
}

#[test]
fn a_socket_that_is_shut_down_ends() {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.write_all(b"1234").unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    let mut source = Source::new(reader.into(), 0, STALL, &never).unwrap();
    assert!(matches!(source.read(&mut [0; 8]), Err(SourceError::Ended { at: 4, wanted: 4 })));
}

#[test]
fn what_cannot_carry_an_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("write-only");
    std::fs::write(&path, bytes()).unwrap();
    let write_only = File::options().write(true).open(&path).unwrap();
    let descriptors: Vec<(&str, OwnedFd, bool)> = vec![
        ("a character device", File::open("/dev/zero").unwrap().into(), true),
        ("a directory", File::open(directory.path()).unwrap().into(), true),
        ("a file that the caller may not read", write_only.into(), false),
        ("the end of a pipe for writing", std::io::pipe().unwrap().1.into(), false),
    ];
    for (what, descriptor, readable) in descriptors {
        match Source::new(descriptor, 0, STALL, &never) {
            Err(SourceError::Kind) if readable => {}
            Err(SourceError::NotReadable) if !readable => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn the_descriptor_of_the_caller_keeps_its_flags_and_place() {
    let mut file = file(10);
    let mut source = Source::new(file.try_clone().unwrap().into(), 0, STALL, &never).unwrap();
    source.read(&mut Buffer::new(8192)).unwrap();
    drop(source);
    assert_eq!(file.stream_position().unwrap(), 10);
    let mut odd = [0; 3];
    file.read_exact(&mut odd).unwrap();
    assert_eq!(odd, bytes()[..3]);
}
