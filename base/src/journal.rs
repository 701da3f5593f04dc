//! Journal events that an operator may have to act on: one fixed `MESSAGE_ID` each.
//!
//! What they mean and what to do is `systemd/catalog/sps.catalog`, shown by `journalctl -x`; a test compares the two.
//! Entries fill the catalog's fields `SLOT`, `VERSION`, `ERROR` and `REASON`, as far as they name them.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $id:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $id;)*

        /// Every event: its constant's name and its `MESSAGE_ID`.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $name),)*];
    };
}

events! {
    /// An install into a slot has begun.
    INSTALL_STARTED = "f32669d8cb96a96827640f830c04d6e0";
    /// An install ended with a verified slot.
    INSTALL_SUCCEEDED = "70a8947763d59ceb00107701e45cc674";
    /// An install ended after the slot was touched.
    INSTALL_FAILED = "87a6545de19069509fe2ee95370b07b7";
    /// An image was refused before anything was written.
    INSTALL_REFUSED = "f4d3ed6acd783bb6618c9940dd7f275d";
    /// An install was cancelled, or its sender went away.
    INSTALL_CANCELLED = "7a3ac9df8d3083b9e1536ee76871665b";
    /// An interrupted install goes on.
    INSTALL_RESUMED = "ee863536b5f84127797faa7854351a8a";
    /// A check found a slot's content damaged.
    VERIFY_FAILED = "61a2125f4f081be1184a6f7ef0802374";
    /// A slot was emptied.
    SLOT_DELETED = "bce2928f257d183507d538b87ee62564";
    /// No valid state record was found.
    STATE_LOST = "f17057e8b70bf495000dee7eb5adfb70";
    /// An operator wrote a fresh state.
    STATE_RESET = "8cfb8b3eacef86cf4f6e9720b40c27a4";
    /// Something that the firmware did not foresee was recorded.
    TAINTED = "33915ba0e5794d4d988a1a94ef7bf2fc";
    /// The trusted keys cannot be used.
    KEYRING_UNUSABLE = "fde804a36d8baf30354804ab5ac66f18";
    /// A boot image was rebuilt from its slot.
    BOOT_IMAGE_REPAIRED = "bcbf324375d08d4d7fc62bb2cd1af1bd";
    /// A firmware was selected for a trial.
    TRIAL_SELECTED = "76bd955bfdf64b6e98e18207c83f84a5";
    /// A selection was taken back.
    TRIAL_WITHDRAWN = "9f25b851d2414a80b5c6a41e06d9e604";
    /// A trial ended well.
    TRIAL_CONFIRMED = "45a356ca6d39472f93e8c9478da9fec8";
    /// A trial failed, or never began.
    TRIAL_FAILED = "464faf4723824560add808c5045466e3";
    /// A firmware cannot take over.
    TEST_FAILED = "4cea873ca7c0457c983364c15a43b6b8";
    /// The loader's default was written again.
    LOADER_REPAIRED = "a7a509a9e3824b7fa11e501f61f0cf73";
    /// A selection could not be put in order.
    SELECTION_FAILED = "784b26b8fa6346e6927983a7ae232c29";
    /// The recovery image could not be replaced.
    RECOVERY_IMAGE_OLD = "4f72f3b7f3c94d44805032f38aa986db";
    /// Which firmware runs, told once at every boot.
    BOOT_REPORT = "b5d0a9c7e68fb806267fa5905c5852b4";
    /// The running firmware is not healthy.
    HEALTH_FAILED = "b516df4e530ba3c51ba306390724e3fc";
    /// The running firmware is healthy.
    HEALTH_PASSED = "279e359ef459a88801c75e7885e908fa";
    /// A trial was not confirmed in time, or was rejected: the appliance reboots.
    TRIAL_TIMEOUT = "28cda8547c7ed91da721f055a54a4778";
}
