//! The scenarios and faults of the second table, under both boot loaders.

use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};

use super::super::selection::Sample;
use super::super::selection::ground::{Ground, Loader};
use super::super::selection::list;
use super::super::states::Bounds;
use super::table::{FaultRow, Row, Table};
use super::{Args, LEAST};

/// Distinct states of each scenario, where nothing else is asked for.
const REACH: usize = 1250;
/// States that are drawn from the seed after each event.
const DRAWN: usize = 12;

/// What a scenario is called under a loader.
fn named(loader: Loader, name: &str) -> String {
    match loader {
        Loader::Grub => format!("GRUB: {name}"),
        Loader::SystemdBoot => format!("systemd-boot: {name}"),
    }
}

/// The firmware of each loader.
fn grounds() -> anyhow::Result<Vec<Ground>> {
    let work = tempfile::tempdir()?;
    let ground = |(name, loader)| {
        let work = work.path().join(name);
        std::fs::create_dir(&work)?;
        Ground::new(&work, loader)
    };
    [("grub", Loader::Grub), ("systemd-boot", Loader::SystemdBoot)].into_iter().map(ground).collect()
}

/// Their names.
pub(super) fn names() -> anyhow::Result<Vec<String>> {
    let of = |ground: &Ground| {
        list::all(ground).into_iter().map(|(name, _)| named(ground.loader(), name)).collect::<Vec<_>>()
    };
    Ok(grounds()?.iter().flat_map(of).collect())
}

/// How closely to look at one scenario.
fn sample(args: &Args) -> Sample {
    let bounds = Bounds { drawn: DRAWN, ..Bounds::ci() }.seeded(args.seed);
    Sample::thorough(bounds, args.wanted().map_or(REACH, |wanted| wanted / 100))
}

/// Checks those that `args` name, and the faults where all are run: both boot loaders beside each other, for what makes
/// the states of a scenario takes one core.
pub(super) fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let grounds = grounds()?;
    let parts: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = grounds.iter().map(|ground| scope.spawn(|| under(args, ground))).collect();
        running.into_iter().map(ScopedJoinHandle::join).collect()
    });
    for part in parts {
        let (rows, faults) = part.map_err(|_| anyhow!("the checker panicked"))??;
        table.rows.extend(rows);
        table.faults.extend(faults);
    }
    Ok(())
}

/// The same under one boot loader.
fn under(args: &Args, ground: &Ground) -> anyhow::Result<(Vec<Row>, Vec<FaultRow>)> {
    let mut rows = Vec::new();
    for (name, make) in list::all(ground) {
        let full = named(ground.loader(), name);
        if !args.chosen(&full) && !args.chosen(name) {
            continue;
        }
        let scenario = make(ground).with_context(|| format!("cannot record {name}"))?;
        let begin = Instant::now();
        let mut sample = sample(args);
        let (mut report, mut exhausted) = (scenario.check(&sample), false);
        if report.distinct < LEAST {
            // Few writes: more of what each can leave.
            sample.bounds.drawn *= 4;
            let before = report.distinct;
            report = scenario.check(&sample);
            exhausted = report.distinct == before;
        }
        let row = Row {
            name: full,
            events: report.events,
            distinct: report.distinct,
            second: report.second.0,
            third: report.third.0,
            borders: report.borders,
            seen_borders: report.seen_borders,
            exhausted,
            seconds: begin.elapsed().as_secs_f64(),
            violations: report.violations,
            ..Row::default()
        };
        row.tell();
        rows.push(row);
    }
    Ok((rows, if args.scenario.is_empty() { planted(ground)? } else { Vec::new() }))
}

fn planted(ground: &Ground) -> anyhow::Result<Vec<FaultRow>> {
    let mut rows = Vec::new();
    for fault in list::faults(ground) {
        let mut scenario = (fault.make)(ground)?;
        let log = scenario.log.clone();
        (fault.plant)(&mut scenario);
        ensure!(scenario.log != log, "{fault:?}: nothing was planted");
        let report = scenario.check(&Sample::once());
        let row = FaultRow {
            step: named(ground.loader(), &format!("{:?}", fault.step)),
            name: fault.name.into(),
            found: report.violations.iter().any(|violation| violation.contains(fault.sign)),
            violations: report.violations.len(),
        };
        row.tell();
        rows.push(row);
    }
    Ok(rows)
}
