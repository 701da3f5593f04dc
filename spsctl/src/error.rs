//! What can go wrong, and the exit code that says so.

use sps_base::error::ErrorKind;
use zbus::DBusError;

use crate::download::DownloadError;

/// Exit code of a failure that has no code of its own.
pub const UNEXPECTED: u8 = 1;
/// Exit code of a usage error.
pub const USAGE: u8 = 2;
/// Exit code when the bus or slotd cannot be reached.
pub const UNREACHABLE: u8 = 3;
/// Exit code when an image could not be downloaded.
pub const DOWNLOAD: u8 = 4;
/// Exit code after Ctrl-C left a job running, as shells report a process that SIGINT ended.
pub const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The bus or slotd is not there, or does not answer.
    #[error("{doing}")]
    Unreachable {
        /// What was attempted.
        doing: String,
        /// What the bus said.
        #[source]
        source: zbus::Error,
    },
    /// slotd went away while a job was followed.
    #[error("slotd went away while job {job} ran; the job has ended, its slot is left as it was then")]
    JobLost {
        /// Number of the job.
        job: u64,
        /// What the bus said.
        #[source]
        source: Box<CtlError>,
    },
    /// The image could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// `doctor` found something that has to be done.
    #[error("{failed} of {checks} checks failed")]
    Unhealthy {
        /// Checks that failed.
        failed: usize,
        /// All of them.
        checks: usize,
    },
    /// An error of the contract, from a method or a job.
    #[error("{message}")]
    Refused {
        /// Name.
        kind: ErrorKind,
        /// slotd's words.
        message: String,
    },
    /// An error whose name is not in the contract.
    #[error("{doing}: {name}: {message}")]
    Foreign {
        /// What was attempted.
        doing: String,
        /// D-Bus error name.
        name: String,
        /// Its text.
        message: String,
    },
    /// slotd answered something that the contract does not know.
    #[error("{object}: property {property} is missing or has another type than the contract gives it")]
    Malformed {
        /// The object.
        object: String,
        /// The property.
        property: &'static str,
    },
    /// A reply could not be read.
    #[error("{doing}")]
    Protocol {
        /// What was attempted.
        doing: String,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
    /// The operating system refused something that always works.
    #[error("{doing}")]
    System {
        /// What was attempted.
        doing: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Ctrl-C ended the watching; the job goes on.
    #[error("left job {job} to slotd; `spsctl wait {job}` follows it")]
    Interrupted {
        /// Number of the job.
        job: u64,
    },
}

impl CtlError {
    /// The failed call as this program understands it. `doing` says what was attempted, `subject` names what the
    /// call was addressed to ("slot 7").
    pub fn from_bus(error: zbus::Error, doing: &str, subject: &str) -> Self {
        let doing = doing.to_owned();
        match &error {
            zbus::Error::MethodError(name, message, _) => {
                Self::from_name(name.as_str(), message.as_deref().unwrap_or_default(), doing)
            }
            zbus::Error::FDO(fdo) => match **fdo {
                zbus::fdo::Error::ZBus(_) => Self::Protocol { doing, source: error },
                zbus::fdo::Error::UnknownObject(_) => Self::Refused {
                    kind: ErrorKind::InvalidArgument,
                    message: format!("there is no {subject}"),
                },
                ref refusal if is_absence(refusal) => Self::Unreachable { doing, source: error },
                ref refusal => {
                    Self::from_name(refusal.name().as_str(), refusal.description().unwrap_or_default(), doing)
                }
            },
            zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => {
                Self::Unreachable { doing, source: error }
            }
            _ => Self::Protocol { doing, source: error },
        }
    }

    /// An error by its D-Bus name, from a reply or from a job's `Error` property.
    pub fn from_name(name: &str, message: &str, doing: String) -> Self {
        let message = message.to_owned();
        if let Some(kind) = ErrorKind::from_dbus_name(name) {
            return Self::Refused { kind, message };
        }
        match name.strip_prefix("org.freedesktop.DBus.Error.") {
            // The bus itself, or polkit through slotd, says that this caller may not.
            Some("AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired") => {
                Self::Refused { kind: ErrorKind::NotAuthorized, message }
            }
            _ => Self::Foreign { doing, name: name.to_owned(), message },
        }
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable { .. } | Self::JobLost { .. } => UNREACHABLE,
            Self::Refused { kind, .. } => kind.exit_code(),
            Self::Interrupted { .. } => INTERRUPTED,
            Self::Download(_) => DOWNLOAD,
            Self::Foreign { .. }
            | Self::Malformed { .. }
            | Self::Protocol { .. }
            | Self::System { .. }
            | Self::Unhealthy { .. } => UNEXPECTED,
        }
    }

    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Usage(_) => "Usage",
            Self::Unreachable { .. } | Self::JobLost { .. } => "Unreachable",
            Self::Refused { kind, .. } => kind.name(),
            Self::Interrupted { .. } => "Interrupted",
            Self::Download(_) => "Download",
            Self::Unhealthy { .. } => "Unhealthy",
            Self::Foreign { .. } | Self::Malformed { .. } | Self::Protocol { .. } | Self::System { .. } => {
                "Unexpected"
            }
        }
    }

    /// The message with its causes, on one line.
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            // zbus repeats the causes of its errors in their text.
            cause = error.source().filter(|_| !error.is::<zbus::Error>());
        }
        text
    }
}

/// Whether the bus says that nobody answers there.
fn is_absence(error: &zbus::fdo::Error) -> bool {
    let name = error.name();
    let last = name.as_str().strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default();
    let names = [
        "ServiceUnknown",
        "NameHasNoOwner",
        "NoReply",
        "NoServer",
        "NoNetwork",
        "Timeout",
        "TimedOut",
        "Disconnected",
        "IOError",
    ];
    names.contains(&last) || last.starts_with("Spawn.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::fdo;

    fn of(error: fdo::Error) -> CtlError {
        CtlError::from_bus(zbus::Error::FDO(Box::new(error)), "reading slot 7", "slot 7")
    }

    #[test]
    fn contract_errors_keep_their_exit_code() {
        for kind in ErrorKind::ALL {
            let error = CtlError::from_name(&kind.dbus_name(), "why", "doing".to_owned());
            assert_eq!((error.exit_code(), error.name()), (kind.exit_code(), kind.name()));
            assert_eq!(error.full_message(), "why");
        }
    }

    #[test]
    fn absent_slotd_is_unreachable() {
        for error in [
            fdo::Error::ServiceUnknown("x".into()),
            fdo::Error::NoReply("x".into()),
            fdo::Error::SpawnChildExited("x".into()),
        ] {
            assert_eq!(of(error).exit_code(), 3);
        }
        let timeout = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert_eq!(CtlError::from_bus(timeout.into(), "x", "y").exit_code(), 3);
    }

    #[test]
    fn unknown_object_and_denial_are_contract_errors() {
        let error = of(fdo::Error::UnknownObject("x".into()));
        assert_eq!((error.exit_code(), error.to_string().as_str()), (28, "there is no slot 7"));
        assert_eq!(of(fdo::Error::AccessDenied("x".into())).exit_code(), 27);
        assert_eq!(of(fdo::Error::UnknownMethod("x".into())).exit_code(), 1);
    }

    #[test]
    fn message_names_the_cause_once() {
        let error = of(fdo::Error::NoReply("it died".into()));
        assert_eq!(error.full_message(), "reading slot 7: org.freedesktop.DBus.Error.NoReply: it died");
    }
}
