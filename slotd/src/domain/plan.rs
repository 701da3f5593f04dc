//! The order law: who writes what, when. Every other place cites this one.
//!
//! Each step is flushed before the next begins, each can be repeated, and a claim never comes before the flush that
//! makes it true. After a cut anywhere, [`super::slot_state::judge`] says what the slot is and what remains to do.
//!
//! | step | medium | after a cut in or before it |
//! |---|---|---|
//! | `WriteIntent` | state | the old content is still valid; the intent is dropped |
//! | `RemoveBootImage` | ESP | the old content is still valid; its boot image is restored from the slot |
//! | `ZeroTrailer` | slot | `Writing` from here on |
//! | `WriteParts` | slot | `Writing`; a resume reads back what is there and goes on |
//! | `WriteTrailer` | slot | `Verified` from here on: rolled forward |
//! | `CopyBootImage` | ESP | rolled forward from the slot |
//! | `DropIntent` | state | done |

/// One step of the order law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// State: the slot is being changed, by whom, into what.
    WriteIntent,
    /// ESP: the slot's boot image goes, so that nothing boots what is about to change.
    RemoveBootImage,
    /// Slot: the trailer goes, so that nothing lists it.
    ZeroTrailer,
    /// Slot: tree, small files, boot images, then data, each block proven before it is written and read back after.
    WriteParts,
    /// Slot: the claim, written last.
    WriteTrailer,
    /// ESP: the boot image is copied from the slot.
    CopyBootImage,
    /// State: nothing is being changed any more.
    DropIntent,
}

/// An install, from the first byte written.
pub const INSTALL: [Step; 7] = [
    Step::WriteIntent,
    Step::RemoveBootImage,
    Step::ZeroTrailer,
    Step::WriteParts,
    Step::WriteTrailer,
    Step::CopyBootImage,
    Step::DropIntent,
];

/// A deletion: the first half of an install.
pub const DELETE: [Step; 4] = [Step::WriteIntent, Step::RemoveBootImage, Step::ZeroTrailer, Step::DropIntent];

/// What rolls an interrupted install forward, or drops one that had not touched the slot: either way the boot image
/// on the ESP becomes that of the slot.
pub const SETTLE: [Step; 2] = [Step::CopyBootImage, Step::DropIntent];
