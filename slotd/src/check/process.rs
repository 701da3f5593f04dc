//! A child whose time and output are bounded.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How often the child's end and the cancel flag are looked at while nothing arrives, in milliseconds.
const TICK_MS: u16 = 50;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// What a child may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// How long it may run.
    pub time: Duration,
    /// Bytes that are kept of each stream: its last ones. The rest is read, counted and dropped.
    pub keep: usize,
    /// Ends it when set.
    pub cancel: Option<&'a AtomicBool>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// By this signal, not ours.
    Signalled(i32),
    /// It was ended at the deadline.
    Deadline,
    /// It was ended because the caller asked.
    Cancelled,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signalled(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => write!(f, "signal {number}, {signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Deadline => f.write_str("deadline"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// The end of a stream.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
    /// Bytes that were written in all.
    pub total: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8], keep: usize) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let kept = bytes.get(bytes.len().saturating_sub(keep)..).unwrap_or_default();
        let excess = (self.bytes.len() + kept.len()).saturating_sub(keep);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(kept);
    }

    /// Whether all that was written is here.
    pub fn is_complete(&self) -> bool {
        self.total == self.bytes.len() as u64
    }

    /// What was kept.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into()
    }

    /// What was kept, as text without a first line that is cut.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let whole = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) if !self.is_complete() => bytes.get(at + 1..).unwrap_or_default(),
            _ => &bytes,
        };
        String::from_utf8_lossy(whole).into_owned()
    }
}

/// A child that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub end: End,
    /// Standard output.
    pub stdout: Tail,
    /// Standard error.
    pub stderr: Tail,
}

/// Follows `child`, spawned with piped output, to its end.
///
/// `kill` is called once, when the child has ended (not yet reaped, so that its process id is its own) or must end: it
/// ends the child and everything that the child started.
pub fn follow(mut child: Child, bounds: &Bounds<'_>, kill: impl FnOnce(&mut Child)) -> io::Result<Finished> {
    let mut stdout = Stream::new(child.stdout.take());
    let mut stderr = Stream::new(child.stderr.take());
    let start = Instant::now();
    let asked = loop {
        if has_ended(&child)? {
            break None;
        }
        if bounds.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            break Some(End::Cancelled);
        }
        if start.elapsed() >= bounds.time {
            break Some(End::Deadline);
        }
        wait_readable(&stdout, &stderr, bounds.time.saturating_sub(start.elapsed()))?;
        stdout.read(bounds.keep);
        stderr.read(bounds.keep);
    };
    kill(&mut child);
    let status = child.wait()?;
    // What is still in the pipes. A process that escaped `kill` cannot hold this up: nothing is waited for.
    for _ in 0..64 {
        if !stdout.read(bounds.keep) & !stderr.read(bounds.keep) {
            break;
        }
    }
    let end = asked.unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signalled(signal.unwrap_or(0)),
        }
    });
    Ok(Finished { end, stdout: stdout.tail, stderr: stderr.tail })
}

/// Whether the child has ended, without reaping it.
fn has_ended(child: &Child) -> io::Result<bool> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn wait_readable(
    stdout: &Stream<impl Read + AsFd>,
    stderr: &Stream<impl Read + AsFd>,
    left: Duration,
) -> io::Result<()> {
    let streams = [stdout.source.as_ref().map(AsFd::as_fd), stderr.source.as_ref().map(AsFd::as_fd)];
    let mut wanted: Vec<PollFd<'_>> =
        streams.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).clamp(1, TICK_MS);
    match poll(&mut wanted, left) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One stream of the child; none once it is closed.
struct Stream<R> {
    source: Option<R>,
    tail: Tail,
}

impl<R: Read + AsFd> Stream<R> {
    fn new(source: Option<R>) -> Self {
        let source = source.filter(|source| fcntl(source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok());
        Self { source, tail: Tail::default() }
    }

    /// Reads once; whether there was something.
    fn read(&mut self, keep: usize) -> bool {
        let Some(source) = &mut self.source else { return false };
        let mut chunk = vec![0; CHUNK];
        match source.read(&mut chunk) {
            Ok(0) => self.source = None,
            Ok(length) => {
                self.tail.push(chunk.get(..length).unwrap_or_default(), keep);
                return true;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.source = None,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str, time: Duration, cancel: Option<&AtomicBool>) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        follow(child, &Bounds { time, keep: 100, cancel }, |child| {
            let _ = child.kill();
        })
        .unwrap()
    }

    #[test]
    fn a_tail_keeps_the_end_and_counts_the_rest() {
        let mut tail = Tail::default();
        tail.push(b"first line\nsecond", 12);
        assert_eq!((tail.total, tail.is_complete()), (17, false));
        tail.push(b" and on\nlast\n", 12);
        assert_eq!(tail.text(), "last\n");
        tail.push(&[b'x'; 50], 12);
        assert_eq!((tail.total, tail.clone().into_bytes().len()), (80, 12));
    }

    #[test]
    fn ends_and_streams_are_told_apart() {
        let long = Duration::from_secs(20);
        let done = shell("echo out; echo err >&2; exit 3", long, None);
        assert_eq!(
            (done.end, done.stdout.text(), done.stderr.text()),
            (End::Exited(3), "out\n".into(), "err\n".into())
        );
        assert_eq!(shell("kill -TERM $$", long, None).end, End::Signalled(15));
        let cancel = AtomicBool::new(true);
        assert_eq!(shell("exec sleep 60", long, Some(&cancel)).end, End::Cancelled);
    }

    #[test]
    fn a_flood_ends_at_the_deadline_and_is_not_kept() {
        let done = shell("exec yes", Duration::from_millis(300), None);
        assert_eq!(done.end, End::Deadline);
        assert!(done.stdout.total > 100 && done.stdout.text().len() <= 100);
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_holds_nobody_up() {
        let start = Instant::now();
        let done = shell("sleep 5 & echo started", Duration::from_secs(20), None);
        assert_eq!((done.end, done.stdout.text()), (End::Exited(0), "started\n".into()));
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}
