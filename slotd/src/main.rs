//! slotd owns the firmware slots: the system service behind `org.spsagent.Slots1`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Parser;
use slotd::device::file_system::Mounted;
use slotd::device::kernel;
use slotd::domain::taint::Cause;
use slotd::initrd::mounts::Report;
use slotd::settings::{Settings, read_named_settings};
use slotd::store::{Environment, Store, TaintPlace};
use sps_base::service;

/// Owns the firmware slots of this appliance: installs, verifies and lists them.
///
/// slotd is a system service. It is started by systemd or by the bus, and spoken to over D-Bus
/// (org.spsagent.Slots1), by spsctl for example.
#[derive(Debug, Parser)]
#[command(name = "slotd", version)]
struct Arguments {
    /// Configuration file; may be given again, a later file over an earlier one.
    ///
    /// Without it slotd.toml is read from /usr/lib/sps, /run/sps and /etc/sps, as far as it is there.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// D-Bus address to serve on, instead of the system bus.
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// File that holds the kernel command line; it names the slot that runs.
    #[arg(long, value_name = "FILE", default_value = "/proc/cmdline")]
    cmdline: PathBuf,
    /// What the initrd has left to tell of the data partition.
    #[arg(long, value_name = "FILE", default_value = "/run/sps/data.json")]
    data_report: PathBuf,
    /// What goes into the log: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "SPS_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = service::start_log(&arguments.log) {
        eprintln!("slotd: {:#}", anyhow::Error::from(error));
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    kernel::return_large_buffers();
    let settings = read_named_settings(&arguments.config)?;
    let environment = Environment {
        cmdline: fs::read_to_string(&arguments.cmdline)
            .with_context(|| format!("cannot read the command line {}", arguments.cmdline.display()))?,
        now: unix_now,
        hardware: hardware(&settings, Path::new("/sys/class/dmi/id/product_name")),
    };
    let store = Store::open(&settings, environment);
    let report = Report::read(&arguments.data_report)
        .with_context(|| format!("cannot read {}", arguments.data_report.display()))?;
    keep_taint(&store, &settings, report);
    service::run(async |shell| {
        slotd::service::serve(store, arguments.bus.as_deref(), unix_now, shell).await
    })??;
    Ok(())
}

/// Keeps the taint record on the data partition, where one is configured and memory does not stand in for it.
fn keep_taint(store: &Store, settings: &Settings, report: Report) {
    let data = settings.data.as_ref().filter(|_| report.data_lost.is_none());
    let place =
        data.map(|data| TaintPlace { files: Arc::new(Mounted), directory: data.join(TaintPlace::DIRECTORY) });
    let lost = report.data_lost.map(|why| (Cause::DataLost, why));
    let full = report.data_full.map(|why| (Cause::DataFull, why));
    store.keep_taint(place, lost.into_iter().chain(full).collect());
}

/// The configured model, or what the system firmware says; empty where it says nothing (containers, some boards).
fn hardware(settings: &Settings, dmi: &Path) -> String {
    settings
        .hardware
        .clone()
        .or_else(|| fs::read_to_string(dmi).ok())
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

/// Unix seconds; 0 on a clock before 1970.
#[expect(clippy::disallowed_methods, reason = "main injects the clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
