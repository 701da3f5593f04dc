//! Installs that are cut: by `kill -9` of slotd, and by a pipe that ends early.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use slotd::domain::layout::Part;
use sps_base::dbus::{Properties, SLOTS1_NAME, SLOTS1_PATH};
use sps_base::error::ErrorKind;
use zbus::fdo::ObjectManagerProxy;

use super::Random;
use super::console::Show;
use super::firmware::{Shelf, place};
use super::install::{check_slot, judge, verify};
use super::machine::Machine;
use super::refusals::{code, kept};
use super::transcript::Transcript;

const JOB: &str = "org.spsagent.Slots1.Job";
/// How long an install may take to reach a byte.
const DEADLINE: Duration = Duration::from_secs(60);

/// `kill -9` in the middle of an install, and the same transaction again.
pub(super) fn kill(
    machine: &mut Machine,
    shelf: &Shelf,
    transcript: &mut Transcript,
    random: &mut Random,
) -> Result<()> {
    transcript.heading("kill -9 of slotd in the middle of an install, and resume");
    machine.blank_slot_2()?;
    let offset = random.middle_of(shelf.new.manifest.root.size);
    let running = machine.console.start("install firmware-8.0.2.iso --transaction nightly-43")?;
    let reached = until_byte(machine, offset)?;
    machine.kill_slotd()?;
    Transcript::say(format!("kill -9 at byte {offset} (slotd had received {reached} when it died)"));
    let ran = machine.console.finish(running, Show::Result)?;
    transcript.check(ran.code != 0, "spsctl does not say that it was installed");
    let resume = "install firmware-8.0.2.iso --transaction nightly-43";
    transcript.check(ran.stderr.contains(resume), "it says how to resume");
    machine.start_slotd()?;
    machine.console.spsctl("slots")?;
    transcript.equal(&machine.word(2)?, &"writing".to_owned(), "slot 2 says writing");
    transcript.equal(&machine.word(1)?, &"verified".to_owned(), "slot 1 is verified and runs");
    let ran = machine.console.spsctl(resume)?;
    transcript.equal(&ran.code, &0, "exit code 0");
    kept(machine, transcript)?;
    check_slot(machine, transcript, 2, "8.0.2", "installed")?;
    verify(machine, transcript, 2, " --full")?;
    judge(machine, shelf, transcript)
}

/// A download that breaks off, and only its rest sent over a new pipe.
pub(super) fn pipe(
    machine: &mut Machine,
    shelf: &Shelf,
    transcript: &mut Transcript,
    random: &mut Random,
) -> Result<()> {
    transcript.heading("A pipe that ends early, and only the rest over a new one");
    machine.blank_slot_2()?;
    let root = place(&shelf.new.iso, Part::Root)?;
    let length = root.offset + random.middle_of(root.size);
    let ran = machine
        .console
        .spsctl_fed(&format!("head -c {length} firmware-8.0.2.iso"), "install - --transaction nightly-44")?;
    transcript.equal(&ran.code, &code(ErrorKind::MediaCorrupt), "exit code 15, MediaCorrupt");
    transcript.equal(&machine.word(2)?, &"writing".to_owned(), "slot 2 says writing");
    let offset = machine.newest_job()?["next_offset"].as_u64().unwrap_or(0);
    transcript.check(
        offset > 0 && offset <= length && ran.stderr.contains(&format!("--offset {offset}")),
        format!("it asks for the image from byte {offset} on"),
    );
    let ran = machine.console.spsctl_fed(
        &format!("tail -c +{} firmware-8.0.2.iso", offset + 1),
        &format!("install - --transaction nightly-44 --offset {offset}"),
    )?;
    transcript.equal(&ran.code, &0, "exit code 0");
    let sent = shelf.new.size - offset;
    Transcript::say(format!("{sent} of {} bytes were sent again", shelf.new.size));
    kept(machine, transcript)?;
    verify(machine, transcript, 2, " --full")?;
    judge(machine, shelf, transcript)
}

/// Waits until the running install has done so many bytes; says how many it was when that was seen.
fn until_byte(machine: &Machine, offset: u64) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = zbus::connection::Builder::address(machine.address().as_str()).build().await?;
        let objects = ObjectManagerProxy::builder(&connection).destination(SLOTS1_NAME).path(SLOTS1_PATH);
        let objects = objects.build().await?;
        let start = Instant::now();
        loop {
            machine.stop.check()?;
            for interfaces in objects.get_managed_objects().await?.into_values() {
                let job = interfaces.iter().find(|(name, _)| name.as_str() == JOB).map(|(_, job)| job);
                let done = job.filter(|job| is_running(job)).and_then(|job| job.get("BytesDone"));
                let done = done.and_then(|done| u64::try_from(done).ok()).unwrap_or(0);
                if done >= offset {
                    return Ok(done);
                }
            }
            ensure!(
                start.elapsed() < DEADLINE,
                "the install did not reach byte {offset} within {DEADLINE:?}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

fn is_running(job: &Properties) -> bool {
    job.get("State").and_then(|state| <&str>::try_from(state).ok()) == Some("running")
}
