//! Loop devices with direct I/O over files, detached when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::process::output_of;

/// An attached loop device.
///
/// Nothing here keeps the device open: the kernel writes a block device's dirty pages out at its last close, and a
/// rival that does not call `fsync` (SWUpdate) must pay for that within its own time, as it does on a partition.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`; fails if the file system below does not give direct I/O.
    pub fn attach(file: &Path) -> Result<Self> {
        let shown =
            output_of(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file))?;
        let device = Self { path: PathBuf::from(shown.trim()) };
        let name = device.path.file_name().with_context(|| format!("losetup said {shown:?}"))?;
        let flag = Path::new("/sys/block").join(name).join("loop/dio");
        if fs::read_to_string(&flag).with_context(|| format!("reading {}", flag.display()))?.trim() != "1" {
            bail!(
                "{} has no direct I/O: put --dir on a file system with O_DIRECT (ext4, xfs)",
                file.display()
            );
        }
        Ok(device)
    }

    /// The device node, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = output_of(Command::new("losetup").arg("--detach").arg(&self.path)) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Detaches the devices over files below `dir` that a killed run has left; returns how many.
pub fn detach_left_over(dir: &Path) -> Result<usize> {
    let list = output_of(Command::new("losetup").args([
        "--list",
        "--noheadings",
        "--raw",
        "--output",
        "NAME,BACK-FILE",
    ]))?;
    let left = backed_below(&list, dir);
    for device in &left {
        output_of(Command::new("losetup").arg("--detach").arg(device))?;
    }
    Ok(left.len())
}

/// The devices in `losetup`'s list (`NAME BACK-FILE`) whose file lies below `dir`.
fn backed_below<'a>(list: &'a str, dir: &Path) -> Vec<&'a str> {
    list.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, file)| Path::new(file.trim()).starts_with(dir))
        .map(|(device, _)| device)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_below_the_directory_are_ours() {
        let list = "/dev/loop0 /srv/bench/slot.a\n/dev/loop1 /srv/bench2/slot.a\n/dev/loop2 \n/dev/loop3 /srv/bench/x/y (deleted)\n";
        assert_eq!(backed_below(list, Path::new("/srv/bench")), ["/dev/loop0", "/dev/loop3"]);
        assert!(backed_below("", Path::new("/srv")).is_empty());
    }
}
