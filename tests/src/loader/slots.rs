//! The slots as the kernel's dm-verity sees them, by its stock tool.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

/// A slot and where it is.
#[derive(Clone, Debug)]
pub struct SlotFile {
    /// Its number.
    pub number: u32,
    /// Its file.
    pub file: PathBuf,
}

/// `N=FILE`.
pub(super) fn parse(text: &str) -> Result<SlotFile, String> {
    let (number, file) = text.split_once('=').ok_or("expected N=FILE")?;
    let number = number.parse().map_err(|_| "expected a number before =".to_owned())?;
    Ok(SlotFile { number, file: PathBuf::from(file) })
}

impl SlotFile {
    /// Whether every block of its root is what `root_hash` says.
    pub(super) fn verifies(&self, root_hash: &str, cmdline: &str) -> anyhow::Result<bool> {
        let options = super::word(cmdline, "systemd.verity_root_options=").unwrap_or_default();
        let offset = options.split(',').find(|option| option.starts_with("hash-offset="));
        let offset = offset.context("no hash-offset in systemd.verity_root_options")?;
        let output = Command::new("veritysetup")
            .arg("verify")
            .args([&self.file, &self.file])
            .args([root_hash, &format!("--{offset}")])
            .output()
            .context("veritysetup (package cryptsetup-bin)")?;
        Ok(output.status.success())
    }
}
