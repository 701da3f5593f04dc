use std::process::Command;

use proptest::prelude::*;

use super::Place::{Installed, Removable};
use super::Step::{StartFrom, Write};
use super::*;

/// A program of one section that is said to be this long, and what it carries.
fn program(text: &str, fill: u8) -> Vec<u8> {
    let mut program = vec![0; 0x200];
    program[..2].copy_from_slice(b"MZ");
    program[0x3c] = 0x80;
    program[0x80..0x84].copy_from_slice(b"PE\0\0");
    // One section; an optional header of 160 bytes, PE32+ with six directories; the section: 0x200 bytes from 0x200 on.
    (program[0x86], program[0x94]) = (1, 160);
    (program[0x98], program[0x99], program[0x98 + 108]) = (0x0b, 2, 6);
    (program[0x138 + 17], program[0x138 + 21]) = (2, 2);
    let mut section = text.as_bytes().to_vec();
    section.resize(0x200, fill);
    [program, section].concat()
}

/// The same with a certificate table.
fn signed(mut program: Vec<u8>) -> Vec<u8> {
    program[0x98 + 148] = 8;
    [program, vec![7; 8]].concat()
}

fn loader(version: &str, fill: u8) -> Vec<u8> {
    program(&format!("#### LoaderInfo: systemd-boot {version} ####"), fill)
}

#[test]
fn a_version_is_found_where_the_loader_carries_it() {
    assert_eq!(version(&loader("257.9-1~deb13u1", 0)), Some("257.9-1~deb13u1"));
    for text in ["", "#### LoaderInfo: systemd-boot ####", "#### LoaderInfo: grub 2.12 ####"] {
        assert_eq!(version(&program(text, 0)), None, "{text}");
    }
    assert_eq!(version(&loader(&"1".repeat(65), 0)), None);
    assert_eq!(version(&loader("257 \u{e9}", 0)), None);
    assert!(version(&loader(&"1".repeat(64), 0)).is_some());
}

#[test]
fn a_program_that_was_cut_is_not_complete() {
    let whole = loader("257", 1);
    assert!(is_complete(&whole) && is_complete(&[&whole[..], &[0; 100]].concat()));
    for length in 0..whole.len() {
        assert!(!is_complete(&whole[..length]), "{length}");
    }
    assert!(!is_complete(&vec![0; whole.len()]));
}

// The stock tool judges.
#[test]
fn versions_are_compared_as_systemd_does() {
    let versions = [
        "",
        "~",
        "257",
        "257.9",
        "257.10",
        "257.9-1",
        "257.9-2",
        "257.9-1~deb13u1",
        "252.39-1~deb12u2",
        "257~rc1",
        "257^1",
        "257-1",
        "00257",
        "257.1",
        "257..1",
        "a",
        "ab",
        "1a",
        "257+x",
        "257_1",
        "257-",
        "257.-1",
        "258",
    ];
    for (place, one) in versions.into_iter().enumerate() {
        for other in versions.into_iter().skip(place) {
            let ours = compare(one, other);
            assert_eq!(compare(other, one), ours.reverse(), "{one:?} {other:?}");
            if one.is_empty() || other.is_empty() {
                continue;
            }
            let done =
                Command::new("systemd-analyze").args(["compare-versions", one, other]).output().unwrap();
            let theirs = match done.status.code() {
                Some(0) => Ordering::Equal,
                Some(11) => Ordering::Greater,
                Some(12) => Ordering::Less,
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&done.stderr)),
            };
            assert_eq!(ours, theirs, "{one:?} {other:?}");
        }
    }
}

/// Name; what is installed, and the removable copy; what is done.
type Case<'a> = (&'a str, Option<&'a [u8]>, Option<&'a [u8]>, &'a [Step]);

#[test]
fn the_entry_never_names_the_copy_that_is_written() {
    let (new, old, newer) = (loader("257.9-1", 1), loader("257.8-1", 2), loader("257.9-2", 3));
    let (other, foreign) = (loader("257.9-1", 4), program("shim", 5));
    let cut = &new[..700];
    let both = [StartFrom(Removable), Write(Installed), StartFrom(Installed), Write(Removable)];
    let anew = [Write(Removable), StartFrom(Removable), Write(Installed), StartFrom(Installed)];
    let cases: [Case<'_>; 14] = [
        ("an older one", Some(&old), Some(&old), &both),
        ("the same", Some(&new), Some(&new), &[]),
        ("the same version, signed otherwise", Some(&other), Some(&other), &both),
        ("a newer one", Some(&newer), Some(&newer), &[]),
        ("a newer one here", Some(&newer), Some(&old), &[]),
        ("a newer one there", Some(&old), Some(&newer), &[]),
        ("another make", Some(&old), Some(&foreign), &[]),
        ("nothing", None, None, &anew),
        ("no second copy", Some(&old), None, &anew),
        ("the second copy was cut", Some(&old), Some(cut), &anew),
        ("only the second copy", None, Some(&old), &both),
        ("cut at the first", Some(cut), Some(&old), &both),
        ("cut before the second", Some(&new), Some(&old), &[StartFrom(Installed), Write(Removable)]),
        ("cut at the second", Some(&new), Some(&[]), &[StartFrom(Installed), Write(Removable)]),
    ];
    for (name, installed, removable, steps) in cases {
        assert_eq!(plan(&new, installed, removable), steps, "{name}");
    }
    // Secure Boot would refuse what is not signed.
    let (old_signed, new_signed) = (signed(old.clone()), signed(new.clone()));
    assert_eq!(plan(&new, Some(&old_signed), Some(&old_signed)), []);
    assert_eq!(plan(&new, Some(&old), Some(&old_signed)), []);
    for there in [&old, &old_signed, &new] {
        assert_eq!(plan(&new_signed, Some(there), Some(there)), both);
    }
    assert_eq!(startable(Some(&old), Some(&new)), [Installed, Removable]);
    assert_eq!(startable(Some(cut), Some(&new)), [Removable]);
    assert_eq!((startable(None, None), startable(Some(&old), Some(&foreign))), (vec![], vec![]));
    assert_eq!(plan(&foreign, Some(&old), Some(&old)), []);
    assert_eq!(plan(cut, Some(&old), Some(&old)), []);
    assert_eq!(Removable.entry(), r"\EFI\BOOT\BOOTX64.EFI");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..0x400, byte: u8) {
        let _ = (version(&bytes), is_complete(&bytes), plan(&bytes, Some(&bytes), None));
        let mut changed = loader("257", 0);
        changed[at] = byte;
        let _ = (version(&changed), is_complete(&changed), is_signed(&changed));
    }

    #[test]
    fn versions_are_in_an_order(a in "[0-9a-c.~^-]{0,6}", b in "[0-9a-c.~^-]{0,6}", c in "[0-9a-c.~^-]{0,6}") {
        prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
            prop_assert!(compare(&a, &c) != Ordering::Greater);
        }
    }
}
