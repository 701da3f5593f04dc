//! The rival SWUpdate: `swupdate -i` of a raw image with sha256, `installed-directly`.
//!
//! Debian builds it for signed images, so sw-description has a CMS signature. It does not call `fsync`; the kernel
//! writes the device out when SWUpdate closes it, before it says that it was successful. The time ends with that line:
//! the command itself asks for the state once a second and so ends up to a second later, which is not held against it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::pairing::{Contender, Sample};
use super::process::{output_of, timed_until};
use super::stage::{KeyPair, Slot, Stage};

/// `swupdate -i` into a slot of its own.
#[derive(Debug)]
pub struct SwUpdate {
    slot: Slot,
    dir: PathBuf,
    archive: PathBuf,
    keys: KeyPair,
}

impl SwUpdate {
    /// Makes the archive and the slot.
    pub fn new(stage: &Stage) -> Result<Self> {
        let dir = stage.subdir("swupdate")?;
        let slot = stage.slot("swupdate")?;
        let keys = KeyPair::generate(&dir)?;
        let archive = make_archive(stage, &dir, &keys, slot.path())?;
        Ok(Self { slot, dir, archive, keys })
    }
}

impl Contender for SwUpdate {
    fn name(&self) -> &'static str {
        "SWUpdate"
    }

    fn prepare(&mut self) -> Result<()> {
        self.slot.spoil()
    }

    fn run(&mut self) -> Result<Sample> {
        let mut command = Command::new("swupdate");
        command.args(["-H", "benchmark:1.0", "-l", "1", "-k"]).arg(&self.keys.certificate);
        command.arg("-i").arg(&self.archive).env("TMPDIR", &self.dir);
        timed_until(&mut command, &self.dir.join("install.log"), Some("SWUPDATE successful"))
    }

    fn check(&mut self) -> Result<()> {
        self.slot.holds_image()
    }
}

fn make_archive(stage: &Stage, dir: &Path, keys: &KeyPair, device: &Path) -> Result<PathBuf> {
    let sum = output_of(Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(stage.image()))?;
    let sum = sum.split_whitespace().next().context("openssl dgst printed nothing")?;
    let description = dir.join("sw-description");
    fs::write(&description, sw_description(device, sum))?;
    output_of(
        Command::new("openssl")
            .args(["cms", "-sign", "-binary", "-nosmimecap", "-outform", "DER", "-in"])
            .arg(&description)
            .arg("-signer")
            .arg(&keys.certificate)
            .arg("-inkey")
            .arg(&keys.key)
            .arg("-out")
            .arg(dir.join("sw-description.sig")),
    )?;
    symlink(stage.image(), dir.join("rootfs.img"))?;
    // The order is the format's: description, its signature, images.
    let names = "sw-description\\nsw-description.sig\\nrootfs.img\\n";
    output_of(
        Command::new("sh")
            .args(["-e", "-c", &format!("printf '{names}' | cpio -o -H crc -L --quiet > update.swu")])
            .current_dir(dir),
    )?;
    Ok(dir.join("update.swu"))
}

fn sw_description(device: &Path, sha256: &str) -> String {
    format!(
        "software = {{\n  version = \"1.0.0\";\n  hardware-compatibility: [ \"1.0\" ];\n  images: ( {{\n    \
         filename = \"rootfs.img\";\n    type = \"raw\";\n    device = \"{}\";\n    sha256 = \"{sha256}\";\n    \
         installed-directly = true;\n  }} );\n}}\n",
        device.display()
    )
}
