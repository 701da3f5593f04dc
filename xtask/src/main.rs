//! Every multi-step job of the repository, as `cargo xtask NAME`.

mod dependencies;
mod gate;
mod packages;
mod process;
mod results;
mod rows;
mod suite;
mod typos;
mod units;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every multi-step job of the repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check format, lints, documentation, dependencies and units, then run every test
    Test,
    /// Print which row of the specification is shown by which test, and its result
    Rows {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Judge the systemd units: exposure and correctness
    Units,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Test => gate::run(),
        Task::Rows { json } => rows::run(json),
        Task::Units => packages::ensure(packages::For::Test).and_then(|()| units::check().map(|()| true)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
