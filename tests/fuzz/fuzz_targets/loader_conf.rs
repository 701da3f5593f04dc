//! `loader.conf`: a default that is set is read, every other line stays, and setting twice is setting once.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::loader_conf::{LIMIT, SECTOR, parse_default, with_default};

const DEFAULT: &str = "sps-slot-2.efi";

/// The lines that are not the default's, without what is empty at the end.
fn others(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> =
        text.split('\n').filter(|line| !matches!(parse_default(line.as_bytes()), Ok(Some(_)))).collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    lines
}

fuzz_target!(|data: &[u8]| {
    let old = parse_default(data);
    if let Err(error) = &old {
        assert_printable(error);
    }
    match with_default(Some(data), DEFAULT) {
        Ok(new) => {
            assert!(parse_default(&new) == Ok(Some(DEFAULT.to_owned())), "the default is not read back");
            assert!(new.len().is_multiple_of(SECTOR) && new.len() <= LIMIT);
            assert!(with_default(Some(&new), DEFAULT).as_ref() == Ok(&new), "setting twice differs");
            if let (Ok(_), Ok(before), Ok(after)) =
                (&old, std::str::from_utf8(data), std::str::from_utf8(&new))
                && !before.trim().is_empty()
            {
                assert!(new.len() >= data.len(), "the file became shorter");
                assert!(others(before) == others(after), "a line of somebody else has changed");
            }
        }
        Err(error) => {
            assert_printable(&error);
            assert!(data.len() > LIMIT - 2 * SECTOR, "{error}");
        }
    }
    if let Ok(value) = std::str::from_utf8(data)
        && let Ok(new) = with_default(None, value)
    {
        assert!(parse_default(&new) == Ok(Some(value.to_owned())), "{value:?} does not read back");
    }
});
