//! Checks at rest: quick (trailer, signature, tree top, random leaves) and full (every block).

use std::collections::BTreeMap;

use ring::rand::{SecureRandom, SystemRandom};
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use super::blocks::{Image, to_usize};
use super::error::StoreError;
use super::inspect::{Installed, Known, read_trailer, trailer_at};
use super::scan::{self, BadBlocks, Pace};
use super::types::{Failure, Progress, VerifyMode, VerifyReport};
use super::{Reservation, Slot, Store, owners, parts};
use crate::device::buffer::Buffer;
use crate::device::kernel;
use crate::device::medium::Medium;
use crate::device::source::SourceError;
use crate::domain::layout::Part;
use crate::domain::manifest::BLOCK;
use crate::domain::slot_state::Content;
use crate::domain::state::{Check, CheckKind};
use crate::domain::trailer::Found;
use crate::domain::verity::{self, BLOCK_LEN, PER_BLOCK, Tree};

/// Leaves that a quick check reads.
const QUICK_LEAVES: u64 = 1024;

/// A check under way.
struct Verification<'a> {
    medium: &'a dyn Medium,
    installed: &'a Installed,
    progress: &'a Progress,
    bad: BadBlocks,
    checked: u64,
    missed_chance: f64,
}

impl Store {
    /// Checks the reserved slot. What it finds is the result, not an error; it is also remembered, so that a bad
    /// slot stays bad until it is written again or a full check finds it healthy. Blocks; `scheduled` takes the
    /// idle I/O class.
    pub fn verify(
        &self,
        reservation: &Reservation,
        mode: VerifyMode,
        scheduled: bool,
        progress: &Progress,
    ) -> Result<VerifyReport, Failure> {
        if reservation.slot() == SlotId::RECOVERY {
            return Ok(self.verify_recovery(progress));
        }
        let (index, _) = self.find(reservation.slot())?;
        let slot = self.slot(index)?;
        // A boot image that is missing or different is rebuilt first, so that the check judges what is then there.
        self.settle_slot(index);
        let report = self.check(slot, mode, scheduled, progress);
        kernel::trim_memory();
        let (sequence, report) = match report? {
            (Some(sequence), report) => (sequence, report),
            (None, report) => {
                self.refresh(index);
                return Ok(report);
            }
        };
        if self.state.is_lost() {
            // Nothing can be written down, but what was found is told and shown all the same.
            if !report.healthy {
                let content = Content::Bad { class: "blocks", reason: report.summary.clone() };
                self.show(index, Known { content, ..self.inspect(slot) });
            }
        } else {
            self.remember(slot, sequence, mode, &report)?;
            self.refresh(index);
        }
        Ok(report)
    }

    fn check(
        &self,
        slot: &Slot,
        mode: VerifyMode,
        scheduled: bool,
        progress: &Progress,
    ) -> Result<(Option<u64>, VerifyReport), StoreError> {
        progress.begin("checking trailer and signature", 0);
        let known = self.inspect(slot);
        let medium = slot.medium()?;
        let Some(installed) = &known.installed else {
            return Ok((None, Self::unreadable(medium, &known.content)));
        };
        let mut verification = Verification {
            medium,
            installed,
            progress,
            bad: BadBlocks::default(),
            checked: 0,
            missed_chance: 0.0,
        };
        verification.run(mode, scheduled)?;
        Ok((Some(installed.sequence), verification.report(slot)))
    }

    /// The report on a slot whose trailer, manifest or signature does not verify: nothing proves the rest.
    fn unreadable(medium: &dyn Medium, content: &Content) -> VerifyReport {
        let (class, reason) = match content {
            Content::Bad { class, reason } => (*class, format!("{class}: {reason}")),
            _ => ("trailer", "the slot holds no firmware".into()),
        };
        let part = match class {
            "corrupt" => Some(Part::Manifest),
            "untrusted" => Some(Part::Signature),
            _ => None,
        };
        let place = match (part, read_trailer(medium)) {
            (Some(part), Ok(Found::Valid(trailer))) => {
                trailer.parts.into_iter().find(|(p, place)| *p == part && place.end() <= medium.size())
            }
            _ => None,
        };
        let (owner, at) =
            place.map_or(("trailer", trailer_at(medium)), |(part, place)| (part.name(), place.offset));
        let block = at / BLOCK;
        VerifyReport {
            healthy: false,
            summary: reason,
            blocks_checked: 1,
            blocks_bad: 1,
            first_bad: Some(block),
            last_bad: Some(block),
            extents: vec![(block, 1)],
            owners: vec![owner.into()],
            missed_chance: 0.0,
        }
    }

    fn remember(
        &self,
        slot: &Slot,
        sequence: u64,
        mode: VerifyMode,
        report: &VerifyReport,
    ) -> Result<(), StoreError> {
        let how = match mode {
            VerifyMode::Quick => CheckKind::Quick,
            VerifyMode::Full => CheckKind::Full,
        };
        let bad = (!report.healthy).then(|| report.summary.clone());
        let unknown = BTreeMap::new();
        let check = Check { sequence, at: self.judging_time(), how, bad, unknown };
        self.state.update(|state| {
            // A quick check that finds nothing does not take back what a check has found before.
            let stands =
                state.checks.get(&slot.id).is_some_and(|old| old.sequence == sequence && old.bad.is_some());
            if !(stands && how == CheckKind::Quick && check.bad.is_none()) {
                state.checks.insert(slot.id, check);
            }
        })
    }
}

impl Verification<'_> {
    fn run(&mut self, mode: VerifyMode, scheduled: bool) -> Result<(), StoreError> {
        let Some(tree_place) = self.installed.layout.get(Part::Verity) else { return Ok(()) };
        let manifest = self.installed.manifest.get();
        let mut tree = Tree::new(manifest);
        self.check_files(mode);
        if !self.check_tree_head(&mut tree, tree_place.offset) {
            return Ok(());
        }
        let image =
            Image { medium: self.medium, tree: &tree, tree_at: tree_place.offset, size: manifest.root.size };
        match mode {
            VerifyMode::Quick => self.check_random(image)?,
            VerifyMode::Full => self.check_all(image, scheduled)?,
        }
        Ok(())
    }

    fn check_all(&mut self, image: Image<'_>, scheduled: bool) -> Result<(), StoreError> {
        self.progress.begin("checking every block", image.size);
        let pace = Pace { threads: usize::from(scheduled), idle: scheduled };
        let bad = scan::scan(image, 0, image.size, pace, self.progress).ok_or(SourceError::Cancelled)?;
        self.checked +=
            image.size / BLOCK + image.tree.geometry().levels.first().map_or(0, |level| level.blocks);
        self.bad.merge(&bad);
        Ok(())
    }

    /// Random leaves, each with the hash block over it. The chance that one bad block stays unseen is told.
    fn check_random(&mut self, image: Image<'_>) -> Result<(), StoreError> {
        let leaves = image.size / BLOCK;
        let sample = QUICK_LEAVES.min(leaves);
        self.progress.begin("checking random blocks", sample * BLOCK);
        let random = SystemRandom::new();
        let mut block = Buffer::new(BLOCK_LEN);
        for number in 0..sample {
            if self.progress.is_cancelled() {
                return Err(SourceError::Cancelled.into());
            }
            let leaf = if sample == leaves { number } else { pick(&random, leaves)? };
            let group = leaf / PER_BLOCK * PER_BLOCK;
            match image.leaf_hashes(group, PER_BLOCK.min(leaves - group)) {
                Ok(hashes) => {
                    let at = to_usize((leaf - group) * 32);
                    let read = self.medium.read_at(leaf * BLOCK, &mut block).is_ok();
                    if !read || Some(image.tree.hasher().hash(&block).as_slice()) != hashes.get(at..at + 32) {
                        self.bad.add(leaf);
                    }
                }
                Err(_) => {
                    if let Some(level) = image.tree.geometry().levels.first() {
                        self.bad.add(image.tree_at / BLOCK + level.start + leaf / PER_BLOCK);
                    }
                }
            }
            self.checked += 1;
            self.progress.advance(BLOCK);
        }
        #[expect(clippy::cast_precision_loss, reason = "a chance needs no more than a float's precision")]
        if sample < leaves {
            self.missed_chance = (1.0 - 1.0 / leaves as f64).powf(sample as f64);
        }
        Ok(())
    }

    /// The superblock and the upper levels. Below a bad one nothing can be judged: false.
    fn check_tree_head(&mut self, tree: &mut Tree, tree_at: u64) -> bool {
        let superblock = verity::superblock(&self.installed.manifest);
        let mut block = Buffer::new(BLOCK_LEN);
        for number in 0..=tree.upper_blocks() {
            let at = tree_at + number * BLOCK;
            let read = self.medium.read_at(at, &mut block).is_ok();
            let good = match number {
                0 => read && *block == superblock[..],
                _ => read && tree.prove_upper(&block).is_ok(),
            };
            self.checked += 1;
            if !good {
                self.bad.add(at / BLOCK);
                return false;
            }
        }
        true
    }

    /// Every other part: in full for a full check, the texts for a quick one.
    fn check_files(&mut self, mode: VerifyMode) {
        let manifest = self.installed.manifest.get();
        for (part, place) in self.installed.layout.parts() {
            let quick = matches!(part, Part::Notes | Part::News);
            let Some(file) = manifest.file(part.name()).filter(|_| *part != Part::Verity) else { continue };
            if mode == VerifyMode::Quick && !quick {
                continue;
            }
            self.checked += place.size.div_ceil(BLOCK);
            match parts::prove(self.medium, *part, file, *place) {
                Err(StoreError::ReadBack { at, .. }) => self.bad.add((place.offset + at) / BLOCK),
                Err(_) => self.bad.add(place.offset / BLOCK),
                Ok(()) => {}
            }
        }
    }

    fn report(self, slot: &Slot) -> VerifyReport {
        let extents = self.bad.extents();
        let owners = owners::of(self.medium, self.installed, &extents);
        let healthy = self.bad.count == 0;
        let summary = if healthy {
            format!("{} blocks checked, none bad", self.checked)
        } else {
            let named = owners.first().map_or("unknown", String::as_str);
            let more =
                if owners.len() > 1 { format!(" and {} more", owners.len() - 1) } else { String::new() };
            format!(
                "{} of {} blocks are bad in slot {}, the first at byte {}: {named}{more}; install the firmware again with repair",
                self.bad.count,
                self.checked,
                slot.id,
                self.bad.first().unwrap_or(0) * BLOCK
            )
        };
        VerifyReport {
            healthy,
            summary,
            blocks_checked: self.checked,
            blocks_bad: self.bad.count,
            first_bad: self.bad.first(),
            last_bad: self.bad.last,
            extents,
            owners,
            missed_chance: self.missed_chance,
        }
    }
}

/// A number below `bound`, as good as evenly spread: the bias of a 64-bit remainder is below 2⁻³⁰ here.
fn pick(random: &SystemRandom, bound: u64) -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    random
        .fill(&mut bytes)
        .map_err(|_| StoreError::refused(ErrorKind::Device, "the kernel gives no random numbers"))?;
    Ok(u64::from_le_bytes(bytes) % bound.max(1))
}
