//! A byte that changes at rest.

use anyhow::{Context as _, Result};
use serde_json::json;
use slotd::domain::manifest::BLOCK;
use sps_base::error::ErrorKind;

use super::Random;
use super::firmware::{SLOTD_IN_ROOT, Shelf, extents_of, flip};
use super::install::{judge, verify};
use super::machine::Machine;
use super::refusals::code;
use super::transcript::Transcript;

/// One bit of a known file flips in slot 2; a full check names the file, and a repair heals the slot.
pub(super) fn flipped_byte(
    machine: &mut Machine,
    shelf: &Shelf,
    transcript: &mut Transcript,
    random: &mut Random,
) -> Result<()> {
    transcript.heading("A bit flips at rest: found, named down to the file, repaired");
    let dump = machine.console.tool(&format!("dump.erofs --path={SLOTD_IN_ROOT} -e slot-2"))?;
    let extents = extents_of(&dump.stdout);
    let chosen = usize::try_from(random.below(extents.len() as u64))?;
    let (from, length) = extents.get(chosen).context("dump.erofs names no extent")?;
    let at = from + random.below(*length);
    let intact = machine.fingerprint()?;
    flip(&machine.path("slot-2"), at)?;
    Transcript::say(format!(
        "one bit changed in slot-2 at byte {at}, which stock dump.erofs gives to {SLOTD_IN_ROOT}"
    ));
    let ran = machine.console.spsctl("verify 2 --full")?;
    transcript.equal(&ran.code, &code(ErrorKind::SlotBad), "exit code 21, SlotBad");
    let job = machine.newest_job()?;
    let result = &job["result"];
    transcript.equal(
        &result["extents"],
        &json!([[at / BLOCK, 1]]),
        format!("exactly block {} is bad", at / BLOCK),
    );
    let owner = format!("file {SLOTD_IN_ROOT}");
    transcript.equal(&result["owners"], &json!([owner]), format!("its owner is {owner}"));
    transcript.check(ran.stdout.contains(&format!("{owner}\n")), "and the operator is shown it");
    machine.console.spsctl("slots")?;
    transcript.equal(&machine.word(2)?, &"bad".to_owned(), "slot 2 is bad");

    let ran = machine.console.spsctl("install firmware-8.0.2.iso --slot 2 --repair")?;
    transcript.equal(&ran.code, &0, "repaired from the same image");
    transcript.equal(&machine.word(2)?, &"verified".to_owned(), "slot 2 is verified");
    verify(machine, transcript, 2, " --full")?;
    let healed = machine.fingerprint()?;
    transcript.check(healed.slot_1() == intact.slot_1(), "slot 1 is as it was");
    judge(machine, shelf, transcript)
}
