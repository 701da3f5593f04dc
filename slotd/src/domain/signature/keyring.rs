//! The keyring: trusted roots and CRLs, from the running firmware (points 8 and 9).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use der::{Decode, Encode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;

use super::{KeyringError, Verified, algorithms, name, name_content, path, unix, utc};
use crate::domain::manifest::Manifest;

/// Most roots, and most CRLs.
const MAX_FILES: usize = 64;
/// Largest root file, in bytes.
const MAX_ROOT: usize = 64 << 10;
/// Largest CRL file, in bytes.
const MAX_CRL: usize = 16 << 20;

/// Roots and CRLs that a signature is verified against.
pub struct Keyring {
    pub(super) roots: Vec<Root>,
    /// All, newest first: webpki consults the first of an issuer.
    crls: Vec<Crl>,
    warnings: Vec<String>,
    pub(super) remembered: Remembered,
}

/// What was verified at rest and held: the same bytes at the same time hold again, and a start looks at each slot three
/// times. Key: SHA-256 of the manifest, of the signature, and the time; no time for what was judged as it was built.
#[derive(Default)]
pub(super) struct Remembered(Mutex<VecDeque<(Key, Verified<Manifest>)>>);

/// See [`Remembered`].
pub(super) type Key = ([u8; 32], [u8; 32], Option<u64>);

/// Most that is remembered: two for each slot.
const REMEMBERED: usize = 20;

impl Remembered {
    pub(super) fn get(&self, key: &Key) -> Option<Verified<Manifest>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(known, _)| known == key).map(|(_, verified)| verified.clone())
    }

    pub(super) fn put(&self, key: Key, verified: Verified<Manifest>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.pop_front();
        }
        all.push_back((key, verified));
    }
}

/// A trusted root.
pub(super) struct Root {
    pub(super) file: String,
    pub(super) certificate: Certificate,
    pub(super) anchor: TrustAnchor<'static>,
    /// Serial number as CRLs hold it.
    pub(super) serial: Vec<u8>,
}

/// A certificate revocation list.
pub(super) struct Crl {
    pub(super) file: String,
    /// DER of the issuer's name without its header, as webpki compares it.
    pub(super) issuer: Vec<u8>,
    /// Unix seconds.
    pub(super) this_update: u64,
    /// Unix seconds.
    next_update: u64,
    pub(super) list: CertRevocationList<'static>,
    /// Issuer, for messages.
    shown: String,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots: Vec<&str> = self.roots.iter().map(|root| root.file.as_str()).collect();
        let crls: Vec<&str> = self.crls.iter().map(|crl| crl.file.as_str()).collect();
        f.debug_struct("Keyring").field("roots", &roots).field("crls", &crls).finish_non_exhaustive()
    }
}

impl Root {
    /// OpenSSL counts the very second of notAfter as out of date; so do we.
    pub(super) fn is_valid_at(&self, now: u64) -> bool {
        let validity = &self.certificate.tbs_certificate.validity;
        (unix(validity.not_before)..unix(validity.not_after)).contains(&now)
    }
}

impl Keyring {
    /// The keyring of these files: pairs of file name (for messages) and content, one certificate or CRL each, in
    /// PEM or DER. `now` is Unix seconds, floored as for [`Keyring::verify`].
    ///
    /// Refused are: no root, an unreadable file, a root twice, a certificate that is no root, two current CRLs of one
    /// issuer. What is out of date now is told as a warning and kept: it is judged again whenever something is
    /// verified, so a keyring that was loaded while the clock was wrong is right as soon as the clock is.
    pub fn parse(
        roots: &[(String, Vec<u8>)],
        crls: &[(String, Vec<u8>)],
        now: u64,
    ) -> Result<Self, KeyringError> {
        if roots.is_empty() {
            return Err(KeyringError::Empty);
        }
        for (what, found) in [("root files", roots.len()), ("CRL files", crls.len())] {
            limit(what, found, MAX_FILES)?;
        }
        let mut warnings = Vec::new();
        Ok(Self {
            roots: parse_roots(roots, now, &mut warnings)?,
            crls: parse_crls(crls, now, &mut warnings)?,
            warnings,
            remembered: Remembered::default(),
        })
    }

    /// What an operator should know about the files.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether a CRL is configured. Without one revocation is not checked; with one, a certificate whose
    /// revocation state is unknown is refused.
    pub fn checks_revocation(&self) -> bool {
        !self.crls.is_empty()
    }

    /// The CRLs, if revocation is checked.
    pub(super) fn crls(&self) -> Option<&[Crl]> {
        self.checks_revocation().then_some(self.crls.as_slice())
    }
}

fn limit(what: &str, found: usize, limit: usize) -> Result<(), KeyringError> {
    if found > limit {
        return Err(KeyringError::TooMuch { what: what.into(), found, limit });
    }
    Ok(())
}

/// Point 9.
fn parse_roots(
    files: &[(String, Vec<u8>)],
    now: u64,
    warnings: &mut Vec<String>,
) -> Result<Vec<Root>, KeyringError> {
    let mut roots: Vec<Root> = Vec::new();
    for (file, bytes) in files {
        limit(file, bytes.len(), MAX_ROOT)?;
        let root = parse_root(file, bytes)?;
        if let Some(first) = roots.iter().find(|r| r.certificate == root.certificate) {
            return Err(KeyringError::Duplicate { first: first.file.clone(), second: file.clone() });
        }
        roots.push(root);
    }
    for root in &roots {
        if !root.is_valid_at(now) {
            let shown = path::describe(&[root]);
            warnings.push(format!(
                "root {shown} is not valid at {} and does not count; set the clock, or remove it",
                utc(now)
            ));
        }
        let key = &root.certificate.tbs_certificate.subject_public_key_info;
        if let Ok(Some(bits)) = algorithms::check_key(key) {
            warnings.push(format!("root {}: RSA key of {bits} bits; 3072 are recommended", root.file));
        }
    }
    Ok(roots)
}

fn parse_root(file: &str, bytes: &[u8]) -> Result<Root, KeyringError> {
    const KIND: &str = "certificate";
    let encoded: CertificateDer<'static> = one(file, bytes, KIND)?;
    let not_der = |source| KeyringError::NotDer { file: file.into(), expected: KIND, source };
    let certificate = Certificate::from_der(&encoded).map_err(not_der)?;
    if certificate.to_der().map_err(not_der)? != encoded.as_ref() {
        let found = "a certificate that is not strict DER".into();
        return Err(KeyringError::Unreadable { file: file.into(), found, expected: KIND });
    }
    let unsupported = |source| KeyringError::Unsupported { file: file.into(), expected: KIND, source };
    // As an end entity, because for an anchor webpki ignores unknown critical extensions.
    let entity = EndEntityCert::try_from(&encoded).map_err(unsupported)?;
    let anchor = webpki::anchor_from_trusted_cert(&encoded).map_err(unsupported)?.to_owned();
    let tbs = &certificate.tbs_certificate;
    let check = || -> Result<(), path::Fault> {
        path::check_issuer(&certificate)?;
        if tbs.subject != tbs.issuer || !path::names_issuer(&certificate, &certificate) {
            return Err(("issuer", name(&tbs.issuer), "itself: a root is self-signed"));
        }
        let signed = tbs.to_der().unwrap_or_default();
        let signature = certificate.signature.raw_bytes();
        if !algorithms::verify_self_signed(&entity, &certificate.signature_algorithm, &signed, signature) {
            let expected = "one by its own key with an algorithm of the profile";
            return Err(("signature", "one that does not verify".into(), expected));
        }
        Ok(())
    };
    check().map_err(|(part, found, expected)| KeyringError::Root {
        file: file.into(),
        subject: name(&tbs.subject),
        part,
        found,
        expected,
    })?;
    let serial = entity.serial().to_vec();
    Ok(Root { file: file.into(), anchor, serial, certificate })
}

/// Point 8.
fn parse_crls(
    files: &[(String, Vec<u8>)],
    now: u64,
    warnings: &mut Vec<String>,
) -> Result<Vec<Crl>, KeyringError> {
    let mut crls = Vec::new();
    for (file, bytes) in files {
        limit(file, bytes.len(), MAX_CRL)?;
        let crl = parse_crl(file, bytes)?;
        let (issuer, from, until) = (&crl.shown, utc(crl.this_update), utc(crl.next_update));
        if crl.this_update > now {
            warnings
                .push(format!("CRL {file} of {issuer} is from the future ({from}) and does not count yet"));
        } else if crl.next_update <= now {
            warnings.push(format!("CRL {file} of {issuer} expired at {until}; install the next one"));
        }
        crls.push(crl);
    }
    crls.sort_by_key(|crl| std::cmp::Reverse(crl.this_update));
    let current: Vec<&Crl> =
        crls.iter().filter(|crl| (crl.this_update..crl.next_update).contains(&now)).collect();
    for (i, crl) in current.iter().enumerate() {
        if let Some(newer) = current.iter().take(i).find(|newer| newer.issuer == crl.issuer) {
            return Err(KeyringError::TwoCrls {
                first: newer.file.clone(),
                second: crl.file.clone(),
                issuer: crl.shown.clone(),
            });
        }
    }
    Ok(crls)
}

fn parse_crl(file: &str, bytes: &[u8]) -> Result<Crl, KeyringError> {
    const KIND: &str = "CRL";
    let encoded: CertificateRevocationListDer<'static> = one(file, bytes, KIND)?;
    let unreadable =
        |found: &str| KeyringError::Unreadable { file: file.into(), found: found.into(), expected: KIND };
    let list = CertificateList::from_der(&encoded).map_err(|source| KeyringError::NotDer {
        file: file.into(),
        expected: KIND,
        source,
    })?;
    let tbs = &list.tbs_cert_list;
    let next_update = tbs.next_update.ok_or_else(|| unreadable("a CRL without nextUpdate"))?;
    let parsed = OwnedCertRevocationList::from_der(&encoded).map_err(|source| KeyringError::Unsupported {
        file: file.into(),
        expected: KIND,
        source,
    })?;
    Ok(Crl {
        file: file.into(),
        issuer: name_content(&tbs.issuer),
        this_update: unix(tbs.this_update),
        next_update: unix(next_update),
        shown: name(&tbs.issuer),
        list: parsed.into(),
    })
}

/// The one item of a file: DER, or one PEM section of the kind of `T`.
fn one<T: PemObject + From<Vec<u8>>>(
    file: &str,
    bytes: &[u8],
    expected: &'static str,
) -> Result<T, KeyringError> {
    if bytes.first() == Some(&0x30) {
        return Ok(bytes.to_vec().into());
    }
    let unreadable = |found: String| KeyringError::Unreadable { file: file.into(), found, expected };
    let mut items = T::pem_slice_iter(bytes)
        .collect::<Result<Vec<T>, _>>()
        .map_err(|error| unreadable(format!("PEM with an error ({error})")))?;
    match (items.pop(), items.len()) {
        (Some(item), 0) => Ok(item),
        (None, _) => Err(unreadable("none".into())),
        (Some(_), more) => Err(unreadable(format!("{}", more.saturating_add(1)))),
    }
}
