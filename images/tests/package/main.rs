//! The Debian package holds what it must, is the same bytes twice, and a Debian system takes it and gives it up again.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its input fails")]

mod install;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sps_images::package::{self, FILES, Origin, Package, Programs};
use sps_images::tool::Tool;

/// Every file with mode and owners, as `dpkg-deb --contents` shows them.
const CONTENTS: &str = include_str!("contents.txt");
const EPOCH: u64 = 1_767_225_600;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Programs that stand for ours, so that nothing has to be built: small, and linked like ours. `echo completion bash`
/// prints something.
fn stand_ins(directory: &Path) -> Programs {
    fs::create_dir_all(directory).unwrap();
    for name in ["mount-data", "slotd", "sps-health", "sps-recovery", "upgrade-check", "slotboot"] {
        fs::copy("/bin/true", directory.join(name)).unwrap();
    }
    fs::copy("/bin/echo", directory.join("spsctl")).unwrap();
    Programs { slotboot: directory.join("slotboot"), directory: directory.to_owned() }
}

/// The package of these sources with stand-ins.
fn build(work: &Path) -> PathBuf {
    build_version(work, "0.1.0")
}

fn build_version(work: &Path, version: &str) -> PathBuf {
    let programs = stand_ins(&work.join("programs"));
    let package = Package { sources: &sources(), programs: &programs, version, epoch: EPOCH };
    package::build(&package, &work.join("out")).unwrap()
}

fn dpkg_deb(option: &str, file: &Path) -> String {
    Tool::new("dpkg-deb", "dpkg").arg(option).arg(file).run().unwrap().stdout
}

#[test]
fn contents_are_those_of_the_list() {
    let work = tempfile::tempdir().unwrap();
    let file = build(work.path());
    assert_eq!(file.file_name().unwrap(), "sps-agent_0.1.0-1_amd64.deb");
    // `-rwxr-xr-x root/root   123 2026-01-01 00:00 ./usr/bin/spsctl`
    let said = dpkg_deb("--contents", &file);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3..5], ["2026-01-01", "00:00"], "{line}");
        format!("{} {} {}", words[0], words[1], words[5])
    };
    let found: Vec<String> = said.lines().map(line).collect();
    let expected: Vec<&str> = CONTENTS.lines().collect();
    assert_eq!(found, expected, "contents.txt is what the package is expected to hold");
}

#[test]
fn control_names_what_the_package_needs() {
    let work = tempfile::tempdir().unwrap();
    let said = dpkg_deb("--info", &build(work.path()));
    for line in [" Package: sps-agent", " Version: 0.1.0-1", " Architecture: amd64", " Section: admin"] {
        assert!(said.lines().any(|found| found == line), "{line:?} is not in\n{said}");
    }
    let depends = said.lines().find_map(|line| line.strip_prefix(" Depends: ")).unwrap();
    for name in ["libc6 (>= 2.", "dbus | dbus-broker", "polkitd", "systemd (>= "] {
        assert!(depends.contains(name), "{name:?} is not in {depends}");
    }
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = fs::read(build(one.path())).unwrap();
    assert!(first == fs::read(build(two.path())).unwrap(), "two builds differ");
    let other = fs::read(build_version(two.path(), "0.1.1")).unwrap();
    assert!(first != other, "the version is not in the package");
}

#[test]
fn a_version_that_is_no_version_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let programs = stand_ins(work.path());
    for version in ["", "v1", "1/2", "1-2", "1\n"] {
        let package = Package { sources: &sources(), programs: &programs, version, epoch: EPOCH };
        assert!(package::build(&package, work.path()).is_err(), "{version:?}");
    }
}

/// A unit or policy that is written and then forgotten here would be missing on every appliance.
#[test]
fn every_file_of_systemd_is_in_the_package() {
    fn files(directory: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.insert(path);
            }
        }
    }
    let (mut found, root) = (BTreeSet::new(), sources());
    files(&root.join("systemd"), &mut found);
    // These are laid over the root and the initrds of the appliance as they are.
    found.retain(|path| {
        !["appliance", "initrd", "recovery"]
            .iter()
            .any(|name| path.starts_with(root.join("systemd").join(name)))
    });
    let listed: BTreeSet<PathBuf> = FILES
        .iter()
        .filter_map(|item| match item.from {
            Origin::Source(name) if name.starts_with("systemd/") => Some(root.join(name)),
            _ => None,
        })
        .collect();
    assert_eq!(found.difference(&listed).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
}

#[test]
fn lintian_finds_no_error() {
    let work = tempfile::tempdir().unwrap();
    let file = build(work.path());
    let lintian = Tool::new("lintian", "lintian").env("HOME", work.path()).args([
        "--allow-root",
        "--fail-on",
        "error,warning",
        "--tag-display-limit",
        "0",
    ]);
    let said = lintian.arg(&file).outcome().unwrap();
    assert!(said.ok, "{}{}", said.stdout, said.said);
}
