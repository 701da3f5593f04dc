//! Long tasks: each on a thread of its own, listed with its progress, its end kept for a while.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use sps_base::error::ErrorKind;
use sps_base::service::THREAD_STACK;
use sps_base::slot::SlotId;
use tokio::sync::{oneshot, watch};
use zbus::wire::Variant;

use super::view::Property;
use crate::domain::upgrade_check::{CheckResult, Verdict};
use crate::store::{Failure, InstallReport, Progress, TestReport, VerifyReport};

/// Jobs that may be unfinished at a time.
pub(crate) const UNFINISHED_LIMIT: usize = 8;
/// Finished jobs that stay listed.
pub(crate) const FINISHED_LIMIT: usize = 32;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Install,
    Verify,
    Test,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Verify => "verify",
            Self::Test => "test",
        }
    }
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Installed(InstallReport),
    Verified(VerifyReport),
    Tested(TestReport),
    Failed(Failure),
}

impl From<Result<InstallReport, Failure>> for Outcome {
    fn from(result: Result<InstallReport, Failure>) -> Self {
        result.map_or_else(Self::Failed, Self::Installed)
    }
}

impl From<Result<VerifyReport, Failure>> for Outcome {
    fn from(result: Result<VerifyReport, Failure>) -> Self {
        result.map_or_else(Self::Failed, Self::Verified)
    }
}

impl From<Result<TestReport, Failure>> for Outcome {
    fn from(result: Result<TestReport, Failure>) -> Self {
        result.map_or_else(Self::Failed, Self::Tested)
    }
}

impl Outcome {
    fn state(&self) -> &'static str {
        match self {
            Self::Installed(_) => "done",
            Self::Verified(report) if report.healthy => "done",
            Self::Tested(report) if report.passed => "done",
            Self::Failed(failure) if failure.kind == ErrorKind::Cancelled => "cancelled",
            Self::Verified(_) | Self::Tested(_) | Self::Failed(_) => "failed",
        }
    }

    /// Name and message; both empty when all is well.
    fn error(&self) -> (String, String) {
        match self {
            Self::Verified(report) if !report.healthy => {
                (ErrorKind::SlotBad.dbus_name(), report.summary.clone())
            }
            Self::Failed(failure) => (failure.kind.dbus_name(), failure.message.clone()),
            Self::Tested(report) if !report.passed => (ErrorKind::TestFailed.dbus_name(), why_failed(report)),
            Self::Installed(_) | Self::Verified(_) | Self::Tested(_) => (String::new(), String::new()),
        }
    }

    fn result(&self) -> HashMap<&'static str, Variant<'static>> {
        match self {
            Self::Installed(report) => installed(report),
            Self::Verified(report) => verified(report),
            Self::Tested(report) => tested(report),
            Self::Failed(_) => HashMap::new(),
        }
    }
}

fn installed(report: &InstallReport) -> HashMap<&'static str, Variant<'static>> {
    HashMap::from([
        ("slot", report.slot.get().into()),
        ("version", report.version.clone().into()),
        ("root_hash", report.root_hash.clone().into()),
        ("manifest_sha256", report.manifest_sha256.clone().into()),
        ("transaction_id", report.transaction_id.clone().into()),
        ("bytes_written", report.bytes_written.into()),
        ("bytes_kept", report.bytes_kept.into()),
        ("warnings", report.warnings.clone().into()),
    ])
}

/// `first_bad` and `last_bad` are there only when a block is bad: 0 is a block's number too.
fn verified(report: &VerifyReport) -> HashMap<&'static str, Variant<'static>> {
    let mut result: HashMap<_, Variant<'static>> = HashMap::from([
        ("healthy", report.healthy.into()),
        ("summary", report.summary.clone().into()),
        ("blocks_checked", report.blocks_checked.into()),
        ("blocks_bad", report.blocks_bad.into()),
        ("extents", report.extents.clone().into()),
        ("owners", report.owners.clone().into()),
        ("missed_chance", report.missed_chance.into()),
    ]);
    result.extend(report.first_bad.map(|block| ("first_bad", block.into())));
    result.extend(report.last_bad.map(|block| ("last_bad", block.into())));
    result
}

fn tested(report: &TestReport) -> HashMap<&'static str, Variant<'static>> {
    let row = |check: &CheckResult| {
        (check.name.clone(), check.verdict.as_str().to_owned(), check.detail.clone(), check.hint.clone())
    };
    HashMap::from([
        ("exit_code", i32::from(!report.passed).into()),
        ("test_summary", report.summary.clone().into()),
        ("checks", report.checks.iter().map(row).collect::<Vec<_>>().into()),
        ("verity", report.verity.clone().into()),
    ])
}

/// The check that failed, in one sentence or two.
fn why_failed(report: &TestReport) -> String {
    let failed = report.checks.iter().find(|check| check.verdict == Verdict::Failed);
    failed.map_or_else(String::new, |check| {
        let text = format!("the firmware test failed: {} check: {}", check.name, check.detail);
        if check.hint.is_empty() { text } else { format!("{text}. {}", check.hint) }
    })
}

/// What moves while a job runs, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    phase: &'static str,
    done: u64,
    total: u64,
    next_offset: u64,
}

impl Moving {
    pub(crate) fn properties(self) -> Vec<Property> {
        vec![
            ("Phase", self.phase.into()),
            ("BytesDone", self.done.into()),
            ("BytesTotal", self.total.into()),
            ("NextOffset", self.next_offset.into()),
        ]
    }
}

/// One job, running or finished.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    pub(crate) slot: SlotId,
    /// Unique bus name of who started it.
    pub(crate) sender: String,
    /// Unix seconds.
    pub(crate) started_at: u64,
    pub(crate) progress: Progress,
    end: OnceLock<(Outcome, u64)>,
}

impl Job {
    pub(crate) fn is_finished(&self) -> bool {
        self.end.get().is_some()
    }

    pub(crate) fn state(&self) -> &'static str {
        self.end.get().map_or("running", |(outcome, _)| outcome.state())
    }

    pub(crate) fn error(&self) -> (String, String) {
        self.end.get().map(|(outcome, _)| outcome.error()).unwrap_or_default()
    }

    pub(crate) fn result(&self) -> HashMap<&'static str, Variant<'static>> {
        self.end.get().map(|(outcome, _)| outcome.result()).unwrap_or_default()
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.end.get().map(|(outcome, _)| outcome)
    }

    pub(crate) fn finished_at(&self) -> u64 {
        self.end.get().map_or(0, |(_, at)| *at)
    }

    /// Where it is now.
    pub(crate) fn moving(&self) -> Moving {
        Moving {
            phase: self.progress.phase(),
            done: self.progress.done(),
            total: self.progress.total(),
            next_offset: self.progress.next_offset(),
        }
    }

    /// The properties that the end sets.
    pub(crate) fn ended(&self) -> HashMap<&'static str, Variant<'static>> {
        HashMap::from([
            ("State", self.state().into()),
            ("Error", self.error().into()),
            ("Result", self.result().into()),
            ("FinishedAt", self.finished_at().into()),
        ])
    }
}

#[derive(Debug, Default)]
struct Listed {
    last: u64,
    jobs: VecDeque<Arc<Job>>,
    stopping: bool,
}

/// The jobs of this daemon.
#[derive(Debug)]
pub(crate) struct Jobs {
    listed: Mutex<Listed>,
    unsettled: watch::Sender<usize>,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        Self { listed: Mutex::default(), unsettled: watch::Sender::new(0) }
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a new job, or refuses it when too many are unfinished.
    pub(crate) fn open(&self, kind: Kind, slot: SlotId, sender: &str, now: u64) -> Result<Arc<Job>, Failure> {
        let mut listed = self.listed();
        let Listed { last, jobs, stopping } = &mut *listed;
        if *stopping {
            return Err(Failure::new(ErrorKind::SlotBusy, "slotd is stopping; try again when it is back"));
        }
        if jobs.iter().filter(|job| !job.is_finished()).count() >= UNFINISHED_LIMIT {
            let text = format!("{UNFINISHED_LIMIT} jobs are unfinished; wait for one, or cancel one");
            return Err(Failure::new(ErrorKind::SlotBusy, text));
        }
        *last += 1;
        let job = Arc::new(Job {
            number: *last,
            kind,
            slot,
            sender: sender.to_owned(),
            started_at: now,
            progress: Progress::default(),
            end: OnceLock::new(),
        });
        jobs.push_back(Arc::clone(&job));
        self.unsettled.send_modify(|count| *count += 1);
        Ok(job)
    }

    /// Writes down how a job ended. Answers the numbers of the oldest finished jobs, which leave the list.
    pub(crate) fn close(&self, job: &Job, outcome: Outcome, now: u64) -> Vec<u64> {
        // A second end changes nothing: the first one was signalled.
        let _ = job.end.set((outcome, now));
        let mut listed = self.listed();
        let jobs = &mut listed.jobs;
        let surplus = jobs.iter().filter(|job| job.is_finished()).count().saturating_sub(FINISHED_LIMIT);
        let old: Vec<u64> =
            jobs.iter().filter(|job| job.is_finished()).take(surplus).map(|job| job.number).collect();
        jobs.retain(|job| !old.contains(&job.number));
        old
    }

    /// The job's end has been told to everybody.
    pub(crate) fn settle(&self) {
        self.unsettled.send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Takes no new job and asks every running one to stop; answers how many there are.
    pub(crate) fn stop(&self) -> usize {
        let mut listed = self.listed();
        listed.stopping = true;
        let running = listed.jobs.iter().filter(|job| !job.is_finished());
        running.map(|job| job.progress.cancel()).count()
    }

    /// Waits until no job is unfinished.
    pub(crate) async fn idle(&self) {
        // The sender lives in self, so the channel cannot close.
        let _ = self.unsettled.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Runs `work` on a thread of its own; a panic there fails the job and nothing else.
pub(crate) fn run_on_thread(
    job: Arc<Job>,
    work: impl FnOnce(&Progress) -> Outcome + Send + 'static,
) -> oneshot::Receiver<Outcome> {
    let (told, outcome) = oneshot::channel();
    let name = format!("job-{}", job.number);
    let spawned = thread::Builder::new().name(name).stack_size(THREAD_STACK).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&job.progress)))
            .unwrap_or_else(|panic| Outcome::Failed(panicked(&*panic)));
        // Nobody listens any more only when the daemon is going down.
        let _ = told.send(outcome);
    });
    if let Err(error) = spawned {
        // The closure, and the channel's end in it, are gone: the receiver sees that and fails the job.
        tracing::error!(%error, "no thread for a job");
    }
    outcome
}

/// What became of a job whose thread told nothing.
pub(crate) fn vanished() -> Outcome {
    Outcome::Failed(Failure::new(ErrorKind::Device, "the system gave no thread to the job; try again later"))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = text, "a job panicked");
    Failure::new(ErrorKind::Device, format!("slotd made a mistake ({text}); verify the slot and report this"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(jobs: &Jobs) -> Result<Arc<Job>, Failure> {
        jobs.open(Kind::Install, SlotId::RECOVERY, ":1.7", 5)
    }

    fn failed(kind: ErrorKind) -> Outcome {
        Outcome::Failed(Failure::new(kind, "why"))
    }

    fn report() -> VerifyReport {
        VerifyReport {
            healthy: true,
            summary: "sound".to_owned(),
            blocks_checked: 9,
            blocks_bad: 0,
            first_bad: None,
            last_bad: None,
            extents: Vec::new(),
            owners: Vec::new(),
            missed_chance: 0.25,
        }
    }

    #[test]
    fn a_ninth_unfinished_job_is_refused_until_one_ends() {
        let jobs = Jobs::new();
        let first = open(&jobs).unwrap();
        for _ in 1..UNFINISHED_LIMIT {
            open(&jobs).unwrap();
        }
        assert_eq!(open(&jobs).unwrap_err().kind, ErrorKind::SlotBusy);
        jobs.close(&first, failed(ErrorKind::MediaCorrupt), 6);
        assert_eq!(open(&jobs).unwrap().number, 9);
    }

    #[test]
    fn the_newest_finished_jobs_stay_and_no_running_one_leaves() {
        let jobs = Jobs::new();
        let running = open(&jobs).unwrap();
        let mut left = Vec::new();
        for _ in 0..FINISHED_LIMIT + 3 {
            let job = open(&jobs).unwrap();
            left.extend(jobs.close(&job, failed(ErrorKind::Cancelled), 6));
        }
        assert_eq!(left, [2, 3, 4]);
        assert!(!running.is_finished());
        assert_eq!(jobs.stop(), 1);
        assert!(running.progress.is_cancelled());
        assert_eq!(open(&jobs).unwrap_err().kind, ErrorKind::SlotBusy);
    }

    #[test]
    fn the_first_end_stands() {
        let jobs = Jobs::new();
        let job = open(&jobs).unwrap();
        assert_eq!((job.state(), job.finished_at()), ("running", 0));
        jobs.close(&job, failed(ErrorKind::Cancelled), 8);
        jobs.close(&job, failed(ErrorKind::Device), 9);
        assert_eq!((job.state(), job.finished_at()), ("cancelled", 8));
        assert_eq!(job.error(), ("org.spsagent.Error.Cancelled".to_owned(), "why".to_owned()));
    }

    #[test]
    fn a_panicking_worker_fails_its_job_only() {
        let jobs = Jobs::new();
        let job = open(&jobs).unwrap();
        let outcome = run_on_thread(job, |_| panic!("index 7 of 3")).blocking_recv().unwrap();
        assert!(
            matches!(&outcome, Outcome::Failed(failure)
                if failure.kind == ErrorKind::Device && failure.message.contains("index 7 of 3")),
            "{outcome:?}"
        );
    }

    #[test]
    fn a_damaged_slot_fails_the_job_and_keeps_the_findings() {
        let damaged = VerifyReport {
            healthy: false,
            summary: "2 blocks are wrong".to_owned(),
            blocks_bad: 2,
            first_bad: Some(0),
            last_bad: Some(7),
            extents: vec![(0, 1), (7, 1)],
            owners: vec!["superblock".to_owned()],
            ..report()
        };
        let outcome = Outcome::from(Ok(damaged));
        assert_eq!(outcome.state(), "failed");
        assert_eq!(
            outcome.error(),
            ("org.spsagent.Error.SlotBad".to_owned(), "2 blocks are wrong".to_owned())
        );
        let result = outcome.result();
        assert_eq!(result["first_bad"], Variant::from(0_u64));
        assert_eq!(result["extents"].value_signature().to_string(), "a(tt)");
        assert_eq!(result["owners"].value_signature().to_string(), "as");
    }

    #[test]
    fn a_sound_slot_names_no_bad_block() {
        let outcome = Outcome::from(Ok(report()));
        assert_eq!((outcome.state(), outcome.error()), ("done", Default::default()));
        let result = outcome.result();
        assert!(!result.contains_key("first_bad") && !result.contains_key("last_bad"));
        assert_eq!(result["extents"].value_signature().to_string(), "a(tt)");
        assert_eq!(result["missed_chance"], Variant::from(0.25));
    }

    #[test]
    fn an_install_reports_with_the_types_of_the_contract() {
        let outcome = Outcome::from(Ok(InstallReport {
            slot: SlotId::new(2).unwrap(),
            version: "7.1.0".to_owned(),
            root_hash: "ab".to_owned(),
            manifest_sha256: "cd".to_owned(),
            transaction_id: "t".to_owned(),
            bytes_written: 1,
            bytes_kept: 2,
            warnings: Vec::new(),
        }));
        let types: std::collections::BTreeMap<_, _> = outcome
            .result()
            .into_iter()
            .map(|(name, value)| (name, value.value_signature().to_string()))
            .collect();
        let expected = [
            ("bytes_kept", "t"),
            ("bytes_written", "t"),
            ("manifest_sha256", "s"),
            ("root_hash", "s"),
            ("slot", "u"),
            ("transaction_id", "s"),
            ("version", "s"),
            ("warnings", "as"),
        ];
        assert_eq!(types, expected.map(|(name, kind)| (name, kind.to_owned())).into());
    }
}
