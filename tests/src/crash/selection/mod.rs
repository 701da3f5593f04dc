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

use slotd::domain::plan::SelectStep;
use slotd::store::RevertRequest;

use super::states::{Bounds, CrashState, Origin, each_after_cuts, lost_neighbours, rebuild};
use super::{Check, Cut, During, Report};
use crate::recorder::{Digest, Event, Media, Recorder};
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
    /// As many of them come from one start, where it has them.
    pub of_one_start: usize,
}

impl Sample {
    /// Nothing lost, no second cut, no lost neighbour: for planted faults.
    pub const fn once() -> Self {
        let bounds = Bounds::quick().once();
        Self {
            bounds,
            again: bounds,
            neighbours: false,
            losses: 0,
            distinct: 0,
            again_at_least: 0,
            of_one_start: 1,
        }
    }

    /// For every run of the tests.
    pub const fn quick() -> Self {
        let again = Bounds { tears: 12, drawn: 3, ..Bounds::quick().again() };
        let bounds = Bounds::quick();
        Self {
            bounds,
            again,
            neighbours: true,
            losses: 60,
            distinct: 510,
            again_at_least: 60,
            of_one_start: 1,
        }
    }

    /// For `cargo xtask prove`: as far as `bounds` goes, `distinct` states of each scenario where there are so many.
    pub const fn thorough(bounds: Bounds, distinct: usize) -> Self {
        let again = Bounds { repeat: 0, ..bounds };
        let again_at_least = distinct / 4;
        Self { bounds, again, neighbours: true, losses: distinct, distinct, again_at_least, of_one_start: 1 }
    }

    /// For `cargo xtask prove --deep`: the same with fewer starts that are cut again, each in more ways, as a start has to
    /// be followed through for the first of them. What is not there is not looked for long: other scenarios have it.
    pub const fn deep(bounds: Bounds, distinct: usize) -> Self {
        Self { of_one_start: 12, ..Self::thorough(Bounds { misses: 100, ..bounds }, distinct) }
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
    fn borders(&self) -> Vec<Digest> {
        let (mut now, mut last, mut borders) = (self.start.clone(), None, Vec::new());
        for (event, step) in self.log.iter().zip(law::steps(&self.start, &self.log)) {
            if last != Some(step) {
                borders.push(now.digest());
            }
            last = Some(step);
            now.apply(event);
        }
        borders.push(now.digest());
        borders
    }

    /// Cuts it everywhere, starts it, cuts that start everywhere, and the start after that.
    pub fn check(&self, sample: &Sample) -> Report {
        checker::check(self, sample)
    }

    /// Checks the state that these cuts lead to.
    pub fn replay(&self, cuts: &[Cut]) -> Check<()> {
        checker::replay(self, cuts)
    }

    fn right(&self) -> Vec<Vec<Verdict>> {
        right_after_each(&self.start, &self.log, self.first, &self.flips)
    }

    /// Hands on the states after a cut, and those with something lost.
    fn first_cuts(&self, bounds: &Bounds, sample: &Sample, visit: &mut dyn FnMut(State)) {
        let right = self.right();
        each_after_cuts(&self.start, &self.log, &right, bounds, &mut |state| visit(state.into()));
        if sample.neighbours {
            lost_neighbours(&self.start, &self.log, &right, &mut |state| visit(state.into()));
        }
        let (mut known, mut all) = (HashSet::new(), Vec::new());
        for number in 0..=self.log.len() {
            if sample.losses > 0 {
                all.extend(self.losses(number).into_iter().filter(|lost| known.insert(lost.media.digest())));
            }
        }
        spread(&all, sample.losses).cloned().for_each(visit);
    }

    /// The media behind the first events with the loader's settings, or both records of the state, lost in each way.
    fn losses(&self, events: usize) -> Vec<State> {
        if state(&self.start).is_none() {
            return Vec::new();
        }
        let now = rebuild(&self.start, &self.log, &Origin::at(events));
        let settings = loader::losses(&now).into_iter().map(|lost| (lost, true));
        let records = self.lost_states(&now).into_iter().map(|lost| (lost, false));
        let lost = |((media, what), settings): ((Media, &str), bool)| State {
            media,
            right: None,
            cuts: vec![Cut { lost: Some(what.into()), ..Cut::new(During::Run, Origin::at(events)) }],
            lost: Lost { state: !settings, loader: settings || self.blind, neighbour: false },
            known: false,
        };
        settings.chain(records).map(lost).collect()
    }

    /// The state that a first cut leads to.
    fn state_at(&self, cut: &Cut) -> Option<State> {
        if cut.lost.is_some() {
            return self.losses(cut.origin.cut).into_iter().find(|state| state.cuts.first() == Some(cut));
        }
        let (all, origin, at) = (self.right(), cut.origin.clone(), cut.origin.cut);
        // A block of the loader that was not written at all is right, too.
        let last = at.checked_sub(1).filter(|last| matches!(self.log.get(*last), Some(Event::Loader { .. })));
        let earlier = last.filter(|last| origin.writes.contains_key(last)).and_then(|last| all.get(last));
        let right = earlier.into_iter().chain(all.get(at)).flatten().copied().collect();
        let media = rebuild(&self.start, &self.log, &origin);
        Some(CrashState { media, right, origin, known: false, repeat: false }.into())
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
struct State {
    media: Media,
    /// What may become of it; where it is not said, whatever the oracle allows.
    right: Option<Vec<Verdict>>,
    /// How it came about.
    cuts: Vec<Cut>,
    /// What is lost besides what a cut takes.
    lost: Lost,
    /// It was handed on before; only what may become of it is narrower now.
    known: bool,
}

impl From<CrashState<Verdict>> for State {
    fn from(state: CrashState<Verdict>) -> Self {
        Self {
            media: state.media,
            right: Some(state.right),
            lost: Lost { neighbour: state.origin.lost_neighbour(), ..Lost::default() },
            cuts: vec![Cut::new(During::Run, state.origin)],
            known: state.known,
        }
    }
}

impl State {
    /// What nobody touched is lost in one start at most.
    fn is_cut_again(&self) -> bool {
        !self.known && !self.lost.neighbour
    }

    /// These media, after another cut in the start of this one.
    fn cut_again(&self, origin: Origin, media: Media) -> Self {
        let lost = Lost { neighbour: origin.lost_neighbour(), ..self.lost };
        let cuts = [self.cuts.as_slice(), &[Cut::new(During::Start, origin)]].concat();
        Self { media, right: None, cuts, lost, known: false }
    }
}

/// States drawn after each event at most, where there are few others.
const DRAWN: usize = 256;

/// At most `count` of `all`, evenly.
fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    let count = count.min(all.len());
    (0..count).filter_map(move |index| all.get((2 * index + 1) * all.len() / (2 * count)))
}
