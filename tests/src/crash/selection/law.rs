//! What the second table of `slotd::domain::plan` promises after a cut, and what must hold of any media at any time.

use std::cell::RefCell;
use std::collections::HashMap;

use slotd::device::loader::uefi::LOADER_CONF;
use slotd::domain::boot::Entry;
use slotd::domain::efivar;
use slotd::domain::plan::SelectStep;
use slotd::domain::state::{State, UpgradeOutcome};

use super::super::law::read_state;
use super::super::{Check, ensure};
use super::ground::{Ground, UNKNOWN};
use super::loader;
use crate::recorder::{Device, Digest, Event, Image, Media, digest};

/// What an appliance comes to when it is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The slot that runs in the end; `None` is recovery.
    pub runs: Option<usize>,
    /// The confirmed slot.
    pub confirmed: Option<usize>,
    /// How the last selection ended.
    pub outcome: Option<UpgradeOutcome>,
}

/// What may be lost, and is put in order when the appliance is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lost {
    /// The durable state.
    pub state: bool,
    /// A file of the ESP that nobody touched.
    pub neighbour: bool,
    /// The loader's settings.
    pub loader: bool,
}

/// What becomes of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is started next and not sent away by its initrd, and whether that is a trial; `None` is recovery.
    pub next: Option<(usize, bool)>,
    /// What it ends as.
    pub end: End,
}

/// The state on the medium; `None` when it is lost.
pub fn state(media: &Media) -> Option<State> {
    thread_local! {
        /// What was read last, by the content of the medium: it is asked again and again.
        static READ: RefCell<HashMap<Digest, Option<State>>> = RefCell::default();
    }
    let digest = media.state.digest();
    READ.with_borrow_mut(|read| {
        if read.len() > 64 {
            read.clear();
        }
        let parse = || read_state(&media.state).ok().map(|(_, _, state)| state);
        read.entry(digest).or_insert_with(parse).clone()
    })
}

/// What tells these media from any that read otherwise. The sequence number of the state's record and what lies in the
/// place of the next one decide nothing while the power stays on.
pub fn reads_as(media: &Media) -> Digest {
    let (mut bare, mut all) = (media.clone(), Vec::new());
    if let Some(state) = state(media) {
        bare.state = Image::new(0);
        all = state.render();
    }
    all.extend(bare.digest());
    digest(&all)
}

/// The step of the second table that each event belongs to.
pub fn steps(start: &Media, log: &[Event]) -> Vec<Option<SelectStep>> {
    let mut media = start.clone();
    let (mut in_state, mut on_esp) = (None, None);
    let mut all = Vec::new();
    for event in log {
        let before = media.clone();
        media.apply(event);
        all.push(match event {
            Event::Write { device: Device::State, .. } => {
                in_state = state(&before).zip(state(&media)).and_then(|(old, new)| state_step(&old, &new));
                in_state
            }
            Event::Flush { device: Device::State } => in_state,
            Event::Loader { .. } => Some(loader_step(&before, &media)),
            Event::Variable { name, .. } if name == efivar::DEFAULT => Some(SelectStep::SetDefault),
            Event::Variable { bytes: None, .. } => Some(SelectStep::ClearOneShot),
            Event::Variable { .. } => Some(SelectStep::SetOneShot),
            Event::Write { .. } | Event::Flush { .. } | Event::File(_) => None,
            Event::EspCreate { name }
            | Event::EspWrite { name, .. }
            | Event::EspSyncFile { name }
            | Event::EspRemove { name } => {
                let conf = name == LOADER_CONF;
                on_esp = Some(if conf { SelectStep::SetDefault } else { SelectStep::RefreshRecovery });
                on_esp
            }
            Event::EspSync => on_esp,
        });
    }
    all
}

fn state_step(old: &State, new: &State) -> Option<SelectStep> {
    let confirming = |state: &State| state.pending.as_ref().is_some_and(|pending| pending.confirming);
    let counted = |state: &State| state.boots.values().sum::<u32>();
    let ended = |outcome| new.last_upgrade.as_ref().is_some_and(|last| last.outcome == outcome);
    if old.confirmed != new.confirmed || (old.pending.is_some() && new.pending.is_none()) {
        let confirmed = ended(UpgradeOutcome::Confirmed) || old.pending.is_none();
        return Some(if confirmed { SelectStep::WriteConfirmed } else { SelectStep::WriteEnded });
    }
    if !confirming(old) && confirming(new) {
        return Some(SelectStep::WriteConfirming);
    }
    if old.pending != new.pending {
        return Some(SelectStep::WritePending);
    }
    match counted(old).cmp(&counted(new)) {
        std::cmp::Ordering::Less => Some(SelectStep::CountBoot),
        std::cmp::Ordering::Greater => Some(SelectStep::ResetBoots),
        std::cmp::Ordering::Equal => None,
    }
}

fn loader_step(before: &Media, after: &Media) -> SelectStep {
    let (old, new) = (loader::seen(before), loader::seen(after));
    match new.one_shot {
        _ if old.default != new.default => SelectStep::SetDefault,
        Some(_) => SelectStep::SetOneShot,
        None => SelectStep::ClearOneShot,
    }
}

/// What a step changes once it is durable, in the order of the log. `None` is the write of a fresh state.
pub type Flip = (Option<SelectStep>, Verdict);

/// The verdicts that are right after a cut behind each of the first 0, 1, … events of `log`. What has returned is
/// durable, so the last of `flips` is right at the end, whatever the log says.
pub fn right_after_each(start: &Media, log: &[Event], first: Verdict, flips: &[Flip]) -> Vec<Vec<Verdict>> {
    let (mut now, mut to_come) = (first, flips);
    let mut right = vec![vec![now]];
    for (event, step) in log.iter().zip(steps(start, log)) {
        let found = to_come.iter().position(|(at, _)| *at == step);
        let flip = found.and_then(|index| Some((to_come.get(index)?.1, to_come.get(index + 1..)?)));
        match (flip, event) {
            (
                Some((new, rest)),
                Event::Flush { .. } | Event::Loader { .. } | Event::Variable { .. } | Event::EspSync,
            ) => {
                (now, to_come) = (new, rest);
                right.push(vec![now]);
            }
            (Some((new, _)), _) if new != now => right.push(vec![now, new]),
            _ => right.push(vec![now]),
        }
    }
    let end = flips.last().map_or(first, |(_, verdict)| *verdict);
    if let Some(last) = right.last_mut() {
        *last = vec![end];
    }
    right
}

/// What is true of the media at any time.
pub fn holds(ground: &Ground, start: &Media, media: &Media, lost: Lost) -> Check<()> {
    ensure(media.slots == start.slots, || "a byte of a slot has changed".into())?;
    if !lost.neighbour {
        ensure(ground.has_recovery(media), || "no recovery image on the ESP is complete".into())?;
        for (firmware, number) in ground.firmware.iter().zip(1..=media.slots.len()) {
            let found = media.esp.get(&format!("sps-slot-{number}.efi"));
            let same = found.is_some_and(|found| found[..] == firmware.boot[..]);
            ensure(same, || format!("the boot image of slot {number} is not its firmware's"))?;
        }
    }
    let Some(now) = state(media) else {
        return ensure(lost.state, || "the state is lost".into());
    };
    if !lost.loader {
        let default = loader::selection(media)?.default.as_ref().and_then(Entry::slot);
        let claim = now.confirmed.as_ref().map(|confirmed| confirmed.slot);
        let confirming =
            now.pending.as_ref().filter(|pending| pending.confirming).map(|pending| pending.slot);
        ensure(default == claim || (confirming.is_some() && default == confirming) || lost.state, || {
            format!("the default is slot {default:?}, confirmed is {claim:?}, confirming {confirming:?}")
        })?;
    }
    let Some(before) = state(start) else { return Ok(()) };
    ensure(now.epoch_floor >= before.epoch_floor, || {
        format!("the epoch floor went from {} to {}", before.epoch_floor, now.epoch_floor)
    })?;
    ensure(now.unknown.get(UNKNOWN) == before.unknown.get(UNKNOWN), || {
        format!("{UNKNOWN} was lost: {:?}", now.unknown)
    })?;
    let selections = |state: &State| {
        let ended = state.last_upgrade.iter().map(|ended| ended.selection.clone());
        state.pending.iter().cloned().chain(ended).filter(|one| one.message == UNKNOWN).collect::<Vec<_>>()
    };
    let kept = selections(&now).iter().all(|one| one.unknown.contains_key(UNKNOWN));
    ensure(kept, || format!("{UNKNOWN} of a selection was lost: {:?}", now.last_upgrade))?;
    for old in &before.refused {
        let kept = now.refused.iter().any(|new| new.root_hash == old.root_hash && new.unknown == old.unknown);
        let taken_back = now.confirmed.as_ref().is_some_and(|new| new.root_hash == old.root_hash);
        ensure(kept || taken_back, || format!("{old:?} is not refused any more, or its {UNKNOWN} was lost"))?;
    }
    let confirmed = now.confirmed.as_ref().and_then(|now| ground.number(&now.root_hash.to_string()));
    let firmware = confirmed.and_then(|number| ground.firmware.get(number - 1));
    let floor = firmware.map_or(0, |firmware| firmware.manifest.security_epoch);
    ensure(now.epoch_floor >= floor, || {
        format!("the epoch floor {} is below that of the confirmed firmware, {floor}", now.epoch_floor)
    })
}
