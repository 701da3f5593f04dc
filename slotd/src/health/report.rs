//! The version lines of every boot (spec row A13).

use std::time::Duration;

use sps_base::journal;
use tokio::time::{Instant, sleep};

use super::{HealthError, RETRY, Slotd, text};

/// What runs, as one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootReport {
    /// Number of the slot; 0 when the system came from none.
    pub slot: u32,
    /// Version of the firmware.
    pub version: String,
    /// Version of its boot chain.
    pub boot_version: String,
    /// dm-verity root hash, hex.
    pub root_hash: String,
    /// Whether this start is a trial.
    pub trial: bool,
    /// How the last selection went; empty when there was none.
    pub last_upgrade: String,
}

impl std::fmt::Display for BootReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.slot == 0 {
            write!(f, "the running system came from no slot")?;
        } else {
            write!(f, "slot {} runs firmware {}", self.slot, self.version)?;
            if !self.boot_version.is_empty() {
                write!(f, ", boot version {}", self.boot_version)?;
            }
            write!(
                f,
                ", root hash {}, {}",
                self.root_hash,
                if self.trial { "on trial" } else { "no trial" }
            )?;
        }
        let last = if self.last_upgrade.is_empty() { "none" } else { &self.last_upgrade };
        write!(f, "; last upgrade: {last}")
    }
}

/// Asks slotd, again until `deadline` has passed, and logs what runs.
pub async fn report(bus: Option<&str>, deadline: Duration) -> Result<BootReport, HealthError> {
    let end = Instant::now() + deadline;
    let report = loop {
        match ask(bus).await {
            Ok(report) => break report,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => sleep(RETRY).await,
        }
    };
    tracing::info!(
        MESSAGE_ID = journal::BOOT_REPORT,
        SLOT = report.slot,
        VERSION = report.version,
        BOOT_VERSION = report.boot_version,
        ROOT_HASH = report.root_hash,
        TRIAL = report.trial,
        LAST_UPGRADE = report.last_upgrade,
        "{report}"
    );
    Ok(report)
}

async fn ask(bus: Option<&str>) -> Result<BootReport, HealthError> {
    let slotd = Slotd::connect(bus).await?;
    let slot = slotd.booted().await?;
    let firmware = if slot == 0 { super::Properties::new() } else { slotd.slot(slot).await? };
    let last = slotd.last_upgrade().await?;
    let mut last_upgrade = text(&last, "outcome");
    for (before, key) in [(" ", "kind"), (" of ", "from_version"), (" to ", "version"), (": ", "reason")] {
        let value = text(&last, key);
        if !value.is_empty() {
            last_upgrade.push_str(before);
            last_upgrade.push_str(&value);
        }
    }
    Ok(BootReport {
        slot,
        version: text(&firmware, "Version"),
        boot_version: text(&firmware, "BootVersion"),
        root_hash: text(&firmware, "RootHash"),
        trial: slotd.trial().await?,
        last_upgrade,
    })
}
