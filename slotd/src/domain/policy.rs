//! Whether a firmware may be installed here at all. Decided before a single byte is written.

use sps_base::error::ErrorKind;

use super::manifest::{Manifest, Version};

/// What this appliance is.
#[derive(Clone, Debug)]
pub struct Appliance<'a> {
    /// Product it takes firmware for.
    pub product: &'a str,
    /// Its hardware model.
    pub hardware: &'a str,
    /// Lowest security epoch it takes.
    pub epoch_floor: u32,
    /// Version of the running firmware; `None` when nothing runs from a slot (first installation).
    pub running: Option<&'a str>,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Another product.
    #[error(
        "this firmware is for {found}, this appliance takes {expected}; get the firmware of this product"
    )]
    Product {
        /// Product of the firmware.
        found: String,
        /// Product of the appliance.
        expected: String,
    },
    /// Other hardware (spec A3).
    #[error("hardware not supported: this firmware is for {supported}, this appliance is {hardware:?}")]
    Hardware {
        /// This appliance.
        hardware: String,
        /// What the firmware lists.
        supported: String,
    },
    /// Epoch below the floor.
    #[error(
        "security epoch {found} is below {floor}, which this appliance has reached: the image is too old to be safe; use a newer one"
    )]
    Epoch {
        /// Epoch of the firmware.
        found: u32,
        /// Floor of the appliance.
        floor: u32,
    },
    /// No rule of `upgrade_from` covers the running version.
    #[error("version {new} cannot be installed over {running}; it can over: {rules}. Upgrade in steps")]
    UpgradeFrom {
        /// Version of the firmware.
        new: String,
        /// Running version.
        running: String,
        /// What is listed.
        rules: String,
    },
    /// Older than what runs.
    #[error("version {new} is older than the running {running}; to go back, use revert")]
    Older {
        /// Version of the firmware.
        new: String,
        /// Running version.
        running: String,
    },
    /// A running version that is no version.
    #[error("the running firmware calls itself {0:?}, which is no version")]
    Running(String),
}

impl PolicyError {
    /// Contract name.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Product { .. } | Self::Hardware { .. } => ErrorKind::Incompatible,
            Self::Epoch { .. } => ErrorKind::EpochTooOld,
            Self::UpgradeFrom { .. } | Self::Older { .. } | Self::Running(_) => ErrorKind::VersionPolicy,
        }
    }
}

/// Whether `manifest` may be installed on this appliance.
pub fn admit(manifest: &Manifest, appliance: &Appliance<'_>) -> Result<(), PolicyError> {
    let compatible = &manifest.compatible;
    if compatible.product != appliance.product {
        return Err(PolicyError::Product {
            found: compatible.product.clone(),
            expected: appliance.product.to_owned(),
        });
    }
    if !compatible.hardware.iter().any(|model| model == "*" || model == appliance.hardware) {
        return Err(PolicyError::Hardware {
            hardware: appliance.hardware.to_owned(),
            supported: compatible.hardware.join(", "),
        });
    }
    if manifest.security_epoch < appliance.epoch_floor {
        return Err(PolicyError::Epoch { found: manifest.security_epoch, floor: appliance.epoch_floor });
    }
    appliance.running.map_or(Ok(()), |running| admit_version(manifest, running))
}

/// Whether a rule of `upgrade_from` covers a running firmware of this version.
pub fn is_listed(manifest: &Manifest, running: &Version) -> bool {
    let covers = |min: &str| Version::parse(min).is_some_and(|min| *running >= min);
    manifest.upgrade_from.iter().any(|rule| running.is_of_line(&rule.from) && covers(&rule.min))
}

fn admit_version(manifest: &Manifest, running: &str) -> Result<(), PolicyError> {
    let (Some(new), Some(old)) = (Version::parse(&manifest.version), Version::parse(running)) else {
        return Err(PolicyError::Running(running.to_owned()));
    };
    if !is_listed(manifest, &old) {
        let rules: Vec<String> =
            manifest.upgrade_from.iter().map(|rule| format!("{} from {}", rule.from, rule.min)).collect();
        return Err(PolicyError::UpgradeFrom {
            new: manifest.version.clone(),
            running: running.to_owned(),
            rules: if rules.is_empty() { "nothing".into() } else { rules.join(", ") },
        });
    }
    if new < old {
        return Err(PolicyError::Older { new: manifest.version.clone(), running: running.to_owned() });
    }
    Ok(())
}
