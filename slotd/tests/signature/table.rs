//! All cases, group by group, and the list of differences in `docs/signature.md`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::differences::DIFFERENCES;
use crate::judge::{Case, check};
use crate::{cases, chains};

type Group = (&'static str, fn() -> Vec<Case>);

const GROUPS: [Group; 12] = [
    ("profile", cases::the_profile_is_accepted),
    ("1 strict DER", cases::point_1_strict_der),
    ("2 structure", cases::point_2_structure),
    ("3 signer identifier", cases::point_3_one_certificate_matches_the_signer),
    ("4 signed attributes", cases::point_4_signed_attributes),
    ("5 algorithms and signature", cases::point_5_algorithms_and_signature),
    ("6 signer", cases::point_6_leaf_usage),
    ("7 chain", cases::point_7_certificates_of_the_chain),
    ("7 long and constrained chains", chains::long_and_constrained_chains),
    ("8 revocation", cases::point_8_revocation),
    ("9 renewed roots", chains::renewed_roots),
    ("10 time", cases::points_9_and_10_time),
];
const COMMAND: &str = "UPDATE_SIGNATURE=1 cargo test -p slotd --test signature differences";

#[test]
fn the_profile_is_accepted() {
    check(&cases::the_profile_is_accepted());
}

#[test]
fn point_1_strict_der() {
    check(&cases::point_1_strict_der());
}

#[test]
fn point_2_structure() {
    check(&cases::point_2_structure());
}

#[test]
fn point_3_one_certificate_matches_the_signer() {
    check(&cases::point_3_one_certificate_matches_the_signer());
}

#[test]
fn point_4_signed_attributes() {
    check(&cases::point_4_signed_attributes());
}

#[test]
fn point_5_algorithms_and_signature() {
    check(&cases::point_5_algorithms_and_signature());
}

#[test]
fn point_6_leaf_usage() {
    check(&cases::point_6_leaf_usage());
}

#[test]
fn point_7_certificates_of_the_chain() {
    check(&cases::point_7_certificates_of_the_chain());
    check(&chains::long_and_constrained_chains());
}

#[test]
fn point_8_revocation() {
    check(&cases::point_8_revocation());
}

#[test]
fn points_9_and_10_roots_and_time() {
    check(&chains::renewed_roots());
    check(&cases::points_9_and_10_time());
    check(&chains::lists_and_clocks());
}

#[test]
fn there_are_enough_cases_and_every_difference_has_its_reason() {
    let lists: Group = ("8, 10 lists and clocks", chains::lists_and_clocks);
    let (mut names, mut differing, mut total) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (group, make) in GROUPS.into_iter().chain([lists]) {
        let cases = make();
        println!("{group:<32} {:>3} cases", cases.len());
        assert!(cases.len() >= 3, "{group}");
        total += cases.len();
        names.extend(cases.iter().map(|case| case.name));
        differing.extend(cases.iter().filter(|case| case.differs()).map(|case| case.name));
    }
    println!("{total} cases, {} of them differ", differing.len());
    assert_eq!(names.len(), total, "two cases of one name");
    assert!(total >= 100, "{total}");
    let listed: Vec<&str> = DIFFERENCES.iter().flat_map(|row| row.cases).copied().collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), differing, "listed, and found");
    assert_eq!(listed.len(), differing.len(), "a case in two rows");
}

#[test]
fn the_differences_are_those_of_the_documentation() {
    let mut made = String::from("| check | we refuse, OpenSSL accepts | why | cases |\n|---|---|---|---|\n");
    for row in DIFFERENCES {
        writeln!(made, "| {} | {} | {} | {} |", row.check, row.what, row.why, row.cases.len()).unwrap();
    }
    println!("{made}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/signature.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find("| check | we refuse").expect("the table is in docs/signature.md");
    let end = begin + text[begin..].find("\n\n").map_or(text.len() - begin, |at| at + 1);
    if std::env::var_os("UPDATE_SIGNATURE").is_some() {
        std::fs::write(path, [&text[..begin], &made, &text[end..]].concat()).unwrap();
        return;
    }
    assert!(
        text[begin..end] == made,
        "the table in docs/signature.md is not what the cases say; run: {COMMAND}"
    );
}
