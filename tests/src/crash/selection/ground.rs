//! An appliance in memory whose boot loader can be told what to start: three firmwares, in two or three slots.

use std::path::Path;

use anyhow::{Context as _, bail};
use slotd::domain::boot::Entry;
use slotd::domain::state::State;
use slotd::store::{Assembly, InstallRequest, Progress, Store};
use sps_base::durable::{self, Record};
use sps_base::slot::SlotId;
use sps_images::Pki;

use super::super::appliance::{KeyringFiles, assembly, install, read_keyring};
use super::super::law::read_state;
use crate::recorder::{Event, Media, Recorder};
use crate::synthetic::{Shape, Synthetic};

const SLOT_SIZE: usize = 1 << 20;
/// A field of the state that no version knows; it must never get lost.
pub const UNKNOWN: &str = "of_a_newer_version";

/// Firmware N is in slot N; the higher the number, the newer it is.
#[derive(Debug)]
pub struct Ground {
    keyring: KeyringFiles,
    /// Firmware 1, 2, 3.
    pub firmware: Vec<Synthetic>,
    /// Two slots; the first runs and is confirmed, and nothing is selected.
    pub two: Media,
    /// The same with three slots.
    pub three: Media,
}

/// The slot of this number.
pub fn id(slot: usize) -> SlotId {
    u32::try_from(slot).ok().and_then(SlotId::new).unwrap_or(SlotId::RECOVERY)
}

impl Ground {
    /// Firmware that is signed by a PKI made in `work`, an existing directory, and appliances that run it.
    pub fn new(work: &Path) -> anyhow::Result<Self> {
        let pki = Pki::open_or_create(work.join("pki"), "selection")?;
        let firmware = |(version, epoch)| {
            let shape = Shape { version, root_len: 12 << 10, boot_len: 5000, recovery_len: 3000, epoch };
            Synthetic::shaped(&shape, &pki, work)
        };
        let versions = [("8.0.1", 1), ("8.0.2", 2), ("8.0.3", 3)];
        let mut ground = Self {
            keyring: read_keyring(&pki)?,
            firmware: versions.into_iter().map(firmware).collect::<Result<_, _>>()?,
            two: Media::new(2, SLOT_SIZE),
            three: Media::new(3, SLOT_SIZE),
        };
        ground.two = ground.filled(ground.two.clone())?;
        ground.three = ground.filled(ground.three.clone())?;
        Ok(ground)
    }

    fn filled(&self, media: Media) -> anyhow::Result<Media> {
        let recorder = Recorder::new(media);
        let slots = recorder.media().slots.len();
        let store = Store::assemble(self.assembly(&recorder, None));
        store.reset_state("made by the test")?;
        for (firmware, number) in self.firmware.iter().zip(1..=slots) {
            let request = InstallRequest { slot: Some(id(number)), ..InstallRequest::default() };
            install(&store, firmware.iso.try_clone()?.into(), &request, &Progress::default())?;
        }
        recorder.loader().set_default(&Entry::Slot(id(1)))?;
        self.assemble(&recorder, 1).confirm()?;
        with_state(&recorder.media(), |state| {
            state.unknown.insert(UNKNOWN.into(), 7.into());
        })
    }

    /// What a store is made of while `slot` runs; `None` is the recovery image.
    pub fn assembly(&self, recorder: &Recorder, slot: Option<usize>) -> Assembly {
        let firmware = slot.and_then(|slot| self.firmware.get(slot.checked_sub(1)?));
        let cmdline = firmware.map(|firmware| format!("quiet roothash={} ro", firmware.root_hash()));
        let slots = recorder.media().slots.len();
        let parts = assembly(&self.keyring, recorder, slots, &cmdline.unwrap_or_default());
        Assembly { loader: Some(Ok(recorder.loader())), ..parts }
    }

    /// slotd, as it starts while `slot` runs.
    pub fn assemble(&self, recorder: &Recorder, slot: usize) -> Store {
        Store::assemble(self.assembly(recorder, Some(slot)))
    }

    /// Tests the firmware in a slot and selects it, also one whose trial has failed.
    pub fn activate(&self, recorder: &Recorder, running: usize, slot: usize) -> anyhow::Result<()> {
        let store = self.assemble(recorder, running);
        let reservation = store.reserve_test(id(slot))?;
        let report = store.test(&reservation, true, &Progress::default())?;
        drop(reservation);
        if !report.passed {
            bail!("the test of slot {slot} failed: {}", report.summary);
        }
        Ok(store.activate(id(slot), "in a test", "the test")?)
    }

    /// Whether the ESP holds a recovery image with its manifest and signature, all of one firmware.
    pub fn has_recovery(&self, media: &Media) -> bool {
        self.firmware.iter().any(|firmware| {
            let holds = |suffix: &str, expected: &[u8]| {
                let name = format!("sps-recovery-{}.{suffix}", firmware.manifest.version);
                media.esp.get(&name).is_some_and(|found| found[..] == *expected)
            };
            holds("efi", &firmware.recovery)
                && holds("p7s", &firmware.signature)
                && holds("json", firmware.manifest.render().as_bytes())
        })
    }

    /// The number of the firmware with this root hash.
    pub fn number(&self, root_hash: &str) -> Option<usize> {
        self.firmware.iter().position(|firmware| firmware.root_hash() == root_hash).map(|index| index + 1)
    }
}

/// `media` with another state, as one more record.
pub fn with_state(media: &Media, change: impl FnOnce(&mut State)) -> anyhow::Result<Media> {
    let mut media = media.clone();
    let (sequence, at, mut state) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    change(&mut state);
    let record = Record { sequence: sequence + 1, payload: state.render() };
    let block = durable::render(&record).context("the state is too large")?;
    media.state.write(at, &block);
    Ok(media)
}

/// The media after `run`, and what it did to them.
pub fn recorded(
    start: &Media,
    run: impl FnOnce(&Recorder) -> anyhow::Result<()>,
) -> anyhow::Result<(Media, Vec<Event>)> {
    let recorder = Recorder::new(start.clone());
    run(&recorder)?;
    Ok((recorder.media(), recorder.log()))
}
