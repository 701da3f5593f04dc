//! The disk of an appliance as the installer leaves it: a GPT with the partitions of `docs/appliance.md`, "Disk", one
//! firmware installed and confirmed.
//!
//! slotd's own engine installs the firmware, into files; these are then put in their places.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use nix::unistd::{Whence, lseek};
use slotd::device::loader::Loader;
use slotd::device::loader::efivarfs::Efivarfs;
use slotd::device::loader::uefi::SystemdBoot;
use slotd::domain::boot::Entry;
use slotd::initrd::data;
use slotd::settings::{Settings, SlotSettings};
use slotd::store::{Assembly, Environment, InstallRequest, Nowhere, Progress, Store};
use sps_base::slot::SlotId;

use crate::spec::EPOCH;
use crate::tool::Tool;
use crate::{BootKey, BuildDirs, Built, debian};

const MIB: u64 = 1 << 20;
/// Partitions begin and end at multiples of this, as partitioning tools do.
const ALIGN: u64 = MIB;
const ESP_SIZE: u64 = 1 << 30;
const STATE_SIZE: u64 = MIB;
/// Partition types: of the UEFI specification; our own for a slot and the state, so that nobody mounts or formats them; and
/// "Linux filesystem".
const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const SLOT_TYPE: &str = "6F2A1D0C-5B0E-4C1B-9E52-0A7D5B1C3E41";
const STATE_TYPE: &str = "6F2A1D0C-5B0E-4C1B-9E52-0A7D5B1C3E42";
const DATA_TYPE: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// How large things are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Of a slot, in bytes.
    pub slot: u64,
    /// Of the data partition, in bytes.
    pub data: u64,
}

/// One partition.
struct Partition {
    label: &'static str,
    kind: &'static str,
    start: u64,
    size: u64,
}

/// The partitions, in the order of the table.
fn partitions(sizes: &Sizes) -> [Partition; 5] {
    let mut start = ALIGN;
    [
        ("esp", ESP_TYPE, ESP_SIZE),
        ("sps-slot-1", SLOT_TYPE, sizes.slot),
        ("sps-slot-2", SLOT_TYPE, sizes.slot),
        ("sps-state", STATE_TYPE, STATE_SIZE),
        ("sps-data", DATA_TYPE, sizes.data),
    ]
    .map(|(label, kind, size)| {
        let partition = Partition { label, kind, start, size };
        start += size.next_multiple_of(ALIGN);
        partition
    })
}

/// Writes the disk of an appliance that runs `firmware` to `out`, a sparse file. `tree` is the Debian tree, which brings
/// the boot loader; `keyring` a directory of trusted roots and revocation lists; `key` signs the boot loader, and is what a
/// machine in setup mode is offered to trust.
///
/// Nothing in it is secret, and nothing identifies a machine but the GUIDs of its partitions.
pub fn write(
    firmware: &Built,
    dirs: &BuildDirs,
    tree: &Path,
    keyring: &Path,
    key: &BootKey,
    sizes: &Sizes,
    out: &Path,
) -> anyhow::Result<()> {
    for (what, size) in [("slot", sizes.slot), ("data", sizes.data)] {
        ensure!(
            size >= 16 * MIB && size.is_multiple_of(ALIGN),
            "{what}: {size} bytes; expected a multiple of 1 MiB, at least 16 MiB"
        );
    }
    let work = dirs.work()?;
    let parts = install(firmware, keyring, sizes, work.path())?;
    let esp = write_esp(&parts, tree, key, work.path())?;
    let data = File::create(work.path().join("data.img"))?;
    data.set_len(sizes.data)?;
    data.write_all_at(data::NEW, sizes.data - data::TAIL)?;
    let partial = PathBuf::from(format!("{}.partial", out.display()));
    if partial.exists() {
        fs::remove_file(&partial)?;
    }
    let disk = File::create_new(&partial).with_context(|| format!("{} cannot be made", partial.display()))?;
    let all = partitions(sizes);
    let end = all.last().map_or(0, |last| last.start + last.size);
    // The backup of the table lies behind the last partition.
    disk.set_len(end + ALIGN)?;
    write_table(&all, &partial, work.path())?;
    let contents = [
        esp,
        parts.join("slot-1.img"),
        parts.join("slot-2.img"),
        parts.join("state.img"),
        work.path().join("data.img"),
    ];
    for (partition, content) in all.iter().zip(contents) {
        copy_into(&content, &disk, partition)
            .with_context(|| format!("{} cannot be put into the disk", partition.label))?;
    }
    disk.sync_all()?;
    fs::rename(&partial, out).with_context(|| format!("{} cannot be written", out.display()))
}

/// Installs the firmware into slot 1 and confirms it, as on an appliance that has run it for a while.
fn install(firmware: &Built, keyring: &Path, sizes: &Sizes, work: &Path) -> anyhow::Result<PathBuf> {
    let parts = work.join("parts");
    fs::create_dir_all(parts.join("esp"))?;
    fs::create_dir_all(parts.join("variables"))?;
    for (name, size) in [("slot-1.img", sizes.slot), ("slot-2.img", sizes.slot), ("state.img", STATE_SIZE)] {
        File::create(parts.join(name))?.set_len(size)?;
    }
    let store = Store::assemble(assembly(&parts, keyring, "")?);
    store.reset_state("made by the installer")?;
    let request = InstallRequest { slot: SlotId::new(1), ..InstallRequest::default() };
    let reservation = store.reserve_install(&request)?;
    store.install(reservation, File::open(&firmware.iso)?.into(), &request, &Progress::default())?;
    drop(store);
    let cmdline = format!("roothash={}", firmware.manifest.root.verity.root_hash);
    let parts_of_running = assembly(&parts, keyring, &cmdline)?;
    if let Some(Ok(loader)) = &parts_of_running.loader {
        loader.set_default(&Entry::Slot(SlotId::new(1).context("slot 1")?))?;
    }
    Store::assemble(parts_of_running).confirm()?;
    Ok(parts)
}

/// What slotd would be configured with, but for the loader: its variables are those of no machine yet. `parts` is a
/// directory with `slot-1.img`, `slot-2.img`, `state.img`, and the directories `esp` and `variables`.
pub fn assembly(parts: &Path, keyring: &Path, cmdline: &str) -> anyhow::Result<Assembly> {
    let mut slots = Vec::new();
    for (number, label) in [(1, "A"), (2, "B")] {
        let id = SlotId::new(number).context("slot number")?;
        let device = parts.join(format!("slot-{number}.img"));
        slots.push(SlotSettings { id, label: label.to_owned(), device });
    }
    let esp = parts.join("esp");
    let loader = SystemdBoot::new(Efivarfs::new(&parts.join("variables")), &esp);
    let settings = Settings {
        compatible: "sps".into(),
        hardware: Some("*".into()),
        keyring: keyring.to_owned(),
        state: parts.join("state.img"),
        esp,
        data: None,
        configuration: None,
        upgrade_check: PathBuf::new(),
        check_runner: None,
        recycle_fallback: None,
        require_message: false,
        stall_timeout: Duration::from_secs(60),
        loader: None,
        slots,
    };
    let environment = Environment { cmdline: cmdline.into(), now, hardware: String::new() };
    Ok(Assembly {
        loader: Some(Ok(Arc::new(loader) as Arc<dyn Loader>)),
        surroundings: Arc::new(Nowhere),
        ..Assembly::from_settings(&settings, environment)
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The file system of the ESP: what slotd has written, the boot loader under both names, and the files that make a machine
/// in setup mode trust `key` (systemd-boot(7): an entry of its menu).
fn write_esp(parts: &Path, tree: &Path, key: &BootKey, work: &Path) -> anyhow::Result<PathBuf> {
    let content = parts.join("esp");
    let enrolment = content.join("loader/keys/sps");
    fs::create_dir_all(&enrolment)?;
    key.write_enrolment(EPOCH, work, &enrolment)?;
    let loader = work.join("loader.efi");
    key.sign(&tree.join(debian::LOADER), EPOCH, &loader)?;
    for name in ["EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"] {
        let target = content.join(name);
        fs::create_dir_all(target.parent().context("no directory")?)?;
        fs::copy(&loader, target)?;
    }
    let image = work.join("esp.img");
    File::create(&image)?.set_len(ESP_SIZE)?;
    Tool::new("mkfs.vfat", "dosfstools").args(["-F", "32", "-n", "ESP"]).arg(&image).run()?;
    let mut names: Vec<PathBuf> =
        fs::read_dir(&content)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    names.sort();
    Tool::new("mcopy", "mtools").args(["-s", "-m", "-Q", "-i"]).arg(&image).args(names).arg("::").run()?;
    Ok(image)
}

fn write_table(partitions: &[Partition], disk: &Path, work: &Path) -> anyhow::Result<()> {
    let mut script = String::from("label: gpt\nunit: sectors\n");
    for Partition { label, kind, start, size } in partitions {
        let line = format!("start={}, size={}, type={kind}, name=\"{label}\"\n", start / 512, size / 512);
        script.push_str(&line);
    }
    let file = work.join("table");
    fs::write(&file, script)?;
    Tool::new("sfdisk", "fdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .stdin(&file)
        .run()?;
    Ok(())
}

/// Copies what is written of a sparse file to the place of a partition.
fn copy_into(content: &Path, disk: &File, partition: &Partition) -> anyhow::Result<()> {
    let mut file = File::open(content)?;
    let len = file.metadata()?.len();
    ensure!(len <= partition.size, "{len} bytes do not fit into {}", partition.size);
    let mut target = disk.try_clone()?;
    let mut at = 0;
    loop {
        let data = match lseek(file.as_fd(), at, Whence::SeekData) {
            Ok(data) => data,
            Err(nix::errno::Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        at = lseek(file.as_fd(), data, Whence::SeekHole)?;
        let (from, length) = (u64::try_from(data)?, u64::try_from(at - data)?);
        file.seek(SeekFrom::Start(from))?;
        target.seek(SeekFrom::Start(partition.start + from))?;
        io::copy(&mut io::Read::take(&mut file, length), &mut target)?;
    }
}
