//! An appliance in QEMU: UEFI firmware, its disk, a console, and a shell for the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::Qemu;
use super::channel::Channel;

/// UEFI firmware and its empty variables (Debian: ovmf).
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Until QEMU listens on its sockets.
const START: Duration = Duration::from_secs(30);
/// From power-on to the login prompt, on a busy machine.
pub const BOOT: Duration = Duration::from_secs(600);
/// A command in the machine.
const COMMAND: Duration = Duration::from_secs(300);
/// What ends the output of a command.
const END: &str = "@@the-end@@ ";

/// What stays when the power is off: the disk, and the variables of the UEFI firmware.
#[derive(Debug)]
pub struct Hardware {
    directory: TempDir,
}

impl Hardware {
    /// A machine with a copy of `disk`. What is written goes beside it, `disk` stays as it is.
    pub fn new(disk: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("sps-vm-").tempdir()?;
        fs::copy(VARIABLES, directory.path().join("variables.fd")).context("UEFI firmware (package ovmf)")?;
        let hardware = Self { directory };
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(disk.canonicalize()?)
            .arg(hardware.path("disk.qcow2"))
            .status();
        ensure!(made.context("qemu-img (package qemu-utils)")?.success(), "qemu-img create");
        Ok(hardware)
    }

    /// A file of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Switches it on. `media` are put into it, read-only, as /dev/vdb, /dev/vdc …
    pub fn power_on(&self, media: &[&Path]) -> anyhow::Result<Machine> {
        for socket in ["console", "shell"] {
            let _ = fs::remove_file(self.path(socket));
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "q35,smm=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1536",
        ])
        .args(["-display", "none", "-nodefaults", "-no-user-config"])
        .args(["-global", "ICH9-LPC.noreboot=false"])
        .args(["-device", "ipmi-bmc-sim,id=bmc0", "-device", "isa-ipmi-kcs,bmc=bmc0"])
        .args(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}")])
        .args([
            "-drive",
            &format!("if=pflash,format=raw,unit=1,file={}", self.path("variables.fd").display()),
        ])
        .args(["-drive", &format!("if=virtio,format=qcow2,file={}", self.path("disk.qcow2").display())])
        .args(["-serial", "chardev:console", "-device", "virtio-serial"])
        .args(["-device", "virtserialport,chardev=shell,name=sps.shell"]);
        for name in ["console", "shell"] {
            let socket = self.path(name);
            qemu.arg("-chardev")
                .arg(format!("socket,id={name},path={},server=on,wait=off", socket.display()));
        }
        for medium in media {
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", medium.display()));
        }
        let said = File::create(self.path("qemu.log"))?;
        let qemu = Qemu::start(qemu.stdout(Stdio::null()).stderr(said))?;
        let deadline = Instant::now() + START;
        let connect = || {
            let console = Channel::connect(&self.path("console"), deadline)?;
            anyhow::Ok((console, Channel::connect(&self.path("shell"), deadline)?))
        };
        let (console, shell) = connect().with_context(|| {
            let said = fs::read_to_string(self.path("qemu.log")).unwrap_or_default();
            format!("QEMU did not start: {said}")
        })?;
        Ok(Machine { _qemu: qemu, console, shell, commands: 0, started: Instant::now() })
    }
}

/// A machine that is on.
#[derive(Debug)]
pub struct Machine {
    _qemu: Qemu,
    console: Channel,
    shell: Channel,
    commands: u32,
    started: Instant,
}

/// How a command in the machine ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output and error.
    pub output: String,
}

impl Machine {
    /// Waits for the first of `texts` on the console.
    pub fn wait(&mut self, texts: &[&str], time: Duration) -> anyhow::Result<(usize, String)> {
        self.console.wait(texts, time)
    }

    /// Types on the console.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        self.console.send(text)
    }

    /// Waits for the login prompt; how long it took since power-on.
    pub fn login(&mut self) -> anyhow::Result<Duration> {
        self.console.wait(&[" login: "], BOOT)?;
        Ok(self.started.elapsed())
    }

    /// Runs a command in the machine's shell, as root; waits until the shell is there.
    pub fn run(&mut self, command: &str) -> anyhow::Result<Ran> {
        self.run_within(command, COMMAND)
    }

    /// The same with another deadline.
    pub fn run_within(&mut self, command: &str, time: Duration) -> anyhow::Result<Ran> {
        self.commands += 1;
        let end = format!("{END}{} ", self.commands);
        self.shell.send(&format!("{{ {command}\n}} </dev/null; echo \"{END}{} $? .\"\n", self.commands))?;
        let (_, output) = self.shell.wait(&[&end], time).with_context(|| format!("running {command:?}"))?;
        let (_, code) = self.shell.wait(&[" .\n"], START)?;
        let output = output.strip_suffix(&end).unwrap_or(&output).to_owned();
        Ok(Ran { code: code.trim_end_matches(" .\n").trim().parse().context("exit code")?, output })
    }

    /// Runs a command that must succeed; what it said.
    pub fn must(&mut self, command: &str) -> anyhow::Result<String> {
        let Ran { code, output } = self.run(command)?;
        ensure!(code == 0, "{command:?} in the machine ended with {code}: {output}");
        Ok(output)
    }

    /// Runs a command that prints JSON.
    pub fn json(&mut self, command: &str) -> anyhow::Result<Value> {
        let output = self.must(command)?;
        serde_json::from_str(&output).with_context(|| format!("{command:?} said {output}"))
    }
}
