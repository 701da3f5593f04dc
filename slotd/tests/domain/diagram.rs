//! The state diagram in `docs/selection.md`, made by asking the state machine.
//!
//! `UPDATE_DIAGRAM=1 cargo test -p slotd --test domain diagram` rewrites it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use slotd::domain::boot::{Entry, Selection};
use slotd::domain::machine::{
    DEFAULT_LIMIT, Effect, Event, Firmware, Holds, LoaderFound, Machine, Order, TRIAL_LIMIT, step,
};
use slotd::domain::manifest::Sha256Hex;
use slotd::domain::state::{Confirmed, SelectionKind, State};
use sps_base::slot::SlotId;

const COMMAND: &str = "UPDATE_DIAGRAM=1 cargo test -p slotd --test domain diagram";

fn id(slot: u32) -> SlotId {
    SlotId::new(slot).unwrap()
}

fn firmware(slot: u32) -> Firmware {
    Firmware {
        root_hash: Sha256Hex([u8::try_from(slot).unwrap(); 32]),
        version: format!("8.0.{slot}"),
        epoch: 1,
        revoked_below: 0,
        built: 0,
    }
}

/// Slot 1 runs and is the default, slot 2 holds a newer firmware; nothing has been confirmed yet.
fn first_start() -> Machine {
    let default = Some(Entry::Slot(id(1)));
    Machine {
        state: Some(State::default()),
        slots: [1, 2].map(|slot| (id(slot), Holds::Verified(firmware(slot)))).into(),
        booted: Some((id(1), firmware(1).root_hash)),
        loader: LoaderFound::Set(Selection { default, ..Selection::default() }),
    }
}

fn confirmed() -> Machine {
    let mut machine = first_start();
    let record = Confirmed {
        slot: id(1),
        root_hash: firmware(1).root_hash,
        at: 0,
        before: None,
        unknown: BTreeMap::new(),
    };
    machine.state.as_mut().unwrap().confirmed = Some(record);
    machine
}

fn after(machine: &Machine, event: &Event) -> Machine {
    step(machine, event).unwrap().0
}

fn selected() -> Machine {
    after(&confirmed(), &Event::Activate { slot: id(2), order: Order::default() })
}

fn trial() -> Machine {
    restarted(&selected()).0
}

fn worn_out() -> Machine {
    let mut machine = confirmed();
    machine.state.as_mut().unwrap().boots.insert(id(1), DEFAULT_LIMIT);
    machine
}

fn fallback_selected() -> Machine {
    restarted(&worn_out()).0
}

fn cut_while_confirming() -> Machine {
    let mut machine = trial();
    let (_, effects) = step(&machine, &Event::Confirm { at: 0 }).unwrap();
    machine.apply(effects.first().unwrap());
    machine
}

fn picked_by_hand() -> Machine {
    Machine { booted: Some((id(2), firmware(2).root_hash)), ..confirmed() }
}

/// The loader's rule: the one-shot entry once, else the default, else recovery.
fn loaded(machine: &Machine) -> Machine {
    let mut on = machine.clone();
    let LoaderFound::Set(set) = &mut on.loader else { return on };
    let entry = set.one_shot.take().or_else(|| set.default.clone());
    let slot = entry.and_then(|entry| entry.slot());
    on.booted = slot.and_then(|slot| Some((slot, on.firmware(slot)?.root_hash)));
    on
}

/// The loader, then the initrd.
fn restarted(machine: &Machine) -> (Machine, Vec<Effect>) {
    let (mut on, effects) = step(&loaded(machine), &Event::Initrd { at: 0 }).unwrap();
    if effects.contains(&Effect::StartAgain) {
        on.booted = None;
    }
    (on, effects)
}

/// A situation: its name in the diagram, what it is, and a machine in it.
type Situation = (&'static str, &'static str, fn() -> Machine);

const SITUATIONS: [Situation; 12] = [
    ("unconfirmed", "The default runs for the first time; it has not proven itself.", first_start),
    ("confirmed", "The default runs and has proven itself.", confirmed),
    ("selected", "Another firmware is selected for the next start.", selected),
    ("trial", "The selected firmware runs; it is not decided yet.", trial),
    (
        "confirming",
        "Power was cut after the trial had gone well, before the default was changed.",
        cut_while_confirming,
    ),
    ("rejected", "The trial has failed; its firmware still runs.", || {
        after(&trial(), &Event::Reject { reason: String::new(), at: 0 })
    }),
    (
        "interrupted",
        "Power was cut while a firmware was being selected, or its trial ended without a word; the default runs.",
        || restarted(&trial()).0,
    ),
    (
        "worn out",
        "The default was started so often without a sign of health that its next start is refused.",
        worn_out,
    ),
    ("fallback selected", "The initrd has selected another firmware for the next start.", fallback_selected),
    ("fallback trial", "That firmware runs; it is not decided yet.", || restarted(&fallback_selected()).0),
    ("recovery", "No firmware is left to be started: the recovery image runs.", || {
        restarted(&restarted(&restarted(&fallback_selected()).0).0).0
    }),
    ("by hand", "Somebody picked another firmware in the loader's menu.", picked_by_hand),
];

/// Which situation a machine is in.
fn situation(machine: &Machine) -> &'static str {
    let state = machine.state.as_ref().unwrap();
    let LoaderFound::Set(set) = &machine.loader else { panic!("no loader") };
    let one_shot = set.one_shot.as_ref();
    if let Some(pending) = &state.pending {
        let fallback = pending.kind == SelectionKind::Fallback;
        return match machine.booted == Some((pending.slot, pending.root_hash)) {
            _ if pending.confirming => "confirming",
            true if fallback => "fallback trial",
            true => "trial",
            false if one_shot != Some(&Entry::Slot(pending.slot)) => "interrupted",
            false if fallback => "fallback selected",
            false => "selected",
        };
    }
    match machine.booted {
        None => "recovery",
        Some((slot, _)) if machine.confirmed() => {
            if state.boots.get(&slot).is_some_and(|count| *count >= DEFAULT_LIMIT) {
                "worn out"
            } else {
                "confirmed"
            }
        }
        Some((slot, _)) if machine.default_slot() == Some(slot) => "unconfirmed",
        Some((_, hash)) if state.refused.iter().any(|old| old.root_hash == hash) => "rejected",
        Some(_) => "by hand",
    }
}

/// Everything that can happen; what names a slot, names the one that is selected, else the one that does not run.
fn events(machine: &Machine) -> Vec<(&'static str, Option<Event>)> {
    if situation(machine) == "fallback selected" {
        // slotd does not run yet.
        return vec![("reboot", None)];
    }
    let pending = machine.state.as_ref().unwrap().pending.as_ref().map(|pending| pending.slot);
    let other = if machine.booted.is_some_and(|(slot, _)| slot == id(2)) { id(1) } else { id(2) };
    let (slot, order) = (pending.unwrap_or(other), Order::default());
    vec![
        ("Activate", Some(Event::Activate { slot: other, order: order.clone() })),
        ("Deactivate", Some(Event::Deactivate { slot, at: 0 })),
        ("Confirm", Some(Event::Confirm { at: 0 })),
        ("Reject", Some(Event::Reject { reason: String::new(), at: 0 })),
        ("Revert", Some(Event::Revert { slot: None, order })),
        ("slotd starts", Some(Event::Start { at: 0 })),
        ("reboot", None),
    ]
}

/// Where a cut between two of the effects leads to.
fn cuts(machine: &Machine, effects: &[Effect]) -> BTreeSet<&'static str> {
    let mut now = machine.clone();
    let mut all = Vec::new();
    for effect in effects {
        now.apply(effect);
        all.push(situation(&now));
    }
    all.pop();
    all.into_iter().collect()
}

fn steps(effects: &[Effect]) -> String {
    let names: Vec<String> = effects
        .iter()
        .map(|effect| effect.step().map_or_else(|| "`reboot`".to_owned(), |step| format!("`{step:?}`")))
        .collect();
    if names.is_empty() { "nothing to do".to_owned() } else { names.join(", ") }
}

fn document() -> String {
    let (mut edges, mut tables) = (String::new(), String::new());
    for (name, meaning, machine) in SITUATIONS {
        let machine = machine();
        write!(
            tables,
            "\n## {name}\n\n{meaning}\n\n| event | steps | leads to, or why not |\n|---|---|---|\n"
        )
        .unwrap();
        for (label, event) in events(&machine) {
            let row = match event.as_ref().map_or_else(|| Ok(restarted(&machine)), |e| step(&machine, e)) {
                Err(refusal) => format!("refused, `{}` | {refusal}", refusal.kind().name()),
                Ok((next, effects)) => {
                    let to = situation(&next);
                    if to != name {
                        writeln!(edges, "    {} --> {}: {label}", node(name), node(to)).unwrap();
                    }
                    let begun = if event.is_some() { machine.clone() } else { loaded(&machine) };
                    for cut in cuts(&begun, &effects).into_iter().filter(|cut| *cut != name && *cut != to) {
                        writeln!(edges, "    {} --> {}: {label}, cut", node(name), node(cut)).unwrap();
                    }
                    format!("{} | {}", steps(&effects), if to == name { "the same" } else { to })
                }
            };
            writeln!(tables, "| {label} | {row} |").unwrap();
        }
    }
    let names: String = SITUATIONS.iter().fold(String::new(), |mut names, (name, ..)| {
        if node(name) != *name {
            writeln!(names, "    {}: {name}", node(name)).unwrap();
        }
        names
    });
    format!(
        "# Choosing what boots\n\n\
         <!-- Made from the code by slotd/tests/domain/diagram.rs. Do not edit; `{COMMAND}` rewrites it. -->\n\n\
         Two slots; slot 1 is the default. Every arrow and every row is what `step` in `slotd/src/domain/machine.rs` answers; the steps\n\
         are those of the second table in `slotd/src/domain/plan.rs`. A reboot is the loader's rule (the one-shot entry once, else the\n\
         default) and the initrd, where `slotboot` counts: a trial may start {TRIAL_LIMIT} time, any other firmware {DEFAULT_LIMIT} times without a sign of health.\n\
         A root that is in no slot any more ends its start like the limit does: at once, or, where a slot cannot be read that may hold it,\n\
         when it was started as often.\n\n\
         ```mermaid\nstateDiagram-v2\n    direction LR\n{names}    [*] --> unconfirmed: installed\n{edges}```\n{tables}"
    )
}

fn node(name: &str) -> String {
    name.replace(' ', "_")
}

#[test]
fn the_diagram_is_what_the_state_machine_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/selection.md");
    let made = document();
    if std::env::var_os("UPDATE_DIAGRAM").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "docs/selection.md is not what the code does; run: {COMMAND}");
}

#[test]
fn every_situation_is_what_its_name_says() {
    for (name, _, machine) in SITUATIONS {
        assert_eq!(situation(&machine()), name);
    }
}
