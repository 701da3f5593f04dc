//! What scenarios begin with: two firmwares, a disk, and machines that were kept while they ran.
//!
//! All of it lies in a directory that is named after the content it was made from, and is made when it is asked for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sps_images::BuildDirs;
use sps_images::appliance::{Overlays, put_program};

use super::appliance::Builder;
use super::direct::build_dirs;
use super::machine::{Hardware, Machine, Options};
use crate::replay;

/// Health checks, or a trial, on a busy machine.
const SETTLED: Duration = Duration::from_secs(400);
/// How the second firmware misbehaves: what QEMU's user wrote on the chassis tells.
const MISHAP: &str = "/sys/class/dmi/id/chassis_asset_tag";
/// What the operator must be shown of a firmware whose health check fails.
pub const ILLNESS: &str = "no address on nic1";
/// What the operator must be shown of a firmware whose own check refuses the upgrade.
pub const REFUSAL: &str = "this machine has no nic2; add one, then test again";
/// Versions of the firmwares: one that is well, one that does what it is told, one whose own check refuses.
const VERSIONS: [&str; 3] = ["8.0.1", "8.0.2", "8.0.3"];

/// Ends or freezes the machine. Freezing: systemd does so when it crashes, and nobody tells the watchdog that all is well.
const MISHAP_PROGRAM: &str = r#"#!/bin/sh
read -r mishap </sys/class/dmi/id/chassis_asset_tag
echo "mishap: $mishap" >/dev/console
case "$1-$mishap" in
initrd-initrd-panic | root-root-panic) echo c >/proc/sysrq-trigger ;;
initrd-initrd-hang | root-root-hang) kill -SEGV 1; sleep 1000 ;;
esac
exit 0
"#;

/// A place for what is made once.
#[derive(Debug)]
pub struct Stage {
    dirs: BuildDirs,
    directory: PathBuf,
}

/// Where a kept machine is.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// The first firmware runs in slot 1, confirmed; slot 2 is empty.
    Running,
    /// Then: the second firmware is in slot 2, tested and selected; nobody has restarted yet.
    Selected,
    /// Then: restarted, and the second firmware is confirmed.
    Upgraded,
}

impl Kept {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Selected => "selected",
            Self::Upgraded => "upgraded",
        }
    }
}

impl Stage {
    /// The stage of these programs and sources. What other ones have left is removed.
    pub fn new() -> anyhow::Result<Self> {
        let dirs = build_dirs()?;
        let all = dirs.base().join("vm");
        fs::create_dir_all(&all)?;
        let key = key()?;
        for entry in fs::read_dir(&all)? {
            let entry = entry?;
            if entry.file_name() != *key && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let directory = all.join(key);
        fs::create_dir_all(&directory)?;
        Ok(Self { dirs, directory })
    }

    /// Where logs of failures go.
    pub fn failures(&self) -> PathBuf {
        self.dirs.base().join("vm-failures")
    }

    /// The firmware ISO of version 8.0.`number`.
    pub fn firmware(&self, number: usize) -> anyhow::Result<PathBuf> {
        let version = VERSIONS.get(number - 1).context("there are three firmwares")?;
        let iso = self.directory.join(format!("{version}.iso"));
        if !iso.exists() {
            made(&format!("firmware {version}"), || {
                let change = |overlays: &Overlays| match number {
                    2 => misbehave(overlays),
                    3 => put_program(
                        &overlays.root,
                        "/usr/lib/sps/upgrade-checks.d/20-network",
                        &format!("#!/bin/sh\necho '{REFUSAL}'\nexit 1\n"),
                    ),
                    _ => Ok(()),
                };
                let builder = Builder::new(BuildDirs::new(self.dirs.base())?, &self.directory)?;
                let built = builder.firmware(version, change)?;
                if number == 1 {
                    builder.disk(&built)?;
                }
                Ok(())
            })?;
        }
        Ok(iso)
    }

    /// The disk of an appliance as the installer leaves it, with the first firmware.
    pub fn disk(&self) -> anyhow::Result<PathBuf> {
        self.firmware(1)?;
        Ok(self.directory.join(format!("{}.img", VERSIONS[0])))
    }

    /// A directory for a recording of what is written to the disk, with the disk as it is before, and what it trusts.
    pub fn recording(&self) -> anyhow::Result<PathBuf> {
        let (directory, disk) = (self.directory.join("recorded"), self.disk()?);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        for (name, target) in [(replay::DISK, disk), (replay::KEYRING, self.directory.join("pki/keyring"))] {
            symlink(target.canonicalize()?, directory.join(name))?;
        }
        Ok(directory)
    }

    /// The machine that [`Stage::resume`] gives, switched off.
    pub fn switched_off(&self, kept: Kept) -> anyhow::Result<Hardware> {
        Hardware::kept(&self.kept(kept)?)
    }

    /// A machine in the state that is asked for, running.
    pub fn resume(&self, kept: Kept, mishap: &str) -> anyhow::Result<(Hardware, Machine)> {
        let hardware = Hardware::kept(&self.kept(kept)?)?;
        let (second, first) = (self.firmware(2)?, self.firmware(1)?);
        let machine = hardware.resume(&Options {
            media: &[&second, &first],
            mishap: Some(mishap),
            ..Options::default()
        })?;
        Ok((hardware, machine))
    }

    fn kept(&self, kept: Kept) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(kept.name());
        if directory.is_dir() {
            return Ok(directory);
        }
        let (hardware, machine) = match kept {
            Kept::Running => {
                let hardware = Hardware::new(&self.disk()?)?;
                let (second, first) = (self.firmware(2)?, self.firmware(1)?);
                let options =
                    Options { media: &[&second, &first], mishap: Some("none"), ..Options::default() };
                let mut machine = hardware.power_on(&options)?;
                made("the first start", || {
                    eprintln!("vm: {}", machine.timed_login()?);
                    settled_in(&mut machine, 1)?;
                    let failed = machine.must("systemctl --failed --no-legend --plain")?;
                    ensure!(failed.is_empty(), "failed units after the first start: {failed}");
                    let all = settled(&mut machine)?;
                    ensure!(all["status"]["taint_count"] == 0, "a clean start left a taint record: {all:#}");
                    ensure!(all["slots"][0]["state"] == "verified", "the recovery image: {all:#}");
                    Ok(())
                })?;
                (hardware, machine)
            }
            Kept::Selected => {
                let (hardware, mut machine) = self.resume(Kept::Running, "none")?;
                made("the second firmware installed and selected", || select(&mut machine))?;
                (hardware, machine)
            }
            Kept::Upgraded => {
                let (hardware, mut machine) = self.resume(Kept::Selected, "none")?;
                made("the second firmware confirmed", || {
                    reboot(&mut machine)?;
                    settled_in(&mut machine, 2).map(drop)
                })?;
                (hardware, machine)
            }
        };
        machine.keep(&hardware, &directory)?;
        Ok(directory)
    }
}

fn made(what: &str, make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let begin = Instant::now();
    make().with_context(|| what.to_owned())?;
    eprintln!("vm: {what}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Lets the second firmware do what it is told.
fn misbehave(overlays: &Overlays) -> anyhow::Result<()> {
    let units = [
        (&overlays.initrd, "initrd", "initrd-root-device.target", "Before=initrd-root-device.target\n"),
        (&overlays.root, "root", "multi-user.target", "After=basic.target\n"),
    ];
    for (overlay, phase, target, order) in units {
        put_program(overlay, "/usr/lib/test/mishap", MISHAP_PROGRAM)?;
        let unit = format!(
            "[Unit]\nDescription=Mishap of the test\nDefaultDependencies=no\n{order}\
             [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh /usr/lib/test/mishap {phase}\n"
        );
        let system = overlay.join("usr/lib/systemd/system");
        let wants = system.join(format!("{target}.wants"));
        fs::create_dir_all(&wants)?;
        fs::write(system.join("test-mishap.service"), unit)?;
        symlink("../test-mishap.service", wants.join("test-mishap.service"))?;
    }
    let check = format!(
        "#!/bin/sh\nread -r mishap <{MISHAP}\n[ \"$mishap\" = ill ] || exit 0\necho '{ILLNESS}'\nexit 1\n"
    );
    put_program(&overlays.root, "/usr/lib/sps/health-checks.d/20-network", &check)
}

/// A name for everything that the firmwares and disks are made from.
fn key() -> anyhow::Result<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut hash = Sha256::new();
    let programs = Builder::programs()?;
    for file in programs {
        hash.update(fs::read(&file).with_context(|| file.display().to_string())?);
    }
    for part in [
        "systemd",
        "images/src",
        "images/packages.lock",
        "recovery/src",
        "tests/src/vm/appliance.rs",
        "tests/src/vm/stage.rs",
    ] {
        absorb(&sources.join(part), &mut hash)?;
    }
    Ok(hex::encode(hash.finalize()).get(..16).unwrap_or_default().to_owned())
}

fn absorb(path: &Path, hash: &mut Sha256) -> anyhow::Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
    if metadata.is_dir() {
        let mut entries =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| absorb(entry, hash));
    }
    let content = if metadata.is_symlink() {
        fs::read_link(path)?.into_os_string().into_encoded_bytes()
    } else {
        fs::read(path)?
    };
    hash.update((content.len() as u64).to_le_bytes());
    hash.update(content);
    Ok(())
}

/// The status once the health checks have ended.
pub fn settled(machine: &mut Machine) -> anyhow::Result<Value> {
    let said =
        machine.run_within("systemctl is-system-running --wait; spsctl status --json", SETTLED)?.output;
    let json = said.find('{').and_then(|at| said.get(at..)).unwrap_or_default();
    serde_json::from_str(json).with_context(|| format!("spsctl said {said}"))
}

/// The same, with the firmware of this slot confirmed.
pub fn settled_in(machine: &mut Machine, slot: u32) -> anyhow::Result<Value> {
    let all = settled(machine)?;
    let now = &all["status"];
    ensure!(
        now["booted"] == slot && now["confirmed"] == true && now["default"] == slot,
        "expected slot {slot}, confirmed: {all:#}"
    );
    Ok(all)
}

/// Restarts, and waits for the next login prompt.
pub fn reboot(machine: &mut Machine) -> anyhow::Result<()> {
    machine.begin("systemctl reboot")?;
    machine.restarted()?;
    machine.login().map(drop)
}

/// Installs from the stick, tests and selects.
pub fn select(machine: &mut Machine) -> anyhow::Result<()> {
    let installed = machine.json("spsctl install --json - </dev/vdb")?;
    ensure!(installed["job"]["slot"] == 2, "expected slot 2: {installed:#}");
    machine.must("spsctl test 2")?;
    machine.must("spsctl activate 2 --message 'in a test'").map(drop)
}
