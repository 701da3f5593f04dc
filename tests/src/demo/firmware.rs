//! The firmware ISOs: two real ones, and what no appliance takes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use slotd::domain::iso::{self, Head};
use slotd::domain::layout::{Extent, Part};
use slotd::domain::manifest::UpgradeFrom;
use sps_images::{Built, FirmwareSpec, Pki, Source, build_firmware};

use super::Setting;
use super::machine::Machine;
use super::transcript::Transcript;
use crate::overlay::{self, put_program};

/// Security epoch of the two real ones.
const EPOCH: u32 = 2;
/// Where slotd lies in the firmware, as its unit says.
pub(super) const SLOTD_IN_ROOT: &str = "/usr/lib/sps/slotd";
/// The directory of that.
const SPS_IN_ROOT: &str = "/usr/lib/sps";

/// The tree of 8.0.3, over Debian's.
const REFUSING: &str = "overlay-refusing";
/// The tree of 8.0.4, over Debian's.
pub(super) const ILL: &str = "overlay-ill";
const GOOD_CHECK: &str = "#!/bin/sh\necho \"$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB of memory, 512 are needed\"\n";
const GOOD_HEALTH: &str = "#!/bin/sh\necho all services run\n";
/// What the operator must be shown of it.
pub(super) const REFUSAL: &str = "the log partition is older than 8.0 and would lose its index";
const REFUSING_CHECK: &str = "#!/bin/sh\necho the log partition is older than 8.0 and would lose its index\n\
     echo hint: Archive the logs, then test again.\nexit 1\n";
/// What the operator must be shown of it.
pub(super) const ILLNESS: &str = "no address on nic1";
const ILL_CHECK: &str = "#!/bin/sh\necho no address on nic1\nexit 1\n";

/// All ISOs, in the machine's directory.
#[derive(Debug)]
pub(super) struct Shelf {
    /// 8.0.1.
    pub(super) old: Built,
    /// 8.0.2.
    pub(super) new: Built,
    /// 8.0.3: its own upgrade check refuses.
    pub(super) refuses: Built,
    /// 8.0.4: its health check fails.
    pub(super) ill: Built,
}

impl Shelf {
    /// Builds them all.
    pub(super) fn build(
        setting: &Setting<'_>,
        machine: &Machine,
        transcript: &mut Transcript,
    ) -> Result<Self> {
        transcript.heading("Two firmware ISOs from a real Debian 13 tree, with our slotd in it");
        // Made before the two builds, which would only wait for each other.
        let tree = sps_images::debian::debian_tree(setting.dirs)?;
        let overlay = machine.path("overlay");
        lay_out_overlay(setting, machine, &overlay)?;
        let start = Instant::now();
        let (refusing, ill) = (machine.path(REFUSING), machine.path(ILL));
        lay_out_overlay(setting, machine, &refusing)?;
        lay_out_overlay(setting, machine, &ill)?;
        put_program(&refusing, "upgrade-checks.d/20-disk-layout", REFUSING_CHECK)?;
        put_program(&ill, "health-checks.d/20-network", ILL_CHECK)?;
        let build = |version: &str, overlay: &Path| {
            let source = Source::Debian { overlay: Some(overlay.to_owned()), initrd: None, recovery: None };
            let mut spec = FirmwareSpec::new(version, source);
            spec.security_epoch = EPOCH;
            spec.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }];
            spec.notes = format!("# Version {version}\n\n- slotd proves every block before it is written.\n");
            let iso = machine.path(&format!("firmware-{version}.iso"));
            build_firmware(&spec, setting.dirs, &machine.pki, Some(&iso))
        };
        let ((old, new), (refuses, ill)) = std::thread::scope(|scope| {
            let others = scope.spawn(|| (build("8.0.3", &refusing), build("8.0.4", &ill)));
            let first = (build("8.0.1", &overlay), build("8.0.2", &overlay));
            anyhow::Ok((first, others.join().map_err(|_| anyhow::anyhow!("the build failed"))?))
        })?;
        machine.stop.check()?;
        let shelf = Self { old: old?, new: new?, refuses: refuses?, ill: ill? };
        Transcript::say(format!(
            "all built in {:.1} s from {}",
            start.elapsed().as_secs_f64(),
            tree.display()
        ));
        for built in [&shelf.old, &shelf.new, &shelf.refuses, &shelf.ill] {
            Transcript::say(format!(
                "{}: {} bytes, root {} bytes, manifest sha256 {}",
                name(&built.iso),
                built.size,
                built.manifest.root.size,
                built.manifest_sha256
            ));
        }
        let largest =
            [&shelf.old, &shelf.new, &shelf.refuses, &shelf.ill].map(|built| built.size).into_iter().max();
        machine.size_slots(largest.unwrap_or(0))?;
        shelf.agree(machine, transcript)?;
        Ok(shelf)
    }

    /// OpenSSL has not heard of us, and agrees with the signature.
    fn agree(&self, machine: &Machine, transcript: &mut Transcript) -> Result<()> {
        for part in [Part::Manifest, Part::Signature, Part::Boot] {
            let bytes = read(&self.new.iso, place(&self.new.iso, part)?)?;
            fs::write(machine.path(part.name()), bytes)?;
        }
        let root = machine.pki.keyring_dir().join("root.pem");
        let ran = machine.console.tool(&format!(
            "openssl cms -verify -binary -inform DER -in manifest.p7s -content manifest.json -purpose any \
             -CAfile {} -out /dev/null",
            root.display()
        ))?;
        transcript.check(ran.code == 0, "stock openssl verifies the signature of 8.0.2");
        Ok(())
    }
}

/// What an appliance of this product would run: slotd, spsctl, their configuration, and the trusted keys.
fn lay_out_overlay(setting: &Setting<'_>, machine: &Machine, overlay: &Path) -> Result<()> {
    overlay::lay_out(overlay, setting.sources, &machine.pki.keyring_dir())?;
    overlay::put(overlay, &setting.programs.join("slotd"), SPS_IN_ROOT)?;
    overlay::put(overlay, &setting.programs.join("spsctl"), "/usr/bin")?;
    put_program(overlay, "upgrade-checks.d/10-memory", GOOD_CHECK)?;
    put_program(overlay, "health-checks.d/10-services", GOOD_HEALTH)
}

/// A small ISO that is refused by its head already, so that no real tree is needed.
pub(super) fn build_small(
    machine: &Machine,
    file: &str,
    pki: &Pki,
    change: impl FnOnce(&mut FirmwareSpec),
) -> Result<()> {
    let tree = machine.path("small-tree");
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(tree.join("etc/motd"), "A small firmware.\n")?;
    let mut spec = FirmwareSpec::new("8.0.3", Source::Tree(tree));
    spec.security_epoch = EPOCH;
    spec.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }];
    change(&mut spec);
    build_firmware(&spec, &machine.dirs, pki, Some(&machine.path(file)))?;
    Ok(())
}

/// The first `length` bytes of a file as another one.
pub(super) fn copy_head(from: &Path, to: &Path, length: u64) -> Result<()> {
    io::copy(&mut File::open(from)?.take(length), &mut File::create(to)?)?;
    Ok(())
}

/// Inverts the lowest bit of one byte in place; doing it again undoes it.
pub(super) fn flip(path: &Path, offset: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 1], offset)?;
    Ok(file.sync_all()?)
}

/// Where a part lies on an ISO.
pub(super) fn place(iso: &Path, part: Part) -> Result<Extent> {
    let file = File::open(iso)?;
    let available = Some(file.metadata()?.len());
    let mut head = Vec::new();
    loop {
        match iso::parse_head(&head, available)? {
            Head::Complete(index) => return index.get(part).with_context(|| format!("no {}", part.name())),
            Head::Needs(length) => {
                head.resize(usize::try_from(length)?, 0);
                file.read_exact_at(&mut head, 0)?;
            }
        }
    }
}

fn read(path: &Path, place: Extent) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(place.size)?];
    File::open(path)?.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}

/// The file's name without its directories.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

/// Where a file's content lies in a root image, as `dump.erofs` says: offset and length of each
/// extent.
pub(super) fn extents_of(dump: &str) -> Vec<(u64, u64)> {
    let lines = dump.lines().filter(|line| line.contains("..") && line.contains(" | "));
    lines
        .filter_map(|line| {
            // index: from..to | length : from..to | length
            let numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
            match numbers.collect::<Vec<u64>>().as_slice() {
                [_, _, _, _, from, _, length] => Some((*from, *length)),
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_read() {
        let dump = "Size: 9  On-disk size: 9\n\n Ext:   logical offset   |  length :     physical offset    |  length\n   0:        0..   11042 |   11042 :    9572352..   9576448 |    4096 \n";
        assert_eq!(extents_of(dump), [(9_572_352, 4096)]);
        assert_eq!(extents_of(""), []);
    }

    #[test]
    fn a_flip_undoes_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        flip(file.path(), 1).unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"acc");
        flip(file.path(), 1).unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"abc");
    }
}
