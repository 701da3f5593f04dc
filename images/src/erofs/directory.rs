//! Directory blocks: 12-byte entries in order of the names, then the names.

use super::error::Fault;
use super::source::{le16, le64};

const ENTRY: usize = 12;
const NAME_MAX: usize = 255;

/// The entries of one block, `.` and `..` left out: inode number and name. `last` is the greatest name so far,
/// and is moved on: names must rise strictly, or the kernel would not find them.
pub(super) fn parse(block: &[u8], last: &mut Vec<u8>) -> Result<Vec<(u64, Vec<u8>)>, Fault> {
    let names = usize::from(le16(block, 8));
    if names < ENTRY || !names.is_multiple_of(ENTRY) || names >= block.len() {
        return Err(Fault::Corrupt("a directory block's first name is misplaced", names as u64));
    }
    let mut found = Vec::with_capacity(names / ENTRY);
    for at in (0..names).step_by(ENTRY) {
        let start = usize::from(le16(block, at + 8));
        let is_last = at + ENTRY == names;
        let end = if is_last { block.len() } else { usize::from(le16(block, at + ENTRY + 8)) };
        let bad = Fault::Corrupt("a directory entry's name is misplaced", start as u64);
        let mut name = block.get(start..end).ok_or(bad)?;
        if is_last {
            name = name.split(|byte| *byte == 0).next().unwrap_or(name);
        }
        if start < names
            || name.is_empty()
            || name.len() > NAME_MAX
            || name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(bad);
        }
        if name <= last.as_slice() {
            return Err(Fault::Corrupt("directory entries are out of order", le64(block, at)));
        }
        last.clear();
        last.extend_from_slice(name);
        if !matches!(name, b"." | b"..") {
            found.push((le64(block, at), name.to_vec()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(names: &[&[u8]]) -> Vec<u8> {
        let mut offset = names.len() * ENTRY;
        let mut bytes = Vec::new();
        for (nid, name) in (40_u64..).zip(names) {
            bytes.extend(nid.to_le_bytes());
            bytes.extend(u16::try_from(offset).unwrap().to_le_bytes());
            bytes.extend([0, 0]);
            offset += name.len();
        }
        bytes.extend(names.concat());
        bytes
    }

    #[test]
    fn names_and_numbers_are_read_and_dots_left_out() {
        let mut bytes = block(&[b".", b"..", b"a", b"\xff\xfe"]);
        bytes.extend([0; 9]);
        let mut last = Vec::new();
        assert_eq!(parse(&bytes, &mut last).unwrap(), [(42, b"a".to_vec()), (43, b"\xff\xfe".to_vec())]);
        assert_eq!(last, b"\xff\xfe");
    }

    #[test]
    fn names_must_rise_and_be_names() {
        for names in [[&b"b"[..], b"a"], [b"a", b"a"], [b"a", b"b/c"], [b"a", b""], [b"a", &[b'x'; 256]]] {
            let found = parse(&block(&names), &mut Vec::new());
            assert!(matches!(found, Err(Fault::Corrupt(..))), "{names:?}: {found:?}");
        }
        assert!(parse(&block(&[b"a"]), &mut b"b".to_vec()).is_err(), "out of order between blocks");
        assert!(parse(&[], &mut Vec::new()).is_err());
        assert!(parse(&[0xff; 64], &mut Vec::new()).is_err());
    }
}
