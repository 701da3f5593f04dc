//! Is the running firmware healthy? What the units `sps-health`, `sps-trial` and `sps-boot-report` run.
//!
//! Only a client of slotd: slotd decides what a confirmation or a rejection means.

pub mod checks;
pub mod report;
pub mod trial;

use std::time::Duration;

use sps_base::dbus::{ManagerProxy, Properties};
use zbus::proxy::CacheProperties;
use zbus::{Connection, connection};

/// How long slotd may take for one answer. Reading never waits for writing.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Pause between two attempts to reach slotd.
const RETRY: Duration = Duration::from_secs(1);

/// Why slotd could not be asked or told something.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The bus is not there, or does not speak with us.
    #[error("cannot reach {}", bus.as_deref().map_or("the system bus", |address| address))]
    Bus {
        /// Its address; none is the system bus.
        bus: Option<String>,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// slotd does not answer.
    #[error("slotd does not answer {what}; `systemctl status slotd` tells more")]
    Slotd {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// slotd would not take the verdict.
    #[error("slotd did not accept that the firmware is {verdict}")]
    Verdict {
        /// healthy or not healthy.
        verdict: &'static str,
        /// Why.
        #[source]
        source: zbus::Error,
    },
}

impl HealthError {
    /// The whole chain in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}

/// One connection to slotd.
#[derive(Clone, Debug)]
pub struct Slotd {
    connection: Connection,
    manager: ManagerProxy<'static>,
}

impl Slotd {
    /// Connects to the bus at `bus`, or the system bus.
    pub async fn connect(bus: Option<&str>) -> Result<Self, HealthError> {
        let failed = |source| HealthError::Bus { bus: bus.map(str::to_owned), source };
        let builder = match bus {
            Some(address) => connection::Builder::address(address),
            None => connection::Builder::system(),
        };
        let build = builder.method_timeout(ANSWER_TIME).build();
        let connection = match tokio::time::timeout(ANSWER_TIME, build).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(failed(zbus::Error::Failure("no answer in time".to_owned()))),
        };
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(failed)?;
        Ok(Self { connection, manager })
    }

    async fn booted(&self) -> Result<u32, HealthError> {
        self.manager.booted().await.map_err(|source| HealthError::Slotd { what: "which slot runs", source })
    }

    async fn trial(&self) -> Result<bool, HealthError> {
        let what = "whether this is a trial";
        self.manager.trial().await.map_err(|source| HealthError::Slotd { what, source })
    }

    async fn confirmed(&self) -> Result<bool, HealthError> {
        let what = "whether the firmware is confirmed";
        self.manager.confirmed().await.map_err(|source| HealthError::Slotd { what, source })
    }

    async fn last_upgrade(&self) -> Result<Properties, HealthError> {
        let what = "how the last upgrade went";
        self.manager.last_upgrade().await.map_err(|source| HealthError::Slotd { what, source })
    }

    async fn slot(&self, number: u32) -> Result<Properties, HealthError> {
        let failed = |source| HealthError::Slotd { what: "what is in the slot that runs", source };
        let path = format!("{}/slot/{number}", sps_base::dbus::SLOTS1_PATH);
        let proxy = zbus::fdo::PropertiesProxy::builder(&self.connection)
            .destination(sps_base::dbus::SLOTS1_NAME)
            .path(path)
            .build()
            .await
            .map_err(failed)?;
        let interface = zbus::names::InterfaceName::from_static_str_unchecked("org.spsagent.Slots1.Slot");
        proxy.get_all(interface).await.map_err(|error| failed(error.into()))
    }

    async fn confirm(&self) -> Result<(), HealthError> {
        let verdict = "healthy";
        self.manager.confirm().await.map_err(|source| HealthError::Verdict { verdict, source })
    }

    async fn reject(&self, reason: &str) -> Result<(), HealthError> {
        let verdict = "not healthy";
        self.manager.reject(reason).await.map_err(|source| HealthError::Verdict { verdict, source })
    }
}

/// A text among properties; empty where there is none.
fn text(properties: &Properties, key: &str) -> String {
    let value = properties.get(key).and_then(|value| <&str>::try_from(&**value).ok()).unwrap_or_default();
    crate::check::report::one_line(value, crate::check::report::TEXT_LIMIT)
}
