//! The CMS message: strict DER, pinned structure, signer and signed attributes (points 1 to 5; RFC 5652).

use cms::cert::CertificateChoices;
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{SignedAttributes, SignedData, SignerIdentifier, SignerInfo};
use const_oid::db::rfc5911::{
    ID_CONTENT_TYPE, ID_COUNTERSIGNATURE, ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA, ID_SIGNING_TIME,
};
use const_oid::{AssociatedOid as _, ObjectIdentifier};
use der::asn1::{Any, OctetString};
use der::{Decode, Encode};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

use super::algorithms::Digest;
use super::{MAX_SIGNATURE, SignatureError, name};

/// Most certificates in a message: a signer and its intermediates.
const MAX_CERTIFICATES: usize = 8;

/// A message that holds points 1 to 4, whose signature is still to be verified.
pub(super) struct Message {
    /// The signer's certificate.
    pub(super) leaf: Certificate,
    /// All certificates of the message, DER.
    pub(super) certificates: Vec<Vec<u8>>,
    /// What the signature covers: the signed attributes as SET OF, exactly as received.
    pub(super) signed: Vec<u8>,
    /// Message digest.
    pub(super) digest: Digest,
    /// Signature algorithm.
    pub(super) algorithm: AlgorithmIdentifierOwned,
    /// Signature value.
    pub(super) signature: Vec<u8>,
    /// The signer's claim, Unix seconds.
    pub(super) signing_time: Option<u64>,
}

/// The message in `p7s`, if it is of the profile and its signed attributes are those of `manifest`.
pub(super) fn parse(p7s: &[u8], manifest: &[u8]) -> Result<Message, SignatureError> {
    if p7s.len() as u64 > MAX_SIGNATURE {
        return Err(SignatureError::TooLong(p7s.len() as u64));
    }
    let data = decode(p7s)?;
    let (signer, certificates) = check_structure(&data)?;
    let leaf = find_signer(&signer.sid, &certificates)?;
    let digest = Digest::from_identifier(&signer.digest_alg)?;
    let attributes = signer.signed_attrs.as_ref().ok_or_else(|| SignatureError::Attributes {
        part: "all".into(),
        found: "none".into(),
        expected: "content-type and message-digest",
    })?;
    let signing_time = check_attributes(attributes, &digest.hash(manifest))?;
    let not_cms = |source| SignatureError::NotCms { source };
    Ok(Message {
        leaf: leaf.clone(),
        certificates: certificates.iter().map(|c| c.to_der()).collect::<Result<_, _>>().map_err(not_cms)?,
        // RFC 5652, 5.4: signed with the tag SET OF instead of the implicit [0].
        signed: attributes.to_der().map_err(not_cms)?,
        digest,
        algorithm: signer.signature_algorithm.clone(),
        signature: signer.signature.as_bytes().to_vec(),
        signing_time,
    })
}

/// Point 1. `der` accepts sets in any order and some other liberties; whatever it read must encode to the very
/// bytes that came.
fn decode(p7s: &[u8]) -> Result<SignedData, SignatureError> {
    let not_cms = |source| SignatureError::NotCms { source };
    let info = ContentInfo::from_der(p7s).map_err(not_cms)?;
    if info.content_type != ID_SIGNED_DATA {
        return refuse("content type", info.content_type.to_string(), "id-signedData");
    }
    let data: SignedData = info.content.decode_as().map_err(not_cms)?;
    let again = Any::encode_from(&data)
        .and_then(|content| ContentInfo { content_type: info.content_type, content }.to_der())
        .map_err(not_cms)?;
    if again != p7s {
        let offset = again.iter().zip(p7s).take_while(|(a, b)| a == b).count();
        return Err(SignatureError::NotCanonical { offset });
    }
    Ok(data)
}

fn refuse<T>(part: &'static str, found: String, expected: &'static str) -> Result<T, SignatureError> {
    Err(SignatureError::Structure { part, found, expected })
}

/// Point 2: the one signer and the certificates.
fn check_structure(data: &SignedData) -> Result<(&SignerInfo, Vec<&Certificate>), SignatureError> {
    let signer = match data.signer_infos.0.as_slice() {
        [signer] => signer,
        signers => return refuse("signers", signers.len().to_string(), "1"),
    };
    let by_issuer = matches!(signer.sid, SignerIdentifier::IssuerAndSerialNumber(_));
    let expected = if by_issuer { CmsVersion::V1 } else { CmsVersion::V3 };
    if signer.version != expected {
        let expected = "v1 for issuer and serial number, v3 for a subject key identifier";
        return refuse("version of the signer", format!("{:?}", signer.version), expected);
    }
    if data.version != expected {
        let expected = "that of the signer, as RFC 5652 5.1 derives it";
        return refuse("version", format!("{:?}", data.version), expected);
    }
    let content = &data.encap_content_info;
    if content.econtent_type != ID_DATA {
        return refuse("type of the content", content.econtent_type.to_string(), "id-data");
    }
    if content.econtent.is_some() {
        return refuse("content", "content in the message".into(), "a detached signature");
    }
    if data.crls.is_some() {
        return refuse("CRLs", "a field in the message".into(), "none; they come from the keyring");
    }
    if signer.unsigned_attrs.is_some() {
        return refuse("unsigned attributes", "present".into(), "none");
    }
    // One signer, so one digest: any other entry is a malleable byte that nothing signs.
    if data.digest_algorithms.as_slice() != [signer.digest_alg.clone()] {
        let found = format!("{} entries", data.digest_algorithms.len());
        return refuse("digest algorithms", found, "exactly that of the signer");
    }
    let choices = data.certificates.as_ref().map_or(&[][..], |set| set.0.as_slice());
    if !(1..=MAX_CERTIFICATES).contains(&choices.len()) {
        return refuse("certificates", choices.len().to_string(), "1 to 8");
    }
    let certificates = choices
        .iter()
        .map(|choice| match choice {
            CertificateChoices::Certificate(certificate) => Ok(certificate),
            CertificateChoices::Other(_) => refuse("certificates", "another format".into(), "X.509"),
        })
        .collect::<Result<_, _>>()?;
    Ok((signer, certificates))
}

/// Point 3.
fn find_signer<'a>(
    sid: &SignerIdentifier,
    certificates: &[&'a Certificate],
) -> Result<&'a Certificate, SignatureError> {
    let matching: Vec<_> = certificates
        .iter()
        .filter(|certificate| {
            let tbs = &certificate.tbs_certificate;
            match sid {
                SignerIdentifier::IssuerAndSerialNumber(id) => {
                    id.issuer == tbs.issuer && id.serial_number == tbs.serial_number
                }
                SignerIdentifier::SubjectKeyIdentifier(id) => {
                    tbs.get::<SubjectKeyIdentifier>().is_ok_and(|found| found.is_some_and(|(_, k)| k == *id))
                }
            }
        })
        .collect();
    if let [one] = matching.as_slice() {
        return Ok(one);
    }
    let identifier = match sid {
        SignerIdentifier::IssuerAndSerialNumber(id) => {
            format!("issuer {:?}, serial number {}", name(&id.issuer), id.serial_number)
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => {
            format!("{} {}", SubjectKeyIdentifier::OID, hex::encode(id.0.as_bytes()))
        }
    };
    Err(SignatureError::Signer { matches: matching.len(), certificates: certificates.len(), identifier })
}

/// Point 4. The signing time, if the signer tells one.
fn check_attributes(attributes: &SignedAttributes, digest: &[u8]) -> Result<Option<u64>, SignatureError> {
    let refuse = |part: &dyn ToString, found: String, expected: &'static str| {
        Err(SignatureError::Attributes { part: part.to_string(), found, expected })
    };
    let mut seen: Vec<ObjectIdentifier> = Vec::new();
    for attribute in attributes.iter() {
        if seen.contains(&attribute.oid) {
            return refuse(&attribute.oid, "two attributes of this type".into(), "one");
        }
        if attribute.values.len() != 1 {
            return refuse(&attribute.oid, format!("{} values", attribute.values.len()), "one");
        }
        // RFC 5652, 11.4: a countersignature must not be signed.
        if attribute.oid == ID_COUNTERSIGNATURE {
            return refuse(&"countersignature", "present".into(), "none");
        }
        seen.push(attribute.oid);
    }
    let value = |oid| attributes.iter().find(|a| a.oid == oid).and_then(|a| a.values.get(0));
    match value(ID_CONTENT_TYPE).map(Any::decode_as::<ObjectIdentifier>) {
        Some(Ok(ID_DATA)) => {}
        Some(Ok(other)) => return refuse(&"content-type", other.to_string(), "id-data"),
        Some(Err(_)) => return refuse(&"content-type", "no object identifier".into(), "id-data"),
        None => return refuse(&"content-type", "none".into(), "id-data"),
    }
    match value(ID_MESSAGE_DIGEST).map(Any::decode_as::<OctetString>) {
        Some(Ok(signed)) if signed.as_bytes() == digest => {}
        Some(Ok(signed)) => {
            return Err(SignatureError::Digest {
                found: hex::encode(digest),
                expected: hex::encode(signed.as_bytes()).chars().take(128).collect(),
            });
        }
        Some(Err(_)) => return refuse(&"message-digest", "no octet string".into(), "the manifest's digest"),
        None => return refuse(&"message-digest", "none".into(), "the manifest's digest"),
    }
    match value(ID_SIGNING_TIME).map(|time| time.to_der().and_then(|der| Time::from_der(&der))) {
        Some(Ok(time)) => Ok(Some(time.to_unix_duration().as_secs())),
        Some(Err(_)) => refuse(&"signing-time", "no time".into(), "UTCTime or GeneralizedTime"),
        None => Ok(None),
    }
}
