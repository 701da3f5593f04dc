//! What the properties of the manager and the slots say: one picture of the store, replaced as a whole.
//!
//! Reading takes the picture and never the store, so an answer is instant and of one moment. The picture is renewed
//! after every change that D-Bus may cause and while jobs run, and each renewal signals exactly what it changed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sps_base::dbus::{SLOTS1_PATH, TAINT_PATH, slot_path};
use sps_base::slot::SlotId;
use zbus::Connection;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::wire::Variant;

use super::objects::TaintObject;
use crate::domain::taint::Record;
use crate::store::{SlotView, Store, Summary};

/// A property's name and value.
pub(crate) type Property = (&'static str, Variant<'static>);

/// Slots and summary at one moment.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) slots: Vec<SlotView>,
    pub(crate) summary: Summary,
    pub(crate) taint: Arc<Vec<Record>>,
}

impl Picture {
    fn take(store: &Store) -> Self {
        let slots = store.slots();
        Self { summary: store.summary_of(&slots), taint: store.taint(), slots }
    }

    pub(crate) fn slot(&self, id: SlotId) -> Option<&SlotView> {
        self.slots.iter().find(|slot| slot.id == id)
    }
}

/// The current picture.
#[derive(Debug)]
pub(crate) struct View {
    picture: Mutex<Arc<Picture>>,
    /// Held over a renewal with its signals, so that signals leave in the order of the pictures.
    renewing: tokio::sync::Mutex<()>,
}

impl View {
    pub(crate) fn new(store: &Store) -> Self {
        Self { picture: Mutex::new(Arc::new(Picture::take(store))), renewing: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn picture(&self) -> Arc<Picture> {
        Arc::clone(&self.picture.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a new picture and signals what is different.
    pub(crate) async fn renew(&self, store: &Store, connection: &Connection) {
        let _turn = self.renewing.lock().await;
        let old = self.picture();
        let new = Arc::new(Picture::take(store));
        *self.picture.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        for (before, after) in old.slots.iter().zip(&new.slots) {
            if before != after {
                let changed = changes(&slot_properties(before), slot_properties(after));
                signal(connection, slot_path(after.id), "org.spsagent.Slots1.Slot", changed).await;
            }
        }
        if old.summary != new.summary {
            let changed = changes(&summary_properties(&old.summary), summary_properties(&new.summary));
            signal(connection, SLOTS1_PATH.to_owned(), "org.spsagent.Slots1.Manager", changed).await;
        }
        if old.taint != new.taint {
            signal_taint(connection).await;
        }
    }
}

/// The properties of `new` whose value is not that of `old`; both list the same names in the same order.
pub(crate) fn changes(old: &[Property], new: Vec<Property>) -> HashMap<&'static str, Variant<'static>> {
    new.into_iter().zip(old).filter(|(new, old)| new != *old).map(|(new, _)| new).collect()
}

/// Sends `PropertiesChanged` if anything changed. A bus that takes no signal is a bus that is going away: the main
/// loop notices by itself.
pub(crate) async fn signal(
    connection: &Connection,
    path: String,
    interface: &'static str,
    changed: HashMap<&'static str, Variant<'static>>,
) {
    if changed.is_empty() {
        return;
    }
    let sent = match SignalEmitter::new(connection, path) {
        Ok(emitter) => {
            let interface = InterfaceName::from_static_str_unchecked(interface);
            zbus::fdo::Properties::properties_changed(&emitter, interface, changed, Cow::Borrowed(&[])).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, interface, "a change could not be signalled");
    }
}

async fn signal_taint(connection: &Connection) {
    let sent = match SignalEmitter::new(connection, TAINT_PATH) {
        Ok(emitter) => TaintObject::changed(&emitter).await,
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "a change of the taint record could not be signalled");
    }
}

fn slot_properties(slot: &SlotView) -> Vec<Property> {
    vec![
        ("Id", slot.id.get().into()),
        ("Label", slot.label.clone().into()),
        ("State", slot.state.as_str().into()),
        ("Reason", slot.reason.clone().into()),
        ("Version", slot.version.clone().into()),
        ("BootVersion", slot.boot_version.clone().into()),
        ("BuildDate", slot.build_date.clone().into()),
        ("RootHash", slot.root_hash.clone().into()),
        ("SecurityEpoch", slot.security_epoch.into()),
        ("Size", slot.size.into()),
        ("InstalledAt", slot.installed_at.into()),
        ("VerifiedAt", slot.verified_at.into()),
        ("VerifiedHow", slot.verified_how.into()),
        ("Configuration", slot.configuration.clone().into()),
        ("Current", slot.current.into()),
        ("AfterReboot", slot.after_reboot.into()),
    ]
}

/// The value of `LastUpgrade`.
pub(crate) fn last_upgrade(summary: &Summary) -> HashMap<&'static str, Variant<'static>> {
    let Some(last) = &summary.last_upgrade else { return HashMap::new() };
    HashMap::from([
        ("outcome", last.outcome.into()),
        ("kind", last.kind.into()),
        ("slot", last.slot.get().into()),
        ("version", last.version.clone().into()),
        ("from_version", last.from_version.clone().into()),
        ("root_hash", last.root_hash.clone().into()),
        ("message", last.message.clone().into()),
        ("who", last.who.clone().into()),
        ("selected_at", last.selected_at.into()),
        ("ended_at", last.ended_at.into()),
        ("reason", last.reason.clone().into()),
    ])
}

fn summary_properties(summary: &Summary) -> Vec<Property> {
    vec![
        ("Booted", summary.booted.get().into()),
        ("Default", summary.default.get().into()),
        ("AfterReboot", summary.after_reboot.get().into()),
        ("Trial", summary.trial.into()),
        ("Confirmed", summary.confirmed.into()),
        ("Fallback", summary.fallback.get().into()),
        ("LastUpgrade", last_upgrade(summary).into()),
        ("Loader", summary.loader.into()),
        ("Compatible", summary.compatible.clone().into()),
        ("SecurityEpoch", summary.security_epoch.into()),
        ("EmptySlots", summary.empty_slots.into()),
        ("TaintCount", summary.taint_count.into()),
        ("Readback", summary.readback.into()),
        ("Revocation", summary.revocation.into()),
        ("Warnings", summary.warnings.clone().into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_signalled() {
        let old: Vec<Property> = vec![("A", 1_u32.into()), ("B", "x".into()), ("C", true.into())];
        let new: Vec<Property> = vec![("A", 1_u32.into()), ("B", "y".into()), ("C", true.into())];
        let changed = changes(&old, new);
        assert_eq!(changed, HashMap::from([("B", "y".into())]));
    }
}
