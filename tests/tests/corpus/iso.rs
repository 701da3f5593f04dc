//! Directories of the ISO that contradict themselves, each other, or the length of the image.

use slotd::domain::layout::Part;
use sps_base::error::ErrorKind::{MediaCorrupt, SignatureInvalid};
use system_tests::iso_writer::{self, DIRECTORY, IS_DIRECTORY, ROOT_DIRECTORY, SECTOR};

use crate::firmware::{both32, edited, record_at, span, stage};
use crate::judge::Case;

/// One record of `/FIRMWARE`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) sector: u32,
    pub(crate) size: u32,
    pub(crate) flags: u8,
}

/// Those of the good image.
pub(crate) fn entries() -> Vec<Entry> {
    let found = crate::firmware::index(&stage().iso);
    let entry = |(part, extent): &(Part, slotd::domain::layout::Extent)| Entry {
        name: part.name().into(),
        sector: u32::try_from(extent.offset / 2048).unwrap(),
        size: u32::try_from(extent.size).unwrap(),
        flags: 0,
    };
    found.parts.iter().map(entry).collect()
}

/// The sector that holds them.
pub(crate) fn listing(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = iso_writer::own_and_parent(DIRECTORY);
    for entry in entries {
        bytes.extend(iso_writer::record(&entry.name, entry.sector, entry.size, entry.flags));
    }
    assert!(bytes.len() <= SECTOR);
    bytes.resize(SECTOR, 0);
    bytes
}

/// The good image with other records.
fn relisted(change: impl Fn(&mut Vec<Entry>) + 'static) -> impl Fn() -> Vec<u8> + Send + Sync {
    let mut all = entries();
    change(&mut all);
    edited(vec![(DIRECTORY as usize * SECTOR, listing(&all))])
}

fn named<'a>(all: &'a mut [Entry], name: &str) -> &'a mut Entry {
    all.iter_mut().find(|entry| entry.name == name.as_bytes()).unwrap()
}

fn corrupt(name: &str, text: impl Into<String>, change: impl Fn(&mut Vec<Entry>) + 'static) -> Case {
    Case::refused(name, MediaCorrupt, text, relisted(change))
}

/// Little-endian right, big-endian not, in each field that has both.
pub(crate) fn both_endian_mismatch() -> Vec<Case> {
    let (volume, root) = (16 * SECTOR, ROOT_DIRECTORY as usize * SECTOR);
    let manifest = record_at("manifest.json");
    let four = [
        ("volume space size", volume + 80),
        ("location of extent", volume + 158),
        ("data length", volume + 166),
        ("location of extent", root + 68 + 2),
        ("data length", root + 68 + 10),
        ("location of extent", manifest + 2),
        ("data length", manifest + 10),
    ];
    let two = [
        ("logical block size", volume + 128),
        ("volume sequence number", volume + 184),
        ("volume sequence number", manifest + 28),
    ];
    let case = |field: &str, at: usize, big_at: usize, bytes: Vec<u8>| {
        let text = format!("byte {at}: {field} is ");
        Case::refused(format!("{field}, byte {at}"), MediaCorrupt, text, edited(vec![(big_at, bytes)]))
    };
    let mut cases: Vec<Case> =
        four.iter().map(|(field, at)| case(field, *at, at + 4, vec![0x7f; 4])).collect();
    cases.extend(two.iter().map(|(field, at)| case(field, *at, at + 2, vec![0x7f; 2])));
    cases
}

pub(crate) fn extent_past_the_end() -> Vec<Case> {
    let sectors = u32::try_from(stage().iso.len() / SECTOR).unwrap();
    let truncated = |name: &str| format!("truncated: {name} ends at byte");
    let shorter = edited(vec![(16 * SECTOR + 80, both32(sectors - 1))]);
    let far = |sector: u32, size: u32| {
        let record = iso_writer::record(b"FIRMWARE", sector, size, IS_DIRECTORY);
        edited(vec![(ROOT_DIRECTORY as usize * SECTOR + 68, record)])
    };
    let behind = "lies behind the first 1048576 bytes";
    vec![
        corrupt("root.erofs a sector longer", truncated("root.erofs"), |all| {
            named(all, "root.erofs").size += 2048;
        }),
        corrupt("root.erofs of 4 GiB", truncated("root.erofs"), |all| {
            named(all, "root.erofs").size = u32::MAX;
        }),
        corrupt("root.erofs in the last sector there is", truncated("root.erofs"), |all| {
            named(all, "root.erofs").sector = u32::MAX;
        }),
        corrupt("manifest.json behind the end", truncated("manifest.json"), move |all| {
            named(all, "manifest.json").sector = sectors;
        }),
        Case::refused(
            "volume a sector shorter than its files",
            MediaCorrupt,
            truncated("root.erofs"),
            shorter,
        ),
        Case::refused(
            "volume of no sectors",
            MediaCorrupt,
            truncated("manifest.json"),
            edited(vec![(16 * SECTOR + 80, both32(0))]),
        ),
        Case::taken("volume longer than the image", edited(vec![(16 * SECTOR + 80, both32(u32::MAX))])),
        Case::refused("directory behind 1 MiB", MediaCorrupt, behind, far(512, 2048)),
        Case::refused("directory in the last sector there is", MediaCorrupt, behind, far(u32::MAX, 2048)),
        Case::refused("directory of 4 GiB", MediaCorrupt, behind, far(DIRECTORY, u32::MAX)),
    ]
}

pub(crate) fn overlapping_extents() -> Vec<Case> {
    let order = |name: &str| format!("{name} at byte");
    let mut cases = vec![
        corrupt("notes.md reaches into root.verity", order("root.verity"), |all| {
            named(all, "notes.md").size = 2 * 2048 + 1;
        }),
        corrupt("root.verity reaches into boot.efi", order("boot.efi"), |all| {
            named(all, "root.verity").size += 1;
        }),
        corrupt("root.erofs begins within files.ndjson.zst", order("root.erofs"), |all| {
            named(all, "root.erofs").sector -= 1;
        }),
        corrupt("notes.md and root.verity change places", order("root.verity"), |all| {
            let sector = named(all, "notes.md").sector;
            named(all, "notes.md").sector = sector + 1;
            named(all, "root.verity").sector = sector;
        }),
    ];
    for sector in [0, 16, ROOT_DIRECTORY, DIRECTORY] {
        let name = format!("manifest.json in sector {sector}, among the structures");
        cases.push(corrupt(&name, order("manifest.json"), move |all| {
            named(all, "manifest.json").sector = sector;
        }));
    }
    cases
}

pub(crate) fn aliased_extents() -> Vec<Case> {
    let alias = |of: &'static str, name: &'static str| {
        corrupt(&format!("{of} is {name}"), format!("{of} at byte"), move |all| {
            named(all, of).sector = named(all, name).sector;
        })
    };
    vec![
        alias("manifest.p7s", "manifest.json"),
        alias("root.verity", "notes.md"),
        alias("files.ndjson.zst", "recovery.efi"),
        alias("recovery.efi", "boot.efi"),
        alias("root.erofs", "root.verity"),
        corrupt("news.md is notes.md", "news.md at byte", |all| {
            let notes = named(all, "notes.md").clone();
            all.push(Entry { name: b"news.md".to_vec(), ..notes });
        }),
        corrupt("manifest.json twice", "unexpected or repeated entry \"manifest.json\"", |all| {
            let first = all[0].clone();
            all.push(first);
        }),
        // Where two extents are empty there is nothing to share; the manifest knows that they are not.
        corrupt("notes.md and root.verity empty in one place", "root.verity has 0 bytes on the ISO", |all| {
            for name in ["notes.md", "root.verity"] {
                (named(all, name).sector, named(all, name).size) = (0, 0);
            }
        }),
    ]
}

pub(crate) fn directory_loop() -> Vec<Case> {
    let at = ROOT_DIRECTORY as usize * SECTOR;
    let record = |name: &[u8], sector| iso_writer::record(name, sector, 2048, IS_DIRECTORY);
    let descriptor = 16 * SECTOR + 156;
    let mut of_itself = entries();
    of_itself.push(Entry { name: b"FIRMWARE".to_vec(), sector: DIRECTORY, size: 2048, flags: IS_DIRECTORY });
    let entry = "unexpected or repeated entry \"FIRMWARE\"";
    let root = |edits| edited(edits);
    vec![
        Case::refused(
            "/FIRMWARE is the root",
            MediaCorrupt,
            entry,
            root(vec![(at + 68, record(b"FIRMWARE", ROOT_DIRECTORY))]),
        ),
        Case::refused(
            "/FIRMWARE holds itself",
            MediaCorrupt,
            entry,
            edited(vec![(DIRECTORY as usize * SECTOR, listing(&of_itself))]),
        ),
        Case::refused(
            "the root is /FIRMWARE",
            MediaCorrupt,
            "/FIRMWARE is missing",
            edited(vec![(descriptor, record(&[0], DIRECTORY))]),
        ),
        Case::refused(
            "the root is its own descriptor",
            MediaCorrupt,
            "byte 32768: length of directory record is 1",
            edited(vec![(descriptor, record(&[0], 16))]),
        ),
        Case::refused(
            "/FIRMWARE is the volume descriptor",
            MediaCorrupt,
            "byte 32768: length of directory record is 1",
            root(vec![(at + 68, record(b"FIRMWARE", 16))]),
        ),
        // `.` and `..` are not followed.
        Case::taken(
            "the parent of /FIRMWARE is /FIRMWARE",
            edited(vec![(DIRECTORY as usize * SECTOR + 34, record(&[1], DIRECTORY))]),
        ),
        Case::taken(
            "/FIRMWARE says it lies elsewhere",
            edited(vec![(DIRECTORY as usize * SECTOR, record(&[0], 400))]),
        ),
    ]
}

pub(crate) fn zero_length_record() -> Vec<Case> {
    let missing = |name: &str| format!("{name} is missing");
    let zero = |name: &str| edited(vec![(record_at(name), vec![0])]);
    let empty = |name: &'static str| {
        move |all: &mut Vec<Entry>| (named(all, name).sector, named(all, name).size) = (0, 0)
    };
    let mut cases = vec![
        // A zero says that the rest of the sector holds no record.
        Case::refused(
            "the first record",
            MediaCorrupt,
            missing("manifest.json"),
            edited(vec![(DIRECTORY as usize * SECTOR, vec![0])]),
        ),
        Case::refused("the manifest's", MediaCorrupt, missing("manifest.json"), zero("manifest.json")),
        Case::refused("the signature's", SignatureInvalid, "the image is not signed", zero("manifest.p7s")),
        Case::refused("the last", MediaCorrupt, missing("root.erofs"), zero("root.erofs")),
        Case::refused(
            "the root's",
            MediaCorrupt,
            missing("/FIRMWARE"),
            edited(vec![(ROOT_DIRECTORY as usize * SECTOR, vec![0])]),
        ),
        Case::refused(
            "empty manifest.json",
            SignatureInvalid,
            "the signature is for another manifest",
            relisted(empty("manifest.json")),
        ),
        Case::refused(
            "empty manifest.p7s",
            SignatureInvalid,
            "not a CMS SignedData",
            relisted(empty("manifest.p7s")),
        ),
    ];
    for name in ["notes.md", "root.verity", "boot.efi", "recovery.efi", "files.ndjson.zst", "root.erofs"] {
        cases.push(corrupt(
            &format!("empty {name}"),
            format!("{name} has 0 bytes on the ISO, the manifest says"),
            empty(name),
        ));
    }
    for length in [1_u8, 33] {
        cases.push(Case::refused(
            format!("of {length} bytes"),
            MediaCorrupt,
            format!("length of directory record is {length}; expected at least 34"),
            edited(vec![(record_at("notes.md"), vec![length])]),
        ));
    }
    cases
}

/// Records up to the last bytes of the sector of `/FIRMWARE`, then one of `length` bytes.
fn filled(length: u8) -> impl Fn() -> Vec<u8> + Send + Sync {
    let mut sector = listing(&entries());
    let mut at = record_at("root.erofs") - DIRECTORY as usize * SECTOR + 44;
    let last = SECTOR - 34;
    let own = iso_writer::record(&[0], DIRECTORY, 2048, IS_DIRECTORY);
    while at < last {
        let mut len = (last - at).min(254);
        if last - at > 254 && last - at < 254 + 34 {
            len -= 34;
        }
        sector[at..at + own.len()].copy_from_slice(&own);
        sector[at] = u8::try_from(len).unwrap();
        at += len;
    }
    sector[last..last + own.len()].copy_from_slice(&own);
    sector[last] = length;
    edited(vec![(DIRECTORY as usize * SECTOR, sector)])
}

pub(crate) fn record_across_a_sector() -> Vec<Case> {
    let text =
        |length: u8| format!("length of directory record is {length}; expected a record within its sector");
    vec![
        Case::taken("a record that ends with its sector", filled(34)),
        Case::refused("two bytes across", MediaCorrupt, text(36), filled(36)),
        Case::refused("a byte across", MediaCorrupt, text(35), filled(35)),
        Case::refused("220 bytes across", MediaCorrupt, text(254), filled(254)),
    ]
}

pub(crate) fn multi_extent() -> Vec<Case> {
    let split = |gap: u32, first: u32, flags: [u8; 2], second: &'static str| {
        move |all: &mut Vec<Entry>| {
            let whole = named(all, "root.erofs").clone();
            (named(all, "root.erofs").size, named(all, "root.erofs").flags) = (first, flags[0]);
            let sector = whole.sector + first / 2048 + gap;
            let size = whole.size - first;
            all.push(Entry { name: second.into(), sector, size, flags: flags[1] });
        }
    };
    let foreign = |name: &str| format!("unexpected or repeated entry \"{name}");
    let half = 320 << 10;
    let middle = |all: &mut Vec<Entry>| {
        // Boot image in two extents, and further files behind it.
        let at = all.iter().position(|entry| entry.name == b"boot.efi").unwrap();
        let mut second = all[at].clone();
        (all[at].size, all[at].flags) = (2048, 0x80);
        (second.sector, second.size) = (second.sector + 1, second.size - 2048);
        all.insert(at + 1, second);
    };
    let name = "root.erofs";
    let in_order = split(0, half, [0x80, 0], name);
    vec![
        Case::taken("root.erofs in two extents", relisted(split(0, half, [0x80, 0], name))),
        Case::taken("boot.efi in two extents", relisted(middle)),
        corrupt("a gap between them", foreign(name), split(1, half, [0x80, 0], name)),
        corrupt("the second before the first", foreign(name), move |all| {
            in_order(all);
            let (first, second) = (all[all.len() - 2].sector, all[all.len() - 1].sector);
            let end = all.len();
            (all[end - 2].sector, all[end - 1].sector) = (second, first);
        }),
        corrupt("part of a sector in the first", foreign(name), split(0, half - 1, [0x80, 0], name)),
        corrupt("no mark that more follows", foreign(name), split(0, half, [0, 0], name)),
        corrupt(
            "no last extent",
            foreign("root.erofs without its last extent"),
            split(0, half, [0x80, 0x80], name),
        ),
        corrupt("another file in between", foreign("news.md"), split(0, half, [0x80, 0], "news.md")),
    ]
}

/// Where the good root ends, for other files of this program.
pub(crate) fn payload_end() -> usize {
    span(Part::Root).1
}
