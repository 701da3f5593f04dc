//! Looking at a slot: gathering the evidence that `domain::slot_state` judges.

use sps_base::slot::SlotId;

use super::blocks::to_usize;
use super::error::StoreError;
use super::parts::sha256;
use super::{Slot, Store, boot_image};
use crate::device::buffer::Buffer;
use crate::device::medium::Medium;
use crate::domain::layout::{Layout, Part};
use crate::domain::manifest::{BLOCK, MAX_MANIFEST, Manifest, Sha256Hex};
use crate::domain::plan::Step;
use crate::domain::signature::{MAX_SIGNATURE, Verified};
use crate::domain::slot_state::{BootImageFound, Content, Evidence, SignatureFound, TrailerFound, judge};
use crate::domain::trailer::{self, Found, Trailer};
use crate::domain::verity::BLOCK_LEN;

/// A firmware in a slot whose trailer, manifest and signature verify.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "`installed_at` is the trailer's and the contract's word")]
pub(super) struct Installed {
    pub manifest: Verified<Manifest>,
    pub layout: Layout,
    pub sequence: u64,
    pub installed_at: u64,
}

impl Installed {
    /// SHA-256 of the manifest's bytes.
    pub(super) fn manifest_sha256(&self) -> Sha256Hex {
        Sha256Hex(self.manifest.identity().0)
    }
}

/// What is known of a slot.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub content: Content,
    pub installed: Option<Installed>,
    /// Steps of the order law that remain to be carried out.
    pub remaining: &'static [Step],
    /// Date of the configuration that it starts with; empty where it has none or that cannot be read.
    pub configuration: String,
}

impl Default for Known {
    fn default() -> Self {
        let reason = "not looked at yet".into();
        let content = Content::Bad { class: "unreadable", reason };
        Self { content, installed: None, remaining: &[], configuration: String::new() }
    }
}

impl Store {
    /// Looks at a slot. Reads the trailer, manifest and signature, the boot image on the ESP, and the date of its
    /// configuration.
    pub(super) fn inspect(&self, slot: &Slot) -> Known {
        let published = self.state.get();
        let intent = published.state.intent.as_ref().filter(|intent| intent.slot == slot.id);
        let (trailer, signature, installed) = self.read_firmware(slot);
        let boot_image =
            installed.as_ref().map_or(BootImageFound::NotNeeded, |i| self.compare_boot_image(slot.id, i));
        let evidence =
            Evidence { trailer, signature, boot_image, intent, check: published.state.checks.get(&slot.id) };
        let judgement = judge(&evidence);
        let installed = installed.filter(|_| !matches!(judgement.content, Content::Empty | Content::Writing));
        let configuration = installed.as_ref().and_then(|i| self.configuration_of(i).ok().flatten());
        let configuration = configuration.map(|found| found.date).unwrap_or_default();
        Known { content: judgement.content, installed, remaining: judgement.remaining, configuration }
    }

    /// The slot whose trailer and manifest name the booted root hash, whatever the keyring says: dm-verity proves the
    /// root, and a start must not fail for want of a key. Where two do, the one that the loader has started.
    pub fn slot_of_root(&self) -> Option<SlotId> {
        let wanted = self.booted_hash.as_ref()?;
        let names = |slot: &&Slot| {
            let Ok(medium) = slot.medium() else { return false };
            let Ok(Found::Valid(trailer)) = read_trailer(medium) else { return false };
            let place =
                trailer.parts.iter().find(|(part, _)| *part == Part::Manifest).map(|(_, place)| *place);
            let place = place.filter(|place| place.size <= MAX_MANIFEST && place.end() <= medium.size());
            let Some(place) = place else { return false };
            let mut bytes = vec![0; to_usize(place.size)];
            medium.read_at(place.offset, &mut bytes).is_ok()
                && sha256(&bytes) == trailer.manifest
                && Manifest::parse(&bytes).is_ok_and(|m| m.root.verity.root_hash.to_string() == *wanted)
        };
        self.started_of(self.slots.iter().filter(names).map(|slot| slot.id))
    }

    fn compare_boot_image(&self, id: SlotId, installed: &Installed) -> BootImageFound {
        match &self.esp {
            Ok(esp) => boot_image::compare(&**esp, id, &installed.manifest),
            Err(_) if boot_image::needed(&installed.manifest).is_none() => BootImageFound::NotNeeded,
            Err(why) => BootImageFound::Unreadable(why.clone()),
        }
    }

    fn read_firmware(&self, slot: &Slot) -> (TrailerFound, SignatureFound, Option<Installed>) {
        let trailer = match slot.medium().and_then(read_trailer) {
            Ok(Found::Absent) => return (TrailerFound::Absent, SignatureFound::Good, None),
            Ok(Found::Torn(why)) => return (TrailerFound::Torn(why.into()), SignatureFound::Good, None),
            Err(e) => return (TrailerFound::Unreadable(e.to_string()), SignatureFound::Good, None),
            Ok(Found::Valid(trailer)) => trailer,
        };
        let found = TrailerFound::Valid(trailer.sequence);
        match slot
            .medium()
            .map_err(|e| SignatureFound::Unreadable(e.to_string()))
            .and_then(|medium| self.read_manifest(medium, &trailer))
        {
            Ok(installed) => (found, SignatureFound::Good, Some(installed)),
            Err(signature) => (found, signature, None),
        }
    }

    /// The manifest that a trailer names, verified against the keyring of the running firmware. Dates are judged at
    /// the time of the install: a firmware does not go bad because its signer's certificate has expired since.
    fn read_manifest(&self, medium: &dyn Medium, trailer: &Trailer) -> Result<Installed, SignatureFound> {
        let corrupt = |why: &str| SignatureFound::Corrupt(why.into());
        let part = |part: Part, limit: u64| {
            let place = trailer.parts.iter().find(|(p, _)| *p == part).map(|(_, place)| *place);
            let place = place.filter(|place| place.size <= limit && place.end() <= medium.size());
            let place = place.ok_or_else(|| corrupt("its trailer places the manifest where none can be"))?;
            let mut bytes = vec![0; to_usize(place.size)];
            medium
                .read_at(place.offset, &mut bytes)
                .map_err(|e| SignatureFound::Unreadable(e.to_string()))?;
            Ok::<_, SignatureFound>(bytes)
        };
        let manifest = part(Part::Manifest, MAX_MANIFEST)?;
        let signature = part(Part::Signature, MAX_SIGNATURE)?;
        if sha256(&manifest) != trailer.manifest {
            return Err(corrupt("its manifest is not the one that its trailer names"));
        }
        let keyring = self.keyring.as_ref().map_err(|why| SignatureFound::Refused(why.clone()))?;
        let verified = keyring
            .verify_at_rest(&manifest, &signature, trailer.installed_at)
            .map_err(|e| SignatureFound::Refused(super::assembly::describe(&e)))?;
        let layout = Layout::of(&verified, manifest.len() as u64, signature.len() as u64);
        if layout.parts() != trailer.parts || layout.needed() > medium.size() {
            return Err(corrupt("its trailer places the parts otherwise than its manifest does"));
        }
        Ok(Installed {
            manifest: verified,
            layout,
            sequence: trailer.sequence,
            installed_at: trailer.installed_at,
        })
    }
}

/// Where the trailer of a medium lies.
pub(super) fn trailer_at(medium: &dyn Medium) -> u64 {
    medium.size().saturating_sub(BLOCK)
}

/// Reads the last block of a slot.
pub(super) fn read_trailer(medium: &dyn Medium) -> Result<Found, StoreError> {
    let mut buffer = Buffer::new(BLOCK_LEN);
    medium.read_at(trailer_at(medium), &mut buffer)?;
    let mut block = [0; BLOCK_LEN];
    block.copy_from_slice(&buffer);
    Ok(trailer::parse(&block))
}
