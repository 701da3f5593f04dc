//! The signature over the manifest: CMS, detached, one signer (`signature.md`; its points are numbered here).
//!
//! Pure: the caller reads the files and gives the time. Untrusted bytes are parsed by Rust only; ring does the
//! arithmetic. Order: form (1–4), algorithms and signature (5), signer (6), chain (7–10), and only then the
//! manifest's content (12).

mod algorithms;
mod cms;
mod error;
mod keyring;
mod path;

use std::fmt::Write as _;
use std::ops::Deref;

use der::Encode;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;
use x509_cert::name::Name;
use x509_cert::time::Time;

pub use error::{KeyringError, SignatureError};
pub use keyring::Keyring;

use super::manifest::{Manifest, parse_utc};
use path::Judged;

/// Largest signature file that is read, in bytes.
pub const MAX_SIGNATURE: u64 = 64 << 10;

/// A value whose signature was verified. Only [`Keyring::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    manifest_sha256: [u8; 32],
    signer: Signer,
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Subject of the certificate, RFC 4514.
    pub subject: String,
    /// SHA-256 of the certificate's DER.
    pub certificate_sha256: [u8; 32],
    /// Unix seconds. The signer's claim: for the log, never to decide by.
    pub signing_time: Option<u64>,
    /// What an operator should know, for example a short RSA key.
    pub warnings: Vec<String>,
}

impl<T> Verified<T> {
    /// The value.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Who signed it.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// What the image is (point 11): SHA-256 of the manifest's bytes and of the signer's certificate. Never the
    /// hash of the signature file, whose certificate bag nobody signs.
    pub fn identity(&self) -> ([u8; 32], [u8; 32]) {
        (self.manifest_sha256, self.signer.certificate_sha256)
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl Keyring {
    /// The manifest in `manifest`, if `p7s` is a signature over these very bytes that this keyring trusts.
    ///
    /// `now` is Unix seconds, **already floored by the caller** (point 10): the largest of the real-time clock, the
    /// running firmware's build date and the last accepted signing time, so that an appliance with an empty
    /// clock battery does not accept what has expired. The signing time in the message is never used as `now`.
    pub fn verify(
        &self,
        manifest: &[u8],
        p7s: &[u8],
        now: u64,
    ) -> Result<Verified<Manifest>, SignatureError> {
        self.verify_judged(manifest, p7s, now, Judged::Now)
    }

    /// The same for what was verified before, at `then` (Unix seconds), and lies in a slot since: dates of certificates
    /// are judged as of then, revocation by the newest CRLs whatever their dates (`docs/decisions/0005`).
    pub fn verify_at_rest(
        &self,
        manifest: &[u8],
        p7s: &[u8],
        then: u64,
    ) -> Result<Verified<Manifest>, SignatureError> {
        self.once(manifest, p7s, Some(then), || self.verify_judged(manifest, p7s, then, Judged::AtRest))
    }

    /// The same for what says itself when it was verified first: at its build date. That is read only after the signature
    /// was verified at a time within the signer's own certificate, its last or first moment: no chain need hold for all of
    /// it.
    pub fn verify_as_built(&self, manifest: &[u8], p7s: &[u8]) -> Result<Verified<Manifest>, SignatureError> {
        self.once(manifest, p7s, None, || {
            let validity = cms::parse(p7s, manifest)?.leaf.tbs_certificate.validity;
            let (first, last) = (unix(validity.not_before), unix(validity.not_after).saturating_sub(1));
            let at = |then| self.verify_judged(manifest, p7s, then, Judged::AtRest);
            let signed = at(last).or_else(|_| at(first))?;
            at(parse_utc(&signed.build_date).unwrap_or(0))
        })
    }

    /// What `verify` finds, or found of the same bytes before.
    fn once(
        &self,
        manifest: &[u8],
        p7s: &[u8],
        then: Option<u64>,
        verify: impl FnOnce() -> Result<Verified<Manifest>, SignatureError>,
    ) -> Result<Verified<Manifest>, SignatureError> {
        let key = (Sha256::digest(manifest).into(), Sha256::digest(p7s).into(), then);
        if let Some(known) = self.remembered.get(&key) {
            return Ok(known);
        }
        let verified = verify()?;
        self.remembered.put(key, verified.clone());
        Ok(verified)
    }

    fn verify_judged(
        &self,
        manifest: &[u8],
        p7s: &[u8],
        now: u64,
        judged: Judged,
    ) -> Result<Verified<Manifest>, SignatureError> {
        let signer = self.verify_bytes(manifest, p7s, now, judged)?;
        // Point 12: not a byte of the manifest is parsed before this line.
        let value = Manifest::parse(manifest)?;
        Ok(Verified { value, manifest_sha256: Sha256::digest(manifest).into(), signer })
    }

    fn verify_bytes(
        &self,
        manifest: &[u8],
        p7s: &[u8],
        now: u64,
        judged: Judged,
    ) -> Result<Signer, SignatureError> {
        let message = cms::parse(p7s, manifest)?;
        let subject = name(&message.leaf.tbs_certificate.subject);
        let leaf_der = path::encode(&message.leaf).map_err(|source| SignatureError::NotCms { source })?;
        let leaf = EndEntityCert::try_from(&leaf_der)
            .map_err(|source| SignatureError::Path { subject: subject.clone(), source })?;
        let key = &message.leaf.tbs_certificate.subject_public_key_info;
        let weak = algorithms::check_key(key).map_err(|found| SignatureError::Algorithm {
            part: "key",
            found,
            expected: algorithms::EXPECTED_KEY,
        })?;
        algorithms::verify(&leaf, message.digest, &message.algorithm, &message.signed, &message.signature)?;
        path::check_leaf(&message.leaf)?;
        let bag: Vec<CertificateDer<'_>> =
            message.certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        path::verify(&leaf, &message.leaf, &bag, &self.roots, self.crls(), now, judged)?;
        let warnings =
            weak.map(|bits| format!("signer {subject}: RSA key of {bits} bits; 3072 are recommended"));
        Ok(Signer {
            subject,
            certificate_sha256: Sha256::digest(&leaf_der).into(),
            signing_time: message.signing_time,
            warnings: warnings.into_iter().collect(),
        })
    }
}

/// A distinguished name for messages: RFC 4514, without control characters, at most 200 characters.
fn name(name: &Name) -> String {
    let mut text = String::new();
    if write!(text, "{name}").is_err() {
        return "(unreadable name)".into();
    }
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(200).collect()
}

/// DER of a name without its header, as webpki compares names.
fn name_content(name: &Name) -> Vec<u8> {
    let mut content = Vec::new();
    for relative in &name.0 {
        // Encoding into memory what was decoded before cannot fail; if it did, the name would match nothing.
        if relative.encode_to_vec(&mut content).is_err() {
            return Vec::new();
        }
    }
    content
}

/// Unix seconds of a time of a certificate; never negative, because `der` knows no year before 1970.
fn unix(time: Time) -> u64 {
    time.to_unix_duration().as_secs()
}

/// Unix seconds as people read them.
fn utc(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("{seconds} s"), |time| time.to_string())
}
