//! What a keyring takes and refuses (points 8 and 9).

use slotd::domain::signature::{Keyring, KeyringError, SignatureError};
use sps_base::error::ErrorKind;

use crate::pki::{DAY, pki};
use crate::{good, manifest};

fn parse(roots: &[&str], crls: &[&str], now: u64) -> Result<Keyring, KeyringError> {
    let files = |names: &[&str]| names.iter().map(|name| pki().file(name)).collect::<Vec<_>>();
    Keyring::parse(&files(roots), &files(crls), now)
}

fn refused(roots: &[&str], crls: &[&str], now: u64, variant: &str, words: &[&str]) {
    let error = parse(roots, crls, now).unwrap_err();
    let text = error.to_string();
    assert!(format!("{error:?}").starts_with(variant), "{roots:?} {crls:?}: {error:?}");
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

#[test]
fn good_keyrings_are_taken() {
    let now = pki().now;
    let plain = parse(&["root.pem"], &[], now).unwrap();
    assert!(!plain.checks_revocation() && plain.warnings().is_empty());
    let both = parse(&["root.pem", "other.pem"], &["root.crl", "int.crl"], now).unwrap();
    assert!(both.checks_revocation() && both.warnings().is_empty());
    assert_eq!(format!("{plain:?}"), r#"Keyring { roots: ["root.pem"], crls: [], .. }"#);
    let der =
        Keyring::parse(&[("r".into(), pki().der("root.pem"))], &[("c".into(), pki().der("root.crl"))], now);
    assert!(der.unwrap().checks_revocation());
}

#[test]
fn files_that_are_no_roots_are_named() {
    let now = pki().now;
    refused(&[], &[], now, "Empty", &["install"]);
    refused(&["root.pem", "signer.key"], &[], now, "Unreadable", &["signer.key", "none", "certificate"]);
    refused(&["root.pem"], &["int.pem"], now, "Unreadable", &["int.pem", "CRL"]);
    refused(&["root.pem", "root.pem"], &[], now, "Duplicate", &["root.pem and root.pem"]);
    refused(&["root-cannot-sign.pem"], &[], now, "Root", &["root-cannot-sign.pem", "keyCertSign"]);
    refused(&["root-no-ca.pem"], &[], now, "Root", &["root-no-ca.pem", "CA:TRUE"]);
    refused(&["int.pem"], &[], now, "Root", &["int.pem", "CN=root,O=Test", "self-signed"]);
    refused(&["root-renamed.pem"], &[], now, "Root", &["CN=renamed", "self-signed"]);
    refused(&["root-constrained.pem"], &[], now, "Root", &["2.5.29.30"]);
    refused(&["root-critical.pem"], &[], now, "Unsupported", &["root-critical.pem"]);

    let two = [pki().file("root.pem").1, pki().file("other.pem").1].concat();
    let error = Keyring::parse(&[("two.pem".into(), two)], &[], now).unwrap_err();
    assert_eq!(error.to_string(), "keyring file two.pem: found 2, expected one certificate in PEM or DER");

    let mut forged = pki().der("root.pem");
    *forged.last_mut().unwrap() ^= 1;
    let error = Keyring::parse(&[("forged".into(), forged)], &[], now).unwrap_err();
    assert!(matches!(error, KeyringError::Root { part: "signature", .. }), "{error:?}");
    let error = Keyring::parse(&[("x".into(), vec![0x30, 3, 2, 1, 1])], &[], now).unwrap_err();
    assert!(matches!(error, KeyringError::NotDer { .. }), "{error:?}");
    let error = Keyring::parse(&[("x".into(), vec![0x30; 70_000])], &[], now).unwrap_err();
    assert!(matches!(error, KeyringError::TooMuch { .. }), "{error:?}");
}

#[test]
fn roots_out_of_date_are_told_and_do_not_count() {
    let (now, later) = (pki().now, pki().now + 2 * DAY);
    let both = parse(&["root-short.pem", "root.pem"], &[], later).unwrap();
    assert!(both.warnings()[0].contains("root-short.pem"), "{:?}", both.warnings());
    both.verify(manifest(), good(), later).unwrap();
    // Alone they trust nothing: the expired, and the one that is not valid yet.
    for (root, at) in [("root-short.pem", later), ("root.pem", now - 9 * DAY)] {
        let keyring = parse(&[root], &[], at).unwrap();
        assert!(keyring.warnings()[0].contains("set the clock"), "{:?}", keyring.warnings());
        let error = keyring.verify(manifest(), good(), at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted);
        let text = error.to_string();
        assert!(text.contains("no root of the keyring is valid at") && text.contains(root), "{text}");
        // What was installed while it was valid stays good.
        keyring.verify_at_rest(manifest(), good(), now).unwrap();
    }
}

#[test]
fn a_keyring_that_was_loaded_with_a_dead_clock_is_right_once_the_clock_is() {
    let keyring = parse(&["root.pem"], &["root.crl", "int.crl"], 0).unwrap();
    assert_eq!(keyring.warnings().len(), 3, "{:?}", keyring.warnings());
    assert!(keyring.checks_revocation());
    keyring.verify(manifest(), good(), 0).unwrap_err();
    keyring.verify(manifest(), good(), pki().now).unwrap();
    let revoked = parse(&["root.pem"], &["root.crl", "int-revokes.crl"], 0).unwrap();
    let error = revoked.verify(manifest(), good(), pki().now).unwrap_err();
    assert!(matches!(error, SignatureError::Revoked { .. }), "{error:?}");
}

#[test]
fn at_rest_the_newest_list_counts_whatever_its_date() {
    let now = pki().now;
    let at_rest = |crls: &[&str], then: u64| {
        parse(&["root.pem"], crls, now).unwrap().verify_at_rest(manifest(), good(), then)
    };
    for then in [now, now + 60 * DAY] {
        at_rest(&["root.crl", "int.crl"], then).unwrap();
        at_rest(&["root.crl", "int-expired.crl"], then).unwrap();
        for revoking in [["root.crl", "int-revokes.crl"], ["root-revokes-int.crl", "int.crl"]] {
            let error = at_rest(&revoking, then).unwrap_err();
            assert!(matches!(error, SignatureError::Revoked { .. }), "{error:?}");
        }
    }
    at_rest(&["root-future.crl", "int-future.crl"], now).unwrap();
    let error = at_rest(&["root.crl"], now).unwrap_err();
    assert!(error.to_string().contains("no CRL of CN=int"), "{error}");
    // Dates of certificates are those of the time of the install.
    assert!(at_rest(&["root.crl", "int.crl"], now + 2000 * DAY).is_err());
}

#[test]
fn crls_are_newest_first_without_future_ones_and_one_per_issuer() {
    let now = pki().now;
    let both = ["int-revokes-older.crl", "int.crl"];
    let words =
        ["int.crl and int-revokes-older.crl", "CN=int,O=Test", "remove the older, int-revokes-older.crl"];
    refused(&["root.pem"], &both, now, "TwoCrls", &words);
    let crls = ["int-expired.crl", "int-future.crl", "int.crl", "root.crl"];
    let keyring = parse(&["root.pem"], &crls, now).unwrap();
    assert_eq!(
        format!("{keyring:?}"),
        r#"Keyring { roots: ["root.pem"], crls: ["int-future.crl", "int.crl", "root.crl", "int-expired.crl"], .. }"#
    );
    let warnings = keyring.warnings().join("\n");
    assert!(warnings.contains("int-future.crl") && warnings.contains("int-expired.crl"), "{warnings}");
    keyring.verify(manifest(), good(), now).unwrap();
}

#[test]
fn a_clock_that_is_set_back_does_not_make_a_list_of_the_future_count() {
    // Current when the keyring was loaded.
    let later = pki().now + 2 * DAY;
    let loaded = parse(&["root.pem"], &["root.crl", "int-future.crl"], later).unwrap();
    loaded.verify(manifest(), good(), later).unwrap();
    let error = loaded.verify(manifest(), good(), pki().now).unwrap_err();
    assert!(error.to_string().contains("no CRL of CN=int"), "{error}");
}

#[test]
fn firmware_that_adds_a_root_and_one_that_drops_it() {
    let now = pki().now;
    let old = good();
    let new = pki().sign(manifest(), "by-other", "signer", &[]);
    let takes = |keyring: &Keyring, p7s: &[u8]| keyring.verify(manifest(), p7s, now).is_ok();
    // The keyring of what runs counts: firmware signed under the new root has to wait for one that brings that root.
    let first = parse(&["root.pem"], &[], now).unwrap();
    assert!(takes(&first, old) && !takes(&first, &new));
    let both = parse(&["root.pem", "other.pem"], &[], now).unwrap();
    assert!(takes(&both, old) && takes(&both, &new));
    // Once it is dropped, nothing that it signed is taken any more, not even what was installed before.
    let last = parse(&["other.pem"], &[], now).unwrap();
    assert!(!takes(&last, old) && takes(&last, &new));
    let error = last.verify(manifest(), old, now).unwrap_err();
    assert!(error.to_string().contains("CN=other"), "{error}");
}

#[test]
fn an_empty_file_is_no_root_and_no_list() {
    for (roots, crls, file) in [(vec![""], vec![], "0"), (vec!["root"], vec![""], "0")] {
        let files = |names: &[&str]| -> Vec<(String, Vec<u8>)> {
            let content = |name: &str| if name.is_empty() { Vec::new() } else { pki().file("root.pem").1 };
            names.iter().enumerate().map(|(n, name)| (n.to_string(), content(name))).collect()
        };
        let error = Keyring::parse(&files(&roots), &files(&crls), pki().now).unwrap_err();
        assert!(error.to_string().contains(&format!("keyring file {file}: found none")), "{error}");
    }
}

#[test]
fn keyrings_have_limits() {
    let root = pki().file("root.pem");
    let error = Keyring::parse(&vec![root.clone(); 65], &[], pki().now).unwrap_err();
    assert_eq!(error.to_string(), "keyring: root files: found 65, the limit is 64");
    let error = Keyring::parse(&[root], &vec![pki().file("root.crl"); 65], pki().now).unwrap_err();
    assert_eq!(error.to_string(), "keyring: CRL files: found 65, the limit is 64");
}
