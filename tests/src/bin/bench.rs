//! The benchmarks as a program of their own, because they must be built for release. `cargo xtask bench` runs it.

use clap::Parser as _;

/// Measures ours against the programs that people use today.
#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    bench: system_tests::bench::Args,
}

fn main() -> anyhow::Result<()> {
    system_tests::bench::run(&Arguments::parse().bench)
}
