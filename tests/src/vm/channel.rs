//! A byte stream from the machine: everything that came is kept, and waiting for a text has a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Bytes that are kept of a stream; a machine that says more is broken.
const KEPT: usize = 64 << 20;

#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    /// The machine has closed its end.
    closed: bool,
}

/// One stream to and from the machine.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    /// Where the next wait begins.
    at: usize,
}

impl Channel {
    /// Connects to a socket that QEMU listens on.
    pub(super) fn connect(socket: &Path, deadline: Instant) -> anyhow::Result<Self> {
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("QEMU does not listen on {}", socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let (mut reader, shared) = (stream.try_clone()?, Arc::clone(&heard));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = reader.read(&mut buffer);
                let mut heard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                match read {
                    Ok(length) if length > 0 && heard.bytes.len() < KEPT => {
                        heard.bytes.extend(buffer.iter().take(length));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    _ => heard.closed = true,
                }
                shared.1.notify_all();
                if heard.closed {
                    return;
                }
            }
        });
        Ok(Self { stream, heard, at: 0 })
    }

    pub(super) fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.stream.write_all(text.as_bytes()).context("the machine does not take input")
    }

    /// Everything that came.
    pub(super) fn said(&self) -> String {
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard.bytes).into_owned()
    }

    /// Waits for the first of `texts` behind what the last wait has found: which, and what came up to and with it.
    pub(super) fn wait(&mut self, texts: &[&str], time: Duration) -> anyhow::Result<(usize, String)> {
        let end = Instant::now() + time;
        let mut heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let new = heard.bytes.get(self.at..).unwrap_or_default();
            let found = texts.iter().enumerate().filter_map(|(which, text)| {
                let at = new.windows(text.len()).position(|window| window == text.as_bytes())?;
                Some((at + text.len(), which))
            });
            if let Some((length, which)) = found.min() {
                let said = String::from_utf8_lossy(new.get(..length).unwrap_or_default()).into_owned();
                self.at += length;
                return Ok((which, said));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || heard.closed {
                let why = if heard.closed {
                    "the machine has ended".into()
                } else {
                    format!("not within {time:?}")
                };
                let new = String::from_utf8_lossy(new);
                let last: Vec<&str> = new.lines().rev().take(400).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                bail!("waiting for {texts:?}: {why}; it said last:\n{}", last.join("\n"));
            }
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
