//! Media in memory that log every change in one global order.

mod faults;
mod files;
mod image;

use std::collections::BTreeMap;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use slotd::device::esp::{Esp, EspError};
use slotd::device::file_system::FileSystem;
use slotd::device::loader::efivarfs::Variables;
use slotd::device::loader::grub::{Block, Grub};
use slotd::device::loader::uefi::{Conf, LOADER_CONF, SystemdBoot};
use slotd::device::loader::{Loader, LoaderError};
use slotd::device::medium::{Medium, MediumError};
use slotd::device::probe::Readback;
use slotd::domain::{efivar, envblk};

pub use faults::{Faults, Place, Silent};
use files::RecordedFiles;
pub use files::{Change, Found, Listing, Node, Tree};
use image::PAGE;
pub use image::{Data, Digest, Image, digest};

/// What a simulated ESP holds in bytes, unless told otherwise.
const ESP_SIZE: u64 = 64 << 20;

/// Files of the ESP by name.
pub type Files = BTreeMap<String, Arc<Content>>;

/// The content of a file and, once asked for, its digest.
#[derive(Debug)]
pub struct Content {
    bytes: Vec<u8>,
    digest: OnceLock<Digest>,
}

impl Content {
    /// A file with these bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, digest: OnceLock::new() })
    }

    fn digest(&self) -> &Digest {
        self.digest.get_or_init(|| digest(&self.bytes))
    }
}

impl Deref for Content {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.bytes == other.bytes
    }
}

/// Which medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The state partition.
    State,
    /// The slot of this number, from 1.
    Slot(usize),
}

/// Variables of the UEFI firmware, by name: attributes and text.
pub type FirmwareVariables = BTreeMap<String, Vec<u8>>;

/// All media of an appliance.
#[derive(Clone, Debug, PartialEq)]
pub struct Media {
    /// The state partition.
    pub state: Image,
    /// Slot 1, 2, …
    pub slots: Vec<Image>,
    /// The ESP.
    pub esp: Files,
    /// GRUB's environment block.
    pub loader: [u8; envblk::SIZE],
    /// The variables of a machine that systemd-boot starts; `None` where GRUB does.
    pub variables: Option<FirmwareVariables>,
    /// What the ESP holds in bytes.
    pub esp_size: u64,
    /// The data partition.
    pub files: Arc<Tree>,
}

impl Media {
    /// Zeros everywhere, an empty ESP, and an environment block without variables.
    pub fn new(slots: usize, slot_size: usize) -> Self {
        let loader = envblk::Environment::default().render().unwrap_or([0; envblk::SIZE]);
        Self {
            state: Image::new(1 << 20),
            slots: vec![Image::new(slot_size); slots],
            esp: Files::new(),
            loader,
            variables: None,
            esp_size: ESP_SIZE,
            files: Arc::default(),
        }
    }

    /// The content of a medium.
    pub fn image(&mut self, device: Device) -> &mut Image {
        match device {
            Device::State => &mut self.state,
            Device::Slot(number) => &mut self.slots[number - 1],
        }
    }

    /// What tells this content of all media from any other.
    pub fn digest(&self) -> Digest {
        let mut all = Vec::with_capacity(2048);
        all.extend(self.state.digest());
        self.slots.iter().for_each(|slot| all.extend(slot.digest()));
        for (name, content) in &self.esp {
            all.extend(digest(name.as_bytes()));
            all.extend(content.digest());
        }
        all.extend(self.loader);
        for (name, bytes) in self.variables.iter().flatten() {
            all.extend(digest(name.as_bytes()));
            all.extend(digest(bytes));
        }
        all.extend(self.files.digest().into_iter().flatten());
        digest(&all)
    }

    /// Carries out one change.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { device, offset, data } => {
                self.image(*device).write_part(*offset, data, 0, data.len());
            }
            Event::EspCreate { name } => {
                self.esp.insert(name.clone(), Content::new(Vec::new()));
            }
            Event::EspWrite { name, offset, data } => {
                let at = usize::try_from(*offset).unwrap_or(0);
                let mut new = self.esp.get(name).map_or_else(Vec::new, |old| old.to_vec());
                new.resize(new.len().max(at + data.len()), 0);
                new[at..at + data.len()].copy_from_slice(data);
                self.esp.insert(name.clone(), Content::new(new));
            }
            Event::EspRemove { name } => {
                self.esp.remove(name);
            }
            Event::Loader { block } => self.loader = **block,
            Event::Variable { name, bytes } => {
                let variables = self.variables.get_or_insert_default();
                match bytes {
                    Some(bytes) => variables.insert(name.clone(), bytes.to_vec()),
                    None => variables.remove(name),
                };
            }
            Event::File(change) => Arc::make_mut(&mut self.files).apply(change),
            Event::Flush { .. } | Event::EspSyncFile { .. } | Event::EspSync => {}
        }
    }
}

/// A change of a medium, or a barrier.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where.
        device: Device,
        /// Byte.
        offset: u64,
        /// What.
        data: Data,
    },
    /// Everything written to this medium before is on stable storage.
    Flush {
        /// Which one.
        device: Device,
    },
    /// An empty file was made on the ESP.
    EspCreate {
        /// Its name.
        name: String,
    },
    /// Bytes were written to it.
    EspWrite {
        /// Its name.
        name: String,
        /// Byte.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// It was synced.
    EspSyncFile {
        /// Its name.
        name: String,
    },
    /// It was removed.
    EspRemove {
        /// Its name.
        name: String,
    },
    /// The whole ESP was synced.
    EspSync,
    /// The environment block was overwritten, and that is on stable storage.
    Loader {
        /// What it is now.
        block: Arc<[u8; envblk::SIZE]>,
    },
    /// A variable of the UEFI firmware was set or removed as a whole, and that is on stable storage.
    Variable {
        /// Its name.
        name: String,
        /// What it is now; `None` when it is gone.
        bytes: Option<Arc<[u8]>>,
    },
    /// The data partition.
    File(Change),
}

impl Event {
    /// Where it writes, and from which byte on.
    pub fn place(&self) -> Option<(Place, u64)> {
        match self {
            Self::Write { device, offset, .. } => Some((Place::Medium(*device), *offset)),
            Self::EspWrite { name, offset, .. } => Some((Place::File(name.clone()), *offset)),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write { device, offset, data } => {
                write!(f, "{device:?}: write {} bytes at {offset}", data.len())
            }
            Self::Flush { device } => write!(f, "{device:?}: flush"),
            Self::EspCreate { name } => write!(f, "ESP: create {name}"),
            Self::EspWrite { name, offset, data } => {
                write!(f, "ESP: write {} bytes at {offset} of {name}", data.len())
            }
            Self::EspSyncFile { name } => write!(f, "ESP: sync {name}"),
            Self::EspRemove { name } => write!(f, "ESP: remove {name}"),
            Self::EspSync => write!(f, "ESP: sync"),
            Self::Loader { block } => {
                let text = String::from_utf8_lossy(&block[..]);
                let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
                write!(f, "loader: write {settings:?}")
            }
            Self::File(change) => write!(f, "data: {change:?}"),
            Self::Variable { name, bytes: None } => write!(f, "loader: remove {name}"),
            Self::Variable { name, bytes: Some(bytes) } => {
                let text = efivar::decode(bytes).unwrap_or_else(|e| e.to_string());
                write!(f, "loader: set {name} to {text}")
            }
        }
    }
}

/// Called with each event after it was carried out.
type Watcher = Box<dyn FnMut(&Event) + Send>;

struct Inner {
    media: Media,
    log: Vec<Event>,
    watcher: Option<Watcher>,
    faults: Faults,
}

impl Inner {
    /// Fills `buf` from a medium, as the faults let it.
    fn read(&mut self, device: Device, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let bad = |(of, at): &(Device, u64)| *of == device && *at < end && at + PAGE as u64 > offset;
        if self.faults.unreadable.iter().any(bad) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        if !self.media.image(device).read(offset, buf) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(silent) = &self.faults.silent {
            silent.read(&Place::Medium(device), offset, buf);
        }
        let Some((left, old)) = &mut self.faults.stale else { return Ok(()) };
        let mut then = vec![0; buf.len()];
        if old.image(device).read(offset, &mut then) && then != *buf {
            if *left == 0 {
                buf.copy_from_slice(&then);
                self.faults.stale = None;
            } else {
                *left -= 1;
            }
        }
        Ok(())
    }
}

/// Media that log what is done to them. Clones are the same media.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorder({} events)", self.lock().log.len())
    }
}

impl Recorder {
    /// Media with this content and an empty log.
    pub fn new(media: Media) -> Self {
        Self(Arc::new(Mutex::new(Inner { media, log: Vec::new(), watcher: None, faults: Faults::default() })))
    }

    /// The same, with faults.
    pub fn faulty(media: Media, faults: Faults) -> Self {
        let recorder = Self::new(media);
        recorder.lock().faults = faults;
        recorder
    }

    /// Whether a read has answered with old content.
    pub fn was_stale(&self) -> bool {
        self.lock().faults.stale.is_none()
    }

    /// Has `watcher` called with each event, on the thread that caused it.
    pub fn watch(&self, watcher: impl FnMut(&Event) + Send + 'static) {
        self.lock().watcher = Some(Box::new(watcher));
    }

    /// What the media hold now.
    pub fn media(&self) -> Media {
        self.lock().media.clone()
    }

    /// What was done to them.
    pub fn log(&self) -> Vec<Event> {
        self.lock().log.clone()
    }

    /// One medium, as slotd takes it.
    pub fn medium(&self, device: Device) -> Arc<dyn Medium> {
        let size = self.lock().media.image(device).size();
        Arc::new(RecordedMedium { recorder: self.clone(), device, size })
    }

    /// The ESP, as slotd takes it.
    pub fn esp(&self) -> Arc<dyn Esp> {
        Arc::new(RecordedEsp(self.clone()))
    }

    /// The data partition, as slotd takes it.
    pub fn files(&self) -> Arc<dyn FileSystem> {
        Arc::new(RecordedFiles(self.clone()))
    }

    /// The boot loader's settings, as slotd takes them.
    pub fn loader(&self) -> Arc<dyn Loader> {
        if self.lock().media.variables.is_none() {
            return Arc::new(Grub::new(RecordedBlock(self.clone())));
        }
        Arc::new(SystemdBoot::with_conf(RecordedVariables(self.clone()), RecordedConf(self.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: Event) {
        let mut inner = self.lock();
        let event = match &mut inner.faults.silent {
            Some(silent) => silent.write(event),
            None => event,
        };
        inner.media.apply(&event);
        if let Event::Write { device, offset, data } = &event {
            let written = *offset..offset.saturating_add(data.len() as u64);
            inner.faults.unreadable.retain(|(of, at)| of != device || !written.contains(at));
        }
        if let Some(watcher) = &mut inner.watcher {
            watcher(&event);
        }
        inner.log.push(event);
    }
}

#[derive(Debug)]
struct RecordedMedium {
    recorder: Recorder,
    device: Device,
    size: u64,
}

impl RecordedMedium {
    fn fail(&self, operation: &'static str, offset: u64, length: usize, source: io::Error) -> MediumError {
        let path = format!("{:?}", self.device).into();
        MediumError { path, operation, offset, length: length as u64, source }
    }
}

impl Medium for RecordedMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        let read = self.recorder.lock().read(self.device, offset, buf);
        read.map_err(|source| self.fail("read", offset, buf.len(), source))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        let whole = offset.is_multiple_of(PAGE as u64) && data.len().is_multiple_of(PAGE);
        let inside = offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.size);
        if !(whole && inside) {
            return Err(self.fail("write", offset, data.len(), io::ErrorKind::InvalidInput.into()));
        }
        self.recorder.record(Event::Write { device: self.device, offset, data: data.into() });
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.recorder.record(Event::Flush { device: self.device });
        Ok(())
    }

    fn readback(&self) -> Readback {
        Readback::Direct
    }
}

#[derive(Debug)]
struct RecordedEsp(Recorder);

impl RecordedEsp {
    fn existing(&self, name: &str, operation: &'static str) -> Result<Arc<Content>, EspError> {
        let found = self.0.lock().media.esp.get(name).cloned();
        found.ok_or_else(|| EspError { path: name.into(), operation, source: io::ErrorKind::NotFound.into() })
    }
}

impl Esp for RecordedEsp {
    fn size(&self, name: &str) -> Result<Option<u64>, EspError> {
        Ok(self.0.lock().media.esp.get(name).map(|content| content.len() as u64))
    }

    fn list(&self) -> Result<Vec<String>, EspError> {
        // Of the directory with the boot images only.
        Ok(self.0.lock().media.esp.keys().filter(|name| !name.contains('/')).cloned().collect())
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), EspError> {
        let content = self.existing(name, "read")?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = content.get(at..).and_then(|rest| rest.get(..buf.len())).ok_or_else(|| EspError {
            path: name.into(),
            operation: "read",
            source: io::ErrorKind::UnexpectedEof.into(),
        })?;
        buf.copy_from_slice(found);
        let silent = &self.0.lock().faults.silent;
        if let Some(silent) = silent {
            silent.read(&Place::File(name.into()), offset, buf);
        }
        Ok(())
    }

    fn create(&self, name: &str) -> Result<(), EspError> {
        self.0.record(Event::EspCreate { name: name.into() });
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), EspError> {
        self.existing(name, "write")?;
        let free = self.free()?;
        let (limit, held) = {
            let inner = self.0.lock();
            let held: usize = inner.media.esp.values().map(|content| content.len()).sum();
            (inner.faults.esp_limit.unwrap_or(u64::MAX), held as u64)
        };
        if data.len() as u64 > free || held + data.len() as u64 > limit {
            let source = io::Error::from_raw_os_error(nix::libc::ENOSPC);
            return Err(EspError { path: name.into(), operation: "write", source });
        }
        self.0.record(Event::EspWrite { name: name.into(), offset, data: data.into() });
        Ok(())
    }

    fn sync_file(&self, name: &str) -> Result<(), EspError> {
        self.existing(name, "sync")?;
        self.0.record(Event::EspSyncFile { name: name.into() });
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), EspError> {
        self.0.record(Event::EspRemove { name: name.into() });
        Ok(())
    }

    fn sync(&self) -> Result<(), EspError> {
        self.0.record(Event::EspSync);
        Ok(())
    }

    fn free(&self) -> Result<u64, EspError> {
        let media = &self.0.lock().media;
        let held: u64 = media.esp.values().map(|content| content.len() as u64).sum();
        Ok(media.esp_size.saturating_sub(held))
    }
}

#[derive(Debug)]
struct RecordedBlock(Recorder);

impl Block for RecordedBlock {
    fn path(&self) -> &Path {
        Path::new("grubenv")
    }

    fn read(&self) -> Result<[u8; envblk::SIZE], LoaderError> {
        Ok(self.0.lock().media.loader)
    }

    fn write(&self, block: &[u8; envblk::SIZE]) -> Result<(), LoaderError> {
        self.0.record(Event::Loader { block: Arc::new(*block) });
        Ok(())
    }
}

#[derive(Debug)]
struct RecordedVariables(Recorder);

impl Variables for RecordedVariables {
    fn path(&self, variable: &str) -> PathBuf {
        variable.into()
    }

    fn read(&self, variable: &str) -> Result<Option<Vec<u8>>, LoaderError> {
        Ok(self.0.lock().media.variables.as_ref().and_then(|variables| variables.get(variable)).cloned())
    }

    fn write(&self, variable: &str, bytes: &[u8]) -> Result<(), LoaderError> {
        self.0.record(Event::Variable { name: variable.into(), bytes: Some(bytes.into()) });
        Ok(())
    }

    fn remove(&self, variable: &str) -> Result<(), LoaderError> {
        if self.read(variable)?.is_some() {
            self.0.record(Event::Variable { name: variable.into(), bytes: None });
        }
        Ok(())
    }
}

/// `loader.conf` as a file of the recorded ESP.
#[derive(Debug)]
struct RecordedConf(Recorder);

impl Conf for RecordedConf {
    fn path(&self) -> &Path {
        Path::new(LOADER_CONF)
    }

    fn read(&self) -> Result<Option<Vec<u8>>, LoaderError> {
        Ok(self.0.lock().media.esp.get(LOADER_CONF).map(|content| content.to_vec()))
    }

    fn write(&self, text: &[u8]) -> Result<(), LoaderError> {
        let name = || LOADER_CONF.to_owned();
        // A shorter one is cut: in a log that is a new file.
        if self.read()?.is_none_or(|old| old.len() > text.len()) {
            self.0.record(Event::EspCreate { name: name() });
        }
        self.0.record(Event::EspWrite { name: name(), offset: 0, data: text.into() });
        self.0.record(Event::EspSyncFile { name: name() });
        self.0.record(Event::EspSync);
        Ok(())
    }
}
