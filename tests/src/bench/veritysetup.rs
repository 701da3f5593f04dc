//! The rival of a check at rest: `veritysetup verify`, in user space, data and hashes on one device.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::pairing::{Contender, Sample};
use super::process::{output_of, timed};
use super::stage::{Slot, Stage};

/// Where a hash tree with superblock lies and what it must come to.
#[derive(Debug, Clone)]
pub struct Verity {
    /// Holds data and hashes.
    pub device: PathBuf,
    /// Offset of the verity superblock, bytes.
    pub hash_offset: u64,
    /// The root hash in hexadecimal.
    pub root_hash: String,
}

impl Verity {
    /// Makes a tree behind the image in `slot`, as `veritysetup format` does by default but for a salt of 32 bytes.
    pub fn format(stage: &Stage, slot: &Slot) -> Result<Self> {
        let offset = stage.image_len();
        let shown = output_of(
            Command::new("veritysetup")
                .arg("format")
                .arg(format!("--hash-offset={offset}"))
                .arg(format!("--data-blocks={}", offset / 4096))
                .args([slot.path(), slot.path()]),
        )?;
        let root_hash = shown
            .lines()
            .find_map(|line| line.strip_prefix("Root hash:"))
            .context("veritysetup format printed no root hash")?;
        Ok(Self {
            device: slot.path().to_owned(),
            hash_offset: offset,
            root_hash: root_hash.trim().to_owned(),
        })
    }
}

/// `veritysetup verify` of a slot that has a tree.
#[derive(Debug)]
pub struct VeritySetup {
    target: Verity,
    log: PathBuf,
}

impl VeritySetup {
    /// Verifies `target` again and again.
    pub fn new(stage: &Stage, target: Verity) -> Result<Self> {
        Ok(Self { target, log: stage.subdir("veritysetup")?.join("log") })
    }
}

impl Contender for VeritySetup {
    fn name(&self) -> &'static str {
        "veritysetup"
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self) -> Result<Sample> {
        let mut command = Command::new("veritysetup");
        command.arg("verify").arg(format!("--hash-offset={}", self.target.hash_offset));
        command.args([&self.target.device, &self.target.device]).arg(&self.target.root_hash);
        timed(&mut command, &self.log)
    }

    /// The exit code says it: veritysetup fails on the first bad block.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}
