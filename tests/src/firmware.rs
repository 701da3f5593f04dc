//! Small firmware ISOs to test with, made by the real builder with stock tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, ensure};
use sha2::{Digest, Sha256};
use slotd::domain::layout::padded;
use slotd::domain::manifest::{
    Boot, File, MANIFEST_NAME, PAYLOAD_ORDER, PIECE, SIGNATURE_NAME, Sha256Hex, UpgradeFrom,
};
use sps_images::inspect::inspect;
use sps_images::{BuildDirs, Built, FirmwareSpec, Pki, Source, build_firmware};

use crate::bus::profile_directory;
use crate::loader::image;

/// What every boot image tells its initrd.
const INITRD: &str = "rootfstype=erofs ro rd.shell=0 rd.emergency=reboot systemd.gpt_auto=0 panic=10";

/// A build directory of one test program, with a PKI and a tree.
#[derive(Debug)]
pub struct Workshop {
    dirs: BuildDirs,
    /// The appliance's trusted keys.
    pub pki: Pki,
    root: PathBuf,
    built: Mutex<BTreeMap<String, Built>>,
}

impl Workshop {
    /// A workshop in `directory`.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let dirs = BuildDirs::new(directory)?;
        let pki = Pki::open_or_create(dirs.pki(), "test")?;
        Ok(Self { dirs, pki, root: directory.to_owned(), built: Mutex::default() })
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

    /// The workshop of this test program, made at first use. What an earlier run has left is removed.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Result<Workshop, String>> = OnceLock::new();
        let made = SHARED.get_or_init(|| Self::of_this_process().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn of_this_process() -> anyhow::Result<Self> {
        let all = profile_directory()?.parent().context("target/PROFILE")?.join("tmp/workshops");
        fs::create_dir_all(&all)?;
        for entry in fs::read_dir(&all)? {
            let old = entry?.path();
            let process = Path::new("/proc").join(old.file_name().unwrap_or_default());
            if !process.exists() {
                // Another test program may be removing it too.
                let _ = fs::remove_dir_all(&old);
            }
        }
        Self::new(&all.join(std::process::id().to_string()))
    }

    /// What `build` makes, built once under this name.
    pub fn once(
        &self,
        name: &str,
        build: impl FnOnce(&Self) -> anyhow::Result<Built>,
    ) -> anyhow::Result<Built> {
        let mut all = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return Ok(known.clone());
        }
        let new = build(self)?;
        all.insert(name.to_owned(), new.clone());
        Ok(new)
    }

    /// The ISO of [`Workshop::spec`] as it is, built once.
    pub fn sample(&self, version: &str, random_mib: usize) -> anyhow::Result<Built> {
        let name = format!("{version}-{random_mib}.iso");
        self.once(&name, |workshop| workshop.build(&workshop.spec(version, random_mib)?, &name))
    }

    /// Builds the ISO of `spec` as `name`. Stock tools must agree with it.
    pub fn build(&self, spec: &FirmwareSpec, name: &str) -> anyhow::Result<Built> {
        let built = build_firmware(spec, &self.dirs, &self.pki, Some(&self.root.join(name)))?;
        judge(&built.iso, &self.keyring(), &self.dirs, if spec.signed { &[] } else { &["signature"] })?;
        Ok(built)
    }

    /// Builds it with boot images of 2.5 MiB that only the simulated loader can start: command line and filler.
    pub fn build_bootable(&self, spec: &FirmwareSpec, name: &str) -> anyhow::Result<Built> {
        let plain = self.build(spec, &format!("plain-{name}"))?;
        let stage = self.dirs.work()?;
        let files = stage.path().join("FIRMWARE");
        run(Command::new("xorriso")
            .args(["-no_rc", "-osirrox", "on", "-indev"])
            .arg(&plain.iso)
            .args(["-extract", "/FIRMWARE"])
            .arg(&files))?;
        run(Command::new("chmod").args(["-R", "u+w"]).arg(&files))?;
        let mut manifest = plain.manifest;
        manifest.boot = Boot::Uki;
        let offset = padded(manifest.root.size);
        let root = format!(
            "roothash={} systemd.verity_root_data=/dev/sps/root systemd.verity_root_hash=/dev/sps/root \
             systemd.verity_root_options=hash-offset={offset},panic-on-corruption {INITRD}",
            manifest.root.verity.root_hash
        );
        for (part, cmdline) in [("boot.efi", root.as_str()), ("recovery.efi", INITRD)] {
            let bytes = image::render(cmdline, &noise(part, 5 << 19))?;
            let sum = |bytes: &[u8]| Sha256Hex(Sha256::digest(bytes).into());
            let pieces = bytes.chunks(usize::try_from(PIECE)?).map(sum).collect();
            let size = bytes.len() as u64;
            manifest.files.push(File { name: part.into(), pieces, sha256: sum(&bytes), size });
            fs::write(files.join(part), bytes)?;
        }
        manifest.files.sort_by_key(|file| PAYLOAD_ORDER.iter().position(|name| *name == file.name));
        let text = manifest.render();
        fs::write(files.join(MANIFEST_NAME), &text)?;
        self.pki.sign(&files.join(MANIFEST_NAME), spec.source_date_epoch, &files.join(SIGNATURE_NAME))?;
        let iso = self.root.join(name);
        let mut xorriso = Command::new("xorriso");
        xorriso.args(["-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-U", "-no-pad"]);
        let order = [MANIFEST_NAME, SIGNATURE_NAME].into_iter().chain(PAYLOAD_ORDER);
        for (part, weight) in order.filter(|part| files.join(part).exists()).zip((1..=1000).rev()) {
            xorriso.args(["--sort-weight", &weight.to_string(), &format!("/FIRMWARE/{part}")]);
        }
        run(xorriso.arg("-o").arg(&iso).arg("-graft-points").arg(format!("/FIRMWARE={}", files.display())))?;
        judge(&iso, &self.keyring(), &self.dirs, &[])?;
        let manifest_sha256 = Sha256Hex(Sha256::digest(text.as_bytes()).into());
        Ok(Built { size: iso.metadata()?.len(), iso, manifest, manifest_sha256 })
    }

    /// Builds it with keys that no appliance of this workshop trusts.
    pub fn build_foreign(&self, spec: &FirmwareSpec, name: &str) -> anyhow::Result<Built> {
        let foreign = Pki::open_or_create(self.root.join("foreign-pki"), "foreign")?;
        let built = build_firmware(spec, &self.dirs, &foreign, Some(&self.root.join(name)))?;
        judge(&built.iso, &foreign.keyring_dir(), &self.dirs, &[])?;
        judge(&built.iso, &self.keyring(), &self.dirs, &["signature"])?;
        Ok(built)
    }
}

/// Lets stock tools judge `iso`: exactly the checks whose names begin as in `refused` must fail.
pub fn judge(iso: &Path, keyring: &Path, dirs: &BuildDirs, refused: &[&str]) -> anyhow::Result<()> {
    let report = inspect(iso, keyring, dirs)?;
    let expected = |name: &str| !refused.iter().any(|start| name.starts_with(start));
    ensure!(
        report.manifest.is_some() && report.checks.iter().all(|check| check.ok == expected(&check.name)),
        "stock tools do not agree (they should refuse {refused:?}):\n{report}"
    );
    Ok(())
}

/// A small tree: some text, a directory, a link, and `random_mib` MiB of a fixed pseudo-random stream.
fn make_tree(tree: &Path, version: &str, random_mib: usize) -> anyhow::Result<()> {
    for directory in ["dev", "etc", "proc", "tmp", "usr/bin", "usr/lib/sps", "var"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::write(tree.join("usr/lib/sps/version"), format!("{version}\n"))?;
    fs::write(tree.join("etc/motd"), "A firmware to test with.\n".repeat(400))?;
    std::os::unix::fs::symlink("motd", tree.join("etc/issue"))?;
    let noise = noise(version, random_mib << 20);
    fs::write(tree.join("usr/bin/noise"), noise).context("the test tree cannot be written")
}

/// `length` bytes of a fixed stream that do not compress.
fn noise(name: &str, length: usize) -> Vec<u8> {
    let mut seed = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |seed, b| seed.rotate_left(9) ^ u64::from(b));
    let mut noise = Vec::with_capacity(length);
    while noise.len() < length {
        // xorshift64: all that is asked of it is not to compress.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.extend_from_slice(&seed.to_le_bytes());
    }
    noise
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
