//! An appliance in memory that runs a firmware from slot 1, and what must hold on it after anything.

#![expect(clippy::panic, reason = "an appliance that cannot be made is a find")]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use slotd::domain::envblk;
use slotd::domain::manifest::Manifest;
use slotd::store::{InstallReport, InstallRequest, Progress, SlotView, SlotWord, Store, Trust};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;
use system_tests::crash::appliance::{assembly, full_check, target};
use system_tests::recorder::{Content, Device, Media, Recorder};

use crate::fixtures;
use crate::sick::{Plan, Sick};

/// Size of a slot in bytes.
const SLOT: usize = 1 << 20;
/// The boot image of the running firmware.
const BOOT_IMAGE: &str = "sps-slot-1.efi";

/// Images by what they are for: the one that runs, an older one in slot 2, the one that is installed.
pub static RUNNING: LazyLock<Vec<u8>> = LazyLock::new(|| fixtures::read("running.iso"));
/// See [`RUNNING`].
pub static OLD: LazyLock<Vec<u8>> = LazyLock::new(|| fixtures::read("old.iso"));
/// See [`RUNNING`]. Its manifest is the fixtures' signed one.
pub static NEW: LazyLock<Vec<u8>> = LazyLock::new(|| fixtures::read("new.iso"));

/// Slot 1 runs, slot 2 is empty.
pub static EMPTY: LazyLock<Media> = LazyLock::new(|| {
    let recorder = Recorder::new(Media::new(2, SLOT));
    let new = Store::assemble(assembly(trust(), &recorder, 2, ""));
    let request = InstallRequest { slot: SlotId::new(1), ..InstallRequest::default() };
    let done = new.reset_state("made by the fuzz target");
    let done = done.and_then(|()| install(&new, file(&RUNNING), &request, &Progress::default()));
    done.unwrap_or_else(|e| panic!("the running firmware cannot be installed: {e}"));
    // It is what the loader starts and what the operator has confirmed.
    let mut media = recorder.media();
    let mut loader = envblk::Environment::default();
    let set = loader.set(envblk::DEFAULT, b"sps-slot-1").and_then(|()| loader.render());
    media.loader = set.unwrap_or_else(|e| panic!("no loader: {e}"));
    let recorder = Recorder::new(media);
    let confirmed = store(&recorder).reset_state("made by the fuzz target");
    confirmed.unwrap_or_else(|e| panic!("the running firmware cannot be confirmed: {e}"));
    recorder.media()
});

/// Slot 1 runs, slot 2 holds an older firmware.
pub static USED: LazyLock<Media> = LazyLock::new(|| {
    let recorder = Recorder::new(EMPTY.clone());
    let done = install(&store(&recorder), file(&OLD), &over(), &Progress::default());
    done.unwrap_or_else(|e| panic!("the older firmware cannot be installed: {e}"));
    recorder.media()
});

/// What the kernel's command line of the running firmware says.
fn cmdline() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let manifest = Manifest::parse(&fixtures::read("running.json"));
        let manifest = manifest.unwrap_or_else(|e| panic!("the running manifest is refused: {e}"));
        format!("quiet roothash={} ro", manifest.root.verity.root_hash)
    });
    &TEXT
}

/// What every start trusts.
fn trust() -> Trust {
    Trust::Keyring(Arc::clone(&fixtures::KEYRING))
}

/// What slotd makes of these media when it starts.
pub fn store(recorder: &Recorder) -> Store {
    let mut parts = assembly(trust(), recorder, 2, cmdline());
    parts.loader = Some(Ok(recorder.loader()));
    Store::assemble(parts)
}

/// The same, with a fault in slot 2 and one in the state.
pub fn sick_store(
    recorder: &Recorder,
    slot: Option<Plan>,
    state: Option<Plan>,
    progress: &Arc<Progress>,
) -> Store {
    let mut parts = assembly(trust(), recorder, 2, cmdline());
    parts.loader = Some(Ok(recorder.loader()));
    let sick = |device: Device, plan: Plan| Sick::new(recorder.medium(device), plan, Arc::clone(progress));
    if let (Some(plan), Some(place)) = (slot, parts.slots.get_mut(1)) {
        place.2 = Ok(Arc::new(sick(Device::Slot(2), plan)));
    }
    if let Some(plan) = state {
        parts.state = Ok(Arc::new(sick(Device::State, plan)));
    }
    Store::assemble(parts)
}

/// An install over whatever slot 2 holds.
pub fn over() -> InstallRequest {
    InstallRequest {
        slot: Some(target()),
        replace: true,
        transaction_id: Some("t-1".into()),
        ..InstallRequest::default()
    }
}

/// Installs what arrives on `image`.
pub fn install(
    store: &Store,
    image: OwnedFd,
    request: &InstallRequest,
    progress: &Progress,
) -> Result<InstallReport, slotd::store::Failure> {
    store.install(store.reserve_install(request)?, image, request, progress)
}

/// A file in memory with these bytes.
pub fn file(bytes: &[u8]) -> OwnedFd {
    let made = memfd_create(c"image", MFdFlags::MFD_CLOEXEC).map(File::from);
    let mut file = made.unwrap_or_else(|e| panic!("no file in memory: {e}"));
    let written = file.write_all(bytes).and_then(|()| std::io::Seek::rewind(&mut file));
    written.unwrap_or_else(|e| panic!("no file in memory: {e}"));
    file.into()
}

/// The end of a stream that these bytes come out of. A socket: a pipe whose reader has gone ends the process where, as in
/// libFuzzer's, nobody ignores the signal.
pub fn pipe(bytes: Vec<u8>) -> OwnedFd {
    let (reader, mut writer) = UnixStream::pair().unwrap_or_else(|e| panic!("no socket: {e}"));
    // Ends when all is sent or the reader has gone.
    thread::spawn(move || drop(writer.write_all(&bytes)));
    reader.into()
}

/// What slot 2 is.
pub fn view(store: &Store) -> SlotView {
    let found = store.slots().into_iter().find(|view| view.id == target());
    found.unwrap_or_else(|| panic!("slot 2 is not listed"))
}

/// Asserts that nothing has happened to what runs: slot 1, block by block, and its boot image.
pub fn assert_running_untouched(media: &Media) {
    assert!(media.slots.first() == EMPTY.slots.first(), "the running slot has changed");
    let boot = |media: &Media| media.esp.get(BOOT_IMAGE).map(|content: &Arc<Content>| content.to_vec());
    assert!(boot(media) == boot(&EMPTY), "the boot image of the running slot has changed");
}

/// Asserts that a slot that is called verified holds a firmware of ours, every block of it.
pub fn assert_verified_is_true(store: &Store) {
    let view = view(store);
    if view.state != SlotWord::Verified {
        return;
    }
    let known = [fixtures::MANIFEST.version.as_str(), "8.0.2"];
    assert!(known.contains(&view.version.as_str()), "verified as {:?}, which nobody signed", view.version);
    match full_check(store, target()) {
        Ok(healthy) => assert!(healthy, "slot 2 was called verified and is not"),
        Err(e) => panic!("slot 2 is called verified and cannot be checked: {e:#}"),
    }
}

/// Asserts that a good image can be installed over whatever slot 2 has become.
pub fn assert_good_install_succeeds(recorder: &Recorder) {
    let store = store(recorder);
    if store.state().0.starts_with("lost") {
        store.reset_state("the fuzz target").unwrap_or_else(|e| panic!("the state cannot be reset: {e}"));
    }
    // Where the loader's default was damaged, the health checks confirm what runs.
    if !store.summary().confirmed {
        store.confirm().unwrap_or_else(|e| panic!("what runs cannot be confirmed: {e}"));
    }
    let request = InstallRequest { transaction_id: None, ..over() };
    match install(&store, file(&NEW), &request, &Progress::default()) {
        Ok(_) => {}
        // It is there already, and a check of the whole says so too.
        Err(e) if e.kind == ErrorKind::AlreadyInstalled => {
            if !full_check(&store, target()).unwrap_or(false) {
                let request = InstallRequest { repair: true, ..request };
                let done = install(&store, file(&NEW), &request, &Progress::default());
                done.unwrap_or_else(|e| panic!("a repair fails: {e}"));
            }
        }
        Err(e) => panic!("a good image is refused: {e}"),
    }
    let view = view(&store);
    assert!(view.state == SlotWord::Verified, "a good install left slot 2 {:?}: {}", view.state, view.reason);
    assert_verified_is_true(&store);
    assert_running_untouched(&recorder.media());
}
