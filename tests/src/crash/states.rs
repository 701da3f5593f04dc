//! Every content that the media can have after a cut.
//!
//! What was written and flushed is there. What was written and not flushed may be there, torn or not be there, write
//! by write. A file of the ESP that was touched since the last sync may be old, new, absent, short, empty or zero.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use slotd::domain::envblk;

use crate::recorder::{Content, Device, Event, Files, Media};

/// Unflushed writes that are lost, or survive, one by one.
const MAX_SINGLE: usize = 16;
/// Of the states inside a large write so many are checked less thoroughly for each that is checked fully.
const SAMPLE: usize = 16;

/// How much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every tear of every write.
    Full,
    /// Tears at 512 and 4096 bytes only.
    Coarse,
    /// The same, and the operation is not repeated.
    Once,
}

/// What a cut leaves. `R` is one thing that may become of it.
#[derive(Clone, Debug)]
pub struct CrashState<R> {
    /// The content of all media.
    pub media: Media,
    /// What may become of it. Where several cuts leave the same content, what all of them allow.
    pub right: Vec<R>,
    /// How it came about.
    pub origin: String,
    /// Whether the operation is repeated from here.
    pub repeat: bool,
    /// Whether a file is gone that nobody touched: its directory sector was being written.
    pub neighbour: bool,
}

/// The distinct states after each prefix of `log`; `right` says what is right after each.
pub fn after_cuts<R: Clone + PartialEq>(
    start: &Media,
    log: &[Event],
    right: &[Vec<R>],
    detail: Detail,
) -> Vec<CrashState<R>> {
    let mut states = States { found: Vec::new(), by_digest: HashMap::new(), torn: 0 };
    let mut window = Window::new(start);
    for cut in 0..=log.len() {
        let allowed = right.get(cut).map_or(&[][..], Vec::as_slice);
        let at = match cut.checked_sub(1).and_then(|last| log.get(last)) {
            None => "before the first event".into(),
            Some(event) => {
                if let Event::Write { device, offset, data } = event {
                    states.tear(&window.now, (*device, *offset, data), allowed, (cut, detail));
                }
                if let Event::Loader { block } = event {
                    // Not written at all is right, too.
                    let earlier = right.get(cut - 1).map_or(&[][..], Vec::as_slice);
                    states.tear_loader(&window.now, block, &[earlier, allowed].concat(), cut);
                }
                window.push(event);
                format!("after event {cut} ({event:?})")
            }
        };
        for (media, what) in window.variants() {
            states.add(media, allowed, &format!("{at}: {what}"), true);
        }
    }
    let repeat = detail != Detail::Once;
    states.found.iter_mut().for_each(|state| state.repeat &= repeat);
    states.found
}

/// The distinct states in which, while a file of the ESP is being made or removed, another one in the same directory
/// sector is lost.
pub fn lost_neighbours<R: Clone + PartialEq>(
    start: &Media,
    log: &[Event],
    right: &[Vec<R>],
) -> Vec<CrashState<R>> {
    let mut states = States { found: Vec::new(), by_digest: HashMap::new(), torn: 0 };
    let mut window = Window::new(start);
    for (event, (cut, allowed)) in log.iter().zip((1..).zip(right.iter().skip(1))) {
        window.push(event);
        let touched = window.touched();
        if touched.is_empty() {
            continue;
        }
        for name in window.now.esp.keys().filter(|name| !touched.contains(name)) {
            let mut media = window.now.clone();
            media.esp.remove(name);
            states.add(media, allowed, &format!("after event {cut} ({event:?}): {name} lost with it"), false);
        }
    }
    states.found.iter_mut().for_each(|state| state.neighbour = true);
    states.found
}

struct States<R> {
    found: Vec<CrashState<R>>,
    by_digest: HashMap<[u8; 32], usize>,
    torn: usize,
}

impl<R: Clone + PartialEq> States<R> {
    fn add(&mut self, media: Media, right: &[R], origin: &str, repeat: bool) {
        let index = *self.by_digest.entry(media.digest()).or_insert(self.found.len());
        if let Some(known) = self.found.get_mut(index) {
            if known.right.iter().any(|outcome| !right.contains(outcome)) {
                known.origin = format!("{}; likewise {origin}", known.origin);
            }
            known.right.retain(|outcome| right.contains(outcome));
            known.repeat |= repeat;
        } else {
            let (right, origin) = (right.to_vec(), origin.into());
            self.found.push(CrashState { media, right, origin, repeat, neighbour: false });
        }
    }

    /// A write of which only the first bytes, or only what follows the first sector, became durable.
    fn tear(
        &mut self,
        before: &Media,
        (device, offset, data): (Device, u64, &Arc<[u8]>),
        right: &[R],
        (cut, detail): (usize, Detail),
    ) {
        let len = data.len();
        let fine = (512..len.min(8192)).step_by(512);
        let ends = match detail {
            Detail::Full => fine.chain((8192..len).step_by(4096)).collect(),
            Detail::Coarse | Detail::Once => vec![512, 4096],
        };
        for end in ends.into_iter().filter(|end| *end < len) {
            let mut torn = before.clone();
            torn.image(device).write(offset, &data[..end]);
            self.torn += 1;
            let repeat = end < 8192 || self.torn.is_multiple_of(SAMPLE);
            self.add(
                torn,
                right,
                &format!("event {cut} torn: {device:?} at {offset}, {end} of {len}"),
                repeat,
            );
        }
        let mut torn = before.clone();
        torn.image(device).write(offset + 512, &data[512..]);
        self.add(
            torn,
            right,
            &format!("event {cut} torn: {device:?} at {offset}, all but the first 512"),
            true,
        );
    }

    /// The environment block is two sectors, either of which may be written without the other.
    fn tear_loader(&mut self, before: &Media, block: &[u8; envblk::SIZE], right: &[R], cut: usize) {
        for (range, what) in [(0..512, "the first sector"), (512..envblk::SIZE, "all but the first sector")] {
            let mut torn = before.clone();
            torn.loader[range.clone()].copy_from_slice(&block[range]);
            self.add(torn, right, &format!("event {cut} torn: {what} of the environment block"), true);
        }
    }
}

/// What is durable, and what happened since.
struct Window {
    durable: Media,
    now: Media,
    pending: Vec<Event>,
}

impl Window {
    fn new(start: &Media) -> Self {
        Self { durable: start.clone(), now: start.clone(), pending: Vec::new() }
    }

    fn push(&mut self, event: &Event) {
        self.now.apply(event);
        match event {
            Event::Flush { device } => {
                *self.durable.image(*device) = self.now.image(*device).clone();
                self.pending.retain(|e| !matches!(e, Event::Write { device: d, .. } if d == device));
            }
            Event::EspSync => {
                self.durable.esp.clone_from(&self.now.esp);
                self.pending.retain(|e| matches!(e, Event::Write { .. }));
            }
            Event::Loader { block } => self.durable.loader = **block,
            _ => self.pending.push(event.clone()),
        }
    }

    /// Files of the ESP that were touched since the last sync.
    fn touched(&self) -> BTreeSet<&String> {
        let touched = self.pending.iter().filter_map(|event| match event {
            Event::EspCreate { name }
            | Event::EspWrite { name, .. }
            | Event::EspSyncFile { name }
            | Event::EspRemove { name } => Some(name),
            _ => None,
        });
        touched.collect()
    }

    fn variants(&self) -> Vec<(Media, String)> {
        let writes: Vec<&Event> = self.pending.iter().filter(|e| matches!(e, Event::Write { .. })).collect();
        let mut variants = vec![(self.now.clone(), "all there".to_owned())];
        if !writes.is_empty() {
            let lost = Media { esp: self.now.esp.clone(), ..self.durable.clone() };
            variants.push((lost, "unflushed writes lost".into()));
            for single in writes.len().saturating_sub(MAX_SINGLE)..writes.len() {
                variants.push((self.with(&writes, |i| i != single), format!("{:?} lost", writes[single])));
                variants
                    .push((self.with(&writes, |i| i == single), format!("only {:?} kept", writes[single])));
            }
        }
        for (files, what) in self.esp_variants() {
            for base in [&self.now, &self.durable] {
                variants.push((Media { esp: files.clone(), ..base.clone() }, what.clone()));
            }
        }
        variants
    }

    /// The durable content and those of `writes` that `keep` names.
    fn with(&self, writes: &[&Event], keep: impl Fn(usize) -> bool) -> Media {
        let mut media = Media { esp: self.now.esp.clone(), ..self.durable.clone() };
        for (_, event) in writes.iter().enumerate().filter(|(i, _)| keep(*i)) {
            media.apply(event);
        }
        media
    }

    /// The ESP with each file that was touched since the last sync in each of its possible conditions.
    fn esp_variants(&self) -> Vec<(Files, String)> {
        let mut variants = Vec::new();
        if !self.touched().is_empty() {
            variants.push((self.durable.esp.clone(), "every file old".into()));
        }
        for name in self.touched() {
            let (old, new) = (self.durable.esp.get(name), self.now.esp.get(name));
            let mut contents = vec![("absent", None), ("old", old.cloned())];
            for content in [old, new].into_iter().flatten() {
                contents
                    .push(("short", Some(Content::new(content[..content.len() / 2 / 512 * 512].to_vec()))));
                contents.push((
                    "one byte short",
                    Some(Content::new(content[..content.len().saturating_sub(1)].to_vec())),
                ));
                contents.push(("zero", Some(Content::new(vec![0; content.len()]))));
                contents.push(("empty", Some(Content::new(Vec::new()))));
            }
            for (what, content) in contents {
                let mut files = self.now.esp.clone();
                match content {
                    Some(content) => files.insert(name.clone(), content),
                    None => files.remove(name),
                };
                variants.push((files, format!("{name} {what}")));
            }
        }
        variants
    }
}
