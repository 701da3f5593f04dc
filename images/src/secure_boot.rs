//! UEFI Secure Boot: the key that boot images and the boot loader are signed with, and the files that make a machine take
//! it (UEFI 2.10, 32.3 and 32.4; systemd-boot(7), "Secure Boot").
//!
//! Signed is the boot chain alone. What an appliance installs is decided by the manifest's signature, whose keys are
//! others.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::pki::{DAYS, NOT_BEFORE};
use crate::tool::Tool;
use crate::{FirmwareSpec, Pki};

/// Owner of our signatures in a machine's key databases.
const OWNER: &str = "6f2a1d0c-5b0e-4c1b-9e52-0a7d5b1c3e43";
/// Platform key, key exchange key, and what may be started.
const VARIABLES: [&str; 3] = ["PK", "KEK", "db"];

/// A private key and its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootKey {
    /// A file (PEM), or what `engine` understands: a PKCS#11 URI.
    pub key: String,
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The OpenSSL engine that has the key: `pkcs11`.
    pub engine: Option<String>,
}

impl BootKey {
    /// The key of `spec`, else that of `pki`.
    pub fn chosen(spec: &FirmwareSpec, pki: &Pki) -> anyhow::Result<Self> {
        spec.boot_key.clone().map_or_else(|| Self::of(pki), Ok)
    }

    /// That of the development PKI, made at first use.
    pub fn of(pki: &Pki) -> anyhow::Result<Self> {
        let dir = pki.directory().join("secure-boot");
        if !dir.exists() {
            create(&dir, pki.directory()).context("the development key of Secure Boot cannot be made")?;
        }
        let (key, certificate) = (dir.join("boot.key"), dir.join("boot.pem"));
        for file in [&key, &certificate] {
            ensure!(
                file.is_file(),
                "{} is missing; remove {} to have a new one made",
                file.display(),
                dir.display()
            );
        }
        Ok(Self { key: key.display().to_string(), certificate, engine: None })
    }

    /// Signs the PE image `from` into `to`, which may be the same file. `at` is the signing time, in seconds since 1970: the
    /// same image and key give the same bits, as the key is RSA.
    pub fn sign(&self, from: &Path, at: u64, to: &Path) -> anyhow::Result<()> {
        self.require_rsa()?;
        self.reaching_token(Tool::at(&utc(at)?, "sbsign", "sbsigntool")?)
            .args(self.engine.iter().flat_map(|engine| ["--engine", engine]))
            .args(["--key", &self.key, "--cert"])
            .arg(&self.certificate)
            .arg("--output")
            .arg(to)
            .arg(from)
            .run()
            .with_context(|| format!("{} cannot be signed for Secure Boot", from.display()))?;
        // Not as the builder's umask says: it may be in a root.
        Ok(fs::set_permissions(to, Permissions::from_mode(0o644))?)
    }

    /// UEFI firmware knows no other keys, and their signatures of one image are the same each time.
    fn require_rsa(&self) -> anyhow::Result<()> {
        let said = Tool::new("openssl", "openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(&self.certificate)
            .run()?;
        let is_rsa = said.stdout.contains("Public Key Algorithm: rsaEncryption");
        ensure!(is_rsa, "{}: not an RSA key; UEFI firmware takes no other", self.certificate.display());
        Ok(())
    }

    /// What finds a token is in the environment.
    fn reaching_token(&self, tool: Tool) -> Tool {
        if self.engine.is_some() { tool.inherit_env() } else { tool }
    }

    /// Writes `PK.auth`, `KEK.auth` and `db.auth` into `to`, an existing directory: what puts this key, and no other, into a
    /// machine that is in setup mode.
    pub fn write_enrolment(&self, at: u64, work: &Path, to: &Path) -> anyhow::Result<()> {
        let list = work.join("boot.esl");
        Tool::new("cert-to-efi-sig-list", "efitools")
            .args(["-g", OWNER])
            .arg(&self.certificate)
            .arg(&list)
            .run()?;
        for variable in VARIABLES {
            self.reaching_token(Tool::new("sign-efi-sig-list", "efitools"))
                .args(self.engine.iter().flat_map(|engine| ["-e", engine]))
                .args(["-g", OWNER, "-t", &utc(at)?, "-k", &self.key, "-c"])
                .arg(&self.certificate)
                .arg(variable)
                .arg(&list)
                .arg(to.join(format!("{variable}.auth")))
                .run()?;
        }
        Ok(())
    }
}

fn utc(at: u64) -> anyhow::Result<String> {
    Ok(jiff::Timestamp::from_second(i64::try_from(at)?)?.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Makes all of it beside `dir`, in `parent`, and renames it there.
fn create(dir: &Path, parent: &Path) -> anyhow::Result<()> {
    let new = tempfile::Builder::new()
        .prefix(".secure-boot-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)?;
    let key = new.path().join("boot.key");
    Tool::at(NOT_BEFORE, "openssl", "openssl")?
        .args(["req", "-x509", "-noenc", "-sha256", "-newkey", "rsa:3072", "-days", DAYS])
        .args(["-subj", "/O=SPS development/CN=Secure Boot", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(new.path().join("boot.pem"))
        .run()?;
    fs::set_permissions(key, Permissions::from_mode(0o600))?;
    let made = new.keep();
    match fs::rename(&made, dir) {
        // Somebody else was first: theirs counts.
        Err(_) if dir.join("boot.pem").is_file() => Ok(fs::remove_dir_all(&made)?),
        done => Ok(done?),
    }
}
