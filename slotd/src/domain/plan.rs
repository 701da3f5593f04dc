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
//!
//! Selecting, trying and confirming is the second table; [`super::machine::step`] says when each step is due.
//!
//! | step | medium | after a cut in or before it |
//! |---|---|---|
//! | `WritePending` | state | nothing is selected |
//! | `SetOneShot` | loader | nothing is selected; after it, a trial at the next start |
//! | `CountBoot` | state | counted, in the initrd, before the root is opened |
//! | `WriteConfirming` | state | the trial has failed; after it, rolled forward |
//! | `SetDefault` | loader, ESP | rolled forward |
//! | `WriteConfirmed` | state | rolled forward |
//! | `RefreshRecovery` | ESP | either copy works; repeated at the next start |

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

/// One step of selecting, trying and confirming a firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SelectStep {
    /// State: which firmware is to be tried, by whom and why.
    WritePending,
    /// Loader: it is started once.
    SetOneShot,
    /// State: it is being started, counted before its root is opened.
    CountBoot,
    /// State: it is healthy, whatever happens now.
    WriteConfirming,
    /// Loader and ESP: it is the default.
    SetDefault,
    /// State: nothing is pending any more; the floors rise.
    WriteConfirmed,
    /// ESP: its recovery image replaces an older one.
    RefreshRecovery,
    /// Loader: nothing is started once.
    ClearOneShot,
    /// State: the selection has ended without a new default.
    WriteEnded,
    /// State: the running default is healthy; its starts are counted from nothing again.
    ResetBoots,
}

/// Selecting a firmware for one start.
pub const SELECT: [SelectStep; 2] = [SelectStep::WritePending, SelectStep::SetOneShot];

/// A trial that went well.
pub const CONFIRM: [SelectStep; 4] = [
    SelectStep::WriteConfirming,
    SelectStep::SetDefault,
    SelectStep::WriteConfirmed,
    SelectStep::RefreshRecovery,
];

/// Taking a selection back: the loader first, so that nothing starts that is not pending.
pub const WITHDRAW: [SelectStep; 2] = [SelectStep::ClearOneShot, SelectStep::WriteEnded];
