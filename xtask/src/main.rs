//! Every multi-step job of the repository, as `cargo xtask NAME`.

mod demo;
mod dependencies;
mod fuzz;
mod gate;
mod man;
mod mutate;
mod package;
mod packages;
mod process;
mod prove;
mod results;
mod rows;
mod suite;
mod typos;
mod units;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use packages::For;
use sps_images::BuildDirs;
use sps_images::cli::ImageArgs;
use system_tests::static_program;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every multi-step job of the repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build firmware from a real Debian tree, then install, tamper, damage, kill and resume; ends with `demo: PASS`
    Demo(system_tests::demo::Args),
    /// Check format, lints, documentation, dependencies and units, then run every test
    Test,
    /// Print which row of the specification is shown by which test, and its result
    Rows {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Feed any bytes to everything that reads what others wrote
    Fuzz(fuzz::Args),
    /// Build and inspect firmware images
    Image(ImageArgs),
    /// Measure ours against RAUC, SWUpdate, veritysetup and dd
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure, and how: `cargo xtask bench --help`
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build the Debian package `sps-agent`: programs, units, policies, manual pages
    Package(package::Args),
    /// Cut the power everywhere, in every way, and show that what is promised holds
    #[command(disable_help_flag = true)]
    Prove {
        /// How far, and what: `cargo xtask prove --help`
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Write the manual pages of spsctl (docs/man) from its command line
    Man,
    /// Take each check out of the verifier of signatures and show which test notices; takes about half an hour
    Mutate {
        /// Only these checks (numbers of docs/signature.md)
        #[arg(value_name = "CHECK")]
        checks: Vec<u8>,
    },
    /// Build slotboot for the initrd: one static file, in `target/sps/static`
    Slotboot,
    /// Judge the systemd units: exposure and correctness
    Units,
    /// Boot the appliance in QEMU and let it live through upgrades, rot, hangs and power cuts
    #[command(disable_help_flag = true)]
    Vm {
        /// Which scenarios: `cargo xtask vm --help`
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test => gate::run(),
        Task::Rows { json } => rows::run(json),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Image(args) => image(&args).map(|()| true),
        Task::Bench { arguments } => bench(&arguments).map(|()| true),
        Task::Package(args) => package::run(&args).map(|()| true),
        Task::Prove { arguments } => prove::run(&arguments).map(|()| true),
        Task::Man => man::write().map(|()| true),
        Task::Mutate { checks } => mutate::run(&checks),
        Task::Slotboot => slotboot().map(|()| true),
        Task::Vm { arguments } => vm::run(&arguments).map(|()| true),
        Task::Units => packages::ensure(For::Test).and_then(|()| units::check().map(|()| true)),
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

/// What is measured is what ships: the release build, in a program of its own.
fn bench(arguments: &[OsString]) -> Result<()> {
    packages::ensure(For::Bench)?;
    let packages = ["--package", "slotd", "--package", "spsctl", "--package", "system-tests"];
    process::run(process::cargo().args(["build", "--release", "--locked", "--bins"]).args(packages))?;
    process::run(process::command(workspace::root().join("target/release/bench")).args(arguments))
}

/// The release build; that it needs nothing else is checked, and its size is told.
fn slotboot() -> Result<()> {
    packages::ensure(For::Test)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let directory = workspace::scratch().join("static");
    let program = static_program::build_slotboot(Path::new(&cargo), "release", &[], &directory)?;
    let needs = static_program::needs(&program)?;
    ensure!(needs.is_empty(), "{} needs more than itself: {needs:?}", program.display());
    println!("{}: static, {} bytes", program.display(), program.metadata()?.len());
    Ok(())
}

fn image(args: &ImageArgs) -> Result<()> {
    packages::ensure(For::Test)?;
    let build =
        || Ok(sps_images::cli::Workspace { programs: package::programs()?, sources: workspace::root() });
    sps_images::cli::run(args, &BuildDirs::new(workspace::scratch())?, build)
}
