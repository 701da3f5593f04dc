//! The operator's command line.

use std::process::ExitCode;

use clap::Parser;
use spsctl::cli::Cli;
use spsctl::error::USAGE;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that went away has seen what it wanted.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    ExitCode::from(spsctl::commands::run(&cli))
}
