//! What the store tells and takes: plain values, ready for any front.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use crate::domain::upgrade_check::CheckResult;

/// A refusal or a failure as it leaves slotd: the kind decides the D-Bus name, the message says what, where and
/// what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Contract name.
    pub kind: ErrorKind,
    /// One to three sentences for the operator.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// State of a slot in one word, as the contract spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotWord {
    /// Nothing in it.
    Empty,
    /// An install that has not ended; resumable.
    Writing,
    /// Signed, complete, read back.
    Verified,
    /// Not to be trusted; the reason says why.
    Bad,
}

impl SlotWord {
    /// Spelling on D-Bus and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Writing => "writing",
            Self::Verified => "verified",
            Self::Bad => "bad",
        }
    }
}

/// One slot as the properties of `org.spsagent.Slots1.Slot` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Number.
    pub id: SlotId,
    /// Label of the layout.
    pub label: String,
    /// State.
    pub state: SlotWord,
    /// Why, when writing or bad.
    pub reason: String,
    /// Version, empty unless verified (or bad with a manifest that verifies).
    pub version: String,
    /// Boot firmware version.
    pub boot_version: String,
    /// RFC 3339.
    pub build_date: String,
    /// Hex.
    pub root_hash: String,
    /// Epoch.
    pub security_epoch: u32,
    /// Capacity in bytes.
    pub size: u64,
    /// Unix seconds, 0 = never.
    pub installed_at: u64,
    /// Unix seconds, 0 = never.
    pub verified_at: u64,
    /// installed, quick, full or empty.
    pub verified_how: &'static str,
    /// RFC 3339; empty when it has no configuration of its own. As of the last look at the slot.
    pub configuration: String,
    /// Runs now.
    pub current: bool,
    /// Runs after the next reboot.
    pub after_reboot: bool,
}

/// The manager's properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Running slot; `SlotId::RECOVERY` when none.
    pub booted: SlotId,
    /// Default slot; `SlotId::RECOVERY` when none.
    pub default: SlotId,
    /// Slot of the next start; `SlotId::RECOVERY` when none.
    pub after_reboot: SlotId,
    /// This start is a trial.
    pub trial: bool,
    /// The running firmware has proven itself.
    pub confirmed: bool,
    /// Slot to go back to; `SlotId::RECOVERY` when none.
    pub fallback: SlotId,
    /// How the last selection went.
    pub last_upgrade: Option<LastUpgradeView>,
    /// grub, systemd-boot or none.
    pub loader: &'static str,
    /// Product.
    pub compatible: String,
    /// Epoch floor.
    pub security_epoch: u32,
    /// Slots free for an install.
    pub empty_slots: u32,
    /// Records of the taint log, also those that found no room.
    pub taint_count: u32,
    /// direct, cached or impossible.
    pub readback: &'static str,
    /// checked or none.
    pub revocation: &'static str,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// How the last selection went, as `LastUpgrade` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUpgradeView {
    /// selected, trial, confirmed, failed or withdrawn.
    pub outcome: &'static str,
    /// upgrade, revert or fallback.
    pub kind: &'static str,
    /// Which slot.
    pub slot: SlotId,
    /// Its version.
    pub version: String,
    /// What ran when it was selected.
    pub from_version: String,
    /// Hex.
    pub root_hash: String,
    /// The operator's words.
    pub message: String,
    /// Who.
    pub who: String,
    /// Unix seconds.
    pub selected_at: u64,
    /// Unix seconds, 0 while it goes on.
    pub ended_at: u64,
    /// Why it failed; else empty.
    pub reason: String,
}

/// What a revert was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevertRequest {
    /// Target; `None` takes the fallback.
    pub slot: Option<SlotId>,
    /// Date of the configuration that comes back.
    pub accept_config: Option<String>,
}

/// What a test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestReport {
    /// Nothing wrong.
    pub passed: bool,
    /// Two lines for each check (spec, resolution 41).
    pub summary: String,
    /// The same as data.
    pub checks: Vec<CheckResult>,
    /// Whether dm-verity guarded the root from which the firmware's own programs ran.
    pub verity: String,
}

/// What an install was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstallRequest {
    /// Target; `None` takes the first empty slot.
    pub slot: Option<SlotId>,
    /// Overwrite a filled slot.
    pub replace: bool,
    /// Write the same root hash again.
    pub repair: bool,
    /// Refuse any image but the one whose manifest has this SHA-256.
    pub manifest_sha256: Option<[u8; 32]>,
    /// Name of the transaction, 1 to 64 characters of `[A-Za-z0-9._-]`; resumes it when it was cut.
    pub transaction_id: Option<String>,
    /// The first byte that arrives is this byte of the ISO.
    pub offset: u64,
}

/// What an install did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallReport {
    /// Where it went.
    pub slot: SlotId,
    /// What it was.
    pub version: String,
    /// Hex.
    pub root_hash: String,
    /// Hex.
    pub manifest_sha256: String,
    /// The transaction's name.
    pub transaction_id: String,
    /// Bytes that this run wrote to the slot.
    pub bytes_written: u64,
    /// Bytes that were found already in place by a resume.
    pub bytes_kept: u64,
    /// What is worth knowing (a weak key, read-back impossible).
    pub warnings: Vec<String>,
}

/// How thoroughly to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// Trailer, signature, tree top, random leaves.
    Quick,
    /// Every block.
    Full,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyReport {
    /// Nothing wrong.
    pub healthy: bool,
    /// One sentence.
    pub summary: String,
    /// Data and hash blocks of 4096 bytes that were checked.
    pub blocks_checked: u64,
    /// Blocks that are wrong.
    pub blocks_bad: u64,
    /// First bad block: number of the 4096-byte block, counted from the start of the slot.
    pub first_bad: Option<u64>,
    /// Last bad block.
    pub last_bad: Option<u64>,
    /// Runs of bad blocks (first, count), at most 1,024.
    pub extents: Vec<(u64, u64)>,
    /// What owns them: `file /usr/bin/x`, `directory /usr`, `inode table`, `superblock`, `tree level 0`, `padding`,
    /// `manifest.json`, …; at most 1,024.
    pub owners: Vec<String>,
    /// Quick only: the chance that one bad block among all was missed, 0 to 1.
    pub missed_chance: f64,
}

/// What a long task is doing, shared between the thread that works and everybody who asks. Reading never waits.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
    next_offset: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// What it is doing.
    pub fn phase(&self) -> &'static str {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
    /// Bytes to do; 0 while unknown.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
    /// Where a resumed transfer may start.
    pub fn next_offset(&self) -> u64 {
        self.next_offset.load(Ordering::Relaxed)
    }
    /// Asks the worker to stop; it looks at least every 250 ms.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
    /// Whether somebody asked it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
    /// The same, for who can only be given a flag.
    pub(crate) fn cancelled_flag(&self) -> &AtomicBool {
        &self.cancelled
    }
    pub(crate) fn begin(&self, phase: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.total.store(total, Ordering::Relaxed);
    }
    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
    pub(crate) fn set_next_offset(&self, offset: u64) {
        self.next_offset.store(offset, Ordering::Relaxed);
    }
}
