//! systemd-boot: variables of the UEFI firmware, and `loader/loader.conf` on the ESP as the second copy of the default.
//!
//! The loader takes the one-shot variable first (and removes it), then the default variable, then `loader.conf`; of
//! each it skips what is no text or matches no boot image. What starts the loader itself is in `firmware`.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::efivarfs::Variables;
use super::firmware::Firmware;
use super::{Loader, LoaderError};
use crate::domain::boot::{Entry, Selection};
use crate::domain::{efivar, loader_conf};

/// Where the configuration lies on the ESP.
pub const LOADER_CONF: &str = "loader/loader.conf";
/// The boot image of any recovery version: the loader takes patterns, and lists the newest version first.
const RECOVERY: &str = "sps-recovery-*.efi";

/// A file of the ESP that is overwritten in place.
pub trait Conf: Send + Sync + fmt::Debug {
    /// What to call it in errors.
    fn path(&self) -> &Path;
    /// The content as it is on the medium, at most one byte more than it may have; `None` when there is none.
    fn read(&self) -> Result<Option<Vec<u8>>, LoaderError>;
    /// Overwrites it in place, and makes its length right; on stable storage when it returns.
    fn write(&self, text: &[u8]) -> Result<(), LoaderError>;
}

/// A file of the mounted ESP. It is opened at each call.
#[derive(Debug)]
pub struct FileConf {
    path: PathBuf,
    limit: usize,
}

impl FileConf {
    /// The file at `path`, which may have so many bytes.
    pub fn new(path: PathBuf, limit: usize) -> Self {
        Self { path, limit }
    }

    fn fail(&self, operation: &'static str) -> impl FnOnce(io::Error) -> LoaderError {
        let path = self.path.clone();
        move |source| LoaderError::Io { path, operation, source }
    }
}

impl Conf for FileConf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<Option<Vec<u8>>, LoaderError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.fail("open")(e)),
        };
        // After a write and a flush, dropping the cache makes the device answer.
        let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut bytes = Vec::new();
        file.take(self.limit as u64 + 1).read_to_end(&mut bytes).map_err(self.fail("read"))?;
        Ok(Some(bytes))
    }

    /// Does not rename, which FAT cannot do safely. A file that slotd has written before keeps its length: then one
    /// sector changes, and nothing that says where the file is.
    fn write(&self, text: &[u8]) -> Result<(), LoaderError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(self.fail("make the directory of"))?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path);
        let file = file.map_err(self.fail("open"))?;
        file.write_all_at(text, 0).map_err(self.fail("write"))?;
        if file.metadata().map_err(self.fail("stat"))?.len() != text.len() as u64 {
            file.set_len(text.len() as u64).map_err(self.fail("cut"))?;
        }
        file.sync_all().map_err(self.fail("flush"))?;
        nix::unistd::syncfs(&file).map_err(|e| self.fail("flush")(e.into()))
    }
}

/// systemd-boot's settings.
#[derive(Debug)]
pub struct SystemdBoot<V, C = FileConf> {
    variables: Mutex<V>,
    conf: C,
    firmware: Option<Firmware>,
}

/// What one copy of a setting says.
enum Copy {
    /// Nothing, or it is not there.
    Absent,
    /// It names this.
    Entry(Entry),
    /// It cannot be read, so the loader skips it too.
    Broken(LoaderError),
}

impl<V: Variables> SystemdBoot<V> {
    /// The settings in these variables and on the ESP mounted at `esp`.
    pub fn new(variables: V, esp: &Path) -> Self {
        Self::with_conf(variables, FileConf::new(esp.join(LOADER_CONF), loader_conf::LIMIT))
    }
}

impl<V: Variables, C: Conf> SystemdBoot<V, C> {
    /// The settings in these variables and this configuration.
    pub fn with_conf(variables: V, conf: C) -> Self {
        Self { variables: Mutex::new(variables), conf, firmware: None }
    }

    /// The same, which the UEFI firmware is told to start.
    #[must_use]
    pub fn started_by(self, firmware: Firmware) -> Self {
        Self { firmware: Some(firmware), ..self }
    }

    fn conf(&self) -> Copy {
        let bytes = match self.conf.read() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Copy::Absent,
            Err(error) => return Copy::Broken(error),
        };
        match loader_conf::parse_default(&bytes) {
            Ok(Some(name)) => Copy::Entry(Entry::parse(&name)),
            Ok(None) => Copy::Absent,
            Err(e) => {
                Copy::Broken(LoaderError::Corrupt { path: self.conf.path().to_owned(), what: e.to_string() })
            }
        }
    }

    /// The configuration with another default; one that cannot be read is made anew.
    fn next_conf(&self, value: &str) -> Result<Vec<u8>, LoaderError> {
        let old = self.conf.read().unwrap_or_default();
        loader_conf::with_default(old.as_deref(), value)
            .map_err(|e| LoaderError::Refused { path: self.conf.path().to_owned(), what: e.to_string() })
    }

    fn write_conf(&self, new: &[u8]) -> Result<(), LoaderError> {
        self.conf.write(new)?;
        if self.conf.read()?.is_none_or(|read| read != new) {
            return Err(LoaderError::ReadBack { path: self.conf.path().to_owned() });
        }
        Ok(())
    }
}

impl<V: Variables, C: Conf> Loader for SystemdBoot<V, C> {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }

    fn read(&self) -> Result<Selection, LoaderError> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        let one_shot = match variable(&*variables, efivar::ONE_SHOT)? {
            Copy::Absent => None,
            Copy::Entry(entry) => Some(entry),
            Copy::Broken(error) => return Err(error),
        };
        let path = variables.path(efivar::DEFAULT);
        let (path, conf) = (path.display(), self.conf.path().display());
        let (default, damage) = match (variable(&*variables, efivar::DEFAULT)?, self.conf()) {
            (Copy::Absent, Copy::Absent) => (None, None),
            (Copy::Entry(first), Copy::Entry(second)) => {
                let damage = (first != second)
                    .then(|| format!("{conf} says {}, {path} says {}", second.name(), first.name()));
                (Some(first), damage)
            }
            (Copy::Entry(entry), Copy::Absent) => (Some(entry), Some(format!("{conf} names no default"))),
            (Copy::Entry(entry), Copy::Broken(error)) | (Copy::Broken(error), Copy::Entry(entry)) => {
                (Some(entry), Some(in_full(&error)))
            }
            (Copy::Absent, Copy::Entry(entry)) => (Some(entry), Some(format!("{path} is lost"))),
            (Copy::Broken(error), _) | (Copy::Absent, Copy::Broken(error)) => return Err(error),
        };
        Ok(Selection { default, one_shot, damage })
    }

    fn set_one_shot(&self, entry: Option<&Entry>) -> Result<(), LoaderError> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        match entry {
            Some(entry) => set_variable(&*variables, efivar::ONE_SHOT, &value(entry)),
            None => variables.remove(efivar::ONE_SHOT),
        }
    }

    /// First the variable, then `loader.conf`. The firmware replaces a variable as a whole, so at every moment one copy
    /// is intact: until the variable is set that is what was there before (a broken variable is as good as none, and
    /// `loader.conf` has not been touched); from then on it is the variable, which has been read back, and a cut may
    /// do to `loader.conf` what FAT allows (old, new, short, zero, absent): the loader comes to it only without the
    /// variable, and [`Loader::read`] reports the damage. Where the variable cannot be set (firmware locked or out of
    /// room) `loader.conf` stays as it is, for it may be the only copy.
    fn set_default(&self, entry: &Entry) -> Result<(), LoaderError> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        let value = value(entry);
        // What is refused is refused before anything is changed.
        let conf = self.next_conf(&value)?;
        // A one-shot that is no text the loader neither starts nor removes; until it is gone nothing can be told.
        if let Copy::Broken(_) = variable(&*variables, efivar::ONE_SHOT)? {
            variables.remove(efivar::ONE_SHOT)?;
        }
        set_variable(&*variables, efivar::DEFAULT, &value)?;
        self.write_conf(&conf)
    }

    fn started(&self) -> Option<Entry> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        match variable(&*variables, efivar::STARTED) {
            Ok(Copy::Entry(entry)) => Some(entry),
            Ok(Copy::Absent | Copy::Broken(_)) | Err(_) => None,
        }
    }

    fn settle_firmware(&self, recovery: Option<&str>, refresh: bool) -> Result<(), LoaderError> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(firmware) = &self.firmware else { return Ok(()) };
        let device = variables.read(efivar::DEVICE).ok().flatten();
        let device = device.and_then(|bytes| efivar::decode(&bytes).ok());
        firmware.settle(device.as_deref(), recovery, refresh)
    }
}

fn value(entry: &Entry) -> String {
    match entry {
        Entry::Slot(_) => format!("{}.efi", entry.name()),
        Entry::Recovery => RECOVERY.to_owned(),
        Entry::Other(name) => name.clone(),
    }
}

fn variable(variables: &impl Variables, name: &str) -> Result<Copy, LoaderError> {
    let Some(bytes) = variables.read(name)? else { return Ok(Copy::Absent) };
    Ok(match efivar::decode(&bytes) {
        Ok(text) if text.is_empty() => Copy::Absent,
        Ok(text) => Copy::Entry(Entry::parse(&text)),
        Err(e) => Copy::Broken(LoaderError::Corrupt { path: variables.path(name), what: e.to_string() }),
    })
}

/// Sets a variable where it does not hold this already: the firmware's flash wears, and reading asks the firmware.
fn set_variable(variables: &impl Variables, name: &str, text: &str) -> Result<(), LoaderError> {
    let path = variables.path(name);
    let bytes =
        efivar::encode(text).map_err(|e| LoaderError::Refused { path: path.clone(), what: e.to_string() })?;
    if variables.read(name)?.is_some_and(|old| old == bytes) {
        return Ok(());
    }
    variables.write(name, &bytes)?;
    if variables.read(name)?.is_none_or(|read| read != bytes) {
        return Err(LoaderError::ReadBack { path });
    }
    Ok(())
}

/// The error and its cause on one line.
fn in_full(error: &LoaderError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
