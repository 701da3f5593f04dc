//! A state in a small file: how it comes about, to be shown again; and made as small as it can be.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::stage::Stage;
use super::states::{Fate, FileFate, Origin};
use super::{Check, Cut, Scenario, Violation, data, selection};

/// What leads to a state. The media are not stored: the scenario is recorded anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Which scenario, as `--list` names it.
    pub scenario: String,
    /// The fault that was planted, as the list of faults names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The cuts, one after the other.
    pub cuts: Vec<Cut>,
    /// What was wrong; nothing where it passed.
    pub violation: Option<String>,
}

impl Case {
    /// Reads one.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no case", path.display()))
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Records the scenario, with the fault, and checks the one state: what is wrong with it now.
    pub fn replay(&self, stage: &Stage) -> anyhow::Result<Option<String>> {
        let scenario = stage.record(&self.scenario, self.fault.as_deref())?;
        Ok(replay(&*scenario, &self.cuts).err())
    }
}

/// A scenario of either table, to be looked at state by state.
pub trait Replay {
    /// Checks the state that these cuts lead to.
    fn replay(&self, cuts: &[Cut]) -> Check<()>;
}

impl Replay for Scenario<'_> {
    fn replay(&self, cuts: &[Cut]) -> Check<()> {
        Scenario::replay(self, cuts)
    }
}

impl Replay for selection::Scenario<'_> {
    fn replay(&self, cuts: &[Cut]) -> Check<()> {
        selection::Scenario::replay(self, cuts)
    }
}

impl Replay for data::Scenario<'_> {
    fn replay(&self, cuts: &[Cut]) -> Check<()> {
        data::Scenario::replay(self, cuts)
    }
}

fn replay(scenario: &dyn Replay, cuts: &[Cut]) -> Check<()> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scenario.replay(cuts)));
    done.unwrap_or_else(|_| Err("panicked".into()))
}

/// The kind of a violation: its first words, without what differs from state to state.
fn kind(why: &str) -> String {
    let words = why.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 1);
    words.take(4).collect::<Vec<_>>().join(" ")
}

/// The smallest cuts found that violate in the same way: fewest losses, smallest tear, earliest cut. `None` where the
/// violation does not come back at all.
pub fn shrink(scenario: &dyn Replay, violation: &Violation) -> Option<Violation> {
    let kind = kind(&violation.why);
    let shown = |cuts: &[Cut]| replay(scenario, cuts).err().filter(|why| self::kind(why) == kind);
    let mut best = Violation { cuts: violation.cuts.clone(), why: shown(&violation.cuts)? };
    loop {
        let smaller = candidates(&best.cuts).into_iter().filter(|cuts| weight(cuts) < weight(&best.cuts));
        let found = smaller.into_iter().find_map(|cuts| shown(&cuts).map(|why| Violation { cuts, why }));
        let Some(found) = found else { return Some(best) };
        best = found;
    }
}

fn weight(cuts: &[Cut]) -> (usize, usize, usize, usize) {
    let all = cuts.iter().map(|cut| cut.origin.weight());
    let (kinds, size, cut) = all.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    (cuts.len(), kinds, size, cut)
}

fn candidates(cuts: &[Cut]) -> Vec<Vec<Cut>> {
    let mut all: Vec<Vec<Cut>> = (1..cuts.len()).map(|len| cuts[..len].to_vec()).collect();
    for (place, cut) in cuts.iter().enumerate() {
        for origin in smaller(&cut.origin) {
            let mut changed = cuts.to_vec();
            changed[place].origin = origin;
            all.push(changed);
        }
    }
    all
}

fn smaller(origin: &Origin) -> Vec<Origin> {
    let mut all = vec![Origin::at(origin.cut)];
    for (number, fate) in &origin.writes {
        let with = |fate: Option<Fate>| {
            let mut origin = origin.clone();
            match fate {
                Some(fate) => origin.writes.insert(*number, fate),
                None => origin.writes.remove(number),
            };
            origin
        };
        all.extend([with(None), with(Some(Fate::Lost))]);
        match *fate {
            Fate::Drawn { unit, .. } => all.extend([
                with(Some(Fate::Only { from: 0, to: unit })),
                with(Some(Fate::Hole { from: 0, to: unit })),
            ]),
            Fate::Only { from, to } if to - from > 512 => {
                let half = (to - from) / 2 / 512 * 512;
                all.extend([
                    with(Some(Fate::Only { from, to: from + half.max(512) })),
                    with(Some(Fate::Only { from, to: to - 512 })),
                ]);
            }
            Fate::Hole { from, to } if to - from > 512 => {
                let half = (to - from) / 2 / 512 * 512;
                all.extend([
                    with(Some(Fate::Hole { from, to: from + half.max(512) })),
                    with(Some(Fate::Hole { from: from + 512, to })),
                ]);
            }
            Fate::Lost | Fate::Only { .. } | Fate::Hole { .. } => {}
        }
    }
    for name in origin.files.keys() {
        let with = |fate: Option<FileFate>| {
            let mut origin = origin.clone();
            match fate {
                Some(fate) => origin.files.insert(name.clone(), fate),
                None => origin.files.remove(name),
            };
            origin
        };
        all.extend([with(None), with(Some(FileFate::Old)), with(Some(FileFate::Absent))]);
    }
    all.extend(origin.names.map(|_| Origin { names: None, ..origin.clone() }));
    let last = origin.cut.checked_sub(1).filter(|last| origin.writes.keys().all(|number| number < last));
    all.extend(last.map(|cut| Origin { cut, ..origin.clone() }));
    all
}
