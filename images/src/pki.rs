//! The development PKI: root, intermediate, signer, and an empty CRL of each issuer. Made at first use, never committed.
//!
//! The signer's key is RSA because PKCS#1 v1.5 is deterministic: the same manifest gives the same signature, and so the
//! same ISO. OpenSSL's ECDSA is randomised; its deterministic variant needs 3.2, which the host may not have.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::tool::Tool;

/// Certificates and CRLs are valid from here, 20 years: before every plausible build date.
pub(crate) const NOT_BEFORE: &str = "2025-01-01 00:00:00";
pub(crate) const DAYS: &str = "7300";

/// Extensions of the certificates, and what `openssl ca -gencrl` needs.
const CONFIG: &str = "\
[req]
distinguished_name = dn
prompt = no
[dn]
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[signer]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca]
default_ca = crl
[crl]
database = index.txt
crlnumber = crlnumber
default_md = sha256
crl_extensions = crl_extensions
[crl_extensions]
authorityKeyIdentifier = keyid
";

/// A development PKI on disk.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// The PKI in `dir`, made there when there is none. `name` tells PKIs apart in the subjects of their certificates.
    pub fn open_or_create(dir: impl AsRef<Path>, name: &str) -> anyhow::Result<Self> {
        let dir = dir.as_ref();
        if !dir.exists() {
            create(dir, name)
                .with_context(|| format!("the development PKI {} cannot be made", dir.display()))?;
        }
        let pki = Self { dir: dir.canonicalize()? };
        for file in [pki.signer(), pki.signer_key(), pki.intermediate(), pki.keyring_dir().join("root.pem")] {
            if !file.is_file() {
                bail!("{} is missing; remove {} to have a new PKI made", file.display(), pki.dir.display());
            }
        }
        Ok(pki)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// What an appliance needs to check signatures: roots (`*.pem`) and CRLs (`*.crl`), PEM, nothing secret.
    pub fn keyring_dir(&self) -> PathBuf {
        self.dir.join("keyring")
    }

    /// The signer's certificate, PEM.
    pub fn signer(&self) -> PathBuf {
        self.dir.join("signer.pem")
    }

    /// The signer's private key, PEM, mode 0600.
    pub fn signer_key(&self) -> PathBuf {
        self.dir.join("signer.key")
    }

    /// The intermediate's certificate, PEM.
    pub fn intermediate(&self) -> PathBuf {
        self.dir.join("intermediate.pem")
    }

    /// Signs `content` as `signature.md` says: CMS, DER, detached. `at` is the signing time in seconds since 1970;
    /// OpenSSL takes it from the clock alone, so the clock that it sees stands still there.
    pub fn sign(&self, content: &Path, at: u64, out: &Path) -> anyhow::Result<()> {
        let at = jiff::Timestamp::from_second(i64::try_from(at)?)?.strftime("%Y-%m-%d %H:%M:%S").to_string();
        openssl_at(&at, &["cms", "-sign", "-binary", "-md", "sha256", "-outform", "DER", "-nosmimecap"])?
            .arg("-in")
            .arg(content)
            .arg("-signer")
            .arg(self.signer())
            .arg("-inkey")
            .arg(self.signer_key())
            .arg("-certfile")
            .arg(self.intermediate())
            .arg("-out")
            .arg(out)
            .run()?;
        Ok(())
    }
}

/// An `openssl` whose clock stands still at `at`, UTC.
fn openssl_at(at: &str, args: &[&str]) -> anyhow::Result<Tool> {
    Ok(Tool::at(at, "openssl", "openssl")?.args(args))
}

/// Makes all of it beside `dir` and renames it there, so that `dir` is complete or absent.
fn create(dir: &Path, name: &str) -> anyhow::Result<()> {
    let parent = dir.parent().context("no parent directory")?;
    fs::create_dir_all(parent)?;
    let new = tempfile::Builder::new()
        .prefix(".pki-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)?;
    let at = new.path();
    let path = |file: &str| at.join(file).display().to_string();
    fs::create_dir(at.join("keyring"))?;
    fs::write(at.join("openssl.cnf"), CONFIG)?;
    fs::write(at.join("index.txt"), "")?;
    let keys: [(&str, &[&str]); 3] = [
        ("root", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("intermediate", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("signer", &["rsa:3072"]),
    ];
    for (index, (who, key)) in keys.into_iter().enumerate() {
        let issuer = if who == "signer" { "intermediate" } else { "root" };
        let request = openssl_at(NOT_BEFORE, &["req", "-new", "-noenc", "-sha256", "-newkey"])?
            .args(key)
            .args(["-config", &path("openssl.cnf"), "-subj", &format!("/O={name}/CN={name} {who}")])
            .args(["-keyout", &path(&format!("{who}.key"))])
            .args(["-out", &path(&format!("{who}.csr"))]);
        request.run()?;
        fs::set_permissions(at.join(format!("{who}.key")), Permissions::from_mode(0o600))?;
        sign_certificate(at, who, issuer, index + 1)?;
        fs::remove_file(at.join(format!("{who}.csr")))?;
    }
    for issuer in ["root", "intermediate"] {
        create_crl(at, issuer)?;
    }
    fs::copy(at.join("root.pem"), at.join("keyring/root.pem"))?;
    let made = new.keep();
    match fs::rename(&made, dir) {
        // Somebody else was first: theirs counts.
        Err(_) if dir.join("keyring/root.pem").is_file() => Ok(fs::remove_dir_all(&made)?),
        done => Ok(done?),
    }
}

/// Makes the certificate of `who`, PEM, from its request.
fn sign_certificate(at: &Path, who: &str, issuer: &str, serial: usize) -> anyhow::Result<()> {
    let path = |file: String| at.join(file).display().to_string();
    let (der, pem) = (path(format!("{who}.der")), path(format!("{who}.pem")));
    let key = path(format!("{issuer}.key"));
    let (config, request) = (path("openssl.cnf".into()), path(format!("{who}.csr")));
    loop {
        let certificate =
            openssl_at(NOT_BEFORE, &["x509", "-req", "-sha256", "-days", DAYS, "-extensions", who])?
                .args(["-set_serial", &serial.to_string(), "-extfile", &config])
                .args(["-in", &request, "-outform", "DER", "-out", &der]);
        if who == "root" {
            certificate.args(["-signkey", &key]).run()?;
        } else {
            certificate.args(["-CA", &path(format!("{issuer}.pem")), "-CAkey", &key]).run()?;
        }
        if has_usual_signature(&fs::read(&der)?) {
            break;
        }
    }
    openssl_at(NOT_BEFORE, &["x509", "-inform", "DER", "-in", &der, "-out", &pem])?.run()?;
    Ok(fs::remove_file(der)?)
}

/// Whether a certificate (DER) ends with an ECDSA signature of 71 bytes, the usual length (RFC 3279, 2.2.3: a BIT STRING
/// of a SEQUENCE). It has 70 to 72, as its numbers fall; with one length, whatever carries it is as long in every run.
fn has_usual_signature(certificate: &[u8]) -> bool {
    let start = certificate.len().checked_sub(74);
    start.and_then(|at| certificate.get(at..)).is_some_and(|end| end.starts_with(&[3, 72, 0, 0x30, 69]))
}

/// An empty CRL of `issuer`. Every issuer of the path needs one, for an unknown status is a refusal.
fn create_crl(at: &Path, issuer: &str) -> anyhow::Result<()> {
    let config = CONFIG
        .replace("= index.txt", &format!("= {}", at.join("index.txt").display()))
        .replace("= crlnumber", &format!("= {}", at.join("crlnumber").display()));
    fs::write(at.join("crl.cnf"), config)?;
    fs::write(at.join("crlnumber"), "01\n")?;
    openssl_at(NOT_BEFORE, &["ca", "-gencrl", "-crldays", DAYS])?
        .arg("-config")
        .arg(at.join("crl.cnf"))
        .arg("-cert")
        .arg(at.join(format!("{issuer}.pem")))
        .arg("-keyfile")
        .arg(at.join(format!("{issuer}.key")))
        .arg("-out")
        .arg(at.join(format!("keyring/{issuer}.crl")))
        .run()?;
    for file in ["crl.cnf", "crlnumber", "crlnumber.old"] {
        let _ = fs::remove_file(at.join(file));
    }
    Ok(())
}
