//! Machines in QEMU, without hardware virtualization: the real kernel, systemd, UEFI firmware and boot loader.

pub mod appliance;
mod channel;
pub mod direct;
pub mod machine;
mod qmp;
pub mod scenarios;
pub mod stage;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::bus::program;

/// A QEMU that runs: it ends with this.
#[derive(Debug)]
struct Qemu(Child);

impl Qemu {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let qemu = command.stdin(Stdio::null()).spawn();
        Ok(Self(qemu.context("qemu-system-x86_64 (package qemu-system-x86)")?))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a program of this workspace into a directory, without what only a debugger reads.
fn put_stripped(name: &str, directory: &Path) -> anyhow::Result<()> {
    let status = Command::new("strip").arg("-o").arg(directory.join(name)).arg(program(name)?).status();
    ensure!(status.context("strip (package binutils)")?.success(), "strip {name}");
    Ok(())
}
