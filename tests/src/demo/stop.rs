//! Ctrl-C: every child is ended, and the demo returns, so that its directory is removed.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// How often children are looked for once the demo is to end: a thread may just be starting one.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether the demo was asked to end.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Watches SIGINT, SIGTERM and SIGHUP from now on.
    pub(super) fn on_signals() -> Result<Self> {
        let stop = Self(Arc::new(AtomicBool::new(false)));
        let (mut told, tell) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, tell.try_clone()?).context("signal handler")?;
        }
        let flag = Arc::clone(&stop.0);
        thread::Builder::new().name("stop".into()).spawn(move || {
            if matches!(told.read(&mut [0]), Ok(1..)) {
                flag.store(true, Ordering::Release);
                loop {
                    end_children();
                    thread::sleep(AGAIN);
                }
            }
        })?;
        Ok(stop)
    }

    /// An error once the demo was asked to end.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Acquire) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Asks every child of this process to end; timeout(1), below which the stock tools run, passes it on to their group.
fn end_children() {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            // One that has just ended is as good.
            let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
        }
    }
}
