//! An appliance in memory: slot 1 runs, slot 2 is what happens to.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use slotd::domain::iso::{self, Head};
use slotd::domain::layout::Part;
use slotd::domain::signature::Keyring;
use slotd::store::{Assembly, Environment, Failure, InstallRequest, Progress, Store, Trust, VerifyMode};
use sps_base::slot::SlotId;
use sps_images::Pki;

use super::law::Outcome;
use crate::lab::read_keyring;
use crate::recorder::{Device, Event, Media, Recorder};
use crate::synthetic::{Shape, Synthetic};

/// Size of a slot in bytes.
pub const SLOT_SIZE: usize = 4 << 20;
/// Size of a root image in bytes: two chunks of what the engine writes at once and a piece of one.
pub const ROOT_SIZE: usize = (2 << 20) + (12 << 10);
/// The slot that runs.
pub const RUNNING: Device = Device::Slot(1);
/// The slot that is changed.
pub const TARGET: Device = Device::Slot(2);

/// An appliance that runs a firmware from slot 1.
#[derive(Debug)]
pub struct Appliance {
    trust: Trust,
    /// What it runs.
    pub running: Synthetic,
    /// What is installed first.
    pub old: Synthetic,
    /// What is installed over it.
    pub new: Synthetic,
    /// Slot 1 filled, slot 2 empty.
    pub fresh: Media,
}

/// What is done to slot 2.
#[derive(Clone, Debug)]
pub enum Operation<'a> {
    /// A firmware is installed.
    Install(&'a Synthetic, InstallRequest),
    /// The slot is emptied.
    Delete,
    /// Nothing: slotd starts, and finishes or drops what it finds. This firmware is in the slot then.
    Settle(&'a Synthetic),
}

impl Appliance {
    /// An appliance whose firmware is signed by a PKI made in `work`, an existing directory.
    pub fn new(work: &Path) -> anyhow::Result<Self> {
        // Small, because every start reads it; not a whole number of blocks.
        Self::with_boot_image(work, 30_001)
    }

    /// The same, with boot images of so many bytes.
    pub fn with_boot_image(work: &Path, boot_len: usize) -> anyhow::Result<Self> {
        let pki = Pki::open_or_create(work.join("pki"), "crash")?;
        let trust = shared_trust(&pki)?;
        let firmware = |version| {
            let shape = Shape { version, root_len: ROOT_SIZE, boot_len, recovery_len: 9001, epoch: 1 };
            Synthetic::shaped(&shape, &pki, work)
        };
        let mut appliance = Self {
            trust,
            running: firmware("8.0.1")?,
            old: firmware("8.0.2")?,
            new: firmware("8.0.3")?,
            fresh: Media::new(2, SLOT_SIZE),
        };
        let recorder = Recorder::new(appliance.fresh.clone());
        let store = appliance.store_on(&recorder, "");
        store.reset_state("made by the test")?;
        let request = InstallRequest { slot: SlotId::new(1), ..InstallRequest::default() };
        install(&store, appliance.running.iso.try_clone()?.into(), &request, &Progress::default())?;
        appliance.fresh = recorder.media();
        Ok(appliance)
    }

    /// What slotd makes of these media when it starts: the shipped recovery.
    pub fn store(&self, recorder: &Recorder) -> Store {
        self.store_on(recorder, &format!("quiet roothash={} ro", self.running.root_hash()))
    }

    fn store_on(&self, recorder: &Recorder, cmdline: &str) -> Store {
        Store::assemble(assembly(self.trust.clone(), recorder, 2, cmdline))
    }

    /// Carries out `operation` on these media.
    pub fn carry_out(&self, operation: &Operation<'_>, recorder: &Recorder) -> anyhow::Result<()> {
        self.carry_out_in(&self.store(recorder), operation)
    }

    /// The same in a store that is already open.
    pub fn carry_out_in(&self, store: &Store, operation: &Operation<'_>) -> anyhow::Result<()> {
        match operation {
            Operation::Install(firmware, request) => {
                install(store, firmware.iso.try_clone()?.into(), request, &Progress::default())?;
            }
            Operation::Delete => store.delete(target())?,
            Operation::Settle(_) => {}
        }
        Ok(())
    }

    /// Begins to install `firmware` and cancels as soon as 1 MiB of its root has been written.
    pub fn cancel(
        &self,
        firmware: &Synthetic,
        request: &InstallRequest,
        recorder: &Recorder,
    ) -> anyhow::Result<()> {
        let progress = Arc::new(Progress::default());
        let (asked, mut written) = (Arc::clone(&progress), 0);
        let root_size = firmware.manifest.root.size;
        recorder.watch(move |event| {
            if let Event::Write { device: TARGET, offset, data } = event {
                written += if *offset < root_size { data.len() } else { 0 };
                if written >= 1 << 20 {
                    asked.cancel();
                }
            }
        });
        let (mut image, root) = image(firmware)?;
        // The sender stays silent in the middle of the second chunk, but does not hang up.
        image.truncate(root + (1 << 20) + 100);
        let (reader, writer) = nix::unistd::pipe()?;
        let mut writer = fs::File::from(writer);
        let sent = std::thread::spawn(move || writer.write_all(&image).map(|()| writer));
        let done = install(&self.store(recorder), reader, request, &progress);
        drop(sent.join());
        recorder.watch(|_| ());
        if done.is_ok() {
            bail!("an install that was cancelled has ended");
        }
        Ok(())
    }

    /// Goes on with an install that was cancelled, with an image that arrives from its root on.
    pub fn resume_at_root(
        &self,
        firmware: &Synthetic,
        request: &InstallRequest,
        recorder: &Recorder,
    ) -> anyhow::Result<()> {
        let (image, root) = image(firmware)?;
        let request = InstallRequest { offset: root as u64, ..request.clone() };
        let (reader, writer) = nix::unistd::pipe()?;
        let mut writer = fs::File::from(writer);
        let sent = std::thread::spawn(move || writer.write_all(&image[root..]));
        let done = install(&self.store(recorder), reader, &request, &Progress::default());
        drop(sent.join());
        Ok(done?)
    }

    /// Slot 2 with `firmware` in it.
    pub fn filled_with(&self, firmware: &Synthetic) -> anyhow::Result<Media> {
        let recorder = Recorder::new(self.fresh.clone());
        self.carry_out(&Operation::Install(firmware, request()), &recorder)?;
        Ok(recorder.media())
    }

    /// Slot 2 with `firmware` in it, of which a block went bad and a check has found it.
    pub fn damaged(&self, firmware: &Synthetic) -> anyhow::Result<Media> {
        let mut media = self.filled_with(firmware)?;
        media.image(TARGET).write(1 << 20, &[0; 4096]);
        let recorder = Recorder::new(media);
        let store = self.store(&recorder);
        if full_check(&store, target())? {
            bail!("a check has not found a bad block");
        }
        Ok(recorder.media())
    }

    /// Slot 2 with an install of `firmware` that was cancelled, and everything flushed since.
    pub fn interrupted(&self, firmware: &Synthetic) -> anyhow::Result<Media> {
        let recorder = Recorder::new(self.fresh.clone());
        self.cancel(
            firmware,
            &InstallRequest { transaction_id: Some("earlier".into()), ..request() },
            &recorder,
        )?;
        Ok(recorder.media())
    }
}

/// The bytes of a firmware's ISO, and where its root begins.
fn image(firmware: &Synthetic) -> anyhow::Result<(Vec<u8>, usize)> {
    let mut image = vec![0; usize::try_from(firmware.iso_len)?];
    std::os::unix::fs::FileExt::read_exact_at(&firmware.iso, &mut image, 0)?;
    let Head::Complete(index) = iso::parse_head(&image, None)? else { bail!("the image has no directory") };
    let root = index.get(Part::Root).context("the image has no root")?;
    Ok((image, usize::try_from(root.offset)?))
}

/// A PKI's keyring, shared by every start of a crash checker: two thirds of a state's time would go into the signatures
/// of the same few images.
pub fn shared_trust(pki: &Pki) -> anyhow::Result<Trust> {
    let (roots, crls) = read_keyring(&pki.keyring_dir())?;
    Ok(Trust::Keyring(Arc::new(Keyring::parse(&roots, &crls, now())?)))
}

/// What a store on these media, with slots from 1 to `slots`, is made of. It has no boot loader.
pub fn assembly(trust: Trust, recorder: &Recorder, slots: usize, cmdline: &str) -> Assembly {
    let slot = |number: usize| {
        let id = u32::try_from(number).ok().and_then(SlotId::new).unwrap_or(SlotId::RECOVERY);
        (id, format!("slot {number}"), Ok(recorder.medium(Device::Slot(number))))
    };
    Assembly {
        product: "sps".into(),
        hardware: "test".into(),
        stall: Duration::from_secs(10),
        keyring: Ok(trust),
        slots: (1..=slots).map(slot).collect(),
        esp: Ok(recorder.esp()),
        state: Ok(recorder.medium(Device::State)),
        loader: None,
        recycle_fallback: Some(false),
        require_message: false,
        surroundings: Arc::new(slotd::store::Nowhere),
        read_back: true,
        environment: Environment { cmdline: cmdline.into(), now, hardware: "test".into() },
    }
}

/// Number of the slot that is changed.
pub fn target() -> SlotId {
    SlotId::new(2).unwrap_or(SlotId::RECOVERY)
}

/// An install into it.
pub fn request() -> InstallRequest {
    InstallRequest { slot: SlotId::new(2), transaction_id: Some("t-1".into()), ..InstallRequest::default() }
}

/// What slot 2 is.
pub fn outcome(store: &Store) -> Option<Outcome> {
    store.slots().iter().find(|view| view.id == target()).map(Outcome::of)
}

/// Whether a full check finds a slot healthy.
pub fn full_check(store: &Store, slot: SlotId) -> anyhow::Result<bool> {
    let reservation = store.reserve_verify(slot)?;
    Ok(store.verify(&reservation, VerifyMode::Full, false, &Progress::default())?.healthy)
}

/// Installs the image behind a descriptor.
pub fn install(
    store: &Store,
    image: OwnedFd,
    request: &InstallRequest,
    progress: &Progress,
) -> Result<(), Failure> {
    store.install(store.reserve_install(request)?, image, request, progress).map(drop)
}

/// The start of June 2026: the same for every run, for a trailer carries it.
fn now() -> u64 {
    1_780_272_000
}
