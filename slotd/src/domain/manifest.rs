//! The firmware manifest: what is signed, directly or by hash (`docs/formats.md`, "Manifest").
//!
//! Canonical JSON: UTF-8, keys sorted by byte, no white space outside strings, nothing after the closing
//! brace, shortest escapes. [`Manifest::parse`] refuses every other spelling, so one manifest has one hash.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST: u64 = 1 << 20;
/// Block size of data and hash blocks, in bytes. The only one this product uses.
pub const BLOCK: u64 = 4096;
/// Length of a piece of a file whose pieces are listed, in bytes.
pub const PIECE: u64 = 1 << 20;
/// Largest root image in bytes. Keeps what must be held of a hash tree (all levels above the lowest) under 4.1 MiB.
pub const MAX_ROOT: u64 = 64 << 30;
/// File names of a firmware ISO, in the order in which they must arrive. The root image itself comes last.
pub const PAYLOAD_ORDER: [&str; 7] =
    ["notes.md", "news.md", "root.verity", "boot.efi", "recovery.efi", "files.ndjson.zst", "root.erofs"];
/// Name of the manifest itself.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Name of its signature.
pub const SIGNATURE_NAME: &str = "manifest.p7s";

/// Everything that is signed. Integers are bytes unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whether the image can boot.
    pub boot: Boot,
    /// Version of the boot firmware (kernel and initrd); its own line in the boot report (spec A13, B9).
    pub boot_version: String,
    /// RFC 3339, UTC, seconds: `2026-11-22T00:00:00Z`. Floor of the clock when this firmware runs.
    pub build_date: String,
    /// What this firmware is for.
    pub compatible: Compatible,
    /// Version of the configuration schema it speaks.
    pub config_schema: u32,
    /// Every file of the ISO but the manifest, its signature and the root image, which `root` describes.
    pub files: Vec<File>,
    /// Free text for people; no program decides by it.
    pub meta: BTreeMap<String, String>,
    /// Space it needs on `sps-data` while it migrates.
    pub required_space: u64,
    /// Slots with a lower security epoch than this may not be gone back to once this firmware runs.
    pub revoked_below: u32,
    /// The root file system.
    pub root: Root,
    /// Version of this format: 1.
    pub schema: u32,
    /// Rises with each fix that must not be rolled back.
    pub security_epoch: u32,
    /// Version of the slot state it writes.
    pub state_schema: u32,
    /// From which running versions it may be installed.
    pub upgrade_from: Vec<UpgradeFrom>,
    /// Version of the (core) firmware: dotted numbers, optionally `-suffix`.
    pub version: String,
}

/// How the image boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// By the unified kernel image `boot.efi`.
    Uki,
    /// Not at all: for simulators.
    None,
}

/// Product and hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compatible {
    /// Hardware models; `*` stands for all.
    pub hardware: Vec<String>,
    /// Product name.
    pub product: String,
}

/// A file of the ISO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// One of [`PAYLOAD_ORDER`], never a path.
    pub name: String,
    /// SHA-256 of each [`PIECE`], so that no byte has to be written before it was checked. Present exactly when
    /// the file is longer than one piece; never for `root.verity`, whose blocks prove themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Sha256Hex>,
    /// SHA-256 of the whole file, hex.
    pub sha256: Sha256Hex,
    /// Length.
    pub size: u64,
}

/// The root file system and its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Length of `root.erofs`; a multiple of [`BLOCK`].
    pub size: u64,
    /// dm-verity parameters.
    pub verity: Verity,
}

/// dm-verity parameters, all that the superblock says and the root hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// `sha256`.
    pub algorithm: String,
    /// 4096.
    pub data_block: u32,
    /// 4096.
    pub hash_block: u32,
    /// Root hash.
    pub root_hash: Sha256Hex,
    /// Salt, hex, at most 256 bytes. Constant per product.
    pub salt: String,
    /// UUID of the superblock, in the usual form.
    pub uuid: String,
}

/// One rule of the release policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeFrom {
    /// Release line of the running firmware: `7.0`.
    pub from: String,
    /// Lowest version within that line: `7.0.5`.
    pub min: String,
}

/// A SHA-256 in lower-case hex.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hex(pub [u8; 32]);

impl TryFrom<String> for Sha256Hex {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut out = [0; 32];
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match hex::decode_to_slice(&text, &mut out) {
            Ok(()) if lower => Ok(Self(out)),
            _ => Err("a SHA-256 is 64 lower-case hexadecimal digits".into()),
        }
    }
}

impl From<Sha256Hex> for String {
    fn from(hash: Sha256Hex) -> String {
        hash.to_string()
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST`].
    #[error("manifest.json has {0} bytes; the limit is {MAX_MANIFEST}")]
    TooLong(u64),
    /// Not JSON of this schema.
    #[error("manifest.json is not a manifest of schema 1 (line {line}, column {column})")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Valid JSON, but not in its canonical spelling.
    #[error("manifest.json is not canonical: first difference at byte {0}")]
    NotCanonical(usize),
    /// A field whose value is out of its range.
    #[error("manifest.json: {field} is {found}; expected {expected}")]
    Field {
        /// Path of the field.
        field: String,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
}

impl Manifest {
    /// The manifest in `bytes`. Call it only with bytes whose signature has been verified (`signature.md`, 12).
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::TooLong(bytes.len() as u64));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            line: source.line(),
            column: source.column(),
            source,
        })?;
        let canonical = manifest.render();
        if canonical.as_bytes() != bytes {
            let same = canonical.bytes().zip(bytes).take_while(|(a, b)| a == *b).count();
            return Err(ManifestError::NotCanonical(same));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical bytes. Field order in this file is alphabetical, which is the canonical order.
    pub fn render(&self) -> String {
        // Serialising strings, integers, maps with string keys and enums of unit variants cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The entry of a payload file.
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|f| f.name == name)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |field: &str, found: &dyn fmt::Display, expected: &str| {
            Err(ManifestError::Field {
                field: field.into(),
                found: found.to_string(),
                expected: expected.into(),
            })
        };
        if self.schema != 1 {
            return refuse("schema", &self.schema, "1");
        }
        for (field, version) in [("version", &self.version), ("boot_version", &self.boot_version)] {
            if Version::parse(version).is_none() {
                return refuse(
                    field,
                    version,
                    "dotted numbers such as 8.0.1, optionally with -suffix, at most 64 characters",
                );
            }
        }
        if parse_utc(&self.build_date).is_none() {
            return refuse("build_date", &self.build_date, "a UTC time such as 2026-11-22T00:00:00Z");
        }
        if self.compatible.product.is_empty() || self.compatible.hardware.is_empty() {
            return refuse("compatible", &"empty", "a product and at least one hardware model");
        }
        if self.compatible.hardware.len() > 256 || self.upgrade_from.len() > 256 || self.meta.len() > 256 {
            return refuse(
                "compatible.hardware, upgrade_from, meta",
                &"a longer list",
                "at most 256 entries",
            );
        }
        for rule in &self.upgrade_from {
            let (from, min) = (Version::parse(&rule.from), Version::parse(&rule.min));
            if from.is_none() || min.is_none() {
                return refuse("upgrade_from", &format!("{}, {}", rule.from, rule.min), "two versions");
            }
        }
        self.check_files()?;
        self.check_root()
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        let refuse = |found: String, expected: &str| {
            Err(ManifestError::Field { field: "files".into(), found, expected: expected.into() })
        };
        let mut seen = BTreeSet::new();
        for file in &self.files {
            if !PAYLOAD_ORDER.contains(&file.name.as_str()) || file.name == "root.erofs" {
                return refuse(
                    format!("{:?}", file.name),
                    "a payload name of the format; root.erofs is described by root",
                );
            }
            let pieces =
                if file.size > PIECE && file.name != "root.verity" { file.size.div_ceil(PIECE) } else { 0 };
            if file.pieces.len() as u64 != pieces {
                return refuse(
                    format!("{} with {} pieces", file.name, file.pieces.len()),
                    &format!("{pieces} pieces of 1 MiB"),
                );
            }
            if !seen.insert(file.name.as_str()) {
                return refuse(format!("{} twice", file.name), "each file once");
            }
        }
        for name in ["notes.md", "root.verity", "files.ndjson.zst"] {
            if !seen.contains(name) {
                return refuse(format!("no {name}"), "notes.md, root.verity and files.ndjson.zst");
            }
        }
        if self.boot == Boot::Uki && !(seen.contains("boot.efi") && seen.contains("recovery.efi")) {
            return refuse("boot uki without boot.efi or recovery.efi".into(), "both boot images");
        }
        for (name, limit) in [("notes.md", 1 << 20), ("news.md", 1 << 20), ("files.ndjson.zst", 256 << 20)] {
            if let Some(file) = self.file(name).filter(|f| f.size > limit) {
                return refuse(format!("{name} of {} bytes", file.size), &format!("at most {limit} bytes"));
            }
        }
        for name in ["boot.efi", "recovery.efi"] {
            if let Some(file) = self.file(name).filter(|f| f.size == 0 || f.size > 512 << 20) {
                return refuse(format!("{name} of {} bytes", file.size), "1 byte to 512 MiB");
            }
        }
        Ok(())
    }

    fn check_root(&self) -> Result<(), ManifestError> {
        let refuse = |field: &str, found: &dyn fmt::Display, expected: &str| {
            Err(ManifestError::Field {
                field: field.into(),
                found: found.to_string(),
                expected: expected.into(),
            })
        };
        let verity = &self.root.verity;
        if self.root.size == 0 || !self.root.size.is_multiple_of(BLOCK) || self.root.size > MAX_ROOT {
            return refuse("root.size", &self.root.size, "a multiple of 4096, at most 64 GiB");
        }
        if verity.algorithm != "sha256" {
            return refuse("root.verity.algorithm", &verity.algorithm, "sha256");
        }
        if u64::from(verity.data_block) != BLOCK || u64::from(verity.hash_block) != BLOCK {
            return refuse(
                "root.verity.data_block, hash_block",
                &format!("{}, {}", verity.data_block, verity.hash_block),
                "4096",
            );
        }
        if self.salt().is_none() {
            return refuse("root.verity.salt", &verity.salt, "lower-case hexadecimal, at most 256 bytes");
        }
        if self.uuid().is_none() {
            return refuse(
                "root.verity.uuid",
                &verity.uuid,
                "a lower-case UUID such as 01234567-89ab-cdef-0123-456789abcdef",
            );
        }
        Ok(())
    }

    /// The salt's bytes.
    pub fn salt(&self) -> Option<Vec<u8>> {
        let text = &self.root.verity.salt;
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex::decode(text).ok().filter(|salt| lower && salt.len() <= 256)
    }

    /// The UUID's bytes, in the order in which the superblock holds them.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        let text = self.root.verity.uuid.as_bytes();
        let dashes = [8, 13, 18, 23];
        let shape = text.len() == 36
            && text.iter().enumerate().all(|(i, b)| {
                if dashes.contains(&i) { *b == b'-' } else { matches!(b, b'0'..=b'9' | b'a'..=b'f') }
            });
        let digits: Vec<u8> = text.iter().copied().filter(|b| *b != b'-').collect();
        let mut out = [0; 16];
        (shape && hex::decode_to_slice(digits, &mut out).is_ok()).then_some(out)
    }
}

/// Seconds since the epoch of an RFC 3339 time in UTC with whole seconds, as [`Manifest::build_date`] holds.
pub fn parse_utc(text: &str) -> Option<u64> {
    let shape = text.len() == 20 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T');
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_second()).ok().filter(|_| shape)
}

/// A firmware version: up to five dotted numbers and an optional `-suffix`. A suffix orders before none
/// (`8.0.0-rc1` < `8.0.0`), missing numbers are 0, two suffixes order by bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u32; 5],
    suffix: Option<String>,
}

impl Version {
    /// The version in `text`, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 64 {
            return None;
        }
        let (dotted, suffix) = text.split_once('-').map_or((text, None), |(d, s)| (d, Some(s)));
        if suffix.is_some_and(|s| {
            s.is_empty() || !s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+~".contains(&b))
        }) {
            return None;
        }
        let mut numbers = [0; 5];
        for (i, part) in dotted.split('.').enumerate() {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            *numbers.get_mut(i)? = part.parse().ok()?;
        }
        Some(Self { numbers, suffix: suffix.map(str::to_owned) })
    }

    /// Whether this version is of the release line `from`, which names its first one or two numbers.
    pub fn is_of_line(&self, from: &str) -> bool {
        let depth = from.split('.').count().min(5);
        Self::parse(from).is_some_and(|line| line.numbers[..depth] == self.numbers[..depth])
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (&self.suffix, &other.suffix) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => a.cmp(b),
        })
    }
}
