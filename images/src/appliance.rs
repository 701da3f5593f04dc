//! The appliance: a firmware that boots from a disk of its own, and that disk.

pub mod disk;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::Source;
use crate::package::{self, Programs};

/// Names of our partitions.
const UDEV_RULES: &str = "usr/lib/udev/rules.d/90-sps.rules";
/// What every initrd takes from the root.
const INITRD: [&str; 3] = ["usr/lib/sps/slotboot", "usr/lib/sps/slotd.toml", UDEV_RULES];
/// What the recovery image takes from it besides.
const RECOVERY: [&str; 6] = [
    "usr/bin/spsctl",
    "usr/lib/sps/slotd",
    "usr/lib/sps/sps-recovery",
    "usr/lib/systemd/system/slotd.service",
    "usr/lib/sysusers.d/sps.conf",
    "usr/share/dbus-1/system.d/org.spsagent.Slots1.conf",
];

/// What is laid over Debian's tree, and what goes into the initrds of its boot images.
#[derive(Clone, Debug)]
pub struct Overlays {
    /// Over the root.
    pub root: PathBuf,
    /// Over the initrd of a slot.
    pub initrd: PathBuf,
    /// Over the initrd of the recovery image.
    pub recovery: PathBuf,
}

impl Overlays {
    /// Debian's tree with these laid over it.
    pub fn source(self) -> Source {
        Source::Debian { overlay: Some(self.root), initrd: Some(self.initrd), recovery: Some(self.recovery) }
    }
}

/// Where the parts of an appliance's firmware come from.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// Our programs.
    pub programs: &'a Programs,
    /// Root directory of the sources.
    pub sources: &'a Path,
    /// Directory of trusted roots and revocation lists.
    pub keyring: &'a Path,
}

/// Lays out the overlays of an appliance in `work`, an existing directory.
pub fn lay_out(parts: &Parts<'_>, work: &Path) -> anyhow::Result<Overlays> {
    let [root, initrd, recovery] =
        ["root", "initrd", "recovery"].map(|name| work.join(format!("{name}-overlay")));
    package::lay_out(parts.sources, Some(parts.programs), &root)?;
    let systemd = parts.sources.join("systemd");
    copy(&systemd.join("appliance"), &root)?;
    for overlay in [&initrd, &recovery] {
        copy(&systemd.join("initrd"), overlay)?;
        for name in INITRD {
            put_as(&root.join(name), &overlay.join(name))?;
        }
    }
    put_as(&root.join("usr/lib/sps/mount-data"), &initrd.join("usr/lib/sps/mount-data"))?;
    copy(&systemd.join("recovery"), &recovery)?;
    for name in RECOVERY {
        put_as(&root.join(name), &recovery.join(name))?;
    }
    for overlay in [&root, &initrd, &recovery] {
        copy(parts.keyring, &overlay.join("usr/lib/sps/keyring"))?;
    }
    Ok(Overlays { root, initrd, recovery })
}

/// Copies a file; directories are made when they are missing.
fn put_as(file: &Path, target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target.parent().context("no directory")?)?;
    fs::copy(file, target).with_context(|| format!("{} cannot be copied", file.display()))?;
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
            put_as(&source, &target)?;
        } else {
            bail!("{}: expected a file, a directory or a link", source.display());
        }
    }
    Ok(())
}

/// Writes a program into an overlay.
pub fn put_program(overlay: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    package::put(&overlay.join(name.trim_start_matches('/')), text.as_bytes(), 0o755)
}
