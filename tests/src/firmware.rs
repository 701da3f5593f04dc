//! Small firmware ISOs to test with, made by the real builder with stock tools.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use slotd::domain::manifest::UpgradeFrom;
use sps_images::{BuildDirs, Built, FirmwareSpec, Pki, Source, build_firmware};

/// A build directory of one test program, with a PKI and a tree.
#[derive(Debug)]
pub struct Workshop {
    dirs: BuildDirs,
    /// The appliance's trusted keys.
    pub pki: Pki,
    root: PathBuf,
}

impl Workshop {
    /// A workshop in `directory`.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let dirs = BuildDirs::new(directory)?;
        let pki = Pki::open_or_create(dirs.pki(), "test")?;
        Ok(Self { dirs, pki, root: directory.to_owned() })
    }

    /// The keyring directory of an appliance that trusts this workshop.
    pub fn keyring(&self) -> PathBuf {
        self.pki.keyring_dir()
    }

    /// What [`Workshop::build`] starts from: version and `random_mib` MiB that no compression shrinks.
    pub fn spec(&self, version: &str, random_mib: usize) -> anyhow::Result<FirmwareSpec> {
        let tree = self.root.join(format!("tree-{version}-{random_mib}"));
        if !tree.exists() {
            make_tree(&tree, version, random_mib)?;
        }
        let mut spec = FirmwareSpec::new(version, Source::Tree(tree));
        spec.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }];
        Ok(spec)
    }

    /// Builds the ISO of `spec` as `name`.
    pub fn build(&self, spec: &FirmwareSpec, name: &str) -> anyhow::Result<Built> {
        build_firmware(spec, &self.dirs, &self.pki, Some(&self.root.join(name)))
    }

    /// Builds it with keys that no appliance of this workshop trusts.
    pub fn build_foreign(&self, spec: &FirmwareSpec, name: &str) -> anyhow::Result<Built> {
        let foreign = Pki::open_or_create(self.root.join("foreign-pki"), "foreign")?;
        build_firmware(spec, &self.dirs, &foreign, Some(&self.root.join(name)))
    }
}

/// A small tree: some text, a directory, a link, and `random_mib` MiB of a fixed pseudo-random stream.
fn make_tree(tree: &Path, version: &str, random_mib: usize) -> anyhow::Result<()> {
    for directory in ["etc", "usr/bin", "usr/lib/sps", "var"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::write(tree.join("usr/lib/sps/version"), format!("{version}\n"))?;
    fs::write(tree.join("etc/motd"), "A firmware to test with.\n".repeat(400))?;
    std::os::unix::fs::symlink("motd", tree.join("etc/issue"))?;
    let mut seed =
        version.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |seed, b| seed.rotate_left(9) ^ u64::from(b));
    let mut noise = Vec::with_capacity(random_mib << 20);
    while noise.len() < random_mib << 20 {
        // xorshift64: all that is asked of it is not to compress.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.extend_from_slice(&seed.to_le_bytes());
    }
    fs::write(tree.join("usr/bin/noise"), noise).context("the test tree cannot be written")
}
