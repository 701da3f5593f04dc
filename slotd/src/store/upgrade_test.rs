//! Testing whether a firmware can take over, and remembering for a while that it can.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use super::inspect::Installed;
use super::surroundings::{Configuration, Programs, Root};
use super::types::{Failure, Progress, TestReport, VerifyMode};
use super::{Reservation, Store};
use crate::device::device_mapper::Verity;
use crate::domain::layout::Part;
use crate::domain::manifest::Sha256Hex;
use crate::domain::upgrade_check::{self as check, CheckResult, Verdict, VersionFacts};

/// How long a passed test is good for.
pub const TEST_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What a test was made for: when any of it is different, the test says nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    slot: SlotId,
    tested: Sha256Hex,
    running: Option<Sha256Hex>,
    revision: String,
}

/// A test that passed.
#[derive(Debug)]
pub(super) struct Passed {
    subject: Subject,
    at: Instant,
}

impl Store {
    /// Holds a slot for a test. Answers at once.
    pub fn reserve_test(&self, slot: SlotId) -> Result<Reservation, Failure> {
        self.find(slot)?;
        self.reserve_verify(slot)
    }

    /// Tests whether the firmware in a slot can take over: every block of it, what is around it, and what its own
    /// programs say. `again` admits one whose last trial failed. Blocks until it ends or is cancelled.
    pub fn test(
        &self,
        reservation: &Reservation,
        again: bool,
        progress: &Progress,
    ) -> Result<TestReport, Failure> {
        let slot = reservation.slot();
        let (_, known) = self.find(slot)?;
        let installed = known.installed.clone().ok_or_else(|| Self::empty(slot))?;
        let subject = self.subject(slot, &installed);
        let report = self.verify(reservation, VerifyMode::Full, false, progress)?;
        if !report.healthy {
            return Err(Failure::new(ErrorKind::SlotBad, report.summary));
        }
        progress.begin("running checks", progress.total());
        let (checks, verity) = self.run_checks(slot, &installed, &subject, again, progress)?;
        let passed = checks.iter().all(|check| check.verdict != Verdict::Failed);
        let mut tests = self.tests.lock().unwrap_or_else(PoisonError::into_inner);
        tests.retain(|test| test.subject.slot != slot);
        if let (true, Ok(subject)) = (passed, subject) {
            tests.push(Passed { subject, at: Instant::now() });
        }
        Ok(TestReport { passed, summary: check::summary(&checks), checks, verity })
    }

    /// The checks in their order, up to the first that fails.
    fn run_checks(
        &self,
        slot: SlotId,
        installed: &Installed,
        subject: &Result<Subject, String>,
        again: bool,
        progress: &Progress,
    ) -> Result<(Vec<CheckResult>, String), Failure> {
        let mut verity = "none: nothing was mounted".to_owned();
        let mut checks = self.first_checks(installed, subject, again);
        if !ended(&checks) {
            let programs = self.run_programs(slot, installed, progress)?;
            verity = programs.verity;
            checks.extend(programs.checks);
        }
        if !ended(&checks) {
            checks.push(self.surroundings.availability());
        }
        if progress.is_cancelled() {
            return Err(Failure::new(ErrorKind::Cancelled, "the test was cancelled"));
        }
        let end = checks.iter().position(|check| check.verdict == Verdict::Failed);
        checks.truncate(end.map_or(checks.len(), |end| end + 1));
        Ok((checks, verity))
    }

    fn first_checks(
        &self,
        installed: &Installed,
        subject: &Result<Subject, String>,
        again: bool,
    ) -> Vec<CheckResult> {
        let manifest = &installed.manifest;
        let root_hash = manifest.root.verity.root_hash;
        let running = self.running();
        let running = running.as_ref().and_then(|known| known.installed.as_ref()).map(|i| &i.manifest);
        let published = self.state.get();
        let refused = published.state.refused.iter().find(|refused| refused.root_hash == root_hash && !again);
        let facts = VersionFacts {
            running: running.map(|running| running.version.as_str()),
            is_running: running.is_some_and(|running| running.root.verity.root_hash == root_hash),
            epoch_floor: self.epoch_floor(),
            refused: refused.map(|refused| refused.reason.as_str()),
        };
        let revision = subject.as_ref().map(|subject| subject.revision.clone()).map_err(Clone::clone);
        let steps: [&dyn Fn() -> CheckResult; 4] = [
            &|| check::version(manifest, &facts),
            &|| check::storage(manifest, self.surroundings.free_space()),
            &|| check::configuration(manifest, running.map(|running| running.config_schema), &revision),
            &|| self.surroundings.taint(),
        ];
        let mut checks = Vec::new();
        for step in steps {
            checks.push(step());
            if ended(&checks) {
                break;
            }
        }
        checks
    }

    fn run_programs(
        &self,
        slot: SlotId,
        installed: &Installed,
        progress: &Progress,
    ) -> Result<Programs, Failure> {
        let manifest = &installed.manifest;
        let running =
            self.running().and_then(|known| Some(known.installed.as_ref()?.manifest.version.clone()));
        let root = Root {
            slot,
            size: manifest.root.size,
            verity: Verity {
                root_hash: manifest.root.verity.root_hash,
                salt: manifest.root.verity.salt.clone(),
                hash_offset: installed.layout.get(Part::Verity).map_or(u64::MAX, |tree| tree.offset),
            },
            variables: vec![
                ("SPS_VERSION".into(), manifest.version.clone()),
                ("SPS_RUNNING_VERSION".into(), running.unwrap_or_default()),
                ("SPS_HARDWARE".into(), self.hardware.clone()),
            ],
        };
        let cancelled: &AtomicBool = progress.cancelled_flag();
        self.surroundings.run_programs(&root, cancelled).map_err(|why| {
            let kind = if progress.is_cancelled() { ErrorKind::Cancelled } else { ErrorKind::Device };
            Failure::new(kind, format!("the check programs of the firmware cannot be run: {why}"))
        })
    }

    fn subject(&self, slot: SlotId, installed: &Installed) -> Result<Subject, String> {
        let hash = |installed: &Installed| installed.manifest.root.verity.root_hash;
        let running = self.running().and_then(|known| known.installed.as_ref().map(hash));
        let configuration = match running {
            Some(running) => self.surroundings.configuration(running)?,
            None => None,
        };
        let revision = configuration
            .map(|configuration| format!("revision {}", configuration.revision))
            .unwrap_or_default();
        Ok(Subject { slot, tested: hash(installed), running, revision })
    }

    /// Whether a test of this very firmware has passed, over this running one and its configuration, not long ago.
    pub(super) fn require_test(&self, slot: SlotId) -> Result<(), Failure> {
        let refuse = |why: &str| {
            let message = format!("slot {slot} {why}; run `spsctl test {slot}` first");
            Err(Failure::new(ErrorKind::TestRequired, message))
        };
        let (_, known) = self.find(slot)?;
        let Some(installed) = &known.installed else { return Err(Self::empty(slot)) };
        let mut tests = self.tests.lock().unwrap_or_else(PoisonError::into_inner);
        tests.retain(|test| test.at.elapsed() < TEST_LIFETIME);
        let Some(test) = tests.iter().find(|test| test.subject.slot == slot) else {
            return refuse("has not passed a test in the last 15 minutes");
        };
        match self.subject(slot, installed) {
            Ok(subject) if subject == test.subject => Ok(()),
            Ok(_) => refuse("was tested before the firmware or the configuration changed"),
            Err(why) => refuse(&format!("cannot be compared with its test ({why})")),
        }
    }

    /// Date of the configuration that the firmware in a slot would start with.
    pub(super) fn configuration_date(&self, slot: SlotId) -> Result<Option<String>, Failure> {
        let (_, known) = self.find(slot)?;
        let Some(installed) = &known.installed else { return Ok(None) };
        let found = self.configuration_of(installed).map_err(|why| Failure::new(ErrorKind::Device, why))?;
        Ok(found.map(|configuration| configuration.date))
    }

    /// The configuration generation of a firmware. Reads the data partition.
    pub(super) fn configuration_of(&self, installed: &Installed) -> Result<Option<Configuration>, String> {
        self.surroundings.configuration(installed.manifest.root.verity.root_hash)
    }

    /// After this every selection needs a new test.
    pub(super) fn forget_tests(&self) {
        self.tests.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn ended(checks: &[CheckResult]) -> bool {
    checks.last().is_some_and(|check| check.verdict == Verdict::Failed)
}
