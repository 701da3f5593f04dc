//! Upgrading as a client of slotd does it: test, activate, confirm, reject, revert.
#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a broken test bench fails the test here"
)]

use std::collections::HashMap;

use sps_base::dbus::{ManagerProxy, Properties};
use zbus::wire::Variant;

use crate::client::{Client, Refusal, Shown};

/// Options of a call.
pub type Options<'a> = &'a [(&'a str, Variant<'static>)];

fn map(options: Options<'_>) -> HashMap<&str, Variant<'static>> {
    options.iter().map(|(name, value)| (*name, value.try_clone().unwrap())).collect()
}

/// What the manager says of the selection: (Booted, Default, `AfterReboot`, Trial, Confirmed, Fallback).
pub type Selection = (u32, u32, u32, bool, bool, u32);

impl Client {
    async fn proxy(&self) -> Result<ManagerProxy<'_>, Refusal> {
        Ok(ManagerProxy::new(&self.connection).await?)
    }

    /// Starts a test; the job's path.
    pub async fn test(&self, slot: u32, options: Options<'_>) -> Result<String, Refusal> {
        Ok(self.slot_proxy(slot).await?.test(map(options)).await?.to_string())
    }

    /// Tests a slot; the job when it is over.
    pub async fn tested(&self, slot: u32, options: Options<'_>) -> Shown {
        let job = self.test(slot, options).await.unwrap();
        self.end(&job).await
    }

    /// Selects a slot for one start.
    pub async fn activate(&self, slot: u32, message: &str) -> Result<(), Refusal> {
        Ok(self.slot_proxy(slot).await?.activate(message, HashMap::new()).await?)
    }

    /// Takes the selection back.
    pub async fn deactivate(&self, slot: u32) -> Result<(), Refusal> {
        Ok(self.slot_proxy(slot).await?.deactivate().await?)
    }

    /// The running firmware is healthy.
    pub async fn confirm(&self) -> Result<(), Refusal> {
        Ok(self.proxy().await?.confirm().await?)
    }

    /// The running firmware is not.
    pub async fn reject(&self, reason: &str) -> Result<(), Refusal> {
        Ok(self.proxy().await?.reject(reason).await?)
    }

    /// Back to an earlier firmware.
    pub async fn revert(&self, reason: &str, options: Options<'_>) -> Result<(), Refusal> {
        Ok(self.proxy().await?.revert(reason, map(options)).await?)
    }

    /// A fresh state in place of a lost one.
    pub async fn reset_state(&self, reason: &str) -> Result<(), Refusal> {
        Ok(self.proxy().await?.reset_state(reason).await?)
    }

    /// What the manager says of the selection.
    pub async fn selection(&self) -> Selection {
        let shown = self.manager().await;
        (
            shown.get("Booted"),
            shown.get("Default"),
            shown.get("AfterReboot"),
            shown.get("Trial"),
            shown.get("Confirmed"),
            shown.get("Fallback"),
        )
    }

    /// How the last selection went; empty where there was none.
    pub async fn last_upgrade(&self) -> Shown {
        Shown::of(self.manager().await.get::<Properties>("LastUpgrade"))
    }

    /// Outcome and reason of the last selection.
    pub async fn outcome(&self) -> (String, String) {
        let last = self.last_upgrade().await;
        (last.text("outcome"), last.text("reason"))
    }

    /// All warnings, one to a line.
    pub async fn warnings(&self) -> String {
        self.manager().await.get::<Vec<String>>("Warnings").join("\n")
    }
}
