//! ISO 9660 images by hand: the smallest that hold a firmware, every field free to be wrong.

pub(crate) const SECTOR: usize = 2048;
/// Where the root directory lies in [`Image::render`].
pub(crate) const ROOT_AT: usize = 18 * SECTOR;
/// Where `/FIRMWARE` lies.
pub(crate) const FIRMWARE_AT: usize = 20 * SECTOR;
/// Where the first file lies.
pub(crate) const FIRST_FILE: u32 = 21;

/// One directory record.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub name: Vec<u8>,
    pub sector: u32,
    pub size: u32,
    pub flags: u8,
}

impl Record {
    pub(crate) fn new(name: &str, sector: u32, size: u32) -> Self {
        Self { name: name.into(), sector, size, flags: 0 }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = (33 + self.name.len()).next_multiple_of(2);
        let mut bytes = vec![0; length];
        bytes[0] = u8::try_from(length).unwrap();
        bytes[2..6].copy_from_slice(&self.sector.to_le_bytes());
        bytes[6..10].copy_from_slice(&self.sector.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.size.to_le_bytes());
        bytes[14..18].copy_from_slice(&self.size.to_be_bytes());
        bytes[25] = self.flags;
        bytes[28..32].copy_from_slice(&[1, 0, 0, 1]);
        bytes[32] = u8::try_from(self.name.len()).unwrap();
        bytes[33..33 + self.name.len()].copy_from_slice(&self.name);
        bytes
    }
}

/// An image with one directory.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Records of `/FIRMWARE`, after the two of the directory itself and its parent.
    pub files: Vec<Record>,
    /// Length of the volume in sectors.
    pub volume: u32,
}

impl Image {
    /// The least that a firmware has, a sector for each file.
    pub(crate) fn new() -> Self {
        let names =
            ["manifest.json", "manifest.p7s", "notes.md", "root.verity", "files.ndjson.zst", "root.erofs"];
        let files = names.iter().zip(FIRST_FILE..).map(|(name, sector)| Record::new(name, sector, 2048));
        Self { files: files.collect(), volume: FIRST_FILE + 6 }
    }

    pub(crate) fn file(&mut self, name: &str) -> &mut Record {
        self.files.iter_mut().find(|r| r.name == name.as_bytes()).unwrap()
    }

    /// System area, volume descriptors and directories; the files themselves are not looked at.
    pub(crate) fn render(&self) -> Vec<u8> {
        let mut image = vec![0; FIRMWARE_AT + SECTOR];
        let primary = &mut image[16 * SECTOR..];
        primary[..7].copy_from_slice(b"\x01CD001\x01");
        primary[80..84].copy_from_slice(&self.volume.to_le_bytes());
        primary[84..88].copy_from_slice(&self.volume.to_be_bytes());
        primary[128..132].copy_from_slice(&[0, 8, 8, 0]);
        let directory = |name: &[u8], at: usize| Record {
            name: name.to_vec(),
            sector: u32::try_from(at / SECTOR).unwrap(),
            size: 2048,
            flags: 2,
        };
        let root = directory(&[0], ROOT_AT).bytes();
        primary[156..156 + root.len()].copy_from_slice(&root);
        image[17 * SECTOR..][..7].copy_from_slice(b"\xffCD001\x01");
        let entries =
            [directory(&[0], ROOT_AT), directory(&[1], ROOT_AT), directory(b"FIRMWARE", FIRMWARE_AT)];
        put(&mut image[ROOT_AT..], &entries);
        let mut entries = vec![directory(&[0], FIRMWARE_AT), directory(&[1], ROOT_AT)];
        entries.extend(self.files.iter().cloned());
        put(&mut image[FIRMWARE_AT..], &entries);
        image
    }
}

fn put(mut place: &mut [u8], records: &[Record]) {
    for record in records {
        let bytes = record.bytes();
        place[..bytes.len()].copy_from_slice(&bytes);
        place = &mut place[bytes.len()..];
    }
}
