//! What slotd costs while it works and while it rests: tail after the last byte, latency of status, memory, wakeups.

use std::collections::HashMap;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use zbus::fdo::PropertiesProxy;
use zbus::wire::OwnedVariant;

use super::ours::{Appliance, Firmware};
use super::pairing::{Runner, drop_caches};
use super::process::{output_of, pss_mib, voluntary_switches};
use super::stage::Stage;
use super::statistics::percentile;
use super::table::Row;

/// Status calls that must have been answered while an install and a check ran.
const CALLS: usize = 2000;
/// How long a resting slotd is watched.
const REST: Duration = Duration::from_secs(60);

/// Seconds from the last byte on a pipe to Verified, per GiB of image.
pub fn tail(stage: &Stage, runner: &Runner) -> Result<Vec<Row>> {
    let mut appliance = Appliance::new(stage, 1)?;
    appliance.start()?;
    #[expect(clippy::cast_precision_loss, reason = "a size in GiB needs no more than a float's precision")]
    let gib = stage.image_len() as f64 / (1_u64 << 30) as f64;
    let mut seconds = Vec::new();
    for number in 1..=runner.pairs() {
        appliance.slots[0].spoil()?;
        drop_caches()?;
        seconds.push(appliance.install_from_pipe(1)?.as_secs_f64() / gib);
        appliance.check(1)?;
        eprintln!("  run {number}/{}: {:.2} s/GiB", runner.pairs(), seconds[number - 1]);
    }
    Ok(vec![Row::single(("tail", "s-per-gib"), "s/GiB", &seconds)?])
}

/// 99th percentile of the time that a status call takes while an install and a full check of another slot run.
pub fn status(stage: &Stage, _runner: &Runner) -> Result<Vec<Row>> {
    let mut appliance = Appliance::new(stage, 2)?;
    appliance.start()?;
    // Slot 2 holds another firmware, which is checked again and again while slot 1 is written.
    let other = Firmware::build_other(stage)?;
    output_of(&mut appliance.install_file(&other.iso, 2))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut took: Vec<f64> = Vec::new();
    while took.len() < CALLS {
        drop_caches()?;
        let mut verify = appliance.spsctl();
        verify.args(["verify", "2", "--full"]);
        appliance.slots[0].spoil()?;
        let mut install = quiet(&mut appliance.install(1))?;
        let mut checks = quiet(&mut verify)?;
        runtime.block_on(async {
            let connection = zbus::connection::Builder::address(appliance.bus()).build().await?;
            let manager = PropertiesProxy::builder(&connection)
                .destination(sps_base::dbus::SLOTS1_NAME)
                .path(sps_base::dbus::SLOTS1_PATH)
                .build()
                .await?;
            let interface = zbus::names::InterfaceName::try_from("org.spsagent.Slots1.Manager")?;
            while install.try_wait()?.is_none() {
                let start = Instant::now();
                let all: HashMap<String, OwnedVariant> =
                    manager.get_all(interface.clone()).await.context("a status call failed")?;
                took.push(start.elapsed().as_secs_f64() * 1e3);
                if !all.contains_key("Booted") {
                    bail!("a status call answered without Booted");
                }
                if checks.try_wait()?.is_some() {
                    checks = quiet(&mut verify)?;
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            Ok(())
        })?;
        finish(&mut install)?;
        finish(&mut checks)?;
    }
    let p99 = percentile(&took, 99).context("no call was made")?;
    eprintln!("  {} calls", took.len());
    let mut row = Row::single(("status", "p99-ms"), "ms", &[p99])?;
    row.pairs = took.len();
    Ok(vec![row])
}

fn quiet(command: &mut std::process::Command) -> Result<Child> {
    Ok(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?)
}

fn finish(child: &mut Child) -> Result<()> {
    let status = child.wait()?;
    if status.success() { Ok(()) } else { bail!("spsctl ended with {status}") }
}

/// Memory and wakeups of a slotd that has installed once and now rests.
pub fn idle(stage: &Stage, _runner: &Runner) -> Result<Vec<Row>> {
    let mut appliance = Appliance::new(stage, 1)?;
    appliance.start()?;
    output_of(&mut appliance.install(1))?;
    // What the last reply and the end of the workers still cost is not rest.
    thread::sleep(Duration::from_secs(2));
    let before = voluntary_switches(appliance.pid()?)?;
    thread::sleep(REST);
    let wakeups = voluntary_switches(appliance.pid()?)? - before;
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let wakeups = wakeups as f64;
    Ok(vec![
        Row::single(("idle", "pss-mib"), "MiB", &[pss_mib(appliance.pid()?)?])?,
        Row::single(("idle", "wakeups"), "in 60 s", &[wakeups])?,
    ])
}
