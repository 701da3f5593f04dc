//! mount-data runs in the initrd, when the root is mounted and before it is switched to: it mounts what can be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use slotd::domain::generation::Start;
use slotd::initrd::mounts::{Places, Report, mount_all};
use sps_base::service;

/// Mounts the writable parts over a verified root: /data, /var, and memory over /etc.
///
/// A data partition that is missing, corrupt or full is told, in the log and in REPORT, and memory stands in for it. Fails
/// only where the root cannot be started.
#[derive(Debug, Parser)]
#[command(name = "mount-data", version)]
struct Arguments {
    /// The data partition.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/sps/data")]
    device: PathBuf,
    /// The root that is started.
    #[arg(long, value_name = "DIR", default_value = "/sysroot")]
    root: PathBuf,
    /// What slotboot has left, and where the report goes.
    #[arg(long, value_name = "DIR", default_value = "/run/sps")]
    run: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = service::start_log("info") {
        eprintln!("mount-data: {:#}", anyhow::Error::from(error));
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, root, run } = arguments;
    let start = read_start(&run.join(Start::FILE));
    if let Err(error) = &start {
        tracing::error!("no configuration is prepared: {error:#}");
    }
    let report = mount_all(&Places { device, root, run: run.clone() }, start.ok())?;
    tell(&report);
    write(&run.join(Report::FILE), &report)
}

/// What slotboot has found.
fn read_start(file: &Path) -> anyhow::Result<Start> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what slotboot writes", file.display()))
}

fn tell(report: &Report) {
    if let Some(why) = &report.data_lost {
        tracing::error!("the data partition is not used, memory stands in for it: {why}");
    }
    if let Some(why) = &report.data_full {
        tracing::error!("/var is in memory: {why}");
    }
    if let Some(why) = &report.configuration_lost {
        tracing::error!("this firmware has no configuration: {why}");
    }
    if let Some(made) = report.configuration {
        tracing::info!("configuration: {made:?}");
    }
}

#[expect(clippy::disallowed_methods, reason = "a report in /run")]
fn write(file: &Path, report: &Report) -> anyhow::Result<()> {
    fs::write(file, serde_json::to_vec(report)?).with_context(|| format!("cannot write {}", file.display()))
}
