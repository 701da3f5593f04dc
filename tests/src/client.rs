//! An operator of slotd: everything over D-Bus as values, and spsctl with its exit code and JSON.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a broken test bench, or an answer that is none, fails the test here"
)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use futures_util::StreamExt;
use serde_json::Value;
use sps_base::dbus::{JobProxy, ManagerProxy, Properties, SLOTS1_NAME, SLOTS1_PATH, SlotProxy};
use sps_base::error::ERROR_PREFIX;
use zbus::Connection;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;
use zbus::wire::{OwnedVariant, Variant};

use crate::bus::{Appliance, DEADLINE, program};

/// How slotd refuses: the contract's name without its prefix, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `SlotBusy`; a foreign name stays whole.
    pub name: String,
    /// For the operator.
    pub message: String,
}

impl From<zbus::Error> for Refusal {
    fn from(error: zbus::Error) -> Self {
        let (name, message) = match &error {
            zbus::Error::MethodError(name, message, _) => {
                (name.to_string(), message.clone().unwrap_or_default())
            }
            zbus::Error::FDO(error) => (zbus::DBusError::name(&**error).to_string(), error.to_string()),
            other => (String::new(), other.to_string()),
        };
        Self { name: name.strip_prefix(ERROR_PREFIX).unwrap_or(&name).to_owned(), message }
    }
}

/// Properties of an object, or the members of a job's `Result`, at one moment.
#[derive(Debug)]
pub struct Shown(Properties);

impl Shown {
    pub(crate) fn of(properties: Properties) -> Self {
        Self(properties)
    }

    /// The value of `name`; it must be there and of this type.
    pub fn get<T>(&self, name: &str) -> T
    where
        T: TryFrom<OwnedVariant>,
        T::Error: std::fmt::Debug,
    {
        let value = self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0));
        value.try_clone().unwrap().try_into().unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// The string `name`.
    pub fn text(&self, name: &str) -> String {
        self.get(name)
    }

    /// Whether there is a value of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A job's `Result`.
    #[must_use]
    pub fn result(&self) -> Self {
        Self(self.get("Result"))
    }

    /// A job's `Error`.
    pub fn error(&self) -> Refusal {
        let (name, message): (String, String) = self.get("Error");
        Refusal { name: name.strip_prefix(ERROR_PREFIX).unwrap_or(&name).to_owned(), message }
    }

    /// State and error name of a job.
    pub fn ended(&self) -> (String, String) {
        (self.text("State"), self.error().name)
    }
}

/// A connection to slotd.
#[derive(Clone, Debug)]
pub struct Client {
    /// To the appliance's bus.
    pub connection: Connection,
}

impl Client {
    /// A caller of its own on the appliance's bus.
    pub async fn of(appliance: &Appliance) -> Self {
        Self { connection: appliance.connect().await.unwrap() }
    }

    /// Starts an install; the job's path.
    pub async fn install(
        &self,
        image: impl Into<OwnedFd>,
        options: &[(&str, Variant<'static>)],
    ) -> Result<String, Refusal> {
        let manager = ManagerProxy::new(&self.connection).await?;
        let options: HashMap<_, _> =
            options.iter().map(|(name, value)| (*name, value.try_clone().unwrap())).collect();
        Ok(manager.install(image.into().into(), options).await?.to_string())
    }

    /// Installs a file; the job when it is over.
    pub async fn install_file(&self, iso: &Path, options: &[(&str, Variant<'static>)]) -> Shown {
        let job = self.install(File::open(iso).unwrap(), options).await.unwrap();
        self.end(&job).await
    }

    /// Starts a check; the job's path.
    pub async fn verify(&self, slot: u32, mode: &str) -> Result<String, Refusal> {
        Ok(self.slot_proxy(slot).await?.verify(mode, HashMap::new()).await?.to_string())
    }

    /// Checks a slot; the job when it is over.
    pub async fn verified(&self, slot: u32, mode: &str) -> Shown {
        let job = self.verify(slot, mode).await.unwrap();
        self.end(&job).await
    }

    pub(crate) async fn slot_proxy(&self, slot: u32) -> zbus::Result<SlotProxy<'_>> {
        SlotProxy::builder(&self.connection).path(format!("{SLOTS1_PATH}/slot/{slot}")).build().await
    }

    /// Upgrade notes.
    pub async fn notes(&self, slot: u32) -> Result<String, Refusal> {
        Ok(self.slot_proxy(slot).await?.notes().await?)
    }

    /// Upgrade news.
    pub async fn news(&self, slot: u32) -> Result<String, Refusal> {
        Ok(self.slot_proxy(slot).await?.news().await?)
    }

    /// Empties a slot.
    pub async fn delete(&self, slot: u32) -> Result<(), Refusal> {
        Ok(self.slot_proxy(slot).await?.delete().await?)
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, job: &str) -> Result<(), Refusal> {
        Ok(JobProxy::builder(&self.connection).path(job).build().await?.cancel().await?)
    }

    /// Health and text of the state.
    pub async fn state(&self) -> (String, String) {
        ManagerProxy::new(&self.connection).await.unwrap().state().await.unwrap()
    }

    async fn all(&self, path: &str, interface: &str) -> Result<Shown, Refusal> {
        let object = PropertiesProxy::builder(&self.connection).destination(SLOTS1_NAME).path(path);
        let interface = InterfaceName::try_from(format!("org.spsagent.Slots1.{interface}")).unwrap();
        let shown = object.build().await?.get_all(interface).await;
        Ok(Shown(shown.map_err(zbus::Error::from)?))
    }

    /// The manager's properties.
    pub async fn manager(&self) -> Shown {
        self.all(SLOTS1_PATH, "Manager").await.unwrap()
    }

    /// A slot's properties.
    pub async fn slot(&self, slot: u32) -> Shown {
        self.all(&format!("{SLOTS1_PATH}/slot/{slot}"), "Slot").await.unwrap()
    }

    /// A slot's state.
    pub async fn word(&self, slot: u32) -> String {
        self.slot(slot).await.text("State")
    }

    /// A job's properties.
    pub async fn job(&self, job: &str) -> Shown {
        self.all(job, "Job").await.unwrap()
    }

    /// Waits for the signal that tells the end of a job; its properties then.
    pub async fn end(&self, job: &str) -> Shown {
        self.until(job, |shown| shown.text("State") != "running").await
    }

    /// Waits until a job's properties are as wanted.
    pub async fn until(&self, job: &str, wanted: impl Fn(&Shown) -> bool) -> Shown {
        self.watch(job, "Job", wanted).await
    }

    /// Waits until a slot is said to be in this state: slotd tells what a running job changes five times a second.
    pub async fn until_word(&self, slot: u32, word: &str) -> Shown {
        self.watch(&format!("{SLOTS1_PATH}/slot/{slot}"), "Slot", |shown| shown.text("State") == word).await
    }

    async fn watch(&self, path: &str, interface: &str, wanted: impl Fn(&Shown) -> bool) -> Shown {
        let object = PropertiesProxy::builder(&self.connection).destination(SLOTS1_NAME).path(path);
        let mut changes = object.build().await.unwrap().receive_properties_changed().await.unwrap();
        // Subscribed first, then looked: a change in between is not missed.
        loop {
            let now = self.all(path, interface).await.unwrap();
            if wanted(&now) {
                return now;
            }
            let change = tokio::time::timeout(DEADLINE, changes.next()).await;
            assert!(change.is_ok(), "{path} stands still: {now:?}");
        }
    }
}

/// What `spsctl --json` said.
#[derive(Debug)]
pub struct Ctl {
    /// Exit code.
    pub code: i32,
    /// The document.
    pub json: Value,
    /// Standard error.
    pub errors: String,
}

/// Runs `spsctl --json` with these arguments.
pub fn spsctl(appliance: &Appliance, arguments: &[&str]) -> Ctl {
    spsctl_with(appliance, arguments, Stdio::null())
}

/// The same with a standard input.
pub fn spsctl_with(appliance: &Appliance, arguments: &[&str], input: impl Into<Stdio>) -> Ctl {
    let output = Command::new(program("spsctl").unwrap())
        .args(["--json", "--bus", &appliance.address()])
        .args(arguments)
        .stdin(input)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {errors}"));
    assert_eq!(json["format"], 1, "{json}");
    Ctl { code: output.status.code().unwrap(), json, errors }
}

impl Ctl {
    /// Exit code and error name; the document names the same code.
    pub fn refusal(&self) -> (i32, &str) {
        assert_eq!(self.json["error"]["exit_code"], self.code, "{}", self.json);
        (self.code, self.json["error"]["name"].as_str().unwrap())
    }
}
