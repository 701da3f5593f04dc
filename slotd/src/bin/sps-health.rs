//! Tells slotd whether the running firmware is healthy. Run by sps-health, sps-trial and sps-boot-report.service.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use slotd::check::{Check, Outcome};
use slotd::health::checks::{DIRECTORY, Plan, Verdict, check};
use slotd::health::report::report;
use slotd::health::trial::{Watched, watch};
use sps_base::service;

/// Tells slotd whether the running firmware is healthy.
#[derive(Debug, Parser)]
#[command(name = "sps-health", version)]
struct Arguments {
    /// D-Bus address, instead of the system bus.
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// What goes into the log: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "SPS_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the health checks; confirms the firmware, or rejects it in a trial and fails.
    Check {
        /// Directory of check programs.
        #[arg(long, value_name = "DIRECTORY", default_value = DIRECTORY)]
        directory: PathBuf,
        /// Time for each of them.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
        deadline: u64,
        /// Directory that must take a write.
        #[arg(long, value_name = "DIRECTORY")]
        data: Option<PathBuf>,
        /// Prints the results as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Waits for the end of a trial, and fails if it is not confirmed in time. No trial: ends at once.
    Trial {
        /// How long the firmware has to become healthy.
        #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        deadline: u64,
        /// File that the initrd leaves in a trial; decides when slotd never answers.
        #[arg(long, value_name = "FILE")]
        trial_marker: Option<PathBuf>,
    },
    /// Logs which firmware runs.
    Report {
        /// How long slotd may take to answer.
        #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(0..=3600))]
        deadline: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = service::start_log(&arguments.log) {
        eprintln!("sps-health: {:#}", anyhow::Error::from(error));
        return ExitCode::FAILURE;
    }
    let good = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let bus = arguments.bus;
    match arguments.verb {
        Verb::Check { directory, deadline, data, json } => {
            let plan =
                Plan { bus, directory, deadline: Duration::from_secs(deadline), data, now: unix_now() };
            let verdict = check(&plan).await;
            if json {
                println!("{}", serde_json::to_string(&verdict)?);
            } else {
                print(&verdict);
            }
            Ok(verdict.healthy)
        }
        Verb::Trial { deadline, trial_marker } => {
            let watched = watch(bus.as_deref(), Duration::from_secs(deadline), trial_marker.as_deref()).await;
            Ok(!matches!(watched, Watched::Failed(_)))
        }
        Verb::Report { deadline } => {
            report(bus.as_deref(), Duration::from_secs(deadline)).await?;
            Ok(true)
        }
    }
}

/// For a person; the journal has the same from the log, so nothing is said there twice.
fn print(verdict: &Verdict) {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        return;
    }
    for Check { name, result, detail, hint } in &verdict.checks {
        let word = if *result == Outcome::Passed { "passed" } else { "FAILED" };
        println!("{word}  {name}  {detail}");
        if !hint.is_empty() {
            println!("        hint: {hint}");
        }
    }
}

/// Unix seconds; 0 on a clock before 1970, which is before every build date.
#[expect(clippy::disallowed_methods, reason = "main injects the clock")]
fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
