//! What lies over Debian's tree in a firmware with slotd.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Puts what the Debian package installs besides its programs where it belongs, from the sources, and the keys of
/// `keyring`.
pub fn lay_out(overlay: &Path, sources: &Path, keyring: &Path) -> Result<()> {
    sps_images::package::lay_out(sources, None, overlay)?;
    for key in fs::read_dir(keyring)? {
        put(overlay, &key?.path(), "/usr/lib/sps/keyring")?;
    }
    Ok(())
}

/// Copies a file into a directory of the firmware.
pub fn put(overlay: &Path, from: &Path, to: &str) -> Result<()> {
    let target = place(overlay, to)?.join(from.file_name().context("no file name")?);
    fs::copy(from, &target).with_context(|| from.display().to_string())?;
    Ok(())
}

/// Writes a program of the firmware, below `/usr/lib/sps`.
pub fn put_program(overlay: &Path, name: &str, text: &str) -> Result<()> {
    sps_images::appliance::put_program(overlay, &format!("usr/lib/sps/{name}"), text)
}

/// A directory of the firmware, made where it is missing.
pub fn place(overlay: &Path, directory: &str) -> Result<PathBuf> {
    let directory = overlay.join(directory.trim_start_matches('/'));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
