//! An appliance in QEMU: UEFI firmware, its disk, a console, and a shell for the test.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Qemu;
use super::channel::Channel;
use super::qmp::Qmp;

/// UEFI firmware and its empty variables (Debian: ovmf).
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// A processor without what costs most where everything is emulated: five levels of page tables, guarded access to user
/// memory, wide registers, and features whose mere presence loads drivers.
const PROCESSOR: &str = "max,la57=off,smap=off,pku=off,umip=off,xsave=off,avx=off,avx2=off,fma=off,f16c=off,svm=off,\
    aes=off,pclmulqdq=off";
/// Until QEMU listens on its sockets.
const START: Duration = Duration::from_secs(60);
/// From power-on to the login prompt, on a busy machine.
pub const BOOT: Duration = Duration::from_secs(600);
/// A command in the machine.
const COMMAND: Duration = Duration::from_secs(300);
/// What ends the output of a command.
const END: &str = "@@the-end@@ ";
/// What the UEFI firmware says before it starts an entry.
pub const FIRMWARE_STARTS: &str = "BdsDxe: starting";
/// The name of the one snapshot that a disk may carry.
const SNAPSHOT: &str = "machine";
/// Name of the stick, for QEMU.
const STICK: &str = "stick";
/// Bytes of a file that are typed at a time.
const PIECE: usize = 512;
/// Room for a log of writes, in bytes; what is not written takes none.
const LOG: u64 = 16 << 30;
/// What stays when the power is off: disk, and variables of the UEFI firmware.
const PARTS: [&str; 2] = ["disk.qcow2", "variables.qcow2"];

/// What stays when the power is off: the disk, and the variables of the UEFI firmware.
#[derive(Debug)]
pub struct Hardware {
    directory: TempDir,
}

/// What is put into a machine, and what its firmware is told to do wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Read-only disks: /dev/vdb, /dev/vdc …
    pub media: &'a [&'a Path],
    /// A stick in its USB port, which can be pulled: /dev/sda.
    pub stick: Option<&'a Path>,
    /// Asset tag of the chassis: firmware that was made for it reads there how to misbehave.
    pub mishap: Option<&'a str>,
    /// Where every write to its disk is recorded: a file that is made.
    pub record: Option<&'a Path>,
}

impl Hardware {
    /// A machine with a copy of `disk`. What is written goes beside it, `disk` stays as it is.
    pub fn new(disk: &Path) -> anyhow::Result<Self> {
        let hardware = Self { directory: directory()? };
        image(
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b"],
            &[&disk.canonicalize()?, &hardware.disk()],
        )?;
        hardware.lose_variables()?;
        Ok(hardware)
    }

    /// A machine as [`Machine::keep`] has left it in `kept`.
    pub fn kept(kept: &Path) -> anyhow::Result<Self> {
        let hardware = Self { directory: directory()? };
        for name in PARTS {
            let status = Command::new("cp")
                .args(["--reflink=auto", "--sparse=always"])
                .args([kept.join(name), hardware.path(name)])
                .status()?;
            ensure!(status.success(), "{} cannot be copied", kept.join(name).display());
        }
        Ok(hardware)
    }

    /// A file of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk.qcow2")
    }

    /// Empties the variables of the UEFI firmware, as a dead battery or a new board does. For a machine that is off.
    pub fn lose_variables(&self) -> anyhow::Result<()> {
        image(
            &["convert", "-f", "raw", "-O", "qcow2"],
            &[Path::new(VARIABLES), &self.path("variables.qcow2")],
        )
        .context("UEFI firmware (package ovmf)")
    }

    /// Switches it on.
    pub fn power_on(&self, options: &Options<'_>) -> anyhow::Result<Machine> {
        self.start(options, false)
    }

    /// Goes on where [`Machine::keep`] was called; without that QEMU does not start.
    pub fn resume(&self, options: &Options<'_>) -> anyhow::Result<Machine> {
        self.start(options, true)
    }

    fn start(&self, options: &Options<'_>, resume: bool) -> anyhow::Result<Machine> {
        const SOCKETS: [&str; 3] = ["console", "shell", "qmp"];
        for socket in SOCKETS {
            let _ = fs::remove_file(self.path(socket));
        }
        let pflash = |unit: u8, rest: &str| ["-drive".into(), format!("if=pflash,unit={unit},{rest}")];
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35,smm=off", "-accel", "tcg,thread=multi"])
            .args(["-cpu", PROCESSOR, "-smp", "2", "-m", "1536"])
            .args(["-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-global", "ICH9-LPC.noreboot=false"])
            .args(["-device", "ipmi-bmc-sim,id=bmc0", "-device", "isa-ipmi-kcs,bmc=bmc0"])
            .args(pflash(0, &format!("format=raw,readonly=on,file={FIRMWARE}")))
            .args(pflash(1, &format!("format=qcow2,file={}", self.path("variables.qcow2").display())))
            .args(disk(&self.disk(), options.record)?)
            .args(["-serial", "chardev:console", "-device", "virtio-serial"])
            .args(["-device", "virtserialport,chardev=shell,name=sps.shell"])
            .args(["-mon", "chardev=qmp,mode=control"])
            .args(["-smbios", &format!("type=3,asset={}", options.mishap.unwrap_or("none"))]);
        for name in SOCKETS {
            let socket = self.path(name);
            qemu.arg("-chardev")
                .arg(format!("socket,id={name},path={},server=on,wait=off", socket.display()));
        }
        if let Some(stick) = options.stick {
            qemu.args(["-device", "qemu-xhci", "-blockdev"])
                .arg(format!(
                    "driver=raw,read-only=on,node-name={STICK},file.driver=file,file.filename={}",
                    stick.display()
                ))
                .args(["-device", &format!("usb-storage,id={STICK},drive={STICK},removable=on")]);
        }
        for medium in options.media {
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", medium.display()));
        }
        qemu.args(resume.then_some(["-loadvm", SNAPSHOT]).into_iter().flatten());
        let said = File::create(self.path("qemu.log"))?;
        let qemu = Qemu::start(qemu.stdout(Stdio::null()).stderr(said))?;
        let started = Instant::now();
        let connect = |name| Channel::connect(&self.path(name), started + START);
        let channels = || {
            anyhow::Ok((
                connect("console")?,
                connect("shell")?,
                Qmp::connect(&self.path("qmp"), started + START)?,
            ))
        };
        let (console, shell, qmp) = channels().with_context(|| {
            format!("QEMU did not start: {}", fs::read_to_string(self.path("qemu.log")).unwrap_or_default())
        })?;
        Ok(Machine { _qemu: qemu, console, shell, qmp, commands: 0, started })
    }
}

fn directory() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("sps-vm-").tempdir()?)
}

/// The machine's disk, with or without a log of what is written to it.
fn disk(file: &Path, record: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let Some(log) = record else {
        return Ok(["-drive".into(), format!("if=virtio,format=qcow2,file={}", file.display())].into());
    };
    // QEMU does not make it longer.
    File::create(log)?.set_len(LOG)?;
    let node = |node: &str, rest: String| ["-blockdev".into(), format!("node-name={node},{rest}")];
    let (file, log) = (file.display(), log.display());
    let mut all = Vec::new();
    all.extend(node("disk", format!("driver=qcow2,file.driver=file,file.filename={file}")));
    all.extend(node("log", format!("driver=file,filename={log}")));
    all.extend(node("recorded", "driver=blklogwrites,file=disk,log=log,log-sector-size=512".into()));
    // What is merged has as many pieces as a write may have, and the log needs two more: that write would fail.
    all.extend(["-device".into(), "virtio-blk-pci,drive=recorded,request-merging=off".into()]);
    Ok(all)
}

fn image(arguments: &[&str], files: &[&Path]) -> anyhow::Result<()> {
    let status = Command::new("qemu-img").args(arguments).args(files).status();
    ensure!(status.context("qemu-img (package qemu-utils)")?.success(), "qemu-img {arguments:?}");
    Ok(())
}

/// A machine that is on. Dropping it cuts its power.
#[derive(Debug)]
pub struct Machine {
    _qemu: Qemu,
    console: Channel,
    shell: Channel,
    qmp: Qmp,
    commands: u32,
    started: Instant,
}

/// Where the time of a start goes, from power-on to the login prompt.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// All of it.
    pub login: Duration,
    firmware: Duration,
    kernel: Duration,
    initrd: Duration,
    user_space: Duration,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { login, firmware, kernel, initrd, user_space } = self;
        let loader = login.saturating_sub(*firmware + *kernel + *initrd + *user_space);
        let seconds = [login, firmware, &loader, kernel, initrd, user_space].map(Duration::as_secs_f64);
        let [login, firmware, loader, kernel, initrd, user_space] = seconds;
        write!(
            f,
            "{login:.1} s to the login prompt: firmware {firmware:.1}, loader {loader:.1}, kernel {kernel:.1}, initrd \
             {initrd:.1}, user space {user_space:.1}"
        )
    }
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

    /// Waits for the UEFI firmware to start something.
    pub fn restarted(&mut self) -> anyhow::Result<()> {
        self.console.wait(&[FIRMWARE_STARTS], BOOT).map(drop)
    }

    /// Waits for the login prompt; how long it took since power-on.
    pub fn login(&mut self) -> anyhow::Result<Duration> {
        self.console.wait(&[" login: "], BOOT)?;
        Ok(self.started.elapsed())
    }

    /// The first start, timed: waits for the login prompt.
    pub fn timed_login(&mut self) -> anyhow::Result<Times> {
        self.restarted()?;
        let firmware = self.started.elapsed();
        let login = self.login()?;
        // Microseconds since the kernel began (org.freedesktop.systemd1(5)).
        let said = self.must(
            "systemctl show -p InitRDTimestampMonotonic -p UserspaceTimestampMonotonic; \
             systemctl show -p ActiveEnterTimestampMonotonic serial-getty@ttyS0.service",
        )?;
        let point = |name: &str| {
            let line =
                said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("TimestampMonotonic="));
            line.and_then(|value| value.parse::<u64>().ok()).with_context(|| format!("systemd told {said:?}"))
        };
        let (initrd, user_space, prompt) = (point("InitRD")?, point("Userspace")?, point("ActiveEnter")?);
        let span = |from: u64, to: u64| Duration::from_micros(to.saturating_sub(from));
        Ok(Times {
            login,
            firmware,
            kernel: span(0, initrd),
            initrd: span(initrd, user_space),
            user_space: span(user_space, prompt),
        })
    }

    /// Everything that the console has said.
    pub fn console(&self) -> String {
        self.console.said()
    }

    /// Sends text to the console, as if typed.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        self.console.send(text)
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

    /// Starts a command and does not wait: what it does may end the machine.
    pub fn begin(&mut self, command: &str) -> anyhow::Result<()> {
        self.shell.send(&format!("{command} </dev/null &\n"))
    }

    /// Writes a small file in the machine.
    pub fn copy_in(&mut self, content: &[u8], path: &str) -> anyhow::Result<()> {
        self.must(&format!(": >{path}"))?;
        for piece in content.chunks(PIECE) {
            let mut octal = String::new();
            for byte in piece {
                write!(octal, "\\{byte:03o}")?;
            }
            self.must(&format!("printf '{octal}' >>{path}"))?;
        }
        Ok(())
    }

    /// Reads a small file in the machine.
    pub fn copy_out(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let said = self.must(&format!("od -An -v -tx1 {path}"))?;
        hex::decode(said.split_whitespace().collect::<String>()).with_context(|| format!("od said {said:?}"))
    }

    /// Pulls the stick.
    pub fn pull(&mut self) -> anyhow::Result<()> {
        self.qmp.call("device_del", &json!({ "id": STICK })).map(drop)
    }

    /// Puts it in again.
    pub fn plug(&mut self) -> anyhow::Result<()> {
        let stick = json!({ "driver": "usb-storage", "id": STICK, "drive": STICK, "removable": true });
        self.qmp.call("device_add", &stick).map(drop)
    }

    /// Leaves the machine as it is, with what it has in memory, in the directory `to`, for [`Hardware::kept`].
    pub fn keep(mut self, hardware: &Hardware, to: &Path) -> anyhow::Result<()> {
        self.qmp.monitor(&format!("savevm {SNAPSHOT}"))?;
        drop(self);
        let partial = to.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        for name in PARTS {
            fs::copy(hardware.path(name), partial.join(name))?;
        }
        Ok(fs::rename(&partial, to)?)
    }

    /// Presses the reset button.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.qmp.monitor("system_reset")
    }
}
