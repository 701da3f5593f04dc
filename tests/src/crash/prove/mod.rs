//! `cargo xtask prove`: every scenario of both tables, every planted fault, and what they came to.

mod jobs;
mod table;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args as Arguments;

use super::case::Case;
use super::cores::checked;
use super::mishaps;
use super::stage::Stage;
use jobs::Job;

/// Fewest distinct states of a scenario.
pub const LEAST: usize = 500;
/// Four short writes and no file of the ESP: there are not so many states, and all of them are tried.
const SMALL: &str = "delete an interrupted install";
/// Fewest distinct states of all scenarios.
pub const LEAST_OF_ALL: usize = 100_000;
/// What `--deep` reaches at least.
pub const DEEP: usize = 10_000_000;
/// How often it is told how far a long run has come.
const TELL: Duration = Duration::from_secs(30);

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
    /// Only the planted faults
    #[arg(long, conflicts_with = "scenario")]
    faults: bool,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Where what is drawn begins: the same seed, the same states
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At least ten million states; with --scenario its share of them
    #[arg(long)]
    deep: bool,
    /// About so many states, over all scenarios
    #[arg(long, value_name = "N")]
    states: Option<usize>,
    /// Check the one state that this file leads to
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Judge what a guest wrote, at every flush: the directory that `cargo xtask vm 18` names
    #[arg(long, value_name = "DIR")]
    replay_disk: Option<PathBuf>,
    /// With --replay-disk: flip a bit of each write to this partition, which must be found
    #[arg(long, value_name = "PARTITION", requires = "replay_disk")]
    spoil: Option<String>,
    /// Where to write what violates, as small as it can be
    #[arg(long, value_name = "DIR", default_value = "target/sps/prove")]
    out: PathBuf,
}

impl Args {
    fn chosen(&self, job: &Job<'_>) -> bool {
        if self.faults || self.scenario.is_empty() {
            return job.is_fault() || !self.faults;
        }
        let name = job.name();
        let under_any = name.split_once(": ").map_or(name.as_str(), |(_, name)| name);
        self.scenario.iter().any(|chosen| *chosen == name || chosen == under_any) && !job.is_fault()
    }

    /// How many states are asked for; `None` is what every change is checked with.
    fn wanted(&self) -> Option<usize> {
        self.states.or(self.deep.then_some(DEEP + DEEP / 10))
    }
}

/// Runs what `args` ask for. True when everything held and every fault was found.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    if let Some(directory) = &args.replay_disk {
        let report = crate::replay::judge(directory, args.spoil.as_deref())?;
        println!("{}", if args.json { serde_json::to_string_pretty(&report)? } else { report.to_string() });
        return Ok(report.violations.is_empty());
    }
    // What is caught here is told as a violation; a message for each of thousands helps nobody.
    std::panic::set_hook(Box::new(|_| ()));
    let stage = Stage::new()?;
    let names = stage.names();
    if args.list {
        println!("{}", names.join("\n"));
        return Ok(true);
    }
    if let Some(path) = &args.replay {
        return replay(path, &stage);
    }
    let begin = Instant::now();
    let jobs: Vec<_> = jobs::all(&stage).into_iter().filter(|job| args.chosen(job)).collect();
    ensure!(!jobs.is_empty(), "no scenario of that name; --list names them");
    let scenarios = jobs.iter().filter(|job| !job.is_fault()).count();
    let wanted = args.wanted().map(|wanted| wanted / names.len() * scenarios);
    let mut table = told(wanted.is_some(), || jobs::work(args, &stage, jobs, wanted))?;
    if !args.faults && args.scenario.is_empty() {
        table.require_reach(if args.deep { DEEP } else { LEAST_OF_ALL });
    }
    table.seconds = begin.elapsed().as_secs_f64();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        println!("{table}");
    }
    Ok(table.held())
}

/// Tells how far `run` has come while it runs, where it is `long`.
fn told<T>(long: bool, run: impl FnOnce() -> T) -> T {
    let (done, waiting) = channel::<()>();
    let begin = Instant::now();
    thread::scope(|scope| {
        if long {
            scope.spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(TELL) {
                    let seconds = begin.elapsed().as_secs().max(1);
                    eprintln!("{seconds} s: {} states, {} a second", checked(), checked() / seconds);
                }
            });
        }
        let found = run();
        drop(done);
        found
    })
}

fn replay(path: &Path, stage: &Stage) -> anyhow::Result<bool> {
    let case = Case::read(path)?;
    println!("{}", case.scenario);
    case.fault.iter().for_each(|fault| println!("  with a fault: {fault}"));
    case.cuts.iter().for_each(|cut| println!("  {cut}"));
    let found = case.replay(stage)?;
    match &found {
        Some(why) => println!("violation: {why}"),
        None => println!("passes"),
    }
    Ok(found.is_none())
}
