//! Values of the command line, checked before anything is asked of slotd.

use std::time::Duration;

use sps_base::slot::SlotId;

/// Most bytes of a message or a reason, as the contract says.
pub const MESSAGE_LIMIT: usize = 1024;

pub(super) fn slot(text: &str) -> Result<SlotId, String> {
    let number: u32 = text.parse().map_err(|_| "not a slot number".to_owned())?;
    SlotId::try_from(number)
}

pub(super) fn firmware_slot(text: &str) -> Result<SlotId, String> {
    slot(text).and_then(|id| {
        if id == SlotId::RECOVERY {
            Err(format!("slot 0 is the recovery image; firmware slots are 1 to {}", SlotId::MAX))
        } else {
            Ok(id)
        }
    })
}

pub(super) fn sha256_hex(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is 64 hexadecimal digits".to_owned())
    }
}

pub(super) fn transaction_id(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a transaction id is 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned())
    }
}

pub(super) fn bus_address(text: &str) -> Result<String, String> {
    text.parse::<zbus::Address>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The message of an upgrade; may be empty.
pub(super) fn message(text: &str) -> Result<String, String> {
    if text.len() <= MESSAGE_LIMIT {
        Ok(text.to_owned())
    } else {
        Err(format!("it has {} bytes, at most {MESSAGE_LIMIT} are kept", text.len()))
    }
}

/// A reason, for the log: a message that is not empty.
pub(super) fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("a reason is needed; it goes to the log".to_owned())
    } else {
        message(text)
    }
}

/// Whole seconds, at least one and at most an hour.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err("whole seconds, 1 to 3600".to_owned()),
    }
}
