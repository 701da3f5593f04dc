//! Each refusal of the policy, with the name that the contract gives it and both sides in its text.

use slotd::domain::manifest::{Manifest, UpgradeFrom};
use slotd::domain::policy::{Appliance, admit};
use slotd::domain::upgrade_check::{Verdict, VersionFacts, version};
use sps_base::error::ErrorKind;

use super::sample;

const APPLIANCE: Appliance<'_> =
    Appliance { product: "sps", hardware: "m1", epoch_floor: 3, running: Some("8.0.0") };

fn refused(manifest: &Manifest, appliance: &Appliance<'_>, kind: ErrorKind, texts: &[&str]) {
    let error = admit(manifest, appliance).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{error:?} does not name {text}");
    }
}

#[test]
fn a_fitting_firmware_is_admitted() {
    admit(&sample(), &APPLIANCE).unwrap();
    admit(&sample(), &Appliance { epoch_floor: 0, running: None, ..APPLIANCE }).unwrap();
    let mut any = sample();
    any.compatible.hardware = vec!["m0".into(), "*".into()];
    admit(&any, &Appliance { hardware: "m7", ..APPLIANCE }).unwrap();
    // The same version again is no step back.
    admit(&sample(), &Appliance { running: Some("8.0.1"), ..APPLIANCE }).unwrap();
}

#[test]
fn other_products_and_hardware_are_incompatible() {
    let other = Appliance { product: "box", ..APPLIANCE };
    refused(&sample(), &other, ErrorKind::Incompatible, &["sps", "box"]);
    let other = Appliance { hardware: "m2", ..APPLIANCE };
    refused(&sample(), &other, ErrorKind::Incompatible, &["hardware not supported", "m1", "m2"]);
    // A model is a whole name, never a pattern.
    for hardware in ["", "m", "m11", "M1"] {
        refused(&sample(), &Appliance { hardware, ..APPLIANCE }, ErrorKind::Incompatible, &["m1"]);
    }
}

#[test]
fn an_epoch_below_the_floor_is_too_old() {
    let floor = |epoch_floor| Appliance { epoch_floor, running: None, ..APPLIANCE };
    refused(&sample(), &floor(4), ErrorKind::EpochTooOld, &["epoch 3", "below 4"]);
    admit(&sample(), &floor(3)).unwrap();
    // The floor counts even where the version would be refused too: it is the graver reason.
    let both = Appliance { epoch_floor: 4, running: Some("1.0"), ..APPLIANCE };
    refused(&sample(), &both, ErrorKind::EpochTooOld, &[]);
}

#[test]
fn only_listed_lines_from_their_minimum_are_upgraded() {
    let from = |running| Appliance { running: Some(running), ..APPLIANCE };
    for running in ["7.0.5", "7.0.5.1", "7.0.99", "8.0.0", "8.0.1-rc1"] {
        admit(&sample(), &from(running)).unwrap_or_else(|e| panic!("{running}: {e}"));
    }
    for running in ["7.0.4", "7.0.5-rc1", "7.1.0", "6.9", "70.5", "8.0.0-beta"] {
        refused(
            &sample(),
            &from(running),
            ErrorKind::VersionPolicy,
            &["8.0.1", running, "7.0 from 7.0.5, 8 from 8.0.0"],
        );
    }
    let mut none = sample();
    none.upgrade_from = Vec::new();
    refused(&none, &from("8.0.0"), ErrorKind::VersionPolicy, &["nothing"]);
    admit(&none, &Appliance { running: None, ..APPLIANCE }).unwrap();
}

#[test]
fn an_older_version_is_refused_even_where_its_line_is_listed() {
    let from = |running| Appliance { running: Some(running), ..APPLIANCE };
    for running in ["8.0.2", "8.1", "8.0.1.1"] {
        refused(&sample(), &from(running), ErrorKind::VersionPolicy, &["8.0.1", "older", running]);
    }
    let mut candidate = sample();
    candidate.version = "8.0.1-rc1".into();
    refused(&candidate, &from("8.0.1"), ErrorKind::VersionPolicy, &["8.0.1-rc1", "older"]);
}

#[test]
fn a_running_version_that_is_none_is_refused() {
    let running = Appliance { running: Some("eight"), ..APPLIANCE };
    refused(&sample(), &running, ErrorKind::VersionPolicy, &["eight"]);
    let mut all = sample();
    all.upgrade_from = vec![UpgradeFrom { from: String::new(), min: String::new() }];
    refused(&all, &APPLIANCE, ErrorKind::VersionPolicy, &[]);
}

#[test]
fn an_install_and_a_test_read_the_rules_alike() {
    let mut manifest = sample();
    let rule = |from: &str, min: &str| UpgradeFrom { from: from.into(), min: min.into() };
    manifest.upgrade_from = vec![rule("8", "8.0.5"), rule("8.0", "8.0.0")];
    for running in ["8.0.0", "7.9.9"] {
        let admitted = admit(&manifest, &Appliance { running: Some(running), ..APPLIANCE }).is_ok();
        let facts = VersionFacts { running: Some(running), is_running: false, epoch_floor: 0, refused: None };
        let passed = version(&manifest, &facts).verdict == Verdict::Passed;
        assert_eq!((admitted, passed), (running == "8.0.0", running == "8.0.0"), "{running}");
    }
}
