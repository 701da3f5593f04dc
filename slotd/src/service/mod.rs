//! The daemon around the store: D-Bus objects, jobs, access.
//!
//! Everything here runs on one thread, so an answer to `GetAll` is of one moment. Work that blocks runs on threads of
//! its own and tells this one when it is done.

mod access;
mod jobs;
mod journal;
mod objects;
mod options;
mod view;

use std::sync::Arc;
use std::time::Duration;

use sps_base::dbus::{SLOTS1_NAME, SLOTS1_PATH, TAINT_PATH, job_path, slot_path};
use sps_base::error::{CallError, ErrorKind};
use sps_base::service::Shell;
use sps_base::slot::SlotId;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use zbus::Connection;
use zbus::connection::Builder;
use zbus::wire::OwnedObjectPath;

use crate::store::{Failure, Progress, RevertRequest, Store};
use jobs::{Job, Jobs, Kind, Outcome};
use objects::{JobObject, ManagerObject, SlotObject, TaintObject};
use view::View;

/// At most five progress signals a second.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// How long running jobs may take to stop when the daemon is to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Why the daemon ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The bus cannot be reached, or does not give the name away.
    #[error("cannot serve {SLOTS1_NAME} on {bus}")]
    Bus {
        /// Which bus.
        bus: String,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// The bus went away.
    #[error("the connection to {bus} is closed; nobody can reach slotd any more")]
    Lost {
        /// Which bus.
        bus: String,
    },
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self { kind: failure.kind, message: failure.message }
    }
}

/// What every object shares.
pub(crate) struct Daemon {
    store: Arc<Store>,
    view: View,
    jobs: Jobs,
    now: fn() -> u64,
}

/// Serves `store` until SIGTERM or SIGINT, on the system bus or on the bus at `address`. `now` is the clock in Unix
/// seconds.
pub async fn serve(
    store: Store,
    address: Option<&str>,
    now: fn() -> u64,
    mut shell: Shell,
) -> Result<(), ServiceError> {
    let bus = address.unwrap_or("the system bus").to_owned();
    let daemon = Arc::new(Daemon { view: View::new(&store), store: Arc::new(store), jobs: Jobs::new(), now });
    if let Ok((health, _)) = daemon.blocking(|store| Ok(store.state())).await {
        journal::state(&health);
    }
    if let Some(why) = daemon.store.keyring_error() {
        journal::keyring(why);
    }
    let connection =
        daemon.connect(address).await.map_err(|source| ServiceError::Bus { bus: bus.clone(), source })?;
    shell.ready("Ready");
    tracing::info!(bus, "serving {SLOTS1_NAME}");
    tokio::select! {
        signal = shell.stop_requested() => tracing::info!(signal, "stopping"),
        () = connection.closed() => {
            daemon.stop().await;
            return Err(ServiceError::Lost { bus });
        }
    }
    shell.stopping("Stopping jobs");
    daemon.stop().await;
    Ok(())
}

impl Daemon {
    /// Registers every object before the name is taken: who sees the name sees them all.
    async fn connect(self: &Arc<Self>, address: Option<&str>) -> zbus::Result<Connection> {
        let mut builder = match address {
            Some(address) => Builder::address(address),
            None => Builder::system(),
        };
        builder = builder
            .serve_at(SLOTS1_PATH, zbus::fdo::ObjectManager)
            .serve_at(SLOTS1_PATH, ManagerObject(Arc::clone(self)))
            .serve_at(TAINT_PATH, TaintObject(Arc::clone(self)));
        for slot in &self.view.picture().slots {
            let object = SlotObject { daemon: Arc::clone(self), id: slot.id };
            builder = builder.serve_at(slot_path(slot.id), object);
        }
        builder.name(SLOTS1_NAME).build().await
    }

    /// Runs a short blocking call off this thread.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || call(&store)).await {
            Ok(result) => Ok(result?),
            Err(error) => {
                tracing::error!(%error, "a call panicked");
                Err(CallError::new(ErrorKind::Device, "slotd made a mistake; its log says more, report it"))
            }
        }
    }

    /// Changes something and shows it. Also after a failure: half a change must show.
    async fn change<T: Send + 'static>(
        &self,
        connection: &Connection,
        call: impl FnOnce(&Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        let result = self.blocking(call).await;
        self.view.renew(&self.store, connection).await;
        result
    }

    async fn delete(&self, connection: &Connection, slot: SlotId, sender: &str) -> Result<(), CallError> {
        let result = self.change(connection, move |store| store.delete(slot)).await;
        result.inspect(|()| journal::deleted(slot, sender))
    }

    async fn activate(
        &self,
        connection: &Connection,
        slot: SlotId,
        message: String,
        sender: &str,
    ) -> Result<(), CallError> {
        let (text, who) = (message.clone(), sender.to_owned());
        let result = self.change(connection, move |store| store.activate(slot, &text, &who)).await;
        result.inspect(|()| journal::selected(self.view.picture().slot(slot), &message, sender))
    }

    async fn deactivate(&self, connection: &Connection, slot: SlotId, sender: &str) -> Result<(), CallError> {
        let result = self.change(connection, move |store| store.deactivate(slot)).await;
        result.inspect(|()| journal::withdrawn(slot, sender))
    }

    async fn confirm(&self, connection: &Connection) -> Result<(), CallError> {
        let result = self.change(connection, Store::confirm).await;
        let picture = self.view.picture();
        result.map(|trial| {
            if trial {
                journal::confirmed(picture.slot(picture.summary.booted));
            }
        })
    }

    async fn reject(&self, connection: &Connection, reason: String) -> Result<(), CallError> {
        let text = reason.clone();
        let result = self.change(connection, move |store| store.reject(&text)).await;
        let picture = self.view.picture();
        result.inspect(|()| journal::rejected(picture.slot(picture.summary.booted), &reason))
    }

    async fn revert(
        &self,
        connection: &Connection,
        reason: String,
        request: RevertRequest,
        sender: &str,
    ) -> Result<(), CallError> {
        let (text, who) = (reason.clone(), sender.to_owned());
        let result = self.change(connection, move |store| store.revert(&text, &request, &who)).await;
        let slot = result?;
        journal::selected(self.view.picture().slot(slot), &reason, sender);
        Ok(())
    }

    async fn reset_state(
        &self,
        connection: &Connection,
        reason: String,
        sender: &str,
    ) -> Result<(), CallError> {
        let text = reason.clone();
        let result = self.change(connection, move |store| store.reset_state(&text)).await;
        result.inspect(|()| journal::state_reset(&reason, sender))
    }

    /// Lists a job and lets it run. Preconditions were checked: `work` holds the slot's reservation.
    async fn start(
        self: &Arc<Self>,
        connection: &Connection,
        kind: Kind,
        slot: SlotId,
        sender: &str,
        work: impl FnOnce(&Progress) -> Outcome + Send + 'static,
    ) -> Result<OwnedObjectPath, CallError> {
        let job = self.jobs.open(kind, slot, sender, (self.now)())?;
        let path = job_path(job.number);
        let listed = connection.object_server().at(path.as_str(), JobObject(Arc::clone(&job))).await;
        let path = listed.and_then(|_| OwnedObjectPath::try_from(path)).map_err(|error| {
            let failure = Failure::new(ErrorKind::Device, format!("the job cannot be shown: {error}"));
            self.jobs.close(&job, Outcome::Failed(failure.clone()), (self.now)());
            self.jobs.settle();
            CallError::from(failure)
        })?;
        journal::started(&job);
        let outcome = jobs::run_on_thread(Arc::clone(&job), work);
        tokio::spawn(Arc::clone(self).follow(connection.clone(), job, outcome));
        Ok(path)
    }

    /// Tells how a job goes until it ends, and then how it ended. The only timer, and only while a job runs.
    async fn follow(
        self: Arc<Self>,
        connection: Connection,
        job: Arc<Job>,
        mut outcome: oneshot::Receiver<Outcome>,
    ) {
        let path = job_path(job.number);
        let mut shown = job.moving();
        let mut ticks = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => break outcome.unwrap_or_else(|_| jobs::vanished()),
                _ = ticks.tick() => {
                    self.view.renew(&self.store, &connection).await;
                    let moving = job.moving();
                    let changed = view::changes(&shown.properties(), moving.properties());
                    shown = moving;
                    view::signal(&connection, path.clone(), "org.spsagent.Slots1.Job", changed).await;
                }
            }
        };
        // The slot first: who hears that a job is done finds the slot as the job left it.
        self.view.renew(&self.store, &connection).await;
        let old = self.jobs.close(&job, outcome, (self.now)());
        journal::ended(&job, self.view.picture().slot(job.slot));
        let mut changed = view::changes(&shown.properties(), job.moving().properties());
        changed.extend(job.ended());
        view::signal(&connection, path, "org.spsagent.Slots1.Job", changed).await;
        for number in old {
            if let Err(error) = connection.object_server().remove::<JobObject, _>(job_path(number)).await {
                tracing::warn!(%error, number, "a finished job could not be unlisted");
            }
        }
        self.jobs.settle();
    }

    async fn stop(&self) {
        let running = self.jobs.stop();
        if running > 0 && timeout(STOP_DEADLINE, self.jobs.idle()).await.is_err() {
            // The order law holds for a job that is cut off here as it does for a power cut.
            tracing::warn!(running, "jobs did not stop in time and are cut off");
        }
    }
}
