//! The keyring: a revocation list or root that nobody signed never makes a signature good.
#![no_main]

use fuzz_targets::assert_printable;
use fuzz_targets::fixtures::{KEYRING_FILES, NOW, SIGNED, read};
use libfuzzer_sys::fuzz_target;
use slotd::domain::signature::Keyring;
use std::sync::LazyLock;

/// The intermediate's list as DER: what is signed, the algorithm, and the signature.
static LIST: LazyLock<Vec<u8>> = LazyLock::new(|| read("intermediate.crl.der"));

fn of(roots: &[(String, Vec<u8>)], lists: &[(String, Vec<u8>)]) -> Option<Keyring> {
    match Keyring::parse(roots, lists, NOW) {
        Ok(keyring) => {
            assert!(keyring.checks_revocation() != lists.is_empty());
            assert!(keyring.warnings().iter().all(|warning| !warning.contains(char::is_control)));
            Some(keyring)
        }
        Err(error) => {
            assert_printable(&error);
            None
        }
    }
}

/// Length of the header of a DER value, and of its content.
fn header(der: &[u8]) -> Option<(usize, usize)> {
    let long = match *der.get(1)? {
        short @ 0..0x80 => return Some((2, usize::from(short))),
        long => usize::from(long & 0x7f),
    };
    let length = der.get(2..2 + long)?.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    Some((2 + long, length))
}

/// What is signed of a list: the first value in the outermost one, with its header.
fn signed_part(der: &[u8]) -> Option<&[u8]> {
    let inner = der.get(header(der)?.0..)?;
    let (head, length) = header(inner)?;
    inner.get(..head.checked_add(length)?)
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, file)) = data.split_first() else { return };
    let (roots, lists) = &*KEYRING_FILES;
    let fuzzed = ("fuzzed".to_owned(), file.to_vec());
    let is_good = |keyring: &Keyring| keyring.verify(&SIGNED.0, &SIGNED.1, NOW).is_ok();
    match mode % 3 {
        // Beside the trusted root: it may make the keyring unusable, but not a good signature bad.
        0 => {
            let with = [roots.as_slice(), &[fuzzed]].concat();
            if let Some(keyring) = of(&with, lists) {
                assert!(is_good(&keyring), "another root made a good signature bad");
            }
        }
        // In the place of the only root.
        1 => drop(of(&[fuzzed], lists)),
        // In the place of the intermediate's revocation list.
        _ => {
            let with: Vec<_> =
                lists.iter().filter(|(name, _)| name == "root.crl").cloned().chain([fuzzed]).collect();
            if of(roots, &with).is_some_and(|keyring| is_good(&keyring)) && !file.starts_with(b"-----") {
                assert!(signed_part(file) == signed_part(&LIST), "a list that nobody signed was believed");
            }
        }
    }
});
