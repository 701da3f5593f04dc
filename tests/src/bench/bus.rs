//! A private message bus on which everything is allowed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::process::Daemon;

const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>unix:dir=DIR</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// A `dbus-daemon`, ended when dropped.
#[derive(Debug)]
pub struct PrivateBus {
    address: String,
    _daemon: Daemon,
    _dir: TempDir,
}

impl PrivateBus {
    /// Starts it and waits for its address. The socket is in the system's directory for temporary files: a socket's
    /// path may have 107 bytes only.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("bus.conf");
        fs::write(&config, CONFIG.replace("DIR", &dir.path().display().to_string()))?;
        let mut daemon = Daemon::start("dbus-daemon", |command| {
            command.arg("--config-file").arg(&config).args(["--nofork", "--nopidfile", "--print-address=1"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        })?;
        let stdout = daemon.take_stdout().context("dbus-daemon has no standard output")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address).context("reading the bus address")?;
        let address = address.trim().to_owned();
        if address.is_empty() {
            bail!("dbus-daemon ended without an address");
        }
        Ok(Self { address, _daemon: daemon, _dir: dir })
    }

    /// The address to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }
}
