//! The ISO reader: one real image, every mutation by hand, and bytes that mean nothing.

use std::fs;
use std::process::Command;

use proptest::prelude::*;
use slotd::domain::iso::{Head, IsoError, MAX_HEAD, parse_head};
use slotd::domain::layout::{Extent, Part};

use super::iso_image::{FIRMWARE_AT, FIRST_FILE, Image, ROOT_AT, Record, SECTOR};

/// What an image turns out to be when it arrives `step` bytes at a time at least, as much as is asked for at most.
fn arrive(image: &[u8], available: Option<u64>, step: usize) -> Result<Head, IsoError> {
    let mut len = 0;
    loop {
        match parse_head(&image[..len], available)? {
            Head::Needs(needs) => {
                assert!(needs > len as u64, "{needs} bytes are asked for where {len} are there");
                assert!(needs <= MAX_HEAD);
                let needs = usize::try_from(needs).unwrap();
                if needs > image.len() {
                    return Ok(Head::Needs(needs as u64));
                }
                len = needs.min(len + step);
            }
            done @ Head::Complete(_) => return Ok(done),
        }
    }
}

fn refusal(image: &Image) -> IsoError {
    arrive(&image.render(), None, usize::MAX >> 1).unwrap_err()
}

fn index(image: &[u8]) -> slotd::domain::iso::Index {
    match arrive(image, None, usize::MAX >> 1) {
        Ok(Head::Complete(index)) => index,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_iso_of_xorriso_is_read_whatever_pieces_it_arrives_in() {
    let directory = tempfile::tempdir().unwrap();
    let stage = directory.path().join("FIRMWARE");
    fs::create_dir(&stage).unwrap();
    let names = [
        "manifest.json",
        "manifest.p7s",
        "notes.md",
        "news.md",
        "root.verity",
        "boot.efi",
        "recovery.efi",
        "files.ndjson.zst",
        "root.erofs",
    ];
    let iso = directory.path().join("a.iso");
    let mut tool = Command::new("xorriso");
    tool.args(["-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-U", "-o"]).arg(&iso);
    for (number, name) in names.iter().enumerate() {
        fs::write(stage.join(name), format!("{number}{name}").repeat(1000 * number + 1)).unwrap();
        tool.args(["--sort-weight", &(1000 - number).to_string(), &format!("/FIRMWARE/{name}")]);
    }
    let out = tool.arg("-graft-points").arg(format!("/FIRMWARE={}", stage.display())).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let image = fs::read(&iso).unwrap();
    let length = image.len() as u64;

    let found = index(&image);
    assert_eq!(found.parts.len(), names.len());
    for (name, (part, extent)) in names.iter().zip(&found.parts) {
        assert_eq!(part.name(), *name);
        let bytes = &image[usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap()];
        assert_eq!(bytes, fs::read(stage.join(name)).unwrap(), "{name}");
    }
    assert!(found.volume <= length && found.payload_end() <= found.volume);
    for step in [1, 7, 2047, 2048, 4096] {
        assert_eq!(arrive(&image, None, step), Ok(Head::Complete(found.clone())), "{step} at a time");
    }
    // The file that holds it is as long as it says, or it is refused at once.
    let end = found.payload_end();
    assert!(matches!(arrive(&image, Some(end), 4096), Ok(Head::Complete(_))));
    match arrive(&image, Some(end - 1), 4096) {
        Err(IsoError::Truncated { name, end: at, available }) => {
            assert_eq!((name, at, available), ("root.erofs", end, end - 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_image_by_hand_is_read() {
    let found = index(&Image::new().render());
    let first = u64::from(FIRST_FILE) * 2048;
    assert_eq!(found.get(Part::Manifest), Some(Extent { offset: first, size: 2048 }));
    assert_eq!(found.get(Part::Root), Some(Extent { offset: first + 5 * 2048, size: 2048 }));
    assert_eq!(found.get(Part::Boot), None);
    assert_eq!(found.payload_end(), found.volume);
}

#[test]
fn names_may_carry_a_version_number() {
    let mut image = Image::new();
    for file in &mut image.files {
        file.name.extend_from_slice(b";1");
    }
    assert_eq!(index(&image.render()), index(&Image::new().render()));
    image.files[0].name = b"manifest.json;2".to_vec();
    assert!(matches!(refusal(&image), IsoError::Unexpected { .. }));
}

#[test]
fn numbers_in_both_byte_orders_must_agree() {
    let volume = 16 * SECTOR;
    let manifest = FIRMWARE_AT + 34 + 34;
    let cases = [
        (volume + 80, 8, "volume space size"),
        (volume + 128, 4, "logical block size"),
        (volume + 156 + 2, 8, "location of extent"),
        (volume + 156 + 10, 8, "data length"),
        (volume + 156 + 28, 4, "volume sequence number"),
        (ROOT_AT + 68 + 2, 8, "location of extent"),
        (ROOT_AT + 68 + 10, 8, "data length"),
        (manifest + 2, 8, "location of extent"),
        (manifest + 10, 8, "data length"),
        (manifest + 28, 4, "volume sequence number"),
    ];
    for (at, length, name) in cases {
        for byte in at..at + length {
            let mut image = Image::new().render();
            image[byte] ^= 0x10;
            match parse_head(&image, None) {
                Err(IsoError::BothEndian { at: found, field, little, big }) => {
                    assert_eq!((found, field), (at as u64, name));
                    assert_ne!(little, big);
                }
                other => panic!("byte {byte} ({name}): {other:?}"),
            }
        }
    }
}

#[test]
fn fields_that_the_format_fixes_are_checked() {
    let manifest = FIRMWARE_AT + 68;
    let cases = [
        (16 * SECTOR + 128, vec![0, 16, 16, 0], "logical block size"),
        (manifest + 1, vec![1], "extended attribute record length"),
        (manifest + 26, vec![1], "file unit size"),
        (manifest + 27, vec![1], "interleave gap size"),
        (manifest + 32, vec![0], "length of file identifier"),
        (manifest + 32, vec![200], "length of file identifier"),
        // Found by the fuzz target `iso`: what lay behind so short a record was taken for its fields.
        (manifest, vec![1], "length of directory record"),
        (manifest, vec![33], "length of directory record"),
    ];
    for (at, bytes, name) in cases {
        let mut image = Image::new().render();
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        match parse_head(&image, None) {
            Err(IsoError::Field { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn zeros_to_the_end_of_a_sector_are_skipped() {
    // The files' records lie in the second sector of the directory.
    let mut image = Image::new();
    image.volume += 1;
    for file in &mut image.files {
        file.sector += 1;
    }
    let mut bytes = image.render();
    bytes.resize(FIRMWARE_AT + 2 * SECTOR, 0);
    let directory = Record { name: b"FIRMWARE".to_vec(), sector: 20, size: 4096, flags: 2 }.bytes();
    bytes[ROOT_AT + 68..ROOT_AT + 68 + directory.len()].copy_from_slice(&directory);
    bytes.copy_within(FIRMWARE_AT + 68..FIRMWARE_AT + SECTOR, FIRMWARE_AT + SECTOR);
    bytes[FIRMWARE_AT + 68..FIRMWARE_AT + SECTOR].fill(0);
    assert_eq!(index(&bytes).parts, index(&image.render()).parts);
    // In front of the directory's new end nothing may lie.
    let mut early = Image::new();
    early.volume += 1;
    let first = early.files[0].bytes();
    bytes[FIRMWARE_AT + SECTOR..][..first.len()].copy_from_slice(&first);
    assert!(matches!(parse_head(&bytes, None), Err(IsoError::Order { name: "manifest.json", .. })));
}

#[test]
fn a_record_may_not_cross_its_sector() {
    let mut image = Image::new().render();
    let last = FIRMWARE_AT + SECTOR - 34;
    let mut at = FIRMWARE_AT + 68;
    // Entries that name the directory itself fill the sector but for 34 bytes, of which the last record wants 36.
    let filler = Record { name: vec![0], sector: 20, size: 2048, flags: 2 }.bytes();
    while at < last {
        let length = (last - at).min(254);
        image[at..at + length].fill(0);
        image[at..at + filler.len()].copy_from_slice(&filler);
        image[at] = u8::try_from(length).unwrap();
        at += length;
    }
    image[last..].fill(0);
    image[last] = 36;
    match parse_head(&image, None) {
        Err(IsoError::Field { at, field: "length of directory record", found: 36, .. }) => {
            assert_eq!(at, last as u64);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_come_in_their_order_without_overlap_and_within_the_volume() {
    let mut swapped = Image::new();
    (swapped.file("notes.md").sector, swapped.file("root.verity").sector) = (FIRST_FILE + 3, FIRST_FILE + 2);
    assert!(matches!(refusal(&swapped), IsoError::Order { name: "root.verity", .. }));
    let mut overlap = Image::new();
    overlap.file("notes.md").size = 2049;
    assert!(matches!(refusal(&overlap), IsoError::Order { name: "root.verity", .. }));
    for sector in [0, 16, 18, 20] {
        let mut early = Image::new();
        early.file("manifest.json").sector = sector;
        assert!(matches!(refusal(&early), IsoError::Order { name: "manifest.json", .. }), "{sector}");
    }
    let mut past = Image::new();
    past.file("root.erofs").size = 2049;
    assert!(matches!(refusal(&past), IsoError::Truncated { name: "root.erofs", .. }));
    let mut far = Image::new();
    (far.file("root.erofs").sector, far.file("root.erofs").size) = (u32::MAX, u32::MAX);
    assert!(matches!(refusal(&far), IsoError::Truncated { name: "root.erofs", .. }));
    let mut short = Image::new();
    short.volume -= 1;
    assert!(matches!(refusal(&short), IsoError::Truncated { name: "root.erofs", .. }));
    // An empty file has no place, so it cannot be in a wrong one.
    let mut empty = Image::new();
    (empty.file("notes.md").sector, empty.file("notes.md").size) = (0, 0);
    assert_eq!(index(&empty.render()).get(Part::Notes).map(|e| e.size), Some(0));
}

#[test]
fn what_is_missing_double_or_foreign_is_named() {
    for name in ["manifest.json", "notes.md", "root.verity", "files.ndjson.zst", "root.erofs"] {
        let mut image = Image::new();
        image.files.retain(|r| r.name != name.as_bytes());
        assert_eq!(refusal(&image), IsoError::Missing(name));
    }
    let mut unsigned = Image::new();
    unsigned.files.retain(|r| r.name != b"manifest.p7s");
    assert_eq!(refusal(&unsigned), IsoError::Unsigned);
    let base = Image::new();
    let foreign = [
        Record::new("manifest.json", 30, 1),
        Record::new("passwd", 30, 1),
        Record::new("MANIFEST.JSON", 30, 1),
        Record::new("../notes.md", 30, 1),
        Record { flags: 2, ..Record::new("news.md", 30, 1) },
        Record { flags: 4, ..Record::new("news.md", 30, 1) },
        Record { name: vec![0xff, 0xfe], ..Record::new("", 30, 1) },
    ];
    for record in foreign {
        let mut image = base.clone();
        image.files.push(record.clone());
        match refusal(&image) {
            IsoError::Unexpected { at, name } => {
                assert!(at >= FIRMWARE_AT as u64 + 68);
                assert_eq!(name, String::from_utf8_lossy(&record.name));
            }
            other => panic!("{record:?}: {other}"),
        }
    }
    let mut renamed = Image::new().render();
    renamed[ROOT_AT + 68 + 33] = b'X';
    assert_eq!(parse_head(&renamed, None), Err(IsoError::Missing("/FIRMWARE")));
}

#[test]
fn a_file_of_several_extents_is_one_run_or_refused() {
    let split = |gap: u32, first_size: u32, flags: [u8; 2], second: &str| {
        let mut image = Image::new();
        let sector = image.file("root.erofs").sector;
        *image.file("root.erofs") =
            Record { flags: flags[0], ..Record::new("root.erofs", sector, first_size) };
        image.files.push(Record { flags: flags[1], ..Record::new(second, sector + 2 + gap, 100) });
        image.volume += 10;
        image
    };
    let whole = index(&split(0, 4096, [0x80, 0], "root.erofs").render());
    let place = whole.get(Part::Root).unwrap();
    assert_eq!(place, Extent { offset: u64::from(FIRST_FILE + 5) * 2048, size: 4196 });
    for (what, image) in [
        ("a gap", split(1, 4096, [0x80, 0], "root.erofs")),
        ("part of a sector in the middle", split(0, 4000, [0x80, 0], "root.erofs")),
        ("no mark that more follows", split(0, 4096, [0, 0], "root.erofs")),
        ("another file in between", split(0, 4096, [0x80, 0], "news.md")),
        ("no last extent", split(0, 4096, [0x80, 0x80], "root.erofs")),
    ] {
        assert!(matches!(refusal(&image), IsoError::Unexpected { .. }), "{what}");
    }
}

#[test]
fn directories_and_descriptors_have_limits() {
    let at = 16 * SECTOR;
    let far = |sector: u32, size: u32| {
        let mut image = Image::new().render();
        let root = Record { name: vec![0], sector, size, flags: 2 }.bytes();
        image[at + 156..at + 156 + root.len()].copy_from_slice(&root);
        parse_head(&image, None)
    };
    assert_eq!(far(511, 2048), Ok(Head::Needs(MAX_HEAD)));
    assert!(matches!(far(512, 2048), Err(IsoError::DirectoryTooFar(_))));
    assert!(matches!(far(18, 65537), Err(IsoError::DirectoryTooFar(_))));
    assert!(matches!(far(u32::MAX, u32::MAX), Err(IsoError::DirectoryTooFar(_))));
    assert_eq!(far(18, 0), Err(IsoError::Missing("/FIRMWARE")));
    let mut image = Image::new().render();
    for (byte, value) in [(at + 1, b'X'), (at, 255)] {
        let mut none = image.clone();
        none[byte] = value;
        assert_eq!(parse_head(&none, None), Err(IsoError::NoVolume(at as u64)));
    }
    // A primary descriptor that comes too late is none.
    image = vec![0; 33 * SECTOR];
    for sector in 16..33 {
        image[sector * SECTOR..][..6].copy_from_slice(b"\x02CD001");
    }
    image[32 * SECTOR] = 1;
    assert_eq!(parse_head(&image, None), Err(IsoError::NoVolume(at as u64)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0_usize..60_000) {
        let mut image = Image::new().render();
        let at = at.min(image.len() - 1);
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
        let _ = arrive(&image, None, 4096);
        let _ = arrive(&bytes, Some(bytes.len() as u64), 1);
    }

    #[test]
    fn a_changed_byte_gives_the_same_places_or_a_refusal_but_never_overlap(
        changes in prop::collection::vec((16 * SECTOR..FIRMWARE_AT + SECTOR, any::<u8>()), 1..6),
    ) {
        let mut image = Image::new().render();
        for (at, value) in changes {
            image[at] = value;
        }
        if let Ok(Head::Complete(index)) = arrive(&image, None, usize::MAX >> 1) {
            let placed: Vec<Extent> =
                index.parts.iter().map(|(_, extent)| *extent).filter(|e| e.size > 0).collect();
            prop_assert!(placed.windows(2).all(|pair| pair[0].end() <= pair[1].offset));
            prop_assert!(placed.iter().all(|e| e.end() <= index.volume && e.offset >= 19 * 2048));
        }
    }
}
