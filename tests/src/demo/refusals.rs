//! What no appliance takes: refused before the first write, or at the very block.

use anyhow::Result;
use slotd::domain::layout::Part;
use slotd::domain::manifest::BLOCK;
use sps_base::error::ErrorKind;
use sps_images::Pki;

use super::Random;
use super::firmware::{self, Shelf, build_small, flip, place};
use super::install::{check_slot, judge};
use super::machine::Machine;
use super::transcript::Transcript;

/// Everything that is refused before a byte of any medium has changed.
pub(super) fn before_the_first_write(
    machine: &mut Machine,
    shelf: &Shelf,
    transcript: &mut Transcript,
    random: &mut Random,
) -> Result<()> {
    transcript.heading("Refused before the first write: no byte of slot, ESP or state changes");
    let new = firmware::name(&shelf.new.iso);
    let iso = &shelf.new.iso;
    let manifest = place(iso, Part::Manifest)?;
    let at = manifest.offset + random.below(manifest.size);
    Transcript::say(format!("tampered: {new} with one bit of manifest.json changed, byte {at} of the ISO"));
    flip(iso, at)?;
    let tampered = refused(machine, transcript, &new, ErrorKind::SignatureInvalid, &["manifest"]);
    flip(iso, at)?;
    tampered?;

    Transcript::say("unsigned: built without manifest.p7s");
    build_small(machine, "unsigned.iso", &machine.pki, |spec| spec.signed = false)?;
    refused(machine, transcript, "unsigned.iso", ErrorKind::SignatureInvalid, &["manifest.p7s"])?;

    Transcript::say("foreign: signed by somebody whom this appliance does not trust");
    let foreign = Pki::open_or_create(machine.path("foreign-pki"), "Somebody else")?;
    build_small(machine, "foreign.iso", &foreign, |_| {})?;
    refused(machine, transcript, "foreign.iso", ErrorKind::Untrusted, &[])?;

    let length = random.middle_of(shelf.new.size);
    Transcript::say(format!("truncated: the first {length} of {} bytes of {new}", shelf.new.size));
    firmware::copy_head(iso, &machine.path("truncated.iso"), length)?;
    refused(
        machine,
        transcript,
        "truncated.iso",
        ErrorKind::MediaCorrupt,
        &["truncated", &length.to_string()],
    )?;

    Transcript::say("too old: well signed, but of security epoch 1 where 2 runs");
    build_small(machine, "old.iso", &machine.pki, |spec| spec.security_epoch = 1)?;
    refused(machine, transcript, "old.iso", ErrorKind::EpochTooOld, &["1", "2"])?;

    let before = machine.fingerprint()?;
    let ran = machine.console.spsctl("delete 1")?;
    transcript.equal(&ran.code, &code(ErrorKind::SlotInUse), "the running slot cannot be deleted");
    transcript.check(before == machine.fingerprint()?, "nothing has changed");
    Ok(())
}

/// Asks for slot 2, which holds 8.0.2, to be overwritten by an image that must be refused.
fn refused(
    machine: &Machine,
    transcript: &mut Transcript,
    iso: &str,
    kind: ErrorKind,
    words: &[&str],
) -> Result<()> {
    let before = machine.fingerprint()?;
    let ran = machine.console.spsctl(&format!("install {iso} --slot 2 --replace"))?;
    let after = machine.fingerprint()?;
    transcript.equal(
        &ran.code,
        &code(kind),
        format!("refused with exit code {}, {}", code(kind), kind.name()),
    );
    for word in words {
        transcript.check(ran.stderr.contains(word), format!("the reason names {word}"));
    }
    Transcript::say(format!("sha256 before: {before}"));
    Transcript::say(format!("sha256 after:  {after}"));
    transcript.check(before == after, "before = after");
    check_slot(machine, transcript, 2, "8.0.2", "installed")
}

/// A well signed image with a bit of its data changed: only its block can tell.
pub(super) fn at_a_block(
    machine: &mut Machine,
    shelf: &Shelf,
    transcript: &mut Transcript,
    random: &mut Random,
) -> Result<()> {
    transcript.heading("Tampered root data: refused at its block, and intact data goes on from there");
    machine.blank_slot_2()?;
    transcript.equal(&machine.word(2)?, &"empty".to_owned(), "slot 2 is empty, on a blank medium");
    let iso = &shelf.new.iso;
    let root = place(iso, Part::Root)?;
    let byte = random.middle_of(root.size);
    let block = byte / BLOCK * BLOCK;
    Transcript::say(format!(
        "one bit changed in root.erofs, byte {byte} (block at {block}), byte {} of the ISO",
        root.offset + byte
    ));
    flip(iso, root.offset + byte)?;
    let ran = machine.console.spsctl("install firmware-8.0.2.iso --transaction nightly-42");
    flip(iso, root.offset + byte)?;
    let ran = ran?;
    transcript.equal(&ran.code, &code(ErrorKind::MediaCorrupt), "refused with exit code 15, MediaCorrupt");
    let named = format!("root.erofs, byte {block}:");
    transcript.check(ran.stderr.contains(&named), format!("the reason names {named}"));
    machine.console.spsctl("slots")?;
    transcript.equal(
        &machine.word(2)?,
        &"writing".to_owned(),
        "slot 2 says writing, and never said verified",
    );
    transcript
        .check(!machine.path("esp/EFI/Linux/sps-slot-2.efi").exists(), "nothing on the ESP could boot it");
    Transcript::say("the same image, intact again");
    let ran = machine.console.spsctl("install firmware-8.0.2.iso --transaction nightly-42")?;
    transcript.equal(&ran.code, &0, "exit code 0");
    kept(machine, transcript)?;
    check_slot(machine, transcript, 2, "8.0.2", "installed")?;
    judge(machine, shelf, transcript)
}

/// The newest install found bytes in place.
pub(super) fn kept(machine: &Machine, transcript: &mut Transcript) -> Result<()> {
    let result = &machine.newest_job()?["result"];
    let number = |key: &str| result[key].as_u64().unwrap_or(0);
    let (kept, written) = (number("bytes_kept"), number("bytes_written"));
    transcript.check(
        kept > 0 && written > 0,
        format!("resumed: {kept} bytes were in place, {written} were written"),
    );
    Ok(())
}

/// Exit code of spsctl for this kind.
pub(super) fn code(kind: ErrorKind) -> i32 {
    i32::from(kind.exit_code())
}
