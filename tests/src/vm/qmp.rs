//! QEMU's own protocol (QEMU: `docs/interop/qmp-spec`): one JSON object per line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::channel::Channel;

/// QEMU answers at once; a machine that is stopped too.
const ANSWER: Duration = Duration::from_secs(30);

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

    /// Runs a command; its answer.
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
