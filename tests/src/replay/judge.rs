//! What must hold of an appliance's media at any time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use slotd::domain::boot::Entry;
use slotd::domain::loader_conf;
use slotd::store::{Progress, SlotView, SlotWord, Store, VerifyMode};
use sps_base::slot::SlotId;
use sps_images::appliance::disk;

use super::{JUDGED, bytes, stdout};

/// The boot loader under both names.
const LOADERS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];
const CONF: &str = "loader/loader.conf";
/// Longest boot loader that is believed, in bytes.
const LOADER_LIMIT: u64 = 4 << 20;
/// Where the boot sector of a FAT32 says that the file system is in use.
const IN_USE: u64 = 65;
/// How `fsck.vfat -n` talks of what a cut may leave in the file system of the ESP and the loader and slotd live with:
/// clusters belong to no file, and one of the two tables is a write behind.
const HARMLESS: [&str; 7] = [
    "fsck.fat ",
    "FATs differ but appear to be intact.",
    "  Using first FAT.",
    "Reclaimed ",
    "Free cluster summary ",
    "  Auto-",
    "Leaving filesystem unchanged.",
];

/// Where the content of a partition is.
pub(super) fn file_of(work: &Path, name: &str) -> PathBuf {
    work.join(format!("{}.img", name.trim_start_matches("sps-")))
}

/// Looks at the media again and again.
pub(super) struct Judge {
    work: PathBuf,
    keyring: PathBuf,
    /// The boot loaders as they were.
    loaders: BTreeMap<&'static str, Vec<u8>>,
    /// Slots that were found healthy, and have not been written since.
    healthy: [bool; 2],
    epoch: u32,
}

impl Judge {
    pub(super) fn new(work: &Path, keyring: &Path) -> Self {
        let (work, keyring) = (work.to_owned(), keyring.to_owned());
        Self { work, keyring, loaders: BTreeMap::new(), healthy: [false; 2], epoch: 0 }
    }

    /// What does not hold. `changed` says of which partition of [`JUDGED`] something was written since the last time.
    pub(super) fn judge(&mut self, changed: &[bool], checks: &mut u64) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let is_changed =
            |name: &str| JUDGED.iter().zip(changed).any(|(part, changed)| *part == name && *changed);
        if is_changed("esp") {
            wrong.extend(self.file_system()?);
        }
        self.loaders(&mut wrong);
        for (slot, healthy) in ["sps-slot-1", "sps-slot-2"].into_iter().zip(&mut self.healthy) {
            *healthy &= !is_changed(slot);
        }
        let seen = self.work.join("seen");
        let _ = fs::remove_dir_all(&seen);
        // What is looked at may be written to: a check is remembered.
        fs::create_dir(&seen)?;
        fs::create_dir(seen.join("variables"))?;
        fs::copy(self.work.join("state.img"), seen.join("state.img"))?;
        for link in ["esp", "slot-1.img", "slot-2.img"] {
            std::os::unix::fs::symlink(self.work.join(link), seen.join(link))?;
        }
        let store = Store::look(disk::assembly(&seen, &self.keyring, "")?);
        store.look_at_recovery();
        let (health, why) = store.state();
        if health != "valid" {
            wrong.push(format!("the state is {health}: {why}"));
        }
        let epoch = store.summary().security_epoch;
        if epoch < self.epoch {
            wrong.push(format!("the epoch floor sank from {} to {epoch}", self.epoch));
        }
        self.epoch = epoch;
        let slots = store.slots();
        self.default(&slots, &mut wrong);
        for (view, index) in slots.iter().filter(|view| view.id != SlotId::RECOVERY).zip(0..) {
            if view.state == SlotWord::Verified && self.healthy.get(index) == Some(&false) {
                *checks += 1;
                wrong.extend(check(&store, view.id)?);
                self.healthy[index] = true;
            }
        }
        if slots.iter().any(|view| view.id == SlotId::RECOVERY && view.state == SlotWord::Verified) {
            wrong.extend(check(&store, SlotId::RECOVERY)?);
        } else {
            wrong.push(format!("no recovery image is sound: {:?}", slots.first()));
        }
        Ok(wrong)
    }

    /// Reads the ESP anew; answers what a file system's own judge has to say.
    fn file_system(&self) -> anyhow::Result<Vec<String>> {
        let (image, to) = (self.work.join("esp.img"), self.work.join("esp"));
        // That it is in use is no flaw.
        let (disk, mut used) = (fs::File::options().read(true).write(true).open(&image)?, [0]);
        disk.read_exact_at(&mut used, IN_USE)?;
        disk.write_all_at(&[0], IN_USE)?;
        let found = Command::new("fsck.vfat").arg("-n").arg(&image).output().context("fsck.vfat")?;
        disk.write_all_at(&used, IN_USE)?;
        let said = [String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr)].concat();
        let tells =
            |line: &&str| !line.is_empty() && !HARMLESS.iter().any(|harmless| line.starts_with(harmless));
        let summary = |line: &str| line.contains(" files, ") && line.ends_with(" clusters");
        let wrong = said.lines().filter(tells).filter(|line| !summary(line));
        let mut wrong: Vec<_> = wrong.map(|line| format!("fsck.vfat: {line}")).collect();
        // 1: there is something that it would mend.
        if !matches!(found.status.code(), Some(0 | 1)) || !said.lines().any(summary) {
            wrong.push(format!("fsck.vfat gave up: {said}"));
        }
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to)?;
        let copied = stdout(Command::new("mcopy").args(["-s", "-n", "-i"]).arg(&image).arg("::/").arg(&to));
        wrong.extend(copied.err().map(|error| format!("the ESP cannot be read: {error:#}")));
        Ok(wrong)
    }

    /// The boot loader is as it was; there is no other in this recording.
    fn loaders(&mut self, wrong: &mut Vec<String>) {
        for name in LOADERS {
            let found = bytes(&self.work.join("esp").join(name), LOADER_LIMIT).unwrap_or_default();
            let before = self.loaders.entry(name).or_insert_with(|| found.clone());
            if found.is_empty() || found != *before {
                wrong.push(format!("{name} has {} bytes and is not what it was", found.len()));
            }
        }
    }

    /// What the loader starts when it has no variables is a slot whose boot image and root belong together.
    fn default(&self, slots: &[SlotView], wrong: &mut Vec<String>) {
        let conf = bytes(&self.work.join("esp").join(CONF), loader_conf::LIMIT as u64).unwrap_or_default();
        let default = loader_conf::parse_default(&conf).ok().flatten();
        let slot = default.as_deref().map(Entry::parse).and_then(|entry| entry.slot());
        // A slot is not called verified unless its boot image on the ESP is the one of its manifest.
        let view = slots.iter().find(|view| slot == Some(view.id));
        if view.is_none_or(|view| view.state != SlotWord::Verified) {
            wrong.push(format!("the default is {default:?}, which is {view:?}"));
        }
    }
}

/// What a full check of a slot finds wrong.
fn check(store: &Store, slot: SlotId) -> anyhow::Result<Option<String>> {
    let report = store.verify(&store.reserve_verify(slot)?, VerifyMode::Full, false, &Progress::default())?;
    Ok((!report.healthy).then(|| format!("slot {slot}: {}", report.summary)))
}
