//! What is durable at a cut, what is not, and the media that an origin makes of it.

use std::collections::BTreeSet;

use slotd::domain::envblk;

use super::draw::Draw;
use super::origin::{Fate, FileFate, Origin};
use crate::recorder::{Content, Data, Device, Event, Media};

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
                self.pending.retain(|(_, e)| matches!(e, Event::Write { .. }));
            }
            Event::Loader { block } => self.durable.loader = **block,
            // Old or new, never in between: the firmware replaces it as a whole.
            Event::Variable { .. } => self.durable.apply(event),
            _ => self.pending.push((self.events, event.clone())),
        }
        self.events += 1;
    }

    /// Number, medium's offset and data of the writes that may be lost.
    pub(super) fn writes(&self) -> impl Iterator<Item = (usize, &Data)> {
        self.pending.iter().filter_map(|(number, event)| match event {
            Event::Write { data, .. } => Some((*number, data)),
            _ => None,
        })
    }

    /// Whether there is something that a cut may take.
    pub(super) fn is_loose(&self) -> bool {
        self.writes().next().is_some() || !self.touched().is_empty()
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
            Media { esp: self.now.esp.clone(), ..self.durable.clone() }
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
        for (name, fate) in &origin.files {
            match self.file(name, *fate) {
                Some(content) => media.esp.insert(name.clone(), content),
                None => media.esp.remove(name),
            };
        }
        media
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
