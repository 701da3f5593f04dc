//! The descriptor that an image arrives on: a regular file, a pipe or a socket, read once from front to back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::buffer::is_aligned;

/// How often a waiting read looks whether it was cancelled.
const TICK: Duration = Duration::from_millis(250);

/// Why no more bytes come. Offsets are bytes of the ISO.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The descriptor is of a kind that cannot carry an image.
    #[error("the image must arrive on a regular file, a pipe or a socket that is open for reading")]
    Kind,
    /// The descriptor does not allow reading.
    #[error(
        "the descriptor of the image is not open for reading; open it for reading and hand it over again"
    )]
    NotReadable,
    /// The image ends early.
    #[error("the image ends at byte {at}; {wanted} more bytes were expected")]
    Ended {
        /// Where it ended.
        at: u64,
        /// What was missing.
        wanted: u64,
    },
    /// No byte came in time.
    #[error("no byte arrived for {waited:?} at byte {at} of the image")]
    Stalled {
        /// Where.
        at: u64,
        /// For how long.
        waited: Duration,
    },
    /// The job was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Bytes were asked for that have already passed.
    #[error("byte {wanted} of the image has already passed (now at {at}); send it from there")]
    Passed {
        /// Byte that is needed.
        wanted: u64,
        /// Where the descriptor stands.
        at: u64,
    },
    /// The kernel refused.
    #[error("cannot read the image at byte {at}: {source}")]
    Io {
        /// Where.
        at: u64,
        /// What it said.
        source: io::Error,
    },
}

enum Kind {
    /// Positioned reads; `start` is where byte `base` of the ISO lies in the file.
    File {
        file: File,
        direct: Option<File>,
        start: u64,
        length: u64,
    },
    Stream(File),
}

/// An image that arrives.
pub struct Source<'a> {
    kind: Kind,
    /// Byte of the ISO at which the descriptor began.
    base: u64,
    /// Next byte of the ISO.
    at: u64,
    stall: Duration,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Source<'a> {
    /// Reads from `descriptor`, whose next byte is byte `base` of the ISO. A stream that stays silent for `stall` is
    /// given up; `cancelled` is asked at least every 250 ms.
    pub fn new(
        descriptor: OwnedFd,
        base: u64,
        stall: Duration,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Self, SourceError> {
        let mut file = File::from(descriptor);
        let fail = |source| SourceError::Io { at: base, source };
        if !is_readable(&file).map_err(fail)? {
            return Err(SourceError::NotReadable);
        }
        let metadata = file.metadata().map_err(fail)?;
        let kind = if metadata.is_file() {
            let start = file.stream_position().map_err(fail)?;
            Kind::File { direct: reopen_direct(&file), start, length: metadata.len(), file }
        } else {
            use std::os::unix::fs::FileTypeExt;
            let kind = metadata.file_type();
            if kind.is_block_device() {
                let length = file.seek(SeekFrom::End(0)).map_err(fail)?;
                Kind::File { direct: reopen_direct(&file), start: 0, length, file }
            } else if kind.is_fifo() || kind.is_socket() {
                // A larger pipe costs fewer system calls; where the limit forbids it, it stays as it is.
                let _ = fcntl(&file, FcntlArg::F_SETPIPE_SZ(1 << 20));
                Kind::Stream(file)
            } else {
                return Err(SourceError::Kind);
            }
        };
        Ok(Self { kind, base, at: base, stall, cancelled })
    }

    /// Length of the ISO, where the descriptor knows it.
    pub fn length(&self) -> Option<u64> {
        match &self.kind {
            Kind::File { start, length, .. } => Some(length.saturating_sub(*start).saturating_add(self.base)),
            Kind::Stream(_) => None,
        }
    }

    /// Next byte of the ISO.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Goes on to byte `to` of the ISO: a file jumps, a stream is read and thrown away (through `scratch`).
    pub fn skip_to(&mut self, to: u64, scratch: &mut [u8]) -> Result<(), SourceError> {
        if to < self.at {
            if matches!(self.kind, Kind::Stream(_)) || to < self.base {
                return Err(SourceError::Passed { wanted: to, at: self.at });
            }
            self.at = to;
        }
        if let Kind::File { .. } = self.kind {
            self.at = to;
        }
        while self.at < to {
            let rest = usize::try_from(to - self.at).unwrap_or(usize::MAX).min(scratch.len());
            self.read(&mut scratch[..rest])?;
        }
        Ok(())
    }

    /// Fills `buf` with the next bytes.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<(), SourceError> {
        if (self.cancelled)() {
            return Err(SourceError::Cancelled);
        }
        match &self.kind {
            Kind::File { file, direct, start, length } => {
                let from = *start + (self.at - self.base);
                let wanted = buf.len() as u64;
                if from.saturating_add(wanted) > *length {
                    let at = self.base.saturating_add(length.saturating_sub(*start));
                    return Err(SourceError::Ended { at, wanted: (self.at + wanted).saturating_sub(at) });
                }
                read_file(file, direct.as_ref(), buf, from)
                    .map_err(|source| SourceError::Io { at: self.at, source })?;
                self.at += wanted;
            }
            Kind::Stream(_) => self.read_stream(buf)?,
        }
        Ok(())
    }

    fn read_stream(&mut self, buf: &mut [u8]) -> Result<(), SourceError> {
        let Kind::Stream(stream) = &self.kind else { return Ok(()) };
        let mut stream = stream;
        let mut filled = 0;
        let mut since = Instant::now();
        while filled < buf.len() {
            let at = self.at + filled as u64;
            let fail = |source| SourceError::Io { at, source };
            let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
            let ready = match poll(&mut waiting, tick) {
                Err(nix::errno::Errno::EINTR) => 0,
                other => other.map_err(|e| fail(e.into()))?,
            };
            if (self.cancelled)() {
                return Err(SourceError::Cancelled);
            }
            if ready == 0 {
                if since.elapsed() >= self.stall {
                    return Err(SourceError::Stalled { at, waited: self.stall });
                }
                continue;
            }
            match stream.read(&mut buf[filled..]) {
                Ok(0) => return Err(SourceError::Ended { at, wanted: (buf.len() - filled) as u64 }),
                Ok(n) => {
                    filled += n;
                    since = Instant::now();
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        self.at += filled as u64;
        Ok(())
    }
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source(at byte {})", self.at)
    }
}

/// Whether the descriptor itself allows reading. Opening it again could allow more than its sender may do.
fn is_readable(file: &File) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE != OFlag::O_WRONLY && !flags.contains(OFlag::O_PATH))
}

/// The same file once more, for direct reads: a gigabyte need not pass through the page cache. The descriptor itself
/// is the caller's and keeps its flags. Where that is not allowed or not possible, reads are buffered.
fn reopen_direct(file: &File) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT | nix::libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

fn read_file(file: &File, direct: Option<&File>, buf: &mut [u8], from: u64) -> io::Result<()> {
    if let Some(direct) = direct.filter(|_| is_aligned(buf)) {
        match direct.read_exact_at(buf, from) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {}
            other => return other,
        }
    }
    file.read_exact_at(buf, from)
}
