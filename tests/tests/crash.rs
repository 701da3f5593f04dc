//! The crash checker itself: what it reaches, that it finds what is wrong, and that it says the same twice.
//! `cargo xtask prove` runs it at length.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its media fails here")]

use std::collections::HashSet;
use std::sync::LazyLock;

use slotd::domain::plan;
use system_tests::crash::Scenario;
use system_tests::crash::appliance::{Appliance, Operation, request};
use system_tests::crash::case::{Case, shrink};
use system_tests::crash::faults::{self, Plan};
use system_tests::crash::selection::ground::{Ground, Loader};
use system_tests::crash::selection::{Sample, list};
use system_tests::crash::stage::Stage;
use system_tests::crash::states::{Bounds, FileFate, Origin, rebuild};
use system_tests::crash::{Cut, During, Violation, data, mishaps, scenarios};

static STAGE: LazyLock<Stage> = LazyLock::new(|| Stage::new().unwrap());

const FEW: Bounds = Bounds { tears: 2, drawn: 1, files: 6, ..Bounds::quick() };

fn scenario(name: &str) -> Scenario<'static> {
    let (_, make) = scenarios::ALL.iter().find(|(known, _)| *known == name).unwrap();
    make(&STAGE.appliance).unwrap()
}

#[test]
fn an_install_into_a_used_slot_survives_cuts() {
    let report = scenario("install into a used slot").check(&FEW);
    assert!(report.violations.is_empty(), "{report}");
    assert!(report.distinct >= 60 && report.seen_borders == report.borders, "{report}");
}

/// The boot image is copied in two pieces.
#[test]
fn a_large_boot_image_survives_cuts() {
    let work = tempfile::tempdir().unwrap();
    let appliance = Appliance::with_boot_image(work.path(), (1 << 20) + 12_345).unwrap();
    let operation = Operation::Install(&appliance.new, request());
    let scenario = Scenario::record(&appliance, appliance.fresh.clone(), operation).unwrap();
    let report = scenario.check(&Bounds { repeat: 0, ..FEW });
    assert!(report.violations.is_empty() && report.states >= 60, "{report}");
}

#[test]
fn the_same_seed_tries_the_same_states() {
    let deletion = scenario("delete");
    let bounds = Bounds { drawn: 4, second: 1, third: 10, ..Bounds::quick() };
    let runs = [7, 7, 8].map(|seed| deletion.check(&bounds.seeded(seed)));
    let told = runs.each_ref().map(|run| (run.states, run.second, run.third, run.distinct, run.set));
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0].4, told[2].4, "another seed draws others");
    assert!(runs[0].second > 0 && runs[0].third > 0, "{}", runs[0]);
}

/// Another run has other keys, other signatures and other addresses; what it tries is the same.
#[test]
fn another_run_tries_the_same_states() {
    let told = [(); 2].map(|()| {
        let work = tempfile::tempdir().unwrap();
        let ground = Ground::new(work.path(), Loader::Grub).unwrap();
        // Its recovery image is replaced, and that has a signature with certificates.
        let few = Sample { bounds: FEW, again: FEW, neighbours: false, losses: 0, ..Sample::quick() };
        let sample = Sample { distinct: 20, again_at_least: 3, ..few };
        let report = ground.confirmation().unwrap().check(&sample);
        (report.events, report.states, report.second, report.third, report.distinct, report.set)
    });
    assert!(told[0].2 > 0 && told[0].3 > 0, "{told:?}");
    assert_eq!(told[0], told[1]);
}

#[test]
fn what_is_on_the_data_partition_survives_cuts() {
    for (name, make) in data::ALL {
        let report = make(&STAGE.appliance).unwrap().check(&data::Sample::quick());
        assert!(report.violations.is_empty(), "{name}: {report}");
        assert!(report.distinct > 1 && report.seen_borders == report.borders, "{name}: {report}");
    }
}

#[test]
fn faults_on_the_data_partition_are_found_shrunk_and_replayed() {
    for fault in data::faults::FAULTS {
        let faulty = fault.planted(&STAGE.appliance).unwrap();
        let report = faulty.check(&data::Sample::once());
        let signs = |violation: &&Violation| violation.why.contains(fault.sign);
        let found = report.violations.iter().filter(signs).max_by_key(|found| found.cuts[0].origin.weight());
        let found = found.unwrap_or_else(|| panic!("{fault:?}: {report}"));
        let small = shrink(&faulty, found).unwrap();
        assert!(small.cuts[0].origin.weight() <= found.cuts[0].origin.weight());
        let file = tempfile::NamedTempFile::new().unwrap();
        let (cuts, violation) = (small.cuts, Some(small.why));
        let case =
            Case { scenario: fault.scenario.into(), fault: Some(format!("{fault:?}")), cuts, violation };
        case.write(file.path()).unwrap();
        assert_eq!(Case::read(file.path()).unwrap().replay(&STAGE).unwrap(), case.violation);
        // A cut that names an event which only the fault has is of no other log.
        if case.cuts[0].origin.writes.is_empty() {
            let sound = Case { fault: None, violation: None, ..case };
            assert_eq!(sound.replay(&STAGE).unwrap(), None, "{fault:?}");
        }
    }
}

/// Every step of the three plans has at least one planted fault; `cargo xtask prove` demands that each is found.
#[test]
fn every_step_has_a_planted_fault() {
    let planted: HashSet<_> = faults::ALL.iter().map(|fault| (fault.plan, fault.step)).collect();
    let plans = [
        (Plan::Install, plan::INSTALL.as_slice()),
        (Plan::Delete, &plan::DELETE),
        (Plan::Settle, &plan::SETTLE),
    ];
    for (plan, steps) in plans {
        for step in steps {
            assert!(planted.contains(&(plan, *step)), "{plan:?}, {step:?}: no fault is planted");
        }
    }
}

/// A fault is planted, found, made small, written, read, and shown again; without the fault the same cuts pass.
#[test]
fn a_violation_is_shrunk_and_replayed() {
    let fault = faults::ALL.iter().find(|f| f.plan == Plan::Delete && f.sign == "right is").unwrap();
    let faulty = fault.planted(&STAGE.appliance).unwrap();
    let report = faulty.check(&Bounds::quick().once());
    let found = report.violations.iter().max_by_key(|violation| violation.cuts[0].origin.weight()).unwrap();
    let small = shrink(&faulty, found).unwrap();
    assert!(small.cuts[0].origin.weight() <= found.cuts[0].origin.weight());
    // A write that is lost, and one that is torn.
    assert!(small.cuts[0].origin.weight().0 <= 3, "{small}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let case = Case {
        scenario: "delete".into(),
        fault: Some(format!("{fault:?}")),
        cuts: small.cuts,
        violation: Some(small.why),
    };
    case.write(file.path()).unwrap();
    let read = Case::read(file.path()).unwrap();
    assert_eq!(read, case);
    assert_eq!(read.replay(&STAGE).unwrap(), case.violation);
    let sound = Case { fault: None, violation: None, ..case };
    assert_eq!(sound.replay(&STAGE).unwrap(), None);
}

/// The same in the second table, of a fault that shows after a second cut too.
#[test]
fn a_violation_of_a_selection_is_shrunk_and_replayed() {
    for ground in &STAGE.grounds {
        let fault = list::faults(ground).into_iter().find(|f| f.name == "of the wrong slot").unwrap();
        let faulty = fault.planted(ground).unwrap();
        let report = faulty.check(&Sample::once());
        let found =
            report.violations.iter().max_by_key(|violation| violation.cuts[0].origin.weight()).unwrap();
        let small = shrink(&faulty, found).unwrap();
        assert!(small.cuts[0].origin.weight().0 <= 1, "{small}");

        let file = tempfile::NamedTempFile::new().unwrap();
        let case = Case {
            scenario: ground.named(faulty.name),
            fault: Some(ground.named(&format!("{fault:?}"))),
            cuts: small.cuts,
            violation: Some(small.why),
        };
        case.write(file.path()).unwrap();
        let read = Case::read(file.path()).unwrap();
        assert_eq!(read.replay(&STAGE).unwrap(), case.violation);
        let sound = Case { fault: None, violation: None, ..case };
        assert_eq!(sound.replay(&STAGE).unwrap(), None);
    }
}

/// Cuts in two starts in a row, a file that is lost with another one, and lost settings are replayed as they were made.
#[test]
fn cuts_in_starts_are_replayed() {
    let again = |at: usize| Cut::new(During::Start, Origin::at(at));
    let gone = [("sps-slot-1.efi".to_owned(), FileFate::Gone)];
    let lost = Cut { lost: Some("no settings".into()), ..Cut::new(During::Run, Origin::at(2)) };
    for cuts in [
        vec![Cut::new(During::Run, Origin::at(3)), again(1), again(1)],
        vec![Cut::new(During::Run, Origin { files: gone.into(), ..Origin::at(1) })],
        vec![lost, again(2)],
    ] {
        for loader in ["GRUB", "systemd-boot"] {
            let (scenario, cuts) = (format!("{loader}: activate"), cuts.clone());
            let case = Case { scenario, fault: None, cuts, violation: None };
            assert_eq!(case.replay(&STAGE).unwrap(), None, "{case:?}");
        }
    }
}

/// What the planted faults "not read back" leave out: with it, none of these installs ends.
#[test]
fn reading_back_finds_what_a_medium_writes_otherwise() {
    let scenario = scenario("install into a used slot");
    for step in [plan::Step::WriteParts, plan::Step::WriteTrailer, plan::Step::CopyBootImage] {
        let found = scenario.on_silent_media(step, false).unwrap_err().to_string();
        assert!(!found.is_empty() && scenario.on_silent_media(step, true).is_ok(), "{step:?}: {found}");
        println!("{step:?}: {found}");
    }
}

/// Three cuts in a row are replayed as they were made.
#[test]
fn cuts_in_a_row_are_replayed() {
    let file = ("sps-slot-2.efi".to_owned(), FileFate::Short { old: true, length: 512 });
    let cut = |during, cut| Cut::new(during, Origin::at(cut));
    let first = Cut::new(During::Run, Origin { files: [file].into(), ..Origin::at(3) });
    let cuts = vec![first, cut(During::Recovery, 1), cut(During::Repetition, 0)];
    let case = Case { scenario: "delete".into(), fault: None, cuts, violation: None };
    assert_eq!(case.replay(&STAGE).unwrap(), None);
}

#[test]
fn an_origin_builds_the_same_media_again() {
    let Scenario { start, log, .. } = scenario("delete");
    let (mut now, whole) = (start.clone(), rebuild(&start, &log, &Origin::at(log.len())));
    for event in &log {
        now.apply(event);
    }
    assert!(now == whole && now != start);
    let lied = Origin { lied: Some(1), ..Origin::at(2) };
    assert!(rebuild(&start, &log, &lied) == rebuild(&start, &log, &Origin::at(1)));
}

#[test]
fn failing_media_break_no_promise() {
    for name in ["install into a used slot", "delete"] {
        for found in mishaps::check(&scenario(name), 12) {
            let mishaps::Found { family, states, violations } = found;
            assert!(
                states > 0 && violations.is_empty(),
                "{name}, {family:?}: {states} states, {violations:#?}"
            );
        }
    }
}
