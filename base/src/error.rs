//! The error names that every surface shares: D-Bus name, `spsctl` exit code and REST error type, one to one.
//!
//! `docs/errors.md` is this table with advice; a test compares the two.

use std::fmt;

/// Prefix of every D-Bus error name of the project.
pub const ERROR_PREFIX: &str = "org.spsagent.Error.";

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $exit:literal, $http:literal;)*) => {
        /// What went wrong, in the terms of the contract (`dbus.md`, "Errors").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The last element of the D-Bus error name, which is also the REST error type.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Exit code of `spsctl` for this error.
            pub fn exit_code(self) -> u8 {
                match self { $(Self::$name => $exit,)* }
            }

            /// HTTP status with which `agent` answers this error.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// The kind with this last name element.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// The signature over the manifest does not verify, or is not of the profile.
    SignatureInvalid = 10, 400;
    /// The signature is sound but its chain ends in no trusted root, is revoked, or is out of date.
    Untrusted = 11, 400;
    /// The firmware is for another product or other hardware.
    Incompatible = 12, 400;
    /// The firmware's security epoch is below the floor that this appliance has reached.
    EpochTooOld = 13, 400;
    /// The release rules forbid this step (`upgrade_from`, or older than the running firmware).
    VersionPolicy = 14, 400;
    /// The image is not what its signed manifest says, or is no firmware ISO at all.
    MediaCorrupt = 15, 400;
    /// The image does not fit into the slot or its boot image onto the ESP.
    NoSpace = 16, 409;
    /// Every slot is in use; something must be deleted or replaced first.
    NoEmptySlot = 17, 409;
    /// The slot holds no firmware.
    SlotEmpty = 18, 404;
    /// Another job works on this slot.
    SlotBusy = 19, 409;
    /// The slot is running, or will run after the next reboot.
    SlotInUse = 20, 400;
    /// The slot's content is not trustworthy.
    SlotBad = 21, 409;
    /// The same root hash is already installed.
    AlreadyInstalled = 22, 409;
    /// The running firmware is not confirmed yet.
    NotConfirmed = 23, 409;
    /// The firmware test failed.
    TestFailed = 24, 400;
    /// A passing test is required first.
    TestRequired = 25, 409;
    /// The job was cancelled.
    Cancelled = 26, 409;
    /// The caller may not do this.
    NotAuthorized = 27, 403;
    /// An argument, option or object does not exist or is out of range.
    InvalidArgument = 28, 400;
    /// The appliance is sealed.
    Sealed = 29, 403;
    /// The BMC does not answer.
    BmcUnreachable = 30, 502;
    /// The BMC answered with a refusal.
    BmcRefused = 31, 502;
    /// The power state did not become what was asked for.
    PowerUnchanged = 32, 504;
    /// A device, file system or state record failed.
    Device = 33, 500;
}

impl ErrorKind {
    /// The full D-Bus error name.
    pub fn dbus_name(self) -> String {
        format!("{ERROR_PREFIX}{}", self.name())
    }

    /// The kind of a full D-Bus error name.
    pub fn from_dbus_name(name: &str) -> Option<Self> {
        Self::from_name(name.strip_prefix(ERROR_PREFIX)?)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal as a D-Bus method answers it: the contract's error name and a message for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// Contract name.
    pub kind: ErrorKind,
    /// One to three sentences: what, where, what to do.
    pub message: String,
}

impl CallError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl zbus::DBusError for CallError {
    fn create_reply(&self, call: &zbus::message::Header<'_>) -> zbus::Result<zbus::Message> {
        zbus::Message::error(call, self.name()).build(&self.message)
    }

    fn name(&self) -> zbus::names::ErrorName<'_> {
        zbus::names::ErrorName::from_string_unchecked(self.kind.dbus_name())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_exit_codes_are_one_to_one() {
        let names: BTreeSet<_> = ErrorKind::ALL.iter().map(|k| k.name()).collect();
        let codes: BTreeSet<_> = ErrorKind::ALL.iter().map(|k| k.exit_code()).collect();
        assert_eq!((names.len(), codes.len()), (ErrorKind::ALL.len(), ErrorKind::ALL.len()));
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_dbus_name(&kind.dbus_name()), Some(*kind));
            assert!(zbus::names::ErrorName::try_from(kind.dbus_name()).is_ok(), "{kind}");
        }
    }
}
