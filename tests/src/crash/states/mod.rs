//! Every content that the media can have after a cut.
//!
//! What was written and flushed is there. What was written and not flushed may be there, torn or not be there, write
//! by write. A file of the ESP that was touched since the last sync may be old, new, absent, short, empty or zero.
//!
//! States are made one after the other and handed on: none is kept but its digest.

pub(crate) mod draw;
mod origin;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use draw::{Draw, first_word};
pub use origin::{Fate, FileFate, Origin};
use window::Window;

use crate::recorder::{Digest, Event, Media};

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of everything that is drawn.
    pub seed: u64,
    /// Every subset of up to so many unflushed writes is tried; of more: none, all, each one lost, each one kept, each
    /// prefix, and what is drawn.
    pub subset_writes: u32,
    /// Tears of one write, at most.
    pub tears: usize,
    /// Every combination of the conditions of the touched files up to so many; of more: each file alone.
    pub files: usize,
    /// States drawn after each event: each unflushed write kept, lost or torn, each touched file in any condition.
    pub drawn: usize,
    /// After so many draws in a row that showed nothing new, no more are made after that event.
    pub misses: usize,
    /// From one in so many states the operation is repeated; 0 is never.
    pub repeat: usize,
    /// One in so many of those is cut a second time; 0 is never.
    pub second: usize,
    /// One in so many of those is cut a third time; 0 is never.
    pub third: usize,
}

impl Bounds {
    /// For a test that is to be quick.
    pub const fn quick() -> Self {
        Self {
            seed: 1,
            subset_writes: 4,
            tears: 6,
            files: 16,
            drawn: 2,
            misses: usize::MAX,
            repeat: 8,
            second: 40,
            third: 40,
        }
    }

    /// For every change, in minutes.
    pub const fn ci() -> Self {
        Self {
            seed: 1,
            subset_writes: 8,
            tears: 24,
            files: 64,
            drawn: 40,
            misses: usize::MAX,
            repeat: 24,
            second: 12,
            third: 24,
        }
    }

    /// The same, of this seed.
    #[must_use]
    pub const fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// About so many states of a log of which so many events leave something to be lost: what is drawn makes up for
    /// what is not there. The more there are, the fewer of them are looked at more closely.
    #[must_use]
    pub const fn reaching(self, states: usize, loose: usize) -> Self {
        let drawn = states / if loose == 0 { 1 } else { loose };
        Self { drawn, repeat: if self.repeat > states / 200 { self.repeat } else { states / 200 }, ..self }
    }

    /// Only one cut, nothing is repeated: for what is cut after a cut, and to look for a fault that was planted.
    #[must_use]
    pub const fn once(self) -> Self {
        Self { drawn: self.drawn / 8, repeat: 0, second: 0, third: 0, ..self }
    }

    /// A second cut, in what follows a first one: fewer of each.
    #[must_use]
    pub const fn again(self) -> Self {
        Self { subset_writes: 2, tears: 3, files: 8, drawn: 1, repeat: 0, ..self }
    }
}

/// What a cut leaves. `R` is one thing that may become of it.
#[derive(Clone, Debug)]
pub struct CrashState<R> {
    /// The content of all media.
    pub media: Media,
    /// What may become of it. Where several cuts leave the same content, what all of them allow.
    pub right: Vec<R>,
    /// How it came about.
    pub origin: Origin,
    /// It was handed on before; only what may become of it is narrower now.
    pub known: bool,
    /// Whether the operation is repeated from here.
    pub repeat: bool,
}

/// Hands the distinct states after each prefix of `log` to `visit`; `right` says what is right after each prefix.
pub fn each_after_cuts<R: Clone + PartialEq>(
    start: &Media,
    log: &[Event],
    right: &[Vec<R>],
    bounds: &Bounds,
    visit: &mut dyn FnMut(CrashState<R>),
) {
    let mut states = States { seen: HashMap::new(), rights: Vec::new(), bounds: *bounds, visit };
    let mut window = Window::new(start);
    for cut in 0..=log.len() {
        let last = cut.checked_sub(1).and_then(|last| log.get(last));
        if let Some(event) = last {
            window.push(event);
        }
        let allowed = right.get(cut).map_or(&[][..], Vec::as_slice);
        // A block that was not written at all is right, too.
        let earlier = cut.checked_sub(1).and_then(|cut| right.get(cut)).map_or(&[][..], Vec::as_slice);
        let either = [earlier, allowed].concat();
        let mut add = |origin: Origin| {
            let torn = window.torn_loader().is_some_and(|number| origin.writes.contains_key(&number));
            states.add(&window, origin, if torn { &either } else { allowed })
        };
        for origin in systematic(&window, cut, bounds) {
            add(origin);
        }
        if window.is_loose() {
            let mut draw = Draw::new(bounds.seed, &[cut as u64]);
            // Different draws may leave the same; where few are new after many, there are no more.
            let (mut new, mut missed) = (0, 0);
            for _ in 0..3 * bounds.drawn {
                if new == bounds.drawn || missed >= bounds.misses {
                    break;
                }
                let is_new = add(drawn(&window, cut, &mut draw));
                (new, missed) = if is_new { (new + 1, 0) } else { (new, missed + 1) };
            }
        }
    }
}

/// At most `count` states after a cut in `log`, drawn from the seed; each content once, and none that is `known`.
pub fn some_after_cuts(
    start: &Media,
    log: &[Event],
    bounds: &Bounds,
    count: usize,
    known: impl Fn(&Digest) -> bool,
) -> Vec<(Origin, Media)> {
    let mut draw = Draw::new(bounds.seed, &[]);
    let mut wanted = vec![0; log.len()];
    for _ in 0..count {
        if let Some(cut) = wanted.get_mut(draw.below(log.len())) {
            *cut += 1;
        }
    }
    let (mut window, mut found, mut seen, mut owed) = (Window::new(start), Vec::new(), HashSet::new(), 0);
    for (event, (cut, wanted)) in log.iter().zip((1..).zip(wanted)) {
        window.push(event);
        // What this cut cannot give, a later one does.
        owed += wanted;
        if owed == 0 {
            continue;
        }
        let mut origins = systematic(&window, cut, bounds);
        origins.extend(lost_with(&window, cut));
        if window.is_loose() {
            origins.extend((0..bounds.drawn.max(2 * owed)).map(|_| drawn(&window, cut, &mut draw)));
        }
        let mut missed = 0;
        while owed > 0 && missed < bounds.misses && !origins.is_empty() {
            let origin = origins.swap_remove(draw.below(origins.len()));
            let media = window.build(&origin);
            let digest = media.digest();
            if !known(&digest) && seen.insert(digest) {
                found.push((origin, media));
                (owed, missed) = (owed - 1, 0);
            } else {
                missed += 1;
            }
        }
    }
    found
}

/// The distinct states in which, while a file of the ESP is being made or removed, another one in the same directory
/// sector is lost.
pub fn lost_neighbours<R: Clone + PartialEq>(
    start: &Media,
    log: &[Event],
    right: &[Vec<R>],
    visit: &mut dyn FnMut(CrashState<R>),
) {
    let bounds = Bounds { repeat: 0, ..Bounds::quick() };
    let mut states = States { seen: HashMap::new(), rights: Vec::new(), bounds, visit };
    let mut window = Window::new(start);
    for (event, (cut, allowed)) in log.iter().zip((1..).zip(right.iter().skip(1))) {
        window.push(event);
        for origin in lost_with(&window, cut) {
            states.add(&window, origin, allowed);
        }
    }
}

/// After `cut` events, each file lost that nobody touched, in a directory that is being changed.
fn lost_with(window: &Window, cut: usize) -> Vec<Origin> {
    let gone = |name: &String| BTreeMap::from([(name.clone(), FileFate::Gone)]);
    window.neighbours().into_iter().map(|name| Origin { files: gone(name), ..Origin::at(cut) }).collect()
}

/// After how many events of `log` there is something that a cut may take.
pub fn loose(log: &[Event]) -> usize {
    let (mut pending, mut loose) = (Vec::new(), 0);
    for event in log {
        match event {
            Event::Flush { device } => {
                pending.retain(
                    |e: &&Event| !matches!(e, Event::Write { device: written, .. } if written == device),
                );
            }
            Event::EspSync => pending.retain(|e| matches!(e, Event::Write { .. })),
            Event::Write { .. }
            | Event::EspCreate { .. }
            | Event::EspWrite { .. }
            | Event::EspRemove { .. } => {
                pending.push(event);
            }
            _ => {}
        }
        loose += usize::from(!pending.is_empty());
    }
    loose
}

/// The states behind the whole of `log`, also those that an earlier cut leaves too.
pub fn at_end(start: &Media, log: &[Event], bounds: &Bounds) -> Vec<(Origin, Media)> {
    let window = Window::at(start, log, log.len(), None);
    let built = |origin: Origin| {
        let media = window.build(&origin);
        (origin, media)
    };
    systematic(&window, log.len(), bounds).into_iter().map(built).collect()
}

/// The media that `origin` makes of `start` and `log`.
pub fn rebuild(start: &Media, log: &[Event], origin: &Origin) -> Media {
    Window::at(start, log, origin.cut, origin.lied).build(origin)
}

struct States<'a, R> {
    /// By content: which of `rights` it was handed on with.
    seen: HashMap<Digest, u32>,
    rights: Vec<Vec<R>>,
    bounds: Bounds,
    visit: &'a mut dyn FnMut(CrashState<R>),
}

impl<R: Clone + PartialEq> States<'_, R> {
    /// True where the content is new.
    fn add(&mut self, window: &Window, origin: Origin, right: &[R]) -> bool {
        let media = window.build(&origin);
        let key = media.digest();
        let known = self.seen.get(&key).and_then(|index| self.rights.get(*index as usize));
        let right = match known {
            // Nothing that was right before is wrong now.
            Some(earlier) if earlier.iter().all(|one| right.contains(one)) => return false,
            Some(earlier) => earlier.iter().filter(|one| right.contains(one)).cloned().collect(),
            None => right.to_vec(),
        };
        let known = known.is_some();
        let index = self.rights.iter().position(|known| *known == right).unwrap_or(self.rights.len());
        if index == self.rights.len() {
            self.rights.push(right.clone());
        }
        self.seen.insert(key, u32::try_from(index).unwrap_or(u32::MAX));
        let repeat = match self.bounds.repeat {
            0 => false,
            // What lost nothing always is.
            _ if origin == Origin::at(origin.cut) => true,
            some => sample(&origin, self.bounds.seed, some),
        };
        (self.visit)(CrashState { media, right, origin, known, repeat });
        !known
    }
}

/// Whether this chain of cuts is the one in `of` that is looked at more closely.
pub fn sample(cuts: &(impl Serialize + ?Sized), seed: u64, of: usize) -> bool {
    of > 0 && Draw::new(seed, &[fingerprint(cuts)]).once_in(of)
}

/// A number that tells chains of cuts apart.
pub fn fingerprint(cuts: &(impl Serialize + ?Sized)) -> u64 {
    first_word(&Sha256::digest(serde_json::to_vec(cuts).unwrap_or_default()))
}

/// What is tried after each event, whatever the seed.
fn systematic(window: &Window, cut: usize, bounds: &Bounds) -> Vec<Origin> {
    let mut origins = vec![Origin::at(cut)];
    let writes: Vec<(usize, usize)> = window.writes().collect();
    let with = |writes: BTreeMap<usize, Fate>| Origin { writes, ..Origin::at(cut) };
    origins.extend(
        subsets(&writes, bounds)
            .into_iter()
            .map(|lost| with(lost.into_iter().map(|number| (number, Fate::Lost)).collect())),
    );
    // The write that was under way is torn in every way, what came before it is all there or all lost.
    for (place, (number, len)) in writes.iter().enumerate().rev().take(2) {
        let most = if place + 1 == writes.len() { bounds.tears } else { bounds.tears / 4 };
        let tears = if window.is_into_file(*number) { short(*len, most) } else { tears(*len, most) };
        for fate in tears {
            origins.push(with(BTreeMap::from([(*number, fate)])));
            let others = writes.iter().filter(|(other, _)| other != number);
            let mut all: BTreeMap<_, _> = others.map(|(other, _)| (*other, Fate::Lost)).collect();
            all.insert(*number, fate);
            origins.push(with(all));
        }
    }
    if let Some(number) = window.torn_loader() {
        origins.push(with(BTreeMap::from([(number, Fate::Only { from: 0, to: 512 })])));
        origins.push(with(BTreeMap::from([(number, Fate::Only { from: 512, to: 1024 })])));
    }
    let lost: BTreeMap<usize, Fate> = writes.iter().map(|(number, _)| (*number, Fate::Lost)).collect();
    origins.extend(first_names(window, cut, &writes));
    for files in file_fates(window, bounds) {
        origins.push(Origin { files: files.clone(), ..Origin::at(cut) });
        if !lost.is_empty() {
            origins.push(Origin { files, writes: lost.clone(), ..Origin::at(cut) });
        }
    }
    origins
}

/// Each number of changes of names that may have happened, with all content kept, none, and each file's lost or zero.
fn first_names(window: &Window, cut: usize, writes: &[(usize, usize)]) -> Vec<Origin> {
    let lost = writes.iter().map(|(number, _)| (*number, Fate::Lost)).collect();
    let mut contents = vec![BTreeMap::new(), lost];
    for (number, len) in writes {
        let zeros = Fate::Hole { from: 0, to: *len };
        contents.extend([Fate::Lost, zeros].map(|fate| BTreeMap::from([(*number, fate)])));
    }
    let origin = |names: Option<usize>, writes: &BTreeMap<usize, Fate>| Origin {
        names,
        writes: writes.clone(),
        ..Origin::at(cut)
    };
    match window.names() {
        // Nothing but what is tried anyway.
        0 => Vec::new(),
        count => {
            let all = (0..count).map(Some).chain([None]);
            all.flat_map(|names| contents.iter().map(move |writes| origin(names, writes))).collect()
        }
    }
}

/// Sets of writes that are lost together.
fn subsets(writes: &[(usize, usize)], bounds: &Bounds) -> Vec<Vec<usize>> {
    let numbers: Vec<usize> = writes.iter().map(|(number, _)| *number).collect();
    let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    if count <= bounds.subset_writes.min(16) {
        let lost = |mask: u32| numbers.iter().zip(0..).filter(move |(_, bit)| mask >> bit & 1 == 1);
        return (1..1 << count).map(|mask| lost(mask).map(|(number, _)| *number).collect()).collect();
    }
    let mut sets = vec![numbers.clone()];
    for (place, number) in numbers.iter().enumerate() {
        sets.push(vec![*number]);
        sets.push(numbers.iter().filter(|other| *other != number).copied().collect());
        sets.push(numbers[place..].to_vec());
    }
    sets
}

/// Ways to tear a write of `len` bytes, at most `most` of them: its first units, all but these, a hole in its middle;
/// in sectors near both ends, in blocks between.
fn tears(len: usize, most: usize) -> Vec<Fate> {
    let sectors = (512..len).step_by(512).filter(|at| *at < 8192 || at + 4096 >= len || at % 4096 == 0);
    let mut tears = Vec::new();
    for at in sectors {
        tears.push(Fate::Only { from: 0, to: at });
        tears.push(Fate::Hole { from: 0, to: at });
        if at + 512 < len {
            tears.push(Fate::Hole { from: at, to: at + 512 });
        }
        if at % 4096 == 0 && at + 4096 < len {
            tears.push(Fate::Hole { from: at, to: at + 4096 });
        }
    }
    thinned(tears, most)
}

/// From so many tears on, a short write of a line into a file is torn behind each of its bytes.
const LINE: usize = 24;

/// Ways in which a write of `len` bytes into a file may be short: only its first bytes, the others zeros or not there. At
/// most about `most`; where that is much, all of those of a line.
fn short(len: usize, most: usize) -> Vec<Fate> {
    let most = if len <= 512 && most >= LINE { 2 * len } else { most };
    let lengths = (1..len).flat_map(|at| [Fate::Only { from: 0, to: at }, Fate::Hole { from: at, to: len }]);
    let mut all = vec![Fate::Hole { from: 0, to: len }];
    all.extend(thinned(lengths.collect(), most));
    all
}

/// At most `most` of these, the first ones and then evenly spread.
fn thinned<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let first = most / 2;
    let rest = all.len().saturating_sub(first);
    let step = rest.div_ceil((most - first).max(1)).max(1);
    let keep = |at: usize| at < first || (at - first).is_multiple_of(step);
    all.into_iter().enumerate().filter(|(at, _)| keep(*at)).take(most).map(|(_, one)| one).collect()
}

/// The conditions that a touched file can be in, besides as it was written.
fn conditions(window: &Window, name: &str, most: usize) -> Vec<FileFate> {
    let mut all = vec![FileFate::Absent, FileFate::Old];
    for old in [true, false] {
        let Some(length) = window.length(name, old) else { continue };
        all.push(FileFate::Zero { old });
        let lengths = [0, length / 2 / 512 * 512, length.saturating_sub(1)];
        all.extend(lengths.map(|length| FileFate::Short { old, length }));
        let sectors = (512..length).step_by(512).map(|length| FileFate::Short { old, length });
        all.extend(thinned(sectors.collect(), most));
    }
    all
}

/// What becomes of the touched files: each alone in every condition, and all together as far as the bound goes.
fn file_fates(window: &Window, bounds: &Bounds) -> Vec<BTreeMap<String, FileFate>> {
    let touched = window.touched();
    let mut all = Vec::new();
    let mut together = vec![BTreeMap::new()];
    for name in &touched {
        let conditions = conditions(window, name, bounds.files);
        all.extend(conditions.iter().map(|fate| BTreeMap::from([((*name).clone(), *fate)])));
        let more: Vec<BTreeMap<String, FileFate>> = together
            .iter()
            .flat_map(|files| {
                let with = |fate: &FileFate| {
                    let mut files = files.clone();
                    files.insert((*name).clone(), *fate);
                    files
                };
                std::iter::once(files.clone()).chain(conditions.iter().take(6).map(with)).collect::<Vec<_>>()
            })
            .collect();
        together = thinned(more, bounds.files.max(1));
    }
    all.extend(together.into_iter().filter(|files| files.len() > 1));
    all
}

/// One state after `cut` events, drawn.
fn drawn(window: &Window, cut: usize, draw: &mut Draw) -> Origin {
    let mut origin = Origin::at(cut);
    if window.names() > 0 && draw.once_in(2) {
        origin.names = Some(draw.below(window.names()));
    }
    for (number, len) in window.writes() {
        let unit = if draw.once_in(2) { 512 } else { 4096 };
        let is_into_file = window.is_into_file(number);
        let fate = match draw.below(4) {
            0 | 1 => None,
            2 => Some(Fate::Lost),
            _ if is_into_file && draw.once_in(2) => Some(Fate::Only { from: 0, to: draw.below(len) }),
            _ if is_into_file => Some(Fate::Hole { from: draw.below(len), to: len }),
            _ if len > unit => Some(Fate::Drawn { unit, seed: draw.word() }),
            _ => Some(Fate::Lost),
        };
        origin.writes.extend(fate.map(|fate| (number, fate)));
    }
    for name in window.touched() {
        let unit = if draw.once_in(2) { 512 } else { 4096 };
        let old = window.length(name, false).is_none() || draw.once_in(2);
        let length = window.length(name, old);
        let fate = match (draw.below(6), length) {
            (0, _) => None,
            (1, _) => Some(FileFate::Old),
            (2, _) | (_, None) => Some(FileFate::Absent),
            (3, Some(length)) => Some(FileFate::Short { old, length: draw.below(length) }),
            (4, Some(_)) => Some(FileFate::Zero { old }),
            (_, Some(_)) => Some(FileFate::Drawn { unit, seed: draw.word() }),
        };
        origin.files.extend(fate.map(|fate| (name.clone(), fate)));
    }
    origin
}
