//! A text variable of the Boot Loader Interface as efivarfs shows it: attributes, then UTF-16LE.
//!
//! Sources: kernel documentation `filesystems/efivarfs` (the first four bytes are the attributes, little endian); UEFI
//! specification 8.2 (attribute bits); systemd's Boot Loader Interface (names, vendor, NUL-terminated UTF-16).

/// Vendor of the Boot Loader Interface.
pub const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Started unless told otherwise.
pub const DEFAULT: &str = "LoaderEntryDefault";
/// Started once; the loader removes it before it starts that.
pub const ONE_SHOT: &str = "LoaderEntryOneShot";
/// GUID of the partition that the loader was started from; it sets this at every start.
pub const DEVICE: &str = "LoaderDevicePartUUID";
/// What the loader has started; it sets this at every start.
pub const STARTED: &str = "LoaderEntrySelected";
/// Kept without power, for the loader and for us: `NON_VOLATILE`, `BOOTSERVICE_ACCESS`, `RUNTIME_ACCESS`.
pub const ATTRIBUTES: u32 = 7;
/// Longest variable, attributes included, in bytes.
pub const LIMIT: usize = 4096;

const PREFIX: usize = size_of::<u32>();
const UNIT: usize = size_of::<u16>();

/// Why bytes are no text variable, or a text fits into none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EfivarError {
    /// Longer than any that the loader has.
    #[error("{found} bytes; a variable of the boot loader has at most {LIMIT}")]
    TooLong {
        /// Length in bytes, as far as it was read.
        found: usize,
    },
    /// Without attributes.
    #[error("{found} bytes; expected four bytes of attributes and UTF-16")]
    TooShort {
        /// Length in bytes.
        found: usize,
    },
    /// Half a UTF-16 unit.
    #[error("the text has an odd length of {found} bytes; expected UTF-16")]
    OddLength {
        /// Length in bytes, without the attributes.
        found: usize,
    },
    /// A surrogate without the other, or text after the terminator.
    #[error("byte {offset}: not NUL-terminated UTF-16")]
    Text {
        /// Where in the variable.
        offset: usize,
    },
    /// Text that a variable cannot carry.
    #[error("{text:?} cannot be stored: the loader reads text up to a NUL, and an empty one is none")]
    Unfit {
        /// The text.
        text: String,
    },
}

/// Name of the variable's file in efivarfs.
pub fn file_name(variable: &str) -> String {
    file_name_of(variable, VENDOR)
}

/// The same of a variable of another vendor.
pub fn file_name_of(variable: &str, vendor: &str) -> String {
    format!("{variable}-{vendor}")
}

/// The bytes of a variable with this text.
pub fn encode(text: &str) -> Result<Vec<u8>, EfivarError> {
    if text.is_empty() || text.contains('\0') {
        return Err(EfivarError::Unfit { text: text.to_owned() });
    }
    let mut bytes = ATTRIBUTES.to_le_bytes().to_vec();
    bytes.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    if bytes.len() > LIMIT {
        return Err(EfivarError::TooLong { found: bytes.len() });
    }
    Ok(bytes)
}

/// The text of a variable. Like the loader, whatever its attributes are, and with or without the terminator.
pub fn decode(bytes: &[u8]) -> Result<String, EfivarError> {
    if bytes.len() > LIMIT {
        return Err(EfivarError::TooLong { found: bytes.len() });
    }
    let Some((_, text)) = bytes.split_at_checked(PREFIX) else {
        return Err(EfivarError::TooShort { found: bytes.len() });
    };
    let (units, rest) = text.as_chunks::<UNIT>();
    if !rest.is_empty() {
        return Err(EfivarError::OddLength { found: text.len() });
    }
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    let units = units.strip_suffix(&[0]).unwrap_or(&units);
    let mut decoded = String::with_capacity(units.len());
    let mut offset = PREFIX;
    for character in char::decode_utf16(units.iter().copied()) {
        match character {
            Ok(character) if character != '\0' => {
                decoded.push(character);
                offset = offset.saturating_add(character.len_utf16().saturating_mul(UNIT));
            }
            _ => return Err(EfivarError::Text { offset }),
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by `efivar --write --attributes=7` (efivar 37, `EFIVARFS_PATH` on a directory).
    const SLOT_1: &str =
        "07000000 7300 7000 7300 2d00 7300 6c00 6f00 7400 2d00 3100 2e00 6500 6600 6900 0000";

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text.replace(' ', "")).unwrap()
    }

    #[test]
    fn text_is_what_the_stock_tool_writes() {
        assert_eq!(encode("sps-slot-1.efi").unwrap(), bytes(SLOT_1));
        assert_eq!(decode(&bytes(SLOT_1)).unwrap(), "sps-slot-1.efi");
    }

    #[test]
    fn what_is_no_text_is_an_error_with_its_place() {
        for (variable, expected) in [
            ("", EfivarError::TooShort { found: 0 }),
            ("070000", EfivarError::TooShort { found: 3 }),
            ("07000000 73", EfivarError::OddLength { found: 1 }),
            ("07000000 7300 7000 73", EfivarError::OddLength { found: 5 }),
            ("07000000 7300 00d8 7000 0000", EfivarError::Text { offset: 6 }),
            ("07000000 3cd8 89df 00dc 0000", EfivarError::Text { offset: 8 }),
            ("07000000 7300 0000 7000 0000", EfivarError::Text { offset: 6 }),
        ] {
            assert_eq!(decode(&bytes(variable)), Err(expected), "{variable}");
        }
        assert_eq!(decode(&bytes("06000000 7300")).unwrap(), "s", "no terminator, other attributes");
        assert_eq!(decode(&bytes("07000000 0000")).unwrap(), "");
        for text in ["", "a\0b", "\0"] {
            assert_eq!(encode(text), Err(EfivarError::Unfit { text: text.to_owned() }));
        }
    }

    #[test]
    fn length_is_limited_to_the_byte() {
        let longest = "x".repeat((LIMIT - PREFIX) / UNIT - 1);
        let encoded = encode(&longest).unwrap();
        assert_eq!(encoded.len(), LIMIT);
        assert_eq!(decode(&encoded).unwrap(), longest);
        assert_eq!(encode(&format!("{longest}x")), Err(EfivarError::TooLong { found: LIMIT + UNIT }));
        assert_eq!(decode(&[7; LIMIT + 1]), Err(EfivarError::TooLong { found: LIMIT + 1 }));
    }

    proptest! {
        #[test]
        fn text_reads_back(text in "[^\\x00]{1,64}") {
            prop_assert_eq!(decode(&encode(&text).unwrap()).unwrap(), text);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
