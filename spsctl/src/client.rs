//! Everything that talks to the bus.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::time::Duration;

use sps_base::dbus::{
    ManagerProxy, Properties, SLOTS1_NAME, SLOTS1_PATH, SlotProxy, Taint1Proxy, job_path, path_number,
    slot_path,
};
use sps_base::slot::SlotId;
use zbus::fdo::{DBusProxy, ObjectManagerProxy, PropertiesProxy};
use zbus::names::{BusName, InterfaceName, OwnedUniqueName};
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::{Fd, ObjectPath, OwnedObjectPath, Variant};
use zbus::{Connection, MatchRule, MessageStream, connection};

use crate::error::CtlError;
use crate::model::{self, Job, Slot, Summary, Taint};

/// How long a reading call may take; reading never waits for writing.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a call may take for which polkit may ask a person for a password.
const INTERACTIVE_DEADLINE: Duration = Duration::from_secs(300);

/// Taint records of one call.
const TAINT_PAGE: u32 = 256;
/// Most taint records that are asked for.
const TAINT_LIMIT: usize = 1 << 16;

const MANAGER: &str = "org.spsagent.Slots1.Manager";
const SLOT: &str = "org.spsagent.Slots1.Slot";
const JOB: &str = "org.spsagent.Slots1.Job";

/// Options of a method.
pub type Options<'a> = HashMap<&'a str, Variant<'a>>;

/// One connection to one running slotd.
///
/// Calls go to slotd's unique name: a slotd that is started again while a job is followed is another one, and the
/// bus then says that the first is gone.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
    slotd: OwnedUniqueName,
}

/// What `GetManagedObjects` lists.
#[derive(Debug, Default)]
pub struct Objects {
    /// By number.
    pub slots: Vec<Slot>,
    /// By number.
    pub jobs: Vec<Job>,
}

impl Client {
    /// Connects to the bus at `address` (the system bus when there is none) and starts slotd when it does not run.
    pub async fn connect(address: Option<&str>) -> Result<Self, CtlError> {
        let builder = match address {
            Some(address) => connection::Builder::address(address),
            None => connection::Builder::system(),
        };
        let doing = match address {
            Some(address) => format!("cannot reach the bus at {address}"),
            None => "cannot reach the system bus".to_owned(),
        };
        let connection = within(DEADLINE, builder.method_timeout(DEADLINE).build())
            .await
            .map_err(|source| CtlError::Unreachable { doing, source })?;
        let slotd = find_slotd(&connection).await.map_err(|source| CtlError::Unreachable {
            doing: format!(
                "cannot reach slotd ({SLOTS1_NAME}) on the bus; `systemctl status slotd` tells more"
            ),
            source,
        })?;
        Ok(Self { connection, slotd })
    }

    /// Slots and jobs, in one call.
    pub async fn objects(&self) -> Result<Objects, CtlError> {
        let failed = |error| CtlError::from_bus(error, "listing slots and jobs", "object");
        let proxy = ObjectManagerProxy::builder(&self.connection)
            .destination(self.destination())
            .path(SLOTS1_PATH)
            .build()
            .await
            .map_err(failed)?;
        let managed = proxy.get_managed_objects().await.map_err(|error| failed(error.into()))?;
        let mut objects = Objects::default();
        for (path, interfaces) in &managed {
            for (interface, values) in interfaces {
                match (interface.as_str(), path_number(path)) {
                    (SLOT, Some(_)) => objects.slots.push(model::slot(path.as_str(), values)?),
                    (JOB, Some(number)) => objects.jobs.push(model::job(number, values)?),
                    _ => {}
                }
            }
        }
        objects.slots.sort_by_key(|slot| slot.id);
        objects.jobs.sort_by_key(|job| job.number);
        Ok(objects)
    }

    /// The manager's properties.
    pub async fn summary(&self) -> Result<Summary, CtlError> {
        model::summary(&self.get_all(SLOTS1_PATH, MANAGER, "manager").await?)
    }

    /// A job's properties, raw, for merging changes into them.
    pub async fn job_properties(&self, number: u64) -> Result<Properties, CtlError> {
        self.get_all(&job_path(number), JOB, &format!("job {number}")).await
    }

    /// A job.
    pub async fn job(&self, number: u64) -> Result<Job, CtlError> {
        model::job(number, &self.job_properties(number).await?)
    }

    /// The property changes of a job, as messages.
    pub async fn job_changes(&self, number: u64) -> Result<MessageStream, CtlError> {
        let failed = |error| CtlError::from_bus(error, "listening to the job", "job");
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(self.slotd.as_str())
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path(job_path(number))
            .build()
            .map_err(failed)?;
        MessageStream::for_match_rule(rule, &self.connection, None).await.map_err(failed)
    }

    /// Starts an install; the number of its job.
    pub async fn install(&self, image: OwnedFd, options: Options<'_>) -> Result<u64, CtlError> {
        let arguments = (Fd::Owned(image), options);
        let job: OwnedObjectPath =
            self.interactive(SLOTS1_PATH, MANAGER, "Install", &arguments, "slot").await?;
        job_number(&job)
    }

    /// Starts a verification; the number of its job.
    pub async fn verify(&self, slot: SlotId, mode: &str, options: Options<'_>) -> Result<u64, CtlError> {
        let subject = format!("slot {slot}");
        let job: OwnedObjectPath =
            self.interactive(&slot_path(slot), SLOT, "Verify", &(mode, options), &subject).await?;
        job_number(&job)
    }

    /// Starts a test; the number of its job.
    pub async fn test(&self, slot: SlotId, options: Options<'_>) -> Result<u64, CtlError> {
        let job: OwnedObjectPath =
            self.interactive(&slot_path(slot), SLOT, "Test", &(options,), &format!("slot {slot}")).await?;
        job_number(&job)
    }

    /// Selects a slot for one trial start.
    pub async fn activate(&self, slot: SlotId, message: &str) -> Result<(), CtlError> {
        let arguments = (message, Options::new());
        self.interactive(&slot_path(slot), SLOT, "Activate", &arguments, &format!("slot {slot}")).await
    }

    /// Takes the selection of a slot back.
    pub async fn deactivate(&self, slot: SlotId) -> Result<(), CtlError> {
        self.interactive(&slot_path(slot), SLOT, "Deactivate", &(), &format!("slot {slot}")).await
    }

    /// The running firmware is healthy.
    pub async fn confirm(&self) -> Result<(), CtlError> {
        self.interactive(SLOTS1_PATH, MANAGER, "Confirm", &(), "manager").await
    }

    /// The running firmware, in a trial, is not healthy.
    pub async fn reject(&self, reason: &str) -> Result<(), CtlError> {
        self.interactive(SLOTS1_PATH, MANAGER, "Reject", &(reason,), "manager").await
    }

    /// Selects an earlier firmware for a trial.
    pub async fn revert(&self, reason: &str, options: Options<'_>) -> Result<(), CtlError> {
        self.interactive(SLOTS1_PATH, MANAGER, "Revert", &(reason, options), "manager").await
    }

    /// Asks logind to restart the appliance.
    pub async fn reboot(&self) -> Result<(), CtlError> {
        let doing = "asking systemd-logind to restart the appliance";
        let call = async {
            let proxy: zbus::Proxy<'_> = zbus::proxy::Builder::new(&self.connection)
                .destination("org.freedesktop.login1")
                .path("/org/freedesktop/login1")
                .interface("org.freedesktop.login1.Manager")
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
            proxy.call_with_flags("Reboot", flags, &(false,)).await?.ok_or(zbus::Error::InvalidReply)
        };
        within(INTERACTIVE_DEADLINE, call).await.map_err(|error| CtlError::from_bus(error, doing, "logind"))
    }

    /// Whether polkit is on the bus or can be started there.
    pub async fn has_polkit(&self) -> Result<bool, CtlError> {
        let name = "org.freedesktop.PolicyKit1";
        let failed = |error| CtlError::from_bus(error, "looking for polkit", "bus");
        let bus = DBusProxy::new(&self.connection).await.map_err(failed)?;
        let owned = bus.name_has_owner(BusName::try_from(name).map_err(failed)?).await;
        if owned.map_err(|error| failed(error.into()))? {
            return Ok(true);
        }
        let startable = bus.list_activatable_names().await.map_err(|error| failed(error.into()))?;
        Ok(startable.iter().any(|startable| startable.as_str() == name))
    }

    /// Empties a slot.
    pub async fn delete(&self, slot: SlotId) -> Result<(), CtlError> {
        self.interactive(&slot_path(slot), SLOT, "Delete", &(), &format!("slot {slot}")).await
    }

    /// Writes a fresh state.
    pub async fn reset_state(&self, reason: &str) -> Result<(), CtlError> {
        self.interactive(SLOTS1_PATH, MANAGER, "ResetState", &(reason,), "manager").await
    }

    /// Health and text of the durable state.
    pub async fn state(&self) -> Result<(String, String), CtlError> {
        let failed = |error| CtlError::from_bus(error, "reading the state", "manager");
        let proxy = ManagerProxy::builder(&self.connection)
            .destination(self.destination())
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(failed)?;
        proxy.state().await.map_err(failed)
    }

    /// Every record of the taint log.
    pub async fn taint(&self) -> Result<Vec<Taint>, CtlError> {
        let failed = |error| CtlError::from_bus(error, "reading the taint record", "taint record");
        let proxy = Taint1Proxy::builder(&self.connection)
            .destination(self.destination())
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(failed)?;
        let mut all = Vec::new();
        loop {
            let offset = u32::try_from(all.len()).unwrap_or(u32::MAX);
            let some = proxy.list(offset, TAINT_PAGE).await.map_err(failed)?;
            if some.is_empty() || all.len() >= TAINT_LIMIT {
                return Ok(all);
            }
            all.extend(some.into_iter().map(Taint::from));
        }
    }

    /// The upgrade notes of a slot.
    pub async fn notes(&self, slot: SlotId) -> Result<String, CtlError> {
        let failed = |error| CtlError::from_bus(error, "reading the notes", &format!("slot {slot}"));
        self.slot(slot).await.map_err(failed)?.notes().await.map_err(failed)
    }

    /// The upgrade news of a slot; empty when there are none.
    pub async fn news(&self, slot: SlotId) -> Result<String, CtlError> {
        let failed = |error| CtlError::from_bus(error, "reading the news", &format!("slot {slot}"));
        self.slot(slot).await.map_err(failed)?.news().await.map_err(failed)
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, number: u64) -> Result<(), CtlError> {
        self.interactive(&job_path(number), JOB, "Cancel", &(), &format!("job {number}")).await
    }

    fn destination(&self) -> BusName<'_> {
        BusName::Unique(self.slotd.as_ref())
    }

    async fn slot(&self, slot: SlotId) -> zbus::Result<SlotProxy<'_>> {
        SlotProxy::builder(&self.connection)
            .destination(self.destination())
            .path(slot_path(slot))
            .build()
            .await
    }

    async fn get_all(&self, path: &str, interface: &str, subject: &str) -> Result<Properties, CtlError> {
        let doing = format!("reading the properties of {subject}");
        let failed = |error| CtlError::from_bus(error, &doing, subject);
        let interface = InterfaceName::try_from(interface).map_err(failed)?;
        let proxy = PropertiesProxy::builder(&self.connection)
            .destination(self.destination())
            .path(path)
            .build()
            .await
            .map_err(failed)?;
        proxy.get_all(interface).await.map_err(|error| failed(error.into()))
    }

    /// A call for which polkit may ask the caller for a password.
    async fn interactive<B, R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &B,
        subject: &str,
    ) -> Result<R, CtlError>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        let call = async {
            let path = ObjectPath::try_from(path)?;
            let interface = InterfaceName::try_from(interface)?;
            let proxy: zbus::Proxy<'_> = zbus::proxy::Builder::new(&self.connection)
                .destination(self.destination())
                .path(path)
                .interface(interface)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
            proxy.call_with_flags(method, flags, arguments).await?.ok_or(zbus::Error::InvalidReply)
        };
        within(INTERACTIVE_DEADLINE, call)
            .await
            .map_err(|error| CtlError::from_bus(error, &format!("calling {method}"), subject))
    }
}

/// The unique name of the slotd that owns the name, started first when nobody does.
async fn find_slotd(connection: &Connection) -> zbus::Result<OwnedUniqueName> {
    let bus = DBusProxy::new(connection).await?;
    let name = zbus::names::WellKnownName::try_from(SLOTS1_NAME)?;
    // Asked first: a bus that does not know how to start slotd refuses the start even when slotd runs.
    if let Ok(owner) = bus.get_name_owner(BusName::WellKnown(name.clone())).await {
        return Ok(owner);
    }
    bus.start_service_by_name(name.clone(), 0).await?;
    Ok(bus.get_name_owner(BusName::WellKnown(name)).await?)
}

async fn within<T>(limit: Duration, work: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

fn job_number(path: &OwnedObjectPath) -> Result<u64, CtlError> {
    path_number(path).ok_or_else(|| CtlError::Malformed { object: path.to_string(), property: "job path" })
}
