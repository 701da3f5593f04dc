//! Chains and clocks: roots that are renewed, chains that are too long or constrained, CRLs, and what time it is.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::ID_CE_KEY_USAGE;
use der::asn1::OctetString;
use x509_cert::ext::Extension;

use crate::craft::{reissue, with_leaf};
use crate::judge::Case;
use crate::pki::{DAY, pki};
use crate::{good, manifest};

const YEAR: u64 = 365 * DAY;

fn sign(signer: &str, more: &[&str]) -> Vec<u8> {
    pki().sign(manifest(), signer, "signer", more)
}

/// The plain message with another certificate of the signer, signed by the same issuer.
fn with_extensions(change: impl FnOnce(&mut Vec<Extension>)) -> Vec<u8> {
    let leaf = reissue("signer.pem", "int", |tbs| change(tbs.extensions.as_mut().unwrap()));
    with_leaf(good(), &leaf)
}

pub(crate) fn renewed_roots() -> Vec<Case> {
    let old = || good().to_vec();
    let new = || sign("by-new", &["-certfile", "int-new.pem"]);
    let cross = || sign("by-new", &["-certfile", "cross-chain.pem"]);
    vec![
        Case::new("root with new dates alone", old()).roots(&["root-renewed.pem"]),
        Case::new("root with new dates beside the old one, CRLs", old())
            .roots(&["root-renewed.pem", "root.pem"])
            .crls(&["root.crl", "int.crl"]),
        Case::new("root with new key, old message", old())
            .roots(&["root-new.pem"])
            .refused("Path", "not valid"),
        Case::new("root with new key, new message", new()).roots(&["root-new.pem"]),
        Case::new("both roots, old message", old()).roots(&["root-new.pem", "root.pem"]),
        Case::new("both roots, new message", new()).roots(&["root.pem", "root-new.pem"]),
        Case::new("old root, new message", new()).refused("Path", "not valid"),
        Case::new("old root, new message with the new root certified by the old", cross()),
        Case::new("new root, new message with the new root certified by the old", cross())
            .roots(&["root-new.pem"]),
    ]
}

pub(crate) fn long_and_constrained_chains() -> Vec<Case> {
    let by = |file| sign("signer", &["-certfile", file]);
    let twice = with_extensions(|all| all.push(all[0].clone()));
    let unknown_twice = with_extensions(|all| {
        let extn_value = OctetString::new([5, 0]).unwrap();
        let extn_id = ObjectIdentifier::new_unwrap("1.2.3.4");
        let one = Extension { extn_id, critical: false, extn_value };
        all.extend([one.clone(), one]);
    });
    let malformed = with_extensions(|all| {
        // A NULL where RFC 5280, 4.2.1.3 has a BIT STRING.
        let usage = all.iter_mut().find(|one| one.extn_id == ID_CE_KEY_USAGE).unwrap();
        usage.extn_value = OctetString::new([5, 0]).unwrap();
    });
    vec![
        Case::new(
            "intermediate below one that allows none",
            sign("by-below", &["-certfile", "below-chain.pem"]),
        )
        .refused("Path", "not valid"),
        Case::new("name constraint that is kept", by("int-names.pem")).stricter("Issuer", "2.5.29.30"),
        Case::new("name constraint that is not kept", by("int-excludes.pem")).refused("Path", "not valid"),
        Case::new("extension twice", twice).refused("Path", "not valid"),
        Case::new("unknown extension twice", unknown_twice).stricter("Leaf", "1.2.3.4 twice"),
        Case::new("extension that cannot be read", malformed).refused("Leaf", "malformed"),
    ]
}

pub(crate) fn lists_and_clocks() -> Vec<Case> {
    let case = |name, crls: &[&'static str]| Case::new(name, good().to_vec()).crls(crls);
    vec![
        // The trap: webpki consults only the first CRL of an issuer, so an old one must not hide a new one.
        case("older CRL first, the newer revokes", &["int-expired.crl", "int-revokes.crl", "root.crl"])
            .refused("Revoked", "revoked"),
        case("newer CRL first, it revokes", &["int-revokes.crl", "int-expired.crl", "root.crl"])
            .refused("Revoked", "revoked"),
        case("older CRL first, the newer is good", &["int-expired.crl", "int.crl", "root.crl"]),
        Case::new("dead clock", good().to_vec()).at(0).refused("Root", "1970-01-01"),
        case("dead clock, CRLs", &["root.crl", "int.crl"]).at(0).refused("Root", "1970-01-01"),
        case("clock behind the CRLs", &["root.crl", "int.crl"])
            .at(pki().now - 3 * DAY)
            .refused("Root", "set the clock"),
        Case::new("clock three years ahead", good().to_vec())
            .at(pki().now + 3 * YEAR)
            .refused("Validity", "CN=signer"),
        case("clock two months ahead, CRLs", &["root.crl", "int.crl"])
            .at(pki().now + 60 * DAY)
            .refused("Revocation", "expired"),
        Case::new("clock a century ahead", good().to_vec())
            .at(pki().now + 100 * YEAR)
            .refused("Root", "set the clock"),
    ]
}
