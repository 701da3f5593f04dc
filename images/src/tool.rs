//! Runs the stock tools: a missing one is named with its Debian package, a failing one is shown with what it said, and
//! none runs for ever.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Debian packages of every tool that the host must have. The Debian tree brings its own.
pub const PACKAGES: [&str; 19] = [
    "binutils",
    "coreutils",
    "cpio",
    "cryptsetup-bin",
    "dosfstools",
    "dpkg",
    "efitools",
    "erofs-utils",
    "faketime",
    "fdisk",
    "findutils",
    "gzip",
    "mmdebstrap",
    "mount",
    "mtools",
    "openssl",
    "sbsigntool",
    "util-linux",
    "xorriso",
];

/// Where programs are looked for after `PATH`: a user's `PATH` often lacks the system directories.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// One call of one program. Its environment is empty but for `PATH`, `LC_ALL=C`, `TZ=UTC` and what is added, so that
/// no setting of the builder's account gets into an image.
#[derive(Debug)]
pub struct Tool {
    program: String,
    package: String,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    inherit_env: bool,
    deadline: Duration,
    stdin: Option<PathBuf>,
}

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The command and how it ended, for messages.
    pub said: String,
}

impl Tool {
    /// A call of `program`, which the Debian package `package` brings, with a deadline of ten minutes.
    pub fn new(program: &str, package: &str) -> Self {
        Self {
            program: program.into(),
            package: package.into(),
            args: Vec::new(),
            env: Vec::new(),
            inherit_env: false,
            deadline: Duration::from_secs(600),
            stdin: None,
        }
    }

    /// The same with a clock that stands still at `at`, UTC: `2026-01-01 00:00:00`.
    pub fn at(at: &str, program: &str, package: &str) -> anyhow::Result<Self> {
        find(program, package)?;
        Ok(Self::new("faketime", "faketime").args(["-f", at, program]))
    }

    /// Lets it read a file from its standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, file: impl AsRef<Path>) -> Self {
        self.stdin = Some(file.as_ref().to_owned());
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Keeps the caller's environment: for what needs a network and so perhaps a proxy.
    #[must_use]
    pub fn inherit_env(mut self) -> Self {
        self.inherit_env = true;
        self
    }

    /// Sets how long it may run.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it; anything but exit status 0 is an error that shows the command and its standard error.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let outcome = self.outcome()?;
        if !outcome.ok {
            bail!("{}", outcome.said);
        }
        Ok(outcome)
    }

    /// Runs it and lets the caller judge. An error only when it could not be run or missed its deadline.
    pub fn outcome(self) -> anyhow::Result<Outcome> {
        let program = find(&self.program, &self.package)?;
        let timeout = find("timeout", "coreutils")?;
        let stdin = match &self.stdin {
            Some(file) => {
                Stdio::from(File::open(file).with_context(|| format!("{} cannot be read", file.display()))?)
            }
            None => Stdio::null(),
        };
        // timeout(1) ends the program's whole process group, children in a chroot included.
        let mut command = Command::new(timeout);
        command
            .arg("--kill-after=5")
            .arg(self.deadline.as_secs().max(1).to_string())
            .arg(&program)
            .args(&self.args)
            .stdin(stdin);
        if !self.inherit_env {
            command.env_clear();
        }
        command.env("PATH", search_path()).env("LC_ALL", "C").env("TZ", "UTC").envs(self.env);
        let mut run =
            || command.output().with_context(|| format!("{} could not be started", program.display()));
        let mut output = run()?;
        // A faketime that was killed left shared memory in the name of its process id; the next one has another id.
        if output.stderr.starts_with(b"faketime: shm_open: File exists") {
            output = run()?;
        }
        let shown = shown(&program, &self.args);
        if output.status.code() == Some(124) {
            bail!("{shown}\n  did not end within {} s and was ended", self.deadline.as_secs());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Outcome {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: format!("{shown}\n  {}: {}", output.status, tail(&stderr)),
            stderr,
        })
    }
}

/// The path of a program.
fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("{program} is not installed; install it with: apt-get install {package} (Debian)")
        })
}

/// `PATH` and the system directories.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.iter().map(PathBuf::from));
    std::env::join_paths(dirs).unwrap_or(path)
}

fn shown(program: &Path, args: &[OsString]) -> String {
    let mut text = program.display().to_string();
    for arg in args {
        let arg = arg.to_string_lossy();
        let plain = !arg.is_empty() && !arg.contains(|c: char| c.is_whitespace() || "'\"$`\\".contains(c));
        let quoted = if plain { arg.into_owned() } else { format!("{arg:?}") };
        text.push(' ');
        text.push_str(&quoted);
    }
    text
}

/// The last lines: the reason is there, the progress before it.
fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_debian_package() {
        let error = Tool::new("mkfs.nosuchfs", "nosuchfs-utils").arg("x").run().unwrap_err().to_string();
        assert_eq!(
            error,
            "mkfs.nosuchfs is not installed; install it with: apt-get install nosuchfs-utils (Debian)"
        );
    }

    #[test]
    fn a_failing_tool_is_shown_with_what_it_said() {
        let tool = Tool::new("sh", "dash").args(["-c", "echo out; echo why >&2; exit 3"]);
        let error = tool.run().unwrap_err().to_string();
        assert!(error.contains("sh -c \"echo out"), "{error}");
        assert!(error.contains("exit status: 3: why"), "{error}");
    }

    #[test]
    fn a_tool_that_hangs_is_ended() {
        let tool = Tool::new("sleep", "coreutils").arg("600").deadline(Duration::from_secs(1));
        let error = tool.run().unwrap_err().to_string();
        assert!(error.contains("did not end within 1 s"), "{error}");
    }

    #[test]
    fn the_environment_of_the_account_stays_outside() {
        let out = Tool::new("env", "coreutils").env("SOURCE_DATE_EPOCH", "7").run().unwrap().stdout;
        let names: Vec<&str> = out.lines().filter_map(|line| line.split_once('=')).map(|(n, _)| n).collect();
        assert_eq!(
            {
                let mut names = names;
                names.sort_unstable();
                names
            },
            ["LC_ALL", "PATH", "SOURCE_DATE_EPOCH", "TZ"]
        );
    }
}
