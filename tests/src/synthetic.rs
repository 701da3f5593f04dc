//! Firmware that no tree stands behind: noise for a root, any bytes for the boot images, really signed.
//!
//! Quick to make and bootable by its manifest, where [`crate::firmware`] needs stock tools and a tree.

use std::collections::BTreeMap;
use std::fs::{self, File as Handle};
use std::path::Path;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use slotd::domain::manifest::{
    BLOCK, Boot, Compatible, File, MANIFEST_NAME, Manifest, PAYLOAD_ORDER, PIECE, Root, SIGNATURE_NAME,
    Sha256Hex, UpgradeFrom, Verity, parse_utc,
};
use slotd::domain::verity::{self, Geometry, Hasher};
use sps_images::{BuildDirs, Pki, root_uuid};

use crate::firmware::judge;
use crate::iso_writer;

const BUILD_DATE: &str = "2026-01-01T00:00:00Z";
/// The frame of an empty zstd stream.
const EMPTY_LIST: [u8; 13] = [0x28, 0xb5, 0x2f, 0xfd, 0x24, 0, 1, 0, 0, 0x99, 0xe9, 0xd8, 0x51];

/// A firmware and the ISO that carries it.
#[derive(Debug)]
pub struct Synthetic {
    /// Its manifest.
    pub manifest: Manifest,
    /// The signature of that manifest.
    pub signature: Vec<u8>,
    /// Its boot image.
    pub boot: Vec<u8>,
    /// Its recovery image.
    pub recovery: Vec<u8>,
    /// The ISO, an anonymous file.
    pub iso: Handle,
    /// Length of the ISO in bytes.
    pub iso_len: u64,
}

/// What a firmware is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Its version.
    pub version: &'a str,
    /// Length of its root in bytes, a multiple of 4096.
    pub root_len: usize,
    /// Length of its boot image in bytes.
    pub boot_len: usize,
    /// Length of its recovery image in bytes.
    pub recovery_len: usize,
    /// Its security epoch.
    pub epoch: u32,
}

impl Synthetic {
    /// A firmware of `version` with a root of `root_len` bytes (a multiple of 4096), signed by `pki`. `work` is an
    /// existing directory for what the signing tool reads and writes.
    pub fn new(version: &str, root_len: usize, pki: &Pki, work: &Path) -> anyhow::Result<Self> {
        // Two pieces, and one; neither is a whole number of blocks.
        let (boot_len, recovery_len) = ((1 << 20) + 12_345, 20_001);
        Self::shaped(&Shape { version, root_len, boot_len, recovery_len, epoch: 1 }, pki, work)
    }

    /// The same, of this shape.
    pub fn shaped(shape: &Shape<'_>, pki: &Pki, work: &Path) -> anyhow::Result<Self> {
        let version = shape.version;
        let root = noise(version, shape.root_len);
        let boot = noise(&format!("boot {version}"), shape.boot_len);
        let recovery = noise(&format!("recovery {version}"), shape.recovery_len);
        let notes = format!("# Version {version}\n").into_bytes();
        let (manifest, tree) = describe(shape, &root, &notes, &boot, &recovery);
        let text = manifest.render();
        Manifest::parse(text.as_bytes()).context("this manifest would be refused")?;
        let (unsigned, signature) = (work.join(MANIFEST_NAME), work.join(SIGNATURE_NAME));
        fs::write(&unsigned, &text)?;
        pki.sign(&unsigned, parse_utc(BUILD_DATE).context("build date")?, &signature)?;
        let signature = fs::read(signature)?;
        let contents: BTreeMap<&str, &[u8]> = BTreeMap::from([
            (MANIFEST_NAME, text.as_bytes()),
            (SIGNATURE_NAME, &signature),
            ("notes.md", &notes),
            ("root.verity", &tree),
            ("boot.efi", &boot),
            ("recovery.efi", &recovery),
            ("files.ndjson.zst", &EMPTY_LIST),
            ("root.erofs", &root),
        ]);
        let files: Vec<(&str, &[u8])> = [MANIFEST_NAME, SIGNATURE_NAME]
            .into_iter()
            .chain(PAYLOAD_ORDER)
            .filter_map(|name| Some((name, *contents.get(name)?)))
            .collect();
        let image = iso_writer::write(&files);
        let path = work.join(format!("{version}.iso"));
        fs::write(&path, &image)?;
        // Noise is no file system, and nothing here says that it is one.
        judge(&path, &pki.keyring_dir(), &BuildDirs::new(work.join("judge"))?, &["file system"])?;
        let iso = Handle::open(&path)?;
        fs::remove_file(&path)?;
        Ok(Self { manifest, signature, boot, recovery, iso, iso_len: image.len() as u64 })
    }

    /// Its root hash, hex.
    pub fn root_hash(&self) -> String {
        self.manifest.root.verity.root_hash.to_string()
    }
}

/// The manifest of these parts, and `root.verity`.
fn describe(
    shape: &Shape<'_>,
    root: &[u8],
    notes: &[u8],
    boot: &[u8],
    recovery: &[u8],
) -> (Manifest, Vec<u8>) {
    let verity = Verity {
        algorithm: "sha256".into(),
        data_block: 4096,
        hash_block: 4096,
        root_hash: Sha256Hex([0; 32]),
        salt: hex::encode(Sha256::digest("salt")),
        uuid: root_uuid(&sha256(root).0),
    };
    let mut manifest = Manifest {
        boot: Boot::Uki,
        boot_version: shape.version.into(),
        build_date: BUILD_DATE.into(),
        compatible: Compatible { hardware: vec!["*".into()], product: "sps".into() },
        config_schema: 1,
        files: Vec::new(),
        meta: BTreeMap::new(),
        required_space: 0,
        revoked_below: 0,
        root: Root { size: root.len() as u64, verity },
        schema: 1,
        security_epoch: shape.epoch,
        state_schema: 1,
        upgrade_from: vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }],
        version: shape.version.into(),
    };
    let (tree, root_hash) = hash_tree(&manifest, root);
    manifest.root.verity.root_hash = root_hash;
    manifest.files = vec![
        file("notes.md", notes),
        file("root.verity", &tree),
        file("boot.efi", boot),
        file("recovery.efi", recovery),
        file("files.ndjson.zst", &EMPTY_LIST),
    ];
    (manifest, tree)
}

fn file(name: &str, content: &[u8]) -> File {
    let pieces = if name == "root.verity" || content.len() as u64 <= PIECE {
        Vec::new()
    } else {
        content.chunks(1 << 20).map(sha256).collect()
    };
    File { name: name.into(), pieces, sha256: sha256(content), size: content.len() as u64 }
}

fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex(Sha256::digest(bytes).into())
}

/// `root.verity` of `root` and its root hash.
fn hash_tree(manifest: &Manifest, root: &[u8]) -> (Vec<u8>, Sha256Hex) {
    let hasher = Hasher::new(&manifest.salt().unwrap_or_default());
    let levels = Geometry::new(root.len() as u64 / BLOCK).levels.len();
    let digests = |data: &[u8]| data.chunks(4096).flat_map(|block| hasher.hash(block)).collect::<Vec<u8>>();
    let (mut below, mut made) = (digests(root), Vec::new());
    for _ in 0..levels {
        below.resize(below.len().next_multiple_of(4096), 0);
        let above = digests(&below);
        made.push(below);
        below = above;
    }
    let mut tree = verity::superblock(manifest).to_vec();
    tree.extend(made.into_iter().rev().flatten());
    (tree, Sha256Hex(below.try_into().unwrap_or_default()))
}

/// `len` bytes that differ from block to block and from one `seed` to the next.
fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 32);
    let mut block: [u8; 32] = Sha256::digest(seed).into();
    while bytes.len() < len {
        block = Sha256::digest(block).into();
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(len);
    bytes
}
