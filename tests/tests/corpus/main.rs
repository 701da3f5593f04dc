//! The corpus of hostile media: every case that section 2 of the reliability issue names, made here, each with its exact
//! error, through the whole engine. `cargo test -p system-tests --test corpus -- --nocapture` prints the table.
//!
//! Up to the first write of an install nothing may change: no medium is written, flushed or otherwise touched. After
//! it, every byte that is written must be a signed one, and the slot may say that it is being written or is bad, never
//! that it is verified.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests and what they share")]

mod cuts;
mod device;
mod firmware;
mod iso;
mod judge;
mod keyrings;
mod large;
mod manifest;
mod policy;
mod transport;
mod tree;
mod trees;

use judge::{Case, judge};

/// Section, group, how many cases it has at least, and the cases.
type Group = (&'static str, &'static str, usize, fn() -> Vec<Case>);

/// Every group, in the order and words.
const GROUPS: [Group; 45] = [
    ("truncation", "at each structure boundary", 150, cuts::boundaries),
    ("truncation", "at 1,000 random offsets", 1000, cuts::random_offsets),
    ("flipped byte", "in the volume descriptors and path tables", 30, cuts::flipped_descriptors),
    ("flipped byte", "in the directories", 20, cuts::flipped_directories),
    ("flipped byte", "in each payload", 25, cuts::flipped_payloads),
    ("flipped byte", "in the padding and the tail", 10, cuts::flipped_padding),
    ("ISO", "both-endian mismatch", 10, iso::both_endian_mismatch),
    ("ISO", "extent past the end", 10, iso::extent_past_the_end),
    ("ISO", "overlapping extents", 8, iso::overlapping_extents),
    ("ISO", "aliased extents", 8, iso::aliased_extents),
    ("ISO", "directory loop", 7, iso::directory_loop),
    ("ISO", "zero-length record", 15, iso::zero_length_record),
    ("ISO", "record across a sector", 4, iso::record_across_a_sector),
    ("ISO", "Rock Ridge against Joliet", 10, trees::rock_ridge_against_joliet),
    ("ISO", "multi-extent", 8, iso::multi_extent),
    ("ISO", "2 GiB ± 1", 8, large::two_gib),
    ("ISO", "4 GiB ± 1", 13, large::four_gib),
    ("manifest", "duplicate keys", 8, manifest::duplicate_keys),
    ("manifest", "overflow", 80, manifest::overflow),
    ("manifest", "size ≠ extent", 18, manifest::size_and_extent),
    ("manifest", "path tricks", 40, manifest::path_tricks),
    ("manifest", "a million entries", 12, manifest::a_million_entries),
    ("manifest", "deep nesting", 12, manifest::deep_nesting),
    ("manifest", "BOM", 4, manifest::byte_order_mark),
    ("manifest", "trailing bytes", 9, manifest::trailing_bytes),
    ("tree", "salt", 8, tree::salt),
    ("tree", "block size", 14, tree::block_size),
    ("tree", "algorithm", 9, tree::algorithm),
    ("tree", "shorter", 13, tree::shorter),
    ("tree", "of another image", 8, tree::of_another_image),
    ("tree", "superblock ≠ manifest", 11, tree::superblock_and_manifest),
    ("transport", "wrong length", 10, transport::wrong_length),
    ("transport", "disconnect at every MiB", 7, transport::disconnect_at_every_mib),
    ("transport", "resume at a wrong offset", 10, transport::resume_at_a_wrong_offset),
    ("transport", "two at once", 2, transport::two_at_once),
    ("transport", "medium pulled", 9, transport::medium_pulled),
    ("policy", "compatible", 7, policy::compatible),
    ("policy", "hardware", 9, policy::hardware),
    ("policy", "epoch", 5, policy::epoch),
    ("policy", "path", 10, policy::upgrade_path),
    ("device", "ENOSPC", 15, device::no_space),
    ("device", "EIO on the k-th write", 40, device::error_on_every_write),
    ("device", "EIO on read-back", 12, device::error_on_read_back),
    ("device", "silent corruption on read-back", 25, device::silent_corruption),
    ("device", "slot one byte too small", 5, device::slot_too_small),
];

/// Judges every group of a section.
fn run(section: &str) {
    run_those(section, |_| true);
}

/// Judges the groups of a section that `wanted` names.
fn run_those(section: &str, wanted: impl Fn(&str) -> bool) {
    let mut judged = 0;
    for (_, group, _, cases) in GROUPS.into_iter().filter(|group| group.0 == section && wanted(group.1)) {
        let cases = cases();
        judge(&format!("{section}, {group}"), &cases);
        judged += cases.len();
    }
    assert!(judged > 0, "no section {section}");
}

#[test]
fn truncation() {
    run("truncation");
}

#[test]
fn flipped_bytes() {
    run("flipped byte");
}

#[test]
fn iso() {
    run_those("ISO", |group| !group.contains("GiB"));
}

#[test]
fn iso_of_gigabytes() {
    run_those("ISO", |group| group.contains("GiB"));
}

#[test]
fn manifest() {
    run("manifest");
}

#[test]
fn tree() {
    run("tree");
}

#[test]
fn transport() {
    run("transport");
}

// rows: A3
#[test]
fn policy() {
    run("policy");
}

#[test]
fn device_that_fails() {
    run_those("device", |group| !group.contains("read-back") && !group.contains("small"));
}

#[test]
fn device_that_lies_or_is_too_small() {
    run_those("device", |group| group.contains("read-back") || group.contains("small"));
}

#[test]
fn every_group_is_there_with_its_cases() {
    let mut total = 0;
    let mut names = std::collections::BTreeSet::new();
    for (section, group, least, cases) in GROUPS {
        let cases = cases();
        println!("{section:<14} {group:<44} {:>5} cases", cases.len());
        assert!(cases.len() >= least, "{section}, {group}: {} cases, at least {least} expected", cases.len());
        for case in &cases {
            assert!(
                names.insert((section, group, case.name.clone())),
                "{section}, {group}: {:?} twice",
                case.name
            );
        }
        total += cases.len();
    }
    println!("{total} cases in {} groups", GROUPS.len());
    let sections: std::collections::BTreeSet<&str> = GROUPS.into_iter().map(|group| group.0).collect();
    let expected = ["ISO", "device", "flipped byte", "manifest", "policy", "transport", "tree", "truncation"];
    assert_eq!(sections.into_iter().collect::<Vec<_>>(), expected);
}
