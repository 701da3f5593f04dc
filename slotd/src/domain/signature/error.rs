//! Why a signature or a keyring is refused.

use sps_base::error::ErrorKind;

use super::MAX_SIGNATURE;
use crate::domain::manifest::ManifestError;

/// Why a manifest is not trusted. Points are those of `signature.md`.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Point 2: longer than [`MAX_SIGNATURE`].
    #[error(
        "manifest.p7s has {0} bytes; the limit is {MAX_SIGNATURE}; sign with the signer and its intermediates only"
    )]
    TooLong(u64),
    /// Point 1: not DER of the expected types.
    #[error(
        "manifest.p7s is not a CMS SignedData in DER; sign with `openssl cms -sign -binary -outform DER`"
    )]
    NotCms {
        /// What the decoder says, with the position.
        #[source]
        source: der::Error,
    },
    /// Point 1: decodes, but is not the one DER encoding.
    #[error(
        "manifest.p7s is not strict DER: byte {offset} differs from the canonical encoding (BER, unsorted set, or \
         trailing bytes); sign again with `openssl cms -sign -binary -outform DER`, without -stream"
    )]
    NotCanonical {
        /// First byte that differs.
        offset: usize,
    },
    /// Point 2: a part of the structure is not of the profile.
    #[error(
        "manifest.p7s: {part}: found {found}, expected {expected}; sign with the stock options of the profile"
    )]
    Structure {
        /// Which part.
        part: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Point 3: the signer identifier names no certificate or several.
    #[error(
        "manifest.p7s: {matches} of the {certificates} certificates in the message match the signer ({identifier}), \
         expected exactly one; sign again with -signer and without -nocerts"
    )]
    Signer {
        /// Certificates that match.
        matches: usize,
        /// Certificates in the message.
        certificates: usize,
        /// Issuer and serial number, or subject key identifier.
        identifier: String,
    },
    /// Point 4: the signed attributes are not of the profile.
    #[error(
        "manifest.p7s: signed attributes: {part}: found {found}, expected {expected}; sign again without -noattr"
    )]
    Attributes {
        /// Which attribute.
        part: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Point 4: another manifest was signed.
    #[error(
        "the signature is for another manifest: manifest.json has digest {found}, signed is {expected}; \
         the image was changed after it was signed: get it again"
    )]
    Digest {
        /// Digest of the manifest, hex.
        found: String,
        /// The signed message-digest attribute, hex.
        expected: String,
    },
    /// Point 5: an algorithm or key outside the table.
    #[error("manifest.p7s: {part}: found {found}, expected {expected}")]
    Algorithm {
        /// Digest, signature or key.
        part: &'static str,
        /// What is used.
        found: String,
        /// What may be used.
        expected: &'static str,
    },
    /// Point 5: the algorithms are right, the signature value is not.
    #[error(
        "manifest.p7s: the signature does not match the signer's key; the image was changed: get it again"
    )]
    Mismatch,
    /// Point 6: the signer's certificate may not sign firmware.
    #[error("the signer {subject:?} may not sign firmware: {part}: found {found}, expected {expected}")]
    Leaf {
        /// The signer.
        subject: String,
        /// Extension.
        part: &'static str,
        /// What it says.
        found: String,
        /// What it must say.
        expected: &'static str,
    },
    /// Point 7: a certificate of the chain may not be there.
    #[error(
        "certificate {subject:?} may not be in the chain of a firmware signer: {part}: found {found}, expected {expected}"
    )]
    Issuer {
        /// The certificate.
        subject: String,
        /// Extension.
        part: &'static str,
        /// What it says.
        found: String,
        /// What it must say.
        expected: &'static str,
    },
    /// Point 8: a certificate of the chain is revoked.
    #[error(
        "the certificate of the signer {subject:?} or one of its issuers is revoked; do not install this firmware, \
         ask its vendor for one with a new signature"
    )]
    Revoked {
        /// The signer.
        subject: String,
    },
    /// Point 8: revocation is checked here, but its state cannot be known.
    #[error("revocation of the signer {subject:?} cannot be checked: {found}; {advice}")]
    Revocation {
        /// The signer.
        subject: String,
        /// What is missing or wrong.
        found: String,
        /// What to install or set.
        advice: &'static str,
        /// What the path validation says.
        #[source]
        source: Option<webpki::Error>,
    },
    /// Point 9: no root of the keyring is in its validity period.
    #[error(
        "no root of the keyring is valid at {now}: {roots}; set the clock, or install firmware with a newer root"
    )]
    Root {
        /// The time of the check.
        now: String,
        /// The roots and their periods.
        roots: String,
    },
    /// Point 10: a certificate of the chain is out of date.
    #[error(
        "certificate {subject:?} is valid from {not_before} until {not_after}, and now it is {now}; \
         set the clock, or get firmware with a newer signature"
    )]
    Validity {
        /// The certificate.
        subject: String,
        /// Start of its period.
        not_before: String,
        /// End of its period.
        not_after: String,
        /// The time of the check.
        now: String,
    },
    /// The chain ends in no root of the keyring.
    #[error(
        "the signer {subject:?}, issued by {issuer:?}, has no chain to a trusted root ({roots}); \
         is this firmware for this product, and are the intermediates in the message?"
    )]
    NoTrustedRoot {
        /// The signer.
        subject: String,
        /// Its issuer.
        issuer: String,
        /// The roots.
        roots: String,
    },
    /// The chain fails in another way.
    #[error("the certificate chain of the signer {subject:?} is not valid")]
    Path {
        /// The signer.
        subject: String,
        /// What the path validation says.
        #[source]
        source: webpki::Error,
    },
    /// Point 12: rightly signed, but no manifest.
    #[error("the signature is good, but what was signed is no manifest")]
    Manifest(#[from] ManifestError),
}

impl SignatureError {
    /// The kind in the contract: not of the profile, not trusted, or signed rubbish.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLong(_)
            | Self::NotCms { .. }
            | Self::NotCanonical { .. }
            | Self::Structure { .. }
            | Self::Signer { .. }
            | Self::Attributes { .. }
            | Self::Digest { .. }
            | Self::Algorithm { .. }
            | Self::Mismatch
            | Self::Leaf { .. } => ErrorKind::SignatureInvalid,
            Self::Issuer { .. }
            | Self::Revoked { .. }
            | Self::Revocation { .. }
            | Self::Root { .. }
            | Self::Validity { .. }
            | Self::NoTrustedRoot { .. }
            | Self::Path { .. } => ErrorKind::Untrusted,
            Self::Manifest(_) => ErrorKind::MediaCorrupt,
        }
    }
}

/// Why a keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// No root at all.
    #[error("the keyring has no root certificate; no firmware can be trusted; install at least one")]
    Empty,
    /// More or larger files than any keyring has.
    #[error("keyring: {what}: found {found}, the limit is {limit}")]
    TooMuch {
        /// File, or kind of file.
        what: String,
        /// Bytes, or files.
        found: usize,
        /// Of the same.
        limit: usize,
    },
    /// Neither DER nor one PEM section of the right kind.
    #[error("keyring file {file}: found {found}, expected one {expected} in PEM or DER")]
    Unreadable {
        /// Name of the file.
        file: String,
        /// What it holds.
        found: String,
        /// Certificate or CRL.
        expected: &'static str,
    },
    /// The content is not DER of that type.
    #[error("keyring file {file} is no {expected} in DER")]
    NotDer {
        /// Name of the file.
        file: String,
        /// Certificate or CRL.
        expected: &'static str,
        /// What the decoder says.
        #[source]
        source: der::Error,
    },
    /// Decodes, but the path validation cannot use it.
    #[error("keyring file {file}: this {expected} is not supported")]
    Unsupported {
        /// Name of the file.
        file: String,
        /// Certificate or CRL.
        expected: &'static str,
        /// What the path validation says.
        #[source]
        source: webpki::Error,
    },
    /// The same root twice.
    #[error("keyring files {first} and {second} hold the same root; remove one")]
    Duplicate {
        /// Name of one file.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// A certificate that is no root.
    #[error("keyring file {file}, {subject:?}: {part}: found {found}, expected {expected}")]
    Root {
        /// Name of the file.
        file: String,
        /// The certificate.
        subject: String,
        /// What is wrong with it.
        part: &'static str,
        /// What it says.
        found: String,
        /// What it must say.
        expected: &'static str,
    },
    /// Two current CRLs of one issuer: the path validation would consult only one of them.
    #[error(
        "keyring files {first} and {second} are both current CRLs of {issuer:?}; remove the older, {second}"
    )]
    TwoCrls {
        /// The newer.
        first: String,
        /// The older.
        second: String,
        /// Their issuer.
        issuer: String,
    },
}
