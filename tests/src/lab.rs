//! A store on files in a temporary directory, without a bus: the engine alone.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use slotd::device::esp::{DirectoryEsp, Esp};
use slotd::device::medium::{FileMedium, Medium};
use slotd::store::{
    Assembly, Environment, Failure, Files, InstallReport, InstallRequest, Progress, Store, Trust,
};
use sps_base::slot::SlotId;

/// Media of an appliance as files.
#[derive(Debug)]
pub struct Lab {
    /// Where they lie.
    pub root: PathBuf,
    keyring: PathBuf,
    slots: u32,
}

impl Lab {
    /// An appliance with `slots` slots of `size` bytes and a fresh, valid state.
    pub fn new(root: &Path, keyring: &Path, slots: u32, size: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(root.join("esp"))?;
        for slot in 1..=slots {
            File::create(root.join(format!("slot-{slot}.img")))?.set_len(size)?;
        }
        File::create(root.join("state.img"))?.set_len(1 << 20)?;
        let lab = Self { root: root.to_owned(), keyring: keyring.to_owned(), slots };
        lab.store("")?.reset_state("made by the test")?;
        Ok(lab)
    }

    /// Path of a slot.
    pub fn slot(&self, slot: u32) -> PathBuf {
        self.root.join(format!("slot-{slot}.img"))
    }

    /// What a store is put together from; `cmdline` is the kernel's.
    pub fn assembly(&self, cmdline: &str) -> anyhow::Result<Assembly> {
        let medium =
            |path: &Path| Ok::<_, anyhow::Error>(Arc::new(FileMedium::open(path)?) as Arc<dyn Medium>);
        let mut slots = Vec::new();
        for id in 1..=self.slots {
            let slot = SlotId::new(id).context("slot number")?;
            slots.push((slot, format!("slot {id}"), Ok(medium(&self.slot(id))?)));
        }
        let (roots, crls) = read_keyring(&self.keyring)?;
        Ok(Assembly {
            product: "sps".into(),
            hardware: "test".into(),
            stall: Duration::from_secs(10),
            keyring: Ok(Trust::Files(roots, crls)),
            slots,
            esp: Ok(Arc::new(DirectoryEsp::open(&self.root.join("esp"))?) as Arc<dyn Esp>),
            state: Ok(medium(&self.root.join("state.img"))?),
            loader: None,
            recycle_fallback: Some(false),
            require_message: false,
            surroundings: Arc::new(slotd::store::Nowhere),
            read_back: true,
            environment: Environment { cmdline: cmdline.into(), now, hardware: "test".into() },
        })
    }

    /// The store of these media, as slotd has it after its start.
    pub fn store(&self, cmdline: &str) -> anyhow::Result<Store> {
        Ok(Store::assemble(self.assembly(cmdline)?))
    }
}

/// Files of a keyring: roots, and revocation lists.
pub type KeyringFiles = (Files, Files);

/// The files in a keyring's directory.
pub fn read_keyring(directory: &Path) -> anyhow::Result<KeyringFiles> {
    let mut keyring = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let list = if path.extension().is_some_and(|e| e == "crl") { &mut keyring.1 } else { &mut keyring.0 };
        list.push((path.display().to_string(), fs::read(&path)?));
    }
    Ok(keyring)
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Installs `iso` as `request` says.
pub fn install(
    store: &Store,
    iso: impl Into<OwnedFd>,
    request: &InstallRequest,
) -> Result<InstallReport, Failure> {
    let reservation = store.reserve_install(request)?;
    store.install(reservation, iso.into(), request, &Progress::default())
}
