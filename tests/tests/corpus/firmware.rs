//! The good firmware in its parts, so that each can be made bad, signed again and put on an ISO.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use slotd::domain::iso::{Head, Index, parse_head};
use slotd::domain::layout::{Extent, Layout, Part};
use slotd::domain::manifest::{MANIFEST_NAME, Manifest, SIGNATURE_NAME};
use sps_images::Pki;
use system_tests::iso_writer;
use system_tests::synthetic::{Shape, Synthetic};

/// Size of a slot in bytes.
pub(crate) const SLOT: usize = 8 << 20;
/// When everything is signed: the start of June 2026.
pub(crate) const NOW: u64 = 1_780_272_000;

/// What every case of this program begins with.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    pki: Pki,
    /// What slot 1 runs: 8.0.1.
    pub(crate) running: Firmware,
    /// What comes: 8.0.2; its tree has two levels, its boot image two pieces.
    pub(crate) good: Firmware,
    /// The ISO of that.
    pub(crate) iso: Vec<u8>,
    /// Another of the same shape: 8.0.3.
    pub(crate) other: Firmware,
}

/// Made once.
pub(crate) fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_create(directory.path().join("pki"), "corpus").unwrap();
        let make = |version| Firmware::make(version, 640 << 10, &pki, &directory);
        let (running, good, other) = (make("8.0.1"), make("8.0.2"), make("8.0.3"));
        Stage { running, iso: good.iso(), good, other, pki, directory }
    })
}

impl Stage {
    /// Another firmware, with a root of this many bytes.
    pub(crate) fn firmware(&self, version: &str, root_len: usize) -> Firmware {
        Firmware::make(version, root_len, &self.pki, &self.directory)
    }

    /// Where the appliance's roots and CRLs lie.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The signature of a manifest.
    pub(crate) fn sign(&self, manifest: &[u8]) -> Vec<u8> {
        sign(&self.pki, manifest)
    }

    /// A path that nobody else uses.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The signature of a manifest by another PKI.
pub(crate) fn sign(pki: &Pki, manifest: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (text, signature) = (directory.path().join("text"), directory.path().join("p7s"));
    fs::write(&text, manifest).unwrap();
    pki.sign(&text, NOW, &signature).unwrap();
    fs::read(signature).unwrap()
}

/// Files of an ISO in their order, and the manifest that was signed.
#[derive(Clone)]
pub(crate) struct Firmware {
    pub(crate) manifest: Manifest,
    pub(crate) files: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Firmware {
    fn make(version: &str, root_len: usize, pki: &Pki, work: &tempfile::TempDir) -> Self {
        let shape = Shape { version, root_len, boot_len: (1 << 20) + 12_345, recovery_len: 20_001, epoch: 3 };
        let made = Synthetic::shaped(&shape, pki, work.path()).unwrap();
        let mut image = Vec::new();
        std::io::Read::read_to_end(&mut &made.iso, &mut image).unwrap();
        let files = index(&image)
            .parts
            .into_iter()
            .map(|(part, extent)| (part.name().as_bytes().to_vec(), slice(&image, extent).to_vec()));
        Self { manifest: made.manifest, files: files.collect() }
    }

    /// The bytes of a file.
    pub(crate) fn file(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(n, _)| n == name.as_bytes()).unwrap().1
    }

    /// The same with other bytes in a file, of which the manifest knows nothing.
    pub(crate) fn with_file(&self, name: &str, bytes: Vec<u8>) -> Self {
        let mut new = self.clone();
        new.files.iter_mut().find(|(n, _)| n == name.as_bytes()).unwrap().1 = bytes;
        new
    }

    /// The same with another name of a file on the ISO.
    pub(crate) fn renamed(&self, name: &str, to: &[u8]) -> Self {
        let mut new = self.clone();
        new.files.iter_mut().find(|(n, _)| n == name.as_bytes()).unwrap().0 = to.to_vec();
        new
    }

    /// The same with these bytes for a manifest, rightly signed.
    pub(crate) fn with_text(&self, text: &[u8]) -> Self {
        self.with_file(MANIFEST_NAME, text.to_vec()).with_file(SIGNATURE_NAME, stage().sign(text))
    }

    /// The same with a manifest after `change`, rightly signed.
    pub(crate) fn with_manifest(&self, change: impl FnOnce(&mut Manifest)) -> Self {
        let mut manifest = self.manifest.clone();
        change(&mut manifest);
        Self { manifest: manifest.clone(), ..self.with_text(manifest.render().as_bytes()) }
    }

    /// Its ISO.
    pub(crate) fn iso(&self) -> Vec<u8> {
        iso_writer::write_named(&self.files)
    }

    /// What a slot holds once it is installed, trailer excepted: zeros where nothing of it lies.
    pub(crate) fn slot(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut bytes = vec![0; SLOT];
        for (part, place) in layout.parts() {
            let content = self.file(part.name());
            bytes[usize::try_from(place.offset).unwrap()..][..content.len()].copy_from_slice(content);
        }
        bytes
    }

    /// Where it lies in a slot.
    pub(crate) fn layout(&self) -> Layout {
        let len = |name| self.file(name).len() as u64;
        Layout::of(&self.manifest, len(MANIFEST_NAME), len(SIGNATURE_NAME))
    }

    /// Lengths of its files by name.
    pub(crate) fn sizes(&self) -> BTreeMap<String, usize> {
        self.files.iter().map(|(n, b)| (String::from_utf8_lossy(n).into_owned(), b.len())).collect()
    }
}

/// Where the files of an image lie.
pub(crate) fn index(image: &[u8]) -> Index {
    match parse_head(image, Some(image.len() as u64)).unwrap() {
        Head::Complete(index) => index,
        Head::Needs(n) => panic!("{n} bytes are needed"),
    }
}

/// Where one of them lies.
pub(crate) fn place(image: &[u8], part: Part) -> Extent {
    index(image).get(part).unwrap()
}

pub(crate) fn slice(image: &[u8], extent: Extent) -> &[u8] {
    &image[usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap()]
}

/// The good image with other bytes at these places.
pub(crate) fn edited(edits: Vec<(usize, Vec<u8>)>) -> impl Fn() -> Vec<u8> + Send + Sync {
    move || {
        let mut image = stage().iso.clone();
        for (at, bytes) in &edits {
            image[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        image
    }
}

/// The good image with the lowest bit of a byte flipped.
pub(crate) fn flipped(at: usize, mask: u8) -> impl Fn() -> Vec<u8> + Send + Sync {
    edited(vec![(at, vec![stage().iso[at] ^ mask])])
}

/// A number in both byte orders.
pub(crate) fn both32(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// Where the record of a file begins in the good image.
pub(crate) fn record_at(name: &str) -> usize {
    let start = iso_writer::DIRECTORY as usize * iso_writer::SECTOR;
    let mut at = start;
    loop {
        let record = &stage().iso[at..];
        assert_ne!(record[0], 0, "{name}");
        if &record[33..33 + usize::from(record[32])] == name.as_bytes() {
            return at;
        }
        at += usize::from(record[0]);
    }
}

/// Where a file begins in the good image, and where it ends.
pub(crate) fn span(part: Part) -> (usize, usize) {
    let extent = place(&stage().iso, part);
    (usize::try_from(extent.offset).unwrap(), usize::try_from(extent.end()).unwrap())
}
