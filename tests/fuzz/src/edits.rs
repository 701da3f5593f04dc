//! Structured damage: edits that a fuzzer can combine, on any bytes and on ISO 9660 images.

use arbitrary::Arbitrary;
use system_tests::iso_writer::{DIRECTORY, SECTOR};

/// Longest run of bytes that one edit makes, moves or removes.
const RUN: usize = 8192;
/// Most edits of one case.
pub const MOST: usize = 12;

/// One edit. Places are taken modulo the length, so that every one is somewhere.
#[derive(Arbitrary, Clone, Debug)]
pub enum Edit {
    /// One bit.
    Flip(u32, u8),
    /// One byte.
    Set(u32, u8),
    /// Four bytes, little endian, at a multiple of four.
    Set32(u32, u32),
    /// Eight bytes, little endian, at a multiple of eight.
    Set64(u32, u64),
    /// Bytes that were not there.
    Insert(u32, Vec<u8>),
    /// Zeros.
    Zero(u32, u16),
    /// Bytes that go.
    Delete(u32, u16),
    /// Bytes from elsewhere over those that are there.
    Splice(u32, u32, u16),
    /// Bytes twice.
    Duplicate(u32, u16),
    /// The end.
    Truncate(u32),
}

impl Edit {
    /// Carries it out.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let Some(last) = bytes.len().checked_sub(1) else { return };
        let place = |at: u32| at as usize % (last + 1);
        let run = |at: u32, len: u16| place(at)..(place(at) + usize::from(len).min(RUN)).min(last + 1);
        match self {
            Self::Flip(at, bit) => bytes[place(*at)] ^= 1 << (bit % 8),
            Self::Set(at, value) => bytes[place(*at)] = *value,
            Self::Set32(at, value) => put(bytes, place(*at) / 4 * 4, &value.to_le_bytes()),
            Self::Set64(at, value) => put(bytes, place(*at) / 8 * 8, &value.to_le_bytes()),
            Self::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied().take(RUN));
            }
            Self::Zero(at, len) => bytes[run(*at, *len)].fill(0),
            Self::Delete(at, len) => drop(bytes.drain(run(*at, *len))),
            Self::Splice(from, to, len) => {
                let copied = bytes[run(*from, *len)].to_vec();
                put(bytes, place(*to), &copied);
            }
            Self::Duplicate(at, len) => {
                let run = run(*at, *len);
                let copied = bytes[run.clone()].to_vec();
                bytes.splice(run.start..run.start, copied);
            }
            Self::Truncate(at) => bytes.truncate(place(*at)),
        }
    }
}

/// One edit of an ISO. Directory entries are counted in `/FIRMWARE`, its own and its parent's included.
#[derive(Arbitrary, Clone, Debug)]
pub enum IsoEdit {
    /// Anywhere in the image.
    Anywhere(Edit),
    /// In descriptors and directories, byte counted from sector 16.
    Structures(u16, u8),
    /// A number of the volume descriptor, the same in both byte orders.
    Volume(u8, u32),
    /// Where an entry's extent begins, the same in both byte orders.
    Location(u8, u32),
    /// How long it is.
    Length(u8, u32),
    /// Its flags.
    Flags(u8, u8),
    /// Two entries change their extents.
    Swap(u8, u8),
    /// An entry has the extent of another one.
    Alias(u8, u8),
    /// A byte of a file: entry, byte, bit.
    Content(u8, u32, u8),
}

impl IsoEdit {
    /// Carries it out.
    pub fn apply(&self, image: &mut Vec<u8>) {
        let records = records(image);
        let record = |number: u8| records.get(usize::from(number) % records.len().max(1)).copied();
        let both = |image: &mut Vec<u8>, at: usize, value: u32| {
            put(image, at, &value.to_le_bytes());
            put(image, at + 4, &value.to_be_bytes());
        };
        match self {
            Self::Anywhere(edit) => edit.apply(image),
            Self::Structures(at, value) => {
                put(image, 16 * SECTOR + usize::from(*at) % (4 * SECTOR), &[*value]);
            }
            Self::Volume(field, value) => {
                let at = [80, 132, 158, 166][usize::from(*field) % 4];
                both(image, 16 * SECTOR + at, *value);
            }
            Self::Location(entry, value) => {
                if let Some(at) = record(*entry) {
                    both(image, at + 2, *value);
                }
            }
            Self::Length(entry, value) => {
                if let Some(at) = record(*entry) {
                    both(image, at + 10, *value);
                }
            }
            Self::Flags(entry, value) => {
                if let Some(at) = record(*entry) {
                    put(image, at + 25, &[*value]);
                }
            }
            Self::Swap(a, b) | Self::Alias(a, b) => {
                let (Some(a), Some(b)) = (record(*a), record(*b)) else { return };
                let extent = |at: usize| image.get(at + 2..at + 18).map(<[u8]>::to_vec).unwrap_or_default();
                let (first, second) = (extent(a), extent(b));
                put(image, a + 2, &second);
                if matches!(self, Self::Swap(..)) {
                    put(image, b + 2, &first);
                }
            }
            Self::Content(entry, byte, bit) => {
                let Some(at) = record(*entry) else { return };
                let (start, size) = (number(image, at + 2) as usize * SECTOR, number(image, at + 10).max(1));
                let at = start.saturating_add((byte % size) as usize);
                image.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
        }
    }
}

/// Overwrites what is there, as far as it is there.
pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..) {
        let len = place.len().min(new.len());
        place[..len].copy_from_slice(&new[..len]);
    }
}

/// Where the records of `/FIRMWARE` begin in an image of our writer, as long as its first sector can be walked.
fn records(image: &[u8]) -> Vec<usize> {
    let start = DIRECTORY as usize * SECTOR;
    let mut found = Vec::new();
    let mut at = start;
    while let Some(length) = image.get(at).filter(|length| **length >= 34 && at < start + SECTOR) {
        found.push(at);
        at += usize::from(*length);
    }
    found
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Copies the little-endian half of every number over the big-endian one, in the volume descriptor and the records
/// that it leads to: a fuzzer that changes one half alone would never come past their comparison.
pub fn agree(image: &mut [u8]) {
    let copy = |image: &mut [u8], at: usize, len: usize| {
        let half: Option<Vec<u8>> = image.get(at..at + len).map(|half| half.iter().rev().copied().collect());
        if let Some(half) = half {
            put(image, at + len, &half);
        }
    };
    let record = |image: &mut [u8], at: usize| {
        copy(image, at + 2, 4);
        copy(image, at + 10, 4);
        copy(image, at + 28, 2);
    };
    let descriptor = 16 * SECTOR;
    copy(image, descriptor + 80, 4);
    copy(image, descriptor + 128, 2);
    record(image, descriptor + 156);
    for sector in 17..24 {
        let mut at = sector * SECTOR;
        while let Some(length) = image.get(at).copied().filter(|length| *length >= 34) {
            record(image, at);
            at += usize::from(length);
        }
    }
}
