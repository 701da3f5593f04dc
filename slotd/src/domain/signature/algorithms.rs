//! The one table of algorithms (point 5), and the only place that names the provider (`ring`).
//!
//! A target without a C cross compiler exchanges the verifiers of this module for those of a pure-Rust provider.

use const_oid::db::rfc5912::{ID_SHA_256, ID_SHA_384, ID_SHA_512};
use der::asn1::{Any, Uint};
use der::{Decode, Encode, Sequence};
use rustls_pki_types::{AlgorithmIdentifier, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use webpki::{EndEntityCert, ring};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::SignatureError;

/// What [`Digest::from_identifier`] and [`verify`] take, in words.
const EXPECTED_DIGEST: &str = "SHA-256, SHA-384 or SHA-512, with parameters absent or NULL";
const EXPECTED_SIGNATURE: &str = "ECDSA (P-256, P-384) with the message digest SHA-256 or SHA-384, RSA PKCS#1 v1.5, \
     or RSA-PSS whose hash, MGF1 hash and salt length are those of the message digest";

/// What [`check_key`] takes, in words.
pub(super) const EXPECTED_KEY: &str = "ECDSA P-256 or P-384, or RSA of 2048 (better 3072) to 8192 bits";

/// Message digest of a signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

impl Digest {
    /// The digest that `identifier` names. RFC 5754, 2: parameters absent, or NULL for old writers.
    pub(super) fn from_identifier(identifier: &AlgorithmIdentifierOwned) -> Result<Self, SignatureError> {
        let plain = identifier.parameters.as_ref().is_none_or(|p| *p == Any::null());
        match identifier.oid {
            ID_SHA_256 if plain => Ok(Self::Sha256),
            ID_SHA_384 if plain => Ok(Self::Sha384),
            ID_SHA_512 if plain => Ok(Self::Sha512),
            _ => Err(SignatureError::Algorithm {
                part: "message digest",
                found: describe(identifier),
                expected: EXPECTED_DIGEST,
            }),
        }
    }

    /// The hash of `data`.
    pub(super) fn hash(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha384 => Sha384::digest(data).to_vec(),
            Self::Sha512 => Sha512::digest(data).to_vec(),
        }
    }
}

/// Message digest, content of the signature's `AlgorithmIdentifier` with all parameters, verifier.
type Row = (Digest, AlgorithmIdentifier, &'static dyn SignatureVerificationAlgorithm);

/// For PKCS#1 v1.5 `OpenSSL` writes `rsaEncryption` where others write `sha256WithRSAEncryption`: both mean the
/// same (RFC 3370, 3.2). PSS is matched by its whole parameters, so that salt and hashes are pinned.
static TABLE: [Row; 13] = [
    (Digest::Sha256, alg_id::ECDSA_SHA256, ring::ECDSA_P256_SHA256),
    (Digest::Sha256, alg_id::ECDSA_SHA256, ring::ECDSA_P384_SHA256),
    (Digest::Sha384, alg_id::ECDSA_SHA384, ring::ECDSA_P256_SHA384),
    (Digest::Sha384, alg_id::ECDSA_SHA384, ring::ECDSA_P384_SHA384),
    (Digest::Sha256, alg_id::RSA_ENCRYPTION, ring::RSA_PKCS1_2048_8192_SHA256),
    (Digest::Sha384, alg_id::RSA_ENCRYPTION, ring::RSA_PKCS1_2048_8192_SHA384),
    (Digest::Sha512, alg_id::RSA_ENCRYPTION, ring::RSA_PKCS1_2048_8192_SHA512),
    (Digest::Sha256, alg_id::RSA_PKCS1_SHA256, ring::RSA_PKCS1_2048_8192_SHA256),
    (Digest::Sha384, alg_id::RSA_PKCS1_SHA384, ring::RSA_PKCS1_2048_8192_SHA384),
    (Digest::Sha512, alg_id::RSA_PKCS1_SHA512, ring::RSA_PKCS1_2048_8192_SHA512),
    (Digest::Sha256, alg_id::RSA_PSS_SHA256, ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
    (Digest::Sha384, alg_id::RSA_PSS_SHA384, ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY),
    (Digest::Sha512, alg_id::RSA_PSS_SHA512, ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY),
];

/// What certificates and CRLs may be signed with.
pub(super) static CHAIN: &[&dyn SignatureVerificationAlgorithm] = &[
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P256_SHA384,
    ring::ECDSA_P384_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::RSA_PKCS1_2048_8192_SHA256,
    ring::RSA_PKCS1_2048_8192_SHA384,
    ring::RSA_PKCS1_2048_8192_SHA512,
    ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Verifies `signature` over `signed` with the key of `leaf`, by the row of the table that digest, signature
/// algorithm and key select.
pub(super) fn verify(
    leaf: &EndEntityCert<'_>,
    digest: Digest,
    identifier: &AlgorithmIdentifierOwned,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let unknown = || SignatureError::Algorithm {
        part: "signature",
        found: format!("{} with {digest:?}", describe(identifier)),
        expected: EXPECTED_SIGNATURE,
    };
    let wanted = content(identifier).ok_or_else(unknown)?;
    for (_, _, verifier) in TABLE.iter().filter(|(d, a, _)| *d == digest && a.as_ref() == wanted) {
        match leaf.verify_signature(*verifier, signed, signature) {
            Ok(()) => return Ok(()),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => return Err(SignatureError::Mismatch),
        }
    }
    Err(unknown())
}

/// Verifies the signature of a self-signed certificate with its own key.
pub(super) fn verify_self_signed(
    root: &EndEntityCert<'_>,
    identifier: &AlgorithmIdentifierOwned,
    signed: &[u8],
    signature: &[u8],
) -> bool {
    let Some(wanted) = content(identifier) else { return false };
    CHAIN
        .iter()
        .filter(|verifier| verifier.signature_alg_id().as_ref() == wanted)
        .any(|verifier| root.verify_signature(*verifier, signed, signature).is_ok())
}

/// An RSA public key (RFC 8017, A.1.1).
#[derive(Sequence)]
struct RsaPublicKey {
    modulus: Uint,
    exponent: Uint,
}

/// Checks the type and size of a key. `Ok(Some(bits))` is an RSA key below the recommended 3072 bits; the error
/// says what was found. ring rounds the size up to whole bytes, OpenSSL does not: so we count bits.
pub(super) fn check_key(key: &SubjectPublicKeyInfoOwned) -> Result<Option<u32>, String> {
    let algorithm = content(&key.algorithm).unwrap_or_default();
    if [alg_id::ECDSA_P256, alg_id::ECDSA_P384].iter().any(|a| a.as_ref() == algorithm) {
        return Ok(None);
    }
    let rsa = (alg_id::RSA_ENCRYPTION.as_ref() == algorithm)
        .then(|| RsaPublicKey::from_der(key.subject_public_key.raw_bytes()).ok())
        .flatten()
        .ok_or_else(|| format!("a key of type {}", describe(&key.algorithm)))?;
    let modulus = rsa.modulus.as_bytes();
    let leading = modulus.first().map_or(0, |byte| byte.leading_zeros());
    let bits = u32::try_from(modulus.len()).unwrap_or(u32::MAX).saturating_mul(8).saturating_sub(leading);
    match bits {
        3072..=8192 => Ok(None),
        2048..3072 => Ok(Some(bits)),
        _ => Err(format!("an RSA key of {bits} bits")),
    }
}

/// The content of the `AlgorithmIdentifier` without its outer header, as the constants of `alg_id` hold it.
fn content(identifier: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let mut out = identifier.oid.to_der().ok()?;
    if let Some(parameters) = &identifier.parameters {
        parameters.encode_to_vec(&mut out).ok()?;
    }
    Some(out)
}

/// Name or number of an algorithm, and whether it has parameters other than NULL.
fn describe(identifier: &AlgorithmIdentifierOwned) -> String {
    let name =
        const_oid::db::DB.by_oid(&identifier.oid).map_or_else(|| identifier.oid.to_string(), str::to_owned);
    match &identifier.parameters {
        Some(parameters) if *parameters != Any::null() => {
            let shown: String = hex::encode(parameters.value()).chars().take(160).collect();
            format!("{name} with parameters {shown}")
        }
        _ => name,
    }
}
