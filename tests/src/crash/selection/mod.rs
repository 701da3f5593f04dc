//! The crash checker for the second table: selecting, trying and confirming, cut everywhere, cut again in the start that
//! follows, and a third time in the start after that; and cut everywhere with the loader's settings lost.

mod checker;
pub mod faults;
pub mod ground;
pub mod law;
pub mod list;
pub mod loader;
pub mod mishaps;
pub mod oracle;
pub mod power;
pub mod scenarios;

use std::collections::HashSet;
use std::fmt;

use slotd::device::loader::uefi::LOADER_CONF;
use slotd::domain::plan::SelectStep;
use slotd::store::RevertRequest;

use super::states::{Bounds, CrashState, Key, after_cuts, key, lost_neighbours};
use crate::recorder::{Event, Media, Recorder};
use ground::Ground;
use law::{Flip, Lost, Verdict, right_after_each, state};
use power::{Came, Health, Power};

/// What is done again once everything has come to rest, to end as if nothing had happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Nothing: starting is enough.
    Start,
    /// An operator selects this slot.
    Select(usize),
    /// This slot is selected, tried and confirmed, unless it has been.
    Confirm(usize),
    /// The state is reset.
    Reset,
}

/// Something that was recorded, to be cut everywhere.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// The firmware.
    pub ground: &'a Ground,
    /// What it is.
    pub name: &'static str,
    /// The media before it.
    pub start: Media,
    /// What happened: as recorded, or altered to plant a fault.
    pub log: Vec<Event>,
    /// The media after it, undisturbed.
    pub finished: Media,
    /// How the firmware in slot 1, 2, 3 behaves afterwards.
    pub health: [Health; 3],
    /// Whether the loader can clear its one-shot entry.
    pub forgets: bool,
    /// Whether the loader's settings are lost before it.
    pub blind: bool,
    /// What becomes of a cut before the first event.
    pub first: Verdict,
    /// What each step makes of that.
    pub flips: Vec<Flip>,
    /// What is done again.
    pub again: Again,
}

/// How closely to look.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The states after a cut: every one of them is started.
    pub bounds: Bounds,
    /// The states after a cut in a start.
    pub again: Bounds,
    /// Whether a file is lost that nobody touched.
    pub neighbours: bool,
    /// States with something lost that no cut takes: the loader's settings, or both records of the state.
    pub losses: usize,
    /// Distinct states in all; second and third cuts make it up.
    pub distinct: usize,
    /// States after a second cut that are started at least, and after a third.
    pub again_at_least: usize,
}

impl Sample {
    /// Nothing lost, no second cut, no lost neighbour: for planted faults.
    pub const fn once() -> Self {
        let bounds = Bounds::quick().once();
        Self { bounds, again: bounds, neighbours: false, losses: 0, distinct: 0, again_at_least: 0 }
    }

    /// For every run of the tests.
    pub const fn quick() -> Self {
        let again = Bounds { tears: 12, drawn: 3, ..Bounds::quick().again() };
        let bounds = Bounds::quick();
        Self { bounds, again, neighbours: true, losses: 60, distinct: 510, again_at_least: 60 }
    }

    /// For `cargo xtask prove`: as far as `bounds` goes, `distinct` states of each scenario where there are so many.
    pub const fn thorough(bounds: Bounds, distinct: usize) -> Self {
        let again = Bounds { repeat: 0, ..bounds };
        Self { bounds, again, neighbours: true, losses: distinct, distinct, again_at_least: distinct / 4 }
    }
}

/// What checking a scenario showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Events that were recorded.
    pub events: usize,
    /// Borders between the steps of the second table, the beginning and the end among them.
    pub borders: usize,
    /// Of these: so many were left as they are in some state.
    pub seen_borders: usize,
    /// Distinct contents of the media after a cut.
    pub states: usize,
    /// Of these: a file of the ESP that nobody touched is lost.
    pub neighbours: usize,
    /// Contents after a cut with the loader's settings lost that were started.
    pub losses: usize,
    /// Contents after a second cut that were started, and how many were made to choose from.
    pub second: (usize, usize),
    /// Contents after a third cut that were started, and how many were made to choose from.
    pub third: (usize, usize),
    /// Distinct contents of the media, all of these together.
    pub distinct: usize,
    /// What should not be, with the state it was found in.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, states, neighbours, losses, second, third, distinct, violations, .. } = self;
        write!(
            f,
            "{distinct} distinct states: {events} events, {states} after a cut ({neighbours} with a lost neighbour), \
             {losses} with lost settings, {} of {} after a second cut, {} of {} after a third; {} of {} borders of \
             steps; {} violations",
            second.0,
            second.1,
            third.0,
            third.1,
            self.seen_borders,
            self.borders,
            violations.len()
        )?;
        violations.iter().take(8).try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl Scenario<'_> {
    fn power(&self) -> Power<'_> {
        Power {
            ground: self.ground,
            before: &self.start,
            health: self.health,
            forgets: self.forgets,
            lost: Lost { state: state(&self.start).is_none(), neighbour: false, loader: self.blind },
            starts: None,
        }
    }

    /// The steps of the second table that were recorded.
    pub fn steps(&self) -> Vec<SelectStep> {
        let mut steps: Vec<SelectStep> = law::steps(&self.start, &self.log).into_iter().flatten().collect();
        steps.dedup();
        steps
    }

    /// The media at the beginning, at the end, and wherever one step of the second table follows another.
    fn borders(&self) -> Vec<Key> {
        let (mut now, mut last, mut borders) = (self.start.clone(), None, Vec::new());
        for (event, step) in self.log.iter().zip(law::steps(&self.start, &self.log)) {
            if last != Some(step) {
                borders.push(key(&now));
            }
            last = Some(step);
            now.apply(event);
        }
        borders.push(key(&now));
        borders
    }

    /// Cuts it everywhere, starts it, cuts that start everywhere, and the start after that.
    pub fn check(&self, sample: &Sample) -> Report {
        checker::check(self, sample)
    }

    /// The states after a cut, and those with something lost.
    fn cuts(&self, sample: &Sample) -> Vec<Cut> {
        let right = right_after_each(&self.start, &self.log, self.first, &self.flips);
        let mut bounds = sample.bounds;
        let mut states = after_cuts(&self.start, &self.log, &right, &bounds);
        // A short log: what it writes is torn in more ways.
        while states.len() < sample.distinct / 4 && bounds.drawn < DRAWN {
            bounds.drawn = (2 * bounds.drawn).max(4);
            states = after_cuts(&self.start, &self.log, &right, &bounds);
        }
        if sample.neighbours {
            states.extend(neighbours(&self.start, &self.log, &right));
        }
        let lost = self.losses(sample.losses);
        states.into_iter().map(Cut::from).chain(lost).collect()
    }

    /// The media behind each event with the loader's settings, or both records of the state, lost in each way; `sample`
    /// of them.
    fn losses(&self, sample: usize) -> Vec<Cut> {
        if sample == 0 || state(&self.start).is_none() {
            return Vec::new();
        }
        let (mut now, mut known, mut all) = (self.start.clone(), HashSet::new(), Vec::new());
        for number in 0..=self.log.len() {
            if let Some(event) = number.checked_sub(1).and_then(|last| self.log.get(last)) {
                now.apply(event);
            }
            let settings = loader::losses(&now).into_iter().map(|lost| (lost, true));
            let records = self.lost_states(&now).into_iter().map(|lost| (lost, false));
            for ((media, what), settings) in settings.chain(records) {
                let lost = Lost { state: !settings, loader: settings || self.blind, neighbour: false };
                if known.insert(media.digest()) {
                    let what = format!("after event {number}: {what}");
                    all.push(Cut { media, right: None, what, lost });
                }
            }
        }
        spread(&all, sample).cloned().collect()
    }

    /// Without a state no start is counted, so what dies is started for ever, be it the default or what the loader cannot
    /// forget: that is not asked here.
    fn lost_states(&self, media: &Media) -> Vec<(Media, &'static str)> {
        let default = loader::seen(media).default.and_then(|entry| entry.slot());
        let default = default.map_or(0, |slot| slot.get() as usize);
        match self.power().health(default) {
            Health::Dead => Vec::new(),
            _ if !self.forgets => Vec::new(),
            _ => vec![
                (scenarios::lost_state(media, 0), "both records of the state zero"),
                (scenarios::lost_state(media, 0x5a), "both records of the state garbage"),
            ],
        }
    }

    /// Does it again on media that have come to rest.
    fn repeat(&self, settled: &Media) -> anyhow::Result<Media> {
        let recorder = Recorder::new(settled.clone());
        let running = loader::seen(settled).default.and_then(|entry| entry.slot());
        let running = running.map_or(0, |slot| slot.get() as usize);
        match self.again {
            Again::Start => {}
            Again::Select(slot) => self.select(&recorder, running, slot)?,
            Again::Confirm(slot) if running == slot => {}
            Again::Confirm(slot) => {
                self.select(&recorder, running, slot)?;
                let mut health = self.health;
                health[slot - 1] = Health::Good;
                let came = Power { health, ..self.power() }.start(&recorder).map_err(anyhow::Error::msg)?;
                anyhow::ensure!(came == Came::Up(slot, true), "done again, {came:?} came up");
            }
            Again::Reset => self.ground.assemble(&recorder, running).reset_state("in a test")?,
        }
        Ok(recorder.media())
    }
}

impl Scenario<'_> {
    /// An older firmware is gone back to, a newer one is tested and selected.
    fn select(&self, recorder: &Recorder, running: usize, slot: usize) -> anyhow::Result<()> {
        if slot > running {
            return self.ground.activate(recorder, running, slot);
        }
        let request = RevertRequest { slot: Some(ground::id(slot)), accept_config: None };
        self.ground.assemble(recorder, running).revert("in a test", &request, "the test")?;
        Ok(())
    }
}

/// A state that is started.
#[derive(Clone, Debug)]
struct Cut {
    media: Media,
    /// What may become of it; where it is not said, whatever the oracle allows.
    right: Option<Vec<Verdict>>,
    /// How it came about.
    what: String,
    /// What is lost besides what a cut takes.
    lost: Lost,
}

impl From<CrashState<Verdict>> for Cut {
    fn from(state: CrashState<Verdict>) -> Self {
        let lost = Lost { neighbour: state.neighbour, ..Lost::default() };
        Self { media: state.media, right: Some(state.right), what: state.origin.to_string(), lost }
    }
}

/// States drawn after each event at most, where there are few others.
const DRAWN: usize = 256;

/// The states with a file lost that nobody touched. `loader.conf` lies in a directory of its own, so neither it nor a
/// boot image is lost with the other.
fn neighbours<R: Clone + PartialEq>(start: &Media, log: &[Event], right: &[Vec<R>]) -> Vec<CrashState<R>> {
    let of_conf = |event: &Event| matches!(event, Event::EspCreate { name } | Event::EspWrite { name, .. } | Event::EspSyncFile { name } if name == LOADER_CONF);
    let mut states = lost_neighbours(start, log, right);
    states.retain(|state| {
        let last = state.origin.cut.checked_sub(1).and_then(|last| log.get(last));
        !last.is_some_and(of_conf) && !state.origin.files.contains_key(LOADER_CONF)
    });
    states
}

/// At most `count` of `all`, evenly.
fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    let count = count.min(all.len());
    (0..count).filter_map(move |index| all.get((2 * index + 1) * all.len() / (2 * count)))
}
