//! What goes into the journal with a `MESSAGE_ID`. Fields are those that `systemd/catalog/sps.catalog` fills in.

use sps_base::error::ErrorKind;
use sps_base::journal;
use sps_base::slot::SlotId;

use super::jobs::{Job, Kind, Outcome};
use crate::store::{Failure, InstallReport, SlotView, SlotWord, TestReport};

/// How the state was found at the start.
pub(super) fn state(health: &str) {
    if health != "valid" {
        tracing::error!(MESSAGE_ID = journal::STATE_LOST, ERROR = health, "state: {health}");
    }
}

/// The trusted keys cannot be used.
pub(super) fn keyring(why: &str) {
    tracing::error!(MESSAGE_ID = journal::KEYRING_UNUSABLE, ERROR = why, "keyring: {why}");
}

pub(super) fn state_reset(reason: &str, sender: &str) {
    tracing::warn!(
        MESSAGE_ID = journal::STATE_RESET,
        REASON = reason,
        SENDER = sender,
        "state written afresh: {reason}"
    );
}

pub(super) fn deleted(slot: SlotId, sender: &str) {
    tracing::info!(
        MESSAGE_ID = journal::SLOT_DELETED,
        SLOT = slot.get(),
        SENDER = sender,
        "slot {slot} deleted"
    );
}

fn named(slot: Option<&SlotView>) -> (u32, &str) {
    slot.map_or((0, ""), |slot| (slot.id.get(), slot.version.as_str()))
}

pub(super) fn selected(slot: Option<&SlotView>, reason: &str, sender: &str) {
    let (id, version) = named(slot);
    tracing::info!(
        MESSAGE_ID = journal::TRIAL_SELECTED,
        SLOT = id,
        VERSION = version,
        REASON = reason,
        SENDER = sender,
        "firmware {version} in slot {id} is selected for the next start, by {sender}: {reason:?}"
    );
}

pub(super) fn withdrawn(slot: SlotId, sender: &str) {
    tracing::info!(
        MESSAGE_ID = journal::TRIAL_WITHDRAWN,
        SLOT = slot.get(),
        SENDER = sender,
        "the selection of slot {slot} is taken back by {sender}"
    );
}

pub(super) fn confirmed(slot: Option<&SlotView>) {
    let (id, version) = named(slot);
    tracing::info!(
        MESSAGE_ID = journal::TRIAL_CONFIRMED,
        SLOT = id,
        VERSION = version,
        "firmware {version} in slot {id} is confirmed and the default now"
    );
}

pub(super) fn rejected(slot: Option<&SlotView>, reason: &str) {
    let (id, version) = named(slot);
    tracing::error!(
        MESSAGE_ID = journal::TRIAL_FAILED,
        SLOT = id,
        VERSION = version,
        REASON = reason,
        "the trial of firmware {version} in slot {id} has failed: {reason}"
    );
}

pub(super) fn started(job: &Job) {
    let (number, slot, sender) = (job.number, job.slot, job.sender.as_str());
    match job.kind {
        Kind::Install => tracing::info!(
            MESSAGE_ID = journal::INSTALL_STARTED,
            SLOT = slot.get(),
            JOB = number,
            SENDER = sender,
            "job {number}: install into slot {slot} for {sender}"
        ),
        Kind::Test => tracing::info!(
            SLOT = slot.get(),
            JOB = number,
            SENDER = sender,
            "job {number}: test of slot {slot} for {sender}"
        ),
        Kind::Verify => tracing::info!(
            SLOT = slot.get(),
            JOB = number,
            SENDER = sender,
            "job {number}: check of slot {slot} for {sender}"
        ),
    }
}

/// How a job ended. `slot` is the slot as the job left it.
pub(super) fn ended(job: &Job, slot: Option<&SlotView>) {
    match (job.kind, job.outcome()) {
        (_, None) => {}
        (_, Some(Outcome::Installed(report))) => installed(job, report),
        (Kind::Install, Some(Outcome::Failed(failure))) => install_failed(job, failure, slot),
        (_, Some(Outcome::Verified(report))) if report.healthy => tracing::info!(
            SLOT = job.slot.get(),
            JOB = job.number,
            "job {}: slot {} is sound: {}",
            job.number,
            job.slot,
            report.summary
        ),
        (_, Some(Outcome::Verified(report))) => verify_failed(job, &report.summary),
        (Kind::Verify, Some(Outcome::Failed(failure))) if failure.kind == ErrorKind::Cancelled => {
            tracing::info!(JOB = job.number, "job {}: check of slot {} cancelled", job.number, job.slot);
        }
        (_, Some(Outcome::Tested(report))) => tested(job, report),
        (Kind::Test, Some(Outcome::Failed(failure))) => tracing::warn!(
            SLOT = job.slot.get(),
            JOB = job.number,
            ERROR = failure.message.as_str(),
            "job {}: slot {} was not tested ({}): {}",
            job.number,
            job.slot,
            failure.kind,
            failure.message
        ),
        (Kind::Verify, Some(Outcome::Failed(failure))) => verify_failed(job, &failure.message),
    }
}

fn tested(job: &Job, report: &TestReport) {
    for check in &report.checks {
        let (name, result) = (check.name.as_str(), check.verdict.as_str());
        tracing::info!(
            SLOT = job.slot.get(),
            JOB = job.number,
            "job {}: {name} check {result}: {}",
            job.number,
            check.detail
        );
    }
    if report.passed {
        tracing::info!(
            SLOT = job.slot.get(),
            JOB = job.number,
            "job {}: slot {} can take over",
            job.number,
            job.slot
        );
    } else {
        let (_, why) = job.error();
        tracing::error!(
            MESSAGE_ID = journal::TEST_FAILED,
            SLOT = job.slot.get(),
            JOB = job.number,
            ERROR = why.as_str(),
            "job {}: slot {}: {why}",
            job.number,
            job.slot
        );
    }
}

fn installed(job: &Job, report: &InstallReport) {
    tracing::info!(
        MESSAGE_ID = journal::INSTALL_SUCCEEDED,
        SLOT = report.slot.get(),
        VERSION = report.version,
        JOB = job.number,
        "job {}: slot {} holds firmware {}",
        job.number,
        report.slot,
        report.version
    );
}

fn verify_failed(job: &Job, why: &str) {
    tracing::error!(
        MESSAGE_ID = journal::VERIFY_FAILED,
        SLOT = job.slot.get(),
        JOB = job.number,
        ERROR = why,
        "job {}: slot {} failed its check: {why}",
        job.number,
        job.slot
    );
}

/// Refused means that nothing was written; failed means that the slot was touched.
fn install_failed(job: &Job, failure: &Failure, slot: Option<&SlotView>) {
    let (number, slot_id, why) = (job.number, job.slot, failure.message.as_str());
    let touched = slot.is_some_and(|slot| matches!(slot.state, SlotWord::Writing | SlotWord::Bad));
    if failure.kind == ErrorKind::Cancelled {
        tracing::warn!(
            MESSAGE_ID = journal::INSTALL_CANCELLED,
            SLOT = slot_id.get(),
            JOB = number,
            ERROR = why,
            "job {number}: install into slot {slot_id} cancelled: {why}"
        );
    } else if is_refusal(failure.kind) || !touched {
        tracing::warn!(
            MESSAGE_ID = journal::INSTALL_REFUSED,
            SLOT = slot_id.get(),
            JOB = number,
            ERROR = why,
            "job {number}: image refused ({}): {why}",
            failure.kind
        );
    } else {
        tracing::error!(
            MESSAGE_ID = journal::INSTALL_FAILED,
            SLOT = slot_id.get(),
            JOB = number,
            ERROR = why,
            "job {number}: install into slot {slot_id} failed ({}): {why}",
            failure.kind
        );
    }
}

/// Kinds that are only ever answered before the first write (architecture: signature and policy come first).
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::SignatureInvalid
            | ErrorKind::Untrusted
            | ErrorKind::Incompatible
            | ErrorKind::EpochTooOld
            | ErrorKind::VersionPolicy
            | ErrorKind::NoSpace
            | ErrorKind::AlreadyInstalled
            | ErrorKind::SlotInUse
            | ErrorKind::InvalidArgument
    )
}
