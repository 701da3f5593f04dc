//! A case, the appliance that meets it, and what must come of it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use sha2::{Digest as _, Sha256};
use slotd::domain::manifest::{MANIFEST_NAME, Sha256Hex};
use slotd::domain::trailer::{self, Found};
use slotd::store::{
    Assembly, Failure, InstallReport, InstallRequest, Progress, SlotWord, Store, Trust, VerifyMode,
};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;
use system_tests::crash::appliance::assembly;
use system_tests::lab::read_keyring;
use system_tests::recorder::{Device, Event, Media, Recorder};

use crate::firmware::{Firmware, NOW, SLOT, stage};

/// The slot that is written.
pub(crate) const TARGET: Device = Device::Slot(2);

/// What must come of a case.
pub(crate) enum Verdict {
    /// Refused with this kind and words that hold this text, before the first write: nothing was written, flushed or
    /// removed, and no byte of any medium is another.
    Refused(ErrorKind, String),
    /// The same after the first write: everything written was signed and proven, and the slot says that it is being
    /// written.
    Stopped(ErrorKind, String),
    /// Installed: the damage lies where nothing is looked at, and every byte of the slot is the signed one.
    Taken,
}

/// A case of the corpus: an image and what must come of it, or a course of events that asserts by itself.
pub(crate) struct Case {
    pub(crate) name: String,
    body: Body,
}

enum Body {
    Image(Image),
    /// Answers its line of the table.
    Course(Box<dyn Fn() -> String + Send + Sync>),
}

struct Image {
    make: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// On a pipe, whose length nobody knows.
    piped: bool,
    request: InstallRequest,
    /// What was signed: nothing else may get into the slot.
    signed: Option<Box<dyn Fn() -> Firmware + Send + Sync>>,
    verdict: Verdict,
}

impl Case {
    /// The image that `make` makes, when its turn comes.
    pub(crate) fn new(
        name: impl Into<String>,
        verdict: Verdict,
        make: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let (make, request) = (Box::new(make), InstallRequest::default());
        let image = Image { make, piped: false, request, signed: None, verdict };
        Self { name: name.into(), body: Body::Image(image) }
    }

    /// Refused before the first write.
    pub(crate) fn refused(
        name: impl Into<String>,
        kind: ErrorKind,
        text: impl Into<String>,
        make: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Verdict::Refused(kind, text.into()), make)
    }

    /// Stopped after the first write.
    pub(crate) fn stopped(
        name: impl Into<String>,
        kind: ErrorKind,
        text: impl Into<String>,
        make: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Verdict::Stopped(kind, text.into()), make)
    }

    /// Installed all the same.
    pub(crate) fn taken(name: impl Into<String>, make: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(name, Verdict::Taken, make)
    }

    /// A course of events.
    pub(crate) fn course(
        name: impl Into<String>,
        course: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), body: Body::Course(Box::new(course)) }
    }

    fn change(mut self, change: impl FnOnce(&mut Image)) -> Self {
        if let Body::Image(image) = &mut self.body {
            change(image);
        }
        self
    }

    pub(crate) fn piped(self) -> Self {
        self.change(|image| image.piped = true)
    }

    /// What may get into the slot is this, not the good firmware.
    pub(crate) fn signed(self, firmware: impl Fn() -> Firmware + Send + Sync + 'static) -> Self {
        self.change(|image| image.signed = Some(Box::new(firmware)))
    }
}

/// An appliance in memory: slot 1 runs the firmware of the stage, slot 2 is empty.
pub(crate) struct Bench {
    pub(crate) recorder: Recorder,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::on(Self::fresh().clone(), |_, _| {})
    }

    /// The media of an appliance that runs its first firmware.
    pub(crate) fn fresh() -> &'static Media {
        static FRESH: OnceLock<Media> = OnceLock::new();
        FRESH.get_or_init(|| {
            let recorder = Recorder::new(Media::new(2, SLOT));
            let store = Store::assemble(parts(&recorder, ""));
            store.reset_state("made by the test").unwrap();
            let request = InstallRequest { slot: SlotId::new(1), ..InstallRequest::default() };
            install(&store, memory(&stage().running.iso()), &request).unwrap();
            recorder.media()
        })
    }

    /// On these media, put together after `change`.
    pub(crate) fn on(media: Media, change: impl FnOnce(&mut Assembly, &Recorder)) -> Self {
        let recorder = Recorder::new(media);
        let mut all = parts(&recorder, &cmdline());
        change(&mut all, &recorder);
        Self { store: Store::assemble(all), recorder }
    }

    /// What slot 2 says it is.
    pub(crate) fn word(&self) -> SlotWord {
        word(&self.store)
    }

    /// What it says after a restart.
    pub(crate) fn word_after_restart(&self) -> SlotWord {
        word(&Bench::on(self.recorder.media(), |_, _| {}).store)
    }

    /// Has each write to slot 2 compared with what `signed` puts there. The number of bytes that differ.
    pub(crate) fn guard(&self, signed: &Firmware) -> Arc<AtomicUsize> {
        let wrong = Arc::new(AtomicUsize::new(0));
        let (counter, wanted) = (Arc::clone(&wrong), signed.slot());
        let manifest = Sha256Hex(Sha256::digest(signed.file(MANIFEST_NAME)).into());
        self.recorder.watch(move |event| {
            let Event::Write { device: TARGET, offset, data } = event else { return };
            let at = usize::try_from(*offset).unwrap();
            // The trailer is zeros, or one that says what it claims.
            let right = if at == SLOT - 4096 {
                match trailer::parse(data[..].try_into().unwrap()) {
                    Found::Absent => true,
                    Found::Valid(claim) => claim.manifest == manifest,
                    Found::Torn(_) => false,
                }
            } else {
                wanted[at..at + data.len()] == data[..]
            };
            counter.fetch_add(if right { 0 } else { data.len() }, Ordering::Relaxed);
        });
        wrong
    }

    /// Slot 2 holds what `signed` puts there, and zeros.
    pub(crate) fn holds_only(&self, signed: &Firmware) -> bool {
        let (mut media, wanted) = (self.recorder.media(), signed.slot());
        let mut there = vec![0; SLOT - 4096];
        assert!(media.image(TARGET).read(0, &mut there));
        there.chunks(4096).zip(wanted.chunks(4096)).all(|(a, b)| a == b || a.iter().all(|byte| *byte == 0))
    }

    /// Slot 2 holds all that `signed` puts there.
    pub(crate) fn holds(&self, signed: &Firmware) -> bool {
        let (mut media, wanted) = (self.recorder.media(), signed.slot());
        let mut there = vec![0; SLOT - 4096];
        assert!(media.image(TARGET).read(0, &mut there));
        there == wanted[..SLOT - 4096]
    }

    /// Slot 2 is verified, healthy, and holds `signed`.
    pub(crate) fn assert_installed(&self, signed: &Firmware, name: &str) {
        assert_eq!(self.word(), SlotWord::Verified, "{name}");
        assert!(self.holds(signed), "{name}: another content");
        let reservation = self.store.reserve_verify(target()).unwrap();
        let report = self.store.verify(&reservation, VerifyMode::Full, false, &Progress::default()).unwrap();
        assert!(report.healthy, "{name}: {report:?}");
    }

    /// Judges one case; its line of the table. True in front when a medium has changed.
    fn judge(&self, name: &str, case: &Image) -> (bool, String) {
        let own = case.signed.as_ref().map(|make| make());
        let signed = own.as_ref().unwrap_or(&stage().good);
        let (before, events) = (self.recorder.media().digest(), self.recorder.log().len());
        let wrong = self.guard(signed);
        let image = (case.make)();
        let descriptor = if case.piped { pipe(image, || {}) } else { memory(&image) };
        let done = install(&self.store, descriptor, &case.request);
        self.recorder.watch(|_| {});
        assert_eq!(wrong.load(Ordering::Relaxed), 0, "{name}: bytes were written that nobody signed");
        let changed = self.recorder.log().len() > events;
        match (&case.verdict, done) {
            (Verdict::Refused(kind, text), Err(failure)) => {
                assert!(
                    failure.kind == *kind && failure.message.contains(text),
                    "{name}: {failure:?}, not {text:?}"
                );
                assert!(!changed, "{name}: something was written or flushed");
                assert_eq!(self.recorder.media().digest(), before, "{name}");
                (false, format!("refused    {}: {}", failure.kind, failure.message))
            }
            (Verdict::Stopped(kind, text), Err(failure)) => {
                assert!(
                    failure.kind == *kind && failure.message.contains(text),
                    "{name}: {failure:?}, not {text:?}"
                );
                let words = (self.word(), self.word_after_restart());
                assert_eq!(words, (SlotWord::Writing, SlotWord::Writing), "{name}");
                assert!(self.holds_only(signed), "{name}");
                (true, format!("writing    {}: {}", failure.kind, failure.message))
            }
            (Verdict::Taken, Ok(_)) => {
                self.assert_installed(signed, name);
                (true, "installed  the damage lies where nothing is looked at".into())
            }
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

/// Judges all, prints the table, and shows every case that does not hold.
pub(crate) fn judge(group: &str, cases: &[Case]) {
    let (mut bench, mut faults) = (Bench::new(), Vec::new());
    for case in cases {
        let judged = catch_unwind(AssertUnwindSafe(|| match &case.body {
            Body::Course(course) => (false, course()),
            Body::Image(image) => bench.judge(&case.name, image),
        }));
        let (changed, line) = judged.unwrap_or_else(|_| {
            faults.push(case.name.as_str());
            (true, "NOT AS IT MUST BE: see above".into())
        });
        println!("{group}: {:<54} {line}", case.name);
        if changed {
            bench = Bench::new();
        }
    }
    assert!(faults.is_empty(), "{group}: {faults:#?}");
}

/// Number of slot 2.
pub(crate) fn target() -> SlotId {
    SlotId::new(2).unwrap()
}

fn word(store: &Store) -> SlotWord {
    store.slots().iter().find(|view| view.id == target()).unwrap().state
}

/// The kernel's command line when slot 1 runs.
pub(crate) fn cmdline() -> String {
    format!("quiet roothash={} ro", stage().running.manifest.root.verity.root_hash)
}

/// What a store on these media is made of.
pub(crate) fn parts(recorder: &Recorder, cmdline: &str) -> Assembly {
    let slots = recorder.media().slots.len();
    let (roots, crls) = read_keyring(&stage().pki().keyring_dir()).unwrap();
    let mut all = assembly(Trust::Files(roots, crls), recorder, slots, cmdline);
    all.environment.now = || NOW;
    all
}

/// Installs what arrives.
pub(crate) fn install(
    store: &Store,
    image: OwnedFd,
    request: &InstallRequest,
) -> Result<InstallReport, Failure> {
    store.install(store.reserve_install(request)?, image, request, &Progress::default())
}

/// A file in memory that holds `image`, at its start.
pub(crate) fn memory(image: &[u8]) -> OwnedFd {
    let descriptor = nix::sys::memfd::memfd_create(c"image", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let mut file = File::from(descriptor);
    file.write_all(image).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.into()
}

/// A pipe that carries `image`; then `end` is called, and the pipe ends when that is over.
pub(crate) fn pipe(image: Vec<u8>, end: impl FnOnce() + Send + 'static) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    thread::spawn(move || {
        // Whoever has enough stops reading.
        let _ = writer.write_all(&image);
        end();
    });
    reader.into()
}
