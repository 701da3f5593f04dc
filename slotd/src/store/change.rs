//! Carrying out the order law of `domain::plan`: the only code that changes a slot, its boot image and its intent.

use std::collections::BTreeMap;

use sps_base::error::ErrorKind;

use super::error::StoreError;
use super::inspect::{Installed, read_trailer, trailer_at};
use super::{Slot, Store, boot_image};
use crate::device::buffer::Buffer;
use crate::device::medium::Medium;
use crate::domain::layout::Part;
use crate::domain::plan::Step;
use crate::domain::state::Intent;
use crate::domain::trailer::{self, Found, Trailer};
use crate::domain::verity::BLOCK_LEN;

/// Writes the parts of a firmware: the long step, which only an install has.
type WriteParts<'a> = &'a mut dyn FnMut() -> Result<(), StoreError>;

/// A slot that is being changed.
pub(super) struct Change<'a> {
    store: &'a Store,
    slot: &'a Slot,
    medium: &'a dyn Medium,
    intent: Option<Intent>,
    installed: Option<Installed>,
    write_parts: Option<WriteParts<'a>>,
}

impl<'a> Change<'a> {
    pub(super) fn new(store: &'a Store, slot: &'a Slot) -> Result<Self, StoreError> {
        Ok(Self { store, slot, medium: slot.medium()?, intent: None, installed: None, write_parts: None })
    }

    /// What is being done, for the state.
    pub(super) fn intent(self, intent: Intent) -> Self {
        self.intent_of(Some(intent))
    }

    /// The same, where there may be none.
    pub(super) fn intent_of(mut self, intent: Option<Intent>) -> Self {
        self.intent = intent;
        self
    }

    /// The firmware that the slot holds or will hold.
    pub(super) fn installed(mut self, installed: Installed) -> Self {
        self.installed = Some(installed);
        self
    }

    /// How its parts are written.
    pub(super) fn write_parts(mut self, write_parts: WriteParts<'a>) -> Self {
        self.write_parts = Some(write_parts);
        self
    }

    /// Carries out `steps` in order. The first failure ends it; what is left is decided by the next inspection.
    pub(super) fn carry_out(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        steps.iter().try_for_each(|step| self.apply(*step))
    }

    fn apply(&mut self, step: Step) -> Result<(), StoreError> {
        match step {
            Step::WriteIntent => self.store.state.update(|state| state.intent.clone_from(&self.intent)),
            Step::RemoveBootImage => self.remove_boot_image(),
            Step::ZeroTrailer => self.write_last_block(&[0; BLOCK_LEN]),
            Step::WriteParts => self.write_parts.as_mut().map_or(Ok(()), |write| write()),
            Step::WriteTrailer => self.write_trailer(),
            Step::CopyBootImage => self.copy_boot_image(),
            Step::DropIntent => self.drop_intent(),
        }
    }

    fn remove_boot_image(&self) -> Result<(), StoreError> {
        let esp = self.store.usable_esp()?;
        esp.remove(&boot_image::name(self.slot.id))?;
        Ok(esp.sync()?)
    }

    fn write_trailer(&self) -> Result<(), StoreError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        let trailer = Trailer {
            sequence: installed.sequence,
            installed_at: installed.installed_at,
            manifest: installed.manifest_sha256(),
            parts: installed.layout.parts().to_vec(),
        };
        self.write_last_block(&trailer::render(&trailer))?;
        match read_trailer(self.medium)? {
            Found::Valid(found) if found == trailer => Ok(()),
            _ => Err(StoreError::refused(
                ErrorKind::Device,
                format!("the trailer of slot {} does not read back; the medium is failing", self.slot.id),
            )),
        }
    }

    fn write_last_block(&self, block: &[u8; BLOCK_LEN]) -> Result<(), StoreError> {
        let mut buffer = Buffer::new(BLOCK_LEN);
        buffer.copy_from_slice(block);
        self.medium.write_at(trailer_at(self.medium), &buffer)?;
        Ok(self.medium.flush()?)
    }

    fn copy_boot_image(&self) -> Result<(), StoreError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        let place = installed.layout.get(Part::Boot);
        match (boot_image::needed(&installed.manifest), place) {
            (Some(file), Some(place)) => {
                boot_image::copy(self.medium, place, file, self.store.usable_esp()?, self.slot.id)
            }
            _ => Ok(()),
        }
    }

    /// Drops the intent, and with it every check at rest that judged an earlier content of this slot.
    fn drop_intent(&self) -> Result<(), StoreError> {
        let keep = self.installed.as_ref().map(|installed| installed.sequence);
        let id = self.slot.id;
        self.store.state.update(|state| {
            state.intent = None;
            let checks = std::mem::take(&mut state.checks);
            let valid = |(slot, check): &(_, crate::domain::state::Check)| {
                *slot != id || Some(check.sequence) == keep
            };
            state.checks = checks.into_iter().filter(valid).collect::<BTreeMap<_, _>>();
        })
    }
}
