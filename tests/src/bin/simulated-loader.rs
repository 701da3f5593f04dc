//! One start of a machine that does not exist: `system_tests::loader` says what it does.
//!
//! Prints one line of JSON, then becomes the program after `--`, if a firmware or the recovery image runs; what that
//! prints goes to standard error.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::bail;
use clap::Parser;
use system_tests::loader::{Machine, Mishaps, Outcome, start};

#[derive(Debug, Parser)]
#[command(name = "simulated-loader")]
struct Arguments {
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    mishaps: Mishaps,
    /// File that gets the command line of what runs.
    #[arg(long)]
    cmdline: PathBuf,
    /// What runs then: the system's service.
    #[arg(last = true)]
    init: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (report, cmdline) = start(&arguments.machine, &arguments.mishaps)?;
    let runs = matches!(report.outcome, Outcome::Running | Outcome::Recovery);
    fs::write(&arguments.cmdline, cmdline)?;
    println!("{}", serde_json::to_string(&report)?);
    io::stdout().flush()?;
    let Some((program, rest)) = arguments.init.split_first().filter(|_| runs) else { return Ok(()) };
    let mut init = Command::new(program);
    init.args(rest).stdout(io::stderr().as_fd().try_clone_to_owned()?);
    bail!("cannot start {program}: {}", init.exec())
}
