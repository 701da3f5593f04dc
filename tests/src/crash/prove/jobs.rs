//! What there is to check, piece by piece, and the threads that do it.

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, anyhow};

use super::super::case::{Case, Replay, shrink};
use super::super::cores::{cores, lock};
use super::super::selection::ground::Ground;
use super::super::selection::{Sample, list};
use super::super::stage::Stage;
use super::super::states::{Bounds, loose};
use super::super::{Violation, data, faults, mishaps, scenarios};
use super::table::{FaultRow, MishapRow, Row, Table};
use super::{Args, LEAST, SMALL};

/// States after a first cut of each scenario of the first table, where nothing else is asked for.
const FIRST: usize = 2600;
/// Distinct states of each scenario of the second table, where nothing else is asked for.
const SECOND: usize = 1300;
/// States that are drawn from the seed after each event, in the second table.
const DRAWN: usize = 12;
/// Distinct states of each scenario of the data partition, where nothing else is asked for.
const DATA: usize = 1300;
/// States of one family of failing media and one scenario.
const MISHAPS: usize = 16;
/// Violations of a scenario that are shrunk and kept.
const KEPT: usize = 3;

/// What one thread does at a time.
pub(super) enum Job<'a> {
    /// A scenario of the first table.
    First(&'static str, scenarios::Make),
    /// One of the second.
    Second(&'a Ground, &'static str, list::Make),
    /// One of the data partition.
    Data(&'static str, data::Make),
    /// A fault in the first table.
    Fault(&'static faults::Fault),
    /// One in the second.
    SecondFault(&'a Ground, list::Fault),
    /// One on the data partition.
    DataFault(&'static data::faults::Fault),
}

/// Every scenario, in the order of the tables, and every fault behind them.
pub(super) fn all(stage: &Stage) -> Vec<Job<'_>> {
    let mut all: Vec<_> = scenarios::ALL.iter().map(|(name, make)| Job::First(name, *make)).collect();
    for ground in &stage.grounds {
        all.extend(list::all(ground).into_iter().map(|(name, make)| Job::Second(ground, name, make)));
    }
    all.extend(data::ALL.iter().map(|(name, make)| Job::Data(name, *make)));
    all.extend(faults::ALL.iter().map(Job::Fault));
    for ground in &stage.grounds {
        all.extend(list::faults(ground).into_iter().map(|fault| Job::SecondFault(ground, fault)));
    }
    all.extend(data::faults::FAULTS.iter().map(Job::DataFault));
    all
}

impl Job<'_> {
    /// Whether it is a planted fault.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::Fault(_) | Self::SecondFault(..) | Self::DataFault(_))
    }

    /// What a scenario is called; nothing for a fault.
    pub(super) fn name(&self) -> String {
        match self {
            Self::First(name, _) | Self::Data(name, _) => (*name).into(),
            Self::Second(ground, name, _) => ground.named(name),
            Self::Fault(_) | Self::SecondFault(..) | Self::DataFault(_) => String::new(),
        }
    }

    /// How much there is to cut.
    fn events(&self, stage: &Stage) -> anyhow::Result<usize> {
        Ok(match self {
            Self::First(_, make) => make(&stage.appliance)?.log.len(),
            Self::Second(ground, _, make) => make(ground)?.log.len(),
            Self::Data(_, make) => make(&stage.appliance)?.log.len(),
            Self::Fault(_) | Self::SecondFault(..) | Self::DataFault(_) => 0,
        })
    }

    fn run(&self, args: &Args, stage: &Stage, share: Option<usize>) -> anyhow::Result<Table> {
        let name = self.name();
        let with_row = |row: Row, mishaps| {
            row.tell();
            Table { rows: vec![row], mishaps, ..Table::default() }
        };
        let with_fault = |row: FaultRow| {
            row.tell();
            Table { faults: vec![row], ..Table::default() }
        };
        let begin = Instant::now();
        let failed = || format!("cannot record {name}");
        Ok(match self {
            Self::First(name, make) => {
                let scenario = make(&stage.appliance).with_context(failed)?;
                let bounds = Bounds::ci().seeded(args.seed);
                let report = scenario.check(&bounds.reaching(share.unwrap_or(FIRST), loose(&scenario.log)));
                keep(args, name, &scenario, &report.violations)?;
                let row = Row::of(name, &report, *name == SMALL, begin.elapsed().as_secs_f64());
                let found = mishaps::check(&scenario, MISHAPS);
                with_row(row, found.into_iter().map(|one| MishapRow::of(name, one)).collect())
            }
            Self::Second(ground, _, make) => {
                let scenario = make(ground).with_context(failed)?;
                let bounds = Bounds { drawn: DRAWN, repeat: 0, ..Bounds::ci() }.seeded(args.seed);
                let mut sample =
                    share.map_or(Sample::thorough(bounds, SECOND), |share| Sample::deep(bounds, share));
                let (mut report, mut exhausted) = (scenario.check(&sample), false);
                if report.distinct < LEAST {
                    // Few writes: more of what each can leave.
                    sample.bounds.drawn *= 4;
                    let before = report.distinct;
                    report = scenario.check(&sample);
                    exhausted = report.distinct == before;
                }
                keep(args, &name, &scenario, &report.violations)?;
                with_row(Row::of(&name, &report, exhausted, begin.elapsed().as_secs_f64()), Vec::new())
            }
            Self::Data(name, make) => {
                let scenario = make(&stage.appliance).with_context(failed)?;
                let (mut states, mut exhausted) = (share.unwrap_or(DATA), false);
                let mut report = scenario.check(&data::Sample::reaching(states, args.seed));
                if report.distinct < LEAST {
                    let before = report.distinct;
                    states *= 2;
                    report = scenario.check(&data::Sample::reaching(states, args.seed));
                    exhausted = report.distinct == before;
                }
                keep(args, name, &scenario, &report.violations)?;
                with_row(Row::of(name, &report, exhausted, begin.elapsed().as_secs_f64()), Vec::new())
            }
            Self::DataFault(fault) => {
                let report = fault.planted(&stage.appliance)?.check(&data::Sample::once());
                with_fault(FaultRow::of(fault.scenario.into(), fault.name, fault.sign, &report.violations))
            }
            Self::Fault(fault) => {
                let report = fault.planted(&stage.appliance)?.check(&Bounds::quick().once());
                let step = format!("{:?}, {:?}", fault.plan, fault.step);
                with_fault(FaultRow::of(step, fault.name, fault.sign, &report.violations))
            }
            Self::SecondFault(ground, fault) => {
                let report = fault.planted(ground)?.check(&Sample::once());
                let step = ground.named(&format!("{:?}", fault.step));
                with_fault(FaultRow::of(step, fault.name, fault.sign, &report.violations))
            }
        })
    }
}

/// Writes some of what violates into files, as small as it can be.
fn keep(args: &Args, name: &str, scenario: &dyn Replay, violations: &[Violation]) -> anyhow::Result<()> {
    for (number, violation) in violations.iter().take(KEPT).enumerate() {
        let small = shrink(scenario, violation);
        let again = if small.is_some() { "" } else { " (it does not come back by itself)" };
        let Violation { cuts, why } = small.unwrap_or_else(|| violation.clone());
        std::fs::create_dir_all(&args.out)?;
        let path = args.out.join(format!("{}-{number}.json", name.replace([' ', ',', ':'], "-")));
        Case { scenario: name.into(), fault: None, cuts, violation: Some(why) }.write(&path)?;
        eprintln!("  see {}{again}", path.display());
    }
    Ok(())
}

/// Scenarios that share what is still asked for: while some make states, the others' are started.
const AT_A_TIME: usize = 4;

/// Does all of them, and adds up what they show in their order. Where a number of states is asked for, a few at a time:
/// what they do not have is looked for in the next ones, those with few writes first.
pub(super) fn work(
    args: &Args,
    stage: &Stage,
    mut jobs: Vec<Job<'_>>,
    wanted: Option<usize>,
) -> anyhow::Result<Table> {
    if wanted.is_some() {
        let mut keyed = Vec::new();
        for job in jobs {
            keyed.push((job.events(stage)?, job));
        }
        keyed.sort_by_key(|(events, _)| *events);
        jobs = keyed.into_iter().map(|(_, job)| job).collect();
    }
    let mut left = jobs.iter().filter(|job| !job.is_fault()).count();
    let mut table = Table { seed: args.seed, ..Table::default() };
    let some = if wanted.is_some() { AT_A_TIME } else { jobs.len().max(1) };
    for jobs in jobs.chunks(some) {
        let share = wanted.map(|wanted| wanted.saturating_sub(table.states()) / left.max(1));
        left -= jobs.iter().filter(|job| !job.is_fault()).count();
        let threads = if wanted.is_some() { jobs.len() } else { cores() };
        for part in all_of(jobs, threads, |job| job.run(args, stage, share)) {
            let part = part?;
            table.rows.extend(part.rows);
            table.mishaps.extend(part.mishaps);
            table.faults.extend(part.faults);
        }
    }
    Ok(table)
}

/// Runs these on all cores; what each showed, in their order.
fn all_of(
    jobs: &[Job<'_>],
    threads: usize,
    run: impl Fn(&Job<'_>) -> anyhow::Result<Table> + Sync,
) -> Vec<anyhow::Result<Table>> {
    let (queue, done) = (Mutex::new(jobs.iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((index, job)) = lock(&queue).next() else { break };
                    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(job)));
                    let panicked = |_| Err(anyhow!("{}: the checker panicked", job.name()));
                    lock(&done).push((index, found.unwrap_or_else(panicked)));
                }
            });
        }
    });
    let mut parts = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    parts.sort_by_key(|(index, _)| *index);
    parts.into_iter().map(|(_, found)| found).collect()
}
