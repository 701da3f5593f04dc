//! Boot entries of the UEFI firmware: what a `Boot####` variable says, and what `BootOrder` should.
//!
//! Sources: UEFI specification 2.10, 3.1.3 (`EFI_LOAD_OPTION`), 3.3 (`BootOrder`: an array of 16-bit numbers), 10.3.5.1
//! (hard drive media device path), 10.3.5.4 (file path), 10.3.1 (end of a path). All numbers are little endian.

use std::collections::BTreeMap;

/// Vendor of the variables that the UEFI specification defines.
pub const VENDOR: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The variable with the numbers of the entries, in the order in which they are tried.
pub const ORDER: &str = "BootOrder";
/// Longest entry that is looked into, and longest order, in bytes, without attributes.
pub const LIMIT: usize = 4092;

/// The firmware tries an entry only with this attribute.
const ACTIVE: u32 = 1;
const DESCRIPTION_AT: usize = 6;
const UNIT: usize = size_of::<u16>();
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const HARD_DRIVE_LEN: u16 = 42;
/// Format and signature type of a GPT partition: both 2.
const GPT: [u8; 2] = [2, 2];

/// Why bytes are no boot entry or order, or nothing can be made into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadOptionError {
    /// Longer than any that is looked into.
    #[error("{found} bytes; expected at most {LIMIT}")]
    TooLong {
        /// Length in bytes.
        found: usize,
    },
    /// It ends within a field.
    #[error("byte {offset}: it ends within {field}")]
    TooShort {
        /// Where the field begins.
        offset: usize,
        /// Which.
        field: &'static str,
    },
    /// The text has half a surrogate pair.
    #[error("byte {offset}: not NUL-terminated UTF-16")]
    Text {
        /// Where it begins.
        offset: usize,
    },
    /// An order has half a number.
    #[error("an order of {found} bytes; expected 16-bit numbers")]
    OddLength {
        /// Length in bytes.
        found: usize,
    },
    /// No number is left for another entry.
    #[error("all 65,536 boot entries are in use")]
    Full,
}

/// A partition, as a boot entry names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Number in the GPT, from 1.
    pub number: u32,
    /// First logical block of the disk.
    pub start: u64,
    /// Logical blocks.
    pub size: u64,
    /// Unique GUID of the partition, as the GPT has it: the first three fields little endian.
    pub guid: [u8; 16],
}

/// One boot entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOption {
    /// `LOAD_OPTION_…` bits.
    pub attributes: u32,
    /// For people, in the firmware's menu.
    pub description: String,
    /// The device path, in bytes.
    pub path: Vec<u8>,
    /// What the program is given.
    pub optional: Vec<u8>,
}

impl LoadOption {
    /// An active entry that starts a file of a partition; `file` begins with a backslash, and so do its parts.
    pub fn of_file(description: &str, partition: &Partition, file: &str) -> Self {
        let mut path = vec![MEDIA, HARD_DRIVE];
        path.extend(HARD_DRIVE_LEN.to_le_bytes());
        path.extend(partition.number.to_le_bytes());
        path.extend(partition.start.to_le_bytes());
        path.extend(partition.size.to_le_bytes());
        path.extend(partition.guid);
        path.extend(GPT);
        let text = utf16(file);
        let length = u16::try_from(text.len().saturating_add(END.len())).unwrap_or(u16::MAX);
        path.extend([MEDIA, FILE_PATH]);
        path.extend(length.to_le_bytes());
        path.extend(text);
        path.extend(END);
        Self { attributes: ACTIVE, description: description.to_owned(), path, optional: Vec::new() }
    }

    /// Reads the content of a `Boot####` variable, without its attributes as a variable.
    pub fn parse(bytes: &[u8]) -> Result<Self, LoadOptionError> {
        if bytes.len() > LIMIT {
            return Err(LoadOptionError::TooLong { found: bytes.len() });
        }
        let short = |offset, field| LoadOptionError::TooShort { offset, field };
        let (attributes, rest) = bytes.split_first_chunk::<4>().ok_or(short(0, "the attributes"))?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(short(4, "the length of the path"))?;
        let units = rest.as_chunks::<UNIT>().0;
        let end = units.iter().position(|unit| *unit == [0, 0]);
        let end = end.ok_or(short(DESCRIPTION_AT, "the description"))?;
        let text = units.iter().take(end).map(|unit| u16::from_le_bytes(*unit));
        let description = char::decode_utf16(text).collect::<Result<String, _>>();
        let description = description.map_err(|_| LoadOptionError::Text { offset: DESCRIPTION_AT })?;
        let at = end.saturating_add(1).saturating_mul(UNIT);
        let rest = rest.get(at..).unwrap_or_default();
        let (path, optional) = rest
            .split_at_checked(usize::from(u16::from_le_bytes(*length)))
            .ok_or(short(DESCRIPTION_AT.saturating_add(at), "the path"))?;
        let attributes = u32::from_le_bytes(*attributes);
        Ok(Self { attributes, description, path: path.to_owned(), optional: optional.to_owned() })
    }

    /// The content of the variable.
    pub fn render(&self) -> Result<Vec<u8>, LoadOptionError> {
        let length = u16::try_from(self.path.len());
        let length = length.map_err(|_| LoadOptionError::TooLong { found: self.path.len() })?;
        let mut bytes = self.attributes.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(utf16(&self.description));
        bytes.extend(&self.path);
        bytes.extend(&self.optional);
        if bytes.len() > LIMIT {
            return Err(LoadOptionError::TooLong { found: bytes.len() });
        }
        Ok(bytes)
    }

    /// Whether it starts the same file as `other`, which is one of ours, whatever it is called. FAT knows no case.
    fn starts_as(&self, other: &Self) -> bool {
        self.attributes & ACTIVE != 0 && self.optional.is_empty() && same_path(&self.path, &other.path)
    }
}

/// Whether a path names the file that `ours` does: the same drive and, but for the case of ASCII letters, the same name. Firmware
/// may have put the way to the disk before it.
fn same_path(path: &[u8], ours: &[u8]) -> bool {
    let drive = usize::from(HARD_DRIVE_LEN);
    let at = path.len().checked_sub(ours.len());
    match (at.and_then(|at| path.get(at..)?.split_at_checked(drive)), ours.split_at_checked(drive)) {
        (Some((drive, name)), Some((our_drive, our_name))) => {
            drive == our_drive && name.eq_ignore_ascii_case(our_name)
        }
        _ => false,
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().filter(|unit| *unit != 0).chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// The number in the name of a `Boot####` variable.
pub fn number(variable: &str) -> Option<u16> {
    let digits = variable.strip_prefix("Boot").filter(|digits| digits.len() == 4)?;
    let upper = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    u16::from_str_radix(digits, 16).ok().filter(|_| upper)
}

/// The name of the variable with this number.
pub fn variable(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// Reads the content of `BootOrder`.
pub fn parse_order(bytes: &[u8]) -> Result<Vec<u16>, LoadOptionError> {
    if bytes.len() > LIMIT {
        return Err(LoadOptionError::TooLong { found: bytes.len() });
    }
    let (numbers, rest) = bytes.as_chunks::<UNIT>();
    if !rest.is_empty() {
        return Err(LoadOptionError::OddLength { found: bytes.len() });
    }
    Ok(numbers.iter().map(|number| u16::from_le_bytes(*number)).collect())
}

/// The content of `BootOrder`.
pub fn render_order(order: &[u16]) -> Vec<u8> {
    order.iter().copied().flat_map(u16::to_le_bytes).collect()
}

/// An entry that should be among the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is called; an entry with this name is ours and is replaced.
    pub description: &'static str,
    /// Files of which any will do; the first is what is written.
    pub files: Vec<String>,
}

/// What is to be written: first entries by number, then the order; each only where it is different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries.
    pub entries: Vec<(u16, LoadOption)>,
    /// The order.
    pub order: Option<Vec<u16>>,
}

/// What is to be written so that the wanted entries come first. Entries of others stay, behind them and in their order. `found` holds `None` for an entry that cannot be
/// read; its number is taken.
pub fn plan(
    found: &BTreeMap<u16, Option<LoadOption>>,
    order: &[u16],
    partition: &Partition,
    wanted: &[Wanted],
) -> Result<Plan, LoadOptionError> {
    let mut entries: Vec<(u16, LoadOption)> = Vec::new();
    let mut first: Vec<u16> = Vec::new();
    for want in wanted {
        let options: Vec<LoadOption> =
            want.files.iter().map(|file| LoadOption::of_file(want.description, partition, file)).collect();
        let Some(new) = options.first() else { continue };
        let known = |fits: &dyn Fn(&LoadOption) -> bool| {
            found
                .iter()
                .filter(|(number, _)| !first.contains(number))
                .find_map(|(number, entry)| entry.as_ref().filter(|entry| fits(entry)).map(|_| *number))
        };
        let ours = |entry: &LoadOption| entry.description == want.description;
        let good = |entry: &LoadOption| options.iter().any(|option| entry.starts_as(option));
        let there = known(&|entry| ours(entry) && good(entry)).or_else(|| known(&good));
        let number = if let Some(number) = there {
            number
        } else {
            let taken = |n: &u16| found.contains_key(n) || entries.iter().any(|(number, _)| number == n);
            let free = || (0..=u16::MAX).find(|n| !taken(n));
            let number = known(&ours).or_else(free).ok_or(LoadOptionError::Full)?;
            entries.push((number, new.clone()));
            number
        };
        first.push(number);
    }
    let others: Vec<u16> = order.iter().copied().filter(|number| !first.contains(number)).collect();
    let wanted_order: Vec<u16> = first.into_iter().chain(others).collect();
    let order = (wanted_order != order).then_some(wanted_order);
    Ok(Plan { entries, order })
}

#[cfg(test)]
mod tests;
