use std::fs;
use std::path::Path;

use sps_images::inspect::{InspectReport, inspect};
use sps_images::{BuildDirs, FirmwareSpec, Source, build_firmware};

use crate::{placement, sample, slotd};

/// Needs the Debian tree, whose build takes minutes and the network: `SPS_DEBIAN_TREE` names it, as
/// `<build directory>/debian13`.
#[test]
fn two_builds_of_the_debian_tree_are_the_same_bits() {
    let Some(tree) = std::env::var_os("SPS_DEBIAN_TREE") else {
        eprintln!("skipped: SPS_DEBIAN_TREE is not set; it names <build directory>/debian13");
        return;
    };
    let dirs = BuildDirs::new(Path::new(&tree).parent().unwrap()).unwrap();
    let scratch = sample::scratch();
    let overlay = scratch.path().join("overlay");
    fs::create_dir_all(overlay.join("usr/lib/sps")).unwrap();
    fs::write(overlay.join("usr/lib/sps/extra"), "laid over\n").unwrap();
    fs::write(overlay.join("usr/lib/sps/slotd"), "stands for slotd\n").unwrap();
    let mut spec =
        FirmwareSpec::new("8.0.1", Source::Debian { overlay: Some(overlay), initrd: None, recovery: None });
    let (one, two) = (scratch.path().join("1.iso"), scratch.path().join("2.iso"));
    let built = build_firmware(&spec, &dirs, &sample::pki(), Some(&one)).unwrap();
    build_firmware(&spec, &dirs, &sample::pki(), Some(&two)).unwrap();
    let image = fs::read(&one).unwrap();
    assert!(image == fs::read(&two).unwrap(), "two builds differ");

    let expected = [
        "manifest.json",
        "manifest.p7s",
        "notes.md",
        "root.verity",
        "boot.efi",
        "recovery.efi",
        "files.ndjson.zst",
        "root.erofs",
        "sbom.spdx.json",
    ];
    placement::assert_streamable(&image, &expected);
    // The unified kernel image names the root that it starts.
    let uki = placement::records(&image).into_iter().find(|record| record.name == "boot.efi").unwrap();
    let uki = &image[uki.lba * 2048..uki.lba * 2048 + uki.size];
    let named = format!("roothash={}", built.manifest.root.verity.root_hash);
    assert!(uki.windows(named.len()).any(|window| window == named.as_bytes()));
    // The hybrid boot record: a GPT in the second block of 512 bytes.
    assert_eq!(&image[512..520], b"EFI PART");

    let report = inspect(&one, &sample::pki().keyring_dir(), &dirs).unwrap();
    assert!(report.ok(), "{report}");
    slotd::assert_accepted(&built);
    a_changed_sbom_is_found(&image, &report, &one, &dirs);

    spec.version = "8.0.2".into();
    let other = build_firmware(&spec, &dirs, &sample::pki(), Some(&two)).unwrap();
    assert_ne!(other.manifest.root.verity.root_hash, built.manifest.root.verity.root_hash);
}

/// It lies outside the directory that slotd reads, and is signed all the same.
fn a_changed_sbom_is_found(image: &[u8], report: &InspectReport, iso: &Path, dirs: &BuildDirs) {
    let judged = |report: &InspectReport| {
        let check = report.checks.iter().find(|check| check.name == "SBOM").unwrap();
        (check.ok, check.detail.clone())
    };
    let (ok, detail) = judged(report);
    assert!(ok && detail.ends_with(" packages, as signed"), "{detail}");
    let number: usize = detail.split(' ').next().unwrap().parse().unwrap();
    assert!(number > 200, "{detail}");
    let found = |text: &str| image.windows(text.len()).position(|window| window == text.as_bytes());
    // What only makes images is not in the root, and not in its list.
    assert!(found("pkg:deb/debian/dracut@").is_none());
    assert!(found("pkg:deb/debian/systemd@").is_some() && found("pkg:cargo/ring@").is_some());
    let flipped = sample::flipped(iso, found("pkg:deb/debian/systemd@").unwrap());
    let report = inspect(&flipped, &sample::pki().keyring_dir(), dirs).unwrap();
    let (ok, detail) = judged(&report);
    assert!(!ok && detail.starts_with("SHA-256 is "), "{detail}");
}
