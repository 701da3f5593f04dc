//! Why something could not be done to a slot, and which contract name that has.

use sps_base::error::ErrorKind;

use super::blocks::BlockError;
use super::types::Failure;
use crate::device::esp::EspError;
use crate::device::loader::LoaderError;
use crate::device::medium::MediumError;
use crate::device::source::SourceError;
use crate::domain::iso::IsoError;
use crate::domain::manifest::Sha256Hex;
use crate::domain::policy::PolicyError;
use crate::domain::signature::SignatureError;
use crate::domain::verity::TreeError;

/// Everything that can go wrong below the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("not a usable firmware ISO: {0}")]
    Iso(#[from] IsoError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error("ESP: {0}")]
    Esp(#[from] EspError),
    #[error("boot loader: {0}")]
    Loader(#[from] LoaderError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Blocks(#[from] BlockError),
    #[error("root.verity, byte {at}: {source}; the image is damaged or was altered")]
    Tree { at: u64, source: TreeError },
    /// Bytes that arrived are not the signed ones.
    #[error(
        "{file}, byte {at}: SHA-256 is {found}, the manifest says {expected}; the image is damaged or was altered"
    )]
    Content { file: &'static str, at: u64, expected: Sha256Hex, found: Sha256Hex },
    /// The directory of the ISO and the manifest disagree.
    #[error(
        "{file} has {found} bytes on the ISO, the manifest says {expected}; the image is damaged or was altered"
    )]
    Size { file: &'static str, found: u64, expected: u64 },
    /// Larger than what is read before anything is trusted.
    #[error("{file} has {found} bytes; the limit is {limit}; this is no firmware of this format")]
    TooLarge { file: &'static str, found: u64, limit: u64 },
    /// A part of a slot does not read back as what was signed.
    #[error("{file} in the slot, byte {at}: SHA-256 is {found}, expected {expected}; the medium is failing")]
    ReadBack { file: &'static str, at: u64, expected: Sha256Hex, found: Sha256Hex },
    /// Anything that needs no more structure than its name and its sentence.
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
}

impl StoreError {
    pub(super) fn refused(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Refused { kind, message: message.into() }
    }

    /// Contract name.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Iso(IsoError::Unsigned) => ErrorKind::SignatureInvalid,
            Self::Iso(_)
            | Self::Tree { .. }
            | Self::Content { .. }
            | Self::Size { .. }
            | Self::TooLarge { .. }
            | Self::Blocks(BlockError::Arrived { .. }) => ErrorKind::MediaCorrupt,

            Self::Signature(e) => e.kind(),
            Self::Policy(e) => e.kind(),
            Self::Source(e) | Self::Blocks(BlockError::Source(e)) => match e {
                SourceError::Kind | SourceError::NotReadable | SourceError::Passed { .. } => {
                    ErrorKind::InvalidArgument
                }
                SourceError::Ended { .. } | SourceError::Stalled { .. } => ErrorKind::MediaCorrupt,
                SourceError::Cancelled => ErrorKind::Cancelled,
                SourceError::Io { .. } => ErrorKind::Device,
            },
            Self::Medium(_)
            | Self::Esp(_)
            | Self::Loader(_)
            | Self::ReadBack { .. }
            | Self::Blocks(
                BlockError::ReadBack { .. }
                | BlockError::Tree(_)
                | BlockError::Medium(_)
                | BlockError::Thread(_),
            ) => ErrorKind::Device,
            Self::Refused { kind, .. } => *kind,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            // Messages never repeat their source, except where the kernel's word is the whole point.
            let text = cause.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        Self::new(error.kind(), message)
    }
}
