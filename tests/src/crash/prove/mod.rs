//! `cargo xtask prove`: every scenario of both tables, every planted fault, and what they came to.

mod second;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args as Arguments;

use super::appliance::Appliance;
use super::case::{Case, shrink};
use super::faults;
use super::states::{Bounds, loose};
use super::{Report, Scenario, Violation, mishaps, scenarios};
use table::{FaultRow, MishapRow, Row, Table};

/// Fewest distinct states of a scenario.
pub const LEAST: usize = 500;
/// Four short writes and no file of the ESP: there are not so many states, and all of them are tried.
const SMALL: &str = "delete an interrupted install";
/// Fewest distinct states of all scenarios.
pub const LEAST_OF_ALL: usize = 100_000;
/// What `--deep` reaches at least.
pub const DEEP: usize = 10_000_000;
/// States after a first cut of each scenario of the first table, where nothing else is asked for.
const REACH: usize = 2600;
/// Violations of a scenario that are shrunk and kept.
const KEPT: usize = 3;
/// States of one family of failing media and one scenario.
const MISHAPS: usize = 16;

/// What to prove.
#[derive(Clone, Debug, Arguments)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only the planted faults of the first table
    #[arg(long, conflicts_with = "scenario")]
    faults: bool,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Where what is drawn begins: the same seed, the same states
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At least ten million states
    #[arg(long)]
    deep: bool,
    /// About so many states, over all scenarios of the first table
    #[arg(long, value_name = "N")]
    states: Option<usize>,
    /// Check the one state that this file leads to
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Where to write what violates, as small as it can be
    #[arg(long, value_name = "DIR", default_value = "target/sps/prove")]
    out: PathBuf,
}

impl Args {
    fn chosen(&self, name: &str) -> bool {
        self.scenario.is_empty() || self.scenario.iter().any(|chosen| chosen == name)
    }

    /// How many states are asked for; `None` is what every change is checked with.
    fn wanted(&self) -> Option<usize> {
        self.states.or(self.deep.then_some(DEEP + DEEP / 10))
    }

    /// How far to look at one scenario of the first table.
    fn bounds(&self, scenario: &Scenario<'_>) -> Bounds {
        let wanted = self.wanted().map_or(REACH, |wanted| wanted / scenarios::ALL.len());
        Bounds::ci().seeded(self.seed).reaching(wanted, loose(&scenario.log))
    }
}

/// Runs what `args` ask for. True when everything held and every fault was found.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    if args.list {
        for name in scenarios::ALL.iter().map(|(name, _)| (*name).to_owned()).chain(second::names()?) {
            println!("{name}");
        }
        return Ok(true);
    }
    // What is caught here is told as a violation; a message for each of thousands helps nobody.
    std::panic::set_hook(Box::new(|_| ()));
    let work = tempfile::tempdir()?;
    let appliance = Appliance::new(work.path())?;
    if let Some(path) = &args.replay {
        return replay(path, &appliance);
    }
    let begin = Instant::now();
    let mut table = Table { seed: args.seed, ..Table::default() };
    if args.faults || args.scenario.is_empty() {
        planted(&appliance, &mut table)?;
    }
    if !args.faults {
        first(args, &appliance, &mut table)?;
        second::run(args, &mut table)?;
    }
    if !args.faults && args.scenario.is_empty() {
        table.require_reach();
    }
    ensure!(args.faults || !table.rows.is_empty(), "no scenario of that name; --list names them");
    table.seconds = begin.elapsed().as_secs_f64();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        println!("{table}");
    }
    Ok(table.held())
}

fn replay(path: &Path, appliance: &Appliance) -> anyhow::Result<bool> {
    let case = Case::read(path)?;
    println!("{}", case.scenario);
    case.cuts.iter().for_each(|cut| println!("  {cut}"));
    let found = case.replay(appliance)?;
    match &found {
        Some(why) => println!("violation: {why}"),
        None => println!("passes"),
    }
    Ok(found.is_none())
}

/// The scenarios of the first table.
fn first(args: &Args, appliance: &Appliance, table: &mut Table) -> anyhow::Result<()> {
    for (name, make) in scenarios::ALL.iter().filter(|(name, _)| args.chosen(name)) {
        let scenario = make(appliance).with_context(|| format!("cannot record {name}"))?;
        let begin = Instant::now();
        let report = scenario.check(&args.bounds(&scenario));
        let found = mishaps::check(&scenario, MISHAPS);
        let row = Row::of(name, &report, begin.elapsed().as_secs_f64());
        table.add(row);
        for one in found {
            table.mishaps.push(MishapRow::of(name, one));
        }
        keep(args, name, &scenario, &report)?;
    }
    Ok(())
}

/// Writes some of what violates into files, as small as it can be.
fn keep(args: &Args, name: &str, scenario: &Scenario<'_>, report: &Report) -> anyhow::Result<()> {
    for (number, violation) in report.violations.iter().take(KEPT).enumerate() {
        let Some(Violation { cuts, why }) = shrink(scenario, violation) else { continue };
        std::fs::create_dir_all(&args.out)?;
        let path = args.out.join(format!("{}-{number}.json", name.replace([' ', ','], "-")));
        Case { scenario: name.into(), fault: None, cuts, violation: Some(why) }.write(&path)?;
        println!("  see {}", path.display());
    }
    Ok(())
}

/// The faults of the first table.
fn planted(appliance: &Appliance, table: &mut Table) -> anyhow::Result<()> {
    for fault in &faults::ALL {
        let mut scenario = fault.make()(appliance)?;
        let whole = scenario.log.len();
        let log = scenario.log.clone();
        (fault.plant)(&mut scenario);
        ensure!(scenario.log != log, "{fault:?}: nothing was planted among {whole} events");
        let report = scenario.check(&Bounds::quick().once());
        let found = report.violations.iter().any(|violation| violation.why.contains(fault.sign));
        table.fault(FaultRow {
            step: format!("{:?}, {:?}", fault.plan, fault.step),
            name: fault.name.into(),
            found,
            violations: report.violations.len(),
        });
    }
    Ok(())
}
