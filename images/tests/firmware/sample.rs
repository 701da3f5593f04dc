//! Trees, build directories and ISOs to test with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sps_images::{BuildDirs, Built, FirmwareSpec, Pki, Source, build_firmware};
use tempfile::TempDir;

/// The build directory of these tests. It is kept, and so is its PKI: keys take their time.
pub(crate) fn dirs() -> BuildDirs {
    BuildDirs::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")).unwrap()
}

/// The signer of these tests.
pub(crate) fn pki() -> Pki {
    Pki::open_or_create(dirs().pki(), "SPS test").unwrap()
}

/// A directory that goes away again.
pub(crate) fn scratch() -> TempDir {
    TempDir::new_in(dirs().base()).unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

/// A small tree of many kinds; `names` in the order in which its files are made.
pub(crate) fn tree(at: &Path, names: &[&str]) {
    fs::create_dir_all(at.join("usr/lib")).unwrap();
    for (index, name) in names.iter().enumerate() {
        let seed = name.bytes().map(u64::from).sum();
        fs::write(at.join("usr/lib").join(name), noise(seed, 50_000)).unwrap();
        assert!(index < 100);
    }
    fs::write(at.join("usr/text"), "the same line again\n".repeat(5000)).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    fs::hard_link(at.join("usr/text"), at.join("linked")).unwrap();
    symlink("usr/lib", at.join("lib")).unwrap();
    fs::create_dir(at.join("var")).unwrap();
}

/// The specification that these tests build from the tree at `at`.
pub(crate) fn spec(at: &Path) -> FirmwareSpec {
    let mut spec = FirmwareSpec::new("8.0.1", Source::Tree(at.to_path_buf()));
    spec.news = Some("# News\n".into());
    spec
}

/// An ISO of the usual tree, in `scratch`.
pub(crate) fn iso(scratch: &Path) -> Built {
    let at = scratch.join("tree");
    tree(&at, &["a", "b", "c"]);
    build(&spec(&at), &scratch.join("firmware.iso"))
}

/// Builds.
pub(crate) fn build(spec: &FirmwareSpec, out: &Path) -> Built {
    build_firmware(spec, &dirs(), &pki(), Some(out)).unwrap()
}

/// A copy of `iso` in which the byte at `offset` is another.
pub(crate) fn flipped(iso: &Path, offset: usize) -> PathBuf {
    let mut bytes = fs::read(iso).unwrap();
    bytes[offset] ^= 0x20;
    let copy = iso.with_extension(format!("{offset}.iso"));
    fs::write(&copy, bytes).unwrap();
    copy
}
