//! The appliance: a firmware that boots from a disk of its own, and that disk.

pub mod disk;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Our programs in a firmware, and where each belongs.
pub const PROGRAMS: [(&str, &str); 6] = [
    ("mount-data", "usr/lib/sps"),
    ("slotboot", "usr/lib/sps"),
    ("slotd", "usr/lib/sps"),
    ("sps-health", "usr/lib/sps"),
    ("upgrade-check", "usr/lib/sps"),
    ("spsctl", "usr/bin"),
];

/// Files of `systemd/` in a firmware, and where each belongs.
const FILES: [(&str, &str); 13] = [
    ("slotd.service", "usr/lib/systemd/system"),
    ("sps-boot-report.service", "usr/lib/systemd/system"),
    ("sps-health.service", "usr/lib/systemd/system"),
    ("sps-trial.service", "usr/lib/systemd/system"),
    ("slotd.toml", "usr/lib/sps"),
    ("dbus-1/system.d/org.spsagent.Slots1.conf", "usr/share/dbus-1/system.d"),
    ("dbus-1/system-services/org.spsagent.Slots1.service", "usr/share/dbus-1/system-services"),
    ("polkit-1/actions/org.spsagent.slots1.policy", "usr/share/polkit-1/actions"),
    ("polkit-1/rules.d/50-sps.rules", "usr/share/polkit-1/rules.d"),
    ("sysusers.d/sps.conf", "usr/lib/sysusers.d"),
    ("tmpfiles.d/sps.conf", "usr/lib/tmpfiles.d"),
    ("udev/90-sps.rules", "usr/lib/udev/rules.d"),
    ("catalog/sps.catalog", "usr/lib/systemd/catalog"),
];

/// What is laid over Debian's tree, and what goes into the initrd of its boot images.
#[derive(Clone, Debug)]
pub struct Overlays {
    /// Over the root.
    pub root: PathBuf,
    /// Over the initrd of a slot.
    pub initrd: PathBuf,
}

/// Where the parts of an appliance's firmware come from.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// Directory with our programs.
    pub programs: &'a Path,
    /// Our `systemd/`.
    pub systemd: &'a Path,
    /// Directory of trusted roots and revocation lists.
    pub keyring: &'a Path,
}

/// Lays out the overlays of an appliance in `work`, an existing directory.
pub fn lay_out(parts: &Parts<'_>, work: &Path) -> anyhow::Result<Overlays> {
    let (root, initrd) = (work.join("root-overlay"), work.join("initrd-overlay"));
    for (name, to) in PROGRAMS {
        put(&parts.programs.join(name), &root.join(to))?;
    }
    for (name, to) in FILES {
        put(&parts.systemd.join(name), &root.join(to))?;
    }
    copy(&parts.systemd.join("appliance"), &root)?;
    copy(&parts.systemd.join("initrd"), &initrd)?;
    for name in ["mount-data", "slotboot"] {
        put(&parts.programs.join(name), &initrd.join("usr/lib/sps"))?;
    }
    put(&parts.systemd.join("slotd.toml"), &initrd.join("usr/lib/sps"))?;
    put(&parts.systemd.join("udev/90-sps.rules"), &initrd.join("usr/lib/udev/rules.d"))?;
    for overlay in [&root, &initrd] {
        copy(parts.keyring, &overlay.join("usr/lib/sps/keyring"))?;
    }
    Ok(Overlays { root, initrd })
}

/// Copies a file into a directory, which is made when it is missing.
fn put(file: &Path, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let target = directory.join(file.file_name().context("no file name")?);
    fs::copy(file, &target).with_context(|| format!("{} cannot be copied", file.display()))?;
    Ok(())
}

/// Copies what is in a directory.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            put(&source, to)?;
        } else {
            bail!("{}: expected a file, a directory or a link", source.display());
        }
    }
    Ok(())
}

/// Writes a program into an overlay.
pub fn put_program(overlay: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = overlay.join(name.trim_start_matches('/'));
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(&path, text)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}
