//! Appliances in QEMU. `cargo xtask vm` runs it.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use serde::Serialize;
use system_tests::vm::scenarios::{ALL, Asked, Scenario, chosen};
use system_tests::vm::stage::Stage;

/// Boots the appliance in QEMU and lets it live through what may happen to it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask vm")]
struct Arguments {
    /// Only these scenarios, such as 1 or 12a; without any, those that every change is checked with
    #[arg(value_name = "NUMBER")]
    scenarios: Vec<String>,
    /// Every scenario
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Power cuts at random moments, in the scenario of these
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// Where what is drawn begins: the same seed, the same moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    number: &'static str,
    name: &'static str,
    seconds: f64,
    /// Why it failed.
    error: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for one in ALL {
            println!("{:>4}  {}{}", one.number, one.name, if one.ci { "" } else { "  (not in CI)" });
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(nix::unistd::geteuid().is_root(), "firmware from Debian needs root: run it as root (sudo)");
    let scenarios: Vec<Scenario> = if arguments.all {
        ALL.to_vec()
    } else if arguments.scenarios.is_empty() {
        ALL.iter().filter(|one| one.ci).copied().collect()
    } else {
        chosen(&arguments.scenarios)?
    };
    let stage = Stage::new()?;
    let asked = Asked { rounds: arguments.rounds, seed: arguments.seed };
    let mut rows = Vec::new();
    for one in &scenarios {
        eprintln!("vm: {} {}", one.number, one.name);
        let begin = Instant::now();
        let error = one.run(&stage, asked).err().map(|error| format!("{error:#}"));
        let row = Row { number: one.number, name: one.name, seconds: begin.elapsed().as_secs_f64(), error };
        if let Some(error) = &row.error {
            fs::create_dir_all(stage.failures())?;
            let log = stage.failures().join(format!("{}.log", one.number));
            fs::write(&log, error)?;
            eprintln!("vm: {} failed; {} has the whole of it", one.number, log.display());
        }
        rows.push(row);
    }
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        for row in &rows {
            let verdict = row.error.as_ref().map_or("ok", |_| "FAILED");
            println!("{:>4}  {:<48} {:>6.0} s  {verdict}", row.number, row.name, row.seconds);
        }
        let left: Vec<_> = ALL
            .iter()
            .map(|one| one.number)
            .filter(|number| rows.iter().all(|row| row.number != *number))
            .collect();
        if !left.is_empty() {
            println!("left out: {}", left.join(" "));
        }
        println!("{} scenarios, {failed} failed", rows.len());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
