//! Just enough of ISO 9660 (ECMA-119) to find the payloads of a firmware ISO while it arrives.
//!
//! The reader is strict: every field that is stored in both byte orders must agree, extents may not overlap, lie
//! outside the volume or come in another order than the format's, and what is not of the format is refused. Boot
//! records, Joliet and Rock Ridge are not looked at.

use super::layout::{Extent, Part};
use super::manifest::{MANIFEST_NAME, PAYLOAD_ORDER, SIGNATURE_NAME};

/// How far into the image the directories must have ended, in bytes. Bounds what is held before anything is trusted.
pub const MAX_HEAD: u64 = 1 << 20;
/// Logical block size, the only one this reader takes.
pub const SECTOR: u64 = 2048;

const FIRST_DESCRIPTOR: u64 = 16;
const MAX_DESCRIPTORS: u64 = 16;
const MAX_DIRECTORY: u64 = 64 << 10;
/// A directory record with a name of one byte.
const SHORTEST_RECORD: u64 = 34;
const DIRECTORY: u8 = 0x02;
const ASSOCIATED: u8 = 0x04;
const MULTI_EXTENT: u8 = 0x80;

/// Where the payloads lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The files of `/FIRMWARE`, in the order in which they arrive.
    pub parts: Vec<(Part, Extent)>,
    /// Length of the volume in bytes.
    pub volume: u64,
}

impl Index {
    /// The place of a part on the ISO.
    pub fn get(&self, part: Part) -> Option<Extent> {
        self.parts.iter().find(|(p, _)| *p == part).map(|(_, extent)| *extent)
    }

    /// Where the last payload ends; whatever follows is not looked at.
    pub fn payload_end(&self) -> u64 {
        self.parts.iter().map(|(_, extent)| extent.end()).max().unwrap_or(0)
    }
}

/// Why bytes are no firmware ISO. Offsets are bytes from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsoError {
    /// No primary volume descriptor.
    #[error("no ISO 9660 volume at byte {0}")]
    NoVolume(u64),
    /// A field of the volume descriptor or of a directory record has a value that the format does not allow.
    #[error("byte {at}: {field} is {found}; expected {expected}")]
    Field {
        /// Offset.
        at: u64,
        /// Field, in ECMA-119's words.
        field: &'static str,
        /// What is there.
        found: u64,
        /// What may be there.
        expected: &'static str,
    },
    /// The two byte orders of a number disagree.
    #[error("byte {at}: {field} is {little} in little-endian and {big} in big-endian")]
    BothEndian {
        /// Offset.
        at: u64,
        /// Field.
        field: &'static str,
        /// Little-endian value.
        little: u32,
        /// Big-endian value.
        big: u32,
    },
    /// A directory lies behind [`MAX_HEAD`].
    #[error(
        "directory at byte {0} lies behind the first {MAX_HEAD} bytes; the image was not built for verification while it arrives"
    )]
    DirectoryTooFar(u64),
    /// `/FIRMWARE` or a file of it is missing.
    #[error("{0} is missing{note}", note = if *.0 == SIGNATURE_NAME { ", so it is not signed" } else { "" })]
    Missing(&'static str),
    /// A firmware ISO without its signature.
    #[error("{SIGNATURE_NAME} is missing: the image is not signed")]
    Unsigned,
    /// A name that the format does not have, or has once only.
    #[error("byte {at}: unexpected or repeated entry {name:?} in /FIRMWARE")]
    Unexpected {
        /// Offset of the record.
        at: u64,
        /// The name.
        name: String,
    },
    /// Two extents share bytes, or come in the wrong order.
    #[error("{name} at byte {offset} does not follow what comes before it (which ends at byte {before})")]
    Order {
        /// File.
        name: &'static str,
        /// Where it begins.
        offset: u64,
        /// Where its predecessor ends.
        before: u64,
    },
    /// An extent ends behind the volume, or the file that holds the volume is shorter.
    #[error("truncated: {name} ends at byte {end}, but the image has {available} bytes")]
    Truncated {
        /// File.
        name: &'static str,
        /// Where it should end.
        end: u64,
        /// What there is.
        available: u64,
    },
}

/// What a look at the first bytes of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The first so many bytes are needed; never more than [`MAX_HEAD`].
    Needs(u64),
    /// Everything was found.
    Complete(Index),
}

/// Looks at `head`, the first bytes of an image of `available` bytes (where that is known). Call it again with more
/// bytes while it answers [`Head::Needs`].
pub fn parse_head(head: &[u8], available: Option<u64>) -> Result<Head, IsoError> {
    let at = match primary_volume(head)? {
        Ok(at) => at,
        Err(needed) => return Ok(Head::Needs(needed)),
    };
    let reader = Reader { head, base: at };
    reader.expect(
        128,
        "logical block size",
        u64::from(reader.both16(128, "logical block size")?),
        SECTOR,
        "2048",
    )?;
    let volume = u64::from(reader.both32(80, "volume space size")?) * SECTOR;
    let root = Record::parse(head, at + 156)?;
    let mut floor = (FIRST_DESCRIPTOR + MAX_DESCRIPTORS).min(at / SECTOR + 1) * SECTOR;
    let mut directory = root.extent;
    for name in ["the root directory", "/FIRMWARE"] {
        let end = directory.end();
        if end > MAX_HEAD || directory.size > MAX_DIRECTORY {
            return Err(IsoError::DirectoryTooFar(directory.offset));
        }
        if (head.len() as u64) < end {
            return Ok(Head::Needs(end));
        }
        floor = floor.max(end);
        let records = records(head, directory)?;
        if name == "/FIRMWARE" {
            return index(&records, floor, volume, available).map(Head::Complete);
        }
        directory = records
            .iter()
            .find(|r| r.flags & DIRECTORY != 0 && r.name == b"FIRMWARE")
            .map(|r| r.extent)
            .ok_or(IsoError::Missing("/FIRMWARE"))?;
    }
    Err(IsoError::Missing("/FIRMWARE"))
}

/// Offset of the primary volume descriptor, or how many bytes are needed to find it.
fn primary_volume(head: &[u8]) -> Result<Result<u64, u64>, IsoError> {
    for number in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
        let at = number * SECTOR;
        if (head.len() as u64) < at + SECTOR {
            return Ok(Err(at + SECTOR));
        }
        let Some(start) = slice(head, at, 7) else { return Ok(Err(at + SECTOR)) };
        if start.get(1..6) != Some(b"CD001") {
            return Err(IsoError::NoVolume(at));
        }
        match start.first() {
            Some(1) => return Ok(Ok(at)),
            Some(255) => return Err(IsoError::NoVolume(at)),
            _ => {}
        }
    }
    Err(IsoError::NoVolume(FIRST_DESCRIPTOR * SECTOR))
}

/// The payloads in `/FIRMWARE`, checked for completeness, order and bounds.
fn index(records: &[Record], floor: u64, volume: u64, available: Option<u64>) -> Result<Index, IsoError> {
    let files = merge_extents(records)?;
    let mut parts = Vec::new();
    let mut before = floor;
    for name in [MANIFEST_NAME, SIGNATURE_NAME].into_iter().chain(PAYLOAD_ORDER) {
        let Some(file) = files.iter().find(|f| f.name == name.as_bytes()) else {
            if matches!(name, "news.md" | "boot.efi" | "recovery.efi") {
                continue;
            }
            return Err(if name == SIGNATURE_NAME { IsoError::Unsigned } else { IsoError::Missing(name) });
        };
        let extent = file.extent;
        if extent.size > 0 {
            if extent.offset < before {
                return Err(IsoError::Order { name, offset: extent.offset, before });
            }
            before = extent.end();
        }
        let available = available.map_or(volume, |available| available.min(volume));
        if extent.size > 0 && extent.end() > available {
            return Err(IsoError::Truncated { name, end: extent.end(), available });
        }
        if let Some(part) = Part::from_name(name) {
            parts.push((part, extent));
        }
    }
    Ok(Index { parts, volume })
}

/// Joins the records of multi-extent files and refuses what does not belong.
fn merge_extents(records: &[Record]) -> Result<Vec<Record>, IsoError> {
    let mut files: Vec<Record> = Vec::new();
    let mut open = false;
    for record in records.iter().filter(|r| r.name != [0] && r.name != [1]) {
        let unexpected = || IsoError::Unexpected {
            at: record.at,
            name: String::from_utf8_lossy(&record.name).into_owned(),
        };
        if record.flags & (DIRECTORY | ASSOCIATED) != 0 {
            return Err(unexpected());
        }
        let continues = open && files.last().is_some_and(|last| last.name == record.name);
        if continues {
            let Some(last) = files.last_mut() else { return Err(unexpected()) };
            if last.extent.size % SECTOR != 0 || last.extent.end() != record.extent.offset {
                return Err(unexpected());
            }
            last.extent.size = last.extent.size.saturating_add(record.extent.size);
        } else {
            let known = std::str::from_utf8(&record.name).ok().and_then(Part::from_name).is_some();
            if open || !known || files.iter().any(|f| f.name == record.name) {
                return Err(unexpected());
            }
            files.push(record.clone());
        }
        open = record.flags & MULTI_EXTENT != 0;
    }
    match files.last() {
        Some(last) if open => Err(IsoError::Unexpected {
            at: last.at,
            name: format!("{} without its last extent", String::from_utf8_lossy(&last.name)),
        }),
        _ => Ok(files),
    }
}

/// All records of a directory.
fn records(head: &[u8], directory: Extent) -> Result<Vec<Record>, IsoError> {
    let mut found = Vec::new();
    let mut at = directory.offset;
    while at < directory.end() {
        match slice(head, at, 1).and_then(|s| s.first()).copied() {
            None | Some(0) => at = (at / SECTOR + 1) * SECTOR,
            Some(length) => {
                let length = u64::from(length);
                if length < SHORTEST_RECORD {
                    let (field, expected) = ("length of directory record", "at least 34");
                    return Err(IsoError::Field { at, field, found: length, expected });
                }
                if at / SECTOR != (at + length - 1) / SECTOR || at + length > directory.end() {
                    let expected = "a record within its sector";
                    return Err(IsoError::Field {
                        at,
                        field: "length of directory record",
                        found: length,
                        expected,
                    });
                }
                found.push(Record::parse(head, at)?);
                at += length;
            }
        }
    }
    Ok(found)
}

/// A directory record (ECMA-119 9.1).
#[derive(Clone, Debug)]
struct Record {
    at: u64,
    name: Vec<u8>,
    flags: u8,
    extent: Extent,
}

impl Record {
    fn parse(head: &[u8], at: u64) -> Result<Self, IsoError> {
        let reader = Reader { head, base: at };
        let length = u64::from(reader.byte(0));
        let name_length = u64::from(reader.byte(32));
        if name_length == 0 || 33 + name_length > length {
            let (field, expected) = ("length of file identifier", "at least 1 and within its record");
            return Err(IsoError::Field { at: at + 32, field, found: name_length, expected });
        }
        reader.expect(1, "extended attribute record length", u64::from(reader.byte(1)), 0, "0")?;
        reader.expect(26, "file unit size", u64::from(reader.byte(26)), 0, "0")?;
        reader.expect(27, "interleave gap size", u64::from(reader.byte(27)), 0, "0")?;
        let offset = u64::from(reader.both32(2, "location of extent")?) * SECTOR;
        let size = u64::from(reader.both32(10, "data length")?);
        reader.both16(28, "volume sequence number")?;
        let name = slice(head, at + 33, name_length).unwrap_or_default();
        // A version number says nothing here: there is one version of each file.
        let name = name.strip_suffix(b";1").unwrap_or(name).to_vec();
        Ok(Self { at, name, flags: reader.byte(25), extent: Extent { offset, size } })
    }
}

fn slice(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(length).ok()?)?)
}

/// Reads fields of one structure.
struct Reader<'a> {
    head: &'a [u8],
    base: u64,
}

impl Reader<'_> {
    fn byte(&self, at: u64) -> u8 {
        slice(self.head, self.base + at, 1).and_then(|s| s.first()).copied().unwrap_or(0)
    }

    fn both32(&self, at: u64, field: &'static str) -> Result<u32, IsoError> {
        let bytes = slice(self.head, self.base + at, 8).unwrap_or(&[0; 8]);
        let (little, big) = bytes.split_at(4);
        let little = u32::from_le_bytes(little.try_into().unwrap_or_default());
        let big = u32::from_be_bytes(big.try_into().unwrap_or_default());
        if little != big {
            return Err(IsoError::BothEndian { at: self.base + at, field, little, big });
        }
        Ok(little)
    }

    fn both16(&self, at: u64, field: &'static str) -> Result<u16, IsoError> {
        let bytes = slice(self.head, self.base + at, 4).unwrap_or(&[0; 4]);
        let (little, big) = bytes.split_at(2);
        let little = u16::from_le_bytes(little.try_into().unwrap_or_default());
        let big = u16::from_be_bytes(big.try_into().unwrap_or_default());
        if little != big {
            let (little, big) = (u32::from(little), u32::from(big));
            return Err(IsoError::BothEndian { at: self.base + at, field, little, big });
        }
        Ok(little)
    }

    fn expect(
        &self,
        at: u64,
        field: &'static str,
        found: u64,
        want: u64,
        expected: &'static str,
    ) -> Result<(), IsoError> {
        if found == want {
            Ok(())
        } else {
            Err(IsoError::Field { at: self.base + at, field, found, expected })
        }
    }
}
