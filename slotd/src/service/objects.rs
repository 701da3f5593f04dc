//! The D-Bus objects, method by method and property by property as `base/dbus/org.spsagent.Slots1.xml` has them.

use std::collections::HashMap;
use std::sync::Arc;

use sps_base::dbus::{
    ACTION_ACTIVATE, ACTION_CANCEL, ACTION_CONFIRM, ACTION_DEACTIVATE, ACTION_DELETE, ACTION_INSTALL,
    ACTION_REJECT, ACTION_RESET_STATE, ACTION_REVERT, ACTION_TEST, ACTION_VERIFY, TaintEntry,
};
use sps_base::error::{CallError, ErrorKind};
use sps_base::slot::SlotId;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::wire::{OwnedFd, OwnedObjectPath, Variant};
use zbus::{Connection, interface};

use super::Daemon;
use super::access::{Details, authorize};
use super::jobs::{Job, Kind, Outcome};
use super::options::{
    Options, check_text, parse_activate, parse_install, parse_revert, parse_test, parse_verify,
};
use super::view::{Picture, last_upgrade};
use crate::domain::manifest::Version;
use crate::domain::state::TEXT_LIMIT;
use crate::domain::taint::Record;
use crate::store::SlotView;

/// What polkit's rules may look at: which slot, its version, and whether that is older than what runs.
fn details_of(picture: &Picture, slot: SlotId) -> Details {
    let version = |slot: SlotId| picture.slot(slot).map(|slot| slot.version.clone()).unwrap_or_default();
    let (new, running) = (version(slot), version(picture.summary.booted));
    let older =
        Version::parse(&new).zip(Version::parse(&running)).is_some_and(|(new, running)| new < running);
    Details::from([("slot", slot.to_string()), ("version", new), ("older", older.to_string())])
}

fn sender(header: &Header<'_>) -> String {
    header.sender().map(ToString::to_string).unwrap_or_default()
}

/// `org.spsagent.Slots1.Manager`.
pub(crate) struct ManagerObject(pub(crate) Arc<Daemon>);

impl ManagerObject {
    fn picture(&self) -> Arc<Picture> {
        self.0.view.picture()
    }
}

#[interface(name = "org.spsagent.Slots1.Manager", introspection_docs = false)]
impl ManagerObject {
    #[zbus(out_args("job"))]
    async fn install(
        &self,
        image: OwnedFd,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        let request = parse_install(options)?;
        let mut details =
            Details::from([("repair", request.repair.to_string()), ("replace", request.replace.to_string())]);
        details.extend(request.slot.map(|slot| ("slot", slot.to_string())));
        authorize(connection, &header, ACTION_INSTALL, details).await?;
        let store = Arc::clone(&self.0.store);
        let reservation = store.reserve_install(&request)?;
        let slot = reservation.slot();
        let work =
            move |progress: &_| Outcome::from(store.install(reservation, image.into(), &request, progress));
        self.0.start(connection, Kind::Install, slot, &sender(&header), work).await
    }

    #[zbus(out_args("health", "json"))]
    async fn state(&self) -> Result<(String, String), CallError> {
        self.0.blocking(|store| Ok(store.state())).await
    }

    async fn reset_state(
        &self,
        reason: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        check_text("reason", &reason, 1, TEXT_LIMIT)?;
        let who = authorize(connection, &header, ACTION_RESET_STATE, Details::new()).await?;
        self.0.reset_state(connection, reason, &who).await
    }

    async fn confirm(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        authorize(connection, &header, ACTION_CONFIRM, Details::new()).await?;
        self.0.confirm(connection).await
    }

    async fn reject(
        &self,
        reason: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        check_text("reason", &reason, 1, TEXT_LIMIT)?;
        authorize(connection, &header, ACTION_REJECT, Details::new()).await?;
        self.0.reject(connection, reason).await
    }

    async fn revert(
        &self,
        reason: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        let request = parse_revert(options)?;
        check_text("reason", &reason, 1, TEXT_LIMIT)?;
        let slot = request.slot.unwrap_or_else(|| self.picture().summary.fallback);
        let who = authorize(connection, &header, ACTION_REVERT, details_of(&self.picture(), slot)).await?;
        self.0.revert(connection, reason, request, &who).await
    }

    #[zbus(property)]
    fn booted(&self) -> u32 {
        self.picture().summary.booted.get()
    }

    #[zbus(property)]
    fn default(&self) -> u32 {
        self.picture().summary.default.get()
    }

    #[zbus(property)]
    fn after_reboot(&self) -> u32 {
        self.picture().summary.after_reboot.get()
    }

    #[zbus(property)]
    fn trial(&self) -> bool {
        self.picture().summary.trial
    }

    #[zbus(property)]
    fn confirmed(&self) -> bool {
        self.picture().summary.confirmed
    }

    #[zbus(property)]
    fn fallback(&self) -> u32 {
        self.picture().summary.fallback.get()
    }

    #[zbus(property)]
    fn last_upgrade(&self) -> HashMap<&'static str, Variant<'static>> {
        last_upgrade(&self.picture().summary)
    }

    #[zbus(property)]
    fn loader(&self) -> &'static str {
        self.picture().summary.loader
    }

    #[zbus(property)]
    fn compatible(&self) -> String {
        self.picture().summary.compatible.clone()
    }

    #[zbus(property)]
    fn security_epoch(&self) -> u32 {
        self.picture().summary.security_epoch
    }

    #[zbus(property)]
    fn empty_slots(&self) -> u32 {
        self.picture().summary.empty_slots
    }

    #[zbus(property)]
    fn taint_count(&self) -> u32 {
        self.picture().summary.taint_count
    }

    #[zbus(property)]
    fn readback(&self) -> &'static str {
        self.picture().summary.readback
    }

    #[zbus(property)]
    fn revocation(&self) -> &'static str {
        self.picture().summary.revocation
    }

    #[zbus(property)]
    fn warnings(&self) -> Vec<String> {
        self.picture().summary.warnings.clone()
    }
}

/// Records that one call answers.
const TAINT_LIMIT: u32 = 256;

/// `org.spsagent.Slots1.Taint1`.
pub(crate) struct TaintObject(pub(crate) Arc<Daemon>);

#[interface(name = "org.spsagent.Slots1.Taint1", introspection_docs = false)]
impl TaintObject {
    #[zbus(out_args("records"))]
    fn list(&self, offset: u32, limit: u32) -> Vec<TaintEntry> {
        let picture = self.0.view.picture();
        let some = picture.taint.iter().skip(offset as usize).take(limit.min(TAINT_LIMIT) as usize);
        let entry = |record: &Record| {
            let Record { number, at, cause, place, detail } = record.clone();
            (record.id(), cause, place, detail, number, at, 0)
        };
        some.map(entry).collect()
    }

    #[zbus(signal)]
    pub(crate) async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

/// `org.spsagent.Slots1.Slot`.
pub(crate) struct SlotObject {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) id: SlotId,
}

impl SlotObject {
    fn text(&self, text: impl FnOnce(&SlotView) -> &String) -> String {
        self.daemon.view.picture().slot(self.id).map(|slot| text(slot).clone()).unwrap_or_default()
    }

    fn details(&self) -> Details {
        details_of(&self.daemon.view.picture(), self.id)
    }

    fn value<T: Default>(&self, value: impl FnOnce(&SlotView) -> T) -> T {
        self.daemon.view.picture().slot(self.id).map(value).unwrap_or_default()
    }
}

#[interface(name = "org.spsagent.Slots1.Slot", introspection_docs = false)]
impl SlotObject {
    #[zbus(out_args("text"))]
    async fn notes(&self) -> Result<String, CallError> {
        let id = self.id;
        self.daemon.blocking(move |store| store.notes(id)).await
    }

    #[zbus(out_args("text"))]
    async fn news(&self) -> Result<String, CallError> {
        let id = self.id;
        self.daemon.blocking(move |store| store.news(id)).await
    }

    #[zbus(out_args("job"))]
    async fn verify(
        &self,
        mode: &str,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        let (mode, scheduled) = parse_verify(mode, options)?;
        authorize(connection, &header, ACTION_VERIFY, self.details()).await?;
        let store = Arc::clone(&self.daemon.store);
        let reservation = store.reserve_verify(self.id)?;
        let work = move |progress: &_| Outcome::from(store.verify(&reservation, mode, scheduled, progress));
        self.daemon.start(connection, Kind::Verify, self.id, &sender(&header), work).await
    }

    async fn delete(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        let who = authorize(connection, &header, ACTION_DELETE, self.details()).await?;
        self.daemon.delete(connection, self.id, &who).await
    }

    #[zbus(out_args("job"))]
    async fn test(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        let again = parse_test(options)?;
        authorize(connection, &header, ACTION_TEST, self.details()).await?;
        let store = Arc::clone(&self.daemon.store);
        let reservation = store.reserve_test(self.id)?;
        let work = move |progress: &_| Outcome::from(store.test(&reservation, again, progress));
        self.daemon.start(connection, Kind::Test, self.id, &sender(&header), work).await
    }

    async fn activate(
        &self,
        message: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        parse_activate(options)?;
        check_text("message", &message, 0, TEXT_LIMIT)?;
        let who = authorize(connection, &header, ACTION_ACTIVATE, self.details()).await?;
        self.daemon.activate(connection, self.id, message, &who).await
    }

    async fn deactivate(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        let who = authorize(connection, &header, ACTION_DEACTIVATE, self.details()).await?;
        self.daemon.deactivate(connection, self.id, &who).await
    }

    #[zbus(property)]
    fn id(&self) -> u32 {
        self.id.get()
    }

    #[zbus(property)]
    fn label(&self) -> String {
        self.text(|slot| &slot.label)
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.value(|slot| slot.state.as_str())
    }

    #[zbus(property)]
    fn reason(&self) -> String {
        self.text(|slot| &slot.reason)
    }

    #[zbus(property)]
    fn version(&self) -> String {
        self.text(|slot| &slot.version)
    }

    #[zbus(property)]
    fn boot_version(&self) -> String {
        self.text(|slot| &slot.boot_version)
    }

    #[zbus(property)]
    fn build_date(&self) -> String {
        self.text(|slot| &slot.build_date)
    }

    #[zbus(property)]
    fn root_hash(&self) -> String {
        self.text(|slot| &slot.root_hash)
    }

    #[zbus(property)]
    fn security_epoch(&self) -> u32 {
        self.value(|slot| slot.security_epoch)
    }

    #[zbus(property)]
    fn size(&self) -> u64 {
        self.value(|slot| slot.size)
    }

    #[zbus(property)]
    fn installed_at(&self) -> u64 {
        self.value(|slot| slot.installed_at)
    }

    #[zbus(property)]
    fn verified_at(&self) -> u64 {
        self.value(|slot| slot.verified_at)
    }

    #[zbus(property)]
    fn verified_how(&self) -> &'static str {
        self.value(|slot| slot.verified_how)
    }

    #[zbus(property)]
    fn configuration(&self) -> String {
        self.text(|slot| &slot.configuration)
    }

    #[zbus(property)]
    fn current(&self) -> bool {
        self.value(|slot| slot.current)
    }

    #[zbus(property)]
    fn after_reboot(&self) -> bool {
        self.value(|slot| slot.after_reboot)
    }
}

/// `org.spsagent.Slots1.Job`.
pub(crate) struct JobObject(pub(crate) Arc<Job>);

#[interface(name = "org.spsagent.Slots1.Job", introspection_docs = false)]
impl JobObject {
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        let own = header.sender().is_some_and(|name| name.as_str() == self.0.sender);
        if !own {
            let slot =
                Details::from([("slot", self.0.slot.to_string()), ("kind", self.0.kind.as_str().to_owned())]);
            authorize(connection, &header, ACTION_CANCEL, slot).await?;
        }
        if self.0.is_finished() {
            let text = format!("job {} is {}; there is nothing to cancel", self.0.number, self.0.state());
            return Err(CallError::new(ErrorKind::InvalidArgument, text));
        }
        tracing::info!(job = self.0.number, sender = sender(&header), "job is to be cancelled");
        self.0.progress.cancel();
        Ok(())
    }

    #[zbus(property)]
    fn kind(&self) -> &'static str {
        self.0.kind.as_str()
    }

    #[zbus(property)]
    fn slot(&self) -> u32 {
        self.0.slot.get()
    }

    #[zbus(property)]
    fn phase(&self) -> &'static str {
        self.0.progress.phase()
    }

    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.0.progress.done()
    }

    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.0.progress.total()
    }

    #[zbus(property)]
    fn next_offset(&self) -> u64 {
        self.0.progress.next_offset()
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.0.state()
    }

    #[zbus(property)]
    fn error(&self) -> (String, String) {
        self.0.error()
    }

    #[zbus(property)]
    fn result(&self) -> HashMap<&'static str, Variant<'static>> {
        self.0.result()
    }

    #[zbus(property)]
    fn sender(&self) -> String {
        self.0.sender.clone()
    }

    #[zbus(property)]
    fn started_at(&self) -> u64 {
        self.0.started_at
    }

    #[zbus(property)]
    fn finished_at(&self) -> u64 {
        self.0.finished_at()
    }
}
