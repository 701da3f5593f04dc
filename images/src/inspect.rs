//! Takes an ISO apart with stock tools and says whether they agree with its manifest.
//!
//! Of our own code only the manifest's parser has a part in this; extraction, signature, hash tree and file system are
//! judged by `osirrox`, `openssl`, `veritysetup` and `fsck.erofs`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use slotd::domain::manifest::{MANIFEST_NAME, Manifest, SIGNATURE_NAME};

use crate::tool::Tool;
use crate::{BuildDirs, iso, root, sbom};

/// What an ISO holds, and whether the tools agree.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The ISO.
    pub iso: PathBuf,
    /// Its files by place.
    pub files: Vec<Placed>,
    /// Its manifest, when it is one.
    pub manifest: Option<Manifest>,
    /// What was checked, in this order.
    pub checks: Vec<Check>,
}

/// A file of the ISO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// Name in `/FIRMWARE`.
    pub name: String,
    /// First block, in units of 2 KiB.
    pub lba: u64,
    /// Length in bytes.
    pub size: u64,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was checked, and with which tool.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found; the tool's words when it fails.
    pub detail: String,
}

impl InspectReport {
    /// Whether every check holds.
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    fn check(&mut self, name: &str, result: Result<String, String>) {
        let (ok, detail) = result.map_or_else(|why| (false, why), |what| (true, what));
        self.checks.push(Check { name: name.into(), ok, detail });
    }
}

impl fmt::Display for InspectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.iso.display())?;
        if let Some(m) = &self.manifest {
            let boot = serde_json::to_string(&m.boot).unwrap_or_default();
            writeln!(f, "  version        {} (boot {})", m.version, m.boot_version)?;
            writeln!(f, "  built          {}", m.build_date)?;
            writeln!(f, "  for            {} on {}", m.compatible.product, m.compatible.hardware.join(", "))?;
            writeln!(f, "  boot           {}", boot.trim_matches('"'))?;
            writeln!(
                f,
                "  security epoch {}, going back below {} refused",
                m.security_epoch, m.revoked_below
            )?;
            let rules: Vec<String> =
                m.upgrade_from.iter().map(|rule| format!("{} (from {})", rule.from, rule.min)).collect();
            writeln!(
                f,
                "  upgrade from   {}",
                if rules.is_empty() { "nothing".into() } else { rules.join(", ") }
            )?;
            writeln!(f, "  root hash      {}", m.root.verity.root_hash)?;
        }
        for file in &self.files {
            writeln!(f, "  {:>9}  {:>13}  {}", file.lba, file.size, file.name)?;
        }
        for check in &self.checks {
            writeln!(f, "{:<4} {}: {}", if check.ok { "ok" } else { "FAIL" }, check.name, check.detail)?;
        }
        Ok(())
    }
}

/// Inspects `iso` against the keyring (roots `*.pem`, CRLs `*.crl`). An error only when it cannot be inspected at all;
/// everything wrong with the ISO is in the report.
pub fn inspect(iso: &Path, keyring: &Path, dirs: &BuildDirs) -> anyhow::Result<InspectReport> {
    iso.metadata().with_context(|| format!("{} cannot be read", iso.display()))?;
    let work = dirs.work()?;
    let at = work.path().join("iso");
    let mut report =
        InspectReport { iso: iso.to_path_buf(), files: Vec::new(), manifest: None, checks: Vec::new() };
    let extracted = Tool::new("xorriso", "xorriso")
        .args(["-no_rc", "-osirrox", "on", "-indev"])
        .arg(iso)
        .args(["-extract", iso::DIRECTORY])
        .arg(&at)
        .outcome()?;
    if at.is_dir() {
        // It has the mode that it has in the ISO, read-only, and could not be removed again.
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755))?;
    }
    if !extracted.ok || !at.is_dir() {
        report.check("extraction (xorriso)", Err(extracted.said));
        return Ok(report);
    }
    report.files = placed(iso)?;
    let names = report.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    report.check("order (xorriso)", order(&names));
    report.check("signature (openssl cms)", signature(&at, keyring, work.path())?);
    match fs::read(at.join(MANIFEST_NAME)).map_err(anyhow::Error::from).and_then(|b| Ok(Manifest::parse(&b)?))
    {
        Ok(manifest) => {
            report.check("manifest", Ok("canonical, schema 1".into()));
            files(&manifest, &at, &names, &mut report);
            root_image(&manifest, &at, &mut report)?;
            if let Some(expected) = manifest.meta.get(sbom::META) {
                report.check("SBOM", list_of_contents(iso, expected, work.path())?);
            }
            report.manifest = Some(manifest);
        }
        Err(error) => report.check("manifest", Err(format!("{error:#}"))),
    }
    Ok(report)
}

/// Whether the list of what the firmware is made of has the sum that is signed, and can be read.
fn list_of_contents(iso: &Path, expected: &str, work: &Path) -> anyhow::Result<Result<String, String>> {
    let at = work.join(sbom::FILE);
    let extract = Tool::new("xorriso", "xorriso").args(["-no_rc", "-osirrox", "on", "-indev"]).arg(iso);
    let extracted = extract.args(["-extract", &format!("/{}", sbom::FILE)]).arg(&at).outcome()?;
    if !extracted.ok || !at.is_file() {
        return Ok(Err(format!("/{} is not on the ISO: {}", sbom::FILE, extracted.said)));
    }
    let found = root::sha256(&at)?.0.to_string();
    if found != expected {
        return Ok(Err(format!("SHA-256 is {found}; the manifest says {expected}")));
    }
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&at)?)?;
    let packages = document["packages"].as_array().map_or(0, Vec::len);
    Ok(Ok(format!("{packages} packages, as signed")))
}

/// The files of the ISO by place.
fn placed(iso: &Path) -> anyhow::Result<Vec<Placed>> {
    let listing = Tool::new("xorriso", "xorriso")
        .args(["-no_rc", "-indev"])
        .arg(iso)
        .args(["-find", iso::DIRECTORY, "-type", "f", "-exec", "report_lba", "--"])
        .run()?;
    let mut files: BTreeMap<String, Placed> = BTreeMap::new();
    // `File data lba:  0 ,  51 ,  3 ,  5000 , '/FIRMWARE/root.erofs'`: extent, block, blocks, bytes, path.
    for line in listing.stdout.lines().filter_map(|line| line.strip_prefix("File data lba:")) {
        let fields: Vec<&str> = line.splitn(5, ',').map(str::trim).collect();
        let [_, lba, _, bytes, path] = fields.as_slice() else { continue };
        let name = path.trim_matches('\'').rsplit('/').next().unwrap_or_default().to_owned();
        let (lba, size): (u64, u64) = (lba.parse()?, bytes.parse()?);
        // A file above 4 GiB has several extents; each line says the length of the whole.
        files.entry(name.clone()).and_modify(|file| file.lba = file.lba.min(lba)).or_insert(Placed {
            name,
            lba,
            size,
        });
    }
    let mut files: Vec<Placed> = files.into_values().collect();
    files.sort_by_key(|file| file.lba);
    Ok(files)
}

fn order(names: &[String]) -> Result<String, String> {
    let expected: Vec<&str> = iso::order().filter(|name| names.iter().any(|found| found == name)).collect();
    if expected.len() != names.len() {
        let foreign: Vec<&String> = names.iter().filter(|name| !expected.contains(&name.as_str())).collect();
        return Err(format!("files that do not belong there: {foreign:?}"));
    }
    if expected != *names {
        return Err(format!("found {names:?}; expected {expected:?}"));
    }
    Ok(format!("{} files, as they must arrive", names.len()))
}

fn signature(at: &Path, keyring: &Path, work: &Path) -> anyhow::Result<Result<String, String>> {
    if !at.join(SIGNATURE_NAME).is_file() {
        return Ok(Err(format!("no {SIGNATURE_NAME}: the ISO is not signed")));
    }
    let (mut bundle, mut crls) = (String::new(), 0);
    let entries = fs::read_dir(keyring)
        .with_context(|| format!("keyring {} cannot be read; build an image first", keyring.display()))?;
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("pem" | "crl")) {
            bundle.push_str(&fs::read_to_string(&path)?);
            crls += usize::from(extension == Some("crl"));
        }
    }
    let bundle_file = work.join("keyring.pem");
    fs::write(&bundle_file, bundle)?;
    let verified = Tool::new("openssl", "openssl")
        .args(["cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any", "-out", "/dev/null"])
        .args((crls > 0).then_some("-crl_check_all"))
        .arg("-no-CApath")
        .arg("-no-CAstore")
        .arg("-CAfile")
        .arg(&bundle_file)
        .arg("-in")
        .arg(at.join(SIGNATURE_NAME))
        .arg("-content")
        .arg(at.join(MANIFEST_NAME))
        .outcome()?;
    let good = format!("good, by {}, {crls} CRLs", keyring.display());
    Ok(if verified.ok { Ok(good) } else { Err(verified.said) })
}

/// Presence, length and SHA-256 of every file but the root image.
fn files(manifest: &Manifest, at: &Path, names: &[String], report: &mut InspectReport) {
    for file in &manifest.files {
        let result = match root::sha256_pieces(&at.join(&file.name)) {
            Err(error) => Err(format!("{error:#}")),
            Ok((_, size, _)) if size != file.size => {
                Err(format!("{size} bytes; the manifest says {}", file.size))
            }
            Ok((hash, _, _)) if hash != file.sha256 => {
                Err(format!("{hash}; the manifest says {}", file.sha256))
            }
            Ok((_, _, pieces)) if !file.pieces.is_empty() && pieces != file.pieces => {
                Err("the pieces are not as the manifest says".into())
            }
            Ok((hash, size, _)) => Ok(format!("{size} bytes, {hash}")),
        };
        report.check(&format!("sha256 of {}", file.name), result);
    }
    let signed = |name: &str| {
        [MANIFEST_NAME, SIGNATURE_NAME, "root.erofs"].contains(&name) || manifest.file(name).is_some()
    };
    let unsigned: Vec<&String> = names.iter().filter(|name| !signed(name)).collect();
    report.check(
        "every file is in the manifest",
        if unsigned.is_empty() { Ok("yes".into()) } else { Err(format!("not: {unsigned:?}")) },
    );
}

fn root_image(manifest: &Manifest, at: &Path, report: &mut InspectReport) -> anyhow::Result<()> {
    let (image, verity) = (at.join("root.erofs"), at.join("root.verity"));
    if !image.is_file() || !verity.is_file() {
        report.check("root", Err("root.erofs or root.verity is missing".into()));
        return Ok(());
    }
    let size = image.metadata()?.len();
    report.check(
        "size of root.erofs",
        if size == manifest.root.size {
            Ok(format!("{size} bytes"))
        } else {
            Err(format!("{size} bytes; the manifest says {}", manifest.root.size))
        },
    );
    let root_hash = manifest.root.verity.root_hash.to_string();
    let blocks = Tool::new("veritysetup", "cryptsetup-bin")
        .arg("verify")
        .args([&image, &verity])
        .arg(&root_hash)
        .outcome()?;
    let good = format!("all blocks, root hash {root_hash}");
    report.check("root.erofs (veritysetup verify)", if blocks.ok { Ok(good) } else { Err(blocks.said) });
    let dump = Tool::new("veritysetup", "cryptsetup-bin").arg("dump").arg(&verity).outcome()?;
    report.check(
        "superblock (veritysetup dump)",
        if dump.ok { superblock(manifest, &dump.stdout) } else { Err(dump.said) },
    );
    let (hash, _) = root::sha256(&image)?;
    let (found, expected) = (&manifest.root.verity.uuid, root::uuid(&hash.0));
    report.check(
        "UUID is of root.erofs (sha256)",
        if *found == expected { Ok(expected) } else { Err(format!("{found}; expected {expected}")) },
    );
    let fsck = Tool::new("fsck.erofs", "erofs-utils").arg(&image).outcome()?;
    report.check("file system (fsck.erofs)", if fsck.ok { Ok("clean".into()) } else { Err(fsck.said) });
    Ok(())
}

/// Compares what `veritysetup dump` prints with the manifest.
fn superblock(manifest: &Manifest, dump: &str) -> Result<String, String> {
    let fields: BTreeMap<&str, &str> = dump
        .lines()
        .filter_map(|line| line.split_once(':'))
        // Some versions say the unit: `4096 [bytes]`.
        .map(|(key, value)| (key.trim(), value.split_whitespace().next().unwrap_or_default()))
        .collect();
    let v = &manifest.root.verity;
    let expected = [
        ("UUID", v.uuid.clone()),
        ("Hash type", "1".into()),
        ("Data blocks", (manifest.root.size / u64::from(v.data_block.max(1))).to_string()),
        ("Data block size", v.data_block.to_string()),
        ("Hash block size", v.hash_block.to_string()),
        ("Hash algorithm", v.algorithm.clone()),
        ("Salt", v.salt.clone()),
    ];
    let wrong: Vec<String> = expected
        .iter()
        .filter(|(key, value)| fields.get(key).is_none_or(|found| found != value))
        .map(|(key, value)| format!("{key} is {:?}; the manifest says {value:?}", fields.get(key)))
        .collect();
    if wrong.is_empty() {
        return Ok(format!("{} fields as the manifest says", expected.len()));
    }
    Err(wrong.join("; "))
}
