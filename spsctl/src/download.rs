//! An image from an HTTPS server, handed on as it arrives: no file is written, and a connection that breaks is taken
//! up again where it broke.
//!
//! Blocking, for a thread of its own. What arrives is not trusted here: slotd judges every byte of it. TLS is rustls
//! with ring; the roots are those of the system (`rustls-native-certs`), because who may sign for an update server is
//! the operator's choice and not this program's.

mod error;
mod proxy;
mod server;

use std::io::{self, Read, Write};
use std::time::Duration;

pub use error::DownloadError;
pub use proxy::Environment;
pub use server::Server;
use server::{Identity, Reply};

/// Connections in a row that may bring less than [`PROGRESS`], where nothing else is asked for.
const RETRIES: u32 = 8;
/// Bytes that count as getting on.
const PROGRESS: u64 = 64 << 10;
/// The pause before the first retry; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// A download that has begun: the server has answered, nothing was taken yet.
pub struct Download {
    server: Server,
    reply: Reply,
    identity: Identity,
    /// Byte of the image that is written next.
    at: u64,
}

/// How a download ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was written.
    Complete,
    /// The reader takes no more.
    ReaderGone,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("identity", &self.identity)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Download {
    /// Asks the server for the image from byte `offset` on. Not tried again: a wrong address is to be told at once.
    pub fn open(server: Server, offset: u64) -> Result<Self, DownloadError> {
        let reply = server.get(offset, None)?;
        let identity = reply.identity.clone();
        Ok(Self { server, reply, identity, at: offset })
    }

    /// Size of the whole image, where the server says it.
    pub fn total(&self) -> Option<u64> {
        self.identity.total
    }

    /// Writes the image to `out` until it is whole or nobody reads any more. `tell` hears what happens on the way.
    pub fn pump(mut self, out: &mut dyn Write, tell: &dyn Fn(&str)) -> Result<End, DownloadError> {
        let retries = self.server.retries().unwrap_or(RETRIES);
        let mut failures = 0;
        let mut mark = self.at;
        loop {
            let mut trouble = match self.copy(out) {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            if self.at.saturating_sub(mark) >= PROGRESS {
                failures = 0;
            }
            mark = self.at;
            loop {
                if !trouble.may_pass() || retries == 0 {
                    return Err(trouble);
                }
                if failures >= retries {
                    return Err(DownloadError::GaveUp {
                        at: self.at,
                        tries: failures,
                        source: Box::new(trouble),
                    });
                }
                failures += 1;
                tell(&format!("{}; trying again from byte {}", trouble.with_cause(), self.at));
                std::thread::sleep(pause(failures));
                match self.server.get(self.at, Some(&self.identity)) {
                    Ok(reply) => {
                        self.reply = reply;
                        break;
                    }
                    Err(error) => trouble = error,
                }
            }
        }
    }

    /// Copies what this connection brings.
    fn copy(&mut self, out: &mut dyn Write) -> Result<End, DownloadError> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match self.reply.body.read(&mut buffer) {
                Ok(0) => return self.ended(),
                Ok(length) => length,
                Err(error) => return Err(self.server.broken(error.into())),
            };
            let arrived = buffer.get(..length).unwrap_or_default();
            // A server that cannot send a part sends what is known again.
            let known = usize::try_from(self.reply.skip).unwrap_or(usize::MAX).min(length);
            self.reply.skip = self.reply.skip.saturating_sub(known as u64);
            let new = arrived.get(known..).unwrap_or_default();
            match out.write_all(new) {
                Ok(()) => self.at = self.at.saturating_add(new.len() as u64),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::ReaderGone),
                Err(error) => return Err(DownloadError::HandOver(error)),
            }
        }
    }

    /// What the end of a body means.
    fn ended(&self) -> Result<End, DownloadError> {
        if self.reply.skip > 0 {
            return Err(DownloadError::TooShort {
                at: self.at,
                size: self.at.saturating_sub(self.reply.skip),
            });
        }
        match self.identity.total {
            Some(total) if self.at < total => Err(DownloadError::Cut { at: self.at, total }),
            _ => Ok(End::Complete),
        }
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let pauses: Vec<_> = [1, 2, 3, 8, 100].map(|n| pause(n).as_millis()).to_vec();
        assert_eq!(pauses, [250, 500, 1000, 30_000, 30_000]);
    }
}
