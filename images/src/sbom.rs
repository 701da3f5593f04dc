//! What a firmware is made of, for those who look for known flaws: an SPDX 2.3 document in JSON.
//!
//! It lies on the ISO as `/sbom.spdx.json`, beside `/FIRMWARE`, where slotd refuses what it does not know; the manifest's
//! `meta` holds its SHA-256, so the firmware's signature covers it. Nothing of it is written into a slot.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::package;
use crate::packages_lock::{DebianPackage, Differences};
use crate::root;
use crate::tool::Tool;

/// Name of the file on the ISO.
pub const FILE: &str = "sbom.spdx.json";
/// Key of its SHA-256 in the manifest's `meta`.
pub const META: &str = "sbom_sha256";
/// Identifier of our programs.
const AGENT: &str = "SPDXRef-Agent";
/// What nobody has looked at.
const UNKNOWN: &str = "NOASSERTION";

/// A crate that is linked into our programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, as it says itself.
    pub licence: String,
    /// SHA-256 of what the registry gave out. None: ours.
    pub sha256: Option<String>,
}

/// What is in a firmware.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Product and version of the firmware.
    pub product: &'a str,
    /// Version of the firmware.
    pub version: &'a str,
    /// Seconds since 1970: when it was made.
    pub epoch: u64,
    /// Debian's packages.
    pub packages: &'a [DebianPackage],
    /// How these differ from what was expected.
    pub differences: &'a Differences,
    /// What our programs are linked from; empty when they are not in it.
    pub crates: &'a [Crate],
}

/// What slotd, spsctl and the recovery console are linked from for this target: `cargo tree` resolves it as a build does, `Cargo.lock` has the
/// sums. Procedural macros and what only builds is not in the programs.
pub fn crates(sources: &Path) -> anyhow::Result<Vec<Crate>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let said = Tool::new(&cargo, "cargo")
        .inherit_env()
        .args(["tree", "--locked", "--package", "recovery", "--package", "slotd", "--package", "spsctl"])
        .args(["--edges", "normal,no-proc-macro", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--prefix", "none", "--format", "{p}|{l}", "--manifest-path"])
        .arg(sources.join("Cargo.toml"))
        .run()?;
    let lock = sources.join("Cargo.lock");
    let lock = std::fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
    read_crates(&said.stdout, &lock)
}

/// Lines `name v1.2.3 (where)|licence (*)`, and the lock file.
fn read_crates(tree: &str, lock: &str) -> anyhow::Result<Vec<Crate>> {
    let lock: toml::Value = lock.parse::<toml::Table>().context("Cargo.lock")?.into();
    let mut sums = BTreeMap::new();
    for package in lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock: no package")? {
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str);
        sums.insert((text("name"), text("version")), text("checksum").map(str::to_owned));
    }
    let mut crates = BTreeSet::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (package, licence) = line.split_once('|').with_context(|| format!("cargo tree: {line:?}"))?;
        let mut words = package.split(' ');
        let (name, version) = (words.next(), words.next().and_then(|word| word.strip_prefix('v')));
        let sha256 =
            sums.get(&(name, version)).with_context(|| format!("Cargo.lock has no {package}"))?.clone();
        let (name, version) = (name.unwrap_or_default().to_owned(), version.unwrap_or_default().to_owned());
        // The slash is an old spelling of OR.
        let licence = licence.trim_end_matches(" (*)").replace('/', " OR ");
        ensure!(!licence.is_empty(), "{package} names no licence");
        crates.insert(Crate { name, version, licence, sha256 });
    }
    ensure!(!crates.is_empty(), "cargo tree names no crate");
    Ok(crates.into_iter().collect())
}

/// The document, as it is written: the same contents give the same bytes.
pub fn render(contents: &Contents<'_>) -> anyhow::Result<Vec<u8>> {
    let created = jiff::Timestamp::from_second(i64::try_from(contents.epoch)?)?;
    let firmware = "SPDXRef-Firmware";
    let mut packages = vec![json!({
        "SPDXID": firmware, "name": contents.product, "versionInfo": contents.version,
        "primaryPackagePurpose": "FIRMWARE", "downloadLocation": UNKNOWN, "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN, "licenseDeclared": UNKNOWN, "copyrightText": UNKNOWN,
    })];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", firmware)];
    for package in contents.packages.iter().filter(|package| package.name != package::NAME) {
        let entry = debian(package);
        relationships.push(relationship(firmware, "CONTAINS", entry["SPDXID"].as_str().unwrap_or_default()));
        packages.push(entry);
    }
    if !contents.crates.is_empty() {
        packages.push(agent());
        relationships.push(relationship(firmware, "CONTAINS", AGENT));
    }
    for one in contents.crates {
        let entry = of_crate(one);
        relationships.push(relationship(AGENT, "STATIC_LINK", entry["SPDXID"].as_str().unwrap_or_default()));
        packages.push(entry);
    }
    // Everything that decides the rest: no two documents have one name, and no chance is in it.
    let identity = Sha256::digest(serde_json::to_vec(&(&packages, contents.epoch))?);
    let mut document = json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{} {}", contents.product, contents.version),
        "documentNamespace": format!(
            "https://spdx.org/spdxdocs/{}-{}-{}",
            encoded(contents.product), encoded(contents.version), root::uuid(&identity.into())
        ),
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "creators": [concat!("Tool: sps-images-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages, "relationships": relationships,
    });
    if !contents.differences.0.is_empty() {
        let lines: Vec<String> = contents.differences.0.iter().map(ToString::to_string).collect();
        document["comment"] = json!(format!("Other than images/packages.lock: {}", lines.join("; ")));
    }
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    Ok(text)
}

fn relationship(one: &str, kind: &str, other: &str) -> Value {
    json!({ "spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other })
}

/// Our programs together.
fn agent() -> Value {
    json!({
        "SPDXID": AGENT, "name": package::NAME, "versionInfo": env!("CARGO_PKG_VERSION"),
        "primaryPackagePurpose": "APPLICATION", "downloadLocation": UNKNOWN, "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN, "licenseDeclared": env!("CARGO_PKG_LICENSE"), "copyrightText": UNKNOWN,
    })
}

fn debian(package: &DebianPackage) -> Value {
    let (source, source_version) = &package.source;
    let purl = format!(
        "pkg:deb/debian/{}@{}?arch={}",
        encoded(&package.name),
        encoded(&package.version),
        package.architecture
    );
    let mut entry = entry("Debian", &package.name, &package.version, &purl);
    entry["supplier"] = json!("Organization: Debian");
    // Debian's copyright files are for people: one package has dozens of licences, and few are expressions.
    entry["licenseDeclared"] = json!(UNKNOWN);
    entry["sourceInfo"] = json!(format!("built by Debian from source package {source} {source_version}"));
    if let Some(hash) = package.sha256 {
        entry["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": hash.to_string() }]);
    }
    entry
}

fn of_crate(one: &Crate) -> Value {
    let purl = format!("pkg:cargo/{}@{}", encoded(&one.name), encoded(&one.version));
    let mut entry = entry("Crate", &one.name, &one.version, &purl);
    entry["licenseDeclared"] = json!(one.licence);
    if let Some(hash) = &one.sha256 {
        entry["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": hash }]);
    } else {
        // Ours are in no registry: the name would be somebody else's there.
        entry["externalRefs"] = json!([]);
    }
    entry
}

fn entry(kind: &str, name: &str, version: &str, purl: &str) -> Value {
    json!({
        "SPDXID": format!("SPDXRef-{kind}-{}-{}", identifier(name), identifier(version)),
        "name": name, "versionInfo": version, "downloadLocation": UNKNOWN, "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN, "copyrightText": UNKNOWN,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl
        }],
    })
}

/// Letters, digits, `.` and `-` are what an identifier may have; anything else becomes its number, so that no two names
/// become one.
fn identifier(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
            out.push(c);
        } else {
            let _ = write!(out, "-x{:x}-", u32::from(c));
        }
        out
    })
}

/// A part of a package URL or path.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b".-_~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages_lock::Lock;
    use slotd::domain::manifest::Sha256Hex;

    const LOCK: &str = "version = 4\n[[package]]\nname = \"slotd\"\nversion = \"0.1.0\"\n\
        [[package]]\nname = \"zstd-sys\"\nversion = \"2.1.2+zstd.1.5.7\"\nchecksum = \"ab\"\n";

    fn packages() -> Vec<DebianPackage> {
        let one = |name: &str, sha256| DebianPackage {
            name: name.into(),
            version: "1:14.2+b1".into(),
            architecture: "amd64".into(),
            source: ("gcc-14".into(), "14.2".into()),
            sha256,
        };
        vec![one("libstdc++6", Some(Sha256Hex([7; 32]))), one("sps-agent", None)]
    }

    #[test]
    fn crates_are_those_of_the_tree_once() {
        let tree = "slotd v0.1.0 (/x)|MIT OR Apache-2.0\nzstd-sys v2.1.2+zstd.1.5.7|MIT/Apache-2.0\n\n\
            zstd-sys v2.1.2+zstd.1.5.7|MIT/Apache-2.0 (*)\n";
        let crates = read_crates(tree, LOCK).unwrap();
        assert_eq!(crates.len(), 2);
        assert_eq!((crates[0].name.as_str(), crates[0].sha256.as_deref()), ("slotd", None));
        assert_eq!(
            (crates[1].licence.as_str(), crates[1].sha256.as_deref()),
            ("MIT OR Apache-2.0", Some("ab"))
        );
        assert!(read_crates("other v1.0.0|MIT\n", LOCK).unwrap_err().to_string().contains("other v1.0.0"));
        assert!(read_crates("slotd v0.1.0 (/x)|\n", LOCK).is_err());
    }

    #[test]
    fn document_names_what_is_in_it() {
        let differences = Lock::default().compare(&packages());
        let crates = read_crates("slotd v0.1.0 (/x)|MIT\nzstd-sys v2.1.2+zstd.1.5.7|MIT\n", LOCK).unwrap();
        let contents = Contents {
            product: "sps",
            version: "8.0.1",
            epoch: 1_767_225_600,
            packages: &packages(),
            differences: &differences,
            crates: &crates,
        };
        let text = render(&contents).unwrap();
        assert_eq!(text, render(&contents).unwrap());
        let document: Value = serde_json::from_slice(&text).unwrap();
        let names: Vec<&str> =
            document["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        // Our own package is told by its crates.
        assert_eq!(names, ["sps", "libstdc++6", "sps-agent", "slotd", "zstd-sys"]);
        let library = &document["packages"][1];
        assert_eq!(library["SPDXID"], "SPDXRef-Debian-libstdc-x2b--x2b-6-1-x3a-14.2-x2b-b1");
        let purl = &library["externalRefs"][0]["referenceLocator"];
        assert_eq!(purl, "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2%2Bb1?arch=amd64");
        assert_eq!(library["checksums"][0]["checksumValue"], "07".repeat(32));
        assert_eq!(document["creationInfo"]["created"], "2026-01-01T00:00:00Z");
        assert!(document["comment"].as_str().unwrap().contains("libstdc++6: not expected"));
        let other = Contents { version: "8.0.2", ..contents };
        let other: Value = serde_json::from_slice(&render(&other).unwrap()).unwrap();
        assert_ne!(document["documentNamespace"], other["documentNamespace"]);
    }
}
