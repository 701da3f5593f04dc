//! The rival RAUC: `rauc install` of a plain bundle through `rauc service`.
//!
//! Fastest honest configuration: the squashfs is uncompressed (the data is incompressible, decompression would only
//! cost), boot loader `noop`, raw slot, status in one file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::bus::PrivateBus;
use super::pairing::{Contender, Sample};
use super::process::{Daemon, last_lines, output_of, peak_rss_mib, timed, wait_until};
use super::stage::{KeyPair, Slot, Stage};

/// `rauc install` into a slot of its own.
#[derive(Debug)]
pub struct Rauc {
    // Dropped in this order: the service before its bus.
    service: Option<Daemon>,
    bus: PrivateBus,
    slot: Slot,
    dir: PathBuf,
    bundle: PathBuf,
}

impl Rauc {
    /// Makes bundle, configuration, slot and bus.
    pub fn new(stage: &Stage) -> Result<Self> {
        let dir = stage.subdir("rauc")?;
        let slot = stage.slot("rauc")?;
        let keys = KeyPair::generate(&dir)?;
        let bundle = make_bundle(stage, &dir, &keys)?;
        fs::create_dir(dir.join("mnt"))?;
        fs::write(dir.join("system.conf"), system_conf(&dir, &keys, slot.path()))?;
        Ok(Self { service: None, bus: PrivateBus::start()?, slot, dir, bundle })
    }

    /// A `rauc` command that speaks to the private bus.
    fn client(&self) -> Command {
        let mut command = Command::new("rauc");
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).current_dir(&self.dir);
        command
    }

    fn start_service(&mut self) -> Result<Daemon> {
        let log = File::create(self.dir.join("service.log"))?;
        let mut service = Daemon::start("rauc", |command| {
            command.args(["--conf=system.conf", "--override-boot-slot=A", "service"]);
            command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).current_dir(&self.dir);
            command.stdin(Stdio::null()).stderr(Stdio::from(log));
            command.stdout(Stdio::null());
        })?;
        wait_until("rauc service answers", || {
            service.still_runs().with_context(|| last_lines(&self.dir.join("service.log")))?;
            Ok(output_of(self.client().arg("status")).is_ok())
        })?;
        Ok(service)
    }
}

impl Contender for Rauc {
    fn name(&self) -> &'static str {
        "RAUC"
    }

    /// A new service each time: its highest resident set is that of one installation.
    fn prepare(&mut self) -> Result<()> {
        self.slot.spoil()?;
        self.service = None;
        self.service = Some(self.start_service()?);
        Ok(())
    }

    fn run(&mut self) -> Result<Sample> {
        let log = self.dir.join("install.log");
        let client = timed(self.client().arg("install").arg(&self.bundle), &log)
            .with_context(|| last_lines(&self.dir.join("service.log")))?;
        let service = self.service.as_ref().context("prepare was not called")?;
        Ok(Sample { peak_rss_mib: peak_rss_mib(service.pid())?, ..client })
    }

    fn check(&mut self) -> Result<()> {
        self.slot.holds_image()
    }
}

fn make_bundle(stage: &Stage, dir: &Path, keys: &KeyPair) -> Result<PathBuf> {
    let content = dir.join("content");
    fs::create_dir(&content)?;
    fs::hard_link(stage.image(), content.join("rootfs.img"))?;
    fs::write(
        content.join("manifest.raucm"),
        "[update]\ncompatible=benchmark\nversion=1\n\n[bundle]\nformat=plain\n\n[image.rootfs]\nfilename=rootfs.img\n",
    )?;
    let bundle = dir.join("bundle.raucb");
    output_of(
        Command::new("rauc")
            .arg("bundle")
            .arg(format!("--cert={}", keys.certificate.display()))
            .arg(format!("--key={}", keys.key.display()))
            .arg("--mksquashfs-args=-noI -noD -noF -noX")
            .arg(&content)
            .arg(&bundle),
    )?;
    Ok(bundle)
}

/// Slot A counts as booted and is never touched; B is the target.
fn system_conf(dir: &Path, keys: &KeyPair, device: &Path) -> String {
    let (dir, keyring, device) = (dir.display(), keys.certificate.display(), device.display());
    format!(
        "[system]\ncompatible=benchmark\nbootloader=noop\nmountprefix={dir}/mnt\nstatusfile={dir}/status\n\n\
         [keyring]\npath={keyring}\n\n\
         [slot.rootfs.0]\ndevice={dir}/booted\ntype=raw\nbootname=A\n\n\
         [slot.rootfs.1]\ndevice={device}\ntype=raw\nbootname=B\n"
    )
}
