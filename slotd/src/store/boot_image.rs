//! Boot images on the ESP: compared with, and rebuilt from, the slot they belong to.

use sha2::{Digest, Sha256};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use super::blocks::to_usize;
use super::error::StoreError;
use super::parts::sha256;
use crate::device::buffer::Buffer;
use crate::device::esp::Esp;
use crate::device::medium::Medium;
use crate::domain::layout::{Extent, padded};
use crate::domain::manifest::{Boot, File, Manifest, PIECE, Sha256Hex};
use crate::domain::slot_state::BootImageFound;

/// Name of a slot's boot image.
pub(super) fn name(slot: SlotId) -> String {
    format!("sps-slot-{slot}.efi")
}

/// The boot image that a firmware needs on the ESP.
pub(super) fn needed(manifest: &Manifest) -> Option<&File> {
    manifest.file("boot.efi").filter(|_| manifest.boot == Boot::Uki)
}

/// Compares the ESP with the manifest.
pub(super) fn compare(esp: &dyn Esp, slot: SlotId, manifest: &Manifest) -> BootImageFound {
    let Some(file) = needed(manifest) else { return BootImageFound::NotNeeded };
    match esp.size(&name(slot)) {
        Ok(None) => BootImageFound::Missing,
        Ok(Some(size)) if size != file.size => BootImageFound::Different,
        Ok(Some(_)) => match digest(esp, &name(slot), file.size) {
            Ok(found) if found == file.sha256 => BootImageFound::Same,
            Ok(_) => BootImageFound::Different,
            Err(e) => BootImageFound::Unreadable(e.to_string()),
        },
        Err(e) => BootImageFound::Unreadable(e.to_string()),
    }
}

/// Copies the boot image from the slot: each piece proven before it is written, the whole read back after.
pub(super) fn copy(
    medium: &dyn Medium,
    from: Extent,
    file: &File,
    esp: &dyn Esp,
    slot: SlotId,
) -> Result<(), StoreError> {
    copy_as(medium, from, file, esp, &name(slot))
}

/// The same for any file of a slot that belongs on the ESP.
pub(super) fn copy_as(
    medium: &dyn Medium,
    from: Extent,
    file: &File,
    esp: &dyn Esp,
    name: &str,
) -> Result<(), StoreError> {
    esp.create(name)?;
    let mut buffer = Buffer::new(to_usize(PIECE.min(padded(file.size))));
    let whole = [file.sha256];
    let digests = if file.pieces.is_empty() { whole.as_slice() } else { &file.pieces };
    for (expected, number) in digests.iter().zip(0..) {
        let at = number * PIECE;
        let len = to_usize(PIECE.min(file.size.saturating_sub(at)));
        medium.read_at(from.offset + at, &mut buffer[..to_usize(padded(len as u64))])?;
        let found = sha256(&buffer[..len]);
        if found != *expected {
            return Err(StoreError::ReadBack {
                file: "the boot or recovery image",
                at,
                expected: *expected,
                found,
            });
        }
        esp.write_at(name, at, &buffer[..len])?;
    }
    esp.sync_file(name)?;
    esp.sync()?;
    let found = digest(esp, name, file.size)?;
    if found != file.sha256 {
        return Err(StoreError::refused(
            ErrorKind::Device,
            format!(
                "{name} on the ESP reads back as {found}, {} was written; the ESP is failing",
                file.sha256
            ),
        ));
    }
    Ok(())
}

/// SHA-256 of a file on the ESP.
pub(super) fn digest(esp: &dyn Esp, name: &str, size: u64) -> Result<Sha256Hex, StoreError> {
    let mut buffer = vec![0; to_usize(PIECE.min(size))];
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < size {
        let len = to_usize(PIECE.min(size - at));
        esp.read_at(name, at, &mut buffer[..len])?;
        hash.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(Sha256Hex(hash.finalize().into()))
}
