//! What was proven, as rows.

use std::fmt;

use serde::Serialize;

use super::super::mishaps::Found;
use super::super::{Report, Violation};
use super::LEAST;

/// One scenario.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub name: String,
    pub events: usize,
    pub distinct: usize,
    pub second: usize,
    pub third: usize,
    pub borders: usize,
    pub seen_borders: usize,
    /// Looking closer showed no more states: these are all.
    pub exhausted: bool,
    pub set: u64,
    pub seconds: f64,
    pub violations: Vec<String>,
}

impl Row {
    /// What checking it showed; `exhausted` says that these are all states.
    pub(super) fn of(name: &str, report: &Report, exhausted: bool, seconds: f64) -> Self {
        Self {
            name: name.into(),
            events: report.events,
            distinct: report.distinct,
            second: report.second,
            third: report.third,
            borders: report.borders,
            seen_borders: report.seen_borders,
            exhausted,
            set: report.set,
            seconds,
            violations: report.violations.iter().map(ToString::to_string).collect(),
        }
    }

    /// Says what was found while the others are still checked.
    pub(super) fn tell(&self) {
        let told: Vec<&str> = self.violations.iter().take(5).map(String::as_str).collect();
        eprintln!("{}", [&[self.to_string().as_str()], told.as_slice()].concat().join("\n  "));
    }
}

impl FaultRow {
    /// What looking for it showed; the violation that shows it says `sign`.
    pub(super) fn of(step: String, name: &str, sign: &str, violations: &[Violation]) -> Self {
        let found = violations.iter().any(|violation| violation.why.contains(sign));
        Self { step, name: name.into(), found, violations: violations.len() }
    }

    /// Says so where it was not found.
    pub(super) fn tell(&self) {
        if !self.found {
            eprintln!("NOT FOUND: {}: {}", self.step, self.name);
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, events, distinct, second, third, seconds, violations, .. } = self;
        let violations = violations.len();
        write!(
            f,
            "{name:<48} {events:>6} {distinct:>9} {second:>9} {third:>9} {violations:>6} {seconds:>8.1}{}",
            if self.exhausted { " all there are" } else { "" }
        )
    }
}

/// One family of failing media in one scenario.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MishapRow {
    pub scenario: String,
    pub family: String,
    pub states: usize,
    pub violations: Vec<String>,
    #[serde(skip)]
    of: Found,
}

impl MishapRow {
    pub(super) fn of(scenario: &str, of: Found) -> Self {
        Self {
            scenario: scenario.into(),
            family: format!("{:?}", of.family),
            states: of.states,
            violations: of.violations.clone(),
            of,
        }
    }
}

/// One planted fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FaultRow {
    pub step: String,
    pub name: String,
    pub found: bool,
    pub violations: usize,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Table {
    pub seed: u64,
    pub rows: Vec<Row>,
    pub mishaps: Vec<MishapRow>,
    pub faults: Vec<FaultRow>,
    pub seconds: f64,
    /// What was not reached.
    pub short: Vec<String>,
}

impl Table {
    /// Distinct states of all rows.
    pub(super) fn states(&self) -> usize {
        self.rows.iter().map(|row| row.distinct).sum()
    }

    /// A run of everything must reach so many states.
    pub(super) fn require_reach(&mut self, least: usize) {
        let mut short = Vec::new();
        for row in &self.rows {
            if row.distinct < LEAST && !row.exhausted {
                short.push(format!("{}: {} distinct states, {LEAST} are asked for", row.name, row.distinct));
            }
            if row.seen_borders < row.borders {
                short.push(format!("{}: {} of {} step borders", row.name, row.seen_borders, row.borders));
            }
        }
        if self.states() < least {
            short.push(format!("{} distinct states in all, {least} are asked for", self.states()));
        }
        self.short = short;
    }

    pub(super) fn held(&self) -> bool {
        let media = self.mishaps.iter().all(|row| row.violations.is_empty());
        let rows = self.rows.iter().all(|row| row.violations.is_empty());
        rows && media && self.short.is_empty() && self.faults.iter().all(|fault| fault.found)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["events", "distinct", "2nd cut", "3rd cut", "wrong", "seconds"];
        let [events, distinct, second, third, wrong, seconds] = heads;
        writeln!(
            f,
            "{:<48} {events:>6} {distinct:>9} {second:>9} {third:>9} {wrong:>6} {seconds:>8}",
            "scenario"
        )?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "\nfailing media")?;
        for family in super::mishaps::Family::ALL {
            let rows: Vec<&MishapRow> = self.mishaps.iter().filter(|row| row.of.family == family).collect();
            let states: usize = rows.iter().map(|row| row.states).sum();
            let wrong: usize = rows.iter().map(|row| row.violations.len()).sum();
            writeln!(f, "{family:?}: {states} states, {wrong} violations")?;
            for row in rows {
                let told = row.violations.iter().take(3);
                told.clone().try_for_each(|why| writeln!(f, "  {}: {why}", row.scenario))?;
            }
        }
        writeln!(f, "\nplanted faults")?;
        for fault in &self.faults {
            let found = if fault.found { "found" } else { "NOT FOUND" };
            writeln!(f, "{:<32} {:<40} {found} ({} violations)", fault.step, fault.name, fault.violations)?;
        }
        self.short.iter().try_for_each(|short| writeln!(f, "short: {short}"))?;
        let all = self.states();
        let of = |count: fn(&Row) -> usize| self.rows.iter().map(count).sum::<usize>();
        let violations = of(|row| row.violations.len())
            + self.mishaps.iter().map(|row| row.violations.len()).sum::<usize>();
        let found = self.faults.iter().filter(|fault| fault.found).count();
        let set = self.rows.iter().fold(0, |set, row| set ^ row.set);
        #[expect(clippy::cast_precision_loss, reason = "a rate, to be read")]
        let rate = all as f64 / self.seconds.max(0.001);
        write!(
            f,
            "\n{} scenarios, {all} distinct states ({} after a second cut, {} after a third), {violations} violations, \
             {found} of {} planted faults found; seed {}, set {set:016x}; {:.0} s, {rate:.0} states/s",
            self.rows.len(),
            of(|row| row.second),
            of(|row| row.third),
            self.faults.len(),
            self.seed,
            self.seconds,
        )
    }
}
