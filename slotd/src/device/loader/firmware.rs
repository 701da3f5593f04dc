//! What the UEFI firmware starts: the loader first, the recovery image second; and the loader's own program on the ESP.
//!
//! Nothing is written that is there already, for the firmware's memory wears. Entries of others are never changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::{info, warn};

use super::LoaderError;
use super::efivarfs::Variables;
use super::uefi::{Conf, FileConf};
use crate::device::esp::BOOT_IMAGES;
use crate::device::partition::EspDevice;
use crate::domain::efivar;
use crate::domain::load_option::{self, LoadOption, LoadOptionError, Partition, Wanted};
use crate::domain::systemd_boot::{self, Place, Step};

/// What our entries are called.
const LOADER: &str = "SPS firmware";
/// See [`LOADER`].
const RECOVERY: &str = "SPS recovery";

const ATTRIBUTES: usize = size_of::<u32>();

/// The firmware's boot entries, and the copies of the loader that they start.
#[derive(Debug)]
pub struct Firmware {
    variables: Mutex<Box<dyn Variables>>,
    esp: EspDevice,
    installed: Box<dyn Conf>,
    removable: Box<dyn Conf>,
    /// The loader of the running system; the signed one beside it is preferred.
    program: PathBuf,
}

impl Firmware {
    /// The entries in these variables, for the ESP mounted at `mount`, which is `esp`; `program` is the loader of the
    /// running system.
    pub fn new(variables: impl Variables + 'static, esp: EspDevice, mount: &Path, program: &Path) -> Self {
        let copy = |place: Place| Box::new(FileConf::new(mount.join(place.path()), systemd_boot::LIMIT));
        Self {
            variables: Mutex::new(Box::new(variables)),
            esp,
            installed: copy(Place::Installed),
            removable: copy(Place::Removable),
            program: program.to_owned(),
        }
    }

    /// The same with other copies on the ESP.
    #[must_use]
    pub fn with_copies(self, installed: Box<dyn Conf>, removable: Box<dyn Conf>) -> Self {
        Self { installed, removable, ..self }
    }

    /// Puts the loader first and the recovery image `recovery` second; with `refresh` the loader is replaced before, where
    /// the running system has a newer one. `told` is the GUID of the ESP's partition, as the loader says.
    ///
    /// Where the partition cannot be found out, nothing is done, and the log says so.
    pub fn settle(
        &self,
        told: Option<&str>,
        recovery: Option<&str>,
        refresh: bool,
    ) -> Result<(), LoaderError> {
        let partition = match self.esp.partition(told) {
            Ok(partition) => partition,
            Err(e) => {
                warn!(ERROR = %e, "the firmware's boot entries are left as they are: {e}");
                return Ok(());
            }
        };
        let recovery = recovery.map(|name| format!("\\{}\\{name}", BOOT_IMAGES.replace('/', "\\")));
        let put = |places: &[Place]| self.put_first(&partition, places, recovery.as_deref());
        let (mut installed, mut removable) = (self.installed.read()?, self.removable.read()?);
        if let Some(new) = if refresh { self.program()? } else { None } {
            for step in systemd_boot::plan(&new, installed.as_deref(), removable.as_deref()) {
                match step {
                    Step::StartFrom(place) => put(&[place])?,
                    Step::Write(place) => self.write(place, &new)?,
                }
            }
            (installed, removable) = (self.installed.read()?, self.removable.read()?);
        }
        let places = systemd_boot::startable(installed.as_deref(), removable.as_deref());
        if places.is_empty() {
            // The recovery image alone must not come first.
            warn!(
                "the firmware's boot entries are left as they are: the ESP has no systemd-boot, or another loader too"
            );
            return Ok(());
        }
        put(&places)
    }
}

impl Firmware {
    /// Every wanted entry that can be had, first; the order last, so that it never names what is not there.
    fn put_first(
        &self,
        partition: &Partition,
        places: &[Place],
        recovery: Option<&str>,
    ) -> Result<(), LoaderError> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = BTreeMap::new();
        for name in variables.names()? {
            let Some(number) = load_option::number(&name) else { continue };
            // One that cannot be read is somebody else's.
            let entry = content(&**variables, &name).ok().flatten();
            let entry = entry.and_then(|bytes| LoadOption::parse(&bytes).ok());
            found.insert(number, entry);
        }
        let fail = |name: &str| {
            let path = variables.path(name);
            move |e: LoadOptionError| LoaderError::Corrupt { path, what: e.to_string() }
        };
        let order = content(&**variables, load_option::ORDER)?.unwrap_or_default();
        let order = load_option::parse_order(&order).map_err(fail(load_option::ORDER))?;
        let wanted = [
            Wanted { description: LOADER, files: places.iter().map(|place| place.entry()).collect() },
            Wanted { description: RECOVERY, files: recovery.map(str::to_owned).into_iter().collect() },
        ];
        let plan = load_option::plan(&found, &order, partition, &wanted).map_err(fail(load_option::ORDER))?;
        for (number, entry) in plan.entries {
            let name = load_option::variable(number);
            set(&**variables, &name, &entry.render().map_err(fail(&name))?)?;
            info!("the firmware's boot entry {name} is now {}", entry.description);
        }
        match plan.order {
            Some(order) => set(&**variables, load_option::ORDER, &load_option::render_order(&order)),
            None => Ok(()),
        }
    }

    fn write(&self, place: Place, program: &[u8]) -> Result<(), LoaderError> {
        let copy = match place {
            Place::Installed => &self.installed,
            Place::Removable => &self.removable,
        };
        copy.write(program)?;
        if copy.read()?.is_none_or(|read| read != program) {
            return Err(LoaderError::ReadBack { path: copy.path().to_owned() });
        }
        info!(
            "{} is now systemd-boot {}",
            copy.path().display(),
            systemd_boot::version(program).unwrap_or_default()
        );
        Ok(())
    }

    /// The loader of the running system; `None` where it has none.
    fn program(&self) -> Result<Option<Vec<u8>>, LoaderError> {
        let mut signed = self.program.clone().into_os_string();
        signed.push(".signed");
        for path in [PathBuf::from(signed), self.program.clone()] {
            let fail = |operation| {
                let path = path.clone();
                move |source| LoaderError::Io { path, operation, source }
            };
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(fail("open")(e)),
            };
            let mut program = Vec::new();
            file.take(systemd_boot::LIMIT as u64 + 1).read_to_end(&mut program).map_err(fail("read"))?;
            if program.len() > systemd_boot::LIMIT {
                let what = format!("larger than {} bytes; that is no boot loader", systemd_boot::LIMIT);
                return Err(LoaderError::Corrupt { path, what });
            }
            return Ok(Some(program));
        }
        Ok(None)
    }
}

/// A variable without its attributes; `None` when there is none.
fn content(variables: &dyn Variables, name: &str) -> Result<Option<Vec<u8>>, LoaderError> {
    let bytes = variables.read(name)?;
    Ok(bytes.map(|bytes| bytes.get(ATTRIBUTES..).unwrap_or_default().to_vec()))
}

fn set(variables: &dyn Variables, name: &str, content: &[u8]) -> Result<(), LoaderError> {
    let bytes = [&efivar::ATTRIBUTES.to_le_bytes(), content].concat();
    variables.write(name, &bytes)?;
    if variables.read(name)?.is_none_or(|read| read != bytes) {
        return Err(LoaderError::ReadBack { path: variables.path(name) });
    }
    Ok(())
}
