//! A tiny ISO 9660 (ECMA-119) writer: one directory, `/FIRMWARE`, with the given files in the given order.
//!
//! It knows nothing of what a firmware is, so that a test can also write an image that no builder would.

/// Logical block size in bytes.
pub const SECTOR: usize = 2048;
/// Sector of the root directory.
pub const ROOT_DIRECTORY: u32 = 18;
/// Sector of `/FIRMWARE`.
pub const DIRECTORY: u32 = 19;
const LITTLE_PATH_TABLE: u32 = 20;
const BIG_PATH_TABLE: u32 = 21;
/// Sector of the first file.
pub const FIRST_FILE: u32 = 22;
/// Flag of a directory.
pub const IS_DIRECTORY: u8 = 2;

/// An image whose `/FIRMWARE` holds `files` (name, content), one after the other from [`FIRST_FILE`] on. Names are
/// written as they are. All records of the directory must fit in one sector: about 40 short names.
pub fn write(files: &[(&str, &[u8])]) -> Vec<u8> {
    let named: Vec<(&[u8], &[u8])> =
        files.iter().map(|(name, content)| (name.as_bytes(), *content)).collect();
    write_named(&named)
}

/// The same with names that need not be text.
pub fn write_named(files: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut image = vec![0; FIRST_FILE as usize * SECTOR];
    let mut listing = own_and_parent(DIRECTORY);
    for (name, content) in files {
        let (name, content) = (name.as_ref(), content.as_ref());
        let at = u32::try_from(image.len() / SECTOR).unwrap_or(u32::MAX);
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        listing.extend(record(name, at, size, 0));
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    let mut root = own_and_parent(ROOT_DIRECTORY);
    root.extend(record(b"FIRMWARE", DIRECTORY, 2048, IS_DIRECTORY));
    let sectors = u32::try_from(image.len() / SECTOR).unwrap_or(u32::MAX);
    let mut put = |sector: u32, bytes: &[u8]| {
        let at = sector as usize * SECTOR;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, &volume_descriptor(sectors));
    put(17, b"\xffCD001\x01");
    put(ROOT_DIRECTORY, &root);
    put(DIRECTORY, &listing);
    put(LITTLE_PATH_TABLE, &path_table(u32::to_le_bytes, u16::to_le_bytes));
    put(BIG_PATH_TABLE, &path_table(u32::to_be_bytes, u16::to_be_bytes));
    image
}

/// A number in both byte orders (ECMA-119 7.3.3).
fn both32(n: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes[4..].copy_from_slice(&n.to_be_bytes());
    bytes
}

/// The same for 16 bits (7.2.3).
fn both16(n: u16) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes[..2].copy_from_slice(&n.to_le_bytes());
    bytes[2..].copy_from_slice(&n.to_be_bytes());
    bytes
}

/// A directory record (9.1), dated at the start of 2026: `size` bytes from `sector` on.
pub fn record(name: &[u8], sector: u32, size: u32, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both32(sector));
    bytes.extend(both32(size));
    bytes.extend([126, 1, 1, 0, 0, 0, 0, flags, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(u8::try_from(name.len()).unwrap_or(0));
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = u8::try_from(bytes.len()).unwrap_or(0);
    bytes
}

/// The first two records of a directory at `sector` whose parent is the root.
pub fn own_and_parent(sector: u32) -> Vec<u8> {
    let mut bytes = record(&[0], sector, 2048, IS_DIRECTORY);
    bytes.extend(record(&[1], ROOT_DIRECTORY, 2048, IS_DIRECTORY));
    bytes
}

/// A path table (9.4): the root and `/FIRMWARE`.
fn path_table(four: fn(u32) -> [u8; 4], two: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, sector) in [(&b"\0"[..], ROOT_DIRECTORY), (b"FIRMWARE", DIRECTORY)] {
        bytes.extend([u8::try_from(name.len()).unwrap_or(0), 0]);
        bytes.extend(four(sector));
        bytes.extend(two(1));
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
    }
    bytes
}

/// The primary volume descriptor (8.4).
fn volume_descriptor(sectors: u32) -> [u8; SECTOR] {
    let mut block = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let blank = [b' '; 37 + 128 * 4];
    put(8, &blank[..64]);
    put(190, &blank[..128 * 4]);
    put(702, &blank[..37 * 3]);
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000\0");
    }
    put(0, b"\x01CD001\x01");
    put(40, b"SPS_FIRMWARE");
    put(80, &both32(sectors));
    put(120, &both16(1));
    put(124, &both16(1));
    put(128, &both16(2048));
    put(132, &both32(path_table(u32::to_le_bytes, u16::to_le_bytes).len().try_into().unwrap_or(0)));
    put(140, &LITTLE_PATH_TABLE.to_le_bytes());
    put(148, &BIG_PATH_TABLE.to_be_bytes());
    put(156, &record(&[0], ROOT_DIRECTORY, 2048, IS_DIRECTORY));
    put(881, &[1]);
    block
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn stock_tools_read_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let iso = dir.path().join("a.iso");
        let long = vec![7; 5000];
        fs::write(&iso, write(&[("manifest.json", b"{}"), ("root.erofs", &long)])).unwrap();
        let out = Command::new("xorriso")
            .args(["-no_rc", "-osirrox", "on", "-indev"])
            .arg(&iso)
            .args(["-extract", "/"])
            .arg(dir.path().join("out"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let read = |name: &str| fs::read(dir.path().join("out/FIRMWARE").join(name)).unwrap();
        assert_eq!(read("manifest.json"), b"{}");
        assert_eq!(read("root.erofs"), long);
    }
}
