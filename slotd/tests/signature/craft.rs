//! Messages that `openssl cms -sign` does not make: decoded, changed, encoded, and signed again where it counts.

use cms::content_info::{CmsVersion, ContentInfo};
use cms::revocation::RevocationInfoChoices;
use cms::signed_data::{DigestAlgorithmIdentifiers, EncapsulatedContentInfo, SignerInfo, SignerInfos};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{ID_CONTENT_TYPE, ID_MESSAGE_DIGEST, ID_SIGNED_DATA};
use der::asn1::{Any, BitString, OctetString, SetOfVec};
use der::{Decode, Encode, Sequence};
use x509_cert::attr::Attribute;
use x509_cert::{Certificate, TbsCertificate};

use crate::pki::pki;

/// `SignedData` with the certificates in the order in which they are.
#[derive(Sequence)]
pub(crate) struct SignedData {
    pub(crate) version: CmsVersion,
    pub(crate) digest_algorithms: DigestAlgorithmIdentifiers,
    pub(crate) encap_content_info: EncapsulatedContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    pub(crate) certificates: Option<Vec<Certificate>>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    pub(crate) crls: Option<RevocationInfoChoices>,
    pub(crate) signer_infos: SignerInfos,
}

/// A message after `change`.
pub(crate) fn edit(p7s: &[u8], change: impl FnOnce(&mut SignedData)) -> Vec<u8> {
    let info = ContentInfo::from_der(p7s).unwrap();
    let mut data: SignedData = info.content.decode_as().unwrap();
    change(&mut data);
    let content = Any::encode_from(&data).unwrap();
    ContentInfo { content_type: ID_SIGNED_DATA, content }.to_der().unwrap()
}

/// The same content under another content type.
pub(crate) fn as_type(p7s: &[u8], oid: ObjectIdentifier) -> Vec<u8> {
    let info = ContentInfo::from_der(p7s).unwrap();
    ContentInfo { content_type: oid, ..info }.to_der().unwrap()
}

/// A certificate after `change`, signed again by the P-256 key `issuer`; DER.
pub(crate) fn reissue(name: &str, issuer: &str, change: impl FnOnce(&mut TbsCertificate)) -> Vec<u8> {
    let mut certificate = Certificate::from_der(&pki().der(name)).unwrap();
    change(&mut certificate.tbs_certificate);
    let signature = pki().sign_raw(&certificate.tbs_certificate.to_der().unwrap(), issuer);
    certificate.signature = BitString::from_bytes(&signature).unwrap();
    certificate.to_der().unwrap()
}

/// A message whose signer has this certificate (of the same issuer and serial number) instead of its own.
pub(crate) fn with_leaf(p7s: &[u8], leaf: &[u8]) -> Vec<u8> {
    edit(p7s, |data| {
        let leaf = Certificate::from_der(leaf).unwrap();
        let all = data.certificates.as_mut().unwrap();
        all.retain(|old| old.tbs_certificate.serial_number != leaf.tbs_certificate.serial_number);
        all.push(leaf);
        all.sort_by_cached_key(|certificate| certificate.to_der().unwrap());
    })
}

/// A message whose one signer is changed.
pub(crate) fn edit_signer(p7s: &[u8], change: impl FnOnce(&mut SignerInfo)) -> Vec<u8> {
    edit(p7s, |data| {
        let mut signer = data.signer_infos.0.get(0).unwrap().clone();
        change(&mut signer);
        data.signer_infos = SignerInfos(SetOfVec::try_from(vec![signer]).unwrap());
    })
}

/// A message whose signed attributes are changed and signed again by the key `signer`.
pub(crate) fn resign(p7s: &[u8], change: impl FnOnce(&mut Vec<Attribute>)) -> Vec<u8> {
    edit_signer(p7s, |signer| {
        let mut attributes = signer.signed_attrs.take().unwrap().into_vec();
        change(&mut attributes);
        let set = SetOfVec::try_from(attributes).unwrap();
        signer.signature = OctetString::new(pki().sign_raw(&set.to_der().unwrap(), "signer")).unwrap();
        signer.signed_attrs = Some(set);
    })
}

/// An attribute with these values.
pub(crate) fn attribute(oid: ObjectIdentifier, values: Vec<Any>) -> Attribute {
    Attribute { oid, values: SetOfVec::try_from(values).unwrap() }
}

/// The message-digest attribute.
pub(crate) fn message_digest(digest: &[u8]) -> Attribute {
    attribute(ID_MESSAGE_DIGEST, vec![Any::encode_from(&OctetString::new(digest).unwrap()).unwrap()])
}

/// The content-type attribute.
pub(crate) fn content_type(oid: ObjectIdentifier) -> Attribute {
    attribute(ID_CONTENT_TYPE, vec![Any::encode_from(&oid).unwrap()])
}

/// An octet string of `len` zeros, as an attribute value.
pub(crate) fn zeros(len: usize) -> Any {
    Any::encode_from(&OctetString::new(vec![0; len]).unwrap()).unwrap()
}

/// The stripped message of the attack against signed attributes, and the content that it then verifies.
pub(crate) fn strip(p7s: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut content = Vec::new();
    let stripped = edit_signer(p7s, |signer| content = signer.signed_attrs.take().unwrap().to_der().unwrap());
    (content, stripped)
}

/// Adds certificates to the bag, which nothing signs.
pub(crate) fn with_certificates(p7s: &[u8], names: &[&str]) -> Vec<u8> {
    edit(p7s, |data| {
        let all = data.certificates.as_mut().unwrap();
        all.extend(names.iter().map(|name| Certificate::from_der(&pki().der(name)).unwrap()));
        all.sort_by_cached_key(|certificate| certificate.to_der().unwrap());
    })
}

/// The outer header of `der`, which has a two-byte length, replaced.
fn with_header(der: &[u8], header: &[u8], tail: &[u8]) -> Vec<u8> {
    assert_eq!(&der[..2], &[0x30, 0x82]);
    [header, &der[4..], tail].concat()
}

/// The same value with an indefinite length (BER).
pub(crate) fn indefinite(der: &[u8]) -> Vec<u8> {
    with_header(der, &[0x30, 0x80], &[0, 0])
}

/// The same value with a length in one byte more than it needs.
pub(crate) fn long_length(der: &[u8]) -> Vec<u8> {
    with_header(der, &[0x30, 0x83, 0, der[2], der[3]], &[])
}

/// The same message with the certificates of the bag in the wrong order.
pub(crate) fn unsorted(p7s: &[u8]) -> Vec<u8> {
    edit(p7s, |data| data.certificates.as_mut().unwrap().reverse())
}
