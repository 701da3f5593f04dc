//! What `cargo xtask fuzz` has made: a keyring, and firmware that it trusts. Read once for each process.

#![expect(clippy::panic, reason = "without fixtures there is nothing to fuzz")]

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use slotd::domain::manifest::Manifest;
use slotd::domain::signature::Keyring;
use system_tests::lab::KeyringFiles;

/// The clock of every target, Unix seconds: June 2026.
pub const NOW: u64 = 1_780_272_000;

/// A file of the fixtures, where `SPS_FUZZ_FIXTURES` says or in the build directory.
pub fn read(name: &str) -> Vec<u8> {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/sps/fuzz/fixtures").into();
    let path = PathBuf::from(std::env::var_os("SPS_FUZZ_FIXTURES").unwrap_or_else(default)).join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run `cargo xtask fuzz --seeds` once", path.display()))
}

/// The manifest that is signed, and its signature.
pub static SIGNED: LazyLock<(Vec<u8>, Vec<u8>)> =
    LazyLock::new(|| (read("manifest.json"), read("manifest.p7s")));

/// The same manifest, parsed.
pub static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| {
    Manifest::parse(&SIGNED.0).unwrap_or_else(|e| panic!("the signed manifest is refused: {e}"))
});

/// Root and revocation lists, as files.
pub static KEYRING_FILES: LazyLock<KeyringFiles> = LazyLock::new(|| {
    let file = |name: &str| (name.to_owned(), read(name));
    (vec![file("root.pem")], vec![file("intermediate.crl"), file("root.crl")])
});

/// The keyring of these files.
pub static KEYRING: LazyLock<Arc<Keyring>> = LazyLock::new(|| {
    let (roots, crls) = &*KEYRING_FILES;
    Arc::new(Keyring::parse(roots, crls, NOW).unwrap_or_else(|e| panic!("the keyring is refused: {e}")))
});
