//! Every operation on a slot, cut everywhere: what the table "Who writes what, when" says of each cut.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its media fails here")]

use std::sync::LazyLock;

use slotd::store::InstallRequest;
use system_tests::crash::appliance::{Appliance, Operation, request};
use system_tests::crash::law::Outcome;
use system_tests::crash::states::Bounds;
use system_tests::crash::{Report, Scenario, faults};
use system_tests::recorder::{Event, Media};

static APPLIANCE: LazyLock<Appliance> = LazyLock::new(|| {
    let work = tempfile::tempdir().unwrap();
    Appliance::new(work.path()).unwrap()
});

fn replace() -> InstallRequest {
    InstallRequest { replace: true, ..request() }
}

fn passes(name: &str, scenario: &Scenario<'_>, bounds: &Bounds) -> Report {
    let report = scenario.check(bounds);
    println!("{name}: {} events, {report}", scenario.log.len());
    assert!(report.violations.is_empty(), "{name}: {report}");
    report
}

#[test]
fn an_install_into_an_empty_slot_survives_every_cut() {
    let operation = Operation::Install(&APPLIANCE.new, request());
    let scenario = Scenario::record(&APPLIANCE, APPLIANCE.fresh.clone(), operation).unwrap();
    assert_eq!(scenario.before, Outcome::Empty);
    let report = passes("install into an empty slot", &scenario, &Bounds::quick());
    assert!(report.states >= 500 && report.second_cuts >= 100, "{report}");
}

#[test]
fn an_install_into_a_used_slot_survives_every_cut() {
    let start = APPLIANCE.filled_with(&APPLIANCE.old).unwrap();
    let operation = Operation::Install(&APPLIANCE.new, replace());
    let scenario = Scenario::record(&APPLIANCE, start, operation).unwrap();
    assert_eq!(scenario.before, Outcome::Verified(APPLIANCE.old.root_hash()));
    let report = passes("install into a used slot", &scenario, &Bounds::quick());
    assert!(report.states >= 500 && report.second_cuts >= 100, "{report}");
}

#[test]
fn a_repair_survives_every_cut() {
    let start = APPLIANCE.damaged(&APPLIANCE.old).unwrap();
    let repair = InstallRequest { repair: true, ..request() };
    let operation = Operation::Install(&APPLIANCE.old, repair);
    let scenario = Scenario::record(&APPLIANCE, start, operation).unwrap();
    assert_eq!(scenario.before, Outcome::Bad("blocks".into()));
    let report = passes("repair", &scenario, &Bounds::quick());
    assert!(report.states >= 25, "{report}");
}

#[test]
fn a_deletion_survives_every_cut() {
    let start = APPLIANCE.filled_with(&APPLIANCE.old).unwrap();
    let scenario = Scenario::record(&APPLIANCE, start, Operation::Delete).unwrap();
    let report = passes("delete", &scenario, &Bounds::quick());
    assert!(report.states >= 10, "{report}");
    let start = APPLIANCE.interrupted(&APPLIANCE.old).unwrap();
    let scenario = Scenario::record(&APPLIANCE, start, Operation::Delete).unwrap();
    assert_eq!(scenario.before, Outcome::Writing);
    passes("delete an interrupted install", &scenario, &Bounds::quick());
}

#[test]
fn a_cancelled_install_survives_every_cut() {
    let start = APPLIANCE.filled_with(&APPLIANCE.old).unwrap();
    let operation = Operation::Install(&APPLIANCE.new, replace());
    let scenario = Scenario::record_with(&APPLIANCE, start, operation, |recorder, _| {
        APPLIANCE.cancel(&APPLIANCE.new, &replace(), recorder)
    })
    .unwrap();
    let report = passes("cancel", &scenario, &Bounds::quick());
    assert!(report.states >= 40, "{report}");
}

/// Without a power cut between them, what the cancelled install wrote is not yet flushed when the second one finds it.
#[test]
fn a_resumed_install_survives_every_cut() {
    let operation = Operation::Install(&APPLIANCE.new, request());
    let scenario =
        Scenario::record_with(&APPLIANCE, APPLIANCE.fresh.clone(), operation, |recorder, operation| {
            APPLIANCE.cancel(&APPLIANCE.new, &request(), recorder)?;
            APPLIANCE.carry_out(operation, recorder)
        })
        .unwrap();
    let report = passes("cancel and resume", &scenario, &Bounds::quick());
    assert!(report.states >= 60, "{report}");
}

#[test]
fn an_install_over_an_interrupted_one_survives_every_cut() {
    let start = APPLIANCE.interrupted(&APPLIANCE.old).unwrap();
    let operation = Operation::Install(&APPLIANCE.new, request());
    let scenario = Scenario::record(&APPLIANCE, start, operation).unwrap();
    assert_eq!(scenario.before, Outcome::Writing);
    let report = passes("install over an interrupted one", &scenario, &Bounds::quick());
    assert!(report.states >= 40, "{report}");
}

/// A checker that finds nothing proves nothing: each of these must be found.
#[test]
fn planted_faults_are_found() {
    type Fault = fn(&Media, &[Event]) -> Vec<Event>;
    let planted: [(&str, Fault, &str); 7] = [
        ("parts not flushed before the trailer", faults::unflushed_parts, "bad blocks"),
        ("trailer before parts", faults::trailer_before_parts, "right is [Writing]"),
        ("trailer not zeroed", faults::trailer_not_zeroed, "right is [Writing]"),
        ("intent dropped early", faults::intent_dropped_early, "is Empty"),
        ("removal not synced", faults::removal_not_synced, "its boot image has"),
        ("intent not flushed", faults::intent_not_flushed, "is Empty"),
        ("boot image before the trailer", faults::boot_image_before_trailer, "its boot image has"),
    ];
    let start = APPLIANCE.filled_with(&APPLIANCE.old).unwrap();
    let operation = Operation::Install(&APPLIANCE.new, replace());
    let mut scenario = Scenario::record(&APPLIANCE, start, operation).unwrap();
    let log = scenario.log.clone();
    for (name, fault, sign) in planted {
        scenario.log = fault(&scenario.start, &log);
        assert_ne!(scenario.log, log, "{name}: nothing was planted");
        let report = scenario.check(&Bounds::quick().once());
        println!("{name}: {report}");
        assert!(report.violations.iter().any(|v| v.contains(sign)), "{name}: {report}");
    }
}
