//! Text variables of the boot loader, and the entries that they name.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::boot::Entry;
use slotd::domain::efivar::{EfivarError, LIMIT, decode, encode};

fuzz_target!(|data: &[u8]| {
    let text = match decode(data) {
        Ok(text) => text,
        Err(error) => return assert_printable(&error),
    };
    assert!(data.len() <= LIMIT && !text.contains('\0'));
    match encode(&text) {
        Ok(bytes) => assert!(bytes.len() <= LIMIT && decode(&bytes).as_ref() == Ok(&text)),
        Err(EfivarError::Unfit { .. }) => assert!(text.is_empty()),
        // Without a terminator it came in, with one it is too long.
        Err(error) => assert!(matches!(error, EfivarError::TooLong { .. }) && data.len() + 2 > LIMIT),
    }
    let entry = Entry::parse(&text);
    match &entry {
        Entry::Slot(id) => {
            assert!((1..=9).contains(&id.get()) && Entry::parse(&entry.name()) == entry);
            assert!(text.strip_suffix(".efi").unwrap_or(&text) == entry.name());
        }
        Entry::Recovery => assert!(text.starts_with("sps-recovery")),
        Entry::Other(name) => assert!(*name == text),
    }
});
