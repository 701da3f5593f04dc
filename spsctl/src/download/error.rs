//! Why a download failed. No message holds more of the URL than its host.

use std::io;

/// Why an image could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No authority is known that could vouch for a server.
    #[error(
        "this system has no trusted certificates ({why}); install ca-certificates, or name a file with --ca"
    )]
    NoRoots {
        /// What was found instead.
        why: String,
    },
    /// The server could not be reached, or is not who it should be.
    #[error("cannot download from {host}")]
    Request {
        /// Host and port.
        host: String,
        /// Why not.
        #[source]
        source: ureq::Error,
    },
    /// The server sent nothing for too long.
    #[error("{host} sent nothing for {seconds} s")]
    Stalled {
        /// Host and port.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// The server refused.
    #[error("{host} answers {status}")]
    Status {
        /// Host and port.
        host: String,
        /// Code and reason.
        status: String,
        /// Whether another attempt may succeed.
        may_pass: bool,
    },
    /// A redirect leads out of https.
    #[error("{host} redirects to a URL that is not https, which is not followed")]
    Downgrade {
        /// Host and port.
        host: String,
    },
    /// The answer is not what was asked for.
    #[error("{host} sent an answer that cannot be used: {what}")]
    Answer {
        /// Host and port.
        host: String,
        /// What it is.
        what: String,
    },
    /// What has begun and what would follow are not of one file.
    #[error(
        "the file on {host} was replaced during the download: its {what} was {before} and is {now}; start again \
         from the first byte"
    )]
    Changed {
        /// Host and port.
        host: String,
        /// What tells it.
        what: &'static str,
        /// At the start.
        before: String,
        /// Now.
        now: String,
    },
    /// There is no byte at this offset.
    #[error("the file has {size} bytes, so there is nothing at byte {at}; is it the same image?")]
    TooShort {
        /// What was asked for.
        at: u64,
        /// What is there.
        size: u64,
    },
    /// The connection ended before the image did.
    #[error("the connection ended at byte {at} of {total}")]
    Cut {
        /// Bytes of the image that arrived.
        at: u64,
        /// Its size.
        total: u64,
    },
    /// Too many attempts in a row brought nothing.
    #[error("the download stopped at byte {at} and {tries} further attempts brought nothing")]
    GaveUp {
        /// Bytes of the image that arrived.
        at: u64,
        /// Attempts.
        tries: u32,
        /// Why the last one failed.
        #[source]
        source: Box<DownloadError>,
    },
    /// The image could not be handed to slotd.
    #[error("cannot hand the image to slotd")]
    HandOver(#[source] io::Error),
}

impl DownloadError {
    /// Whether another attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::Cut { .. } => true,
            Self::Status { may_pass, .. } => *may_pass,
            Self::Request { source, .. } => passing(source),
            _ => false,
        }
    }

    /// The message and its causes.
    pub(super) fn with_cause(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// Whether the network may be to blame. A certificate that is not trusted will not be trusted next time.
fn passing(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => {
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_none()
        }
        ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Protocol(_)
        | ureq::Error::BodyStalled => true,
        _ => false,
    }
}
