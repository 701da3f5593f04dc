use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use sps_images::{Pki, build_firmware};

use crate::sample;

#[test]
fn two_builds_of_one_tree_are_the_same_bits() {
    let scratch = sample::scratch();
    let (one, two) = (scratch.path().join("1.iso"), scratch.path().join("2.iso"));
    let at = scratch.path().join("tree");
    sample::tree(&at, &["a", "b", "c"]);
    sample::build(&sample::spec(&at), &one);
    sample::build(&sample::spec(&at), &two);
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "two builds differ");

    // Neither time stamps nor the order in which the files were made get into the ISO.
    let copy = scratch.path().join("copy");
    sample::tree(&copy, &["c", "a", "b"]);
    for name in ["usr/lib/a", "usr/text", "empty", "usr", "."] {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(copy.join(name)).unwrap().set_modified(time).unwrap();
    }
    sample::build(&sample::spec(&copy), &two);
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "the copy's build differs");
}

#[test]
fn another_version_is_another_image_of_the_same_salt() {
    let scratch = sample::scratch();
    let first = sample::iso(scratch.path());
    let at = scratch.path().join("tree");
    fs::write(at.join("version"), "8.0.2").unwrap();
    let mut spec = sample::spec(&at);
    spec.version = "8.0.2".into();
    let second = sample::build(&spec, &scratch.path().join("2.iso"));
    let (a, b) = (&first.manifest.root.verity, &second.manifest.root.verity);
    assert_eq!(a.salt, b.salt);
    assert_ne!(a.root_hash, b.root_hash);
    assert_ne!(a.uuid, b.uuid);
    assert_ne!(first.manifest_sha256, second.manifest_sha256);
}

#[test]
fn what_an_appliance_would_refuse_is_not_built() {
    let scratch = sample::scratch();
    let at = scratch.path().join("tree");
    sample::tree(&at, &["a"]);
    let refused = |change: &dyn Fn(&mut sps_images::FirmwareSpec)| {
        let mut spec = sample::spec(&at);
        change(&mut spec);
        let out = scratch.path().join("refused.iso");
        let error = build_firmware(&spec, &sample::dirs(), &sample::pki(), Some(&out)).unwrap_err();
        assert!(!out.exists());
        format!("{error:#}")
    };
    let error = refused(&|spec| spec.version = "eight".into());
    assert!(error.contains("version is eight"), "{error}");
    let error = refused(&|spec| spec.notes = String::new());
    assert!(error.contains("notes.md is empty"), "{error}");
    let error = refused(&|spec| spec.source = sps_images::Source::Tree(at.join("empty")));
    assert!(error.contains("is no directory"), "{error}");
}

#[test]
fn keys_are_for_their_owner_alone_and_never_in_the_keyring() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = sample::scratch();
    let dir = scratch.path().join("pki");
    let pki = Pki::open_or_create(&dir, "Foreign").unwrap();
    for key in ["root.key", "intermediate.key", "signer.key"] {
        let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let mut names: Vec<_> =
        fs::read_dir(pki.keyring_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["intermediate.crl", "root.crl", "root.pem"]);
    let before = fs::read(pki.signer()).unwrap();
    Pki::open_or_create(&dir, "Foreign").unwrap();
    assert_eq!(fs::read(pki.signer()).unwrap(), before, "an existing PKI is kept");
}
