//! What lies over Debian's tree in a firmware with slotd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Files of `systemd/` that every such firmware has, and the directory where each belongs.
const FILES: [(&str, &str); 5] = [
    ("slotd.service", "/usr/lib/systemd/system"),
    ("dbus-1/system.d/org.spsagent.Slots1.conf", "/usr/share/dbus-1/system.d"),
    ("dbus-1/system-services/org.spsagent.Slots1.service", "/usr/share/dbus-1/system-services"),
    ("polkit-1/actions/org.spsagent.slots1.policy", "/usr/share/polkit-1/actions"),
    ("tmpfiles.d/sps.conf", "/usr/lib/tmpfiles.d"),
];

/// Puts the files of `systemd`, that directory, and the keys of `keyring` where they belong.
pub fn lay_out(overlay: &Path, systemd: &Path, keyring: &Path) -> Result<()> {
    for (name, to) in FILES {
        put(overlay, &systemd.join(name), to)?;
    }
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
    let target = overlay.join("usr/lib/sps").join(name);
    fs::create_dir_all(target.parent().context("no directory")?)?;
    fs::write(&target, text)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A directory of the firmware, made where it is missing.
pub fn place(overlay: &Path, directory: &str) -> Result<PathBuf> {
    let directory = overlay.join(directory.trim_start_matches('/'));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
