//! A machine in QEMU that boots a slot: Debian's kernel and initrd, dm-verity, systemd, our units.
//!
//! The kernel is started directly, without firmware and boot loader. The media are those of a [`Lab`], each a disk. What
//! runs in the machine is a script of the test; what it writes to its second serial line comes back as text.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sps_images::{BuildDirs, FirmwareSpec, Source, boot_files};

use super::{Qemu, put_stripped};
use crate::bus::profile_directory;
use crate::lab::Lab;
use crate::overlay;

/// Without hardware virtualization, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(900);
/// The test's script, below `/usr/lib/sps`.
const SCRIPT: &str = "in-the-machine";
/// Its unit: the machine is switched off when it has ended.
const UNIT: &str = "[Unit]\nWants=dbus.socket slotd.service\nAfter=dbus.socket slotd.service\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n\
    [Service]\nType=oneshot\nExecStart=/usr/lib/sps/in-the-machine\nStandardOutput=file:/dev/ttyS1\n\
    StandardError=file:/dev/ttyS1\n";
/// Writable parts, and the ESP. Nothing of them outlives the machine.
const MOUNTS: &str = "systemd.mount-extra=tmpfs:/var:tmpfs systemd.mount-extra=tmpfs:/efi:tmpfs";

/// The build directory of this workspace, where the Debian tree is kept.
pub fn build_dirs() -> anyhow::Result<BuildDirs> {
    BuildDirs::new(profile_directory()?.parent().context("target/PROFILE")?.join("sps"))
}

/// A bootable firmware with slotd, the keys of `keyring` and `script`.
pub fn firmware(version: &str, keyring: &Path, work: &Path, script: &str) -> anyhow::Result<FirmwareSpec> {
    let overlay = work.join("overlay");
    overlay::lay_out(&overlay, &Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), keyring)?;
    for (name, to) in [
        ("slotd", "/usr/lib/sps"),
        ("upgrade-check", "/usr/lib/sps"),
        ("sps-health", "/usr/lib/sps"),
        ("spsctl", "/usr/bin"),
    ] {
        put_stripped(name, &overlay::place(&overlay, to)?)?;
    }
    fs::write(overlay.join("usr/lib/sps/slotd.toml"), SETTINGS)?;
    fs::write(overlay::place(&overlay, "/efi")?.join(".keep"), "")?;
    overlay::put_program(&overlay, SCRIPT, script)?;
    fs::write(overlay::place(&overlay, "/usr/lib/systemd/system")?.join("in-the-machine.service"), UNIT)?;
    let mut spec =
        FirmwareSpec::new(version, Source::Debian { overlay: Some(overlay), initrd: None, recovery: None });
    spec.compress = false;
    Ok(spec)
}

/// slotd's settings in the machine: each medium is a disk.
const SETTINGS: &str = r#"compatible = "sps"
hardware = "qemu"
keyring = "/usr/lib/sps/keyring"
state = "/dev/vdc"
esp = "/efi"
[[slot]]
id = 1
label = "A"
device = "/dev/vda"
[[slot]]
id = 2
label = "B"
device = "/dev/vdb"
"#;

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    qemu: Qemu,
    serial: PathBuf,
    output: PathBuf,
    started: Instant,
}

impl Machine {
    /// Boots slot 1 of `lab`: the root with this hash, whose tree lies at this byte.
    pub fn boot(lab: &Lab, dirs: &BuildDirs, root_hash: &str, hash_offset: u64) -> anyhow::Result<Self> {
        let (kernel, initrd) = boot_files(dirs)?;
        let (serial, output) = (lab.root.join("serial.log"), lab.root.join("output.log"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(format!(
                "roothash={root_hash} systemd.verity_root_data=/dev/vda systemd.verity_root_hash=/dev/vda \
                 systemd.verity_root_options=hash-offset={hash_offset},panic-on-corruption rootfstype=erofs ro \
                 rd.shell=0 rd.emergency=poweroff systemd.gpt_auto=0 systemd.unit=in-the-machine.service panic=-1 console=ttyS0 \
                 {MOUNTS}"
            ));
        for line in [&serial, &output] {
            qemu.arg("-serial").arg(format!("file:{}", line.display()));
        }
        for medium in [lab.slot(1), lab.slot(2), lab.root.join("state.img")] {
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,file={}", medium.display()));
        }
        let said = File::create(lab.root.join("qemu.log"))?;
        let qemu = Qemu::start(qemu.stdout(Stdio::null()).stderr(said))?;
        Ok(Self { qemu, serial, output, started: Instant::now() })
    }

    /// Waits until the machine switches itself off; what the script wrote.
    pub fn output(mut self) -> anyhow::Result<String> {
        while self.qemu.0.try_wait()?.is_none() {
            if self.started.elapsed() > DEADLINE {
                let text = fs::read_to_string(&self.serial).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(40).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                bail!("the machine did not end within {DEADLINE:?}; its console:\n{}", last.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("the machine ran for {:.1} s", self.started.elapsed().as_secs_f64());
        Ok(fs::read_to_string(&self.output)?.replace('\r', ""))
    }
}
