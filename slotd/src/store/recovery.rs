//! The recovery image on the ESP: slot 0. It comes with its manifest and signature, so it describes itself like a slot.
//!
//! `sps-recovery-VERSION.efi`, `.p7s` and `.json`, written in this order: the manifest is the claim. A newer one is
//! written beside the older, which goes when the newer has been read back.

use std::sync::{Arc, PoisonError};

use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use super::blocks::to_usize;
use super::boot_image;
use super::error::StoreError;
use super::types::{Progress, SlotView, SlotWord, VerifyReport};
use super::view::nothing;
use super::{Store, parts};
use crate::device::esp::Esp;
use crate::domain::layout::Part;
use crate::domain::manifest::{BLOCK, MAX_MANIFEST, Manifest, Version};
use crate::domain::signature::{MAX_SIGNATURE, Verified};

const PREFIX: &str = "sps-recovery-";
const IMAGE: &str = "recovery.efi";

/// What is known of it.
#[derive(Debug, Default)]
pub(super) enum RecoveryImage {
    /// None is there.
    #[default]
    Absent,
    /// One whose manifest, signature and content agree.
    Sound(Box<Verified<Manifest>>),
    /// One that must not be started.
    Bad(String),
}

impl RecoveryImage {
    fn version(&self) -> Option<Version> {
        match self {
            Self::Sound(manifest) => Version::parse(&manifest.version),
            Self::Absent | Self::Bad(_) => None,
        }
    }
}

impl Store {
    /// Looks at what the ESP holds: the newest sound one, else what is wrong.
    pub fn look_at_recovery(&self) {
        let found = self.find_recovery().unwrap_or_else(|e| RecoveryImage::Bad(e.to_string()));
        *self.recovery.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
    }

    fn recovery_image(&self) -> Arc<RecoveryImage> {
        Arc::clone(&self.recovery.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ESP, or why there is none.
    pub(super) fn usable_esp(&self) -> Result<&dyn Esp, StoreError> {
        match &self.esp {
            Ok(esp) => Ok(&**esp),
            Err(why) => Err(StoreError::refused(ErrorKind::Device, why.clone())),
        }
    }

    fn find_recovery(&self) -> Result<RecoveryImage, StoreError> {
        let esp = self.usable_esp()?;
        let mut best = RecoveryImage::Absent;
        for name in esp.list()? {
            let Some(stem) = name.strip_suffix(".json").filter(|stem| stem.starts_with(PREFIX)) else {
                continue;
            };
            match self.read_recovery(esp, stem) {
                Ok(manifest) => {
                    let found = RecoveryImage::Sound(Box::new(manifest));
                    if found.version() >= best.version() {
                        best = found;
                    }
                }
                Err(e) if matches!(best, RecoveryImage::Absent) => {
                    best = RecoveryImage::Bad(format!("{stem}: {e}"));
                }
                Err(_) => {}
            }
        }
        Ok(best)
    }

    /// Proves one recovery image: signature, then every byte.
    fn read_recovery(&self, esp: &dyn Esp, stem: &str) -> Result<Verified<Manifest>, StoreError> {
        let corrupt = |what: &str| StoreError::refused(ErrorKind::SlotBad, what);
        let read = |suffix: &str, limit: u64| {
            let name = format!("{stem}.{suffix}");
            let size = esp.size(&name)?.filter(|size| (1..=limit).contains(size));
            let mut bytes =
                vec![0; to_usize(size.ok_or_else(|| corrupt("its manifest or signature is missing"))?)];
            esp.read_at(&name, 0, &mut bytes)?;
            Ok::<_, StoreError>(bytes)
        };
        let manifest = read("json", MAX_MANIFEST)?;
        let signature = read("p7s", MAX_SIGNATURE)?;
        let keyring =
            self.keyring.as_ref().map_err(|why| StoreError::refused(ErrorKind::Untrusted, why.clone()))?;
        // Dates are judged as of the build: it does not go bad because its signer has expired since.
        let verified = keyring.verify_as_built(&manifest, &signature)?;
        let file = verified.file(IMAGE).ok_or_else(|| corrupt("its firmware has no recovery image"))?;
        let name = format!("{stem}.efi");
        let same =
            esp.size(&name)? == Some(file.size) && boot_image::digest(esp, &name, file.size)? == file.sha256;
        if same { Ok(verified) } else { Err(corrupt("the image is not the signed one")) }
    }

    /// Puts the recovery image of the firmware in `slot` on the ESP when it is newer than what is there, or what is there
    /// is not sound. Repeating it is harmless.
    pub(super) fn refresh_recovery(&self, slot: SlotId) -> Result<(), StoreError> {
        let Some((index, known)) = self.find(slot).ok() else { return Ok(()) };
        let Some(installed) = &known.installed else { return Ok(()) };
        let manifest = &installed.manifest;
        let (Some(file), Some(place)) = (manifest.file(IMAGE), installed.layout.get(Part::Recovery)) else {
            return Ok(());
        };
        if boot_image::needed(manifest).is_none() {
            return Ok(());
        }
        let esp = self.usable_esp()?;
        let stem = format!("{PREFIX}{}", manifest.version);
        if self.recovery_image().version() < Version::parse(&manifest.version) {
            let medium = self.slots.get(index).map(super::Slot::medium).transpose()?;
            let Some(medium) = medium else { return Ok(()) };
            let (needed, there) = (file.size.saturating_add(4 * BLOCK), esp.free()?);
            if needed > there {
                let message =
                    format!("the recovery image needs {needed} bytes on the ESP, which has {there}");
                return Err(StoreError::refused(ErrorKind::NoSpace, message));
            }
            boot_image::copy_as(medium, place, file, esp, &format!("{stem}.efi"))?;
            for (part, suffix) in [(Part::Signature, "p7s"), (Part::Manifest, "json")] {
                let Some(place) = installed.layout.get(part) else { return Ok(()) };
                let mut bytes = vec![0; to_usize(place.size)];
                medium.read_at(place.offset, &mut bytes)?;
                write_small(esp, &format!("{stem}.{suffix}"), &bytes)?;
            }
            self.look_at_recovery();
        }
        // Only what is proven lets the others go.
        let sound = matches!(&*self.recovery_image(), RecoveryImage::Sound(found) if found.version == manifest.version);
        if sound { remove_others(esp, &stem) } else { Ok(()) }
    }

    /// The file of a sound one.
    pub(super) fn recovery_file(&self) -> Option<String> {
        match &*self.recovery_image() {
            RecoveryImage::Sound(manifest) => Some(format!("{PREFIX}{}.efi", manifest.version)),
            RecoveryImage::Absent | RecoveryImage::Bad(_) => None,
        }
    }

    /// Whether there is one, sound or not.
    pub(super) fn has_recovery(&self) -> bool {
        !matches!(*self.recovery_image(), RecoveryImage::Absent)
    }

    /// Proves every byte of it, whatever the mode: it is small.
    pub(super) fn verify_recovery(&self, progress: &Progress) -> VerifyReport {
        progress.begin("checking the recovery image", 0);
        self.look_at_recovery();
        let (healthy, summary, bytes) = match &*self.recovery_image() {
            RecoveryImage::Sound(manifest) => {
                let bytes = manifest.file(IMAGE).map_or(0, |file| file.size);
                (true, format!("the recovery image {} is as it was signed", manifest.version), bytes)
            }
            RecoveryImage::Bad(why) => (false, format!("the recovery image is bad: {why}"), 0),
            RecoveryImage::Absent => (false, "the recovery image is gone from the ESP".into(), 0),
        };
        VerifyReport {
            healthy,
            summary,
            blocks_checked: bytes.div_ceil(BLOCK),
            blocks_bad: 0,
            first_bad: None,
            last_bad: None,
            extents: Vec::new(),
            owners: Vec::new(),
            missed_chance: 0.0,
        }
    }

    /// Slot 0.
    pub(super) fn recovery_view(&self) -> SlotView {
        let mut view = nothing();
        match &*self.recovery_image() {
            RecoveryImage::Absent => view.reason = "there is no recovery image on the ESP".into(),
            RecoveryImage::Bad(why) => (view.state, view.reason) = (SlotWord::Bad, why.clone()),
            RecoveryImage::Sound(manifest) => {
                view.state = SlotWord::Verified;
                view.version.clone_from(&manifest.version);
                view.boot_version.clone_from(&manifest.boot_version);
                view.build_date.clone_from(&manifest.build_date);
                view.security_epoch = manifest.security_epoch;
                view.size = manifest.file(IMAGE).map_or(0, |file| file.size);
                view.verified_how = "full";
            }
        }
        view
    }
}

/// Writes a file that fits into memory, and reads it back.
fn write_small(esp: &dyn Esp, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    esp.create(name)?;
    esp.write_at(name, 0, bytes)?;
    esp.sync_file(name)?;
    esp.sync()?;
    let mut back = vec![0; bytes.len()];
    esp.read_at(name, 0, &mut back)?;
    let (expected, found) = (parts::sha256(bytes), parts::sha256(&back));
    if found == expected {
        return Ok(());
    }
    let message =
        format!("{name} on the ESP reads back as {found}, {expected} was written; the ESP is failing");
    Err(StoreError::refused(ErrorKind::Device, message))
}

fn remove_others(esp: &dyn Esp, stem: &str) -> Result<(), StoreError> {
    let mut others: Vec<String> =
        esp.list()?.into_iter().filter(|name| name.starts_with(PREFIX) && !is_of(name, stem)).collect();
    if others.is_empty() {
        return Ok(());
    }
    // The claims first.
    others.sort_by_key(|name| name.strip_suffix(".json").is_none());
    for name in others {
        esp.remove(&name)?;
    }
    Ok(esp.sync()?)
}

fn is_of(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|suffix| [".efi", ".p7s", ".json"].contains(&suffix))
}
