//! Processes of a run: started, timed, watched for memory, and ended with the benchmark.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::pairing::Sample;

/// How often the memory of a running command is read. `VmHWM` only grows, so nothing but growth in the very last
/// interval can be missed.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// A process that is killed when this is dropped, and by the kernel if the benchmark dies.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `command` below `setpriv --pdeathsig KILL`, with a private mount namespace, so that whatever it
    /// mounts goes with it. Both tools exec, so the process id is the daemon's own.
    pub fn start(program: &str, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "setpriv", "--pdeathsig", "KILL", "--", program]);
        configure(&mut command);
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        Ok(Self { child })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The standard output, if it was piped and not yet taken.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Fails if the process has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the process ended early: {status}"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either call fails only if the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills and reaps a command whose run was left by an error.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end with its output in `log`, and says what it took.
pub fn timed(command: &mut Command, log: &Path) -> Result<Sample> {
    timed_until(command, log, None)
}

/// The same, but the time ends with the first line of standard output that contains `mark`, if one is given.
pub fn timed_until(command: &mut Command, log: &Path, mark: Option<&str>) -> Result<Sample> {
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output.try_clone()?);
    let start = Instant::now();
    let mut child = Reaped(command.spawn().with_context(|| format!("starting {command:?}"))?);
    let pid = child.0.id();
    let stdout = child.0.stdout.take().context("no pipe from the command")?;
    let ended = AtomicBool::new(false);
    let (waited, peak, marked) = thread::scope(|scope| {
        let reader = scope.spawn(|| copy_until_mark(stdout, output, mark, start));
        let watcher = scope.spawn(|| {
            let mut peak = 0.0_f64;
            while !ended.load(Ordering::Relaxed) {
                peak = peak_rss_mib(pid).unwrap_or(0.0).max(peak);
                thread::sleep(WATCH_INTERVAL);
            }
            peak
        });
        let waited = child.0.wait().map(|status| (status, start.elapsed()));
        ended.store(true, Ordering::Relaxed);
        (waited, watcher.join(), reader.join())
    });
    let (status, elapsed) = waited?;
    if !status.success() {
        bail!("{command:?} failed with {status}; its last words:\n{}", last_lines(log));
    }
    let peak_rss_mib = peak.map_err(|_| anyhow!("the memory watcher died"))?;
    let marked = marked.map_err(|_| anyhow!("the reader of the output died"))??;
    let elapsed = match mark {
        Some(mark) => marked.with_context(|| format!("{command:?} did not print {mark:?}"))?,
        None => elapsed,
    };
    Ok(Sample { seconds: elapsed.as_secs_f64(), peak_rss_mib })
}

/// Copies lines; returns when, after `start`, the first came that contains `mark`.
fn copy_until_mark(
    from: impl Read,
    mut to: impl Write,
    mark: Option<&str>,
    start: Instant,
) -> io::Result<Option<Duration>> {
    let mut marked = None;
    for line in BufReader::new(from).split(b'\n') {
        let mut line = line?;
        if marked.is_none() && mark.is_some_and(|mark| String::from_utf8_lossy(&line).contains(mark)) {
            marked = Some(start.elapsed());
        }
        line.push(b'\n');
        to.write_all(&line)?;
    }
    Ok(marked)
}

/// Runs `command` to its end and returns its standard output; an error carries its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {command:?}"))
}

/// Polls `ready` until it holds or ten seconds have passed.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what}: not so within ten seconds");
        }
        thread::sleep(WATCH_INTERVAL);
    }
    Ok(())
}

/// The last lines of a log, for an error message.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n")
}

/// Highest resident set so far, MiB. It counts mapped file pages as well as private memory.
pub fn peak_rss_mib(pid: u32) -> Result<f64> {
    kib_field(&proc_file(pid, "status"), "VmHWM:")
}

/// Proportional set size now, MiB.
pub fn pss_mib(pid: u32) -> Result<f64> {
    kib_field(&proc_file(pid, "smaps_rollup"), "Pss:")
}

/// How often the threads that a process has now went to sleep by themselves, which is how often they woke.
pub fn voluntary_switches(pid: u32) -> Result<u64> {
    let tasks = proc_file(pid, "task");
    let mut sum = 0_u64;
    for task in fs::read_dir(&tasks).with_context(|| format!("listing {}", tasks.display()))? {
        let path = task?.path().join("status");
        let count = field(&path, "voluntary_ctxt_switches:")?;
        sum +=
            count.parse::<u64>().with_context(|| format!("voluntary_ctxt_switches of {}", path.display()))?;
    }
    Ok(sum)
}

fn proc_file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// The first word after `key` in a file of `/proc` (proc(5)).
fn field(path: &Path, key: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .with_context(|| format!("{} has no {key}", path.display()))
}

/// The same for a size, in MiB.
fn kib_field(path: &Path, key: &str) -> Result<f64> {
    let kib: u32 = field(path, key)?.parse().with_context(|| format!("{key} of {}", path.display()))?;
    Ok(f64::from(kib) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timed_command_shows_its_time_and_memory() {
        let dir = tempfile::tempdir().unwrap();
        // dd holds one block of bs bytes: 64 MiB must show, and a little more.
        let mut command = Command::new("sh");
        command.args(["-c", "exec dd if=/dev/zero of=/dev/null bs=64M count=40"]);
        let sample = timed(&mut command, &dir.path().join("log")).unwrap();
        assert!((64.0..128.0).contains(&sample.peak_rss_mib), "{sample:?}");
        assert!((0.01..60.0).contains(&sample.seconds), "{sample:?}");
    }

    #[test]
    fn the_time_may_end_with_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo begin; echo all done; exec sleep 0.5"]);
        assert!(timed_until(&mut command, &log, Some("done")).unwrap().seconds < 0.5);
        assert!(timed(&mut command, &log).unwrap().seconds >= 0.5);
        assert_eq!(fs::read_to_string(&log).unwrap(), "begin\nall done\n");
        let error = timed_until(&mut command, &log, Some("failed")).unwrap_err().to_string();
        assert!(error.contains("did not print"), "{error}");
    }

    #[test]
    fn a_failing_command_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no slot >&2; exit 3"]);
        let error = timed(&mut command, &dir.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no slot"), "{error}");
    }

    #[test]
    fn figures_of_a_process_can_be_read() {
        let pid = std::process::id();
        assert!(peak_rss_mib(pid).unwrap() > 0.5);
        assert!(pss_mib(pid).unwrap() > 0.1);
        assert!(peak_rss_mib(u32::MAX).is_err());
        // A process of one thread: the sum over this one's would shrink when another test's thread ends.
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = cat.stdin.take().unwrap();
        let before = voluntary_switches(cat.id()).unwrap();
        let woken = wait_until("cat wakes for its input", || {
            input.write_all(b"x")?;
            Ok(voluntary_switches(cat.id())? > before)
        });
        drop(input);
        cat.wait().unwrap();
        woken.unwrap();
    }
}
