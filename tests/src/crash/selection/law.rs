//! What the second table of `slotd::domain::plan` promises after a cut, and what must hold of any media at any time.

use slotd::domain::boot::{Entry, Selection};
use slotd::domain::envblk::{self, DEFAULT, ONE_SHOT};
use slotd::domain::plan::SelectStep;
use slotd::domain::state::{State, UpgradeOutcome};

use super::super::law::read_state;
use super::super::{Check, ensure};
use super::ground::{Ground, UNKNOWN};
use crate::recorder::{Device, Event, Media};

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

/// What becomes of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is started next and not sent away by its initrd, and whether that is a trial; `None` is recovery.
    pub next: Option<(usize, bool)>,
    /// What it ends as.
    pub end: End,
}

/// What the loader is set to, as GRUB reads it.
pub fn selection(media: &Media) -> Check<Selection> {
    let environment = envblk::parse(&media.loader).map_err(|e| format!("the environment block: {e}"))?;
    let entry = |name| {
        let value = environment.get(name).filter(|value| !value.is_empty())?;
        Some(Entry::parse(&String::from_utf8_lossy(value)))
    };
    Ok(Selection { default: entry(DEFAULT), one_shot: entry(ONE_SHOT), damage: None })
}

/// The state on the medium; `None` when it is lost.
pub fn state(media: &Media) -> Option<State> {
    read_state(&media.state).ok().map(|(_, _, state)| state)
}

/// The step of the second table that each event belongs to.
pub fn steps(start: &Media, log: &[Event]) -> Vec<Option<SelectStep>> {
    let mut media = start.clone();
    let mut in_state = None;
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
            Event::Loader { .. } => loader_step(&before, &media),
            Event::Write { .. } | Event::Flush { .. } => None,
            _ => Some(SelectStep::RefreshRecovery),
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

fn loader_step(before: &Media, after: &Media) -> Option<SelectStep> {
    let (old, new) = (selection(before).ok()?, selection(after).ok()?);
    Some(match new.one_shot {
        _ if old.default != new.default => SelectStep::SetDefault,
        Some(_) => SelectStep::SetOneShot,
        None => SelectStep::ClearOneShot,
    })
}

/// What a step changes once it is durable. `None` is the write of a fresh state.
pub type Flip = (Option<SelectStep>, Verdict);

/// The verdicts that are right after a cut behind each of the first 0, 1, … events of `log`. What has returned is
/// durable, so the last of `flips` is right at the end, whatever the log says.
pub fn right_after_each(start: &Media, log: &[Event], first: Verdict, flips: &[Flip]) -> Vec<Vec<Verdict>> {
    let mut now = first;
    let mut right = vec![vec![now]];
    for (event, step) in log.iter().zip(steps(start, log)) {
        let flip = flips.iter().find(|(at, _)| *at == step).map(|(_, verdict)| *verdict);
        match (flip, event) {
            (Some(new), Event::Flush { .. } | Event::Loader { .. } | Event::EspSync) => {
                now = new;
                right.push(vec![now]);
            }
            (Some(new), _) if new != now => right.push(vec![now, new]),
            _ => right.push(vec![now]),
        }
    }
    let end = flips.last().map_or(first, |(_, verdict)| *verdict);
    if let Some(last) = right.last_mut() {
        *last = vec![end];
    }
    right
}

/// What is true of the media at any time. `lost` says that the state may be lost, `neighbour` that a cut took a file of
/// the ESP that nobody touched.
pub fn holds(ground: &Ground, start: &Media, media: &Media, (lost, neighbour): (bool, bool)) -> Check<()> {
    ensure(media.slots == start.slots, || "a byte of a slot has changed".into())?;
    let loader = selection(media)?;
    if !neighbour {
        ensure(ground.has_recovery(media), || "no recovery image on the ESP is complete".into())?;
        for (firmware, number) in ground.firmware.iter().zip(1..=media.slots.len()) {
            let found = media.esp.get(&format!("sps-slot-{number}.efi"));
            let same = found.is_some_and(|found| found[..] == firmware.boot[..]);
            ensure(same, || format!("the boot image of slot {number} is not its firmware's"))?;
        }
    }
    let Some(now) = state(media) else {
        return ensure(lost, || "the state is lost".into());
    };
    let default = loader.default.as_ref().and_then(Entry::slot);
    let claim = now.confirmed.as_ref().map(|confirmed| confirmed.slot);
    let confirming = now.pending.as_ref().filter(|pending| pending.confirming).map(|pending| pending.slot);
    ensure(default == claim || (confirming.is_some() && default == confirming) || lost, || {
        format!("the default is slot {default:?}, confirmed is {claim:?}, confirming {confirming:?}")
    })?;
    let Some(before) = state(start) else { return Ok(()) };
    ensure(now.epoch_floor >= before.epoch_floor, || {
        format!("the epoch floor went from {} to {}", before.epoch_floor, now.epoch_floor)
    })?;
    ensure(now.unknown.get(UNKNOWN) == before.unknown.get(UNKNOWN), || {
        format!("{UNKNOWN} was lost: {:?}", now.unknown)
    })?;
    let confirmed = now.confirmed.as_ref().and_then(|now| ground.number(&now.root_hash.to_string()));
    let firmware = confirmed.and_then(|number| ground.firmware.get(number - 1));
    let floor = firmware.map_or(0, |firmware| firmware.manifest.security_epoch);
    ensure(now.epoch_floor >= floor, || {
        format!("the epoch floor {} is below that of the confirmed firmware, {floor}", now.epoch_floor)
    })
}
