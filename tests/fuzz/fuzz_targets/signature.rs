//! The signature: whatever is accepted was signed by the one key that there is. Nobody can forge it by accident.
#![no_main]

use fuzz_targets::assert_printable;
use fuzz_targets::fixtures::{KEYRING, MANIFEST, NOW, SIGNED};
use libfuzzer_sys::fuzz_target;
use slotd::domain::signature::MAX_SIGNATURE;

fuzz_target!(|data: &[u8]| {
    let Some((mode, message)) = data.split_first() else { return };
    let (signed, _) = &*SIGNED;
    // Mostly the message is fuzzed; with mode 1 the manifest's end, too.
    let mut manifest = signed.clone();
    if *mode == 1 {
        manifest.extend_from_slice(message.get(message.len().saturating_sub(4)..).unwrap_or_default());
    }
    match KEYRING.verify(&manifest, message, NOW) {
        Ok(verified) => {
            assert!(manifest == *signed, "a manifest that nobody signed was accepted");
            assert!(*verified.get() == *MANIFEST && message.len() as u64 <= MAX_SIGNATURE);
            let good = KEYRING.verify(signed, &SIGNED.1, NOW).map(|good| good.identity());
            assert!(good.is_ok_and(|good| good == verified.identity()), "another signer");
        }
        Err(error) => assert_printable(&error),
    }
});
