//! The health checks: some of our own, then the programs that the firmware carries. All of them run, whatever the first
//! one says; the verdict goes to slotd.

#![expect(clippy::disallowed_methods, reason = "starts the check programs and tries the data directory")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;
use sps_base::journal;
use zbus::fdo::DBusProxy;
use zbus::wire::OwnedObjectPath;

use super::{HealthError, Slotd, text};
use crate::check::helper::{OUTPUT_KEPT, PROGRAMS, programs};
use crate::check::process::{Bounds, follow};
use crate::check::report::{Check, NAME_LIMIT, Outcome, TEXT_LIMIT, judge, one_line};

/// Where a firmware carries its health checks.
pub const DIRECTORY: &str = "/usr/lib/sps/health-checks.d";
/// Name of the file that is written to try the data directory.
const PROBE: &str = ".sps-health-probe";
/// Failed units that are named.
const UNITS: usize = 8;

const SYSTEMD: &str = "org.freedesktop.systemd1";

/// What is checked, and with what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// D-Bus address; the system bus when there is none.
    pub bus: Option<String>,
    /// Directory of check programs.
    pub directory: PathBuf,
    /// Time for each of them.
    pub deadline: Duration,
    /// Directory that must take a write.
    pub data: Option<PathBuf>,
    /// Seconds since 1970.
    pub now: i64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Version of this document: 1.
    pub schema: u32,
    /// All passed, and slotd has taken the confirmation.
    pub healthy: bool,
    /// Whether this start is a trial; none when slotd does not say.
    pub trial: Option<bool>,
    /// In the order in which they ran.
    pub checks: Vec<Check>,
    /// What slotd said to the verdict, when it did not take it.
    pub refusal: Option<String>,
}

/// Runs all checks, logs each, and tells slotd: Confirm, or in a trial Reject.
pub async fn check(plan: &Plan) -> Verdict {
    let (slotd, mut checks) = own_checks(plan).await;
    let (directory, deadline) = (plan.directory.clone(), plan.deadline);
    let ran = tokio::task::spawn_blocking(move || run_programs(&directory, deadline)).await;
    checks.extend(ran.unwrap_or_else(|error| vec![Check::failed("programs", &error.to_string())]));
    checks.iter().for_each(log);

    let failed: Vec<String> = checks
        .iter()
        .filter(|check| check.result == Outcome::Failed)
        .map(|check| format!("{} ({})", check.name, check.detail))
        .collect();
    let reason = one_line(&format!("health checks failed: {}", failed.join(", ")), TEXT_LIMIT);
    let passed = failed.is_empty();
    let mut verdict = Verdict { schema: 1, healthy: passed, trial: None, checks, refusal: None };
    if !passed {
        tracing::error!(MESSAGE_ID = journal::HEALTH_FAILED, ERROR = reason, "not healthy: {reason}");
    }
    // Without slotd there is nobody to tell; the deadline of a trial decides.
    if let Some(slotd) = slotd
        && let Err(error) = tell(&slotd, &mut verdict, &reason).await
    {
        tracing::error!("{}", error.chain());
        verdict.healthy = false;
        verdict.refusal = Some(error.chain());
    }
    verdict
}

async fn tell(slotd: &Slotd, verdict: &mut Verdict, reason: &str) -> Result<(), HealthError> {
    let trial = slotd.trial().await?;
    verdict.trial = Some(trial);
    if verdict.healthy {
        slotd.confirm().await?;
        let slot = slotd.booted().await?;
        tracing::info!(
            MESSAGE_ID = journal::HEALTH_PASSED,
            SLOT = slot,
            "slot {slot} is healthy and confirmed"
        );
    } else if trial {
        slotd.reject(reason).await?;
    }
    Ok(())
}

fn log(check: &Check) {
    let Check { name, detail, hint, .. } = check;
    match check.result {
        Outcome::Passed => tracing::info!(CHECK = name, "{name}: passed. {detail}"),
        Outcome::Failed => tracing::error!(CHECK = name, HINT = hint, "{name}: failed: {detail}"),
    }
}

fn result(name: &str, outcome: Result<String, String>) -> Check {
    match outcome {
        Ok(detail) => Check {
            name: name.to_owned(),
            result: Outcome::Passed,
            detail: one_line(&detail, TEXT_LIMIT),
            hint: String::new(),
        },
        Err(detail) => Check::failed(name, &detail),
    }
}

/// Checks that need no program.
async fn own_checks(plan: &Plan) -> (Option<Slotd>, Vec<Check>) {
    let mut checks = Vec::new();
    let booted = async {
        let slotd = Slotd::connect(plan.bus.as_deref()).await?;
        let number = slotd.booted().await?;
        Ok::<_, HealthError>((slotd, number))
    };
    let slotd = match booted.await {
        Ok((slotd, number)) => {
            checks.push(result("slotd", Ok("answers".to_owned())));
            let known = match number {
                0 => Err("the running system came from no slot that slotd knows".to_owned()),
                number => Ok(format!("slot {number}")),
            };
            checks.push(result("booted-slot", known));
            checks.push(result("clock", clock(&slotd, number, plan.now).await));
            checks.push(result("units", failed_units(&slotd).await));
            Some(slotd)
        }
        Err(error) => {
            checks.push(Check::failed("slotd", &error.chain()));
            None
        }
    };
    if let Some(directory) = &plan.data {
        let tried = try_write(directory).map_err(|error| format!("{}: {error}", directory.display()));
        checks.push(result("data", tried.map(|()| "takes a write".to_owned())));
    }
    (slotd, checks)
}

/// A clock before the build date would make certificates and logs lie.
async fn clock(slotd: &Slotd, slot: u32, now: i64) -> Result<String, String> {
    if slot == 0 {
        return Ok("no build date to compare with".to_owned());
    }
    let firmware = slotd.slot(slot).await.map_err(|error| error.chain())?;
    let built = text(&firmware, "BuildDate");
    let Ok(date) = built.parse::<jiff::Timestamp>() else {
        return Err(format!("slotd says that the firmware was built {built:?}, which is no date"));
    };
    if now < date.as_second() {
        return Err(format!("the clock is before {built}, when the running firmware was built"));
    }
    Ok(format!("after {built}"))
}

/// One row of `ListUnitsFiltered`: name, description, load, active and sub state, and five more.
type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

async fn failed_units(slotd: &Slotd) -> Result<String, String> {
    let bus = DBusProxy::new(&slotd.connection).await.map_err(|error| error.to_string())?;
    let name = zbus::names::BusName::from_static_str(SYSTEMD).map_err(|error| error.to_string())?;
    if !bus.name_has_owner(name).await.map_err(|error| error.to_string())? {
        return Ok("systemd does not run here".to_owned());
    }
    let interface = "org.freedesktop.systemd1.Manager";
    let reply = slotd
        .connection
        .call_method(
            Some(SYSTEMD),
            "/org/freedesktop/systemd1",
            Some(interface),
            "ListUnitsFiltered",
            &(vec!["failed"],),
        )
        .await
        .map_err(|error| format!("systemd does not list its failed units: {error}"))?;
    let units: Vec<Unit> = reply.body().deserialize().map_err(|error| error.to_string())?;
    if units.is_empty() {
        return Ok("none has failed".to_owned());
    }
    let names: Vec<&str> = units.iter().take(UNITS).map(|unit| unit.0.as_str()).collect();
    let more = if units.len() > UNITS { ", …" } else { "" };
    Err(format!("{} failed: {}{more}", units.len(), names.join(", ")))
}

/// Writes, flushes and removes a small file.
fn try_write(directory: &Path) -> io::Result<()> {
    let path = directory.join(PROBE);
    let mut file = File::create(&path)?;
    let written = file.write_all(b"sps-health\n").and_then(|()| file.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// The programs, in name order; the contract of `docs/firmware-checks.md`, but as root in this unit's sandbox.
fn run_programs(directory: &Path, deadline: Duration) -> Vec<Check> {
    let shown = one_line(&directory.display().to_string(), NAME_LIMIT);
    match programs(directory) {
        Err(error) => vec![Check::failed(&shown, &format!("cannot be read: {error}"))],
        Ok(names) if names.len() > PROGRAMS => {
            vec![Check::failed(
                &shown,
                &format!("holds {} programs; at most {PROGRAMS} may be there", names.len()),
            )]
        }
        Ok(names) => names
            .iter()
            .map(|name| run_program(&directory.join(name), &name.to_string_lossy(), deadline))
            .collect(),
    }
}

fn run_program(program: &Path, name: &str, time: Duration) -> Check {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C")])
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Check::failed(name, &format!("cannot be started: {error}")),
    };
    let bounds = Bounds { time, keep: OUTPUT_KEPT, cancel: None };
    let finished = follow(child, &bounds, |child| {
        if let Ok(group) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    });
    match finished {
        Ok(finished) => judge(name, &finished, time),
        Err(error) => Check::failed(name, &format!("cannot be followed: {error}")),
    }
}
