//! What is durable at a cut, what is not, and the media that an origin makes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use slotd::domain::envblk;

use super::draw::Draw;
use super::origin::{Fate, FileFate, Origin};
use crate::recorder::{Change, Content, Data, Device, Event, Media, Tree};

/// What is durable, and what happened since.
pub(super) struct Window {
    durable: Media,
    /// With everything that happened.
    pub(super) now: Media,
    /// What happened since the last flush or sync of its medium, by its number.
    pub(super) pending: Vec<(usize, Event)>,
    /// The environment block as it was before the last event, where that wrote it.
    loader_before: Option<[u8; envblk::SIZE]>,
    events: usize,
}

impl Window {
    pub(super) fn new(start: &Media) -> Self {
        Self {
            durable: start.clone(),
            now: start.clone(),
            pending: Vec::new(),
            loader_before: None,
            events: 0,
        }
    }

    /// The window after the first `cut` events; the device has not carried out the flush `lied`.
    pub(super) fn at(start: &Media, log: &[Event], cut: usize, lied: Option<usize>) -> Self {
        let mut window = Self::new(start);
        for (number, event) in log.iter().take(cut).enumerate() {
            if Some(number) == lied { window.events += 1 } else { window.push(event) }
        }
        window
    }

    pub(super) fn push(&mut self, event: &Event) {
        self.loader_before = matches!(event, Event::Loader { .. }).then_some(self.now.loader);
        self.now.apply(event);
        match event {
            Event::Flush { device } => {
                *self.durable.image(*device) = self.now.image(*device).clone();
                self.pending.retain(|(_, e)| !matches!(e, Event::Write { device: d, .. } if d == device));
            }
            Event::EspSync => {
                self.durable.esp.clone_from(&self.now.esp);
                self.pending.retain(|(_, e)| matches!(e, Event::Write { .. } | Event::File(_)));
            }
            Event::Loader { block } => self.durable.loader = **block,
            // Old or new, never in between: the firmware replaces it as a whole.
            Event::Variable { .. } => self.durable.apply(event),
            Event::File(Change::Sync { node, path }) => self.sync(*node, path),
            Event::File(change) => {
                Arc::make_mut(&mut self.durable.files).born(change);
                self.pending.push((self.events, event.clone()));
            }
            _ => self.pending.push((self.events, event.clone())),
        }
        self.events += 1;
    }

    /// A file's content is on stable storage, or what happened to the names in a directory, and with it, as the journal has
    /// one order, every change of names before that.
    fn sync(&mut self, of: u64, path: &std::path::Path) {
        let durable = Arc::make_mut(&mut self.durable.files);
        let names = |event: &Event| matches!(event, Event::File(change) if change.is_in(path, of));
        let last = self.pending.iter().rposition(|(_, event)| names(event));
        let mut place = 0;
        self.pending.retain(|(_, event)| {
            let before = last.is_some_and(|last| place <= last);
            place += 1;
            let Event::File(change) = event else { return true };
            let done = match change {
                Change::Write { node, .. } | Change::Truncate { node, .. } => *node == of,
                _ => before,
            };
            if done {
                durable.apply(change);
            }
            !done
        });
    }

    /// Number and length of the writes that may be lost.
    pub(super) fn writes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pending.iter().filter_map(|(number, event)| match event {
            Event::Write { data, .. } => Some((*number, data.len())),
            Event::File(Change::Write { data, .. }) => Some((*number, data.len())),
            Event::File(Change::Truncate { .. }) => Some((*number, 0)),
            _ => None,
        })
    }

    /// Whether that write is one into a file of the data partition, which keeps any of its first bytes.
    pub(super) fn is_into_file(&self, number: usize) -> bool {
        let file = |event: &Event| matches!(event, Event::File(_));
        self.pending.iter().any(|(pending, event)| *pending == number && file(event))
    }

    /// How many changes of names a cut may take.
    pub(super) fn names(&self) -> usize {
        let names = |event: &Event| matches!(event, Event::File(change) if change.is_of_names());
        self.pending.iter().filter(|(_, event)| names(event)).count()
    }

    /// Whether there is something that a cut may take.
    pub(super) fn is_loose(&self) -> bool {
        self.writes().next().is_some() || !self.touched().is_empty() || self.names() > 0
    }

    /// The event that wrote the environment block and may be torn.
    pub(super) fn torn_loader(&self) -> Option<usize> {
        self.loader_before.and_then(|_| self.events.checked_sub(1))
    }

    /// Files of the ESP that were touched since the last sync.
    pub(super) fn touched(&self) -> BTreeSet<&String> {
        let touched = self.pending.iter().filter_map(|(_, event)| match event {
            Event::EspCreate { name }
            | Event::EspWrite { name, .. }
            | Event::EspSyncFile { name }
            | Event::EspRemove { name } => Some(name),
            _ => None,
        });
        touched.collect()
    }

    /// Files that nobody touched, in a directory of those.
    pub(super) fn neighbours(&self) -> Vec<&String> {
        let directory = |name: &str| name.rsplit_once('/').map(|(directory, _)| directory.to_owned());
        let touched = self.touched();
        let sectors: BTreeSet<_> = touched.iter().map(|name| directory(name)).collect();
        let names = self.now.esp.keys();
        names.filter(|name| !touched.contains(name) && sectors.contains(&directory(name))).collect()
    }

    /// Length of a file as it was at the last sync, or as it is now.
    pub(super) fn length(&self, name: &str, old: bool) -> Option<usize> {
        let media = if old { &self.durable } else { &self.now };
        media.esp.get(name).map(|content| content.len())
    }

    /// The media that `origin` leaves.
    pub(super) fn build(&self, origin: &Origin) -> Media {
        let mut media = if origin.writes.is_empty() {
            self.now.clone()
        } else {
            let (esp, files) = (self.now.esp.clone(), self.now.files.clone());
            Media { esp, files, ..self.durable.clone() }
        };
        if !origin.writes.is_empty() {
            for (number, event) in &self.pending {
                match (event, origin.writes.get(number)) {
                    (Event::Write { .. }, None) => media.apply(event),
                    (Event::Write { device, offset, data }, Some(fate)) => {
                        tear(&mut media, *device, *offset, data, *fate);
                    }
                    _ => {}
                }
            }
            if let (Some(before), Some(number)) = (self.loader_before, self.torn_loader()) {
                media.loader = tear_loader(&before, &self.now.loader, origin.writes.get(&number));
            }
        }
        if origin.names.is_some() || !origin.writes.is_empty() {
            media.files = self.tree(origin);
        }
        for (name, fate) in &origin.files {
            match self.file(name, *fate) {
                Some(content) => media.esp.insert(name.clone(), content),
                None => media.esp.remove(name),
            };
        }
        media
    }

    /// The data partition that `origin` leaves: the first changes of names, and of the content of files what was kept.
    fn tree(&self, origin: &Origin) -> Arc<Tree> {
        if !self.pending.iter().any(|(_, event)| matches!(event, Event::File(_))) {
            return self.now.files.clone();
        }
        let (mut files, mut left) = (self.durable.files.clone(), origin.names.unwrap_or(usize::MAX));
        let tree = Arc::make_mut(&mut files);
        for (number, event) in &self.pending {
            let Event::File(change) = event else { continue };
            match (change, origin.writes.get(number)) {
                (change, _) if change.is_of_names() => {
                    if left > 0 {
                        tree.name(change);
                    }
                    left = left.saturating_sub(1);
                }
                (change, None) => tree.apply(change),
                (Change::Write { node, offset, data }, Some(fate)) => {
                    tear_file(tree, *node, *offset, data, *fate);
                }
                _ => {}
            }
        }
        files
    }

    fn file(&self, name: &str, fate: FileFate) -> Option<std::sync::Arc<Content>> {
        let version = |old: bool| if old { self.durable.esp.get(name) } else { self.now.esp.get(name) };
        match fate {
            FileFate::Absent | FileFate::Gone => None,
            FileFate::Old => version(true).cloned(),
            FileFate::Short { old, length } => {
                let content = version(old)?;
                Some(Content::new(content[..length.min(content.len())].to_vec()))
            }
            FileFate::Zero { old } => Some(Content::new(vec![0; version(old)?.len()])),
            FileFate::Drawn { unit, seed } => {
                let mut draw = Draw::new(seed, &[]);
                let mut bytes = version(false).or_else(|| version(true))?.to_vec();
                bytes.chunks_mut(unit.max(1)).filter(|_| draw.once_in(2)).for_each(|lost| lost.fill(0));
                Some(Content::new(bytes))
            }
        }
    }
}

fn tear(media: &mut Media, device: Device, offset: u64, data: &Data, fate: Fate) {
    let image = media.image(device);
    match fate {
        Fate::Lost => {}
        Fate::Only { from, to } => {
            image.write_part(offset, data, from, to);
        }
        Fate::Hole { from, to } => {
            image.write_part(offset, data, 0, from);
            image.write_part(offset, data, to.min(data.len()), data.len());
        }
        Fate::Drawn { unit, seed } => {
            let mut draw = Draw::new(seed, &[]);
            image.write_units(offset, data, unit, || draw.once_in(2));
        }
    }
}

/// What is kept from the first byte on is as long as it is; otherwise the file has its length, and zeros where nothing was.
fn tear_file(tree: &mut Tree, node: u64, offset: usize, data: &[u8], fate: Fate) {
    match fate {
        Fate::Lost => {}
        Fate::Only { from, to } => tree.write(node, offset, data, from..to.min(data.len()), false),
        Fate::Hole { from, to } => {
            tree.write(node, offset, data, 0..from, true);
            tree.write(node, offset, data, to.min(data.len())..data.len(), true);
        }
        Fate::Drawn { unit, seed } => {
            let mut draw = Draw::new(seed, &[]);
            tree.write(node, offset, data, 0..0, true);
            for from in (0..data.len()).step_by(unit.max(1)) {
                if draw.once_in(2) {
                    tree.write(node, offset, data, from..(from + unit).min(data.len()), true);
                }
            }
        }
    }
}

/// The environment block is two sectors, either of which may be written without the other.
fn tear_loader(
    before: &[u8; envblk::SIZE],
    now: &[u8; envblk::SIZE],
    fate: Option<&Fate>,
) -> [u8; envblk::SIZE] {
    let (from, to) = match fate {
        None => return *now,
        Some(Fate::Only { from, to }) => (*from, *to),
        Some(Fate::Lost | Fate::Hole { .. } | Fate::Drawn { .. }) => return *before,
    };
    let mut torn = *before;
    torn[from..to.min(envblk::SIZE)].copy_from_slice(&now[from..to.min(envblk::SIZE)]);
    torn
}
