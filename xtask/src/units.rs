//! The units as systemd itself judges them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// Highest exposure of a unit, in tenths, as `systemd-analyze security --threshold=` takes it.
const EXPOSURE_TENTHS: u32 = 20;

/// Those that may be exposed more, and why.
const EXPOSED: &[(&str, u32)] = &[
    // They mount for the whole system: whatever needs a file system name space of its own is not for them.
    ("sps-mount-data.service", 40),
    ("sps-recovery-esp.service", 40),
    // What comes up when nothing else does: it depends on as little as can be.
    ("emergency.service", 96),
];

/// Where the units are: those of the package, and those that only our own image has.
const DIRECTORIES: [&str; 4] = [
    "systemd",
    "systemd/appliance/usr/lib/systemd/system",
    "systemd/initrd/usr/lib/systemd/system",
    "systemd/recovery/usr/lib/systemd/system",
];

/// Units that ours name or that every service depends on. They are systemd's and D-Bus's to check, so the
/// root in which ours are verified holds empty ones.
const FOREIGN: &[(&str, &str)] = &[
    ("basic.target", "[Unit]\nDescription=stand-in\n"),
    ("boot-complete.target", "[Unit]\nDescription=stand-in\n"),
    ("dbus.service", "[Service]\nExecStart=/bin/true\n"),
    ("dbus.socket", "[Socket]\nListenStream=/run/dbus/system_bus_socket\n"),
    ("initrd-root-device.target", "[Unit]\nDescription=stand-in\n"),
    ("initrd-root-fs.target", "[Unit]\nDescription=stand-in\n"),
    ("local-fs-pre.target", "[Unit]\nDescription=stand-in\n"),
    ("local-fs.target", "[Unit]\nDescription=stand-in\n"),
    ("multi-user.target", "[Unit]\nDescription=stand-in\n"),
    ("shutdown.target", "[Unit]\nDescription=stand-in\n"),
    ("ssh.service", "[Service]\nExecStart=/bin/true\n"),
    ("sysinit.target", "[Unit]\nDescription=stand-in\n"),
    ("sysroot.mount", "[Mount]\nWhat=/dev/stand-in\nWhere=/sysroot\n"),
    ("umount.target", "[Unit]\nDescription=stand-in\n"),
];

/// Judges every unit of ours: exposure at most 2.0 but for [`EXPOSED`], and not one complaint of `systemd-analyze verify`.
pub(crate) fn check() -> Result<()> {
    // Names come twice: each has a root of its own.
    DIRECTORIES.iter().try_for_each(|directory| check_in(&workspace::root().join(directory)))
}

/// The same for those of one directory.
fn check_in(directory: &Path) -> Result<()> {
    let root = workspace::scratch().join("units");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let installed = root.join("etc/systemd/system");
    fs::create_dir_all(&installed)?;
    for (name, text) in FOREIGN {
        fs::write(installed.join(name), text)?;
    }
    program(&root.join("bin/true"))?;

    let units = units(directory)?;
    if units.is_empty() {
        bail!("no unit in {}", directory.display());
    }
    for unit in &units {
        let text = fs::read_to_string(unit).with_context(|| unit.display().to_string())?;
        for path in programs(&text) {
            program(&root.join(path.trim_start_matches('/')))?;
        }
        fs::copy(unit, installed.join(unit.file_name().unwrap_or_default()))?;
    }
    for unit in &units {
        let name = unit.file_name().unwrap_or_default().to_string_lossy().into_owned();
        verify(&root, &name)?;
        if name.ends_with(".service") {
            println!("{name}: {}", exposure(unit)?);
        }
    }
    Ok(())
}

/// Unit files directly in `directory`, sorted. An empty one switches a unit of others off.
fn units(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut units = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        let off = path.is_symlink() || fs::metadata(&path)?.len() == 0;
        if !off && ["service", "socket", "timer", "target", "path", "mount"].contains(&kind) {
            units.push(path);
        }
    }
    units.sort();
    Ok(units)
}

/// The programs that a unit starts: first word of each `Exec…=`, without its prefix characters.
fn programs(unit: &str) -> impl Iterator<Item = &str> {
    unit.lines()
        .filter(|line| line.starts_with("Exec"))
        .filter_map(|line| line.split_once('=')?.1.split_whitespace().next())
        .map(|word| word.trim_start_matches(['-', '@', ':', '+', '!']))
}

/// An executable stand-in.
fn program(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, "#!/bin/sh\n")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// `systemd-analyze verify` exits with 0 on unknown keys, so anything it says is a failure.
fn verify(root: &Path, name: &str) -> Result<()> {
    let output = process::command("systemd-analyze")
        .arg(format!("--root={}", root.display()))
        .args(["--man=no", "verify", name])
        .output()
        .context("cannot start systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !said.trim().is_empty() {
        bail!("systemd-analyze verify {name}: {}", said.trim());
    }
    Ok(())
}

/// The verdict on one service; an exposure above the threshold is an error that lists what counts.
fn exposure(unit: &Path) -> Result<String> {
    let name = unit.file_name().unwrap_or_default();
    let exposed = EXPOSED.iter().find(|(exposed, _)| *exposed == name);
    let most = exposed.map_or(EXPOSURE_TENTHS, |(_, tenths)| *tenths);
    let output = process::command("systemd-analyze")
        .env("LC_ALL", "C.UTF-8")
        .args(["security", "--offline=yes", "--no-pager"])
        .arg(format!("--threshold={most}"))
        .arg(unit)
        .output()
        .context("cannot start systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let counts: Vec<&str> = said.lines().filter(|line| !line.starts_with('✓')).collect();
        bail!("{} is too exposed:\n{}", unit.display(), counts.join("\n"));
    }
    let Some(level) = exposure_level(&said) else {
        bail!("systemd-analyze security says nothing about {}", unit.display());
    };
    Ok(format!("exposure {level}, at most {}.{} allowed", most / 10, most % 10))
}

/// `1.2` of the line `→ Overall exposure level for slotd.service: 1.2 OK`.
fn exposure_level(report: &str) -> Option<&str> {
    let line = report.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_lose_their_prefixes_and_arguments() {
        let unit = "[Service]\nExecStartPre=-/bin/a b\nExecStart=!!/usr/lib/c --d=/e\nEnvironment=ExecX=/f\n";
        assert_eq!(programs(unit).collect::<Vec<_>>(), ["/bin/a", "/usr/lib/c"]);
    }

    #[test]
    fn level_is_the_number_of_the_last_line() {
        let report = "✓ UMask= ok\n\n→ Overall exposure level for slotd.service: 1.2 OK 🙂\n";
        assert_eq!(exposure_level(report), Some("1.2"));
        assert_eq!(exposure_level("nothing"), None);
    }
}
