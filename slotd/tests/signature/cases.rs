//! The cases by point of `docs/signature.md`: what the profile accepts, and what each check refuses.

use cms::content_info::CmsVersion;
use cms::revocation::RevocationInfoChoices;
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{ID_CONTENT_TYPE, ID_COUNTERSIGNATURE, ID_MESSAGE_DIGEST, ID_SIGNING_TIME};
use const_oid::db::rfc5912::{ECDSA_WITH_SHA_384, ID_SHA_384};
use der::asn1::{Any, Null, OctetString, SetOfVec};

use crate::craft::{
    as_type, attribute, content_type, edit, edit_signer, indefinite, long_length, message_digest, resign,
    strip, unsorted, with_certificates, zeros,
};
use slotd::domain::signature::MAX_SIGNATURE;

use crate::judge::Case;
use crate::pki::{DAY, pki};
use crate::{good, manifest};

/// id-ct-TSTInfo: a type that is not id-data.
const OTHER_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");

fn sign(signer: &str, key: &str, more: &[&str]) -> Vec<u8> {
    pki().sign(manifest(), signer, key, more)
}

/// Six certificates beside those of the plain message.
const MANY: [&str; 6] = ["p384.pem", "p521.pem", "rsa1024.pem", "rsa2048.pem", "rsa3072.pem", "second.pem"];
const PSS: [&str; 4] = ["-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"];

pub(crate) fn the_profile_is_accepted() -> Vec<Case> {
    vec![
        Case::new("P-256 with SHA-256", good().to_vec()),
        Case::new("P-256 with SHA-384", sign("signer", "signer", &["-md", "sha384"])),
        Case::new("P-384 with SHA-384", sign("p384", "p384", &["-md", "sha384"])),
        Case::new("P-384 with SHA-256", sign("p384", "p384", &[])),
        Case::new("RSA 3072 PKCS#1 with SHA-256", sign("rsa3072", "rsa3072", &[])),
        Case::new("RSA 3072 PKCS#1 with SHA-512", sign("rsa3072", "rsa3072", &["-md", "sha512"])),
        Case::new("RSA 3072 PSS with SHA-256", sign("rsa3072", "rsa3072", &PSS)),
        Case::new(
            "RSA 3072 PSS with SHA-384",
            sign("rsa3072", "rsa3072", &[&PSS[..], &["-md", "sha384"]].concat()),
        ),
        Case::new("RSA 2048", sign("rsa2048", "rsa2048", &[])),
        Case::new("subject key identifier", sign("signer", "signer", &["-keyid"])),
        Case::new("no keyUsage", sign("no-ku", "signer", &[])),
        Case::new("issued by the root", sign("by-root", "signer", &[])),
        Case::new("unrelated certificate in the bag", with_certificates(good(), &["other.pem"])),
        Case::new("eight certificates, sorted as DER has it", with_certificates(good(), &MANY)),
        Case::new("two roots", good().to_vec()).roots(&["other.pem", "root.pem"]),
        Case::new("renewed root", good().to_vec()).roots(&["root-renewed.pem", "root.pem"]),
        Case::new("root without cRLSign and no CRL", good().to_vec()).roots(&["root-no-crl-sign.pem"]),
        Case::new("CRLs that revoke nothing", good().to_vec()).crls(&["root.crl", "int.crl"]),
        Case::new("CRL that revokes another", sign("second", "second", &[]))
            .crls(&["root.crl", "int-revokes.crl"]),
    ]
}

pub(crate) fn point_1_strict_der() -> Vec<Case> {
    let trailing = [good(), &[0]].concat();
    vec![
        Case::new("indefinite length", indefinite(good())).stricter("NotCms", "-outform DER"),
        Case::new("length of one byte too many", long_length(good())).stricter("NotCms", "-outform DER"),
        Case::new("trailing byte", trailing).stricter("NotCms", "-outform DER"),
        Case::new("unsorted certificates", unsorted(good())).stricter("NotCanonical", "unsorted set"),
        Case::new("openssl -stream", sign("signer", "signer", &["-stream"])).stricter("NotCms", "DER"),
        Case::new("empty file", Vec::new()).refused("NotCms", "DER"),
        Case::new("PEM", pem(good())).refused("NotCms", "DER"),
        Case::new("cut", good()[..good().len() - 1].to_vec()).refused("NotCms", "DER"),
    ]
}

fn pem(der: &[u8]) -> Vec<u8> {
    let text = der.chunks(24).map(|line| hex::encode(line) + "\n");
    format!("-----BEGIN CMS-----\n{}-----END CMS-----\n", text.collect::<String>()).into_bytes()
}

/// Signed attributes of 63 types that nobody knows, beside the three that every message has.
fn many_attributes() -> Vec<x509_cert::attr::Attribute> {
    (1..=63)
        .map(|n| attribute(ObjectIdentifier::new_unwrap("1.2.3").push_arc(n).unwrap(), vec![zeros(1)]))
        .collect()
}

/// A message of exactly `size` bytes: filled by an attribute that nobody knows. The length of an ECDSA signature
/// varies, so it takes a few attempts.
fn sized(size: u64) -> Vec<u8> {
    let size = usize::try_from(size).unwrap();
    let mut filler = size - good().len() - 40;
    let mut attempts = std::iter::repeat_with(|| {
        let message =
            resign(good(), |attributes| attributes.push(attribute(OTHER_TYPE, vec![zeros(filler)])));
        filler = (filler + size).checked_sub(message.len()).unwrap();
        message
    });
    attempts.by_ref().take(200).find(|message| message.len() == size).expect("a message of that size")
}

/// The plain message that announces SHA-384, beside SHA-256 or instead of it.
fn with_digests(both: bool) -> Vec<u8> {
    edit(good(), |data| {
        let known = data.digest_algorithms.get(0).unwrap().clone();
        let mut other = known.clone();
        other.oid = ID_SHA_384;
        let list = if both { vec![known, other] } else { vec![other] };
        data.digest_algorithms = SetOfVec::try_from(list).unwrap();
    })
}

pub(crate) fn point_2_structure() -> Vec<Case> {
    let refuses = |name, p7s, words| Case::new(name, p7s).stricter("Structure", words);
    let large = resign(good(), |attributes| attributes.push(attribute(OTHER_TYPE, vec![zeros(66_000)])));
    let many = [&MANY[..], &["short.pem"]].concat();
    vec![
        refuses("version 3", edit(good(), |d| d.version = CmsVersion::V3), "version: found V3"),
        refuses(
            "signer version 3",
            edit_signer(good(), |s| s.version = CmsVersion::V3),
            "version of the signer",
        ),
        refuses("attached content", sign("signer", "signer", &["-nodetach"]), "a detached signature"),
        refuses(
            "empty content",
            edit(good(), |d| d.encap_content_info.econtent = Some(zeros(0))),
            "detached",
        ),
        refuses(
            "two signers",
            sign("signer", "signer", &["-signer", "second.pem", "-inkey", "second.key"]),
            "signers: found 2",
        ),
        refuses(
            "no CRLs but the field",
            edit(good(), |d| d.crls = Some(RevocationInfoChoices(SetOfVec::new()))),
            "CRLs",
        ),
        refuses("nine certificates", with_certificates(good(), &many), "found 9"),
        Case::new("no certificates", edit(good(), |d| d.certificates = None))
            .refused("Structure", "certificates: found 0"),
        refuses(
            "unsigned attributes",
            edit_signer(good(), |s| {
                let set = SetOfVec::try_from(vec![attribute(OTHER_TYPE, vec![zeros(1)])]).unwrap();
                s.unsigned_attrs = Some(set);
            }),
            "unsigned attributes",
        ),
        refuses("a second digest algorithm", with_digests(true), "digest algorithms: found 2"),
        Case::new("another digest algorithm", with_digests(false)).refused("Structure", "digest algorithms"),
        Case::new(
            "another type of content",
            edit(good(), |d| d.encap_content_info.econtent_type = OTHER_TYPE),
        )
        .stricter("Structure", "type of the content"),
        Case::new("another content type", as_type(good(), OTHER_TYPE)).refused("Structure", "content type"),
        refuses(
            "65 signed attributes",
            resign(good(), |attributes| attributes.extend(many_attributes())),
            "64",
        ),
        Case::new("64 KiB", sized(MAX_SIGNATURE)),
        Case::new("64 KiB and a byte", sized(MAX_SIGNATURE + 1)).stricter("TooLong", "65537 bytes"),
        Case::new("no signer", edit(good(), |d| d.signer_infos.0 = SetOfVec::new()))
            .refused("Structure", "signers: found 0"),
        Case::new("66 KB", large).stricter("TooLong", "65536"),
    ]
}

pub(crate) fn point_3_one_certificate_matches_the_signer() -> Vec<Case> {
    let without = edit(good(), |data| {
        let bag = data.certificates.as_mut().unwrap();
        bag.retain(|certificate| certificate.tbs_certificate.subject.to_string().contains("int"));
    });
    let twice = with_certificates(&sign("signer", "signer", &["-keyid"]), &["short.pem"]);
    vec![
        Case::new("no certificate of the signer", without).refused("Signer", "0 of the 1 certificates"),
        Case::new("two of one issuer and serial number", with_certificates(good(), &["same-serial.pem"]))
            .ambiguous("Signer", "2 of the 3 certificates"),
        Case::new("two of one key", twice).stricter("Signer", "2 of the 3 certificates"),
    ]
}

pub(crate) fn point_4_signed_attributes() -> Vec<Case> {
    let (content, stripped) = strip(good());
    let digest = |bytes: &[u8]| message_digest(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
    let without = |oid| resign(good(), move |attributes| attributes.retain(|a| a.oid != oid));
    let with = |added| resign(good(), move |attributes| attributes.push(added));
    let swapped = |added: cms::signed_data::SignedAttributes| {
        resign(good(), move |attributes| {
            attributes.retain(|a| added.iter().all(|b| a.oid != b.oid));
            attributes.extend(added.into_vec());
        })
    };
    let one = |added| swapped(SetOfVec::try_from(vec![added]).unwrap());
    let null = || Any::encode_from(&Null).unwrap();
    let mut attack = Case::new("stripped message, attributes as content", stripped.clone());
    attack.content = content;
    vec![
        attack.stricter("Attributes", "found none"),
        Case::new("stripped message", stripped).refused("Attributes", "found none"),
        Case::new("no signed attributes", sign("signer", "signer", &["-noattr"]))
            .stricter("Attributes", "found none"),
        Case::new("another manifest", pki().sign(b"{}", "signer", "signer", &[]))
            .refused("Digest", "get it again"),
        Case::new("no content type", without(ID_CONTENT_TYPE))
            .refused("Attributes", "content-type: found none"),
        Case::new("no digest", without(ID_MESSAGE_DIGEST))
            .refused("Attributes", "message-digest: found none"),
        Case::new("two digests", with(digest(b"other"))).refused("Attributes", "two attributes"),
        Case::new("two content types", with(content_type(OTHER_TYPE)))
            .refused("Attributes", "two attributes"),
        Case::new(
            "two attributes of an unknown type",
            resign(good(), |attributes| {
                attributes
                    .extend([attribute(OTHER_TYPE, vec![zeros(1)]), attribute(OTHER_TYPE, vec![zeros(2)])]);
            }),
        )
        .stricter("Attributes", "two attributes"),
        Case::new("other content type", one(content_type(OTHER_TYPE))).stricter("Attributes", "content-type"),
        Case::new("digest that is none", one(attribute(ID_MESSAGE_DIGEST, vec![null()])))
            .refused("Attributes", "message-digest"),
        Case::new("time that is none", one(attribute(ID_SIGNING_TIME, vec![null()])))
            .stricter("Attributes", "signing-time"),
        Case::new("two values", one(attribute(ID_MESSAGE_DIGEST, vec![zeros(1), zeros(2)])))
            .refused("Attributes", "2 values"),
        Case::new("countersignature", with(attribute(ID_COUNTERSIGNATURE, vec![zeros(1)])))
            .refused("Attributes", "countersignature"),
    ]
}

pub(crate) fn point_5_algorithms_and_signature() -> Vec<Case> {
    let refuses = |name, p7s, words| Case::new(name, p7s).stricter("Algorithm", words);
    let pss = |salt| sign("rsa3072", "rsa3072", &["-keyopt", "rsa_padding_mode:pss", "-keyopt", salt]);
    let mgf = sign("rsa3072", "rsa3072", &[&PSS[..], &["-keyopt", "rsa_mgf1_md:sha384"]].concat());
    let other = edit_signer(good(), |signer| signer.signature_algorithm.oid = ECDSA_WITH_SHA_384);
    let parameters = edit_signer(good(), |signer| signer.signature_algorithm.parameters = Some(Any::null()));
    let changed = edit_signer(good(), |signer| {
        let mut bytes = signer.signature.as_bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        signer.signature = OctetString::new(bytes).unwrap();
    });
    vec![
        refuses("SHA-1", sign("signer", "signer", &["-md", "sha1"]), "message digest"),
        refuses("SHA-224", sign("signer", "signer", &["-md", "sha224"]), "message digest"),
        refuses("P-256 with SHA-512", sign("signer", "signer", &["-md", "sha512"]), "signature: found"),
        refuses("P-521", sign("p521", "p521", &[]), "key: found"),
        refuses("RSA 1024", sign("rsa1024", "rsa1024", &[]), "an RSA key of 1024 bits"),
        refuses("PSS with the longest salt", pss("rsa_pss_saltlen:max"), "RSA-PSS"),
        refuses("PSS without salt", pss("rsa_pss_saltlen:0"), "RSA-PSS"),
        refuses("PSS with another MGF1 hash", mgf, "MGF1"),
        refuses("parameters that ECDSA does not have", parameters, "signature: found"),
        refuses("digest of another algorithm", other, "with Sha256"),
        Case::new("signature with a changed bit", changed).refused("Mismatch", "get it again"),
        Case::new(
            "signed by another key",
            edit_signer(good(), |signer| {
                let set = der::Encode::to_der(signer.signed_attrs.as_ref().unwrap()).unwrap();
                signer.signature = OctetString::new(pki().sign_raw(&set, "second")).unwrap();
            }),
        )
        .refused("Mismatch", "get it again"),
    ]
}

pub(crate) fn point_6_leaf_usage() -> Vec<Case> {
    let refuses = |name, leaf, words| Case::new(name, sign(leaf, "signer", &[])).stricter("Leaf", words);
    vec![
        refuses("no EKU", "no-eku", "found none, expected codeSigning"),
        refuses("any EKU", "any-eku", "2.5.29.37.0, expected codeSigning"),
        refuses("email EKU", "email-eku", "1.3.6.1.5.5.7.3.4, expected codeSigning"),
        refuses("wrong keyUsage", "wrong-ku", "no digitalSignature"),
        refuses("CA as leaf", "ca-leaf", "CA:TRUE"),
        Case::new("unknown critical extension", sign("critical", "signer", &[])).refused("Path", "not valid"),
    ]
}

pub(crate) fn point_7_certificates_of_the_chain() -> Vec<Case> {
    let by = |file| sign("signer", "signer", &["-certfile", file]);
    vec![
        Case::new("intermediate without keyCertSign", by("int-cannot-sign.pem"))
            .refused("Issuer", "no keyCertSign"),
        Case::new("intermediate for email", by("int-email.pem")).stricter("Path", "not valid"),
        Case::new("intermediate that is no CA", by("int-no-ca.pem")).refused("Path", "not valid"),
        Case::new("key identifier of another issuer", sign("wrong-akid", "signer", &[]))
            .refused("Issuer", "authorityKeyIdentifier"),
        Case::new("no intermediate", by("root.pem")).refused("NoTrustedRoot", "CN=int,O=Test"),
        Case::new("another root", good().to_vec())
            .roots(&["other.pem"])
            .refused("NoTrustedRoot", "other.pem"),
        Case::new("signed by a stranger", sign("by-other", "signer", &[]))
            .refused("NoTrustedRoot", "CN=other"),
        Case::new("more intermediates than the root allows", good().to_vec())
            .roots(&["root-pathlen.pem"])
            .refused("Issuer", "1 intermediates"),
    ]
}

pub(crate) fn point_8_revocation() -> Vec<Case> {
    let case = |name, crls: &[&'static str]| Case::new(name, good().to_vec()).crls(crls);
    vec![
        case("revoked signer", &["root.crl", "int-revokes.crl"]).refused("Revoked", "ask its vendor"),
        case("revoked intermediate", &["root-revokes-int.crl", "int.crl"]).refused("Revoked", "revoked"),
        case("root revokes itself", &["root-revokes-itself.crl", "int.crl"]).refused("Revoked", "revoked"),
        case("expired CRL", &["root.crl", "int-expired.crl"]).refused("Revocation", "expired"),
        case("CRL that expires this second", &["root.crl", "int-expires-now.crl"])
            .refused("Revocation", "expired"),
        case("no CRL of the intermediate", &["root.crl"]).refused("Revocation", "no CRL of CN=int,O=Test"),
        case("no CRL of the root", &["int.crl"]).refused("Revocation", "no CRL of CN=root,O=Test"),
        case("CRL from the future", &["root.crl", "int-future.crl"])
            .refused("Revocation", "no CRL of CN=int"),
        case("every CRL from the future", &["root-future.crl", "int-future.crl"])
            .refused("Revocation", "set the clock"),
        case("forged CRL", &["root.crl", "int-forged.crl"]).refused("Revocation", "not signed by the issuer"),
        case("root without cRLSign", &["root.crl", "int.crl"])
            .roots(&["root-no-crl-sign.pem"])
            .refused("Issuer", "no cRLSign"),
    ]
}

pub(crate) fn points_9_and_10_time() -> Vec<Case> {
    let now = pki().now;
    let short = || sign("short", "signer", &[]);
    let not_after = |name: &str| {
        let certificate = <x509_cert::Certificate as der::Decode>::from_der(&pki().der(name)).unwrap();
        certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    };
    let (leaf_ends, root_ends) = (not_after("short.pem"), not_after("root-short.pem"));
    vec![
        Case::new("short signer", short()),
        // Its signing time is within the validity period: only `now` counts.
        Case::new("signer out of date", short()).at(now + 2 * DAY).refused("Validity", "set the clock"),
        Case::new("last second of the signer", short()).at(leaf_ends - 1),
        Case::new("signer at notAfter", short()).at(leaf_ends).refused("Validity", "CN=signer"),
        Case::new("intermediate out of date", good().to_vec())
            .at(now + 2000 * DAY)
            .refused("Validity", "CN="),
        Case::new("root valid", good().to_vec()).roots(&["root-short.pem"]).at(root_ends - 1),
        Case::new("root at notAfter", good().to_vec())
            .roots(&["root-short.pem"])
            .at(root_ends)
            .refused("Root", "root-short.pem"),
        Case::new("before the root", good().to_vec()).at(now - 10 * DAY).refused("Root", "set the clock"),
    ]
}
