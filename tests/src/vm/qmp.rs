//! QEMU's own protocol (QEMU: `docs/interop/qmp-spec`): one JSON object per line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::channel::Channel;

/// A snapshot writes what the machine has in memory.
const ANSWER: Duration = Duration::from_secs(300);

/// A connection to QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    channel: Channel,
}

impl Qmp {
    pub(super) fn connect(socket: &Path, deadline: Instant) -> anyhow::Result<Self> {
        let mut qmp = Self { channel: Channel::connect(socket, deadline)? };
        qmp.channel.wait(&["}\r\n"], ANSWER)?;
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command of the human monitor, which says nothing when it worked. Snapshots of a whole machine have no other.
    pub(super) fn monitor(&mut self, command: &str) -> anyhow::Result<()> {
        let said = self.call("human-monitor-command", &json!({ "command-line": command }))?;
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(said.is_empty(), "{command}: {said}");
        Ok(())
    }

    /// Runs a command; what it returns. Events are passed over.
    pub(super) fn call(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.channel.send(&format!("{line}\n"))?;
        loop {
            let (_, line) = self.channel.wait(&["\r\n"], ANSWER)?;
            let mut message: Value =
                serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))?;
            if let Some(error) = message.get("error") {
                bail!("{command}: {error}");
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
        }
    }
}
