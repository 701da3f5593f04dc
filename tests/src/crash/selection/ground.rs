//! An appliance in memory whose boot loader can be told what to start: three firmwares, in two or three slots.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use slotd::domain::boot::Entry;
use slotd::domain::manifest::Sha256Hex;
use slotd::domain::state::{Refused, State};
use slotd::store::{Assembly, InstallRequest, Progress, Store, Trust};
use sps_base::durable::{self, Record};
use sps_base::slot::SlotId;
use sps_images::Pki;

use super::super::appliance::{assembly, install, shared_trust};
use super::super::law::read_state;
use crate::recorder::{Device, Event, Media, Recorder};
use crate::synthetic::{Shape, Synthetic};

const SLOT_SIZE: usize = 1 << 20;
/// Length of a root in bytes.
const ROOT: usize = 12 << 10;
/// A field of the state that no version knows; it must never get lost.
pub const UNKNOWN: &str = "of_a_newer_version";

/// Firmware N is in slot N; the higher the number, the newer it is.
#[derive(Debug)]
pub struct Ground {
    trust: Trust,
    /// Firmware 1, 2, 3.
    pub firmware: Vec<Synthetic>,
    /// Their manifests.
    manifests: Vec<String>,
    /// Two slots; the first runs and is confirmed, and nothing is selected.
    pub two: Media,
    /// The same with three slots.
    pub three: Media,
}

/// The boot loader of an appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// GRUB and its environment block.
    Grub,
    /// systemd-boot, variables of the UEFI firmware, and `loader.conf`.
    SystemdBoot,
}

/// The slot of this number.
pub fn id(slot: usize) -> SlotId {
    u32::try_from(slot).ok().and_then(SlotId::new).unwrap_or(SlotId::RECOVERY)
}

impl Ground {
    /// Firmware that is signed by a PKI made in `work`, an existing directory, and appliances that run it.
    pub fn new(work: &Path, loader: Loader) -> anyhow::Result<Self> {
        let pki = Pki::open_or_create(work.join("pki"), "selection")?;
        let firmware = |(version, epoch)| {
            let shape = Shape { version, root_len: ROOT, boot_len: 5000, recovery_len: 3000, epoch };
            Synthetic::shaped(&shape, &pki, work)
        };
        let versions = [("8.0.1", 1), ("8.0.2", 2), ("8.0.3", 3)];
        let mut ground = Self {
            trust: shared_trust(&pki)?,
            firmware: versions.into_iter().map(firmware).collect::<Result<_, _>>()?,
            manifests: Vec::new(),
            two: blank(2, loader),
            three: blank(3, loader),
        };
        ground.manifests = ground.firmware.iter().map(|firmware| firmware.manifest.render()).collect();
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
            // As after some years: a record of several sectors, which tears in more ways than one.
            state.refused = (100..112).map(refused).collect();
        })
    }

    /// What a store is made of while `slot` runs; `None` is the recovery image.
    pub fn assembly(&self, recorder: &Recorder, slot: Option<usize>) -> Assembly {
        let firmware = slot.and_then(|slot| self.firmware.get(slot.checked_sub(1)?));
        let cmdline = firmware.map(|firmware| format!("quiet roothash={} ro", firmware.root_hash()));
        let slots = recorder.media().slots.len();
        let parts = assembly(self.trust.clone(), recorder, slots, &cmdline.unwrap_or_default());
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

    /// The boot loader.
    pub fn loader(&self) -> Loader {
        if self.two.variables.is_some() { Loader::SystemdBoot } else { Loader::Grub }
    }

    /// What a scenario or a fault is called under this loader.
    pub fn named(&self, name: &str) -> String {
        match self.loader() {
            Loader::Grub => format!("GRUB: {name}"),
            Loader::SystemdBoot => format!("systemd-boot: {name}"),
        }
    }

    /// Whether the root in a slot is that of its firmware.
    pub fn verifies(&self, media: &Media, slot: usize) -> bool {
        let root = |media: &Media| {
            let mut root = vec![0; ROOT];
            media.slots.get(slot.checked_sub(1)?)?.read(0, &mut root).then_some(root)
        };
        root(media).is_some_and(|found| Some(found) == root(&self.three))
    }

    /// Whether the ESP holds a recovery image with its manifest and signature, all of one firmware.
    pub fn has_recovery(&self, media: &Media) -> bool {
        self.firmware.iter().zip(&self.manifests).any(|(firmware, manifest)| {
            let holds = |suffix: &str, expected: &[u8]| {
                let name = format!("sps-recovery-{}.{suffix}", firmware.manifest.version);
                media.esp.get(&name).is_some_and(|found| found[..] == *expected)
            };
            holds("efi", &firmware.recovery)
                && holds("p7s", &firmware.signature)
                && holds("json", manifest.as_bytes())
        })
    }

    /// The number of the firmware with this root hash.
    pub fn number(&self, root_hash: &str) -> Option<usize> {
        self.firmware.iter().position(|firmware| firmware.root_hash() == root_hash).map(|index| index + 1)
    }
}

/// A firmware that failed long ago.
fn refused(number: u8) -> Refused {
    let reason = format!("health check {number} failed: {}", "a unit did not start; ".repeat(4));
    Refused { root_hash: Sha256Hex([number; 32]), reason, at: number.into(), unknown: BTreeMap::new() }
}

fn blank(slots: usize, loader: Loader) -> Media {
    let variables = (loader == Loader::SystemdBoot).then(Default::default);
    Media { variables, ..Media::new(slots, SLOT_SIZE) }
}

/// `media` with a block of the root in this slot gone bad.
pub fn with_bad_block(media: &Media, slot: usize) -> Media {
    let mut media = media.clone();
    media.image(Device::Slot(slot)).write(4096, &[0; 4096]);
    media
}

/// `media` with another state, as one more record.
pub fn with_state(media: &Media, change: impl FnOnce(&mut State)) -> anyhow::Result<Media> {
    let mut media = media.clone();
    let (sequence, at, mut state) = read_state(&media.state).map_err(anyhow::Error::msg)?;
    change(&mut state);
    let record = Record { sequence: durable::next_sequence(sequence), payload: state.render() };
    let block = durable::render(&record).context("the state is too large")?;
    media.state.write(at, &block);
    Ok(media)
}

/// `media` with this sequence number on its newest record, in this of the two places, and the one before on the other.
pub fn with_sequence(media: &Media, sequence: u64, place: usize) -> anyhow::Result<Media> {
    let mut media = media.clone();
    let payload = read_state(&media.state).map_err(anyhow::Error::msg)?.2.render();
    let places = [0, media.state.size() / 2];
    for (number, at) in places.into_iter().enumerate() {
        let older = if number == place { sequence } else { sequence.wrapping_sub(1) };
        let record = Record { sequence: older, payload: payload.clone() };
        media.state.write(at, &durable::render(&record).context("the state is too large")?);
    }
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
