use std::path::Path;

use sps_images::inspect::{InspectReport, inspect};
use sps_images::{Built, Pki};

use crate::{placement, sample};

fn report(iso: &Path) -> InspectReport {
    inspect(iso, &sample::pki().keyring_dir(), &sample::dirs()).unwrap()
}

/// Names of the checks that failed.
fn failed(report: &InspectReport) -> Vec<&str> {
    report.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect()
}

/// Inspects `built` with one byte of the file `name` flipped, `at` bytes into it.
fn tampered(built: &Built, name: &str, at: usize) -> InspectReport {
    let image = std::fs::read(&built.iso).unwrap();
    let record = placement::records(&image).into_iter().find(|record| record.name == name).unwrap();
    assert!(at < record.size);
    report(&sample::flipped(&built.iso, record.lba * 2048 + at))
}

#[test]
fn stock_tools_agree_with_a_good_iso() {
    let scratch = sample::scratch();
    let built = sample::iso(scratch.path());
    let report = report(&built.iso);
    assert!(report.ok(), "{report}");
    assert_eq!(report.manifest.as_ref(), Some(&built.manifest));
    let names: Vec<&str> = report.checks.iter().map(|check| check.name.as_str()).collect();
    for name in [
        "order (xorriso)",
        "signature (openssl cms)",
        "manifest",
        "sha256 of notes.md",
        "sha256 of news.md",
        "sha256 of root.verity",
        "sha256 of files.ndjson.zst",
        "root.erofs (veritysetup verify)",
        "superblock (veritysetup dump)",
        "file system (fsck.erofs)",
    ] {
        assert!(names.contains(&name), "no check {name:?} in {names:?}");
    }
    assert!(report.to_string().contains("ok   root.erofs (veritysetup verify)"), "{report}");
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["manifest"]["version"], "8.0.1");
}

#[test]
fn stock_tools_find_one_flipped_byte() {
    let scratch = sample::scratch();
    let built = sample::iso(scratch.path());

    let report = tampered(&built, "root.erofs", 70_000);
    assert!(failed(&report).contains(&"root.erofs (veritysetup verify)"), "{report}");
    assert!(!failed(&report).contains(&"signature (openssl cms)"), "{report}");
    assert!(report.to_string().contains("FAIL root.erofs"), "{report}");

    // A letter of a key: no manifest any more, and not what was signed.
    let report = tampered(&built, "manifest.json", 3);
    assert_eq!(failed(&report), ["signature (openssl cms)", "manifest"], "{report}");

    let last = built_size(&built, "manifest.p7s") - 1;
    let report = tampered(&built, "manifest.p7s", last);
    assert_eq!(failed(&report), ["signature (openssl cms)"], "{report}");

    let report = tampered(&built, "root.verity", 4096);
    assert!(failed(&report).contains(&"sha256 of root.verity"), "{report}");

    let report = tampered(&built, "notes.md", 0);
    assert_eq!(failed(&report), ["sha256 of notes.md"], "{report}");
}

fn built_size(built: &Built, name: &str) -> usize {
    let image = std::fs::read(&built.iso).unwrap();
    placement::records(&image).into_iter().find(|record| record.name == name).unwrap().size
}

#[test]
fn an_unsigned_and_a_foreign_iso_fail_by_their_signature_alone() {
    let scratch = sample::scratch();
    let at = scratch.path().join("tree");
    sample::tree(&at, &["a"]);
    let mut spec = sample::spec(&at);
    let foreign = Pki::open_or_create(scratch.path().join("foreign"), "Foreign").unwrap();
    let out = scratch.path().join("foreign.iso");
    sps_images::build_firmware(&spec, &sample::dirs(), &foreign, Some(&out)).unwrap();
    assert_eq!(failed(&report(&out)), ["signature (openssl cms)"]);
    let own = inspect(&out, &foreign.keyring_dir(), &sample::dirs()).unwrap();
    assert!(own.ok(), "{own}");

    spec.signed = false;
    let unsigned = sample::build(&spec, &scratch.path().join("unsigned.iso"));
    let report = report(&unsigned.iso);
    assert_eq!(failed(&report), ["signature (openssl cms)"]);
    assert!(report.to_string().contains("not signed"), "{report}");
}

#[test]
fn what_is_no_iso_is_reported() {
    let scratch = sample::scratch();
    let file = scratch.path().join("no.iso");
    std::fs::write(&file, sample::noise(1, 100_000)).unwrap();
    assert_eq!(failed(&report(&file)), ["extraction (xorriso)"]);
    assert!(
        inspect(&scratch.path().join("absent.iso"), &sample::pki().keyring_dir(), &sample::dirs()).is_err()
    );
}

#[test]
fn a_signed_list_of_contents_must_be_there() {
    let scratch = sample::scratch();
    let tree = scratch.path().join("tree");
    sample::tree(&tree, &["a"]);
    let mut spec = sample::spec(&tree);
    spec.meta.insert("sbom_sha256".into(), "0".repeat(64));
    let iso = scratch.path().join("without.iso");
    let built = sps_images::build_firmware(&spec, &sample::dirs(), &sample::pki(), Some(&iso)).unwrap();
    let report = report(&built.iso);
    assert_eq!(failed(&report), ["SBOM"], "{report}");
    assert!(report.to_string().contains("/sbom.spdx.json is not on the ISO"), "{report}");
}
