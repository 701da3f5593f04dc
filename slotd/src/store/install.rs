//! Installing a firmware ISO, in one pass, as it arrives.
//!
//! Order: structures of the ISO → signature → manifest → policy → notes and the top of the tree (all in memory; not a
//! byte of any medium has changed) → the steps of `domain::plan::INSTALL`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use sps_base::error::ErrorKind;
use sps_base::journal;
use tracing::info;

use super::blocks::{self, Image, SEGMENT, to_usize};
use super::change::Change;
use super::error::StoreError;
use super::inspect::Installed;
use super::scan::{self, Pace};
use super::types::{Failure, InstallReport, InstallRequest, Progress};
use super::{Reservation, Slot, Store, boot_image, parts};
use crate::device::kernel;
use crate::device::medium::Medium;
use crate::device::probe::Readback;
use crate::device::source::Source;
use crate::domain::iso::{self, Head, Index};
use crate::domain::layout::{Extent, Layout, Part, padded};
use crate::domain::manifest::{BLOCK, File, MAX_MANIFEST, Manifest, Sha256Hex};
use crate::domain::plan;
use crate::domain::policy::{self, Appliance};
use crate::domain::signature::{MAX_SIGNATURE, SignatureError, Verified};
use crate::domain::slot_state::Content;
use crate::domain::state::{Action, Intent};
use crate::domain::verity::{self, Tree};

/// What must be right before anything is written, held in memory: at most 1 MiB each, the tree's top 4.1 MiB.
struct Header {
    index: Index,
    manifest: Verified<Manifest>,
    layout: Layout,
    /// What is written from memory: manifest, signature, texts, and the top of the tree.
    held: Vec<(Part, Vec<u8>)>,
    tree: Tree,
    /// The interrupted install that this one goes on with.
    resumes: Option<Intent>,
}

/// One install.
struct Install<'a> {
    store: &'a Store,
    index: usize,
    slot: &'a Slot,
    medium: &'a dyn Medium,
    request: &'a InstallRequest,
    progress: &'a Progress,
}

impl Store {
    /// Installs the image that arrives on `image` into the reserved slot. Blocks until it is installed, refused, cut
    /// or cancelled. Up to and including policy nothing is written; after that the slot is `Writing` until it is
    /// `Verified`, and an interrupted install goes on when the same image comes again.
    pub fn install(
        &self,
        reservation: Reservation,
        image: OwnedFd,
        request: &InstallRequest,
        progress: &Progress,
    ) -> Result<InstallReport, Failure> {
        let (index, _) = self.find(reservation.slot())?;
        let slot = self.slot(index)?;
        let done = slot
            .medium()
            .and_then(|medium| Install { store: self, index, slot, medium, request, progress }.run(image));
        // Whatever happened: the slot is looked at again, and what is half done before the trailer went is undone.
        if done.is_err() {
            self.settle_slot(index);
        }
        self.refresh(index);
        self.refresh_abandoned();
        let done = done.and_then(|report| self.confirm_shown(index, slot).map(|()| report));
        drop(reservation);
        kernel::trim_memory();
        Ok(done?)
    }

    /// Whether the last look has found what was written: who is told that it is installed must see it so.
    fn confirm_shown(&self, index: usize, slot: &Slot) -> Result<(), StoreError> {
        let reason = match self.known(index).map(|known| known.content.clone()) {
            Some(Content::Verified) => return Ok(()),
            Some(Content::Bad { reason, .. }) => reason,
            Some(Content::Empty | Content::Writing) | None => "no trailer is there".into(),
        };
        let message = format!(
            "slot {} was written and read back, and cannot be read any more: {reason}; the medium is failing",
            slot.id
        );
        Err(StoreError::refused(ErrorKind::Device, message))
    }
}

impl Install<'_> {
    fn run(&self, image: OwnedFd) -> Result<InstallReport, StoreError> {
        let cancelled = || self.progress.is_cancelled();
        let mut source = Source::new(image, self.request.offset, self.store.stall, &cancelled)?;
        self.progress.begin("reading the image's header", 0);
        let header = if self.request.offset == 0 {
            self.header_from_image(&mut source)?
        } else {
            self.header_from_slot()?
        };
        self.admit(&header)?;
        let total = header.index.parts.iter().map(|(_, extent)| extent.size).sum();
        self.progress.begin("writing", total);
        if let Some(intent) = &header.resumes {
            info!(
                MESSAGE_ID = journal::INSTALL_RESUMED,
                SLOT = self.slot.id.get(),
                "install {} of slot {} goes on",
                intent.transaction,
                self.slot.id
            );
        }
        let intent = self.intent(&header);
        let transaction = intent.transaction.clone();
        let installed = Installed {
            manifest: header.manifest.clone(),
            layout: header.layout.clone(),
            sequence: intent.sequence,
            // The claim carries the time at which the signature was judged; at rest it is judged at the same.
            installed_at: self.store.judging_time(),
        };
        let mut kept = 0;
        let mut write = || {
            // The trailer is gone: from here on the slot shows what it is, not what it was.
            self.store.refresh(self.index);
            self.write_parts(&header, &mut source, &mut kept)
        };
        Change::new(self.store, self.slot)?
            .intent(intent)
            .installed(installed.clone())
            .write_parts(&mut write)
            .carry_out(&plan::INSTALL)?;
        Ok(self.report(&installed, transaction, total, kept))
    }

    fn report(&self, installed: &Installed, transaction_id: String, total: u64, kept: u64) -> InstallReport {
        let mut warnings = installed.manifest.signer().warnings.clone();
        if self.medium.readback() == Readback::Impossible {
            warnings.push("what was written could not be read back past memory on this medium".into());
        }
        InstallReport {
            slot: self.slot.id,
            version: installed.manifest.version.clone(),
            root_hash: installed.manifest.root.verity.root_hash.to_string(),
            manifest_sha256: installed.manifest_sha256().to_string(),
            transaction_id,
            bytes_written: total - kept,
            bytes_kept: kept,
            warnings,
        }
    }

    /// Reads and proves everything up to the top of the tree from the image itself.
    fn header_from_image(&self, source: &mut Source<'_>) -> Result<Header, StoreError> {
        let mut start = Vec::new();
        let index = loop {
            match iso::parse_head(&start, source.length())? {
                Head::Complete(index) => break index,
                Head::Needs(len) => {
                    let have = start.len();
                    start.resize(to_usize(len), 0);
                    source.read(&mut start[have..])?;
                }
            }
        };
        let manifest_bytes = read_part(source, &index, Part::Manifest, MAX_MANIFEST)?;
        let signature_bytes = read_part(source, &index, Part::Signature, MAX_SIGNATURE)?;
        let manifest = self.verify(&manifest_bytes, &signature_bytes)?;
        check_sizes(&index, &manifest)?;
        // Policy comes before any further byte is asked for; it is asked again, with the rest, in `admit`.
        self.policy(&manifest)?;
        let layout = Layout::of(&manifest, manifest_bytes.len() as u64, signature_bytes.len() as u64);
        let mut held = vec![(Part::Manifest, manifest_bytes), (Part::Signature, signature_bytes)];
        for part in [Part::Notes, Part::News] {
            let Some(file) = manifest.file(part.name()) else { continue };
            let bytes = read_part(source, &index, part, file.size)?;
            let (expected, found) = (file.sha256, parts::sha256(&bytes));
            if found != expected {
                return Err(StoreError::Content { file: part.name(), at: 0, expected, found });
            }
            held.push((part, bytes));
        }
        let mut tree = Tree::new(&manifest);
        let tree_head = read_part(source, &index, Part::Verity, parts::tree_head_len(&tree))?;
        parts::prove_tree_head(&mut tree, &tree_head, &verity::superblock(&manifest))?;
        held.push((Part::Verity, tree_head));
        let sha256 = Sha256Hex(manifest.identity().0);
        let resumes = self.interrupted().filter(|intent| intent.manifest == sha256);
        Ok(Header { index, manifest, layout, held, tree, resumes })
    }

    /// Reads and proves the same from the slot that an interrupted install has left, for an image that arrives from
    /// its middle on.
    fn header_from_slot(&self) -> Result<Header, StoreError> {
        let gone = || {
            StoreError::refused(
                ErrorKind::InvalidArgument,
                "nothing of this transaction is in the slot; send the image from its first byte",
            )
        };
        let intent = self.interrupted().ok_or_else(gone)?;
        let index = Index { parts: intent.source.clone(), volume: 0 };
        let size = |part: Part| index.get(part).map(|extent| extent.size).ok_or_else(gone);
        let at = padded(size(Part::Root)?).saturating_add(padded(size(Part::Verity)?));
        let read = |at: u64, len: u64, limit: u64| {
            let mut bytes = vec![0; to_usize(Some(len).filter(|len| *len <= limit).ok_or_else(gone)?)];
            self.medium.read_at(at, &mut bytes)?;
            Ok::<_, StoreError>(bytes)
        };
        let manifest_bytes = read(at, size(Part::Manifest)?, MAX_MANIFEST)?;
        if parts::sha256(&manifest_bytes) != intent.manifest {
            return Err(gone());
        }
        let signature_at = at.saturating_add(padded(manifest_bytes.len() as u64));
        let signature_bytes = read(signature_at, size(Part::Signature)?, MAX_SIGNATURE)?;
        let manifest = self.verify(&manifest_bytes, &signature_bytes)?;
        let layout = Layout::of(&manifest, manifest_bytes.len() as u64, signature_bytes.len() as u64);
        let mut held = vec![(Part::Manifest, manifest_bytes), (Part::Signature, signature_bytes)];
        for part in [Part::Notes, Part::News] {
            if let (Some(file), Some(place)) = (manifest.file(part.name()), layout.get(part)) {
                held.push((part, parts::read(self.medium, part, file, place).map_err(|_| gone())?));
            }
        }
        let mut tree = Tree::new(&manifest);
        let tree_at = layout.get(Part::Verity).ok_or_else(gone)?.offset;
        let tree_head = read(tree_at, parts::tree_head_len(&tree), u64::MAX)?;
        parts::prove_tree_head(&mut tree, &tree_head, &verity::superblock(&manifest)).map_err(|_| gone())?;
        held.push((Part::Verity, tree_head));
        Ok(Header { index, manifest, layout, held, tree, resumes: Some(intent) })
    }

    fn verify(&self, manifest: &[u8], signature: &[u8]) -> Result<Verified<Manifest>, StoreError> {
        let wanted = self.request.manifest_sha256.map(Sha256Hex);
        let found = parts::sha256(manifest);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let message = format!(
                "this is not the image that was asked for: its manifest has SHA-256 {found}, expected {wanted}"
            );
            return Err(StoreError::refused(ErrorKind::InvalidArgument, message));
        }
        let keyring = self.store.keyring.as_ref();
        let keyring = keyring.map_err(|why| StoreError::refused(ErrorKind::Untrusted, why.clone()))?;
        Ok(keyring.verify(manifest, signature, self.store.judging_time())?)
    }

    fn policy(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let running = self.store.running();
        let running = running.as_ref().and_then(|known| known.installed.as_ref());
        Ok(policy::admit(
            manifest,
            &Appliance {
                product: &self.store.product,
                hardware: &self.store.hardware,
                epoch_floor: self.store.epoch_floor(),
                running: running.map(|installed| installed.manifest.version.as_str()),
            },
        )?)
    }

    /// The last word before the first write.
    fn admit(&self, header: &Header) -> Result<(), StoreError> {
        let manifest = &header.manifest;
        self.policy(manifest)?;
        let (needed, there) = (header.layout.needed(), self.medium.size());
        if needed > there {
            let message = format!("this firmware needs {needed} bytes, slot {} has {there}", self.slot.id);
            return Err(StoreError::refused(ErrorKind::NoSpace, message));
        }
        let esp = self.store.esp.as_ref();
        let esp = esp.map_err(|why| {
            StoreError::refused(ErrorKind::Device, format!("the ESP cannot be used: {why}"))
        })?;
        if let Some(file) = boot_image::needed(manifest) {
            let there = esp.free()?.saturating_add(esp.size(&boot_image::name(self.slot.id))?.unwrap_or(0));
            if file.size.saturating_add(BLOCK) > there {
                let message =
                    format!("the boot image needs {} bytes on the ESP, which has {there}", file.size);
                return Err(StoreError::refused(ErrorKind::NoSpace, message));
            }
        }
        self.refuse_installed(manifest)?;
        self.refuse_other(manifest)?;
        match self.request.transaction_id.as_ref().zip(self.interrupted()) {
            Some((id, intent)) if *id == intent.transaction && header.resumes.is_none() => {
                let message = format!(
                    "transaction {id} installs another image (manifest {}); use another name",
                    intent.manifest
                );
                Err(StoreError::refused(ErrorKind::InvalidArgument, message))
            }
            _ => Ok(()),
        }
    }

    fn refuse_installed(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let hash = manifest.root.verity.root_hash;
        for (index, slot) in self.store.slots.iter().enumerate() {
            let Some(known) = self.store.known(index) else { continue };
            let same = known.installed.as_ref().is_some_and(|i| i.manifest.root.verity.root_hash == hash);
            let repairs = slot.id == self.slot.id && self.request.repair;
            if same && !repairs {
                let message = format!(
                    "slot {} already holds this very firmware ({}); ask for repair of that slot to write it again",
                    slot.id, manifest.version
                );
                return Err(StoreError::refused(ErrorKind::AlreadyInstalled, message));
            }
        }
        Ok(())
    }

    /// A repair writes the same firmware again; over another one it would be a replacement that nobody asked for.
    fn refuse_other(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let known = self.store.find(self.slot.id).ok().map(|(_, known)| known);
        let Some(installed) = known.as_ref().and_then(|known| known.installed.as_ref()) else {
            return Ok(());
        };
        let same = installed.manifest.root.verity.root_hash == manifest.root.verity.root_hash;
        // Without repair the choice of the slot has decided that what it holds may go.
        if same || self.request.replace || !self.request.repair {
            return Ok(());
        }
        let message = format!(
            "slot {} holds {}, which {} does not repair; delete it or ask for replace",
            self.slot.id, installed.manifest.version, manifest.version
        );
        Err(StoreError::refused(ErrorKind::NoEmptySlot, message))
    }

    /// The interrupted install of this slot.
    fn interrupted(&self) -> Option<Intent> {
        self.store
            .intent_of(self.slot.id)
            .filter(|intent| intent.action == Action::Install)
            .filter(|_| self.store.inspect(self.slot).content == Content::Writing)
    }

    fn intent(&self, header: &Header) -> Intent {
        let sha256 = Sha256Hex(header.manifest.identity().0);
        let earlier = header.resumes.as_ref().map(|intent| intent.transaction.clone());
        let newest = self.store.newest_sequence();
        Intent {
            slot: self.slot.id,
            action: Action::Install,
            manifest: sha256,
            transaction: self
                .request
                .transaction_id
                .clone()
                .or(earlier)
                .unwrap_or_else(|| sha256.to_string().chars().take(16).collect()),
            sequence: newest.saturating_add(1),
            source: header.index.parts.clone(),
            unknown: BTreeMap::new(),
        }
    }

    /// Step 4: tree, small files, boot images, then data.
    fn write_parts(
        &self,
        header: &Header,
        source: &mut Source<'_>,
        kept: &mut u64,
    ) -> Result<(), StoreError> {
        for (part, bytes) in &header.held {
            let Some(place) = header.layout.get(*part) else { continue };
            parts::write(self.medium, place.offset, bytes)?;
            self.progress.advance(bytes.len() as u64);
        }
        self.medium.flush()?;
        self.write_leaf_hashes(header, source, kept)?;
        for part in [Part::Boot, Part::Recovery, Part::FileList] {
            if let Some(file) = header.manifest.file(part.name()) {
                self.write_file(header, source, part, file, kept)?;
            }
        }
        self.prove_held(header)?;
        self.write_root(header, source, kept)
    }

    fn write_leaf_hashes(
        &self,
        header: &Header,
        source: &mut Source<'_>,
        kept: &mut u64,
    ) -> Result<(), StoreError> {
        let (Some(from), Some(to)) = (header.index.get(Part::Verity), header.layout.get(Part::Verity)) else {
            return Ok(());
        };
        self.progress.begin("writing the hash tree", self.progress.total());
        let in_place = header.resumes.is_some()
            && parts::prove_leaf_hashes(&header.tree, self.medium, to.offset).is_ok();
        if in_place {
            *kept += from.size - parts::tree_head_len(&header.tree);
            self.progress.advance(from.size - parts::tree_head_len(&header.tree));
        } else {
            self.progress.set_next_offset(from.offset);
            parts::receive_leaf_hashes(source, from, &header.tree, self.medium, to.offset, self.progress)?;
        }
        self.progress.set_next_offset(from.end());
        Ok(())
    }

    fn write_file(
        &self,
        header: &Header,
        source: &mut Source<'_>,
        part: Part,
        file: &File,
        kept: &mut u64,
    ) -> Result<(), StoreError> {
        let (Some(from), Some(to)) = (header.index.get(part), header.layout.get(part)) else { return Ok(()) };
        self.progress.begin(
            if part == Part::FileList { "writing the file list" } else { "writing boot images" },
            self.progress.total(),
        );
        if header.resumes.is_some() && parts::prove(self.medium, part, file, to).is_ok() {
            *kept += from.size;
            self.progress.advance(from.size);
        } else {
            self.progress.set_next_offset(from.offset);
            parts::receive(source, from, part, file, self.medium, to, self.progress)?;
        }
        self.progress.set_next_offset(from.end());
        Ok(())
    }

    /// Reads back what was written from memory.
    fn prove_held(&self, header: &Header) -> Result<(), StoreError> {
        for (part, bytes) in &header.held {
            let Some(place) = header.layout.get(*part) else { continue };
            let mut back = vec![0; bytes.len()];
            self.medium.read_at(place.offset, &mut back)?;
            if back != *bytes {
                let (expected, found) = (parts::sha256(bytes), parts::sha256(&back));
                return Err(StoreError::ReadBack { file: part.name(), at: 0, expected, found });
            }
        }
        Ok(())
    }

    fn write_root(&self, header: &Header, source: &mut Source<'_>, kept: &mut u64) -> Result<(), StoreError> {
        let (Some(from), Some(tree)) = (header.index.get(Part::Root), header.layout.get(Part::Verity)) else {
            return Ok(());
        };
        let image = Image { medium: self.medium, tree: &header.tree, tree_at: tree.offset, size: from.size };
        let start = if header.resumes.is_some() { self.resume_point(image)? } else { 0 };
        *kept += start;
        self.progress.begin("writing the root file system", self.progress.total());
        self.progress.set_next_offset(from.offset + start);
        if start < from.size {
            let mut scratch = vec![0; to_usize(blocks::CHUNK)];
            source.skip_to(from.offset + start, &mut scratch)?;
            drop(scratch);
            let marks = blocks::Marks {
                received: &|bytes| self.progress.advance(bytes),
                durable: &|bytes| self.progress.set_next_offset(from.offset + bytes),
            };
            blocks::write(image, source, start, self.store.read_back, &marks)?;
        }
        self.progress.begin("finishing", self.progress.total());
        Ok(())
    }

    /// How much of the root image an interrupted install has left in the slot, without a gap: read from the medium
    /// and proven, so it needs no note that could be wrong.
    fn resume_point(&self, image: Image<'_>) -> Result<u64, StoreError> {
        self.progress.begin("reading what is already there", self.progress.total());
        let mut at = 0;
        while at < image.size {
            let end = (at + SEGMENT).min(image.size);
            let pace = Pace { threads: 0, idle: false };
            let bad = scan::scan(image, at, end, pace, self.progress)
                .ok_or(crate::device::source::SourceError::Cancelled)?;
            if bad.last.is_some_and(|last| last * BLOCK >= image.size) {
                // A block of the tree is bad, so the leaves under it were not judged: nothing from here on is kept.
                return Ok(at);
            }
            if let Some(first) = bad.first() {
                let good = (first * BLOCK).clamp(at, end) / blocks::CHUNK * blocks::CHUNK;
                return Ok(good);
            }
            at = end;
        }
        Ok(image.size)
    }
}

/// Reads the first `limit` bytes (or all, when it is shorter) of a part into memory.
fn read_part(source: &mut Source<'_>, index: &Index, part: Part, limit: u64) -> Result<Vec<u8>, StoreError> {
    let extent = index.get(part).unwrap_or(Extent { offset: source.position(), size: 0 });
    match part {
        Part::Signature if extent.size > limit => return Err(SignatureError::TooLong(extent.size).into()),
        Part::Manifest if extent.size > limit => {
            return Err(StoreError::TooLarge { file: part.name(), found: extent.size, limit });
        }
        _ => {}
    }
    let mut bytes = vec![0; to_usize(extent.size.min(limit))];
    let mut scratch = vec![0; to_usize(blocks::CHUNK.min(extent.offset.saturating_sub(source.position())))];
    if !bytes.is_empty() {
        source.skip_to(extent.offset, &mut scratch)?;
    }
    source.read(&mut bytes)?;
    Ok(bytes)
}

/// Every part must have the length that the manifest signs, and nothing may be there that it does not.
fn check_sizes(index: &Index, manifest: &Manifest) -> Result<(), StoreError> {
    for part in Part::ALL {
        let found = index.get(part).map(|extent| extent.size);
        let expected = match part {
            Part::Manifest | Part::Signature => found,
            Part::Root => Some(manifest.root.size),
            _ => manifest.file(part.name()).map(|file| file.size),
        };
        if found != expected {
            let (found, expected) = (found.unwrap_or(0), expected.unwrap_or(0));
            return Err(StoreError::Size { file: part.name(), found, expected });
        }
    }
    let tree = verity::Geometry::new(manifest.root.size / BLOCK).file_blocks * BLOCK;
    match index.get(Part::Verity) {
        Some(extent) if extent.size != tree => {
            Err(StoreError::Size { file: Part::Verity.name(), found: extent.size, expected: tree })
        }
        _ => Ok(()),
    }
}
