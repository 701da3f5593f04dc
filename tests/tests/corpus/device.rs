//! Media that are full, fail, or lie about what was written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc::{EIO, ENOSPC};
use slotd::device::esp::{Esp, EspError};
use slotd::device::medium::{FileMedium, Medium, MediumError};
use slotd::device::probe::Readback;
use slotd::domain::layout::Part;
use slotd::store::{Failure, InstallRequest, SlotWord};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;
use system_tests::recorder::{Device, Media};

use crate::firmware::{SLOT, flipped, span, stage};
use crate::judge::{Bench, Case, TARGET, install, memory};

/// Reads at the end of an install: of the trailer, of the boot image for the ESP, and the last look.
const LAST_READS: usize = 6;

/// What goes wrong, on all media together. Operations are counted from 0.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// Writes that fail, counted over slot 2, state and ESP.
    writes: Option<Range<usize>>,
    /// Flushes that fail, likewise.
    flushes: Option<Range<usize>>,
    /// Reads of slot 2 that fail.
    reads: Option<Range<usize>>,
    errno: i32,
    /// Bytes of slot 2 that cannot be read.
    unreadable: Option<Range<u64>>,
    /// Bytes of slot 2 that come back flipped, whatever was written.
    flipped: Option<Range<u64>>,
    /// Writes to slot 2 that are lost without a word.
    lost: Option<Range<u64>>,
    /// Free bytes of the ESP.
    free: Option<u64>,
    /// Size of slot 2.
    size: Option<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    writes: AtomicUsize,
    flushes: AtomicUsize,
    reads: AtomicUsize,
}

#[derive(Debug)]
struct Faulty<T: ?Sized> {
    faults: Faults,
    counts: Arc<Counts>,
    /// Whether it is the slot.
    slot: bool,
    inner: Arc<T>,
}

impl<T: ?Sized> Faulty<T> {
    fn hit(&self, counter: &AtomicUsize, range: Option<&Range<usize>>) -> Result<(), io::Error> {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        if range.is_some_and(|range| range.contains(&number)) {
            return Err(io::Error::from_raw_os_error(self.faults.errno));
        }
        Ok(())
    }

    fn write(&self) -> Result<(), io::Error> {
        self.hit(&self.counts.writes, self.faults.writes.as_ref())
    }

    fn sync(&self) -> Result<(), io::Error> {
        self.hit(&self.counts.flushes, self.faults.flushes.as_ref())
    }
}

fn touches(range: Option<&Range<u64>>, offset: u64, len: usize) -> bool {
    range.is_some_and(|range| range.start < offset + len as u64 && offset < range.end)
}

impl Medium for Faulty<dyn Medium> {
    fn size(&self) -> u64 {
        self.faults.size.filter(|_| self.slot).unwrap_or_else(|| self.inner.size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        let number = self.counts.reads.fetch_add(usize::from(self.slot), Ordering::Relaxed);
        let due = self.faults.reads.as_ref().is_some_and(|range| range.contains(&number));
        if self.slot && (due || touches(self.faults.unreadable.as_ref(), offset, buf.len())) {
            let source = io::Error::from_raw_os_error(EIO);
            return Err(MediumError {
                path: "slot".into(),
                operation: "read",
                offset,
                length: buf.len() as u64,
                source,
            });
        }
        self.inner.read_at(offset, buf)?;
        if let Some(range) = self.faults.flipped.as_ref().filter(|_| self.slot) {
            for (byte, at) in buf.iter_mut().zip(offset..) {
                *byte ^= u8::from(range.contains(&at));
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        let length = data.len() as u64;
        self.write().map_err(|source| MediumError {
            path: "medium".into(),
            operation: "write",
            offset,
            length,
            source,
        })?;
        if self.slot && touches(self.faults.lost.as_ref(), offset, data.len()) {
            return Ok(());
        }
        self.inner.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), MediumError> {
        let fail =
            |source| MediumError { path: "medium".into(), operation: "flush", offset: 0, length: 0, source };
        self.sync().map_err(fail)?;
        self.inner.flush()
    }

    fn readback(&self) -> Readback {
        self.inner.readback()
    }
}

fn esp_error(operation: &'static str) -> impl FnOnce(io::Error) -> EspError {
    move |source| EspError { path: "esp".into(), operation, source }
}

impl Esp for Faulty<dyn Esp> {
    fn size(&self, name: &str) -> Result<Option<u64>, EspError> {
        self.inner.size(name)
    }
    fn list(&self) -> Result<Vec<String>, EspError> {
        self.inner.list()
    }
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), EspError> {
        self.inner.read_at(name, offset, buf)
    }
    fn create(&self, name: &str) -> Result<(), EspError> {
        self.write().map_err(esp_error("create"))?;
        self.inner.create(name)
    }
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), EspError> {
        self.write().map_err(esp_error("write"))?;
        self.inner.write_at(name, offset, data)
    }
    fn sync_file(&self, name: &str) -> Result<(), EspError> {
        self.sync().map_err(esp_error("sync"))?;
        self.inner.sync_file(name)
    }
    fn remove(&self, name: &str) -> Result<(), EspError> {
        self.write().map_err(esp_error("remove"))?;
        self.inner.remove(name)
    }
    fn sync(&self) -> Result<(), EspError> {
        Faulty::sync(self).map_err(esp_error("sync"))?;
        self.inner.sync()
    }
    fn free(&self) -> Result<u64, EspError> {
        self.faults.free.map_or_else(|| self.inner.free(), Ok)
    }
}

/// The appliance on media that fail like this, and what is counted.
fn sick(faults: &Faults) -> (Bench, Arc<Counts>) {
    sick_on(Bench::fresh().clone(), faults)
}

/// The same on these media.
fn sick_on(media: Media, faults: &Faults) -> (Bench, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let bench = Bench::on(media, |all, recorder| {
        let wrap = |inner, slot| Faulty { faults: faults.clone(), counts: Arc::clone(&counts), slot, inner };
        all.slots[1].2 = Ok(Arc::new(wrap(recorder.medium(TARGET), true)));
        all.state = Ok(Arc::new(wrap(recorder.medium(Device::State), false)));
        let esp: Faulty<dyn Esp> = Faulty {
            faults: faults.clone(),
            counts: Arc::clone(&counts),
            slot: false,
            inner: recorder.esp(),
        };
        all.esp = Ok(Arc::new(esp));
    });
    // Only what the install does is counted.
    counts.writes.store(0, Ordering::Relaxed);
    counts.flushes.store(0, Ordering::Relaxed);
    counts.reads.store(0, Ordering::Relaxed);
    (bench, counts)
}

/// How many writes, flushes and reads of the slot an undisturbed install does.
fn operations() -> (usize, usize, usize) {
    let (bench, counts) = sick(&Faults::default());
    install(&bench.store, memory(&stage().iso), &InstallRequest::default()).unwrap();
    // The check that follows writes what it has found.
    let counted = [&counts.writes, &counts.flushes, &counts.reads].map(|count| count.load(Ordering::Relaxed));
    bench.assert_installed(&stage().good, "undisturbed");
    counted.into()
}

/// Installs on media that fail like this. Nothing that is not signed is written; a slot that says `Verified` is; the
/// firmware that runs is as before; and on good media the same install then ends well.
fn fails(name: &str, faults: &Faults) -> (Failure, SlotWord) {
    let (bench, _) = sick(faults);
    let good = &stage().good;
    let wrong = bench.guard(good);
    let failure = install(&bench.store, memory(&stage().iso), &InstallRequest::default()).unwrap_err();
    bench.recorder.watch(|_| {});
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "{name}: bytes were written that nobody signed");
    assert!(bench.holds_only(good), "{name}");
    let word = bench.word();
    assert!(
        matches!(word, SlotWord::Empty | SlotWord::Writing | SlotWord::Bad | SlotWord::Verified),
        "{name}: {word:?}"
    );
    if word == SlotWord::Verified {
        bench.assert_installed(good, name);
    }
    // The same media, in order again.
    let mended = Bench::on(bench.recorder.media(), |_, _| {});
    assert_eq!(mended.recorder.media().slots[0], Bench::fresh().slots[0], "{name}: the running slot");
    let running = mended.store.slots().into_iter().find(|view| view.id.get() == 1).unwrap();
    assert_eq!(running.state, SlotWord::Verified, "{name}: the running slot");
    if mended.word() != SlotWord::Verified {
        let request = InstallRequest { slot: SlotId::new(2), replace: true, ..InstallRequest::default() };
        install(&mended.store, memory(&stage().iso), &request).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    mended.assert_installed(good, name);
    (failure, word)
}

fn line(failure: &Failure, word: SlotWord) -> String {
    format!("{:<10} {}: {}", word.as_str(), failure.kind, failure.message)
}

/// The device answers `errno`, and that is what is said.
fn says(name: String, faults: Faults, text: &'static str) -> Case {
    Case::course(name.clone(), move || {
        let (failure, word) = fails(&name, &faults);
        assert!(failure.kind == ErrorKind::Device && failure.message.contains(text), "{name}: {failure:?}");
        line(&failure, word)
    })
}

pub(crate) fn no_space() -> Vec<Case> {
    let (writes, ..) = operations();
    let full = |k: usize| Faults { writes: Some(k..usize::MAX), errno: ENOSPC, ..Faults::default() };
    let mut cases: Vec<Case> = (0..writes)
        .map(|k| says(format!("full from write {k} on"), full(k), "No space left on device"))
        .collect();
    let boot = stage().good.sizes()["boot.efi"] as u64;
    for free in [0, boot + 4095] {
        cases.push(Case::course(format!("an ESP with {free} bytes"), move || {
            let (bench, _) = sick(&Faults { free: Some(free), ..Faults::default() });
            let before = bench.recorder.log().len();
            let failure =
                install(&bench.store, memory(&stage().iso), &InstallRequest::default()).unwrap_err();
            let text = format!("the boot image needs {boot} bytes on the ESP, which has {free}");
            assert!(failure.kind == ErrorKind::NoSpace && failure.message.contains(&text), "{failure:?}");
            assert_eq!(bench.recorder.log().len(), before);
            line(&failure, bench.word())
        }));
    }
    cases
}

pub(crate) fn error_on_every_write() -> Vec<Case> {
    let (writes, flushes, _) = operations();
    let text = "Input/output error";
    let one = |k: usize| k..k + 1;
    let write = |range| Faults { writes: Some(range), errno: EIO, ..Faults::default() };
    let flush = |range| Faults { flushes: Some(range), errno: EIO, ..Faults::default() };
    let mut cases: Vec<Case> =
        (0..writes).map(|k| says(format!("write {k} of {writes}"), write(one(k)), text)).collect();
    cases.extend(
        (0..writes)
            .map(|k| says(format!("write {k} of {writes} and all that follow"), write(k..usize::MAX), text)),
    );
    cases.extend((0..flushes).map(|k| says(format!("flush {k} of {flushes}"), flush(one(k)), text)));
    cases
}

/// The first, a middle and the last byte of each part in the slot, and of the trailer.
fn places() -> Vec<(String, u64)> {
    let layout = stage().good.layout();
    let mut places = BTreeMap::new();
    for (part, place) in layout.parts() {
        for (what, at) in [("first", place.offset), ("last", place.end() - 1)] {
            places.insert(format!("{} byte of {}", what, part.name()), at);
        }
    }
    let root = layout.get(Part::Root).unwrap();
    places.insert("byte in the middle of root.erofs".into(), root.offset + root.size / 2);
    places.insert(
        "second leaf block of root.verity".into(),
        layout.get(Part::Verity).unwrap().offset + 3 * 4096,
    );
    places.insert("trailer".into(), SLOT as u64 - 4096);
    places.into_iter().collect()
}

pub(crate) fn error_on_read_back() -> Vec<Case> {
    let case = |(name, at): (String, u64)| {
        says(
            format!("{name} cannot be read"),
            Faults { unreadable: Some(at..at + 1), ..Faults::default() },
            "Input/output error",
        )
    };
    // The trailer cannot be read before either, so that slot is bad from the start and is no target without `replace`.
    let mut cases: Vec<Case> = places().into_iter().filter(|(name, _)| name != "trailer").map(case).collect();
    // Found by fuzzing: after the trailer was read back the slot is looked at once more, for what is shown.
    let (.., reads) = operations();
    for k in reads.saturating_sub(LAST_READS)..reads {
        let faults = Faults { reads: Some(k..usize::MAX), ..Faults::default() };
        cases.push(says(
            format!("nothing can be read from read {k} of {reads} on"),
            faults,
            "Input/output error",
        ));
    }
    cases
}

pub(crate) fn silent_corruption() -> Vec<Case> {
    let said = "the medium is failing";
    let mut cases = Vec::new();
    for (name, at) in places().into_iter().filter(|(name, _)| name != "trailer") {
        let flipped = Faults { flipped: Some(at..at + 1), ..Faults::default() };
        cases.push(says(format!("{name} comes back flipped"), flipped, said));
        let block = at / 4096 * 4096;
        let lost = Faults { lost: Some(block..block + 1), ..Faults::default() };
        cases.push(says(format!("{name}: its write is lost"), lost, said));
    }
    let trailer = SLOT as u64 - 4096;
    let lost = Faults { lost: Some(trailer..trailer + 1), ..Faults::default() };
    cases.push(says("the trailer's write is lost".into(), lost, "trailer"));
    cases.push(Case::course(
        "the write that zeroes an old trailer is lost, then the image is damaged",
        || {
            // Slot 2 holds another firmware, whose claim stays where it was.
            let bench = Bench::new();
            install(&bench.store, memory(&stage().other.iso()), &InstallRequest::default()).unwrap();
            let trailer = SLOT as u64 - 4096;
            let faults = Faults { lost: Some(trailer..trailer + 1), ..Faults::default() };
            let (bench, _) = sick_on(bench.recorder.media(), &faults);
            let request = InstallRequest { slot: SlotId::new(2), replace: true, ..InstallRequest::default() };
            let damaged = flipped(span(Part::Root).1 - 4096, 1)();
            let failure = install(&bench.store, memory(&damaged), &request).unwrap_err();
            let words = (bench.word(), bench.word_after_restart());
            assert!(
                !matches!(words, (SlotWord::Verified, _) | (_, SlotWord::Verified)),
                "{words:?}: {failure:?}"
            );
            line(&failure, words.1)
        },
    ));
    cases
}

pub(crate) fn slot_too_small() -> Vec<Case> {
    let needed = stage().good.layout().needed();
    let mut cases = Vec::new();
    for size in [needed - 1, needed - 4096, 4096] {
        cases.push(Case::course(format!("{size} bytes where {needed} are needed"), move || {
            let (bench, _) = sick(&Faults { size: Some(size), ..Faults::default() });
            let before = (bench.recorder.log().len(), bench.recorder.media().digest());
            let failure =
                install(&bench.store, memory(&stage().iso), &InstallRequest::default()).unwrap_err();
            let text = format!("this firmware needs {needed} bytes, slot 2 has {size}");
            assert!(failure.kind == ErrorKind::NoSpace && failure.message == text, "{failure:?}");
            assert_eq!((bench.recorder.log().len(), bench.recorder.media().digest()), before);
            line(&failure, bench.word())
        }));
    }
    // A real file, of which whole blocks count.
    for (size, fits) in [(needed - 1, false), (needed, true), (needed + 1, true)] {
        cases.push(Case::course(format!("a file of {size} bytes"), move || {
            let path = stage().path(&format!("slot-of-{size}"));
            File::create(&path).unwrap().set_len(size).unwrap();
            let medium = FileMedium::open(&path).unwrap();
            let bench = Bench::on(Bench::fresh().clone(), |all, _| all.slots[1].2 = Ok(Arc::new(medium)));
            let done = install(&bench.store, memory(&stage().iso), &InstallRequest::default());
            assert_eq!(done.is_ok(), fits, "{done:?}");
            assert_eq!(bench.word(), if fits { SlotWord::Verified } else { SlotWord::Empty });
            assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
            done.map_or_else(|failure| line(&failure, bench.word()), |_| "installed".into())
        }));
    }
    cases
}
