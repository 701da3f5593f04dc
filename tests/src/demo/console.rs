//! Running commands and showing them as they would look on a terminal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::stop::Stop;

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How many lines of a stock tool's output are shown.
const MOST_LINES: usize = 10;
/// Where users' search paths end and system programs begin.
const SYSTEM_DIRS: &str = ":/usr/local/sbin:/usr/sbin:/sbin";

/// Runs commands in one directory.
#[derive(Debug)]
pub(super) struct Console {
    dir: PathBuf,
    spsctl: PathBuf,
    bus: String,
    stop: Stop,
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A command under way, and what feeds it before it.
#[derive(Debug)]
pub(super) struct Running {
    feeder: Option<Child>,
    child: Child,
    start: Instant,
}

/// How much of the output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// All.
    All,
    /// The first [`MOST_LINES`] lines.
    Head,
    /// What is left without the lines of progress.
    Result,
}

impl Ran {
    /// Both outputs.
    pub(super) fn said(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.feeder.iter_mut().chain(std::iter::once(&mut self.child)) {
            // Already ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Console {
    pub(super) fn new(dir: &Path, spsctl: PathBuf, bus: String, stop: Stop) -> Self {
        Self { dir: dir.to_owned(), spsctl, bus, stop }
    }

    /// Runs `spsctl` with these words and shows it.
    pub(super) fn spsctl(&self, words: &str) -> Result<Ran> {
        self.finish(self.start(words)?, Show::Result)
    }

    /// Starts `spsctl` and leaves it running.
    pub(super) fn start(&self, words: &str) -> Result<Running> {
        println!("   $ spsctl {words}");
        let mut command = self.command(words);
        command.stdin(Stdio::null());
        self.spawn(&mut command, None)
    }

    /// `feeder | spsctl words`.
    pub(super) fn spsctl_fed(&self, feeder: &str, words: &str) -> Result<Ran> {
        println!("   $ {feeder} | spsctl {words}");
        let mut feed = self.program(feeder);
        // It may die of a pipe that nobody reads any more, and say so.
        let mut feed =
            feed.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context(feeder.to_owned())?;
        let output = feed.stdout.take().context("no output of the feeder")?;
        let mut command = self.command(words);
        command.stdin(output);
        let running = self.spawn(&mut command, Some(feed))?;
        // Its end of the pipe must close with the feeder's.
        drop(command);
        self.finish(running, Show::Result)
    }

    /// Runs another program, judged by the caller, and shows it.
    pub(super) fn tool(&self, line: &str) -> Result<Ran> {
        println!("   $ {line}");
        let running = self.spawn(&mut self.program(line), None)?;
        self.finish(running, Show::Head)
    }

    /// The JSON that `spsctl words --json` prints; not shown.
    pub(super) fn json(&self, words: &str) -> Result<Value> {
        self.stop.check()?;
        let output = self.command(words).arg("--json").stdin(Stdio::null()).output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("spsctl {words}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits for its end and shows what it said.
    pub(super) fn finish(&self, mut running: Running, show: Show) -> Result<Ran> {
        let status = loop {
            self.stop.check()?;
            if let Some(status) = running.child.try_wait()? {
                break status;
            }
            thread::sleep(LOOK);
        };
        let seconds = running.start.elapsed().as_secs_f64();
        let read = |name: &str| fs::read(self.dir.join(name));
        let ran = Ran {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&read("stdout")?).into_owned(),
            stderr: String::from_utf8_lossy(&read("stderr")?).into_owned(),
        };
        let said = ran.said();
        let lines: Vec<&str> =
            said.lines().filter(|line| show != Show::Result || !is_progress(line)).collect();
        let shown = if show == Show::Head { MOST_LINES.min(lines.len()) } else { lines.len() };
        for line in lines.iter().take(shown) {
            println!("     {line}");
        }
        if shown < lines.len() {
            println!("     … {} more lines", lines.len() - shown);
        }
        println!("     [exit {}, {seconds:.2} s]", ran.code);
        Ok(ran)
    }

    fn spawn(&self, command: &mut Command, feeder: Option<Child>) -> Result<Running> {
        self.stop.check()?;
        command.stdout(File::create(self.dir.join("stdout"))?);
        command.stderr(File::create(self.dir.join("stderr"))?);
        let start = Instant::now();
        let name = command.get_program().to_owned();
        let child = command.spawn().with_context(|| name.display().to_string())?;
        Ok(Running { feeder, child, start })
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.spsctl);
        command.args(["--bus", &self.bus]).args(split(words)).current_dir(&self.dir);
        command
    }

    fn program(&self, line: &str) -> Command {
        let mut words = split(line).into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&self.dir).stdin(Stdio::null()).env("PATH", search_path());
        command
    }
}

/// `slot 2: writing the root file system: 40 % (…)`.
fn is_progress(line: &str) -> bool {
    line.strip_prefix("slot ")
        .is_some_and(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(':'))
}

/// Words of a command line; the only quotes are pairs of `"`.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(SYSTEM_DIRS);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        assert_eq!(
            split("state reset --reason \"first boot\""),
            ["state", "reset", "--reason", "first boot"]
        );
    }

    #[test]
    fn progress_is_told_from_results() {
        assert!(is_progress("slot 2: writing: 40 % (1.0 MiB of 2.0 MiB)"));
        assert!(!is_progress("slot 2 holds version 8.0.2, verified"));
    }
}
