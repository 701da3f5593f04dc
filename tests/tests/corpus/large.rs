//! Images around 2 GiB and 4 GiB, mostly holes. What is larger than the slot is refused for that, with its exact length:
//! so every length has passed through directory, manifest, tree and layout.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use slotd::domain::iso::{Head, MAX_HEAD, parse_head};
use slotd::domain::layout::{Layout, Part};
use slotd::domain::manifest::{MANIFEST_NAME, Manifest, PAYLOAD_ORDER, SIGNATURE_NAME, Sha256Hex};
use slotd::domain::verity::{Geometry, Hasher, superblock};
use slotd::store::InstallRequest;
use sps_base::error::ErrorKind;
use system_tests::iso_writer::{self, DIRECTORY, SECTOR};

use crate::firmware::{SLOT, both32, stage};
use crate::iso::{Entry, listing};
use crate::judge::{Bench, Case, install};

/// The longest extent that is whole sectors.
const EXTENT: u64 = (1 << 32) - 2048;

/// What a firmware with a root of so many zeros has: manifest, its signature, superblock and upper levels of the tree.
struct Zeros {
    manifest: Vec<u8>,
    signature: Vec<u8>,
    tree_head: Vec<u8>,
    tree_len: u64,
    needed: u64,
}

impl Zeros {
    /// `size` is a multiple of 4096; `signed` is what the manifest says.
    fn new(size: u64, signed: u64) -> Self {
        let mut manifest = stage().good.manifest.clone();
        manifest.root.size = size;
        let geometry = Geometry::new(size / 4096);
        let tree_len = geometry.file_blocks * 4096;
        manifest.files.iter_mut().find(|file| file.name == "root.verity").unwrap().size = tree_len;
        let (upper, root) = zero_tree(&manifest, &geometry);
        manifest.root.verity.root_hash = Sha256Hex(root);
        let tree_head = [&superblock(&manifest)[..], &upper].concat();
        manifest.root.size = signed;
        let text = manifest.render().into_bytes();
        let signature = stage().sign(&text);
        let needed = Layout::of(&manifest, text.len() as u64, signature.len() as u64).needed();
        Self { manifest: text, signature, tree_head, tree_len, needed }
    }

    /// Its ISO, with a root of `on_iso` bytes in as many extents as that needs, `short` bytes too short.
    fn iso(&self, on_iso: u64, short: u64) -> File {
        let descriptor = nix::sys::memfd::memfd_create(c"zeros", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let file = File::from(descriptor.unwrap());
        let good = &stage().good;
        let contents: Vec<(&str, &[u8], u64)> = [MANIFEST_NAME, SIGNATURE_NAME]
            .into_iter()
            .chain(PAYLOAD_ORDER)
            .filter(|name| *name != "news.md")
            .map(|name| match name {
                MANIFEST_NAME => (name, &self.manifest[..], self.manifest.len() as u64),
                SIGNATURE_NAME => (name, &self.signature[..], self.signature.len() as u64),
                "root.verity" => (name, &self.tree_head[..], self.tree_len),
                "root.erofs" => (name, &[][..], on_iso),
                _ => (name, good.file(name), good.file(name).len() as u64),
            })
            .collect();
        let (mut entries, mut at) = (Vec::new(), u64::from(iso_writer::FIRST_FILE) * 2048);
        for (name, bytes, size) in contents {
            file.write_all_at(bytes, at).unwrap();
            let mut from = 0;
            loop {
                let piece = (size - from).min(EXTENT);
                let more = from + piece < size;
                let sector = u32::try_from((at + from) / 2048).unwrap();
                let size = u32::try_from(piece).unwrap();
                entries.push(Entry { name: name.into(), sector, size, flags: if more { 0x80 } else { 0 } });
                from += piece;
                if !more {
                    break;
                }
            }
            at = (at + size).next_multiple_of(2048);
        }
        let mut head = stage().iso[..iso_writer::FIRST_FILE as usize * SECTOR].to_vec();
        head[16 * SECTOR + 80..][..8].copy_from_slice(&both32(u32::try_from(at / 2048).unwrap()));
        head[DIRECTORY as usize * SECTOR..][..SECTOR].copy_from_slice(&listing(&entries));
        file.write_all_at(&head, 0).unwrap();
        file.set_len(at - short).unwrap();
        file
    }
}

/// The levels above the lowest of the tree over zeros, top first, and the root hash.
fn zero_tree(manifest: &Manifest, geometry: &Geometry) -> (Vec<u8>, [u8; 32]) {
    let hasher = Hasher::new(&manifest.salt().unwrap());
    let leaf = hasher.hash(&[0; 4096]);
    let leaves = usize::try_from(geometry.data_blocks).unwrap();
    let block = |digests: usize| {
        let mut bytes = leaf.repeat(digests);
        bytes.resize(4096, 0);
        hasher.hash(&bytes)
    };
    let mut below = vec![block(128); leaves / 128];
    if leaves % 128 > 0 {
        below.push(block(leaves % 128));
    }
    let mut upper = Vec::new();
    while below.len() > 1 {
        let mut level = below.concat();
        level.resize(level.len().next_multiple_of(4096), 0);
        below = level.chunks(4096).map(|block| hasher.hash(block)).collect();
        upper.push(level);
    }
    (upper.into_iter().rev().flatten().collect(), below[0])
}

/// Refused before the first write.
fn refused(
    name: String,
    kind: ErrorKind,
    text: impl Fn(&Zeros) -> String + Send + Sync + 'static,
    size: u64,
    signed: u64,
    on_iso: u64,
    short: u64,
) -> Case {
    Case::course(name.clone(), move || {
        let bench = Bench::new();
        let zeros = Zeros::new(size, signed);
        let (before, text) = (bench.recorder.log().len(), text(&zeros));
        let failure =
            install(&bench.store, zeros.iso(on_iso, short).into(), &InstallRequest::default()).unwrap_err();
        assert!(failure.kind == kind && failure.message.contains(&text), "{name}: {failure:?}, not {text:?}");
        assert_eq!(bench.recorder.log().len(), before, "{name}: something was written");
        format!("refused    {}: {}", failure.kind, failure.message)
    })
}

fn around(edge: u64, shown: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [edge - 4096, edge, edge + 4096] {
        let text = |zeros: &Zeros| format!("this firmware needs {} bytes, slot 2 has {SLOT}", zeros.needed);
        cases.push(refused(format!("root of {size} bytes"), ErrorKind::NoSpace, text, size, size, size, 0));
    }
    for (size, word) in [(edge - 1, "- 1"), (edge + 1, "+ 1")] {
        let text =
            move |_: &Zeros| format!("root.erofs has {size} bytes on the ISO, the manifest says {edge}");
        let name = format!("{shown} {word} on the ISO, {shown} signed");
        cases.push(refused(name, ErrorKind::MediaCorrupt, text, edge, edge, size, 0));
        let text =
            move |_: &Zeros| format!("root.size is {size}; expected a multiple of 4096, at most 64 GiB");
        cases.push(refused(
            format!("{shown} {word} signed and on the ISO"),
            ErrorKind::MediaCorrupt,
            text,
            edge,
            size,
            size,
            0,
        ));
    }
    let text = |_: &Zeros| "truncated: root.erofs ends at byte".to_owned();
    cases.push(refused(
        format!("{shown}, a byte is missing at the end"),
        ErrorKind::MediaCorrupt,
        text,
        edge,
        edge,
        edge,
        1,
    ));
    cases
}

pub(crate) fn two_gib() -> Vec<Case> {
    around(1 << 31, "2 GiB")
}

pub(crate) fn four_gib() -> Vec<Case> {
    let mut cases = around(1 << 32, "4 GiB");
    for size in [(1 << 32) - 2048, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, (1 << 32) + 4096] {
        cases.push(Case::course(format!("xorriso's ISO with a root of {size} bytes"), move || {
            by_xorriso(size)
        }));
    }
    cases
}

/// What xorriso writes of a sparse file is read as far as its first bytes; the rest, zeros by the gigabyte, is not.
fn by_xorriso(size: u64) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut tool = Command::new("xorriso");
    // Standard output is its target only when nothing stands before this.
    tool.args(["-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-U"]);
    for (number, name) in (0..).zip([MANIFEST_NAME, SIGNATURE_NAME].into_iter().chain(PAYLOAD_ORDER)) {
        fs::write(directory.path().join(name), format!("this is {name}")).unwrap();
        tool.args(["--sort-weight", &format!("{}", 1000 - number), &format!("/FIRMWARE/{name}")]);
    }
    let root = File::options().write(true).open(directory.path().join("root.erofs")).unwrap();
    root.set_len(size).unwrap();
    tool.arg("-graft-points").arg(format!("/FIRMWARE={}", directory.path().display()));
    let mut child = tool.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut image = Vec::new();
    let mut read = |image: &mut Vec<u8>, len: u64| {
        let have = image.len();
        image.resize(usize::try_from(len).unwrap().max(have), 0);
        stdout.read_exact(&mut image[have..]).unwrap();
    };
    let index = loop {
        match parse_head(&image, None).unwrap() {
            Head::Complete(index) => break index,
            Head::Needs(len) => {
                assert!(len <= MAX_HEAD);
                read(&mut image, len);
            }
        }
    };
    let place = index.get(Part::Root).unwrap();
    assert_eq!((place.size, place.end() <= index.volume), (size, true));
    read(&mut image, place.offset + 2048);
    // It writes on for as long as somebody reads.
    child.kill().unwrap();
    child.wait().unwrap();
    for (part, extent) in &index.parts {
        let text = format!("this is {}", part.name());
        let at = usize::try_from(extent.offset).unwrap();
        assert_eq!(&image[at..at + text.len()], text.as_bytes());
    }
    format!("read       {} extents, root.erofs at byte {}", size.div_ceil(EXTENT), place.offset)
}
