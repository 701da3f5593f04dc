//! What the builder makes is what slotd takes.

use std::fs;
use std::path::Path;

use ::slotd::domain::iso::{Head, parse_head};
use ::slotd::domain::signature::Keyring;
use sps_images::Built;

use crate::{placement, sample};

/// Late in 2026: within the validity of every development PKI.
const NOW: u64 = 1_795_000_000;

/// Asserts that slotd's own reader and verifier accept `built`.
pub(crate) fn assert_accepted(built: &Built) {
    let image = fs::read(&built.iso).unwrap();
    let head = parse_head(&image, Some(image.len() as u64)).unwrap();
    let Head::Complete(index) = head else { panic!("{head:?}") };
    let records = placement::records(&image);
    let payloads =
        records.iter().filter(|record| !["FIRMWARE", "sbom.spdx.json"].contains(&record.name.as_str()));
    assert_eq!(index.parts.len(), payloads.count(), "all files of the directory");
    let file = |name: &str| {
        let record = records.iter().find(|record| record.name == name).unwrap();
        &image[record.lba * 2048..record.lba * 2048 + record.size]
    };
    let pem = |name: &str| {
        let path: &Path = &sample::pki().keyring_dir().join(name);
        (name.to_owned(), fs::read(path).unwrap())
    };
    let keyring =
        Keyring::parse(&[pem("root.pem")], &[pem("root.crl"), pem("intermediate.crl")], NOW).unwrap();
    assert!(keyring.warnings().is_empty(), "{:?}", keyring.warnings());
    let verified = keyring.verify(file("manifest.json"), file("manifest.p7s"), NOW).unwrap();
    assert_eq!(*verified.get(), built.manifest);
}

#[test]
fn slotd_reads_and_trusts_what_the_builder_makes() {
    let scratch = sample::scratch();
    assert_accepted(&sample::iso(scratch.path()));
}
