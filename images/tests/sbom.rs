//! The list of what a firmware is made of, judged by the tools of those who defined the format.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its input fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sps_images::packages_lock::{DebianPackage, Lock, parse_index};
use sps_images::sbom::{self, Contents};
use sps_images::tool::Tool;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Two packages, one with all that a name and a version may have.
fn packages() -> Vec<DebianPackage> {
    let hash = "a".repeat(64);
    let stanza = |name: &str, version: &str| {
        format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\nSHA256: {hash}\n\n")
    };
    parse_index(&(stanza("libstdc++6", "1:14.2.0-19+b1~deb13u1") + &stanza("systemd", "257.8-1"))).unwrap()
}

fn document() -> Vec<u8> {
    let (packages, crates) = (packages(), sbom::crates(&sources()).unwrap());
    let differences = Lock::of(&packages[..1]).compare(&packages);
    let contents = Contents {
        product: "sps",
        version: "8.0.1",
        epoch: 1_767_225_600,
        packages: &packages,
        differences: &differences,
        crates: &crates,
    };
    sbom::render(&contents).unwrap()
}

#[test]
fn crates_are_what_the_programs_are_linked_from() {
    let crates = sbom::crates(&sources()).unwrap();
    let names: BTreeSet<&str> = crates.iter().map(|one| one.name.as_str()).collect();
    for name in ["recovery", "slotd", "spsctl", "sps-base", "ring", "rustls", "zbus", "serde"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    // Macros, tools of the build, and what only tests and images use.
    for name in ["serde_derive", "clap_derive", "cc", "tempfile", "proptest", "sps-images", "windows-sys"] {
        assert!(!names.contains(name), "{name} is in {names:?}");
    }
    let ours = crates.iter().filter(|one| one.sha256.is_none()).count();
    assert_eq!(ours, 4, "only ours have no sum");
}

#[test]
fn identifiers_are_used_once_and_relationships_lead_to_them() {
    let document: Value = serde_json::from_slice(&document()).unwrap();
    let ids: Vec<&str> =
        document["packages"].as_array().unwrap().iter().map(|p| p["SPDXID"].as_str().unwrap()).collect();
    let set: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), set.len());
    let reached: BTreeSet<&str> = document["relationships"]
        .as_array()
        .unwrap()
        .iter()
        .map(|relationship| relationship["relatedSpdxElement"].as_str().unwrap())
        .collect();
    assert_eq!(reached, set);
}

/// `spdx-tools` is a Python package with a dozen others behind it: `cargo xtask test` does not install it.
#[test]
fn the_tools_of_the_format_find_nothing() {
    let name = "pyspdxtools";
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
        eprintln!("not judged: {name} is not installed (pip install spdx-tools)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(sbom::FILE);
    fs::write(&file, document()).unwrap();
    let judged = Tool::new(name, "spdx-tools").arg("--infile").arg(&file).outcome().unwrap();
    assert!(judged.ok, "{}{}", judged.stdout, judged.said);
    // It does refuse what is wrong.
    let wrong = String::from_utf8(document()).unwrap().replace("\"MIT OR Apache-2.0\"", "\"as you like\"");
    fs::write(&file, wrong).unwrap();
    assert!(!Tool::new(name, "spdx-tools").arg("--infile").arg(&file).outcome().unwrap().ok);
}
