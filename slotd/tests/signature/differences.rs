//! What we refuse and `openssl cms -verify` accepts, with the reason. The other way round there is nothing.

/// A difference, and the cases that show it.
pub(crate) struct Difference {
    /// What we refuse.
    pub(crate) what: &'static str,
    /// Number of the check in `docs/signature.md`.
    pub(crate) check: u8,
    pub(crate) why: &'static str,
    pub(crate) cases: &'static [&'static str],
}

const fn row(check: u8, what: &'static str, why: &'static str, cases: &'static [&'static str]) -> Difference {
    Difference { what, check, why, cases }
}

/// Every difference, by the number of the check that refuses.
pub(crate) static DIFFERENCES: &[Difference] = &[
    row(
        1,
        "BER, unsorted sets, trailing bytes",
        "one message has one encoding; no byte is there that nobody judged",
        &[
            "indefinite length",
            "length of one byte too many",
            "trailing byte",
            "unsorted certificates",
            "openssl -stream",
        ],
    ),
    row(
        1,
        "more than 64 elements in a set",
        "sets are sorted to be compared: bounds the time",
        &["65 signed attributes"],
    ),
    row(
        2,
        "more than 64 KiB, more than 8 certificates",
        "bounds memory and time",
        &["66 KB", "64 KiB and a byte", "nine certificates"],
    ),
    row(
        2,
        "versions that RFC 5652, 5.1 does not give",
        "a field that says nothing may not vary",
        &["version 3", "signer version 3"],
    ),
    row(
        2,
        "content in the message",
        "what is signed is `manifest.json` alone; two contents could differ",
        &["attached content", "empty content", "another type of content"],
    ),
    row(2, "two signers", "which of them counts would have to be a rule", &["two signers"]),
    row(
        2,
        "CRLs in the message",
        "revocation is told by the keyring, not by who may be revoked",
        &["no CRLs but the field"],
    ),
    row(
        2,
        "unsigned attributes, digest algorithms that nobody uses",
        "nobody signed them",
        &["unsigned attributes", "a second digest algorithm"],
    ),
    row(
        3,
        "a signer identifier that fits two certificates",
        "OpenSSL takes the first; which one signed must not depend on the order",
        &["two of one issuer and serial number", "two of one key"],
    ),
    row(
        4,
        "no signed attributes",
        "without this rule the DER of the attributes is itself a signed content (the stripped message)",
        &["stripped message, attributes as content", "no signed attributes"],
    ),
    row(
        4,
        "an attribute twice, another content-type, a signing-time that is none",
        "RFC 5652, 11 forbids them",
        &["two attributes of an unknown type", "other content type", "time that is none"],
    ),
    row(
        5,
        "SHA-1, SHA-224, P-256 with SHA-512, P-521, RSA of 1024 bits",
        "one table of algorithms, none of them weak or rare",
        &["SHA-1", "SHA-224", "P-256 with SHA-512", "P-521", "RSA 1024"],
    ),
    row(
        5,
        "RSA-PSS with other salt lengths or hashes, ECDSA with parameters, digest of another algorithm",
        "the whole AlgorithmIdentifier is one row of the table",
        &[
            "PSS with the longest salt",
            "PSS without salt",
            "PSS with another MGF1 hash",
            "parameters that ECDSA does not have",
            "digest of another algorithm",
        ],
    ),
    row(
        6,
        "a signer without codeSigning, with another keyUsage, or that is a CA",
        "`-purpose any` asks nothing; a certificate for mail or for a server must not sign firmware",
        &["no EKU", "any EKU", "email EKU", "wrong keyUsage", "CA as leaf"],
    ),
    row(
        7,
        "an intermediate for another purpose",
        "its EKU binds what it issues",
        &["intermediate for email"],
    ),
    row(
        7,
        "an extension twice",
        "RFC 5280, 4.2 forbids it; two parsers could take either",
        &["unknown extension twice"],
    ),
    row(
        7,
        "name constraints, kept or not",
        "webpki and OpenSSL do not judge all forms of names alike, so none may be there",
        &["name constraint that is kept"],
    ),
];
