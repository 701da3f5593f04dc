//! Following a job to its end.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sps_base::dbus::Properties;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use zbus::wire::OwnedVariant;
use zbus::{Message, MessageStream};

use crate::client::Client;
use crate::error::CtlError;
use crate::model::{self, Job};
use crate::output::{Style, complain};
use crate::progress::Progress;

/// Signals tell at once; this often the job is asked all the same, so that a lost signal or a dead slotd shows.
const POLL: Duration = Duration::from_secs(1);

/// What Ctrl-C does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Cancels the job and waits for its end; the second one leaves.
    Cancel,
    /// Leaves; the job goes on.
    Leave,
}

/// Follows job `number` until it is over. Progress goes to standard error unless `quiet`.
pub async fn follow(
    client: &Client,
    number: u64,
    on_interrupt: OnInterrupt,
    quiet: bool,
) -> Result<Job, CtlError> {
    follow_expecting(client, number, on_interrupt, quiet, None).await
}

/// Like [`follow`]; `expected` is how many bytes there will be, as long as slotd does not know better.
pub async fn follow_expecting(
    client: &Client,
    number: u64,
    on_interrupt: OnInterrupt,
    quiet: bool,
    expected: Option<u64>,
) -> Result<Job, CtlError> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|source| CtlError::System { doing: "cannot listen for Ctrl-C", source })?;
    let mut display = Display::new(quiet, expected);
    let result = tokio::select! {
        result = watch(client, number, &mut display) => result.map_err(|error| lost(number, error)),
        left = interrupted(client, number, on_interrupt, &mut interrupts) => Err(left),
    };
    display.end();
    result
}

/// A bus that lost slotd means that the job is lost, too.
fn lost(job: u64, error: CtlError) -> CtlError {
    match error {
        CtlError::Unreachable { .. } => CtlError::JobLost { job, source: Box::new(error) },
        other => other,
    }
}

async fn watch(client: &Client, number: u64, display: &mut Display) -> Result<Job, CtlError> {
    let mut changes = client.job_changes(number).await?;
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once: what happened before the signals were subscribed is in this answer.
    poll.tick().await;
    let mut values = client.job_properties(number).await?;
    loop {
        let job = model::job(number, &values)?;
        display.show(&job);
        if job.is_over() {
            // One signal may tell a part only, so the end is asked for whole; a slotd that ended the job because
            // it is being stopped answers no more, and then the signals have to do.
            return match client.job(number).await {
                Err(CtlError::Unreachable { .. }) => Ok(job),
                whole => whole,
            };
        }
        tokio::select! {
            change = next_change(&mut changes) => values.extend(change?),
            _ = poll.tick() => values = client.job_properties(number).await?,
        }
    }
}

/// The properties of the next change signal.
async fn next_change(changes: &mut MessageStream) -> Result<Properties, CtlError> {
    let failed = |error| CtlError::from_bus(error, "following the job", "job");
    match changes.next().await {
        Some(message) => changed(&message.map_err(failed)?).map_err(failed),
        None => Err(failed(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())),
    }
}

fn changed(message: &Message) -> zbus::Result<Properties> {
    let body = message.body();
    let (_interface, changed, _invalidated): (String, Properties, Vec<String>) = body.deserialize()?;
    Ok(changed.into_iter().collect::<std::collections::HashMap<String, OwnedVariant>>())
}

/// Ends when Ctrl-C means to leave.
async fn interrupted(
    client: &Client,
    job: u64,
    on_interrupt: OnInterrupt,
    interrupts: &mut Signal,
) -> CtlError {
    interrupts.recv().await;
    if on_interrupt == OnInterrupt::Cancel {
        complain(&format!("\ncancelling job {job}; Ctrl-C again leaves it\n"));
        let asked = ask_to_stop(client.clone(), job);
        interrupts.recv().await;
        asked.abort();
    }
    CtlError::Interrupted { job }
}

/// Beside the waiting, so that a slotd that does not answer holds up no second Ctrl-C.
fn ask_to_stop(client: Client, job: u64) -> JoinHandle<()> {
    tokio::spawn(async move {
        match client.cancel(job).await {
            // A job that has just ended cannot be cancelled, and its end is shown anyway.
            Ok(()) | Err(CtlError::Refused { kind: sps_base::error::ErrorKind::InvalidArgument, .. }) => {}
            Err(error) => complain(&format!("\ncannot cancel: {}\n", error.full_message())),
        }
    })
}

struct Display {
    progress: Option<Progress>,
    expected: Option<u64>,
    start: Instant,
}

impl Display {
    fn new(quiet: bool, expected: Option<u64>) -> Self {
        let progress = (!quiet).then(|| Progress::new(Style::of_stderr().terminal));
        Self { progress, expected, start: Instant::now() }
    }

    fn show(&mut self, job: &Job) {
        if let Some(progress) = &mut self.progress {
            let bytes_total = job.bytes_total.or(self.expected);
            complain(&progress.update(self.start.elapsed(), &Job { bytes_total, ..job.clone() }));
        }
    }

    fn end(&self) {
        if let Some(progress) = &self.progress {
            complain(progress.end());
        }
    }
}
