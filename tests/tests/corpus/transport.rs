//! How an image arrives: too short, too long, in pieces, from the wrong place, twice, or not to the end.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use slotd::domain::layout::Part;
use slotd::store::{InstallReport, InstallRequest, Progress, SlotWord};
use sps_base::error::ErrorKind;
use system_tests::recorder::Event;

use crate::firmware::{Firmware, place, slice, stage};
use crate::iso::payload_end;
use crate::judge::{Bench, Case, TARGET, install, memory, pipe, target};

const MIB: usize = 1 << 20;

/// A firmware whose root has several chunks, and its ISO.
fn long() -> &'static (Firmware, Vec<u8>) {
    static LONG: OnceLock<(Firmware, Vec<u8>)> = OnceLock::new();
    LONG.get_or_init(|| {
        let firmware = stage().firmware("8.0.4", 5 * MIB + (12 << 10));
        let iso = firmware.iso();
        (firmware, iso)
    })
}

fn named(offset: u64) -> InstallRequest {
    InstallRequest { transaction_id: Some("transfer".into()), offset, ..InstallRequest::default() }
}

/// Opens what is no image.
type Open = fn() -> OwnedFd;

/// What came of a transfer, and from which byte the next one should begin.
type End = (Result<InstallReport, slotd::store::Failure>, u64);

fn transfer(bench: &Bench, image: OwnedFd, request: &InstallRequest) -> End {
    let progress = Progress::default();
    let reservation = bench.store.reserve_install(request).unwrap();
    (bench.store.install(reservation, image, request, &progress), progress.next_offset())
}

pub(crate) fn wrong_length() -> Vec<Case> {
    let iso = || stage().iso.clone();
    let end = payload_end();
    let shifted = |front: usize, skip: u64| {
        move || {
            let mut file = File::from(memory(&[&vec![0xa5; front], &stage().iso[..]].concat()));
            file.seek(SeekFrom::Start(skip)).unwrap();
            OwnedFd::from(file)
        }
    };
    let mut cases = vec![
        Case::refused(
            "a file that is a byte shorter",
            ErrorKind::MediaCorrupt,
            format!("the image has {} bytes", end - 1),
            move || iso()[..end - 1].to_vec(),
        ),
        Case::stopped(
            "a pipe that is a byte shorter",
            ErrorKind::MediaCorrupt,
            format!("the image ends at byte {};", end - 1),
            move || iso()[..end - 1].to_vec(),
        )
        .piped(),
        Case::taken("a file that is 1 MiB longer", move || [iso(), vec![0xa5; MIB]].concat()),
        Case::taken("a pipe that is 1 MiB longer", move || [iso(), vec![0xa5; MIB]].concat()).piped(),
        Case::refused("an empty file", ErrorKind::MediaCorrupt, "the image ends at byte 0;", Vec::new),
        Case::refused("an empty pipe", ErrorKind::MediaCorrupt, "the image ends at byte 0;", Vec::new)
            .piped(),
    ];
    let kinds: [(&str, Open, &str); 3] = [
        ("a device", || File::open("/dev/zero").unwrap().into(), "a regular file, a pipe or a socket"),
        ("a directory", || File::open("/").unwrap().into(), "a regular file, a pipe or a socket"),
        (
            "a file open for writing only",
            || File::options().write(true).open("/dev/null").unwrap().into(),
            "not open for reading",
        ),
    ];
    for (name, open, text) in kinds {
        cases.push(Case::course(name, move || {
            let bench = Bench::new();
            let before = bench.recorder.log().len();
            let failure = install(&bench.store, open(), &InstallRequest::default()).unwrap_err();
            assert!(
                failure.kind == ErrorKind::InvalidArgument && failure.message.contains(text),
                "{failure:?}"
            );
            assert_eq!(bench.recorder.log().len(), before);
            format!("refused    {}: {}", failure.kind, failure.message)
        }));
    }
    cases.push(Case::course("a file whose image begins at byte 4096", move || {
        let bench = Bench::new();
        install(&bench.store, shifted(4096, 4096)(), &InstallRequest::default()).unwrap();
        bench.assert_installed(&stage().good, "shifted");
        "installed".into()
    }));
    cases.push(Case::course("a file that is read from behind its end", move || {
        let bench = Bench::new();
        let failure = install(&bench.store, shifted(0, 1 << 40)(), &InstallRequest::default()).unwrap_err();
        assert!(
            failure.kind == ErrorKind::MediaCorrupt && failure.message.contains("ends at byte 0"),
            "{failure:?}"
        );
        format!("refused    {}: {}", failure.kind, failure.message)
    }));
    cases
}

/// Cut at these bytes one after the other, each time gone on with where the engine asks; then installed.
fn interrupted(cuts: &[usize]) -> String {
    let (firmware, iso) = long();
    let bench = Bench::new();
    let wrong = bench.guard(firmware);
    let (mut from, mut asked) = (0, Vec::new());
    for cut in cuts {
        let (failed, next) = transfer(&bench, pipe(iso[from..*cut].to_vec(), || {}), &named(from as u64));
        let failure = failed.unwrap_err();
        assert_eq!(failure.kind, ErrorKind::MediaCorrupt, "{failure:?}");
        assert!(failure.message.contains(&format!("the image ends at byte {cut};")), "{failure:?}");
        assert!(next <= *cut as u64 && next >= from as u64, "{next} is asked for after {cut}");
        assert_eq!((bench.word(), bench.word_after_restart()), (SlotWord::Writing, SlotWord::Writing));
        assert!(bench.holds_only(firmware));
        from = usize::try_from(next).unwrap();
        asked.push(next);
    }
    let (done, _) = transfer(&bench, pipe(iso[from..].to_vec(), || {}), &named(from as u64));
    let report = done.unwrap();
    bench.recorder.watch(|_| {});
    assert_eq!(wrong.load(std::sync::atomic::Ordering::Relaxed), 0);
    bench.assert_installed(firmware, "resumed");
    assert_eq!(
        report.bytes_kept + report.bytes_written,
        firmware.sizes().values().map(|len| *len as u64).sum::<u64>()
    );
    format!("installed  asked for {asked:?}, {} bytes kept", report.bytes_kept)
}

pub(crate) fn disconnect_at_every_mib() -> Vec<Case> {
    let last = long().1.len() / MIB;
    let mut cases: Vec<Case> = (1..=last)
        .map(|mib| Case::course(format!("cut at {mib} MiB"), move || interrupted(&[mib * MIB])))
        .collect();
    cases.push(Case::course("cut at every MiB", move || {
        interrupted(&(1..=last).map(|mib| mib * MIB).collect::<Vec<_>>())
    }));
    cases.push(Case::course("cut three times at 4 MiB", || interrupted(&[4 * MIB; 3])));
    cases
}

pub(crate) fn resume_at_a_wrong_offset() -> Vec<Case> {
    let (_, iso) = long();
    let tree = place(iso, Part::Verity).offset;
    let root = place(iso, Part::Root).offset;
    let length = iso.len() as u64;
    let passed = "of the image has already passed";
    // Begins at; what arrives begins at; what is said.
    let cases = [
        ("a block too late", root + 4096, root + 4096, ErrorKind::InvalidArgument, passed),
        ("at the end", length, length, ErrorKind::InvalidArgument, passed),
        ("at 2^64 - 1", u64::MAX, length, ErrorKind::InvalidArgument, passed),
        ("a byte too late", root + 1, root + 1, ErrorKind::InvalidArgument, passed),
        (
            "right, with bytes from a block later",
            root,
            root + 4096,
            ErrorKind::MediaCorrupt,
            "root.erofs, byte 0: block is",
        ),
        (
            "right, with bytes from a byte later",
            root,
            root + 1,
            ErrorKind::MediaCorrupt,
            "root.erofs, byte 0: block is",
        ),
        (
            "right, with the image's first bytes",
            root,
            0,
            ErrorKind::MediaCorrupt,
            "root.erofs, byte 0: block is",
        ),
    ];
    let mut all: Vec<Case> = cases
        .into_iter()
        .map(|(name, offset, from, kind, text)| {
            Case::course(name, move || {
                let (firmware, iso) = long();
                let bench = Bench::new();
                let wrong = bench.guard(firmware);
                let cut = usize::try_from(root).unwrap() + 100;
                let (failed, next) = transfer(&bench, pipe(iso[..cut].to_vec(), || {}), &named(0));
                assert!(failed.is_err() && next == root, "{next}");
                let arrives = iso[usize::try_from(from).unwrap()..].to_vec();
                let failure = transfer(&bench, pipe(arrives, || {}), &named(offset)).0.unwrap_err();
                assert!(failure.kind == kind && failure.message.contains(text), "{name}: {failure:?}");
                assert_eq!(
                    (bench.word(), bench.word_after_restart()),
                    (SlotWord::Writing, SlotWord::Writing)
                );
                assert!(bench.holds_only(firmware));
                let rest = iso[usize::try_from(root).unwrap()..].to_vec();
                assert!(transfer(&bench, pipe(rest, || {}), &named(root)).0.unwrap().bytes_kept > 0);
                assert_eq!(wrong.load(std::sync::atomic::Ordering::Relaxed), 0);
                bench.recorder.watch(|_| {});
                bench.assert_installed(firmware, name);
                format!("writing    {}: {}; the right one goes on", failure.kind, failure.message)
            })
        })
        .collect();
    all.push(Case::course("earlier than needed", move || {
        let (firmware, iso) = long();
        let bench = Bench::new();
        transfer(&bench, pipe(iso[..4 * MIB].to_vec(), || {}), &named(0)).0.unwrap_err();
        let rest = iso[usize::try_from(tree).unwrap()..].to_vec();
        transfer(&bench, pipe(rest, || {}), &named(tree)).0.unwrap();
        bench.assert_installed(firmware, "early");
        "installed".into()
    }));
    for (name, id) in [("of no transaction", None), ("of another transaction", Some("another".to_owned()))] {
        all.push(Case::course(name, move || {
            let bench = Bench::new();
            transfer(&bench, pipe(long().1[..4 * MIB].to_vec(), || {}), &named(0)).0.unwrap_err();
            let before = (bench.recorder.log().len(), bench.recorder.media().digest());
            let request =
                InstallRequest { transaction_id: id.clone(), offset: root, ..InstallRequest::default() };
            let failure = bench.store.reserve_install(&request).unwrap_err();
            assert!(
                failure.kind == ErrorKind::InvalidArgument
                    && failure.message.contains("offset needs the transaction_id"),
                "{failure:?}"
            );
            assert_eq!((bench.recorder.log().len(), bench.recorder.media().digest()), before);
            format!("refused    {}: {}", failure.kind, failure.message)
        }));
    }
    all
}

pub(crate) fn two_at_once() -> Vec<Case> {
    let course = |resumes: bool| {
        move || {
            let bench = Bench::new();
            let wrong = bench.guard(&stage().good);
            let (reader, mut writer) = std::io::pipe().unwrap();
            let iso = &stage().iso;
            let request = named(0);
            // Nobody else may write from the moment on at which the slot is reserved.
            let reservation = bench.store.reserve_install(&request).unwrap();
            let events = bench.recorder.log().len();
            let second = |request: &InstallRequest| bench.store.reserve_install(request).unwrap_err();
            let others = [
                InstallRequest::default(),
                named(0),
                InstallRequest { slot: Some(target()), replace: true, ..named(0) },
            ];
            let mut said = String::new();
            for other in &others {
                let failure = second(other);
                assert_eq!(failure.kind, ErrorKind::SlotBusy, "{failure:?}");
                said = format!("{}: {}", failure.kind, failure.message);
            }
            assert_eq!(bench.recorder.log().len(), events, "something was written");
            std::thread::scope(|scope| {
                let progress = Progress::default();
                let (store, request) = (&bench.store, &request);
                let (begun, wait) = mpsc::channel();
                scope.spawn(move || {
                    let half = iso.len() / 2;
                    writer.write_all(&iso[..half]).unwrap();
                    // The pipe holds 1 MiB at most, so the install is under way; now somebody else asks.
                    begun.send(store.reserve_install(&InstallRequest::default()).unwrap_err().kind).unwrap();
                    if resumes {
                        writer.write_all(&iso[half..]).unwrap();
                    }
                });
                let done = store.install(reservation, reader.into(), request, &progress);
                assert_eq!(wait.recv_timeout(Duration::from_secs(60)).unwrap(), ErrorKind::SlotBusy);
                assert_eq!(done.is_ok(), resumes, "{done:?}");
            });
            // It is over: the next may come.
            if !resumes {
                assert_eq!(bench.word(), SlotWord::Writing);
                install(&bench.store, memory(iso), &named(0)).unwrap();
            }
            bench.recorder.watch(|_| {});
            assert_eq!(wrong.load(std::sync::atomic::Ordering::Relaxed), 0);
            bench.assert_installed(&stage().good, "two at once");
            format!("refused    {said}")
        }
    };
    vec![
        Case::course("the first one ends well", course(true)),
        Case::course("the first one is cut, the second comes then", course(false)),
    ]
}

/// The source is taken away in the middle of the install.
pub(crate) fn medium_pulled() -> Vec<Case> {
    let shrinks = |name: &'static str, part: Part, after: u64| {
        Case::course(name, move || {
            let (firmware, iso) = long();
            let bench = Bench::new();
            let file = File::from(memory(iso));
            let (length, mut shrunk) = (place(iso, part).offset + after, Some(file.try_clone().unwrap()));
            let wanted = firmware.slot();
            bench.recorder.watch(move |event| {
                if let Event::Write { device: TARGET, offset, data } = event {
                    let at = usize::try_from(*offset).unwrap();
                    assert!(at == wanted.len() - 4096 || wanted[at..at + data.len()] == data[..]);
                    if let Some(file) = shrunk.take() {
                        file.set_len(length).unwrap();
                    }
                }
            });
            let failure = install(&bench.store, file.into(), &named(0)).unwrap_err();
            bench.recorder.watch(|_| {});
            assert!(
                failure.kind == ErrorKind::Device
                    && failure.message.contains("cannot read the image at byte"),
                "{failure:?}"
            );
            assert_eq!((bench.word(), bench.word_after_restart()), (SlotWord::Writing, SlotWord::Writing));
            assert!(bench.holds_only(firmware));
            install(&bench.store, memory(iso), &named(0)).unwrap();
            bench.assert_installed(firmware, name);
            format!("writing    {}: {}", failure.kind, failure.message)
        })
    };
    // A peer that closes with bytes unread in its own direction: the kernel answers ECONNRESET once all that came is read.
    let reset = |name: &'static str, after: usize| {
        Case::course(name, move || {
            let (firmware, iso) = long();
            let bench = Bench::new();
            let wrong = bench.guard(firmware);
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(b"never read").unwrap();
            let sent = std::thread::spawn(move || theirs.write_all(&iso[..after]).is_ok());
            let before = bench.recorder.log().len();
            let failure = install(&bench.store, ours.into(), &named(0)).unwrap_err();
            assert!(sent.join().unwrap());
            let text = format!("cannot read the image at byte {after}: Connection reset by peer");
            assert!(failure.kind == ErrorKind::Device && failure.message.contains(&text), "{failure:?}");
            let written = bench.recorder.log().len() > before;
            let word = if written { SlotWord::Writing } else { SlotWord::Empty };
            assert_eq!((bench.word(), bench.word_after_restart()), (word, word));
            assert!(bench.holds_only(firmware));
            install(&bench.store, memory(iso), &named(0)).unwrap();
            bench.recorder.watch(|_| {});
            assert_eq!(wrong.load(std::sync::atomic::Ordering::Relaxed), 0);
            bench.assert_installed(firmware, name);
            format!(
                "{} {}: {}",
                if written { "writing   " } else { "refused   " },
                failure.kind,
                failure.message
            )
        })
    };
    let silent = Case::course("a pipe that stays open and silent", || {
        let bench = Bench::on(Bench::fresh().clone(), |all, _| all.stall = Duration::from_millis(300));
        let (hold, until) = mpsc::channel::<()>();
        let image = slice(&stage().iso, place(&stage().iso, Part::Manifest)).len() + 45_000;
        let reader = pipe(stage().iso[..image].to_vec(), move || {
            let _ = until.recv();
        });
        let failure = install(&bench.store, reader, &named(0)).unwrap_err();
        drop(hold);
        assert!(
            failure.kind == ErrorKind::MediaCorrupt && failure.message.contains("no byte arrived for 300ms"),
            "{failure:?}"
        );
        assert_eq!(bench.word(), SlotWord::Empty);
        format!("refused    {}: {}", failure.kind, failure.message)
    });
    let root = usize::try_from(place(&long().1, Part::Root).offset).unwrap();
    vec![
        shrinks("a file that shrinks before its hash tree", Part::Verity, 8192),
        shrinks("a file that shrinks in its boot image", Part::Boot, 100),
        shrinks("a file that shrinks before its root", Part::Root, 0),
        shrinks("a file that shrinks in its root", Part::Root, 3 << 20),
        reset("a connection that breaks in the directory", 40_000),
        reset(
            "a connection that breaks before the hash tree",
            usize::try_from(place(&long().1, Part::Verity).offset).unwrap(),
        ),
        reset("a connection that breaks before the root", root),
        reset("a connection that breaks in the root", root + 3 * MIB + 77),
        silent,
    ]
}
