//! What is taken out of the verifier, one thing at a time.

use super::Mutation;

const ALGORITHMS: &str = "slotd/src/domain/signature/algorithms.rs";
const CMS: &str = "slotd/src/domain/signature/cms.rs";
const KEYRING: &str = "slotd/src/domain/signature/keyring.rs";
const MODULE: &str = "slotd/src/domain/signature/mod.rs";
const PATH: &str = "slotd/src/domain/signature/path.rs";

const fn out(
    check: u8,
    file: &'static str,
    what: &'static str,
    find: &'static str,
    replace: &'static str,
) -> Mutation {
    Mutation { check, file, what, find, replace }
}

/// Every mutation, by the number of the check in `docs/signature.md`.
pub(super) static MUTATIONS: &[Mutation] = &[
    // 1: strict DER.
    out(1, CMS, "the encoding need not be the canonical one", "if again != p7s {", "if again.is_empty() {"),
    out(1, CMS, "sets of any length are sorted", "if elements > MAX_ELEMENTS {", "if elements == 0 {"),
    // 2: the structure.
    out(
        2,
        CMS,
        "a message of any length",
        "if p7s.len() as u64 > MAX_SIGNATURE {",
        "if p7s.len() as u64 / 99 > MAX_SIGNATURE {",
    ),
    out(2, CMS, "any content type", "if info.content_type != ID_SIGNED_DATA {", "if false {"),
    out(2, CMS, "the first of several signers", "[signer] => signer,", "[signer, ..] => signer,"),
    out(2, CMS, "any version of the signer", "if signer.version != expected {", "if false {"),
    out(2, CMS, "any version", "if data.version != expected {", "if false {"),
    out(2, CMS, "any type of content", "if content.econtent_type != ID_DATA {", "if false {"),
    out(2, CMS, "content in the message", "if content.econtent.is_some() {", "if false {"),
    out(2, CMS, "CRLs in the message", "if data.crls.is_some() {", "if false {"),
    out(2, CMS, "unsigned attributes", "if signer.unsigned_attrs.is_some() {", "if false {"),
    out(
        2,
        CMS,
        "any digest algorithms",
        "if data.digest_algorithms.as_slice() != [signer.digest_alg.clone()] {",
        "if false {",
    ),
    out(
        2,
        CMS,
        "any number of certificates",
        "if !(1..=MAX_CERTIFICATES).contains(&certificates.len()) {",
        "if certificates.is_empty() {",
    ),
    out(
        2,
        CMS,
        "no certificate at all",
        "if !(1..=MAX_CERTIFICATES).contains(&certificates.len()) {",
        "if certificates.len() > MAX_CERTIFICATES {",
    ),
    // 3: the signer identifier.
    out(
        3,
        CMS,
        "the first of several certificates",
        "if let [one] = matching.as_slice() {",
        "if let [one, ..] = matching.as_slice() {",
    ),
    out(3, CMS, "any serial number", " && id.serial_number == tbs.serial_number", ""),
    // 4: the signed attributes.
    out(4, CMS, "an attribute twice", "if seen.contains(&attribute.oid) {", "if false {"),
    out(4, CMS, "an attribute of several values", "if attribute.values.len() != 1 {", "if false {"),
    out(4, CMS, "a countersignature", "if attribute.oid == ID_COUNTERSIGNATURE {", "if false {"),
    out(4, CMS, "any content-type", "Some(Ok(ID_DATA)) => {}", "Some(Ok(_)) => {}"),
    out(
        4,
        CMS,
        "no content-type",
        r#"None => return refuse(&"content-type", "none".into(), "id-data"),"#,
        "None => {}",
    ),
    out(
        4,
        CMS,
        "any message-digest",
        "Some(Ok(signed)) if signed.as_bytes() == digest => {}",
        "Some(Ok(signed)) if !signed.as_bytes().is_empty() => {}",
    ),
    out(
        4,
        CMS,
        "no message-digest",
        r#"None => return refuse(&"message-digest", "none".into(), "the manifest's digest"),"#,
        "None => {}",
    ),
    out(
        4,
        CMS,
        "any signing-time",
        r#"Some(Err(_)) => refuse(&"signing-time", "no time".into(), "UTCTime or GeneralizedTime"),"#,
        "Some(Err(_)) => Ok(None),",
    ),
    out(
        4,
        CMS,
        "no signed attributes: the manifest itself is signed",
        "let attributes = signer.signed_attrs.as_ref().ok_or_else(",
        "if signer.signed_attrs.is_none() {
            return Ok(Message {
                leaf: leaf.clone(),
                certificates: certificates.iter().filter_map(|c| c.to_der().ok()).collect(),
                signed: manifest.to_vec(),
                digest,
                algorithm: signer.signature_algorithm.clone(),
                signature: signer.signature.as_bytes().to_vec(),
                signing_time: None,
            });
        }
        let attributes = signer.signed_attrs.as_ref().ok_or_else(",
    ),
    // 5: algorithms and signature.
    out(
        5,
        ALGORITHMS,
        "a signature that does not match",
        "Err(_) => return Err(SignatureError::Mismatch),",
        "Err(_) => return Ok(()),",
    ),
    out(
        5,
        ALGORITHMS,
        "digest and signature of two algorithms",
        "*d == digest && a.as_ref() == wanted",
        "a.as_ref() == wanted",
    ),
    out(
        5,
        ALGORITHMS,
        "any parameters",
        "*d == digest && a.as_ref() == wanted",
        "*d == digest && wanted.get(..10) == a.as_ref().get(..10)",
    ),
    out(
        5,
        ALGORITHMS,
        "RSA keys of any length",
        "_ => Err(format!(\"an RSA key of {bits} bits\")),",
        "_ => Ok(Some(bits)),",
    ),
    out(
        5,
        MODULE,
        "any key",
        "algorithms::check_key(key).map_err(|found|",
        "algorithms::check_key(key).or(Ok::<_, String>(None)).map_err(|found|",
    ),
    // 6: the signer.
    out(6, MODULE, "any certificate signs", "path::check_leaf(&message.leaf)?;", ""),
    out(
        6,
        PATH,
        "a CA signs",
        "if tbs.get::<BasicConstraints>().is_ok_and(",
        "if tbs.get::<BasicConstraints>().is_err() && tbs.get::<BasicConstraints>().is_ok_and(",
    ),
    out(6, PATH, "any extendedKeyUsage", "if !purposes.contains(&ID_KP_CODE_SIGNING) {", "if false {"),
    out(6, PATH, "any keyUsage of the signer", "&& !usage.digital_signature()", "&& usage.0.is_empty()"),
    // 7: the issuers.
    out(7, PATH, "any keyUsage of an issuer", "&& !usage.key_cert_sign()", "&& usage.0.is_empty()"),
    out(
        7,
        PATH,
        "an issuer that is no CA",
        "if !tbs.get::<BasicConstraints>().is_ok_and(",
        "if tbs.get::<BasicConstraints>().is_err() && !tbs.get::<BasicConstraints>().is_ok_and(",
    ),
    out(
        7,
        PATH,
        "name constraints that are not understood",
        "if [ID_CE_NAME_CONSTRAINTS, ID_PE_PROXY_CERT_INFO].contains(&extension.extn_id) {",
        "if ID_PE_PROXY_CERT_INFO == extension.extn_id && ID_CE_NAME_CONSTRAINTS == extension.extn_id {",
    ),
    out(
        7,
        PATH,
        "an extension twice",
        "if extensions.iter().take(i).any(",
        "if i > 99 && extensions.iter().take(i).any(",
    ),
    out(
        7,
        PATH,
        "an extension that cannot be read",
        "if readable { Ok(())",
        "if readable || !extensions.is_empty() { Ok(())",
    ),
    out(
        7,
        PATH,
        "a key identifier of another issuer",
        "if names_issuer(certificate, issuer) {",
        "if names_issuer(certificate, issuer) || issuer != certificate {",
    ),
    out(
        7,
        PATH,
        "a path longer than the root allows",
        "if limit.is_some_and(|limit| intermediates > usize::from(limit)) {",
        "if limit.is_some_and(|limit| intermediates > usize::from(limit) + 9) {",
    ),
    // 8: revocation.
    out(8, PATH, "no revocation", "if !configured {", "if !configured || lists.len() < 99 {"),
    out(
        8,
        PATH,
        "only the signer is looked up",
        "RevocationCheckDepth::Chain)",
        "RevocationCheckDepth::EndEntity)",
    ),
    out(8, PATH, "what no CRL knows is good", "UnknownStatusPolicy::Deny)", "UnknownStatusPolicy::Allow)"),
    out(
        8,
        PATH,
        "an expired CRL is good",
        "Judged::Now => ExpirationPolicy::Enforce,",
        "Judged::Now => ExpirationPolicy::Ignore,",
    ),
    out(
        8,
        PATH,
        "a CRL from the future is used",
        "judged == Judged::AtRest || crl.this_update <= now;",
        "judged == Judged::AtRest || crl.this_update > 0;",
    ),
    out(
        8,
        PATH,
        "CRLs of which none is usable are none",
        "if !configured {",
        "if !configured || lists.is_empty() {",
    ),
    out(
        8,
        PATH,
        "at rest no CRL of later counts",
        "judged == Judged::AtRest || crl.this_update <= now;",
        "crl.this_update <= now;",
    ),
    out(
        8,
        PATH,
        "at rest an expired CRL is an error",
        "Judged::AtRest => ExpirationPolicy::Ignore,",
        "Judged::AtRest => ExpirationPolicy::Enforce,",
    ),
    out(
        8,
        PATH,
        "a root that may not sign its CRL",
        "found.is_some_and(|(_, usage)| !usage.crl_sign())",
        "found.is_some_and(|(_, usage)| usage.0.is_empty())",
    ),
    out(
        8,
        PATH,
        "a root that revoked itself",
        "if !matches!(crl.list.find_serial(&root.serial), Ok(None)) {",
        "if crl.list.find_serial(&root.serial).is_err() {",
    ),
    out(
        8,
        KEYRING,
        "the first CRL counts, not the newest",
        "crls.sort_by_key(|crl| std::cmp::Reverse(crl.this_update));",
        "",
    ),
    out(
        8,
        KEYRING,
        "two current CRLs of one issuer",
        "newer.issuer == crl.issuer)",
        "newer.issuer == crl.issuer && newer.file == crl.file)",
    ),
    // 9: the roots.
    out(9, KEYRING, "an empty keyring", "if roots.is_empty() {", "if false {"),
    out(
        9,
        KEYRING,
        "a root twice",
        "roots.iter().find(|r| r.certificate == root.certificate)",
        "roots.iter().find(|r| r.file.is_empty() && r.certificate == root.certificate)",
    ),
    out(9, KEYRING, "any certificate is a root", "path::check_issuer(&certificate)?;", ""),
    out(
        9,
        KEYRING,
        "a root that another issued",
        "if tbs.subject != tbs.issuer || !path::names_issuer(&certificate, &certificate) {",
        "if false {",
    ),
    out(
        9,
        KEYRING,
        "a root whose signature is wrong",
        "if !algorithms::verify_self_signed(",
        "if false && !algorithms::verify_self_signed(",
    ),
    out(
        9,
        PATH,
        "a root of any period later",
        "roots.iter().copied().filter(|root| root.is_valid_at(now)).collect();",
        "roots.to_vec();",
    ),
    // 10: the clock.
    out(
        10,
        MODULE,
        "the signer says what time it is",
        "self.crls(), now, judged)?;",
        "self.crls(), message.signing_time.unwrap_or(now), judged)?;",
    ),
    out(
        10,
        PATH,
        "the second of notAfter is in time",
        "if (not_before..not_after).contains(&now) {",
        "if (not_before..=not_after).contains(&now) {",
    ),
    // 11: the identity.
    out(
        11,
        MODULE,
        "an image is known by its signature file",
        "certificate_sha256: Sha256::digest(&leaf_der).into(),",
        "certificate_sha256: Sha256::digest(p7s).into(),",
    ),
    out(
        11,
        MODULE,
        "an image is known by its signer alone",
        "manifest_sha256: Sha256::digest(manifest).into(), signer",
        "manifest_sha256: [0; 32], signer",
    ),
    // 12: nothing is parsed before.
    out(
        12,
        MODULE,
        "the manifest is parsed first",
        "let signer = self.verify_bytes(manifest, p7s, now, judged)?;\n        // Point 12: not a byte of the manifest is parsed before this line.\n        let value = Manifest::parse(manifest)?;",
        "let value = Manifest::parse(manifest)?;\n        let signer = self.verify_bytes(manifest, p7s, now, judged)?;",
    ),
    out(
        12,
        MODULE,
        "a build date is read first",
        "let signed = at(last).or_else(|_| at(first))?;",
        "let signed = Manifest::parse(manifest)?;",
    ),
];
