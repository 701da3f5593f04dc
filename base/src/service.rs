//! The shell that every service runs in: log, readiness, watchdog, shutdown.
//!
//! One thread runs everything that is not a long task. Nothing ticks while a service is idle but the watchdog.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Stack of the few threads beside the main one. They parse and copy; nothing recurses.
pub const THREAD_STACK: usize = 512 * 1024;

/// Why the shell could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The level has no such name.
    #[error("log level {found:?} is unknown; take off, error, warn, info, debug or trace")]
    Level {
        /// What was asked for.
        found: String,
    },
    /// journald does not answer.
    #[error("journald does not take log entries; is systemd-journald.socket running?")]
    Journal(#[source] io::Error),
    /// A second log was set up in one process.
    #[error("the log is already set up")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The event loop or the signal handlers could not be made.
    #[error("the event loop cannot start")]
    Loop(#[source] io::Error),
}

/// Sends `tracing` to journald when standard error is its stream, otherwise to standard error as text.
///
/// `level` holds for this project's crates; others are heard from `warn` up. Fields keep their names, so that
/// `MESSAGE_ID` reaches the journal as `MESSAGE_ID`.
pub fn start_log(level: &str) -> Result<(), ShellError> {
    let own: LevelFilter = level.parse().map_err(|_| ShellError::Level { found: level.to_owned() })?;
    let others = own.min(LevelFilter::WARN);
    let filter = ["slotd", "sps_base", "recovery", "agent"]
        .into_iter()
        .fold(Targets::new().with_default(others), |filter, name| filter.with_target(name, own));
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_journal() {
        let journal = tracing_journald::layer().map_err(ShellError::Journal)?.with_field_prefix(None);
        registry.with(journal).try_init().map_err(ShellError::Twice)
    } else {
        let text = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).without_time();
        registry.with(text).try_init().map_err(ShellError::Twice)
    }
}

/// Whether `$JOURNAL_STREAM` names the file that standard error is (`systemd.exec(5)`): a service whose standard
/// error was sent elsewhere must not log behind the operator's back.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(found) = std::fs::File::from(stderr).metadata() else { return false };
    stream == format!("{}:{}", found.dev(), found.ino())
}

/// The service's side of the service manager: signals in, notifications out.
#[derive(Debug)]
pub struct Shell {
    terminate: Signal,
    interrupt: Signal,
    watchdog: Option<Interval>,
}

/// Runs `body` on this thread. Threads of its own for blocking calls are few, small and short-lived.
///
/// When `body` returns, blocking calls that still run are left behind, not waited for.
pub fn run<T>(body: impl AsyncFnOnce(Shell) -> T) -> Result<T, ShellError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_stack_size(THREAD_STACK)
        .build()
        .map_err(ShellError::Loop)?;
    let result = runtime.block_on(async { Ok(body(Shell::new().map_err(ShellError::Loop)?).await) });
    runtime.shutdown_background();
    result
}

impl Shell {
    fn new() -> io::Result<Self> {
        // Half the time that systemd allows: one missed tick is not yet a restart.
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| {
            let mut ticks = interval_at(tokio::time::Instant::now() + limit / 2, limit / 2);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            watchdog,
        })
    }

    /// The service answers from now on.
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The service is going down.
    pub fn stopping(&self, status: &str) {
        notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// Waits for SIGTERM or SIGINT and says which. Feeds the watchdog meanwhile, from the very loop that serves
    /// requests: when that loop hangs, systemd hears nothing.
    pub async fn stop_requested(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                () = tick(&mut self.watchdog) => notify(&[NotifyState::Watchdog]),
            }
        }
    }
}

async fn tick(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager takes no notification");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_level_is_refused_by_name() {
        let error = start_log("loud").unwrap_err();
        assert!(matches!(&error, ShellError::Level { found } if found == "loud"), "{error}");
    }

    #[test]
    fn an_idle_shell_has_no_ticks_without_a_watchdog() {
        let shell = run(async |shell| shell.watchdog.is_none()).unwrap();
        assert!(shell);
    }
}
