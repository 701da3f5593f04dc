use std::collections::BTreeMap;

use proptest::prelude::*;
use sps_base::error::ErrorKind;

use super::*;
use crate::domain::plan;

fn id(number: u32) -> SlotId {
    SlotId::new(number).unwrap()
}

fn firmware(number: u8) -> Firmware {
    let version = format!("8.0.{number}");
    Firmware {
        root_hash: Sha256Hex([number; 32]),
        version,
        epoch: 1,
        revoked_below: 0,
        built: u64::from(number),
    }
}

/// Slot 1 runs 8.0.1 and is confirmed, slot 2 holds 8.0.2, slot 3 is empty.
fn machine() -> Machine {
    let confirmed = Confirmed {
        slot: id(1),
        root_hash: firmware(1).root_hash,
        at: 1,
        before: None,
        unknown: BTreeMap::new(),
    };
    Machine {
        state: Some(State { confirmed: Some(confirmed), epoch_floor: 1, ..State::default() }),
        slots: BTreeMap::from([
            (id(1), Holds::Verified(firmware(1))),
            (id(2), Holds::Verified(firmware(2))),
            (id(3), Holds::Nothing),
        ]),
        booted: Some((id(1), firmware(1).root_hash)),
        loader: LoaderFound::Set(Selection { default: Some(Entry::Slot(id(1))), ..Selection::default() }),
    }
}

fn order() -> Order {
    Order { message: "because".into(), who: ":1.7".into(), at: 5 }
}

fn activate(slot: u32) -> Event {
    Event::Activate { slot: id(slot), order: order() }
}

fn after(machine: &Machine, event: &Event) -> Machine {
    step(machine, event).unwrap().0
}

fn steps(effects: &[Effect]) -> Vec<SelectStep> {
    effects.iter().filter_map(Effect::step).collect()
}

/// The machine after a start from its loader's settings, counted.
fn started(machine: &Machine) -> Machine {
    let mut next = machine.clone();
    let LoaderFound::Set(set) = &mut next.loader else { panic!("no loader") };
    let entry = set.one_shot.take().or_else(|| set.default.clone());
    let slot = entry.as_ref().and_then(Entry::slot);
    next.booted = slot.and_then(|slot| Some((slot, next.firmware(slot)?.root_hash)));
    after(&next, &Event::Initrd { at: 6 })
}

fn trial() -> Machine {
    started(&after(&machine(), &activate(2)))
}

#[test]
fn a_selection_is_pending_before_the_loader_knows() {
    let (selected, effects) = step(&machine(), &activate(2)).unwrap();
    assert_eq!(steps(&effects), plan::SELECT);
    assert_eq!((selected.after_reboot(), selected.default_slot()), (Some(id(2)), Some(id(1))));
    let again = step(&selected, &activate(2)).unwrap().1;
    assert_eq!(steps(&again), [SelectStep::ClearOneShot, SelectStep::WritePending, SelectStep::SetOneShot]);
    assert!(selected.confirmed() && !selected.trial());
}

#[test]
fn a_trial_that_is_healthy_becomes_the_default() {
    let trial = trial();
    assert!(trial.trial() && !trial.confirmed());
    assert_eq!((trial.fallback(), trial.after_reboot()), (Some(id(1)), Some(id(1))));
    let (confirmed, effects) = step(&trial, &Event::Confirm { at: 9 }).unwrap();
    assert_eq!(steps(&effects), plan::CONFIRM);
    assert!(confirmed.confirmed() && !confirmed.trial());
    assert_eq!((confirmed.default_slot(), confirmed.fallback()), (Some(id(2)), Some(id(1))));
    let state = confirmed.state.unwrap();
    assert_eq!((state.pending, state.boots.len(), state.time_floor), (None, 0, 2));
    assert_eq!(state.last_upgrade.unwrap().outcome, UpgradeOutcome::Confirmed);
}

#[test]
fn a_trial_that_is_rejected_leaves_the_default_alone() {
    let rejected = after(&trial(), &Event::Reject { reason: "no network".into(), at: 9 });
    assert_eq!(
        (rejected.after_reboot(), rejected.trial(), rejected.confirmed()),
        (Some(id(1)), false, false)
    );
    let state = rejected.state.as_ref().unwrap();
    assert_eq!(state.refused[0].reason, "no network");
    let old = started(&rejected);
    assert!(old.confirmed());
    assert_eq!(old.booted.unwrap().0, id(1));
}

#[test]
fn a_trial_that_says_nothing_has_failed() {
    let mut back = trial();
    back.booted = Some((id(1), firmware(1).root_hash));
    let (back, effects) = step(&back, &Event::Start { at: 9 }).unwrap();
    assert_eq!(steps(&effects), [SelectStep::WriteEnded, SelectStep::RefreshRecovery]);
    let last = back.state.unwrap().last_upgrade.unwrap();
    assert!(last.reason.contains("without a word"), "{}", last.reason);
}

#[test]
fn what_was_cut_while_it_was_selected_was_not_started() {
    let mut cut = after(&machine(), &activate(2));
    cut.apply(&Effect::SetOneShot(None));
    let settled = after(&cut, &Event::Start { at: 9 }).state.unwrap();
    assert!(settled.refused.is_empty(), "it never ran");
    assert!(settled.last_upgrade.unwrap().reason.contains("was not started"));
}

#[test]
fn what_is_confirming_is_rolled_forward() {
    let mut cut = trial();
    cut.apply(&Effect::Write(Change::Confirming));
    cut.booted = Some((id(1), firmware(1).root_hash));
    let (settled, effects) = step(&cut, &Event::Start { at: 9 }).unwrap();
    assert_eq!(steps(&effects), plan::CONFIRM[1..]);
    assert_eq!(settled.default_slot(), Some(id(2)));
    assert!(!settled.confirmed(), "the other one runs until the next start");
    assert!(matches!(step(&cut, &activate(3)), Err(Refusal::NotConfirmed | Refusal::Empty(_))));
}

#[test]
fn a_start_that_is_not_confirmed_is_counted_out() {
    let mut again = trial();
    let (ended, effects) = step(&again, &Event::Initrd { at: 9 }).unwrap();
    assert_eq!(effects.last(), Some(&Effect::StartAgain), "a trial has one start");
    assert_eq!(ended.after_reboot(), Some(id(1)));
    again = machine();
    for _ in 0..DEFAULT_LIMIT {
        again = started(&again);
        assert_eq!(again.booted.unwrap().0, id(1));
    }
    let (other, effects) = step(&again, &Event::Initrd { at: 9 }).unwrap();
    assert_eq!(effects.last(), Some(&Effect::StartAgain));
    assert_eq!(other.after_reboot(), Some(id(2)));
    let pending = other.state.unwrap().pending.unwrap();
    assert_eq!((pending.kind, pending.who.as_str()), (SelectionKind::Fallback, "slotboot"));
}

#[test]
fn without_another_firmware_recovery_is_started() {
    let mut alone = machine();
    alone.slots.insert(id(2), Holds::Bad);
    for _ in 0..DEFAULT_LIMIT {
        alone = started(&alone);
    }
    let (_, effects) = step(&alone, &Event::Initrd { at: 9 }).unwrap();
    assert_eq!(effects, [Effect::SetOneShot(Some(Entry::Recovery)), Effect::StartAgain]);
}

/// What a start does whose root is in no slot, and the machine after it.
fn lost(machine: &Machine, hash: u8, told: Option<u32>, unsure: bool) -> (Machine, Vec<Effect>) {
    let root = LostRoot { hash: Sha256Hex([hash; 32]), told: told.map(id), unsure };
    let booted = Machine { booted: None, ..machine.clone() };
    step(&booted, &Event::RootLost { root, at: 9 }).unwrap()
}

/// Name; what is known, the hash that was booted, the slot that the loader names; what is done, and what starts once.
type LostCase<'a> = (&'a str, &'a Machine, u8, Option<u32>, &'a [SelectStep], Option<Entry>);

#[test]
fn a_root_that_is_in_no_slot_gives_way_at_once() {
    use SelectStep::{ClearOneShot, SetDefault, SetOneShot, WriteEnded, WritePending};
    let mut gone = machine();
    gone.slots.insert(id(1), Holds::Bad);
    let mut alone = gone.clone();
    alone.slots.insert(id(2), Holds::Nothing);
    let mut trial = trial();
    trial.slots.insert(id(2), Holds::Bad);
    let mut fallback_died = lost(&gone, 1, Some(1), false).0;
    fallback_died.apply(&Effect::SetOneShot(None));
    fallback_died.apply(&Effect::Write(Change::CountBoot(id(2))));
    let selected = after(&machine(), &activate(2));
    let mut confirming = trial.clone();
    confirming.slots = machine().slots;
    confirming.apply(&Effect::Write(Change::Confirming));
    let torn =
        |machine: &Machine| Machine { loader: LoaderFound::Unreadable("torn".into()), ..machine.clone() };
    let stateless = |machine: &Machine| Machine { state: None, ..machine.clone() };
    let (two, rescue) = (Some(Entry::Slot(id(2))), Some(Entry::Recovery));
    let cases: [LostCase<'_>; 12] = [
        ("the default", &gone, 1, Some(1), &[WritePending, SetOneShot], two.clone()),
        (
            "the default of a loader that says nothing",
            &gone,
            1,
            None,
            &[WritePending, SetOneShot],
            two.clone(),
        ),
        ("the only firmware", &alone, 1, Some(1), &[SetOneShot], rescue.clone()),
        ("a stray boot image", &machine(), 7, Some(3), &[], None),
        (
            "one that nobody knows, without a default",
            &gone,
            7,
            None,
            &[WritePending, SetOneShot],
            two.clone(),
        ),
        ("a trial", &trial, 2, Some(2), &[WriteEnded], None),
        ("the default, before a trial", &selected, 7, None, &[ClearOneShot, WriteEnded], None),
        (
            "the default, its fallback died",
            &fallback_died,
            1,
            Some(1),
            &[WriteEnded, SetOneShot],
            rescue.clone(),
        ),
        ("the default, after a good trial", &confirming, 1, Some(1), &plan::CONFIRM[1..3], None),
        ("without a state", &stateless(&gone), 1, None, &[SetOneShot], two.clone()),
        ("without settings", &torn(&machine()), 7, None, &[SetDefault], None),
        (
            "without settings or a default",
            &torn(&gone),
            1,
            None,
            &[SetDefault, WritePending, SetOneShot],
            two,
        ),
    ];
    for (name, machine, hash, told, expected, next) in cases {
        let (after, effects) = lost(machine, hash, told, false);
        assert_eq!(steps(&effects), expected, "{name}");
        assert_eq!(effects.last(), Some(&Effect::StartAgain), "{name}");
        let LoaderFound::Set(set) = after.loader else { panic!("{name}: no settings") };
        assert_eq!(set.one_shot, next, "{name}");
    }
    assert!(lost(&trial, 2, Some(2), false).0.state.unwrap().refused.is_empty(), "it has not run");
    assert_eq!(lost(&fallback_died, 1, Some(1), false).0.state.unwrap().refused.len(), 1);
    let none = Machine { loader: LoaderFound::None, ..gone };
    assert_eq!(lost(&none, 1, Some(1), false).1, []);
}

#[test]
fn a_slot_that_cannot_be_read_is_tried_again_as_often_as_any_other() {
    let mut now = machine();
    now.slots.insert(id(1), Holds::Bad);
    for _ in 0..DEFAULT_LIMIT {
        let (after, effects) = lost(&now, 1, None, true);
        assert_eq!(effects, [Effect::Write(Change::CountBoot(id(1)))]);
        now = after;
    }
    assert_eq!(lost(&now, 1, None, true).0.after_reboot(), Some(id(2)));
    // A trial has one start.
    let mut trial = after(&machine(), &activate(2));
    trial.slots.insert(id(2), Holds::Bad);
    let (trial, effects) = lost(&trial, 2, Some(2), true);
    assert_eq!(effects, [Effect::Write(Change::CountBoot(id(2)))]);
    let (ended, effects) = lost(&trial, 2, Some(2), true);
    assert_eq!((effects.last(), ended.after_reboot()), (Some(&Effect::StartAgain), Some(id(1))));
    // What cannot be counted is not tried again.
    let mut gone = Machine { state: None, ..machine() };
    gone.slots.insert(id(1), Holds::Bad);
    assert_eq!(lost(&gone, 1, Some(1), true).1.last(), Some(&Effect::StartAgain));
}

#[test]
fn a_sign_of_health_sets_the_count_back() {
    let twice = started(&started(&machine()));
    let (healthy, effects) = step(&twice, &Event::Confirm { at: 9 }).unwrap();
    assert_eq!(steps(&effects), [SelectStep::ResetBoots]);
    assert!(healthy.state.unwrap().boots.is_empty());
}

/// What recovery does: its effects, and the slot that it goes on to or why it stays.
fn recovered(machine: &Machine, told: bool) -> (Vec<Effect>, Result<SlotId, Stays>) {
    let machine = Machine { booted: None, ..machine.clone() };
    let settled = after(&machine, &Event::Start { at: 9 });
    (step(&settled, &Event::Recovery { told }).unwrap().1, settled.recovery_goes_on(told))
}

#[test]
fn recovery_goes_on_where_a_firmware_can_be_started() {
    let counted = Effect::Write(Change::CountBoot(SlotId::RECOVERY));
    let both = [counted.clone(), Effect::StartAgain];
    // The loader could not start the trial: the one-shot entry is gone.
    let mut dead = after(&machine(), &activate(2));
    dead.apply(&Effect::SetOneShot(None));
    assert_eq!(recovered(&dead, false), (both.to_vec(), Ok(id(1))));
    let settled = after(&Machine { booted: None, ..dead }, &Event::Start { at: 9 }).state.unwrap();
    assert_eq!(settled.last_upgrade.unwrap().outcome, UpgradeOutcome::Failed);
    // What was selected and not started yet is started.
    assert_eq!(recovered(&after(&machine(), &activate(2)), false), (both.to_vec(), Ok(id(2))));
    let mut bad = machine();
    bad.slots.insert(id(1), Holds::Bad);
    let mut spent = machine();
    spent.state.as_mut().unwrap().boots.insert(id(1), DEFAULT_LIMIT);
    let mut nowhere = machine();
    nowhere.state.as_mut().unwrap().confirmed = None;
    nowhere.loader = LoaderFound::Set(Selection::default());
    let none = Machine { loader: LoaderFound::None, ..machine() };
    for (machine, told, stays) in [
        (&machine(), true, Stays::Told),
        (&bad, false, Stays::NotSound(id(1))),
        (&spent, false, Stays::Spent(id(1), 3)),
        (&nowhere, false, Stays::NoDefault),
        (&none, false, Stays::NoDefault),
    ] {
        assert_eq!(recovered(machine, told), (vec![counted.clone()], Err(stays)));
    }
    let lost = Machine { state: None, ..machine() };
    assert_eq!(recovered(&lost, false), (Vec::new(), Err(Stays::StateLost)));
}

#[test]
fn recovery_restarts_a_few_times_and_health_sets_that_back() {
    let mut now = Machine { booted: None, ..machine() };
    for _ in 0..RECOVERY_LIMIT {
        let (next, effects) = step(&now, &Event::Recovery { told: false }).unwrap();
        assert_eq!(effects.last(), Some(&Effect::StartAgain));
        now = next;
    }
    assert_eq!(recovered(&now, false), (Vec::new(), Err(Stays::TooOften)));
    let (healthy, effects) = step(&started(&now), &Event::Confirm { at: 9 }).unwrap();
    assert_eq!(steps(&effects), [SelectStep::ResetBoots, SelectStep::ResetBoots]);
    assert!(healthy.state.unwrap().boots.is_empty());
    let mut trial = trial();
    trial.state.as_mut().unwrap().boots.insert(SlotId::RECOVERY, 2);
    assert!(after(&trial, &Event::Confirm { at: 9 }).state.unwrap().boots.is_empty());
}

#[test]
fn a_start_by_hand_is_no_trial() {
    let mut by_hand = machine();
    by_hand.booted = Some((id(2), firmware(2).root_hash));
    let by_hand = after(&by_hand, &Event::Initrd { at: 6 });
    assert!(!by_hand.trial() && !by_hand.confirmed());
    let (healthy, effects) = step(&by_hand, &Event::Confirm { at: 9 }).unwrap();
    assert_eq!((steps(&effects), healthy.default_slot()), (vec![SelectStep::ResetBoots], Some(id(1))));
    assert_eq!(step(&by_hand, &Event::Reject { reason: "x".into(), at: 9 }), Err(Refusal::NoTrial));
    assert_eq!(step(&by_hand, &activate(3)), Err(Refusal::NotConfirmed));
}

#[test]
fn lost_settings_are_written_again() {
    for loader in [
        LoaderFound::Set(Selection::default()),
        LoaderFound::Unreadable("torn".into()),
        LoaderFound::Set(Selection {
            damage: Some("one copy".into()),
            default: Some(Entry::Slot(id(1))),
            one_shot: None,
        }),
    ] {
        let lost = Machine { loader, ..machine() };
        let (healed, effects) = step(&lost, &Event::Start { at: 9 }).unwrap();
        assert!(effects.contains(&Effect::SetDefault(Entry::Slot(id(1)))), "{effects:?}");
        assert_eq!(healed.default_slot(), Some(id(1)));
    }
    assert_eq!(step(&machine(), &Event::Start { at: 9 }).unwrap().1, [Effect::RefreshRecovery(id(1))]);
}

/// Found by the crash checker: a loader that has lost its settings starts what it likes, and for ever if that dies.
#[test]
fn settings_that_cannot_be_read_do_not_keep_a_dead_firmware_running() {
    let mut now = machine();
    now.loader = LoaderFound::Unreadable("torn".into());
    now.booted = Some((id(2), firmware(2).root_hash));
    let initrd = Event::Initrd { at: 6 };
    for start in 1..=DEFAULT_LIMIT {
        let (after, effects) = step(&now, &initrd).unwrap();
        assert_eq!(effects, [Effect::Write(Change::CountBoot(id(2)))], "start {start}");
        now = after;
    }
    let (after, effects) = step(&now, &initrd).unwrap();
    assert_eq!(effects, [Effect::SetDefault(Entry::Slot(id(1))), Effect::StartAgain]);
    assert_eq!(after.default_slot(), Some(id(1)));
}

/// Found by fuzzing: with the state lost as well, nobody could make them anew.
#[test]
fn a_healthy_firmware_makes_settings_anew_that_cannot_be_read() {
    let unreadable = |machine: Machine| Machine { loader: LoaderFound::Unreadable("torn".into()), ..machine };
    let confirm = Event::Confirm { at: 9 };
    // After a reset nothing is known to be confirmed: what runs becomes it.
    let mut reset = unreadable(machine());
    reset.state = Some(State::default());
    let (confirmed, effects) = step(&reset, &confirm).unwrap();
    assert_eq!(steps(&effects), plan::CONFIRM[1..]);
    assert!(confirmed.confirmed() && confirmed.default_slot() == Some(id(1)));
    // So does it in the place of a confirmed one that is gone.
    let mut gone = unreadable(machine());
    gone.slots.insert(id(1), Holds::Bad);
    gone.booted = Some((id(2), firmware(2).root_hash));
    assert_eq!(steps(&step(&gone, &confirm).unwrap().1), plan::CONFIRM[1..]);
    // What was confirmed stays the default, whatever runs.
    let mut by_hand = unreadable(started(&machine()));
    by_hand.booted = Some((id(2), firmware(2).root_hash));
    assert_eq!(step(&by_hand, &confirm).unwrap().1, [Effect::SetDefault(Entry::Slot(id(1)))]);
    by_hand.booted = Some((id(1), firmware(1).root_hash));
    let healed = [Effect::SetDefault(Entry::Slot(id(1))), Effect::Write(Change::ResetBoots(id(1)))];
    assert_eq!(step(&by_hand, &confirm).unwrap().1, healed);
    // A trial is decided with settings that are known, and nothing without the state.
    assert!(matches!(step(&unreadable(trial()), &confirm), Err(Refusal::Loader(_))));
    let lost = Machine { state: None, ..machine() };
    assert_eq!(step(&lost, &confirm), Err(Refusal::StateLost));
    assert!(step(&unreadable(lost), &confirm).is_err());
}

#[test]
fn a_revert_needs_a_sound_firmware_that_is_not_revoked() {
    let revert = |slot| Event::Revert { slot, order: order() };
    let confirmed = after(&trial(), &Event::Confirm { at: 9 });
    let (reverted, effects) = step(&confirmed, &revert(None)).unwrap();
    assert_eq!(steps(&effects), plan::SELECT);
    assert_eq!(reverted.after_reboot(), Some(id(1)));
    let mut strict = confirmed.clone();
    strict.slots.insert(id(2), Holds::Verified(Firmware { epoch: 3, revoked_below: 2, ..firmware(2) }));
    assert_eq!(step(&strict, &revert(None)), Err(Refusal::Revoked { slot: id(1), epoch: 1, below: 2 }));
    assert_eq!(step(&confirmed, &revert(Some(id(2)))), Err(Refusal::RunsAlready(id(2))));
    assert_eq!(step(&trial(), &revert(None)), Err(Refusal::InTrial));
    let mut alone = machine();
    alone.slots.insert(id(2), Holds::Nothing);
    assert_eq!(step(&alone, &revert(None)), Err(Refusal::NoFallback));
}

#[test]
fn refusals_say_why() {
    let lost = Machine { state: None, ..machine() };
    let none = Machine { loader: LoaderFound::None, ..machine() };
    let nowhere = Machine { booted: None, ..machine() };
    let rejecting = Event::Reject { reason: "x".into(), at: 9 };
    let mut bad = machine();
    bad.slots.insert(id(2), Holds::Bad);
    let mut confirming = trial();
    confirming.apply(&Effect::Write(Change::Confirming));
    let cases = [
        (&machine(), activate(1), Refusal::RunsAlready(id(1)), ErrorKind::SlotInUse),
        (&machine(), activate(3), Refusal::Empty(id(3)), ErrorKind::SlotEmpty),
        (&machine(), activate(9), Refusal::NoSlot(id(9)), ErrorKind::InvalidArgument),
        (&bad, activate(2), Refusal::Bad(id(2)), ErrorKind::SlotBad),
        (&trial(), activate(1), Refusal::NotConfirmed, ErrorKind::NotConfirmed),
        (&lost, activate(2), Refusal::StateLost, ErrorKind::Device),
        (&none, activate(2), Refusal::NoLoader, ErrorKind::Device),
        (
            &machine(),
            Event::Deactivate { slot: id(2), at: 9 },
            Refusal::NotSelected(id(2)),
            ErrorKind::InvalidArgument,
        ),
        (&trial(), Event::Deactivate { slot: id(2), at: 9 }, Refusal::InTrial, ErrorKind::InvalidArgument),
        (&machine(), rejecting.clone(), Refusal::NoTrial, ErrorKind::InvalidArgument),
        (&confirming, rejecting, Refusal::Confirming, ErrorKind::InvalidArgument),
        (&nowhere, Event::Confirm { at: 9 }, Refusal::NothingRuns, ErrorKind::InvalidArgument),
    ];
    for (machine, event, refusal, kind) in cases {
        assert_eq!(step(machine, &event), Err(refusal.clone()), "{event:?}");
        assert_eq!(refusal.kind(), kind);
    }
}

#[test]
fn what_runs_or_starts_next_is_never_changed() {
    let selected = after(&machine(), &activate(2));
    assert_eq!(machine().admit_change(id(1)), Err(Refusal::Runs(id(1))));
    assert_eq!(machine().admit_change(id(2)), Ok(()));
    assert_eq!(selected.admit_change(id(2)), Err(Refusal::Selected(id(2))));
    assert_eq!(trial().admit_change(id(1)), Err(Refusal::RunsNext(id(1))));
    assert_eq!((trial().admit_install(), machine().admit_install()), (Err(Refusal::NotConfirmed), Ok(())));
    let recovery = Machine { booted: None, ..machine() };
    assert_eq!(recovery.admit_change(id(1)), Err(Refusal::RunsNext(id(1))));
    let mut broken = recovery.clone();
    broken.slots.insert(id(1), Holds::Bad);
    assert_eq!((broken.admit_change(id(1)), broken.admit_install()), (Ok(()), Ok(())));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut state = State::default();
    for number in 0..40_u8 {
        state.pending = Some(Pending {
            slot: id(2),
            root_hash: Sha256Hex([number; 32]),
            version: String::new(),
            from_version: String::new(),
            kind: SelectionKind::Upgrade,
            message: String::new(),
            who: String::new(),
            at: 0,
            confirming: false,
            unknown: BTreeMap::new(),
        });
        let reason = "ü".repeat(4000);
        Change::Ended { outcome: UpgradeOutcome::Failed, reason, refused: true, at: 1 }.apply(&mut state);
    }
    assert_eq!(state.refused.len(), REFUSED_LIMIT);
    assert_eq!(state.refused[0].root_hash, Sha256Hex([8; 32]), "the oldest go");
    assert!(state.refused.iter().all(|refused| refused.reason.len() <= 256));
    assert!(state.last_upgrade.as_ref().unwrap().reason.len() <= TEXT_LIMIT);
    assert!(state.render().len() < 32 << 10, "{}", state.render().len());
}

proptest! {
    #[test]
    fn a_shortened_text_is_its_beginning(text in "\\PC{0,40}", limit in 0_usize..60) {
        let short = shortened(&text, limit);
        prop_assert!(text.starts_with(&short) && short.len() <= limit);
        prop_assert!(short == text || short.len() + 4 > limit);
    }
}
