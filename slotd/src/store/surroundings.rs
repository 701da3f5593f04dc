//! What a test asks beyond the slots: space, configuration, taint, the peer node, and the firmware's own programs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sps_base::slot::SlotId;

use super::assembly::describe;
use crate::check::{self, Request, Runner};
use crate::device::device_mapper::Verity;
use crate::domain::manifest::Sha256Hex;
use crate::domain::upgrade_check::{CheckResult, HA, TAINTED};
use crate::settings::{CheckRunner, Settings};

/// Where bubblewrap is.
const BWRAP: &str = "/usr/bin/bwrap";
/// What the programs of a firmware may take together.
const PROGRAMS_DEADLINE: Duration = Duration::from_secs(300);
/// Longest `HEAD` of a configuration generation that is read, in bytes.
const HEAD_LIMIT: u64 = 256;

/// A configuration generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Its newest revision.
    pub revision: String,
    /// When that was committed, RFC 3339.
    pub date: String,
}

/// The root image of a slot, for the programs that it carries.
#[derive(Clone, Debug)]
pub struct Root {
    /// Which slot.
    pub slot: SlotId,
    /// Length of the EROFS image at its start, in bytes.
    pub size: u64,
    /// The signed tree over it.
    pub verity: Verity,
    /// `SPS_…` variables that the programs get.
    pub variables: Vec<(String, String)>,
}

/// What the firmware's own programs said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// In the order of their names.
    pub checks: Vec<CheckResult>,
    /// `dm-verity`, or `none: ` and why.
    pub verity: String,
}

/// Everything around the slots. Every call blocks.
pub trait Surroundings: Send + Sync + fmt::Debug {
    /// Free bytes where a firmware keeps its data; `None` where that is not configured.
    fn free_space(&self) -> Result<Option<u64>, String>;
    /// The configuration generation of a firmware; `None` when it has none.
    fn configuration(&self, root_hash: Sha256Hex) -> Result<Option<Configuration>, String>;
    /// Whether the running system is as it was signed.
    fn taint(&self) -> CheckResult {
        CheckResult::skipped(TAINTED, "this version of slotd does not look for changed files yet")
    }
    /// Whether the peer node can follow.
    fn availability(&self) -> CheckResult {
        CheckResult::skipped(HA, "this appliance is not part of a high-availability pair")
    }
    /// Runs the check programs of a firmware from its own root. It has been verified just before.
    fn run_programs(&self, root: &Root, cancelled: &AtomicBool) -> Result<Programs, String>;
}

/// Nothing around the slots: for those who only install and select.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Surroundings for Nowhere {
    fn free_space(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    fn configuration(&self, _: Sha256Hex) -> Result<Option<Configuration>, String> {
        Ok(None)
    }

    fn run_programs(&self, _: &Root, _: &AtomicBool) -> Result<Programs, String> {
        Ok(Programs { checks: Vec::new(), verity: "none: nothing was mounted".into() })
    }
}

/// What the configuration names.
#[derive(Clone, Debug)]
pub struct Host {
    data: Option<PathBuf>,
    configuration: Option<PathBuf>,
    slots: BTreeMap<SlotId, PathBuf>,
    helper: PathBuf,
    runner: Runner,
}

impl Host {
    /// The surroundings that `settings` name.
    pub fn new(settings: &Settings) -> Self {
        let systemd = settings.check_runner.map_or_else(
            || Path::new("/run/systemd/system").is_dir(),
            |runner| runner == CheckRunner::Systemd,
        );
        Self {
            data: settings.data.clone(),
            configuration: settings.configuration.clone(),
            slots: settings.slots.iter().map(|slot| (slot.id, slot.device.clone())).collect(),
            helper: settings.upgrade_check.clone(),
            runner: if systemd {
                Runner::Systemd { bus: None }
            } else {
                Runner::Bubblewrap { program: BWRAP.into() }
            },
        }
    }
}

impl Surroundings for Host {
    fn free_space(&self) -> Result<Option<u64>, String> {
        let Some(directory) = &self.data else { return Ok(None) };
        let stat =
            nix::sys::statvfs::statvfs(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        Ok(Some(stat.blocks_available().saturating_mul(stat.fragment_size())))
    }

    fn configuration(&self, root_hash: Sha256Hex) -> Result<Option<Configuration>, String> {
        match &self.configuration {
            Some(directory) => read_configuration(directory, root_hash),
            None => Ok(None),
        }
    }

    fn run_programs(&self, root: &Root, cancelled: &AtomicBool) -> Result<Programs, String> {
        let image = self.slots.get(&root.slot).ok_or_else(|| format!("slot {} has no device", root.slot))?;
        let request = Request {
            helper: self.helper.clone(),
            image: image.clone(),
            size: root.size,
            verity: Some(root.verity.clone()),
            deadline: PROGRAMS_DEADLINE,
            environment: root.variables.clone(),
        };
        let report = check::run(&self.runner, &request, cancelled).map_err(|e| describe(&e))?;
        let result = |check: check::Check| match check.result {
            check::Outcome::Passed => {
                CheckResult { hint: check.hint, ..CheckResult::passed(&check.name, check.detail) }
            }
            check::Outcome::Failed => CheckResult::failed(&check.name, check.detail, check.hint),
        };
        Ok(Programs { checks: report.checks.into_iter().map(result).collect(), verity: report.verity })
    }
}

/// The newest revision of the generation in `directory/<root hash>`, from its `HEAD`.
fn read_configuration(directory: &Path, root_hash: Sha256Hex) -> Result<Option<Configuration>, String> {
    let head = directory.join(root_hash.to_string()).join("HEAD");
    let fail = |e: &dyn fmt::Display| format!("{}: {e}", head.display());
    let file = match fs::File::open(&head) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(&e)),
    };
    let changed = file.metadata().and_then(|metadata| metadata.modified()).map_err(|e| fail(&e))?;
    let mut text = String::new();
    file.take(HEAD_LIMIT + 1).read_to_string(&mut text).map_err(|e| fail(&e))?;
    let revision = text.trim().to_owned();
    if text.len() as u64 > HEAD_LIMIT
        || revision.is_empty()
        || !revision.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Err(fail(&"no revision number"));
    }
    let date = jiff::Timestamp::try_from(changed).map_err(|e| fail(&e))?;
    let date = date.round(jiff::Unit::Second).unwrap_or(date).to_string();
    Ok(Some(Configuration { revision, date }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_missing_damaged_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let hash = Sha256Hex([7; 32]);
        assert_eq!(read_configuration(dir.path(), hash), Ok(None));
        let generation = dir.path().join(hash.to_string());
        fs::create_dir(&generation).unwrap();
        assert_eq!(read_configuration(dir.path(), hash), Ok(None));
        for text in ["", "\n", "../x", &"1".repeat(257)] {
            fs::write(generation.join("HEAD"), text).unwrap();
            let error = read_configuration(dir.path(), hash).unwrap_err();
            assert!(error.contains("HEAD: no revision number"), "{error}");
        }
        fs::write(generation.join("HEAD"), "000042\n").unwrap();
        let found = read_configuration(dir.path(), hash).unwrap().unwrap();
        assert_eq!(found.revision, "000042");
        assert!(found.date.ends_with('Z') && found.date.len() == 20, "{}", found.date);
    }
}
