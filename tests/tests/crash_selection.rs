//! Selecting, trying and confirming, cut everywhere and cut again: what the second table of "Who writes what, when" says.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its media fails here")]

use std::sync::LazyLock;

use slotd::domain::plan::SelectStep::{
    self, ClearOneShot, CountBoot, RefreshRecovery, ResetBoots, SetDefault, SetOneShot, WriteConfirmed,
    WriteConfirming, WriteEnded, WritePending,
};
use system_tests::crash::selection::Scenario;
use system_tests::crash::selection::ground::Ground;

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let work = tempfile::tempdir().unwrap();
    Ground::new(work.path()).unwrap()
});

/// Checks a scenario whose steps are `steps`; of the states after a second cut, one in `sample`.
fn passes(scenario: &Scenario<'_>, steps: &[SelectStep], sample: usize) {
    assert_eq!(scenario.steps(), steps, "{}: {:#?}", scenario.name, scenario.log);
    let report = scenario.check(sample);
    println!("{}: {report}", scenario.name);
    assert!(report.violations.is_empty(), "{}: {report}", scenario.name);
    assert!(report.states > steps.len() && report.third > steps.len(), "{}: {report}", scenario.name);
}

#[test]
fn a_selection_survives_every_cut() {
    passes(&GROUND.activation().unwrap(), &[WritePending, SetOneShot], 1);
    let over = GROUND.activation_over_another().unwrap();
    passes(&over, &[ClearOneShot, WritePending, SetOneShot], 1);
    passes(&GROUND.reversion().unwrap(), &[WritePending, SetOneShot], 1);
}

#[test]
fn a_withdrawal_survives_every_cut() {
    passes(&GROUND.withdrawal().unwrap(), &[ClearOneShot, WriteEnded], 1);
}

#[test]
fn a_trial_survives_every_cut() {
    passes(&GROUND.count().unwrap(), &[ClearOneShot, CountBoot], 1);
    passes(&GROUND.count_without_clearing().unwrap(), &[CountBoot], 1);
    passes(&GROUND.rejection().unwrap(), &[WriteEnded], 1);
    let start = GROUND.start_after_a_failed_trial().unwrap();
    passes(&start, &[CountBoot, WriteEnded, ResetBoots], 1);
}

#[test]
fn a_confirmation_survives_every_cut() {
    let steps = [WriteConfirming, SetDefault, WriteConfirmed, RefreshRecovery];
    passes(&GROUND.confirmation().unwrap(), &steps, 9);
    passes(&GROUND.confirmation_of_a_revert().unwrap(), &steps[..3], 1);
}

#[test]
fn a_fallback_survives_every_cut() {
    passes(&GROUND.fallback().unwrap(), &[WritePending, SetOneShot], 1);
    let forward = GROUND.roll_forward().unwrap();
    // The default is set again, which changes nothing.
    let steps = [ClearOneShot, WriteConfirmed, CountBoot, RefreshRecovery, ResetBoots];
    passes(&forward, &steps, 20);
    passes(&GROUND.roll_forward_from_the_old().unwrap(), &[SetDefault, WriteConfirmed], 7);
}

#[test]
fn a_state_reset_survives_every_cut() {
    passes(&GROUND.reset().unwrap(), &[], 1);
    passes(&GROUND.reset_while_selected().unwrap(), &[ClearOneShot], 1);
}

/// A checker that finds nothing proves nothing: each of these must be found.
#[test]
fn planted_faults_are_found() {
    type Record = fn() -> Scenario<'static>;
    type Plant = fn(&mut Scenario<'_>);
    let activation: Record = || GROUND.activation().unwrap();
    let withdrawal: Record = || GROUND.withdrawal().unwrap();
    let confirmation: Record = || GROUND.confirmation().unwrap();
    let going_back: Record = || GROUND.confirmation_of_a_revert().unwrap();
    let counting: Record = || GROUND.count_without_clearing().unwrap();
    let planted: [(&str, Record, Plant, &str); 14] = [
        ("settings across two sectors", activation, |s| s.across_sectors(), "the block is torn"),
        (
            "one-shot before pending",
            activation,
            |s| s.earlier(SetOneShot, WritePending),
            "for the loader: true",
        ),
        ("pending not flushed", activation, |s| s.unflushed(WritePending), "for the loader: true"),
        ("one-shot lost after it was durable", activation, |s| s.without(SetOneShot), "right is"),
        ("one-shot stays when it has ended", withdrawal, |s| s.without(ClearOneShot), "for the loader: true"),
        (
            "ended before the one-shot went",
            withdrawal,
            |s| s.earlier(WriteEnded, ClearOneShot),
            "for the loader",
        ),
        (
            "default before confirming",
            confirmation,
            |s| s.earlier(SetDefault, WriteConfirming),
            "the default is",
        ),
        ("confirming left out", confirmation, |s| s.without(WriteConfirming), "the default is"),
        (
            "confirmed before default",
            confirmation,
            |s| s.earlier(WriteConfirmed, SetDefault),
            "the default is",
        ),
        ("default lost after it was durable", confirmation, |s| s.without(SetDefault), "the default is"),
        ("old recovery image removed first", confirmation, |s| s.removal_first(), "no recovery image"),
        ("boot not counted", counting, |s| s.without(CountBoot), "right is"),
        (
            "epoch floor lowered",
            going_back,
            |s| s.states_become(|state| state.epoch_floor = 1),
            "the epoch floor",
        ),
        (
            "unknown fields dropped",
            activation,
            |s| s.states_become(|state| state.unknown.clear()),
            "was lost",
        ),
    ];
    for (name, record, plant, sign) in planted {
        let mut scenario = record();
        let log = scenario.log.clone();
        plant(&mut scenario);
        assert_ne!(scenario.log, log, "{name}: nothing was planted");
        let report = scenario.check(0);
        println!("{name}: {report}");
        assert!(report.violations.iter().any(|v| v.contains(sign)), "{name}: {report}");
    }
}
