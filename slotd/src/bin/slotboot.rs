//! slotboot runs in the initrd, before the root is opened: it finds the slot of the root hash that was booted, counts this
//! start, and chooses another firmware when there were too many without a sign of health.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Parser;
use slotd::settings::{Settings, read_named_settings};
use slotd::store::{Assembly, Environment, Start, Store};
use sps_base::service;
use sps_base::slot::SlotId;

/// Exit code that asks the initrd to start again: another firmware was chosen.
const START_AGAIN: u8 = 10;

/// Finds the slot of the booted root hash, counts this start, and falls back at the limit.
///
/// Exit codes: 0 the root may be opened; 1 there is no root to open now, start again; 10 another firmware was chosen: reboot.
#[derive(Debug, Parser)]
#[command(name = "slotboot", version)]
struct Arguments {
    /// Configuration file of slotd; may be given again, a later file over an earlier one.
    ///
    /// Without it slotd.toml is read from /usr/lib/sps, /run/sps and /etc/sps, as far as it is there.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// File that holds the kernel command line; it names the root hash.
    #[arg(long, value_name = "FILE", default_value = "/proc/cmdline")]
    cmdline: PathBuf,
    /// Link to make, to the device of the slot.
    #[arg(long, value_name = "LINK", default_value = "/dev/sps/root")]
    link: PathBuf,
    /// File to make when this start is a trial.
    #[arg(long, value_name = "FILE", default_value = "/run/sps/trial")]
    trial_marker: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = service::start_log("info") {
        eprintln!("slotboot: {:#}", anyhow::Error::from(error));
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let settings = read_named_settings(&arguments.config)?;
    let environment = Environment {
        cmdline: fs::read_to_string(&arguments.cmdline)
            .with_context(|| format!("cannot read the command line {}", arguments.cmdline.display()))?,
        now: unix_now,
        hardware: String::new(),
    };
    let store = Store::look(Assembly::from_settings(&settings, environment));
    let summary = store.summary();
    for warning in &summary.warnings {
        tracing::warn!("{warning}");
    }
    let Some(slot) = store.slot_of_root() else {
        const NOWHERE: &str = "no slot holds the root hash of the kernel's command line";
        return match store.fall_back() {
            Ok(true) => {
                tracing::error!("{NOWHERE}; another firmware is started");
                Ok(ExitCode::from(START_AGAIN))
            }
            Ok(false) => bail!("{NOWHERE}"),
            Err(failure) => bail!("{NOWHERE}, and no other can be chosen: {failure}"),
        };
    };
    if summary.booted != slot {
        tracing::error!(
            "slot {slot} holds the root, but its signature is not accepted; this start is not counted"
        );
    }
    match store.count_start() {
        Ok(Start::GoOn) => {}
        Ok(Start::Again) => {
            tracing::error!(
                "slot {slot} was started too often without a sign of health; another firmware is started"
            );
            return Ok(ExitCode::from(START_AGAIN));
        }
        // Counting is for the worst day; a start that cannot be counted is still a start.
        Err(failure) => tracing::error!("this start of slot {slot} is not counted: {failure}"),
    }
    link_root(&settings, slot, &arguments.link)?;
    if summary.trial {
        touch(&arguments.trial_marker)?;
    }
    tracing::info!("slot {slot} is the root{}", if summary.trial { ", on trial" } else { "" });
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "the link to the root, in /dev")]
fn link_root(settings: &Settings, slot: SlotId, link: &Path) -> anyhow::Result<()> {
    let device = settings.slots.iter().find(|known| known.id == slot).map(|known| known.device.as_path());
    let device = device.with_context(|| format!("slot {slot} has no device"))?;
    if let Some(directory) = link.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // One of an earlier run; anything else in its place shows in the next call.
    let _ = fs::remove_file(link);
    symlink(device, link).with_context(|| format!("cannot make the link {}", link.display()))
}

#[expect(clippy::disallowed_methods, reason = "a marker in /run")]
fn touch(file: &Path) -> anyhow::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(file, "").with_context(|| format!("cannot make {}", file.display()))
}

/// Unix seconds; 0 on a clock before 1970.
#[expect(clippy::disallowed_methods, reason = "main injects the clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
