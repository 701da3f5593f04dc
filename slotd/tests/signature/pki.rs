//! Keys, certificates, CRLs and messages, all made by the stock `openssl` program.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// One day in seconds.
pub(crate) const DAY: u64 = 86_400;

const CA: &str = "basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n";
const CA_USAGE: &str = "keyUsage=critical,keyCertSign,cRLSign\n";
const LEAF: &str =
    "basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
const SIGNS: &str = "keyUsage=critical,digitalSignature\n";
const CODE: &str = "extendedKeyUsage=codeSigning\n";

/// The directory of this run, and its time.
pub(crate) struct Pki {
    dir: PathBuf,
    /// Unix seconds at which everything but the named exceptions is valid.
    pub(crate) now: u64,
}

/// Made once per test run.
pub(crate) fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(Pki::make)
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("openssl is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

impl Pki {
    fn make() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("signature");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory below target");
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
        let pki = Self { dir, now: clock + 1800 };
        for name in ["root", "root2", "other", "int", "int2", "signer", "second"] {
            pki.key(name, "EC", "ec_paramgen_curve:P-256");
        }
        pki.key("p384", "EC", "ec_paramgen_curve:P-384");
        pki.key("p521", "EC", "ec_paramgen_curve:P-521");
        for bits in ["1024", "2048", "3072"] {
            pki.key(&format!("rsa{bits}"), "RSA", &format!("rsa_keygen_bits:{bits}"));
        }
        pki.roots();
        pki.chain();
        pki.longer_chains();
        pki.crls();
        pki
    }

    fn roots(&self) {
        let root = format!("{CA}{CA_USAGE}");
        self.root("root", "root", &root, 3650);
        self.root("root-renewed", "root", &root, 3660);
        self.root("other", "other", &root, 3650);
        self.root("root-short", "root", &root, 1);
        self.root("root-cannot-sign", "root", &format!("{CA}keyUsage=critical,cRLSign\n"), 3650);
        self.root("root-no-crl-sign", "root", &format!("{CA}keyUsage=critical,keyCertSign\n"), 3650);
        // Verifies with its own key, yet names another issuer.
        self.request("root-renamed", "root", "/O=Test/CN=renamed");
        self.sign_request("root-renamed", "root", &root, 78, 3650);
        self.root("root-no-ca", "root", "basicConstraints=critical,CA:FALSE\n", 3650);
        self.root("root-pathlen", "root", &format!("basicConstraints=CA:TRUE,pathlen:0\n{CA_USAGE}"), 3650);
        self.root(
            "root-constrained",
            "root",
            &format!("{root}nameConstraints=permitted;DNS:a.example\n"),
            3650,
        );
        self.root("root-critical", "root", &format!("{root}1.2.3.4=critical,DER:0500\n"), 3650);
    }

    fn chain(&self) {
        let int = format!("{CA}{CA_USAGE}authorityKeyIdentifier=keyid\n");
        self.issue("int", "int", "root", &int, 1, 1800);
        self.issue("int-cannot-sign", "int", "root", &format!("{CA}keyUsage=critical,cRLSign\n"), 2, 1800);
        self.issue("int-email", "int", "root", &format!("{int}extendedKeyUsage=emailProtection\n"), 3, 1800);
        self.issue("int-no-ca", "int", "root", LEAF, 4, 1800);
        let good = format!("{LEAF}{SIGNS}{CODE}");
        for (serial, key) in
            (0x10..).zip(["signer", "p384", "p521", "rsa1024", "rsa2048", "rsa3072", "second"])
        {
            self.issue(key, key, "int", &good, serial, 900);
        }
        self.issue("same-serial", "second", "int", &good, 0x10, 900);
        self.issue("short", "signer", "int", &good, 0x20, 1);
        self.issue("no-ku", "signer", "int", &format!("{LEAF}{CODE}"), 0x21, 900);
        self.issue("no-eku", "signer", "int", &format!("{LEAF}{SIGNS}"), 0x22, 900);
        let any = format!("{LEAF}{SIGNS}extendedKeyUsage=anyExtendedKeyUsage\n");
        self.issue("any-eku", "signer", "int", &any, 0x23, 900);
        let email = format!("{LEAF}{SIGNS}extendedKeyUsage=emailProtection\n");
        self.issue("email-eku", "signer", "int", &email, 0x24, 900);
        let wrong = format!("{LEAF}{CODE}keyUsage=critical,keyEncipherment\n");
        self.issue("wrong-ku", "signer", "int", &wrong, 0x25, 900);
        let ca = format!("{CA}{CODE}keyUsage=critical,digitalSignature,keyCertSign\n");
        self.issue("ca-leaf", "signer", "int", &ca, 0x26, 900);
        let akid = good
            .replace("authorityKeyIdentifier=keyid", &format!("2.5.29.35=DER:30168014{}", "ab".repeat(20)));
        self.issue("wrong-akid", "signer", "int", &akid, 0x27, 900);
        self.issue("critical", "signer", "int", &format!("{good}1.2.3.4=critical,DER:0500\n"), 0x28, 900);
        self.issue("by-other", "signer", "other", &good, 0x29, 900);
        self.issue("by-root", "signer", "root", &good, 0x2a, 900);
    }

    /// What hangs below a root with a new key, and what no chain may hold.
    fn longer_chains(&self) {
        let ca = format!("{CA}{CA_USAGE}authorityKeyIdentifier=keyid\n");
        let good = format!("{LEAF}{SIGNS}{CODE}");
        let issue = |name: &str, key: &str, subject: &str, issuer: &str, extensions: &str, serial: u32| {
            self.request(name, key, &format!("/O=Test/CN={subject}"));
            self.sign_request(name, issuer, extensions, serial, 900);
            // What it issues is signed with its key.
            let _ = std::fs::copy(self.path(&format!("{key}.key")), self.path(&format!("{name}.key")));
        };
        // The root with another key: of the same name, and certified by the old one.
        self.request("root-new", "root2", "/O=Test/CN=root");
        self.self_sign("root-new", "root2", &format!("{CA}{CA_USAGE}"), 3650);
        std::fs::copy(self.path("root2.key"), self.path("root-new.key")).expect("a copy");
        issue("root-cross", "root2", "root", "root", &ca, 0x40);
        issue("int-new", "int2", "int-new", "root-new", &ca, 0x41);
        issue("by-new", "signer", "signer", "int-new", &good, 0x42);
        // An intermediate below an intermediate that allows none.
        issue("int-last", "int", "int-last", "root", &ca.replace("CA:TRUE", "CA:TRUE,pathlen:0"), 0x43);
        issue("int-below", "int2", "int-below", "int-last", &ca, 0x44);
        issue("by-below", "signer", "signer", "int-below", &good, 0x45);
        // Names: one that the signer keeps to, and one that it does not.
        let names = |list: &str| format!("{ca}nameConstraints=critical,{list}\n");
        issue("int-names", "int", "int", "root", &names("permitted;DNS:a.example"), 0x46);
        // The empty distinguished name is excluded: all names are below it.
        let der = "3008a1063004a4023000";
        issue(
            "int-excludes",
            "int",
            "int",
            "root",
            &format!("{ca}nameConstraints=critical,DER:{der}\n"),
            0x47,
        );
        let text = self.concatenated(&["int-new.pem", "root-cross.pem"]);
        std::fs::write(self.path("cross-chain.pem"), text).expect("a file");
        let text = self.concatenated(&["int-below.pem", "int-last.pem"]);
        std::fs::write(self.path("below-chain.pem"), text).expect("a file");
    }

    fn concatenated(&self, names: &[&str]) -> Vec<u8> {
        names.iter().flat_map(|name| self.file(name).1).collect()
    }

    fn crls(&self) {
        let (now, day) = (self.now, DAY);
        self.crl("root", "root", now - 2 * day, now + 30 * day, &[]);
        self.crl("int", "int", now - 2 * day, now + 30 * day, &[]);
        self.crl("root-revokes-int", "root", now - day, now + 30 * day, &[1]);
        self.crl("int-revokes", "int", now - day, now + 30 * day, &[0x10]);
        self.crl("int-revokes-older", "int", now - 3 * day, now + 30 * day, &[0x10]);
        self.crl("int-expired", "int", now - 9 * day, now - 8 * day, &[]);
        self.crl("int-expires-now", "int", now - 9 * day, now, &[]);
        self.crl("int-future", "int", now + day, now + 30 * day, &[]);
        self.crl("root-future", "root", now + day, now + 30 * day, &[]);
        let serial = self.serial("root");
        self.crl("root-revokes-itself", "root", now - day, now + 30 * day, &[serial]);
        // Signed by another key in the name of the issuer.
        self.issue_forged_crl();
    }

    fn issue_forged_crl(&self) {
        let subject = "/O=Test/CN=int";
        let extensions = format!("{CA}{CA_USAGE}");
        self.request("forger", "int2", subject);
        self.sign_request("forger", "other", &extensions, 0x30, 900);
        std::fs::copy(self.path("int2.key"), self.path("forger.key")).expect("a copy");
        self.crl("int-forged", "forger", self.now - DAY, self.now + 30 * DAY, &[]);
    }

    /// The path of a file of this run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The content of a file of this run, with its name, as a keyring takes it.
    pub(crate) fn file(&self, name: &str) -> (String, Vec<u8>) {
        (name.into(), std::fs::read(self.path(name)).expect(name))
    }

    /// The DER in a PEM file of this run.
    pub(crate) fn der(&self, name: &str) -> Vec<u8> {
        let kind = if Path::new(name).extension().is_some_and(|end| end == "crl") { "crl" } else { "x509" };
        run(Command::new("openssl").args([kind, "-outform", "DER", "-in"]).arg(self.path(name)))
    }

    fn key(&self, name: &str, algorithm: &str, option: &str) {
        run(Command::new("openssl")
            .args(["genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out"])
            .arg(self.path(&format!("{name}.key"))));
    }

    fn serial(&self, name: &str) -> u128 {
        let out = run(Command::new("openssl")
            .args(["x509", "-noout", "-serial", "-in"])
            .arg(self.path(&format!("{name}.pem"))));
        let text = String::from_utf8(out).expect("text");
        u128::from_str_radix(text.trim().trim_start_matches("serial="), 16).expect("hex")
    }

    fn request(&self, name: &str, key: &str, subject: &str) {
        run(Command::new("openssl")
            .args(["req", "-new", "-config", "/dev/null", "-subj", subject, "-key"])
            .arg(self.path(&format!("{key}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.csr"))));
    }

    fn sign_request(&self, name: &str, issuer: &str, extensions: &str, serial: u32, days: u32) {
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        std::fs::write(path("ext"), extensions).expect("a file");
        run(Command::new("openssl")
            .args(["x509", "-req", "-sha256", "-days", &days.to_string(), "-set_serial", &serial.to_string()])
            .arg("-in")
            .arg(path("csr"))
            .arg("-CA")
            .arg(self.path(&format!("{issuer}.pem")))
            .arg("-CAkey")
            .arg(self.path(&format!("{issuer}.key")))
            .arg("-extfile")
            .arg(path("ext"))
            .arg("-out")
            .arg(path("pem")));
    }

    /// A certificate `name` for `key`. The subject is that of the key, so that variants of an issuer fit.
    fn issue(&self, name: &str, key: &str, issuer: &str, extensions: &str, serial: u32, days: u32) {
        self.request(name, key, &format!("/O=Test/CN={key}"));
        self.sign_request(name, issuer, extensions, serial, days);
    }

    fn root(&self, name: &str, key: &str, extensions: &str, days: u32) {
        self.request(name, key, &format!("/O=Test/CN={key}"));
        self.self_sign(name, key, extensions, days);
    }

    fn self_sign(&self, name: &str, key: &str, extensions: &str, days: u32) {
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        std::fs::write(path("ext"), extensions).expect("a file");
        run(Command::new("openssl")
            .args(["x509", "-req", "-sha256", "-days", &days.to_string(), "-set_serial", "77", "-in"])
            .arg(path("csr"))
            .arg("-signkey")
            .arg(self.path(&format!("{key}.key")))
            .arg("-extfile")
            .arg(path("ext"))
            .arg("-out")
            .arg(path("pem")));
    }

    fn crl(&self, name: &str, issuer: &str, from: u64, until: u64, revoked: &[u128]) {
        let path = |suffix: &str| self.path(&format!("{name}-crl.{suffix}"));
        let mut lines = String::new();
        for serial in revoked {
            let hex = format!("{serial:X}");
            let zero = if hex.len() % 2 == 1 { "0" } else { "" };
            let _ = writeln!(lines, "R\t400101000000Z\t{}\t{zero}{hex}\tunknown\t/CN=x", stamp(from));
        }
        std::fs::write(path("txt"), lines).expect("a file");
        std::fs::write(path("number"), "01\n").expect("a file");
        let config = format!(
            "[ca]\ndefault_ca=x\n[x]\ndatabase={}\ncrlnumber={}\ndefault_md=sha256\ncrl_extensions=e\n\
             [e]\nauthorityKeyIdentifier=keyid\n",
            path("txt").display(),
            path("number").display()
        );
        std::fs::write(path("cnf"), config).expect("a file");
        run(Command::new("openssl")
            .args([
                "ca",
                "-gencrl",
                "-crl_lastupdate",
                &stamp(from),
                "-crl_nextupdate",
                &stamp(until),
                "-config",
            ])
            .arg(path("cnf"))
            .arg("-keyfile")
            .arg(self.path(&format!("{issuer}.key")))
            .arg("-cert")
            .arg(self.path(&format!("{issuer}.pem")))
            .arg("-out")
            .arg(self.path(&format!("{name}.crl"))));
    }

    /// `openssl cms -sign` over `content` with certificate `signer` and key `key`, and further arguments.
    pub(crate) fn sign(&self, content: &[u8], signer: &str, key: &str, more: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a directory");
        let input = dir.path().join("content");
        std::fs::write(&input, content).expect("a file");
        let mut command = Command::new("openssl");
        command.args(["cms", "-sign", "-binary", "-outform", "DER", "-nosmimecap", "-in"]).arg(&input);
        command.arg("-signer").arg(self.path(&format!("{signer}.pem")));
        command.arg("-inkey").arg(self.path(&format!("{key}.key")));
        if !more.contains(&"-md") {
            command.args(["-md", "sha256"]);
        }
        if !more.contains(&"-certfile") {
            command.arg("-certfile").arg(self.path("int.pem"));
        }
        run(command.current_dir(&self.dir).args(more))
    }

    /// A plain signature over `bytes` by `key` with SHA-256.
    pub(crate) fn sign_raw(&self, bytes: &[u8], key: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a directory");
        let input = dir.path().join("bytes");
        std::fs::write(&input, bytes).expect("a file");
        let key = self.path(&format!("{key}.key"));
        run(Command::new("openssl").args(["dgst", "-sha256", "-sign"]).arg(key).arg(input))
    }

    /// What stock OpenSSL says: `openssl cms -verify -binary -purpose any`.
    pub(crate) fn openssl(
        &self,
        content: &[u8],
        p7s: &[u8],
        roots: &[&str],
        crls: &[&str],
        now: u64,
    ) -> Output {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("a file");
            path
        };
        let trusted: Vec<u8> = roots.iter().chain(crls).flat_map(|name| self.file(name).1).collect();
        let mut command = Command::new("openssl");
        command.args(["cms", "-verify", "-binary", "-purpose", "any", "-inform", "DER", "-no-CApath"]);
        command.args(["-no-CAstore", "-attime", &now.to_string(), "-out", "/dev/null"]);
        if !crls.is_empty() {
            command.arg("-crl_check_all");
        }
        command.arg("-in").arg(write("p7s", p7s)).arg("-content").arg(write("content", content));
        command.arg("-CAfile").arg(write("trusted", &trusted)).output().expect("openssl is installed")
    }
}

/// `YYMMDDHHMMSSZ`.
fn stamp(seconds: u64) -> String {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).expect("a time")).expect("a time");
    time.strftime("%y%m%d%H%M%SZ").to_string()
}
