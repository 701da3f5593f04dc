//! Putting a store together: from the configuration, or from parts that somebody else made.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use sps_base::slot::SlotId;

use super::state_store::StateStore;
use super::surroundings::{Host, Surroundings};
use super::{Slot, Store};
use crate::device::esp::{DirectoryEsp, Esp};
use crate::device::loader::Loader;
use crate::device::loader::efivarfs::Efivarfs;
use crate::device::loader::firmware::Firmware;
use crate::device::loader::grub::{FileBlock, Grub};
use crate::device::loader::uefi::SystemdBoot;
use crate::device::medium::{FileMedium, Medium};
use crate::device::partition::EspDevice;
use crate::domain::machine::LoaderFound;
use crate::domain::signature::Keyring;
use crate::settings::{LoaderSettings, Settings};

/// Most files in a keyring directory that are read.
const MAX_KEYRING_FILES: usize = 64;
/// Longest file of a keyring, in bytes.
const MAX_KEYRING_FILE: u64 = 1 << 20;

/// What the store is told about its surroundings.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Text of /proc/cmdline.
    pub cmdline: String,
    /// Unix seconds.
    pub now: fn() -> u64,
    /// Hardware model, where the configuration names none.
    pub hardware: String,
}

/// A slot and what it is made of; `Err` says why it could not be opened.
pub type SlotMedium = (SlotId, String, Result<Arc<dyn Medium>, String>);

/// Files of a keyring: name and content.
pub type Files = Vec<(String, Vec<u8>)>;

/// What is trusted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Root certificates and CRLs.
    Files(Files, Files),
    /// A keyring that several stores share, with what it has verified.
    Keyring(Arc<Keyring>),
}

/// Everything a store works with. [`Store::open`] makes one from the configuration; tests and benchmarks put
/// recorders and simulators in.
#[derive(Debug)]
pub struct Assembly {
    /// Product.
    pub product: String,
    /// Hardware model.
    pub hardware: String,
    /// A stream that is silent for this long is given up.
    pub stall: Duration,
    /// What is trusted, or why nothing is.
    pub keyring: Result<Trust, String>,
    /// Slots, ascending.
    pub slots: Vec<SlotMedium>,
    /// The ESP.
    pub esp: Result<Arc<dyn Esp>, String>,
    /// The state medium.
    pub state: Result<Arc<dyn Medium>, String>,
    /// The boot loader; `None` where none is configured.
    pub loader: Option<Result<Arc<dyn Loader>, String>>,
    /// Whether the fallback of a confirmed firmware may be overwritten when no slot is empty; with exactly two slots
    /// where nothing is said.
    pub recycle_fallback: Option<bool>,
    /// Whether nothing is selected without a message.
    pub require_message: bool,
    /// What a test asks beyond the slots.
    pub surroundings: Arc<dyn Surroundings>,
    /// Read back what was written. Only a benchmark says no.
    pub read_back: bool,
    /// Surroundings.
    pub environment: Environment,
}

impl Assembly {
    /// What the configuration names. A device that cannot be opened is a state of its slot, not an error.
    pub fn from_settings(settings: &Settings, environment: Environment) -> Self {
        let open = |path: &Path| match FileMedium::open(path) {
            Ok(medium) => Ok(Arc::new(medium) as Arc<dyn Medium>),
            Err(e) => Err(e.to_string()),
        };
        let esp = match DirectoryEsp::open(&settings.esp) {
            Ok(esp) => Ok(Arc::new(esp) as Arc<dyn Esp>),
            Err(e) => Err(e.to_string()),
        };
        Self {
            product: settings.compatible.clone(),
            hardware: settings.hardware.clone().unwrap_or_else(|| environment.hardware.clone()),
            stall: settings.stall_timeout,
            keyring: read_keyring(&settings.keyring),
            slots: settings
                .slots
                .iter()
                .map(|slot| (slot.id, slot.label.clone(), open(&slot.device)))
                .collect(),
            esp,
            state: open(&settings.state),
            loader: settings.loader.as_ref().map(|loader| Ok(open_loader(loader, &settings.esp))),
            recycle_fallback: settings.recycle_fallback,
            require_message: settings.require_message,
            surroundings: Arc::new(Host::new(settings)),
            read_back: true,
            environment,
        }
    }
}

fn open_loader(settings: &LoaderSettings, esp: &Path) -> Arc<dyn Loader> {
    match settings {
        LoaderSettings::Grub { environment } => Arc::new(Grub::new(FileBlock::new(environment))),
        LoaderSettings::SystemdBoot { variables, program } => {
            let entries = Efivarfs::of_firmware(variables);
            let firmware = Firmware::new(entries, EspDevice::mounted(esp), esp, program);
            Arc::new(SystemdBoot::new(Efivarfs::new(variables), esp).started_by(firmware))
        }
    }
}

impl Store {
    /// Opens what the configuration names, carries out what an interruption left to do, and looks at every slot.
    /// Blocks for as long as the devices do.
    pub fn open(settings: &Settings, environment: Environment) -> Self {
        Self::assemble(Assembly::from_settings(settings, environment))
    }

    /// A store of these parts, settled and looked at.
    pub fn assemble(parts: Assembly) -> Self {
        let store = Self::put_together(parts);
        store.settle();
        store.look_at_recovery();
        store.settle_selection();
        store.settle_firmware();
        store
    }

    /// A store of these parts that has looked at everything and changed nothing: for the initrd, where
    /// [`Store::count_start`] is all that may be written.
    pub fn look(parts: Assembly) -> Self {
        let store = Self::put_together(parts);
        for index in 0..store.slots.len() {
            store.refresh(index);
        }
        store
    }

    fn put_together(parts: Assembly) -> Self {
        let state = StateStore::open(parts.state);
        let now = (parts.environment.now)().max(state.get().state.time_floor);
        let keyring = match parts.keyring {
            Ok(Trust::Files(roots, crls)) => {
                Keyring::parse(&roots, &crls, now).map(Arc::new).map_err(|e| describe(&e))
            }
            Ok(Trust::Keyring(keyring)) => Ok(keyring),
            Err(why) => Err(why),
        };
        let slots: Vec<Slot> =
            parts.slots.into_iter().map(|(id, label, medium)| Slot { id, label, medium }).collect();
        let recycle_fallback = parts.recycle_fallback.unwrap_or(slots.len() == 2);
        let store = Self {
            product: parts.product,
            hardware: parts.hardware,
            stall: parts.stall,
            read_back: parts.read_back,
            now: parts.environment.now,
            booted_hash: root_hash_of(&parts.environment.cmdline),
            started: parts.loader.as_ref().and_then(|loader| loader.as_ref().ok()?.started()?.slot()),
            keyring,
            known: RwLock::new(slots.iter().map(|_| Arc::default()).collect()),
            slots,
            esp: parts.esp,
            state,
            busy: Arc::new(Mutex::new(BTreeSet::new())),
            writer: Arc::new(Mutex::new(false)),
            loader: parts.loader,
            loader_found: RwLock::new(LoaderFound::None),
            selecting: Mutex::new(()),
            recycle_fallback,
            require_message: parts.require_message,
            surroundings: parts.surroundings,
            tests: Mutex::default(),
            recovery: RwLock::default(),
            firmware_warning: RwLock::default(),
            taint: Mutex::default(),
            taint_shown: RwLock::default(),
        };
        store.look_at_loader();
        store
    }
}

/// The value of `roothash=` on a kernel command line. The last one counts, as for systemd.
fn root_hash_of(cmdline: &str) -> Option<String> {
    cmdline
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("roothash="))
        .map(str::to_ascii_lowercase)
}

/// An error with everything below it, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The files of a keyring directory: `*.pem`, `*.crt` and `*.der` are roots, `*.crl` revocation lists.
fn read_keyring(directory: &Path) -> Result<Trust, String> {
    let fail = |path: &Path, e: &dyn std::fmt::Display| format!("keyring {}: {e}", path.display());
    let (mut roots, mut crls) = (Vec::new(), Vec::new());
    let mut paths: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.take(MAX_KEYRING_FILES + 1).map(|e| e.map(|e| e.path())).collect())
        .map_err(|e: std::io::Error| fail(directory, &e))?;
    if paths.len() > MAX_KEYRING_FILES {
        return Err(fail(directory, &format!("more than {MAX_KEYRING_FILES} files")));
    }
    paths.sort();
    for path in paths {
        let list = match path.extension().and_then(|e| e.to_str()) {
            Some("pem" | "crt" | "der") => &mut roots,
            Some("crl") => &mut crls,
            _ => continue,
        };
        let length = fs::metadata(&path).map_err(|e| fail(&path, &e))?.len();
        if length > MAX_KEYRING_FILE {
            return Err(fail(&path, &format!("{length} bytes; the limit is {MAX_KEYRING_FILE}")));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        list.push((name, fs::read(&path).map_err(|e| fail(&path, &e))?));
    }
    Ok(Trust::Files(roots, crls))
}
