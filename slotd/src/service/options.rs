//! The `a{sv}` options of methods, parsed strictly: an unknown name or another type is refused by name.

use std::collections::HashMap;
use std::fmt::Display;

use sps_base::error::{CallError, ErrorKind};
use sps_base::slot::SlotId;
use zbus::wire::{OwnedVariant, Variant};

use crate::store::{InstallRequest, RevertRequest, VerifyMode};

/// Options as they arrive.
pub(crate) type Options = HashMap<String, OwnedVariant>;

fn refuse(option: &str, expected: impl Display) -> CallError {
    CallError::new(ErrorKind::InvalidArgument, format!("option {option}: expected {expected}"))
}

/// Takes one option out of the set; what is left at the end is unknown.
fn take<T>(options: &mut Options, name: &str, expected: &str) -> Result<Option<T>, CallError>
where
    T: TryFrom<Variant<'static>>,
{
    let Some(value) = options.remove(name) else { return Ok(None) };
    let value = Variant::from(value);
    let found = value.value_signature().to_string();
    T::try_from(value)
        .map(Some)
        .map_err(|_| refuse(name, format_args!("{expected}, found D-Bus type {found:?}")))
}

fn nothing_left(options: Options, known: &str) -> Result<(), CallError> {
    // The first by name, so that the answer does not depend on the order of a hash table.
    options.into_keys().min().map_or(Ok(()), |name| {
        // Shortened: the name comes from the caller and the message goes into a log.
        let name: String = name.chars().take(64).collect();
        Err(CallError::new(
            ErrorKind::InvalidArgument,
            format!("option {name:?} is unknown; the options are: {known}"),
        ))
    })
}

/// Options of `Manager.Install`.
pub(crate) fn parse_install(mut options: Options) -> Result<InstallRequest, CallError> {
    let slot = take::<u32>(&mut options, "slot", "a slot number (u)")?
        .map(|id| SlotId::new(id).ok_or_else(|| refuse("slot", "a number from 1 to 9")))
        .transpose()?;
    let replace = take(&mut options, "replace", "a boolean (b)")?.unwrap_or(false);
    let repair = take(&mut options, "repair", "a boolean (b)")?.unwrap_or(false);
    let manifest_sha256 = take::<String>(&mut options, "manifest_sha256", "a string (s)")?
        .map(|text| {
            let mut sum = [0; 32];
            hex::decode_to_slice(&text, &mut sum)
                .map_err(|_| refuse("manifest_sha256", "64 hexadecimal digits"))?;
            Ok::<_, CallError>(sum)
        })
        .transpose()?;
    let transaction_id = take::<String>(&mut options, "transaction_id", "a string (s)")?
        .map(|name| if is_transaction(&name) { Ok(name) } else { Err(refuse("transaction_id", TRANSACTION)) })
        .transpose()?;
    let offset = take(&mut options, "offset", "a byte count (t)")?.unwrap_or(0);
    nothing_left(options, "manifest_sha256, offset, repair, replace, slot, transaction_id")?;
    if offset != 0 && transaction_id.is_none() {
        return Err(refuse(
            "offset",
            "the option transaction_id beside it: only a named transaction resumes",
        ));
    }
    Ok(InstallRequest { slot, replace, repair, manifest_sha256, transaction_id, offset })
}

const TRANSACTION: &str = "1 to 64 characters of A-Z a-z 0-9 . _ -";

fn is_transaction(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Mode and options of `Slot.Verify`; the second value is `scheduled`.
pub(crate) fn parse_verify(mode: &str, mut options: Options) -> Result<(VerifyMode, bool), CallError> {
    let mode = match mode {
        "quick" => VerifyMode::Quick,
        "full" => VerifyMode::Full,
        _ => {
            return Err(CallError::new(ErrorKind::InvalidArgument, "argument mode: expected quick or full"));
        }
    };
    let scheduled = take(&mut options, "scheduled", "a boolean (b)")?.unwrap_or(false);
    nothing_left(options, "scheduled")?;
    Ok((mode, scheduled))
}

/// Options of `Slot.Test`: whether a firmware whose last trial failed is tested all the same.
pub(crate) fn parse_test(mut options: Options) -> Result<bool, CallError> {
    let again = take(&mut options, "again", "a boolean (b)")?.unwrap_or(false);
    nothing_left(options, "again")?;
    Ok(again)
}

/// Options of `Slot.Activate`: none yet.
pub(crate) fn parse_activate(options: Options) -> Result<(), CallError> {
    nothing_left(options, "none")
}

/// Options of `Manager.Revert`.
pub(crate) fn parse_revert(mut options: Options) -> Result<RevertRequest, CallError> {
    let slot = take::<u32>(&mut options, "slot", "a slot number (u)")?
        .map(|id| {
            SlotId::new(id)
                .filter(|id| *id != SlotId::RECOVERY)
                .ok_or_else(|| refuse("slot", "a number from 1 to 9"))
        })
        .transpose()?;
    let accept_config = take::<String>(&mut options, "accept_config", "a string (s)")?
        .map(|date| if date.len() <= 64 { Ok(date) } else { Err(refuse("accept_config", "a date")) })
        .transpose()?;
    nothing_left(options, "accept_config, slot")?;
    Ok(RevertRequest { slot, accept_config })
}

/// A text that is kept and logged: at most `limit` bytes on one line.
pub(crate) fn check_text(argument: &str, text: &str, least: usize, limit: usize) -> Result<(), CallError> {
    let long_enough = text.trim().len() >= least;
    if long_enough && text.len() <= limit && !text.contains(char::is_control) {
        return Ok(());
    }
    let text = format!("argument {argument}: expected {least} to {limit} bytes on one line");
    Err(CallError::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, Variant<'static>)]) -> Options {
        list.iter().map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap())).collect()
    }

    fn refusal(list: &[(&str, Variant<'static>)]) -> String {
        let error = parse_install(options(list)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        error.message
    }

    #[test]
    fn every_option_reaches_the_request() {
        let request = parse_install(options(&[
            ("slot", 2_u32.into()),
            ("replace", true.into()),
            ("repair", true.into()),
            ("manifest_sha256", "ab".repeat(32).into()),
            ("transaction_id", "ha-7.1_b".into()),
            ("offset", 4096_u64.into()),
        ]))
        .unwrap();
        let expected = InstallRequest {
            slot: SlotId::new(2),
            replace: true,
            repair: true,
            manifest_sha256: Some([0xab; 32]),
            transaction_id: Some("ha-7.1_b".to_owned()),
            offset: 4096,
        };
        assert_eq!(request, expected);
        assert_eq!(parse_install(Options::new()).unwrap(), InstallRequest::default());
    }

    #[test]
    fn refusals_name_the_option() {
        let cases: [(&str, Variant<'static>, &str); 9] = [
            ("colour", 1_u32.into(), "\"colour\" is unknown"),
            ("Slot", 1_u32.into(), "\"Slot\" is unknown"),
            ("slot", 1_i32.into(), "option slot: expected a slot number (u), found D-Bus type \"i\""),
            ("slot", 10_u32.into(), "option slot: expected a number from 1 to 9"),
            ("replace", 1_u32.into(), "option replace: expected a boolean"),
            ("manifest_sha256", "zz".into(), "option manifest_sha256: expected 64"),
            ("transaction_id", "a/b".into(), "option transaction_id: expected 1 to 64"),
            ("transaction_id", "x".repeat(65).into(), "option transaction_id: expected 1 to 64"),
            ("offset", 7_u64.into(), "option offset: expected the option transaction_id"),
        ];
        for (name, value, words) in cases {
            let text = refusal(&[(name, value)]);
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
    }

    #[test]
    fn a_variant_in_a_variant_is_another_type() {
        let nested = Variant::Variant(Box::new(Variant::from(1_u32)));
        assert!(refusal(&[("slot", nested)]).contains("found D-Bus type \"v\""));
    }

    #[test]
    fn verify_knows_two_modes_and_one_option() {
        let scheduled = options(&[("scheduled", true.into())]);
        assert_eq!(parse_verify("full", scheduled).unwrap(), (VerifyMode::Full, true));
        assert_eq!(parse_verify("quick", Options::new()).unwrap(), (VerifyMode::Quick, false));
        assert!(parse_verify("deep", Options::new()).unwrap_err().message.contains("quick or full"));
        let unknown = options(&[("sheduled", true.into())]);
        assert!(parse_verify("full", unknown).unwrap_err().message.contains("\"sheduled\""));
    }
}
