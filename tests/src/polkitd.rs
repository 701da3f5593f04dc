//! The real polkitd on a private bus, with our actions and rules and users of its own, in a mount namespace of its own:
//! nothing of the machine is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bus::wait_for;

/// Somebody who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// User 0.
    Root,
    /// A member of the group `sps-admin`.
    Admin,
    /// The HTTPS front.
    Agent,
    /// Nobody in particular.
    Nobody,
}

impl Caller {
    fn ids(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Root => None,
            // The bus must know a caller's user too, so these are users that every Debian has, under other names.
            Self::Admin => Some(("1", "1")),
            Self::Agent => Some(("5", "60")),
            Self::Nobody => Some(("65534", "65534")),
        }
    }

    /// `program`, to be run as this caller.
    pub fn command(self, program: &Path) -> Command {
        let Some((user, group)) = self.ids() else { return Command::new(program) };
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", group, "--clear-groups"]).arg(program);
        command
    }
}

/// Before those of the machine: the first with a number counts.
const USERS: &str = "sps-caller:x:1:1::/:/bin/false\nsps-agent:x:5:60::/:/bin/false\n";
const GROUPS: &str = "sps-admin:x:4200:sps-caller\n";
/// Mounts what it is given over what polkitd reads, then becomes polkitd.
const START: &str = r#"set -e
mount --bind "$1/actions" /usr/share/polkit-1/actions
mount --bind "$1/rules.d" /usr/share/polkit-1/rules.d
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
exec /usr/lib/polkit-1/polkitd
"#;

/// A running polkitd; it ends when this is dropped.
#[derive(Debug)]
pub struct Polkitd(Child);

impl Polkitd {
    /// Starts it on the bus at `address`, with `directory` for what it reads. Needs root.
    pub fn start(address: &str, directory: &Path) -> anyhow::Result<Self> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/polkit-1");
        for name in ["actions", "rules.d"] {
            let there = directory.join(name);
            fs::create_dir_all(&there)?;
            // polkitd gives root up before it reads them.
            fs::set_permissions(&there, fs::Permissions::from_mode(0o755))?;
            for entry in fs::read_dir(shipped.join(name))? {
                let entry = entry?;
                fs::copy(entry.path(), there.join(entry.file_name()))?;
            }
        }
        for (name, more) in [("passwd", USERS), ("group", GROUPS)] {
            let known = fs::read_to_string(Path::new("/etc").join(name))?;
            fs::write(directory.join(name), format!("{more}{known}"))?;
        }
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"])
            .arg(directory)
            .env("DBUS_SYSTEM_BUS_ADDRESS", address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("polkitd.log"))?)
            .spawn()
            .context("unshare (package util-linux)")?;
        let mut polkitd = Self(child);
        wait_for("polkitd on the bus", || {
            if let Some(status) = polkitd.0.try_wait()? {
                let log = fs::read_to_string(directory.join("polkitd.log")).unwrap_or_default();
                anyhow::bail!("polkitd (package polkitd; it needs root) ended with {status}: {log}");
            }
            let names = Command::new("dbus-send")
                .arg(format!("--bus={address}"))
                .args([
                    "--print-reply",
                    "--dest=org.freedesktop.DBus",
                    "/",
                    "org.freedesktop.DBus.NameHasOwner",
                ])
                .arg("string:org.freedesktop.PolicyKit1")
                .output()?;
            Ok(String::from_utf8_lossy(&names.stdout).contains("boolean true").then_some(()))
        })?;
        Ok(polkitd)
    }

    /// It does nothing any more, but is still there.
    pub fn freeze(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGSTOP)?)
    }

    /// It is gone.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        let status = self.0.wait()?;
        ensure!(!status.success(), "polkitd had ended by itself");
        Ok(())
    }
}

impl Drop for Polkitd {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A copy of `program` that every caller can reach.
pub fn reachable(program: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let copy = directory.join(name);
    // By a process of its own: a file that this one has open for writing cannot be run while a thread forks.
    let status = Command::new("install").args(["-m", "0755"]).args([program, &copy]).status()?;
    ensure!(status.success(), "install {}: {status}", copy.display());
    Ok(copy)
}
