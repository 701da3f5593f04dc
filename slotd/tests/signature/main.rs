//! The signature over the manifest, each case against stock OpenSSL. The rule: we never accept what it rejects.
#![allow(clippy::disallowed_methods, reason = "tests make files, ask the clock and run openssl")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests and what they share")]

mod cases;
mod chains;
mod craft;
mod differences;
mod judge;
mod keyring;
mod pki;
mod table;

use std::sync::OnceLock;

use proptest::prelude::*;
use slotd::domain::manifest::{Manifest, SIGNATURE_NAME};
use slotd::domain::signature::{Keyring, MAX_SIGNATURE, SignatureError, Verified};
use sps_base::error::ErrorKind;

use pki::pki;

/// A manifest that parses.
pub(crate) fn manifest() -> &'static [u8] {
    br#"{"boot":"none","boot_version":"8.0.0","build_date":"2026-11-22T00:00:00Z","compatible":{"hardware":["*"],"product":"sps"},"config_schema":1,"files":[{"name":"notes.md","sha256":"0000000000000000000000000000000000000000000000000000000000000000","size":1},{"name":"root.verity","sha256":"0000000000000000000000000000000000000000000000000000000000000000","size":4096},{"name":"files.ndjson.zst","sha256":"0000000000000000000000000000000000000000000000000000000000000000","size":1}],"meta":{},"required_space":0,"revoked_below":0,"root":{"size":4096,"verity":{"algorithm":"sha256","data_block":4096,"hash_block":4096,"root_hash":"0000000000000000000000000000000000000000000000000000000000000000","salt":"00","uuid":"01234567-89ab-cdef-0123-456789abcdef"}},"schema":1,"security_epoch":1,"state_schema":1,"upgrade_from":[],"version":"8.0.0"}"#
}

/// The plain message of the profile.
pub(crate) fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| pki().sign(manifest(), "signer", "signer", &[]))
}

/// The keyring of these files.
pub(crate) fn keyring(roots: &[&str], crls: &[&str]) -> Keyring {
    let files = |names: &[&str]| names.iter().map(|name| pki().file(name)).collect::<Vec<_>>();
    Keyring::parse(&files(roots), &files(crls), pki().now).unwrap()
}

fn verify_good(p7s: &[u8]) -> Verified<Manifest> {
    keyring(&["root.pem"], &[]).verify(manifest(), p7s, pki().now).unwrap()
}

#[test]
fn identity_is_of_manifest_and_leaf_and_not_of_the_bag() {
    let plain = verify_good(good());
    let larger = craft::with_certificates(good(), &["other.pem"]);
    assert_ne!(larger, good());
    assert_eq!(verify_good(&larger).identity(), plain.identity());

    let again = pki().sign(manifest(), "signer", "signer", &[]);
    assert_ne!(again, good());
    assert_eq!(verify_good(&again).identity(), plain.identity(), "another signature by the same signer");

    let second = verify_good(&pki().sign(manifest(), "second", "second", &[]));
    assert_eq!(second.identity().0, plain.identity().0);
    assert_ne!(second.identity().1, plain.identity().1);

    let other = String::from_utf8(manifest().to_vec()).unwrap().replace("8.0.0", "8.0.1");
    let signed = pki().sign(other.as_bytes(), "signer", "signer", &[]);
    let other = keyring(&["root.pem"], &[]).verify(other.as_bytes(), &signed, pki().now).unwrap();
    assert_ne!(other.identity().0, plain.identity().0);
    assert_eq!(other.identity().1, plain.identity().1);
    assert_eq!((other.version.as_str(), plain.get().version.as_str()), ("8.0.1", "8.0.0"));
}

#[test]
fn the_signer_is_told_and_signing_time_is_only_told() {
    let verified = verify_good(good());
    let signer = verified.signer();
    assert_eq!(signer.subject, "CN=signer,O=Test");
    let claimed = signer.signing_time.unwrap();
    assert!(claimed < pki().now && claimed > pki().now - pki::DAY, "{claimed}");
    assert!(signer.warnings.is_empty(), "{:?}", signer.warnings);
    let short = verify_good(&pki().sign(manifest(), "rsa2048", "rsa2048", &[]));
    assert_eq!(
        short.signer().warnings,
        ["signer CN=rsa2048,O=Test: RSA key of 2048 bits; 3072 are recommended"]
    );
}

#[test]
fn nothing_is_parsed_before_the_signature_is_verified() {
    let garbage = b"{\"not\": \"a manifest\"}";
    let signed = pki().sign(garbage, "signer", "signer", &[]);
    let keyring = keyring(&["root.pem"], &[]);
    let error = keyring.verify(garbage, &signed, pki().now).unwrap_err();
    assert!(matches!(error, SignatureError::Manifest(_)), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::MediaCorrupt);

    let error = keyring.verify(garbage, good(), pki().now).unwrap_err();
    assert!(matches!(error, SignatureError::Digest { .. }), "{error:?}");
    let stranger = pki().sign(garbage, "by-other", "signer", &[]);
    let error = keyring.verify(garbage, &stranger, pki().now).unwrap_err();
    assert!(matches!(error, SignatureError::NoTrustedRoot { .. }), "{error:?}");
}

#[test]
fn a_build_date_counts_after_the_signature_was_verified() {
    let built = |seconds: u64| {
        let date = jiff::Timestamp::from_second(seconds.try_into().unwrap()).unwrap().to_string();
        let text = String::from_utf8(manifest().to_vec()).unwrap();
        text.replace("2026-11-22T00:00:00Z", &date).into_bytes()
    };
    let sign = |content: &[u8]| pki().sign(content, "signer", "signer", &[]);
    let keyring = keyring(&["root.pem"], &[]);
    let now = built(pki().now);
    assert_eq!(keyring.verify_as_built(&now, &sign(&now)).unwrap().version, "8.0.0");
    // The signer's certificate was or is not valid then.
    for other in [built(pki().now - 4000 * pki::DAY), built(pki().now + 20_000 * pki::DAY)] {
        let error = keyring.verify_as_built(&other, &sign(&other)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{error:?}");
    }
    // What is no manifest has no date, and what nobody trusts is not looked into.
    let garbage = b"{\"not\": \"a manifest\"}";
    let error = keyring.verify_as_built(garbage, &sign(garbage)).unwrap_err();
    assert!(matches!(error, SignatureError::Manifest(_)), "{error:?}");
    let error = keyring.verify_as_built(garbage, good()).unwrap_err();
    assert!(matches!(error, SignatureError::Digest { .. }), "{error:?}");
    let error =
        keyring.verify_as_built(garbage, &pki().sign(garbage, "by-other", "signer", &[])).unwrap_err();
    assert!(matches!(error, SignatureError::NoTrustedRoot { .. }), "{error:?}");
    // A chain that ends before the signer does was good when it began.
    let short = self::keyring(&["root-short.pem"], &[]);
    assert!(short.verify_as_built(&now, &sign(&now)).is_ok());
}

#[test]
fn the_hardest_message_to_parse_is_quick() {
    // `der` sorts sets by insertion: one large set in reverse took it minutes.
    let mut elements: Vec<Vec<u8>> =
        (0x80..0xb6).flat_map(|i| (0..0x80).map(move |j| vec![0x30, 5, 6, 3, 0x2a, i, j])).collect();
    elements.reverse();
    let tlv = |tag: u8, content: &[u8]| {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82, len[0], len[1]], content].concat()
    };
    let set = tlv(0x31, &elements.concat());
    let data = tlv(0x30, &[&[2, 1, 1][..], &set].concat());
    let oid = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
    let message = tlv(0x30, &[&oid[..], &tlv(0xa0, &data)].concat());
    assert!(message.len() as u64 <= MAX_SIGNATURE);
    let start = std::time::Instant::now();
    let error = keyring(&["root.pem"], &[]).verify(manifest(), &message, pki().now).unwrap_err();
    let took = start.elapsed();
    println!("{} bytes of {SIGNATURE_NAME} took {took:?}: {error}", message.len());
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let now = pki().now;
        prop_assert!(keyring(&["root.pem"], &[]).verify(manifest(), &bytes, now).is_err());
        let _ = Keyring::parse(&[("a".into(), bytes.clone())], &[("b".into(), bytes)], now);
    }

    #[test]
    fn flipped_bytes_never_give_another_signer_or_manifest(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)
    ) {
        let keyring = keyring(&["root.pem"], &["root.crl", "int.crl"]);
        let now = pki().now;
        let expected = keyring.verify(manifest(), good(), now).unwrap();
        let mut p7s = good().to_vec();
        for (index, mask) in flips {
            *index.get_mut(&mut p7s) ^= mask;
        }
        // Two flips may undo each other, and the bag of certificates is not signed.
        if let Ok(verified) = keyring.verify(manifest(), &p7s, now) {
            prop_assert_eq!(verified, expected);
        }
    }

    #[test]
    fn a_changed_manifest_is_refused(index in any::<prop::sample::Index>(), mask in 1u8..) {
        let mut changed = manifest().to_vec();
        *index.get_mut(&mut changed) ^= mask;
        let error = keyring(&["root.pem"], &[]).verify(&changed, good(), pki().now).unwrap_err();
        prop_assert!(matches!(error, SignatureError::Digest { .. }), "{:?}", error);
    }
}
