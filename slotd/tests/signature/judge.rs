//! One case through this verifier and through `openssl cms -verify -binary -purpose any`, and what both must say.

use sps_base::error::ErrorKind;

use crate::differences::DIFFERENCES;
use crate::pki::pki;
use crate::{keyring, manifest};

/// A message, the keyring and time it meets, and what both verifiers must say.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) content: Vec<u8>,
    p7s: Vec<u8>,
    roots: Vec<&'static str>,
    crls: Vec<&'static str>,
    now: u64,
    /// Variant of the error and a part of its message; none for a case that is accepted.
    refusal: Option<(&'static str, &'static str)>,
    /// None where OpenSSL takes the first of several, and random keys order them.
    openssl_accepts: Option<bool>,
}

impl Case {
    /// Both accept `p7s`.
    pub(crate) fn new(name: &'static str, p7s: Vec<u8>) -> Self {
        let (content, now) = (manifest().to_vec(), pki().now);
        let (roots, crls) = (vec!["root.pem"], vec![]);
        Self { name, content, p7s, roots, crls, now, refusal: None, openssl_accepts: Some(true) }
    }

    /// We refuse, OpenSSL accepts.
    pub(crate) fn stricter(self, variant: &'static str, words: &'static str) -> Self {
        Self { refusal: Some((variant, words)), ..self }
    }

    /// Both refuse.
    pub(crate) fn refused(self, variant: &'static str, words: &'static str) -> Self {
        Self { refusal: Some((variant, words)), openssl_accepts: Some(false), ..self }
    }

    /// We refuse, OpenSSL does either.
    pub(crate) fn ambiguous(self, variant: &'static str, words: &'static str) -> Self {
        Self { refusal: Some((variant, words)), openssl_accepts: None, ..self }
    }

    pub(crate) fn roots(self, roots: &[&'static str]) -> Self {
        Self { roots: roots.to_vec(), ..self }
    }

    pub(crate) fn crls(self, crls: &[&'static str]) -> Self {
        Self { crls: crls.to_vec(), ..self }
    }

    pub(crate) fn at(self, now: u64) -> Self {
        Self { now, ..self }
    }

    /// Whether OpenSSL may accept what we refuse.
    pub(crate) fn differs(&self) -> bool {
        self.refusal.is_some() && self.openssl_accepts != Some(false)
    }

    /// What is not as it must be. Prints the case's line of the table.
    fn faults(&self) -> Vec<String> {
        let openssl = pki().openssl(&self.content, &self.p7s, &self.roots, &self.crls, self.now);
        let ours = keyring(&self.roots, &self.crls).verify(&self.content, &self.p7s, self.now);
        let (accepts, said) =
            (openssl.status.success(), String::from_utf8_lossy(&openssl.stderr).replace('\n', " | "));
        let shown = ours.as_ref().map_or_else(ToString::to_string, |_| "accepted".into());
        let word = if accepts { "accepts" } else { "refuses" };
        println!("{:<52} openssl {word}; ours: {shown}", self.name);
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(format!("{}: {text}", self.name));
        if self.openssl_accepts.is_some_and(|expected| expected != accepts) {
            fault(format!("openssl {word}: {said}"));
        }
        if ours.is_ok() && !accepts {
            fault(format!("WE ACCEPT AND OPENSSL REJECTS: {said}"));
        }
        if ours.is_err() && accepts && !DIFFERENCES.iter().any(|row| row.cases.contains(&self.name)) {
            fault("we refuse what openssl accepts, and no reason is listed".into());
        }
        match (ours, self.refusal) {
            (Ok(_), None) => {}
            (Err(error), Some((variant, words))) => {
                let (debug, text) = (format!("{error:?}"), error.to_string());
                if !debug.starts_with(variant) || !text.contains(words) {
                    fault(format!("refused for another reason: {debug}: {text}"));
                }
                let trust = ["Issuer", "Revo", "Root", "Validity", "NoTrustedRoot", "Path"];
                let untrusted = trust.iter().any(|start| variant.starts_with(start));
                let kind = if untrusted { ErrorKind::Untrusted } else { ErrorKind::SignatureInvalid };
                if error.kind() != kind {
                    fault(format!("kind {:?}, expected {kind:?}", error.kind()));
                }
            }
            (ours, expected) => fault(format!("{ours:?}, expected {expected:?}")),
        }
        faults
    }
}

/// Checks all, and shows all that fail.
pub(crate) fn check(cases: &[Case]) {
    let faults: Vec<String> = cases.iter().flat_map(Case::faults).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
