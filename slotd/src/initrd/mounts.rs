//! The writable parts of a system whose root is verified: `/data`, `/var`, `/etc` (`docs/appliance.md`, "What can be written").

#![expect(clippy::disallowed_methods, reason = "makes mount points and the machine's identity")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::configuration::{self, Made};
use super::data;
use crate::device::file_system::Mounted;
use crate::domain::generation::Start;
use crate::store::describe;

/// Fewest free bytes of a data partition that is not called full.
const FREE_BYTES: u64 = 1 << 20;
/// Fewest free files of one.
const FREE_FILES: u64 = 16;
/// Most memory of what stands in for a part that cannot be used.
const TEMPORARY: &str = "mode=0755,size=256m";
/// Most memory of what is changed in `/etc` until the next start.
const ETC: &str = "mode=0755,size=16m";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The data partition.
    pub device: PathBuf,
    /// The new root, `/sysroot`.
    pub root: PathBuf,
    /// A directory that is still there after the switch to the new root, `/run/sps`.
    pub run: PathBuf,
}

/// What the start has to know; written to `/run/sps/data.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Why `/data` is in memory; `None`: it is the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_lost: Option<String>,
    /// Why `/var` is in memory although `/data` is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_full: Option<String>,
    /// How this firmware's configuration came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Made>,
    /// Why this firmware has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_lost: Option<String>,
}

impl Report {
    /// Its file, in `/run/sps`.
    pub const FILE: &str = "data.json";
    /// Most bytes of it that are read.
    const LIMIT: u64 = 64 << 10;

    /// What the start left at `file`; nothing of note where nothing did.
    pub fn read(file: &Path) -> io::Result<Self> {
        let read = |file: File| {
            let mut text = Vec::new();
            file.take(Self::LIMIT).read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        match File::open(file) {
            Ok(file) => read(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }
}

/// Without this the system cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct MountError {
    /// What was tried.
    operation: &'static str,
    /// On what.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

fn fail<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> MountError {
    let path = path.to_owned();
    move |source| MountError { operation, path, source: source.into() }
}

/// Mounts the writable parts below `places.root`. `start` is what slotboot has found; without it no
/// configuration is prepared.
///
/// Whatever is wrong with the data partition is told in the answer, and memory stands in for it: only a root that cannot be
/// started is an error.
pub fn mount_all(places: &Places, start: Option<Start>) -> Result<Report, MountError> {
    let mut report = Report::default();
    let (data, var) = (places.root.join("data"), places.root.join("var"));
    if let Err(why) = mount_data(&places.device, &data) {
        report.data_lost = Some(why);
        temporary(&data)?;
    }
    let full = report.data_lost.is_none().then(|| full(&data)).flatten();
    let tree = ["machine", "config", "var", "taint"].iter().try_for_each(|name| directory(&data.join(name)));
    if let Some(why) = full.or_else(|| tree.err().map(|e| describe(&e))) {
        report.data_full = Some(why);
        temporary(&var)?;
    } else {
        mount(Some(&data.join("var")), &var, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(fail("mount", &var))?;
    }
    etc(places, &data)?;
    if let Some(Start { root_hash, configuration, .. }) = start {
        match configuration::prepare(&Mounted, &data.join("config"), &root_hash, &configuration) {
            Ok(made) => report.configuration = Some(made),
            Err(error) => report.configuration_lost = Some(describe(&error)),
        }
    }
    Ok(report)
}

/// Mounts the partition at `at`; why not, in one sentence.
fn mount_data(device: &Path, at: &Path) -> Result<(), String> {
    data::make_ready(device).map_err(|error| describe(&error))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(device), at, Some("ext4"), flags, None::<&str>)
        .map_err(|errno| format!("{} cannot be mounted: {errno}", device.display()))
}

fn full(data: &Path) -> Option<String> {
    let room = match nix::sys::statvfs::statvfs(data) {
        Ok(room) => room,
        Err(errno) => return Some(format!("the data partition cannot be measured: {errno}")),
    };
    let bytes = room.blocks_available().saturating_mul(room.fragment_size());
    let files = room.files_available();
    (bytes < FREE_BYTES || files < FREE_FILES).then(|| {
        format!("the data partition is full: {bytes} bytes and {files} files are free; make room and restart")
    })
}

fn temporary(at: &Path) -> Result<(), MountError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(TEMPORARY)).map_err(fail("mount memory at", at))
}

/// Lays memory over `/etc`, with this machine's identity in it.
fn etc(places: &Places, data: &Path) -> Result<(), MountError> {
    let (lower, memory) = (places.root.join("etc"), places.run.join("etc"));
    directory(&places.run)?;
    directory(&memory)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), flags, Some(ETC))
        .map_err(fail("mount memory at", &memory))?;
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    directory(&upper)?;
    directory(&work)?;
    let identity = upper.join("machine-id");
    fs::write(&identity, machine_id(&data.join("machine"))?).map_err(fail("write", &identity))?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &lower, Some("overlay"), flags, Some(options.as_str()))
        .map_err(fail("lay memory over", &lower))
}

/// This machine's id (machine-id(5)), made at the first start. Where it cannot be kept, it holds for this start.
fn machine_id(directory: &Path) -> Result<String, MountError> {
    let path = directory.join("machine-id");
    if let Ok(text) = fs::read_to_string(&path)
        && is_machine_id(&text)
    {
        return Ok(text);
    }
    let mut bytes = [0; 16];
    let random = Path::new("/dev/urandom");
    File::open(random).and_then(|mut file| file.read_exact(&mut bytes)).map_err(fail("read", random))?;
    let text = format!("{}\n", hex::encode(bytes));
    // Whole or not there: a cut in the first start is no reason for a second identity.
    let new = directory.join("machine-id.new");
    let keep = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    if let Err(error) = keep() {
        tracing::warn!("the machine's id is not kept: {}: {error}", path.display());
    }
    Ok(text)
}

fn is_machine_id(text: &str) -> bool {
    let digits = text.strip_suffix('\n').unwrap_or(text);
    let hexadecimal = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    digits.len() == 32 && hexadecimal && digits.bytes().any(|digit| digit != b'0')
}

/// Makes a directory of mode 0755 where there is none.
fn directory(path: &Path) -> Result<(), MountError> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, PermissionsExt::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(fail("make", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = machine_id(directory.path()).unwrap();
        assert!(is_machine_id(&first), "{first:?}");
        assert_eq!(machine_id(directory.path()).unwrap(), first);
        for broken in ["", "\n", "00000000000000000000000000000000\n", "uninitialized\n", "0123\n"] {
            fs::remove_file(directory.path().join("machine-id")).unwrap();
            fs::write(directory.path().join("machine-id"), broken).unwrap();
            let second = machine_id(directory.path()).unwrap();
            assert!(is_machine_id(&second) && second != first, "{broken:?}");
        }
        // What a cut in an earlier start has left is in nobody's way.
        fs::remove_file(directory.path().join("machine-id")).unwrap();
        fs::write(directory.path().join("machine-id.new"), "0123").unwrap();
        let third = machine_id(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("machine-id")).unwrap(), third);
        assert!(!directory.path().join("machine-id.new").exists());
        // It cannot be kept, and the start goes on.
        assert!(is_machine_id(&machine_id(&directory.path().join("none")).unwrap()));
    }
}
