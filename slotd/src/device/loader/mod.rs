//! The boot loader's settings: which entry is the default, and which one is started once.

pub mod efivarfs;
pub mod firmware;
pub mod grub;
pub mod uefi;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::domain::boot::{Entry, Selection};

/// A boot loader that is told what to start. Every call blocks, and what it has set is on stable storage when it
/// returns.
pub trait Loader: Send + Sync + fmt::Debug {
    /// Name in the contract: `grub` or `systemd-boot`.
    fn name(&self) -> &'static str;
    /// What it is set to. An error where that cannot be told; nothing set is no error.
    fn read(&self) -> Result<Selection, LoaderError>;
    /// Sets or takes back what is started once. Taking back what is not there is fine.
    fn set_one_shot(&self, entry: Option<&Entry>) -> Result<(), LoaderError>;
    /// Sets the default, in every copy that the loader has of it.
    fn set_default(&self, entry: &Entry) -> Result<(), LoaderError>;
    /// What it says that it has started this time; `None` where it does not say.
    fn started(&self) -> Option<Entry> {
        None
    }
    /// Makes the system firmware start this loader, then the recovery image of this name, where it can be told so; with
    /// `refresh` the loader's own program is replaced first where the running system has a newer one.
    fn settle_firmware(&self, _recovery: Option<&str>, _refresh: bool) -> Result<(), LoaderError> {
        Ok(())
    }
}

/// Why the loader's settings cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The kernel refuses.
    #[error("{path}: cannot {operation}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is there and is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It cannot hold what should be written; nothing was changed.
    #[error("{path}: {what}", path = path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// What was written does not read back.
    #[error("{path}: reads back otherwise than it was written; the medium is failing", path = path.display())]
    ReadBack {
        /// Which file.
        path: PathBuf,
    },
}
