//! The GUIDs of the partitions in a GUID partition table.
//!
//! Source: UEFI specification 2.10, 5.3.2 (header) and 5.3.3 (entries). Only read: the table is never written after the
//! installation.

/// Longest table that is read, header and entries, in bytes: 128 entries of 128 bytes are usual.
pub const LIMIT: usize = 256 << 10;
const SIGNATURE: &[u8] = b"EFI PART";
const ENTRIES: u32 = 1024;
const ENTRY: std::ops::RangeInclusive<u32> = 128..=512;
/// Of an entry: its type, zero for an unused one, then its own GUID.
const TYPE: std::ops::Range<usize> = 0..16;
const GUID: std::ops::Range<usize> = 16..32;

/// Why bytes are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// No header in the second block.
    #[error("no GUID partition table in block 1")]
    NoHeader,
    /// The header describes no table that we read.
    #[error("{entries} entries of {size} bytes from block {start}: not a table of at most {LIMIT} bytes")]
    Shape {
        /// First block of the entries.
        start: u64,
        /// How many.
        entries: u32,
        /// Bytes of each.
        size: u32,
    },
    /// The bytes end before the table does.
    #[error("the partition table is cut short")]
    Short,
}

/// GUIDs of the partitions in use, in bytes. `head` is the start of the disk, `block` its logical block size.
pub fn partition_guids(head: &[u8], block: usize) -> Result<Vec<[u8; 16]>, GptError> {
    let header = head.get(block..).ok_or(GptError::Short)?;
    if !header.starts_with(SIGNATURE) {
        return Err(GptError::NoHeader);
    }
    let number = |at: usize| {
        let bytes = header.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let start = header.get(72..).and_then(|bytes| bytes.first_chunk::<8>()).ok_or(GptError::Short)?;
    let start = u64::from_le_bytes(*start);
    let (entries, size) = number(80).zip(number(84)).ok_or(GptError::Short)?;
    let shape = GptError::Shape { start, entries, size };
    if entries > ENTRIES || !ENTRY.contains(&size) {
        return Err(shape);
    }
    let begin = usize::try_from(start).ok().and_then(|start| start.checked_mul(block)).ok_or(shape)?;
    let (entries, size) = (entries as usize, size as usize);
    let end = begin.checked_add(entries.saturating_mul(size)).filter(|end| *end <= LIMIT).ok_or(shape)?;
    let table = head.get(begin..end).ok_or(GptError::Short)?;
    let used = table.chunks_exact(size).filter(|entry| entry.get(TYPE).is_some_and(|kind| kind != [0; 16]));
    Ok(used.filter_map(|entry| entry.get(GUID)?.first_chunk::<16>()).copied().collect())
}

/// The bytes of a GUID's text: its first three fields are little endian (UEFI 2.10, appendix A).
pub fn parse_guid(text: &str) -> Option<[u8; 16]> {
    let fields: Vec<&str> = text.split('-').collect();
    if fields.iter().map(|field| field.len()).ne([8, 4, 4, 4, 12]) {
        return None;
    }
    let mut guid: [u8; 16] = hex::decode(fields.concat()).ok()?.try_into().ok()?;
    let (first, rest) = guid.split_at_mut_checked(4)?;
    let (second, rest) = rest.split_at_mut_checked(2)?;
    first.reverse();
    second.reverse();
    rest.get_mut(..2)?.reverse();
    Some(guid)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    const SCRIPT: &str = "label: gpt\nsize=1MiB, uuid=0A1B2C3D-1111-4222-8333-445566778899, name=esp\n\
                          size=1MiB, uuid=FFEEDDCC-BBAA-4988-8776-655443322110, name=sps-slot-1\n";

    #[test]
    fn a_table_of_sfdisk_is_read() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(8 << 20).unwrap();
        let mut sfdisk = Command::new("/usr/sbin/sfdisk")
            .arg("--quiet")
            .arg(disk.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        sfdisk.stdin.take().unwrap().write_all(SCRIPT.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        let head = std::fs::read(disk.path()).unwrap();
        let expected = ["0a1b2c3d-1111-4222-8333-445566778899", "ffeeddcc-bbaa-4988-8776-655443322110"];
        let expected = expected.map(|guid| parse_guid(guid).unwrap());
        assert_eq!(partition_guids(&head, 512).unwrap(), expected);
        assert_eq!(partition_guids(&head, 4096), Err(GptError::NoHeader));
        assert_eq!(partition_guids(&head[..2048], 512), Err(GptError::Short));
        assert_eq!(partition_guids(&head[..500], 512), Err(GptError::Short));
        let mut broken = head;
        broken[512 + 80..512 + 84].fill(0xff);
        assert!(matches!(partition_guids(&broken, 512), Err(GptError::Shape { .. })));
    }

    proptest! {
        #[test]
        fn nothing_panics(mut head in prop::collection::vec(any::<u8>(), 0..4096), sign: bool) {
            if sign && head.len() > 520 {
                head[512..520].copy_from_slice(SIGNATURE);
            }
            let _ = partition_guids(&head, 512);
        }
    }
}
