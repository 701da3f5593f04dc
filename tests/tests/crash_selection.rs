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

/// Checks some scenarios quickly; `cargo xtask prove` looks at all of them closely.
fn pass(ground: &Ground, wanted: impl Fn(usize) -> bool) {
    let mut wrong = Vec::new();
    let all = all(ground).into_iter().enumerate().filter(|(index, _)| wanted(*index));
    for (_, (name, make)) in all {
        let scenario = make(ground).unwrap();
        assert_eq!(scenario.name, name);
        let report = scenario.check(&Sample::quick());
        println!("{:?}: {name}: {report}", ground.loader());
        let steps = scenario.steps();
        let seen = report.seen_borders == report.borders && report.borders > steps.len();
        if !report.violations.is_empty() || report.distinct == 0 || !seen {
            wrong.push(format!("{name} ({steps:?}): {report}"));
        }
    }
    assert!(wrong.is_empty(), "{:?}: {}", ground.loader(), wrong.join("\n"));
}

#[test]
fn every_eighth_scenario_under_grub_survives_every_cut() {
    pass(&GRUB, |index| index % 8 == 0);
}

#[test]
fn every_eighth_scenario_under_systemd_boot_survives_every_cut() {
    pass(&UEFI, |index| index % 8 == 4);
}

/// A checker that finds nothing proves nothing: `cargo xtask prove` finds each of them.
#[test]
fn a_fault_is_planted_in_each_step() {
    for ground in [&*GRUB, &*UEFI] {
        let faults = faults(ground);
        let steps: BTreeSet<_> = faults.iter().map(|fault| fault.step).collect();
        assert_eq!(steps, select_steps().into_iter().collect());
        let fault = faults.first().unwrap();
        let report = fault.planted(ground).unwrap().check(&Sample::once());
        assert!(
            report.violations.iter().any(|violation| violation.why.contains(fault.sign)),
            "{fault:?}: {report}"
        );
    }
}
