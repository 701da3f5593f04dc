//! A private bus with a slotd, and if wanted a systemd, that say what they are told to say.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::Notify;
use zbus::interface;
use zbus::wire::{OwnedObjectPath, Variant};

/// What slotd says, and what it was told.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) booted: u32,
    pub(crate) trial: bool,
    pub(crate) confirmed: bool,
    pub(crate) build_date: &'static str,
    pub(crate) last_upgrade: Vec<(&'static str, &'static str)>,
    /// `Confirm` answers with an error.
    pub(crate) refuses: bool,
    /// Failed units; none where no systemd is there.
    pub(crate) failed_units: Option<Vec<&'static str>>,
    /// Methods called, with their arguments.
    pub(crate) calls: Vec<String>,
}

impl Default for Said {
    fn default() -> Self {
        Self {
            booted: 2,
            trial: true,
            confirmed: false,
            build_date: "2026-01-02T03:04:05Z",
            last_upgrade: Vec::new(),
            refuses: false,
            failed_units: None,
            calls: Vec::new(),
        }
    }
}

pub(crate) type Shared = Arc<Mutex<Said>>;

struct Manager(Shared);

#[interface(name = "org.spsagent.Slots1.Manager")]
impl Manager {
    fn confirm(&self) -> zbus::fdo::Result<()> {
        let mut said = self.0.lock().unwrap();
        said.calls.push("Confirm".to_owned());
        if said.refuses {
            return Err(zbus::fdo::Error::Failed("the loader is read-only".to_owned()));
        }
        (said.trial, said.confirmed) = (false, true);
        Ok(())
    }

    fn reject(&self, reason: &str) {
        let mut said = self.0.lock().unwrap();
        said.calls.push(format!("Reject {reason}"));
        said.trial = false;
    }

    #[zbus(property)]
    fn booted(&self) -> u32 {
        self.0.lock().unwrap().booted
    }
    #[zbus(property)]
    fn trial(&self) -> bool {
        self.0.lock().unwrap().trial
    }
    #[zbus(property)]
    fn confirmed(&self) -> bool {
        self.0.lock().unwrap().confirmed
    }
    #[zbus(property)]
    fn last_upgrade(&self) -> HashMap<&'static str, Variant<'static>> {
        self.0.lock().unwrap().last_upgrade.iter().map(|(key, value)| (*key, (*value).into())).collect()
    }
}

struct Slot(Shared);

#[interface(name = "org.spsagent.Slots1.Slot")]
#[expect(clippy::unused_self, reason = "the interface macro wants methods")]
impl Slot {
    #[zbus(property)]
    fn version(&self) -> &'static str {
        "2.2.0"
    }
    #[zbus(property)]
    fn boot_version(&self) -> &'static str {
        "6.12.1"
    }
    #[zbus(property)]
    fn root_hash(&self) -> &'static str {
        "c0ffee"
    }
    #[zbus(property)]
    fn build_date(&self) -> &'static str {
        self.0.lock().unwrap().build_date
    }
}

type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

struct Systemd(Shared);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    #[expect(clippy::needless_pass_by_value, reason = "what arrives is owned")]
    fn list_units_filtered(&self, states: Vec<String>) -> Vec<Unit> {
        assert_eq!(states, ["failed"]);
        let path = || OwnedObjectPath::try_from("/").unwrap();
        let empty = String::new;
        let names = self.0.lock().unwrap().failed_units.clone().unwrap_or_default();
        let row = |name: &str| {
            (name.to_owned(), empty(), empty(), empty(), empty(), empty(), path(), 0, empty(), path())
        };
        names.into_iter().map(row).collect()
    }
}

/// A private bus.
pub(crate) struct Bus {
    pub(crate) address: String,
    daemon: Child,
    serving: Vec<(Arc<Notify>, JoinHandle<()>)>,
}

impl Bus {
    pub(crate) fn new() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1", "--address=unix:tmpdir=/tmp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { address: address.trim().to_owned(), daemon, serving: Vec::new() }
    }

    /// Lets slotd, and systemd where it is wanted, come up.
    pub(crate) fn serve(&mut self, said: Said) -> Shared {
        let shared = Arc::new(Mutex::new(said));
        let (end, address) = (Arc::new(Notify::new()), self.address.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (shared, end) = (Arc::clone(&shared), Arc::clone(&end));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let systemd = shared.lock().unwrap().failed_units.is_some();
                    let mut builder = zbus::connection::Builder::address(address.as_str())
                        .serve_at("/org/spsagent/slots1", Manager(Arc::clone(&shared)))
                        .serve_at("/org/spsagent/slots1/slot/2", Slot(Arc::clone(&shared)))
                        .serve_at("/org/freedesktop/systemd1", Systemd(Arc::clone(&shared)))
                        .name("org.spsagent.Slots1");
                    if systemd {
                        builder = builder.name("org.freedesktop.systemd1");
                    }
                    let _connection = builder.build().await.unwrap();
                    ready.send(()).unwrap();
                    end.notified().await;
                });
            }
        });
        is_ready.recv().unwrap();
        self.serving.push((end, thread));
        shared
    }

    /// slotd goes away.
    pub(crate) fn silence(&mut self) {
        for (end, thread) in self.serving.drain(..) {
            end.notify_one();
            let _ = thread.join();
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.silence();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
