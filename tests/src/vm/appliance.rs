//! The firmware of an appliance in QEMU: what ships, and a shell for the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use slotd::domain::manifest::UpgradeFrom;
use sps_images::appliance::disk::{self, Sizes};
use sps_images::appliance::{self, Parts};
use sps_images::debian::debian_tree;
use sps_images::package::{self, Programs};
use sps_images::{BootKey, BuildDirs, Built, FirmwareSpec, Pki, build_firmware};

use super::put_stripped;
use crate::bus::program;

/// A shell on a line that only the test's QEMU has.
const SHELL: &str = "[Unit]\nDescription=Shell of the test\nAfter=sysinit.target\nStartLimitIntervalSec=0\n\
    [Service]\nExecStart=/bin/sh -c 'exec 3<>/dev/virtio-ports/sps.shell; exec sh <&3 >&3 2>&3'\n\
    Restart=always\nRestartSec=1\n";

/// Builds firmware and disks for one PKI.
#[derive(Debug)]
pub struct Builder {
    dirs: BuildDirs,
    pki: Pki,
    work: PathBuf,
    programs: Programs,
}

impl Builder {
    /// Our programs, as they were built.
    pub fn programs() -> anyhow::Result<Vec<PathBuf>> {
        package::programs()
            .map(|name| program(if name == "slotboot" { "static/slotboot" } else { name }))
            .collect()
    }

    /// In `work`, an existing directory.
    pub fn new(dirs: BuildDirs, work: &Path) -> anyhow::Result<Self> {
        let pki = Pki::open_or_create(work.join("pki"), "vm")?;
        let directory = work.join("programs");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        for name in package::programs().filter(|name| *name != "slotboot") {
            put_stripped(name, &directory)?;
        }
        let programs = Programs { directory, slotboot: program("static/slotboot")? };
        Ok(Self { dirs, pki, work: work.to_owned(), programs })
    }

    /// A firmware of this version; `change` may lay more over its root and its initrd.
    pub fn firmware(
        &self,
        version: &str,
        change: impl FnOnce(&appliance::Overlays) -> anyhow::Result<()>,
    ) -> anyhow::Result<Built> {
        let work = self.work.join(version);
        let _ = fs::remove_dir_all(&work);
        fs::create_dir(&work)?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let parts = Parts { programs: &self.programs, sources: &sources, keyring: &self.pki.keyring_dir() };
        let overlays = appliance::lay_out(&parts, &work)?;
        let units = overlays.root.join("usr/lib/systemd/system");
        fs::write(units.join("test-shell.service"), SHELL)?;
        symlink("../test-shell.service", units.join("multi-user.target.wants/test-shell.service"))?;
        change(&overlays)?;
        let mut spec = FirmwareSpec::new(version, overlays.source());
        spec.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }];
        let built =
            build_firmware(&spec, &self.dirs, &self.pki, Some(&self.work.join(format!("{version}.iso"))))?;
        // A copy of the root; the next one is made anew.
        fs::remove_dir_all(&work)?;
        Ok(built)
    }

    /// The disk of an appliance that runs `firmware`.
    pub fn disk(&self, firmware: &Built) -> anyhow::Result<PathBuf> {
        let out = self.work.join(format!("{}.img", firmware.manifest.version));
        let tree = debian_tree(&self.dirs)?;
        let sizes = Sizes { slot: 768 << 20, data: 256 << 20 };
        disk::write(
            firmware,
            &self.dirs,
            &tree,
            &self.pki.keyring_dir(),
            &BootKey::of(&self.pki)?,
            &sizes,
            &out,
        )?;
        Ok(out)
    }
}
