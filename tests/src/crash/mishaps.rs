//! Media that do worse than lose what was not flushed. No order of writes helps against them, so less is promised; each
//! family says what, and what not.

use slotd::store::{InstallRequest, SlotWord};

use super::appliance::{Operation, TARGET, full_check, outcome, request, target};
use super::checker::{Checker, Recovered};
use super::law::{Outcome, steps};
use super::states::{Bounds, Fate, FileFate, Origin, rebuild};
use super::{Check, Scenario, ensure};
use crate::recorder::{Device, Digest, Event, Faults, Media, Recorder};

/// What may be wrong with a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The device answered a flush, and what it covers is lost with the cut.
    LostFlush,
    /// A block that was written reads once as it was before.
    StaleRead,
    /// A block cannot be read.
    ReadError,
    /// A bit of what was flushed is another one.
    BitRot,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LostFlush, Self::StaleRead, Self::ReadError, Self::BitRot];

    /// What holds all the same.
    pub const fn holds(self) -> &'static str {
        match self {
            Self::LostFlush => {
                "the running slot boots; nothing panics or hangs; what is called verified and is not, a full check finds \
                 bad; the operation, or a repair, ends as undisturbed"
            }
            Self::StaleRead => {
                "the running slot boots; what is called verified passes a full check; the operation, or a repair, ends \
                 as undisturbed"
            }
            Self::ReadError => {
                "the running slot boots; a slot whose trailer cannot be read is called bad, never empty or verified; a \
                 full check finds an unreadable block; the operation, or a repair, ends as undisturbed"
            }
            Self::BitRot => {
                "the running slot boots; a slot with a flipped bit in its trailer is never called empty or verified; a \
                 full check finds a flipped bit in the root and its tree; the operation, or a repair, ends as undisturbed"
            }
        }
    }

    /// What does not.
    pub const fn fails(self) -> &'static str {
        match self {
            Self::LostFlush => {
                "until a full check, a slot may be called verified that would not start; one whose intent is lost with its \
                 trailer is called empty"
            }
            Self::StaleRead => "an operation may be refused that would have succeeded",
            Self::ReadError | Self::BitRot => {
                "where the newer record of the state is lost the older one counts: an intent or a floor of the last \
                 change may be gone; a block of a root is found by a full check or a start, not before"
            }
        }
    }
}

/// What checking one family showed.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub family: Family,
    /// States that were tried, by content and fault.
    pub states: usize,
    /// What should not be.
    pub violations: Vec<String>,
}

/// Tries every family on a scenario, at most `most` states of each.
pub fn check(scenario: &Scenario<'_>, most: usize) -> Vec<Found> {
    let checker = Checker::new(scenario, &Bounds::quick());
    let tries = |family| match family {
        Family::LostFlush => lost_flushes(scenario, most),
        Family::StaleRead => stale_reads(scenario, most),
        Family::ReadError => blocks(scenario, most, true),
        Family::BitRot => blocks(scenario, most, false),
    };
    let one = |family| {
        let tries = tries(family);
        let check = |one: &Try| {
            survives(scenario, &checker, family, one).err().map(|why| format!("{}: {why}", one.what))
        };
        let run = |one: &Try| {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(one)));
            done.unwrap_or_else(|_| Some(format!("{}: panicked", one.what)))
        };
        Found { family, states: tries.len(), violations: tries.iter().filter_map(run).collect() }
    };
    Family::ALL.into_iter().map(one).collect()
}

/// Media, and what is wrong with them.
struct Try {
    media: Media,
    faults: Faults,
    /// The block that is bad.
    block: Option<(Device, u64)>,
    what: String,
}

fn survives(scenario: &Scenario<'_>, checker: &Checker<'_>, family: Family, one: &Try) -> Check<()> {
    let appliance = scenario.appliance;
    let recorder = Recorder::faulty(one.media.clone(), one.faults.clone());
    let store = appliance.store(&recorder);
    let found = outcome(&store).ok_or("slot 2 is not listed")?;
    let left = Recovered::new(&recorder, found.clone());
    checker.check_running(&store, &left)?;
    let trailer = one.media.slots.get(1).map_or(0, |slot| slot.size() - 4096);
    if one.block == Some((TARGET, trailer)) {
        let bad = matches!(found, Outcome::Bad(_) | Outcome::Writing);
        let deleted = found == Outcome::Empty && !recorder.log().is_empty();
        ensure(bad || deleted, || format!("with a bad trailer slot 2 is {found:?}"))?;
    }
    if matches!(found, Outcome::Verified(_)) && scenario.esp_limit.is_none() {
        let healthy = full_check(&store, target()).map_err(|e| format!("full check: {e}"))?;
        let root = super::appliance::ROOT_SIZE as u64;
        let in_root = one.block.is_some_and(|(device, at)| device == TARGET && at < root);
        let still = recorder.media().slots == one.media.slots;
        ensure(!(in_root && still && healthy), || "a full check has not found the bad block".into())?;
        ensure(healthy || family != Family::StaleRead, || "what was installed has bad blocks".into())?;
        let shown = store.slots().into_iter().find(|view| view.id == target());
        let shown_bad = shown.is_some_and(|view| view.state == SlotWord::Bad);
        ensure(healthy || shown_bad, || "found bad, and not called bad".into())?;
    }
    drop(store);
    ends(scenario, checker, recorder.media())
}

/// On media that work again, the operation or a repair ends as undisturbed.
fn ends(scenario: &Scenario<'_>, checker: &Checker<'_>, media: Media) -> Check<()> {
    let appliance = scenario.appliance;
    let recorder = Recorder::new(media);
    let store = appliance.store(&recorder);
    if store.state().0 != "valid" {
        store.reset_state("in a test").map_err(|e| format!("reset: {e}"))?;
    }
    let failed = |e: anyhow::Error| format!("done again: {e:#}");
    let (firmware, done) = match &scenario.operation {
        Operation::Delete => {
            if outcome(&store) != Some(Outcome::Empty) {
                appliance.carry_out_in(&store, &scenario.operation).map_err(failed)?;
            }
            return ensure(outcome(&store) == Some(Outcome::Empty), || "it cannot be deleted".into());
        }
        Operation::Install(firmware, _) => {
            (*firmware, appliance.carry_out_in(&store, &scenario.operation).is_ok())
        }
        Operation::Settle(firmware) => (*firmware, false),
    };
    if !done {
        let again = InstallRequest { repair: true, replace: true, transaction_id: None, ..request() };
        appliance.carry_out_in(&store, &Operation::Install(firmware, again)).map_err(failed)?;
    }
    let verified = Outcome::Verified(firmware.root_hash());
    let found = outcome(&store);
    ensure(found.as_ref() == Some(&verified), || format!("done again, slot 2 is {found:?}"))?;
    let media = recorder.media();
    ensure(checker.is_healthy(&media)?, || "done again, it has bad blocks".into())?;
    let same = media.esp.get(super::BOOT_IMAGE).is_some_and(|file| file[..] == firmware.boot[..]);
    ensure(same, || "done again, its boot image is another".into())
}

/// At most `most` of these, evenly spread, each content once.
fn distinct(all: Vec<Try>, most: usize) -> Vec<Try> {
    let mut known = std::collections::HashSet::<(Digest, Vec<(Device, u64)>)>::new();
    let mut all = all;
    all.retain(|one| known.insert((one.media.digest(), one.faults.unreadable.clone())));
    let step = all.len().div_ceil(most.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

fn lost_flushes(scenario: &Scenario<'_>, most: usize) -> Vec<Try> {
    let Scenario { start, log, .. } = scenario;
    let mut all = Vec::new();
    for (flush, event) in log.iter().enumerate() {
        let (writes, files) = covered(log, flush, event);
        if writes.is_empty() && files.is_empty() {
            continue;
        }
        let files: std::collections::BTreeMap<_, _> =
            files.into_iter().map(|name| (name, FileFate::Old)).collect();
        let lost: std::collections::BTreeMap<_, _> =
            writes.iter().map(|number| (*number, Fate::Lost)).collect();
        let single = writes.iter().map(|number| [(*number, Fate::Lost)].into());
        let torn = writes.iter().map(|number| [(*number, Fate::Hole { from: 512, to: 4096 })].into());
        for losses in std::iter::once(lost).chain(single).chain(torn) {
            for cut in flush + 1..=log.len() {
                let origin = Origin {
                    cut,
                    lied: Some(flush),
                    writes: losses.clone(),
                    files: files.clone(),
                    names: None,
                };
                let media = rebuild(start, log, &origin);
                let what = format!("lost flush: {origin}");
                all.push(Try { media, faults: Faults::default(), block: None, what });
            }
        }
    }
    distinct(all, most)
}

/// What a flush or sync makes durable: numbers of writes, names of files.
fn covered(log: &[Event], flush: usize, event: &Event) -> (Vec<usize>, Vec<String>) {
    let before = log[..flush].iter().enumerate().rev().take_while(|(_, earlier)| *earlier != event);
    let (mut writes, mut files) = (Vec::new(), Vec::new());
    for (number, earlier) in before {
        match (event, earlier) {
            (Event::Flush { device }, Event::Write { device: written, .. }) if device == written => {
                writes.push(number);
            }
            (
                Event::EspSync,
                Event::EspCreate { name } | Event::EspWrite { name, .. } | Event::EspRemove { name },
            ) => files.push(name.clone()),
            _ => {}
        }
    }
    files.sort();
    files.dedup();
    (writes, files)
}

/// The operation, in which one read answers with what was there before it.
fn stale_reads(scenario: &Scenario<'_>, most: usize) -> Vec<Try> {
    let mut all = Vec::new();
    for read in 0..most {
        let stale = Some((read, scenario.start.clone()));
        let recorder = Recorder::faulty(scenario.start.clone(), Faults { stale, ..Faults::default() });
        let done = scenario.appliance.carry_out(&scenario.operation, &recorder).is_ok();
        if !recorder.was_stale() {
            break;
        }
        let what = format!("changed read {read} stale, done: {done}");
        all.push(Try { media: recorder.media(), faults: Faults::default(), block: None, what });
    }
    all
}

/// After every step, each block that matters, unreadable or with a flipped bit.
fn blocks(scenario: &Scenario<'_>, most: usize, unreadable: bool) -> Vec<Try> {
    let Scenario { start, log, .. } = scenario;
    let steps = steps(TARGET, start, log);
    let ends = |cut: &usize| *cut == 0 || *cut == log.len() || steps.get(cut - 1) != steps.get(*cut);
    let size = start.slots.get(1).map_or(0, crate::recorder::Image::size);
    let mut places = vec![(TARGET, size - 4096), (TARGET, 0), (TARGET, 1 << 20)];
    places.extend([(Device::State, 0), (Device::State, start.state.size() / 2)]);
    let written = log.iter().filter_map(|event| match event {
        Event::Write { device, offset, .. } if *device == TARGET => Some((TARGET, *offset)),
        _ => None,
    });
    places.extend(written);
    places.sort_unstable();
    places.dedup();
    let mut all = Vec::new();
    for cut in (0..=log.len()).filter(ends) {
        for (device, at) in &places {
            let mut media = rebuild(start, log, &Origin::at(cut));
            let mut faults = Faults::default();
            if unreadable {
                faults.unreadable.push((*device, *at));
            } else {
                let mut byte = [0];
                media.image(*device).read(at + 40, &mut byte);
                media.image(*device).write(at + 40, &[byte[0] ^ 4]);
            }
            let what = format!("after {cut} events, {device:?} bad at {at}");
            all.push(Try { media, faults, block: Some((*device, *at)), what });
        }
    }
    distinct(all, most)
}
