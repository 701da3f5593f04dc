//! The crash checker as a program of its own, because it must be built for release. `cargo xtask prove` runs it.

use std::process::ExitCode;

use clap::Parser as _;

/// Cuts everything that changes media, everywhere, and shows that what is promised holds.
#[derive(clap::Parser)]
#[command(name = "cargo xtask prove")]
struct Arguments {
    #[command(flatten)]
    prove: system_tests::crash::prove::Args,
}

fn main() -> anyhow::Result<ExitCode> {
    let held = system_tests::crash::prove::run(&Arguments::parse().prove)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
