//! Selecting, trying and confirming, cut everywhere, cut again, and a third time: what the second table of "Who writes
//! what, when" says.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its media fails here")]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use system_tests::crash::selection::Sample;
use system_tests::crash::selection::ground::{Ground, Loader};
use system_tests::crash::selection::list::{all, faults, select_steps};

fn ground(loader: Loader) -> Ground {
    let work = tempfile::tempdir().unwrap();
    Ground::new(work.path(), loader).unwrap()
}

static GRUB: LazyLock<Ground> = LazyLock::new(|| ground(Loader::Grub));
static UEFI: LazyLock<Ground> = LazyLock::new(|| ground(Loader::SystemdBoot));

/// Distinct states that each scenario must have.
const ENOUGH: usize = 500;

/// Checks every scenario that `wanted` names.
fn pass(ground: &Ground, wanted: impl Fn(usize, &str) -> bool) {
    let mut wrong = Vec::new();
    let all = all(ground).into_iter().enumerate().filter(|(index, (name, _))| wanted(*index, name));
    for (_, (name, make)) in all {
        let scenario = make(ground).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(scenario.name, name);
        let report = scenario.check(&Sample::quick());
        println!("{:?}: {name}: {report}", ground.loader());
        let steps = scenario.steps();
        let seen = report.seen_borders == report.borders && report.borders > steps.len();
        if !report.violations.is_empty() || report.distinct < ENOUGH || !seen {
            wrong.push(format!("{name} ({steps:?}): {report}"));
        }
    }
    assert!(wrong.is_empty(), "{:?}: {}", ground.loader(), wrong.join("\n"));
}

#[test]
fn every_second_scenario_under_grub_survives_every_cut() {
    pass(&GRUB, |index, _| index % 2 == 0);
}

#[test]
fn the_others_under_grub_survive_every_cut() {
    pass(&GRUB, |index, _| index % 2 == 1);
}

/// Where systemd-boot has settings of its own to lose; `cargo xtask prove` runs all of them.
#[test]
fn systemd_boot_survives_every_cut() {
    let wanted = [
        "activate",
        "deactivate",
        "boot counting",
        "trial good",
        "confirm",
        "confirm a revert",
        "fallback",
        "roll forward in the initrd",
        "lost loader variables",
        "lost default variable",
        "both copies of the default broken",
        "broken one-shot",
    ];
    pass(&UEFI, |_, name| wanted.contains(&name));
}

/// A checker that finds nothing proves nothing: each of these must be found, by what it breaks.
#[test]
fn planted_faults_are_found_in_each_step() {
    let mut missed = Vec::new();
    for ground in [&*GRUB, &*UEFI] {
        let faults = faults(ground);
        let steps: BTreeSet<_> = faults.iter().map(|fault| fault.step).collect();
        assert_eq!(steps, select_steps().into_iter().collect(), "a fault in each step");
        for fault in faults {
            let mut scenario = (fault.make)(ground).unwrap();
            let log = scenario.log.clone();
            (fault.plant)(&mut scenario);
            assert_ne!(scenario.log, log, "{fault:?}: nothing was planted");
            let report = scenario.check(&Sample::once());
            let found = report.violations.iter().find(|violation| violation.contains(fault.sign));
            match found {
                Some(how) => println!("{:?}: {fault:?}: {how}", ground.loader()),
                None => missed.push(format!("{:?}: {fault:?}: {report}", ground.loader())),
            }
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join("\n"));
}
