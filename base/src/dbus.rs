//! Names and client proxies of the D-Bus contract. The reviewed text is `base/dbus/*.xml`.

use std::collections::HashMap;

use zbus::wire::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

/// The XML contract of slotd, as reviewed.
pub const SLOTS1_XML: &str = include_str!("../dbus/org.spsagent.Slots1.xml");
/// Bus name of slotd.
pub const SLOTS1_NAME: &str = "org.spsagent.Slots1";
/// Path of slotd's manager and object manager.
pub const SLOTS1_PATH: &str = "/org/spsagent/slots1";

/// Path of the taint record.
pub const TAINT_PATH: &str = "/org/spsagent/slots1/taint";

/// Polkit action of `Manager.Install`.
pub const ACTION_INSTALL: &str = "org.spsagent.slots1.install";
/// Polkit action of `Slot.Verify`.
pub const ACTION_VERIFY: &str = "org.spsagent.slots1.verify";
/// Polkit action of `Slot.Delete`.
pub const ACTION_DELETE: &str = "org.spsagent.slots1.delete";
/// Polkit action of `Job.Cancel` by a caller who did not start the job.
pub const ACTION_CANCEL: &str = "org.spsagent.slots1.cancel";
/// Polkit action of `Manager.ResetState`.
pub const ACTION_RESET_STATE: &str = "org.spsagent.slots1.reset-state";
/// Polkit action of `Slot.Test`.
pub const ACTION_TEST: &str = "org.spsagent.slots1.test";
/// Polkit action of `Slot.Activate`.
pub const ACTION_ACTIVATE: &str = "org.spsagent.slots1.activate";
/// Polkit action of `Slot.Deactivate`.
pub const ACTION_DEACTIVATE: &str = "org.spsagent.slots1.deactivate";
/// Polkit action of `Manager.Confirm`.
pub const ACTION_CONFIRM: &str = "org.spsagent.slots1.confirm";
/// Polkit action of `Manager.Reject`.
pub const ACTION_REJECT: &str = "org.spsagent.slots1.reject";
/// Polkit action of `Manager.Revert`.
pub const ACTION_REVERT: &str = "org.spsagent.slots1.revert";
/// Every polkit action of slotd, as `systemd/polkit-1/actions/org.spsagent.slots1.policy` declares them.
pub const ACTIONS: &[&str] = &[
    ACTION_INSTALL,
    ACTION_VERIFY,
    ACTION_DELETE,
    ACTION_CANCEL,
    ACTION_RESET_STATE,
    ACTION_TEST,
    ACTION_ACTIVATE,
    ACTION_DEACTIVATE,
    ACTION_CONFIRM,
    ACTION_REJECT,
    ACTION_REVERT,
];

/// Path of a slot's object.
pub fn slot_path(id: crate::slot::SlotId) -> String {
    format!("{SLOTS1_PATH}/slot/{id}")
}

/// Path of a job's object.
pub fn job_path(number: u64) -> String {
    format!("{SLOTS1_PATH}/job/{number}")
}

/// Client of `org.spsagent.Slots1.Manager`.
#[zbus::proxy(
    interface = "org.spsagent.Slots1.Manager",
    default_service = "org.spsagent.Slots1",
    default_path = "/org/spsagent/slots1"
)]
pub trait Manager {
    /// Installs the firmware ISO that arrives on `image`.
    fn install(
        &self,
        image: zbus::wire::Fd<'_>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<OwnedObjectPath>;
    /// Health and JSON text of the durable state.
    fn state(&self) -> zbus::Result<(String, String)>;
    /// Writes a fresh state.
    fn reset_state(&self, reason: &str) -> zbus::Result<()>;
    /// The running firmware is healthy.
    fn confirm(&self) -> zbus::Result<()>;
    /// The running firmware, in a trial, is not healthy.
    fn reject(&self, reason: &str) -> zbus::Result<()>;
    /// Selects an earlier firmware for a trial.
    fn revert(&self, reason: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    /// Running slot, 0 when none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn booted(&self) -> zbus::Result<u32>;
    /// Default slot, 0 when none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn default(&self) -> zbus::Result<u32>;
    /// Slot that the next start is for, 0 when none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn after_reboot(&self) -> zbus::Result<u32>;
    /// Whether this start is a trial.
    #[zbus(property(emits_changed_signal = "false"))]
    fn trial(&self) -> zbus::Result<bool>;
    /// Whether the running firmware is confirmed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn confirmed(&self) -> zbus::Result<bool>;
    /// Slot to go back to, 0 when none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn fallback(&self) -> zbus::Result<u32>;
    /// How the last selection went.
    #[zbus(property(emits_changed_signal = "false"))]
    fn last_upgrade(&self) -> zbus::Result<Properties>;
    /// grub, systemd-boot or none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn loader(&self) -> zbus::Result<String>;
    /// Product.
    #[zbus(property(emits_changed_signal = "false"))]
    fn compatible(&self) -> zbus::Result<String>;
    /// Epoch floor.
    #[zbus(property(emits_changed_signal = "false"))]
    fn security_epoch(&self) -> zbus::Result<u32>;
    /// Slots free for an install.
    #[zbus(property(emits_changed_signal = "false"))]
    fn empty_slots(&self) -> zbus::Result<u32>;
    /// Records of the taint log.
    #[zbus(property(emits_changed_signal = "false"))]
    fn taint_count(&self) -> zbus::Result<u32>;
    /// direct, cached or impossible.
    #[zbus(property(emits_changed_signal = "false"))]
    fn readback(&self) -> zbus::Result<String>;
    /// checked or none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn revocation(&self) -> zbus::Result<String>;
    /// What an operator should know.
    #[zbus(property(emits_changed_signal = "false"))]
    fn warnings(&self) -> zbus::Result<Vec<String>>;
}

/// Client of `org.spsagent.Slots1.Slot`.
#[zbus::proxy(interface = "org.spsagent.Slots1.Slot", default_service = "org.spsagent.Slots1")]
pub trait Slot {
    /// Upgrade notes.
    fn notes(&self) -> zbus::Result<String>;
    /// Upgrade news.
    fn news(&self) -> zbus::Result<String>;
    /// Checks the slot.
    fn verify(&self, mode: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<OwnedObjectPath>;
    /// Tests whether the firmware can take over.
    fn test(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<OwnedObjectPath>;
    /// Selects the slot for one trial start.
    fn activate(&self, message: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    /// Takes the selection back.
    fn deactivate(&self) -> zbus::Result<()>;
    /// Empties the slot.
    fn delete(&self) -> zbus::Result<()>;
}

/// Client of `org.spsagent.Slots1.Job`. Its properties are read with one `GetAll`.
#[zbus::proxy(interface = "org.spsagent.Slots1.Job", default_service = "org.spsagent.Slots1")]
pub trait Job {
    /// Asks the job to stop.
    fn cancel(&self) -> zbus::Result<()>;
}

/// A record: id, cause, place, detail, number, when it was recorded, when it was cleared.
pub type TaintEntry = (String, String, String, String, u64, u64, u64);

/// Client of `org.spsagent.Slots1.Taint1`.
#[zbus::proxy(
    interface = "org.spsagent.Slots1.Taint1",
    default_service = "org.spsagent.Slots1",
    default_path = "/org/spsagent/slots1/taint"
)]
pub trait Taint1 {
    /// Records behind the first `offset`.
    fn list(&self, offset: u32, limit: u32) -> zbus::Result<Vec<TaintEntry>>;
    /// There are others than before.
    #[zbus(signal)]
    fn changed(&self) -> zbus::Result<()>;
}

/// All properties of one interface of an object, as `GetAll` and `GetManagedObjects` give them.
pub type Properties = HashMap<String, OwnedVariant>;

/// The number at the end of a slot or job path.
pub fn path_number(path: &ObjectPath<'_>) -> Option<u64> {
    path.as_str().rsplit('/').next()?.parse().ok()
}
