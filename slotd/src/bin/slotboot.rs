//! slotboot runs in the initrd, before the root is opened: it finds the slot of the root hash that was booted, counts this
//! start, and chooses another firmware when there were too many without a sign of health. In the initrd of the recovery
//! image it puts in order what can be, and says whether a firmware is started again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use slotd::device::loader::efivarfs::Efivarfs;
use slotd::domain::generation;
use slotd::initrd::boot_disk;
use slotd::settings::{Settings, read_named_settings};
use slotd::store::{Assembly, Environment, Start, Store};
use sps_base::recovery::{self, Report};
use sps_base::service;
use sps_base::slot::SlotId;

/// Where the variables of the UEFI firmware are.
const EFIVARS: &str = "/sys/firmware/efi/efivars";
/// The link to the slot's device.
const LINK: &str = "root";
/// Exit code that asks the initrd to start again: another firmware was chosen.
const START_AGAIN: u8 = 10;

/// Finds the slot of the booted root hash, counts this start, and falls back at the limit.
///
/// Exit codes: 0 the root may be opened, or recovery has its report; 1 there is no root to open now, start again; 10 another firmware was chosen: reboot.
#[derive(Debug, Parser)]
#[command(name = "slotboot", version)]
struct Arguments {
    #[command(subcommand)]
    question: Option<Question>,
    /// Configuration file of slotd; may be given again, a later file over an earlier one.
    ///
    /// Without it slotd.toml is read from /usr/lib/sps, /run/sps and /etc/sps, as far as it is there.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// File that holds the kernel command line; it names the root hash.
    #[arg(long, value_name = "FILE", default_value = "/proc/cmdline")]
    cmdline: PathBuf,
    /// Directory for what others have to know of this start: root, a link to the slot's device; start.json; and trial, when
    /// it is one.
    #[arg(long, value_name = "DIR", default_value = "/run/sps")]
    run: PathBuf,
}

/// Something else than the start of a slot.
#[derive(Debug, Subcommand)]
enum Question {
    /// Puts slots and selection in order, counts this start of the recovery image, and leaves in recovery.json what follows.
    Recovery,
    /// Succeeds when a partition lies on the disk that the boot loader came from, or when the loader does not say.
    OnBootDisk {
        /// Its kernel name, such as sda1.
        name: String,
    },
    /// Succeeds when this is the device of the slot that was found.
    IsRoot {
        /// Its node, such as /dev/sda2.
        node: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.question {
        Some(Question::OnBootDisk { name }) => return on_boot_disk(name),
        Some(Question::IsRoot { node }) => return is_root(node, &arguments.run.join(LINK)),
        Some(Question::Recovery) | None => {}
    }
    if let Err(error) = service::start_log("info") {
        eprintln!("slotboot: {:#}", anyhow::Error::from(error));
    }
    let done = if arguments.question.is_some() { recover(&arguments) } else { run(&arguments) };
    match done {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_boot_disk(name: &str) -> ExitCode {
    let variables = Efivarfs::new(Path::new(EFIVARS));
    let is_ours = boot_disk::loader_partition(&variables).and_then(|loader| {
        loader.map_or(Ok(true), |loader| {
            boot_disk::is_on_boot_disk(Path::new("/sys"), Path::new("/dev"), name, &loader)
        })
    });
    match is_ours {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // A machine without UEFI, or a damaged variable: the labels are all there is to go by.
        Err(error) => {
            eprintln!("slotboot: {name} is taken for ours: {:#}", anyhow::Error::from(error));
            ExitCode::SUCCESS
        }
    }
}

fn is_root(node: &Path, link: &Path) -> ExitCode {
    let root = fs::canonicalize(link).ok();
    let is_root = root.is_some() && root == fs::canonicalize(node).ok();
    if is_root { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A start that nothing counts or puts in order must still be seen by somebody: whatever fails is in the report.
fn recover(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let decided = settled(arguments);
    let report = match &decided {
        Ok(report) => report.clone(),
        Err(error) => Report { why: format!("{error:#}"), ..Report::default() },
    };
    put(&arguments.run.join(recovery::FILE), &serde_json::to_vec(&report)?)?;
    decided.map(|_| ExitCode::SUCCESS)
}

fn settled(arguments: &Arguments) -> anyhow::Result<Report> {
    let settings = read_named_settings(&arguments.config)?;
    let store = Store::open(&settings, environment(arguments)?);
    let mut report = store.count_recovery().map_err(anyhow::Error::msg)?;
    report.warnings = store.summary().warnings;
    Ok(report)
}

fn environment(arguments: &Arguments) -> anyhow::Result<Environment> {
    let cmdline = fs::read_to_string(&arguments.cmdline)
        .with_context(|| format!("cannot read the command line {}", arguments.cmdline.display()))?;
    Ok(Environment { cmdline, now: unix_now, hardware: String::new() })
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let settings = read_named_settings(&arguments.config)?;
    let store = Store::look(Assembly::from_settings(&settings, environment(arguments)?));
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
    link_root(&settings, slot, &arguments.run.join(LINK))?;
    hand_on(&store, slot, &arguments.run)?;
    if summary.trial {
        put(&arguments.run.join("trial"), b"")?;
    }
    tracing::info!("slot {slot} is the root{}", if summary.trial { ", on trial" } else { "" });
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "the link to the root, in /run")]
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

/// Leaves what mount-data has to know.
fn hand_on(store: &Store, slot: SlotId, run: &Path) -> anyhow::Result<()> {
    if let Some(start) = store.start_of(slot) {
        put(&run.join(generation::Start::FILE), &serde_json::to_vec(&start)?)?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "files in /run")]
fn put(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(file, content).with_context(|| format!("cannot make {}", file.display()))
}

/// Unix seconds; 0 on a clock before 1970.
#[expect(clippy::disallowed_methods, reason = "main injects the clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
