//! A model checker over the state machine: every interleaving of what operators, health checks, power cuts and the
//! loader may do, with two and three slots.
//!
//! The world is what survives a power cut (state, slots, boot images, loader) and what runs. Each move carries out the
//! effects of the real `step` and the real `plan`, cut after any of them; what a slot is, is judged by the real `judge`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use slotd::domain::boot::{Entry, Selection};
use slotd::domain::machine::{
    DEFAULT_LIMIT, Effect, Event, Firmware, Holds, LoaderFound, Machine, Order, step,
};
use slotd::domain::manifest::Sha256Hex;
use slotd::domain::plan::{self, Step};
use slotd::domain::slot_state::{BootImageFound, Content, Evidence, SignatureFound, TrailerFound, judge};
use slotd::domain::state::{Action, Confirmed, Intent, State};
use sps_base::slot::SlotId;

/// How a firmware behaves when it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Good,
    /// Its boot image does not start: the loader returns, recovery comes up.
    DiesInLoader,
    /// It starts, is counted, and dies.
    DiesInInitrd,
    /// It runs slotd but never passes its health checks.
    Unhealthy,
}

const ALL: [Kind; 5] = [Kind::Good, Kind::Good, Kind::DiesInLoader, Kind::DiesInInitrd, Kind::Unhealthy];

/// What survives a power cut.
#[derive(Clone, Debug, PartialEq)]
struct World {
    state: State,
    /// Which of [`ALL`] is in a slot.
    slots: BTreeMap<SlotId, Option<usize>>,
    /// Which boot image of a slot is on the ESP.
    images: BTreeMap<SlotId, usize>,
    loader: Selection,
    /// What runs.
    power: Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Off,
    /// The recovery image.
    Recovery,
    /// A slot, with slotd up.
    Slot(SlotId),
}

fn id(number: u32) -> SlotId {
    SlotId::new(number).unwrap()
}

fn hash(which: usize) -> Sha256Hex {
    Sha256Hex([u8::try_from(which).unwrap() + 1; 32])
}

fn firmware(which: usize) -> Firmware {
    let epoch = u32::try_from(which).unwrap() + 1;
    Firmware { root_hash: hash(which), version: format!("8.0.{which}"), epoch, revoked_below: 0, built: 0 }
}

impl World {
    /// As the installer leaves it: the first firmware runs from slot 1 and is the default.
    fn new(slots: u32) -> Self {
        let confirmed =
            Confirmed { slot: id(1), root_hash: hash(0), at: 0, before: None, unknown: BTreeMap::new() };
        Self {
            state: State { confirmed: Some(confirmed), epoch_floor: 1, ..State::default() },
            slots: (1..=slots).map(|number| (id(number), (number == 1).then_some(0))).collect(),
            images: BTreeMap::from([(id(1), 0)]),
            loader: Selection { default: Some(Entry::Slot(id(1))), ..Selection::default() },
            power: Power::Slot(id(1)),
        }
    }

    fn machine(&self) -> Machine {
        let booted = match self.power {
            Power::Slot(slot) => self.slots[&slot].map(|which| (slot, hash(which))),
            Power::Off | Power::Recovery => None,
        };
        let slots = self.slots.keys().map(|slot| (*slot, self.holds(*slot).0)).collect();
        Machine {
            state: Some(self.state.clone()),
            slots,
            booted,
            loader: LoaderFound::Set(self.loader.clone()),
        }
    }

    fn holds(&self, slot: SlotId) -> (Holds, &'static [Step]) {
        let which = self.slots[&slot];
        let evidence = Evidence {
            trailer: which.map_or(TrailerFound::Absent, |_| TrailerFound::Valid(1)),
            signature: SignatureFound::Good,
            boot_image: if self.images.get(&slot).copied() == which {
                BootImageFound::Same
            } else {
                BootImageFound::Missing
            },
            intent: self.state.intent.as_ref().filter(|intent| intent.slot == slot),
            check: None,
        };
        let judged = judge(&evidence);
        let holds = match judged.content {
            Content::Empty => Holds::Nothing,
            Content::Writing => Holds::Writing,
            // What an install has begun to replace is not started any more.
            Content::Verified if self.state.intent.as_ref().is_some_and(|intent| intent.slot == slot) => {
                Holds::Writing
            }
            Content::Verified => Holds::Verified(firmware(which.unwrap())),
            Content::Bad { .. } => Holds::Bad,
        };
        (holds, judged.remaining)
    }

    /// One step of the first table.
    fn change_slot(&mut self, slot: SlotId, step: Step, intent: &Intent, new: Option<usize>) {
        match step {
            Step::WriteIntent => self.state.intent = Some(intent.clone()),
            Step::RemoveBootImage => drop(self.images.remove(&slot)),
            Step::ZeroTrailer => drop(self.slots.insert(slot, None)),
            Step::WriteParts => {}
            Step::WriteTrailer => drop(self.slots.insert(slot, new)),
            Step::CopyBootImage => {
                if let Some(which) = self.slots[&slot] {
                    self.images.insert(slot, which);
                }
            }
            Step::DropIntent => self.state.intent = None,
        }
    }

    fn carry_out(&mut self, effects: &[Effect]) {
        for effect in effects {
            let mut machine = self.machine();
            machine.apply(effect);
            self.state = machine.state.unwrap();
            let LoaderFound::Set(loader) = machine.loader else { panic!("the loader went away") };
            self.loader = loader;
            if *effect == Effect::StartAgain {
                self.power = Power::Off;
            }
        }
    }

    /// The loader: the one-shot once (or again, where it cannot clear it), else the default, else recovery.
    fn power_on(&mut self, forgets: bool) {
        let entry = self.loader.one_shot.clone().or_else(|| self.loader.default.clone());
        if forgets {
            self.loader.one_shot = None;
        }
        let slot = entry.as_ref().and_then(Entry::slot);
        let image = slot.and_then(|slot| Some((slot, *self.images.get(&slot)?)));
        self.power = match image {
            // dm-verity proves the root against the hash in the boot image.
            Some((slot, which)) if self.slots[&slot] == Some(which) && ALL[which] != Kind::DiesInLoader => {
                Power::Slot(slot)
            }
            _ => Power::Recovery,
        };
    }

    fn running(&self) -> Option<Kind> {
        match self.power {
            Power::Slot(slot) => self.slots[&slot].map(|which| ALL[which]),
            Power::Off | Power::Recovery => None,
        }
    }
}

/// What slotd puts in order when it starts: the slots, then the selection.
fn settle_slots(world: &mut World) {
    for slot in world.slots.keys().copied().collect::<Vec<_>>() {
        let (_, remaining) = world.holds(slot);
        let intent = world.state.intent.clone();
        for step in remaining {
            world.change_slot(
                slot,
                *step,
                intent.as_ref().unwrap_or(&intent_of(slot, Action::Install)),
                None,
            );
        }
    }
}

fn intent_of(slot: SlotId, action: Action) -> Intent {
    Intent {
        slot,
        action,
        manifest: Sha256Hex::default(),
        transaction: String::new(),
        sequence: 1,
        source: Vec::new(),
        unknown: BTreeMap::new(),
    }
}

/// Every world that a cut after each of `effects` leaves, the undisturbed one last.
fn cuts(world: &World, effects: &[Effect]) -> Vec<World> {
    let mut now = world.clone();
    let mut all = Vec::new();
    for effect in effects {
        all.push(World { power: Power::Off, ..now.clone() });
        now.carry_out(std::slice::from_ref(effect));
    }
    all.push(now);
    all
}

fn slot_cuts(world: &World, slot: SlotId, steps: &[Step], action: Action, new: Option<usize>) -> Vec<World> {
    let intent = intent_of(slot, action);
    let mut now = world.clone();
    let mut all = Vec::new();
    for step in steps {
        // A cut, and a cancelled job whose slotd goes on.
        all.push(World { power: Power::Off, ..now.clone() });
        let mut cancelled = now.clone();
        settle_slots(&mut cancelled);
        all.push(cancelled);
        now.change_slot(slot, *step, &intent, new);
    }
    all.push(now);
    all
}

/// From switched off to a running slotd (or off again): loader, initrd, slotd's start, cut anywhere.
fn start(world: &World, forgets: bool) -> Vec<World> {
    let told = world.loader.one_shot.as_ref().or(world.loader.default.as_ref()) == Some(&Entry::Recovery);
    let mut on = world.clone();
    on.power_on(forgets);
    let mut all = Vec::new();
    let mut begun = Vec::new();
    if let Power::Slot(_) = on.power {
        let (_, effects) = step(&on.machine(), &Event::Initrd { at: 0 }).unwrap();
        let mut ends = cuts(&on, &effects);
        let counted = ends.pop().unwrap();
        all.extend(ends);
        if counted.power == Power::Off || counted.running() == Some(Kind::DiesInInitrd) {
            all.push(World { power: Power::Off, ..counted });
        } else {
            begun.push(counted);
        }
    } else {
        begun.push(on);
    }
    for mut up in begun {
        // A cut while slots are put in order is covered by the cuts of what left them so.
        settle_slots(&mut up);
        let (_, effects) = step(&up.machine(), &Event::Start { at: 0 }).unwrap();
        let mut ends = cuts(&up, &effects);
        if up.power == Power::Recovery {
            // What slotd puts in order there, slotboot has before it counts.
            let settled = ends.pop().unwrap();
            let (_, effects) = step(&settled.machine(), &Event::Recovery { told }).unwrap();
            ends.extend(cuts(&settled, &effects));
        }
        all.extend(ends);
    }
    all
}

/// Everything that can happen in a world.
fn moves(world: &World) -> Vec<World> {
    if world.power == Power::Off {
        let mut all = start(world, true);
        if world.loader.one_shot.is_some() {
            all.extend(start(world, false));
        }
        return all;
    }
    let machine = world.machine();
    // Power goes, or somebody reboots.
    let mut all = vec![World { power: Power::Off, ..world.clone() }];
    let order = Order::default();
    let mut events =
        vec![Event::Deactivate { slot: id(1), at: 0 }, Event::Revert { slot: None, order: order.clone() }];
    for slot in world.slots.keys() {
        events.push(Event::Activate { slot: *slot, order: order.clone() });
        events.push(Event::Deactivate { slot: *slot, at: 0 });
    }
    match world.running() {
        Some(Kind::Good) => events.push(Event::Confirm { at: 0 }),
        Some(Kind::Unhealthy) => events.push(Event::Reject { reason: "ill".into(), at: 0 }),
        _ => {}
    }
    for event in events {
        if let Ok((_, effects)) = step(&machine, &event) {
            all.extend(cuts(world, &effects));
        }
    }
    for slot in world.slots.keys().filter(|slot| machine.admit_change(**slot).is_ok()) {
        if machine.admit_install().is_ok() {
            for which in 0..ALL.len() {
                // The same root hash is not installed twice.
                if world.slots.values().all(|there| *there != Some(which)) {
                    all.extend(slot_cuts(world, *slot, &plan::INSTALL, Action::Install, Some(which)));
                }
            }
        }
        if world.slots[slot].is_some() {
            all.extend(slot_cuts(world, *slot, &plan::DELETE, Action::Delete, None));
        }
    }
    all
}

/// What must be true of every world, switched off or on.
fn check(before: &World, world: &World) -> Result<(), String> {
    let confirmed = world.state.confirmed.as_ref().unwrap();
    let which = (0..ALL.len()).find(|which| hash(*which) == confirmed.root_hash).unwrap();
    if ALL[which] != Kind::Good {
        return Err("a firmware that never was healthy is confirmed".into());
    }
    let there =
        world.slots[&confirmed.slot] == Some(which) && world.images.get(&confirmed.slot) == Some(&which);
    if !there {
        return Err("the confirmed firmware is not complete in its slot".into());
    }
    let default = world.loader.default.as_ref().and_then(Entry::slot).ok_or("no default")?;
    let good = world.slots[&default].is_some_and(|which| ALL[which] == Kind::Good);
    if !good {
        return Err(format!("the default, slot {default}, is no firmware that ever was healthy"));
    }
    let confirming =
        world.state.pending.as_ref().is_some_and(|pending| pending.confirming && pending.slot == default);
    if default != confirmed.slot && !confirming {
        return Err(format!("the default, slot {default}, is neither confirmed nor being confirmed"));
    }
    if let Some(intent) = &world.state.intent {
        if intent.slot == default || world.state.pending.as_ref().is_some_and(|p| p.slot == intent.slot) {
            return Err("what is default or pending is being changed".into());
        }
        if world.power == Power::Slot(intent.slot) {
            return Err("what runs is being changed".into());
        }
    }
    if world.state.epoch_floor < before.state.epoch_floor {
        return Err("the epoch floor went back".into());
    }
    if world.state.epoch_floor < firmware(which).epoch {
        return Err("the epoch floor is below that of the confirmed firmware".into());
    }
    let one_shot = world.loader.one_shot.as_ref().and_then(Entry::slot);
    if one_shot.is_some() && one_shot != world.state.pending.as_ref().map(|pending| pending.slot) {
        return Err("something else than the pending firmware starts next".into());
    }
    settles(world)
}

/// Left alone, switched on again and again, it ends where a good firmware runs; or in recovery, where the default has
/// been cut off so often in a row that nothing can tell it from one that does not start.
fn settles(world: &World) -> Result<(), String> {
    let mut now = world.clone();
    for _ in 0..12 {
        let default = now.loader.default.as_ref().and_then(Entry::slot);
        let given_up =
            default.and_then(|slot| now.state.boots.get(&slot)).is_some_and(|n| *n >= DEFAULT_LIMIT);
        if now.running() == Some(Kind::Good) || (now.power == Power::Recovery && given_up) {
            return Ok(());
        }
        now.power = Power::Off;
        now = start(&now, true).pop().ok_or("no way to start")?;
    }
    Err(format!("left alone it never comes to a good firmware; it ends as {:?}", now.power))
}

/// What makes two worlds the same: times and texts decide nothing.
fn key(world: &World) -> Vec<u8> {
    let mut state = world.state.clone();
    state.last_upgrade = None;
    if let Some(pending) = &mut state.pending {
        pending.from_version = String::new();
        pending.message = String::new();
    }
    for refused in &mut state.refused {
        refused.reason = String::new();
    }
    state.refused.sort_by_key(|refused| refused.root_hash);
    // It decides whether recovery restarts by itself or waits for somebody who does: either way the world is then off.
    state.boots.remove(&SlotId::RECOVERY);
    let mut key = state.render();
    key.extend(format!("{:?}{:?}{:?}{:?}", world.slots, world.images, world.loader, world.power).bytes());
    key
}

fn line(world: &World) -> String {
    let pending = world.state.pending.as_ref().map(|p| (p.slot, p.kind, p.confirming));
    format!("{:?} {:?} {:?} {pending:?} {:?}", world.power, world.slots, world.loader, world.state.boots)
}

/// The lines from the first world to the last one of `trail`.
fn way(trail: &[(usize, String)]) -> String {
    let mut lines = Vec::new();
    let mut place = trail.len() - 1;
    while place > 0 {
        lines.push(trail[place].1.as_str());
        place = trail[place].0;
    }
    lines.reverse();
    lines.join("\n")
}

/// Visits every world that can be reached in `depth` moves. Answers how many, or the first way to a wrong one.
fn explore(slots: u32, depth: usize) -> Result<usize, String> {
    let first = World::new(slots);
    let mut seen = BTreeSet::from([sha(&key(&first))]);
    // Every world's own line and from which one it was reached, so that a way can be told.
    let mut trail: Vec<(usize, String)> = vec![(0, String::new())];
    let mut queue = VecDeque::from([(first, 0, 0)]);
    while let Some((world, place, moved)) = queue.pop_front() {
        for next in moves(&world) {
            if !seen.insert(sha(&key(&next))) {
                continue;
            }
            trail.push((place, line(&next)));
            check(&world, &next).map_err(|why| format!("{why}, on this way:\n{}", way(&trail)))?;
            if moved + 1 < depth {
                queue.push_back((next, trail.len() - 1, moved + 1));
            }
        }
    }
    Ok(seen.len())
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).into()
}

#[test]
fn two_slots_never_lose_a_good_firmware() {
    let worlds = explore(2, usize::MAX).unwrap_or_else(|why| panic!("{why}"));
    println!("{worlds} worlds with two slots");
    assert!(worlds > 500, "{worlds}");
}

#[test]
fn three_slots_never_lose_a_good_firmware() {
    let worlds = explore(3, 12).unwrap_or_else(|why| panic!("{why}"));
    println!("{worlds} worlds with three slots");
    assert!(worlds > 50_000, "{worlds}");
}
