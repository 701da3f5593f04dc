//! systemd-boot's `loader/loader.conf`: lines `key value`, of which slotd owns `default` and keeps the others.
//!
//! Format: manual page loader.conf(5), systemd 257: space or tab after the key, `#` begins a comment line, the last
//! line of a key counts, an id or a pattern for `default`.

/// Longest file that is read, in bytes.
pub const LIMIT: usize = 64 << 10;
/// What is written is padded with newlines to a multiple of this, so that another default is the same sector again:
/// no cluster and no directory entry of the FAT changes.
pub const SECTOR: usize = 512;

/// What a new file says before its default: start at once, let nobody edit, list nothing but boot images.
const SETTINGS: &str = "timeout 0\neditor no\nauto-entries no\n";

/// Why a text is no `loader.conf`, or a value does not fit into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderConfError {
    /// Larger than any configuration.
    #[error("{found} bytes; expected at most {LIMIT}")]
    TooLong {
        /// Length in bytes, as far as it was read.
        found: usize,
    },
    /// What a broken FAT leaves: zeros or foreign data.
    #[error("byte {offset}: no text")]
    NoText {
        /// Where.
        offset: usize,
    },
    /// A name that would not read back.
    #[error("{value:?} cannot be a default: expected printable text without space around it or quotes")]
    Value {
        /// The name.
        value: String,
    },
}

/// The file's text, when it is one.
fn text(bytes: &[u8]) -> Result<&str, LoaderConfError> {
    if bytes.len() > LIMIT {
        return Err(LoaderConfError::TooLong { found: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| LoaderConfError::NoText { offset: e.valid_up_to() })?;
    let strange = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.find(strange) {
        Some(offset) => Err(LoaderConfError::NoText { offset }),
        None => Ok(text),
    }
}

/// The value of a line `default value`.
fn default_of(line: &str) -> Option<&str> {
    let (key, value) = line.trim().split_once([' ', '\t'])?;
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (key == "default" && !value.is_empty()).then_some(value)
}

/// The default that the file names.
pub fn parse_default(bytes: &[u8]) -> Result<Option<String>, LoaderConfError> {
    // What pads it is hundreds of empty lines.
    Ok(text(bytes)?.trim_end().lines().filter_map(default_of).next_back().map(str::to_owned))
}

/// The file with another default. It is never shorter than `old`, except where that is no text: then, and without
/// `old`, it is a new one.
pub fn with_default(old: Option<&[u8]>, value: &str) -> Result<Vec<u8>, LoaderConfError> {
    let line = format!("default {value}\n");
    if default_of(&line) != Some(value) || value.contains(['"', '#']) || value.contains(char::is_control) {
        return Err(LoaderConfError::Value { value: value.to_owned() });
    }
    let kept = old.and_then(|old| text(old).ok()).filter(|text| !text.trim().is_empty());
    let mut new = line;
    // Not `lines`, which takes a carriage return away: the others stay as they are.
    let others = kept.unwrap_or(SETTINGS).trim_end_matches('\n').split('\n');
    for other in others.filter(|line| default_of(line).is_none()) {
        new.push_str(other);
        new.push('\n');
    }
    let length = new.len().max(kept.map_or(0, str::len)).next_multiple_of(SECTOR);
    if length > LIMIT {
        return Err(LoaderConfError::TooLong { found: length });
    }
    let mut new = new.into_bytes();
    new.resize(length, b'\n');
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Option<String> {
        parse_default(text.as_bytes()).unwrap()
    }

    #[test]
    fn default_is_read_as_the_loader_reads_it() {
        for (text, default) in [
            ("", None),
            ("\n\n", None),
            ("timeout 0\n", None),
            ("default\n", None),
            ("default a.efi", Some("a.efi")),
            ("default\ta.efi\r\n", Some("a.efi")),
            (" default \t a.efi \n#default b.efi\n", Some("a.efi")),
            ("default a.efi\ndefault b.efi\n", Some("b.efi")),
            ("default \"a b.efi\"\n", Some("a b.efi")),
            ("defaults a.efi\n", None),
        ] {
            assert_eq!(parsed(text).as_deref(), default, "{text:?}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error_and_is_made_anew() {
        for (broken, error) in [
            (vec![0; 60], LoaderConfError::NoText { offset: 0 }),
            (b"default a\xff".to_vec(), LoaderConfError::NoText { offset: 9 }),
            (vec![b'\n'; LIMIT + 1], LoaderConfError::TooLong { found: LIMIT + 1 }),
        ] {
            assert_eq!(parse_default(&broken), Err(error));
            assert_eq!(with_default(Some(&broken), "a.efi"), with_default(None, "a.efi"));
        }
        let new = String::from_utf8(with_default(None, "a.efi").unwrap()).unwrap();
        assert_eq!(new.trim_end(), "default a.efi\ntimeout 0\neditor no\nauto-entries no");
        assert_eq!(new.len(), SECTOR);
        assert_eq!(with_default(Some(b"\n"), "a.efi"), with_default(None, "a.efi"), "empty is broken too");
    }

    #[test]
    fn other_lines_stay_and_the_length_never_shrinks() {
        let old =
            format!("# hand-made\ntimeout 3\ndefault b.efi\n\ndefault c.efi\nbeep 1{}", "\n".repeat(600));
        let new = with_default(Some(old.as_bytes()), "a.efi").unwrap();
        assert_eq!(new.len(), 2 * SECTOR);
        let new = String::from_utf8(new).unwrap();
        assert_eq!(new.trim_end(), "default a.efi\n# hand-made\ntimeout 3\n\nbeep 1");
        let again = with_default(Some(new.as_bytes()), "sps-slot-2.efi").unwrap();
        assert_eq!(again.len(), new.len());
        for value in ["", " a", "a ", "a\nb", "a\0", "\"a\"", "#a"] {
            let error = LoaderConfError::Value { value: value.to_owned() };
            assert_eq!(with_default(None, value), Err(error));
        }
    }

    /// Found by the fuzz target `loader_conf`: each setting took one carriage return away.
    #[test]
    fn carriage_returns_of_other_lines_stay() {
        let once = with_default(Some(b"timeout 3\r\r\nbeep 1\r\n"), "a.efi").unwrap();
        assert!(once.starts_with(b"default a.efi\ntimeout 3\r\r\nbeep 1\r\n\n"));
        assert_eq!(with_default(Some(&once), "a.efi").unwrap(), once);
        // Of what becomes the last line, too.
        let once = with_default(Some(b"timeout 3\r\ndefault b.efi\n"), "a.efi").unwrap();
        assert_eq!(with_default(Some(&once), "a.efi").unwrap(), once);
    }

    proptest! {
        #[test]
        fn what_is_set_is_read(old in proptest::collection::vec(any::<u8>(), 0..200), value in "[!$-~]{1,40}") {
            let new = with_default(Some(&old), &value).unwrap();
            prop_assert_eq!(parse_default(&new).unwrap(), Some(value));
        }

        #[test]
        fn setting_twice_is_setting_once(old in "[a-z #\n\t]{0,200}") {
            let once = with_default(Some(old.as_bytes()), "a.efi").unwrap();
            prop_assert_eq!(with_default(Some(&once), "a.efi").unwrap(), once);
        }
    }
}
