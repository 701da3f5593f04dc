//! The certificates: leaf usage, chain, revocation and time (points 6 to 10; RFC 5280).
//!
//! webpki builds and verifies the path. What it leaves out, and OpenSSL does check, is checked here on each
//! path that it finds, so that nothing is accepted which OpenSSL rejects.

use std::cell::RefCell;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{ID_CE_NAME_CONSTRAINTS, ID_KP_CODE_SIGNING};
use der::{Decode, Encode};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage as Purpose, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName,
    SubjectKeyIdentifier,
};

use super::keyring::{Crl, Root};
use super::{SignatureError, algorithms, name, unix, utc};

/// A proxy certificate (RFC 3820).
const ID_PE_PROXY_CERT_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.14");

/// A fault of a certificate: part, found, expected.
pub(super) type Fault = (&'static str, String, &'static str);

/// Point 6: the signer is an end entity whose key may sign code.
pub(super) fn check_leaf(leaf: &Certificate) -> Result<(), SignatureError> {
    let check = || -> Result<(), Fault> {
        check_form(leaf)?;
        let tbs = &leaf.tbs_certificate;
        if tbs.get::<BasicConstraints>().is_ok_and(|found| found.is_some_and(|(_, b)| b.ca)) {
            return Err(("basicConstraints", "CA:TRUE".into(), "CA:FALSE"));
        }
        // webpki's `required_if_present` accepts a leaf without any EKU. anyExtendedKeyUsage is not enough.
        let purposes =
            tbs.get::<ExtendedKeyUsage>().ok().flatten().map(|(_, usage)| usage.0).unwrap_or_default();
        if !purposes.contains(&ID_KP_CODE_SIGNING) {
            let found: Vec<String> = purposes.iter().take(8).map(ToString::to_string).collect();
            let found = if found.is_empty() { "none".into() } else { found.join(", ") };
            return Err(("extendedKeyUsage", found, "codeSigning"));
        }
        if let Ok(Some((_, usage))) = tbs.get::<KeyUsage>()
            && !usage.digital_signature()
        {
            return Err(("keyUsage", "no digitalSignature".into(), "digitalSignature, or no keyUsage"));
        }
        Ok(())
    };
    check().map_err(|(part, found, expected)| SignatureError::Leaf {
        subject: name(&leaf.tbs_certificate.subject),
        part,
        found,
        expected,
    })
}

/// Point 7: `issuer` may sign certificates.
pub(super) fn check_issuer(issuer: &Certificate) -> Result<(), Fault> {
    check_form(issuer)?;
    let tbs = &issuer.tbs_certificate;
    if !tbs.get::<BasicConstraints>().is_ok_and(|found| found.is_some_and(|(_, b)| b.ca)) {
        return Err(("basicConstraints", "not CA:TRUE".into(), "CA:TRUE"));
    }
    // RFC 5280, 6.1.4 (n). webpki ignores keyUsage.
    if let Ok(Some((_, usage))) = tbs.get::<KeyUsage>()
        && !usage.key_cert_sign()
    {
        return Err(("keyUsage", "no keyCertSign".into(), "keyCertSign"));
    }
    Ok(())
}

/// What holds for every certificate of a chain: a strong key, each extension once, the known ones readable, and
/// none that webpki and OpenSSL understand differently.
fn check_form(certificate: &Certificate) -> Result<(), Fault> {
    let tbs = &certificate.tbs_certificate;
    algorithms::check_key(&tbs.subject_public_key_info)
        .map_err(|found| ("key", found, algorithms::EXPECTED_KEY))?;
    let extensions = tbs.extensions.as_deref().unwrap_or_default();
    for (i, extension) in extensions.iter().enumerate() {
        if extensions.iter().take(i).any(|earlier| earlier.extn_id == extension.extn_id) {
            return Err(("extensions", format!("{} twice", extension.extn_id), "each extension once"));
        }
        // webpki ignores the common name and does not know every form of constraint.
        if [ID_CE_NAME_CONSTRAINTS, ID_PE_PROXY_CERT_INFO].contains(&extension.extn_id) {
            return Err((
                "extensions",
                extension.extn_id.to_string(),
                "neither nameConstraints nor proxyCertInfo",
            ));
        }
    }
    let readable = tbs.get::<BasicConstraints>().is_ok()
        && tbs.get::<KeyUsage>().is_ok()
        && tbs.get::<ExtendedKeyUsage>().is_ok()
        && tbs.get::<SubjectKeyIdentifier>().is_ok()
        && tbs.get::<AuthorityKeyIdentifier>().is_ok()
        && tbs.get::<SubjectAltName>().is_ok();
    if readable { Ok(()) } else { Err(("extensions", "one that is malformed".into(), "the DER of RFC 5280")) }
}

/// Whether the authority key identifier of `certificate` names `issuer`. webpki ignores it; OpenSSL does not.
pub(super) fn names_issuer(certificate: &Certificate, issuer: &Certificate) -> bool {
    let Ok(Some((_, id))) = certificate.tbs_certificate.get::<AuthorityKeyIdentifier>() else { return true };
    let issuer = &issuer.tbs_certificate;
    let key = issuer.get::<SubjectKeyIdentifier>().ok().flatten().map(|(_, key)| key.0);
    let same_key = id.key_identifier.zip(key).is_none_or(|(a, b)| a == b);
    let same_serial = id.authority_cert_serial_number.is_none_or(|serial| serial == issuer.serial_number);
    let same_name = id.authority_cert_issuer.is_none_or(|names| {
        names.iter().all(|n| !matches!(n, GeneralName::DirectoryName(n) if *n != issuer.issuer))
    });
    same_key && same_serial && same_name
}

/// Which CRLs count, and whether one that has expired still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// At present: none from the future, none that has expired.
    Now,
    /// At an earlier time, long after it: whatever has been revoked since is revoked.
    AtRest,
}

/// Verifies the chain of `leaf` to one of `roots`, at `now`. `crls` is `None` where no revocation is configured.
pub(super) fn verify(
    leaf: &EndEntityCert<'_>,
    certificate: &Certificate,
    bag: &[CertificateDer<'_>],
    roots: &[Root],
    crls: Option<&[Crl]>,
    now: u64,
    judged: Judged,
) -> Result<(), SignatureError> {
    let roots: Vec<&Root> = roots.iter().collect();
    let valid: Vec<&Root> = roots.iter().copied().filter(|root| root.is_valid_at(now)).collect();
    if valid.is_empty() {
        return Err(SignatureError::Root { now: utc(now), roots: describe(&roots) });
    }
    let anchors: Vec<TrustAnchor<'_>> = valid.iter().map(|root| root.anchor.clone()).collect();
    let counts = |crl: &&Crl| judged == Judged::AtRest || crl.this_update <= now;
    let usable: Option<Vec<&Crl>> = crls.map(|list| list.iter().filter(counts).collect());
    let lists: Vec<&CertRevocationList<'_>> = usable.iter().flatten().map(|crl| &crl.list).collect();
    let refusal = RefCell::new(None);
    let check = |path: &VerifiedPath<'_>| {
        check_path(path, certificate, &valid, usable.as_deref(), now).map_err(|error| {
            *refusal.borrow_mut() = Some(error);
            // Any error: it only says that this path is not good; the reason is in `refusal`.
            webpki::Error::UnknownIssuer
        })
    };
    let result = leaf.verify_for_usage(
        algorithms::CHAIN,
        &anchors,
        bag,
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now)),
        Purpose::required_if_present(ID_KP_CODE_SIGNING.as_bytes()),
        revocation(certificate, usable.is_some(), &lists, judged)?,
        Some(&check),
    );
    match (result, refusal.take()) {
        (Ok(_), _) => Ok(()),
        (Err(_), Some(refusal)) => Err(refusal),
        (Err(source), None) => Err(explain(source, certificate, bag, &valid, usable.as_deref(), now)),
    }
}

/// Point 8: whole chain, unknown is denied, an expired CRL is an error at present. A keyring with CRLs of which none is
/// usable denies everything.
fn revocation<'a>(
    leaf: &Certificate,
    configured: bool,
    lists: &'a [&'a CertRevocationList<'a>],
    judged: Judged,
) -> Result<Option<RevocationOptions<'a>>, SignatureError> {
    if !configured {
        return Ok(None);
    }
    let builder = RevocationOptionsBuilder::new(lists).map_err(|_| SignatureError::Revocation {
        subject: name(&leaf.tbs_certificate.subject),
        found: "every CRL of the keyring is from the future".into(),
        advice: "set the clock, or install current CRLs",
        source: None,
    })?;
    Ok(Some(
        builder
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(match judged {
                Judged::Now => ExpirationPolicy::Enforce,
                Judged::AtRest => ExpirationPolicy::Ignore,
            })
            .build(),
    ))
}

/// What webpki leaves out on a path that it has verified.
fn check_path(
    path: &VerifiedPath<'_>,
    leaf: &Certificate,
    roots: &[&Root],
    crls: Option<&[&Crl]>,
    now: u64,
) -> Result<(), SignatureError> {
    let mut chain = vec![leaf.clone()];
    for intermediate in path.intermediate_certificates() {
        let certificate =
            Certificate::from_der(&intermediate.der()).map_err(|source| SignatureError::NotCms { source })?;
        check_issuer(&certificate).map_err(|fault| issuer_error(&certificate, fault))?;
        chain.push(certificate);
    }
    for certificate in &chain {
        check_validity(certificate, now)?;
    }
    for (certificate, issuer) in chain.iter().zip(chain.iter().skip(1)) {
        check_identifier(certificate, issuer)?;
    }
    // Two roots may share name and key (a renewed one): one that fits is enough.
    let mut outcome = Ok(());
    for root in roots.iter().filter(|root| root.anchor == *path.anchor()) {
        outcome = check_root(&chain, root, crls);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Root rules that webpki, which sees only name and key of an anchor, cannot know.
fn check_root(chain: &[Certificate], root: &Root, crls: Option<&[&Crl]>) -> Result<(), SignatureError> {
    let certificate = &root.certificate;
    let tbs = &certificate.tbs_certificate;
    if let Some(last) = chain.last() {
        check_identifier(last, certificate)?;
    }
    let intermediates = chain.len().saturating_sub(1);
    let constraints = tbs.get::<BasicConstraints>().ok().flatten();
    let limit = constraints.and_then(|(_, constraints)| constraints.path_len_constraint);
    if limit.is_some_and(|limit| intermediates > usize::from(limit)) {
        let found = format!("{intermediates} intermediates");
        return Err(issuer_error(certificate, ("basicConstraints", found, "at most the root's pathlen")));
    }
    let own = crls.into_iter().flatten().filter(|crl| crl.issuer == root.anchor.subject.as_ref());
    for crl in own {
        if tbs.get::<KeyUsage>().is_ok_and(|found| found.is_some_and(|(_, usage)| !usage.crl_sign())) {
            let fault = ("keyUsage", "no cRLSign, but a CRL of this root is installed".into(), "cRLSign");
            return Err(issuer_error(certificate, fault));
        }
        if !matches!(crl.list.find_serial(&root.serial), Ok(None)) {
            return Err(SignatureError::Revoked { subject: chain.first().map(subject).unwrap_or_default() });
        }
    }
    Ok(())
}

fn check_identifier(certificate: &Certificate, issuer: &Certificate) -> Result<(), SignatureError> {
    if names_issuer(certificate, issuer) {
        return Ok(());
    }
    let found = format!("another issuer than {:?}", subject(issuer));
    Err(issuer_error(certificate, ("authorityKeyIdentifier", found, "the issuer's key identifier")))
}

/// As webpki, but a certificate is out of date at the very second of notAfter, as OpenSSL has it.
fn check_validity(certificate: &Certificate, now: u64) -> Result<(), SignatureError> {
    let validity = &certificate.tbs_certificate.validity;
    let (not_before, not_after) = (unix(validity.not_before), unix(validity.not_after));
    if (not_before..not_after).contains(&now) {
        return Ok(());
    }
    Err(SignatureError::Validity {
        subject: subject(certificate),
        not_before: utc(not_before),
        not_after: utc(not_after),
        now: utc(now),
    })
}

fn issuer_error(certificate: &Certificate, (part, found, expected): Fault) -> SignatureError {
    SignatureError::Issuer { subject: subject(certificate), part, found, expected }
}

fn subject(certificate: &Certificate) -> String {
    name(&certificate.tbs_certificate.subject)
}

/// Names and periods of roots, for messages.
pub(super) fn describe(roots: &[&Root]) -> String {
    let list: Vec<String> = roots
        .iter()
        .map(|root| {
            let validity = &root.certificate.tbs_certificate.validity;
            let (start, end) = (utc(unix(validity.not_before)), utc(unix(validity.not_after)));
            format!("{} ({}, {start} to {end})", subject(&root.certificate), root.file)
        })
        .collect();
    list.join("; ")
}

/// webpki's error in the operator's words.
fn explain(
    source: webpki::Error,
    leaf: &Certificate,
    bag: &[CertificateDer<'_>],
    roots: &[&Root],
    crls: Option<&[&Crl]>,
    now: u64,
) -> SignatureError {
    let subject = subject(leaf);
    let chain: Vec<Certificate> = bag.iter().filter_map(|c| Certificate::from_der(c).ok()).collect();
    match source {
        webpki::Error::CertRevoked => SignatureError::Revoked { subject },
        webpki::Error::UnknownIssuer => SignatureError::NoTrustedRoot {
            subject,
            issuer: name(&leaf.tbs_certificate.issuer),
            roots: describe(roots),
        },
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => chain
            .iter()
            .find_map(|certificate| check_validity(certificate, now).err())
            .unwrap_or(SignatureError::Path { subject, source }),
        webpki::Error::UnknownRevocationStatus => {
            let missing: Vec<String> = chain
                .iter()
                .map(|certificate| &certificate.tbs_certificate.issuer)
                .filter(|issuer| {
                    !crls.into_iter().flatten().any(|crl| crl.issuer == super::name_content(issuer))
                })
                .map(name)
                .collect();
            let found = format!("no CRL of {}", missing.join(" or of "));
            SignatureError::Revocation { subject, found, advice: "install it", source: Some(source) }
        }
        webpki::Error::CrlExpired { next_update, .. } => SignatureError::Revocation {
            subject,
            found: format!(
                "the newest CRL expired at {}, and now it is {}",
                utc(next_update.as_secs()),
                utc(now)
            ),
            advice: "install the next CRL of its issuer, or set the clock",
            source: Some(source),
        },
        webpki::Error::InvalidCrlSignatureForPublicKey
        | webpki::Error::IssuerNotCrlSigner
        | webpki::Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | webpki::Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
            SignatureError::Revocation {
                subject,
                found: "a CRL of the keyring is not signed by the issuer that it names".into(),
                advice: "install the CRL of the issuer of this chain",
                source: Some(source),
            }
        }
        source => SignatureError::Path { subject, source },
    }
}

/// DER of a certificate.
pub(super) fn encode(certificate: &Certificate) -> Result<CertificateDer<'static>, der::Error> {
    certificate.to_der().map(CertificateDer::from)
}
