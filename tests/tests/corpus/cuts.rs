//! Images that end early, and images of which one byte is another.

use slotd::domain::layout::Part;
use sps_base::error::ErrorKind::{MediaCorrupt, SignatureInvalid};
use system_tests::iso_writer::{DIRECTORY, FIRST_FILE, ROOT_DIRECTORY, SECTOR};

use crate::firmware::{flipped, record_at, slice, span, stage};
use crate::judge::Case;

/// Where the directories end: so much is read before anything is known.
const HEAD: usize = (DIRECTORY as usize + 1) * SECTOR;
/// How many random cuts.
const RANDOM: usize = 1000;

/// The good image, cut before byte `at`. A file is as long as it is, so a short one is refused at once; a pipe is known
/// to be short when it ends.
fn cut(name: String, at: usize, piped: bool) -> Case {
    let image = move || stage().iso[..at].to_vec();
    let (payload_end, tree) = (span(Part::Root).1, span(Part::Verity).0);
    let ends = format!("the image ends at byte {at};");
    if at >= payload_end {
        let case = Case::taken(name, image);
        return if piped { case.piped() } else { case };
    }
    if !piped {
        let text = if at < HEAD { ends } else { format!("but the image has {at} bytes") };
        return Case::refused(name, MediaCorrupt, text, image);
    }
    // Superblock and the one block above the leaves: then the first write.
    if at < tree + 2 * 4096 {
        Case::refused(name, MediaCorrupt, ends, image).piped()
    } else {
        Case::stopped(name, MediaCorrupt, ends, image).piped()
    }
}

pub(crate) fn boundaries() -> Vec<Case> {
    let mut places: Vec<(String, usize)> = (0..=FIRST_FILE)
        .map(|sector| (format!("sector {sector}"), sector as usize * SECTOR))
        .chain([("the volume descriptor's last byte".into(), 17 * SECTOR - 1)])
        .collect();
    for part in Part::ALL.into_iter().filter(|part| *part != Part::News) {
        let (start, end) = span(part);
        places.extend([(part.name().to_owned(), start), (format!("the end of {}", part.name()), end)]);
    }
    let tree = span(Part::Verity).0;
    places.extend((1..4).map(|block| (format!("block {block} of root.verity"), tree + block * 4096)));
    places.push(("piece 2 of boot.efi".into(), span(Part::Boot).0 + (1 << 20)));
    places.push(("the last byte of the image".into(), stage().iso.len() - 1));
    let around = places.iter().flat_map(|(name, at)| {
        [(name.clone(), *at), (format!("a byte before {name}"), at.saturating_sub(1))]
    });
    around
        .flat_map(|(name, at)| {
            [cut(format!("file cut at {name}"), at, false), cut(format!("pipe cut at {name}"), at, true)]
        })
        .collect()
}

pub(crate) fn random_offsets() -> Vec<Case> {
    let mut seed = 0x5eed_0004_u64;
    let next = move || {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let length = stage().iso.len() as u64;
    std::iter::repeat_with(next)
        .take(RANDOM)
        .enumerate()
        .map(|(number, random)| {
            // Every fourth in the structures, which are a small part of the image; every eighth on a pipe.
            let range = if number % 4 == 0 { span(Part::Verity).1 as u64 } else { length };
            let (at, piped) = (usize::try_from(random % range).unwrap(), number % 8 < 2);
            cut(format!("{} cut at byte {at}", if piped { "pipe" } else { "file" }), at, piped)
        })
        .collect()
}

fn corrupt(what: &str, at: usize, mask: u8, text: impl Into<String>) -> Case {
    Case::refused(format!("{what}, byte {at}"), MediaCorrupt, text, flipped(at, mask))
}

fn ignored(what: &str, at: usize) -> Case {
    Case::taken(format!("{what}, byte {at}"), flipped(at, 1))
}

pub(crate) fn flipped_descriptors() -> Vec<Case> {
    let volume = 16 * SECTOR;
    let at = |text: &str, byte: usize| format!("byte {byte}: {text}");
    let mut cases = vec![
        ignored("system area", 0),
        ignored("system area", 32_767),
        corrupt("descriptor type", volume, 1, format!("no ISO 9660 volume at byte {}", volume + SECTOR)),
        corrupt("standard identifier", volume + 1, 1, format!("no ISO 9660 volume at byte {volume}")),
        corrupt("standard identifier", volume + 5, 1, format!("no ISO 9660 volume at byte {volume}")),
        ignored("terminator", volume + SECTOR),
        ignored("terminator", volume + SECTOR + 1),
        ignored("path table", (DIRECTORY as usize + 1) * SECTOR + 2),
        ignored("path table, big-endian", (DIRECTORY as usize + 2) * SECTOR + 5),
        ignored("sector before the first file", FIRST_FILE as usize * SECTOR - 1),
    ];
    for (field, offset) in [
        ("volume space size", 80),
        ("logical block size", 128),
        ("location of extent", 158),
        ("data length", 166),
    ] {
        cases.push(corrupt(field, volume + offset, 1, at(field, volume + offset)));
        cases.push(corrupt(field, volume + offset + 3, 1, at(field, volume + offset)));
    }
    for (field, offset) in [
        ("extended attribute record length", 157),
        ("file unit size", 182),
        ("interleave gap size", 183),
        ("length of file identifier", 188),
    ] {
        cases.push(corrupt(field, volume + offset, 1, at(field, volume + offset)));
    }
    let field = "volume sequence number";
    cases.push(corrupt(field, volume + 184, 1, at(field, volume + 184)));
    let unseen = [
        ("descriptor version", 6),
        ("system identifier", 8),
        ("volume identifier", 40),
        ("volume set size", 120),
        ("sequence number", 124),
        ("path table size", 132),
        ("path table location", 140),
        ("date of the root", 174),
        ("name of the root", 189),
        ("publisher", 318),
        ("creation date", 813),
        ("structure version", 881),
        ("application use", 883),
        ("reserved", 2047),
    ];
    cases.extend(unseen.map(|(name, offset)| ignored(name, volume + offset)));
    cases
}

pub(crate) fn flipped_directories() -> Vec<Case> {
    let root = ROOT_DIRECTORY as usize * SECTOR;
    let (firmware, manifest) = (root + 68, record_at("manifest.json"));
    let at = |text: &str, byte: usize| format!("byte {byte}: {text}");
    let foreign = "unexpected or repeated entry";
    let mut cases = vec![
        // A shorter or longer record leads to what is none.
        corrupt("root: own record's length", root, 1, "/FIRMWARE is missing"),
        corrupt("root: name of /FIRMWARE", firmware + 33, 1, "/FIRMWARE is missing"),
        corrupt("root: /FIRMWARE is a file", firmware + 25, 2, "/FIRMWARE is missing"),
        corrupt("root: after the last record", firmware + 42, 1, "length of directory record is 1"),
        Case::refused(
            "manifest.json: record's length",
            SignatureInvalid,
            "is not signed",
            flipped(manifest, 1),
        ),
        corrupt("manifest.json: name", manifest + 33, 1, format!("{foreign} \"lanifest.json\"")),
        corrupt("manifest.json: is a directory", manifest + 25, 2, foreign),
        corrupt("manifest.json: is an associated file", manifest + 25, 4, foreign),
        corrupt(
            "manifest.json: has more extents",
            manifest + 25,
            0x80,
            format!("{foreign} \"manifest.p7s\""),
        ),
        corrupt("manifest.json: length of name", manifest + 32, 1, format!("{foreign} \"manifest.jso\"")),
        corrupt("root.erofs: name", record_at("root.erofs") + 42, 1, format!("{foreign} \"root.erofr\"")),
        ignored("manifest.json: date", manifest + 18),
        ignored("manifest.json: hidden", manifest + 25),
        ignored("root: date of /FIRMWARE", firmware + 20),
        ignored("root: end of its sector", root + SECTOR - 1),
        ignored("/FIRMWARE: end of its sector", (DIRECTORY as usize + 1) * SECTOR - 1),
    ];
    for (whose, record) in [("root", root), ("/FIRMWARE", firmware), ("manifest.json", manifest)] {
        for (field, offset) in
            [("location of extent", 2), ("data length", 10), ("volume sequence number", 28)]
        {
            let what = format!("{whose}: {field}");
            cases.push(corrupt(&what, record + offset, 1, at(field, record + offset)));
        }
    }
    cases
}

pub(crate) fn flipped_payloads() -> Vec<Case> {
    let start = |part| span(part).0;
    let last = |part| span(part).1 - 1;
    let middle = |part| usize::midpoint(span(part).0, span(part).1);
    let mut cases = Vec::new();
    for at in [start(Part::Manifest), middle(Part::Manifest), last(Part::Manifest)] {
        let text = "the signature is for another manifest";
        cases.push(Case::refused(
            format!("manifest.json, byte {at}"),
            SignatureInvalid,
            text,
            flipped(at, 1),
        ));
    }
    for (at, text) in [
        (start(Part::Signature), "not a CMS SignedData in DER"),
        (last(Part::Signature), "does not match the signer's key"),
    ] {
        cases.push(Case::refused(format!("manifest.p7s, byte {at}"), SignatureInvalid, text, flipped(at, 1)));
    }
    cases.extend(
        [start(Part::Notes), last(Part::Notes)]
            .map(|at| corrupt("notes.md", at, 1, "notes.md, byte 0: SHA-256")),
    );
    let tree = start(Part::Verity);
    for at in [0, 12, 88, 4095] {
        cases.push(corrupt("root.verity, superblock", tree + at, 1, "root.verity, byte 0: SHA-256"));
    }
    for at in [4096, 4096 + 64, 8191] {
        let text = "root.verity, byte 4096: hash block 0 of tree level 1";
        cases.push(corrupt("root.verity, top", tree + at, 1, text));
    }
    let stops =
        |name: String, at: usize, text: String| Case::stopped(name, MediaCorrupt, text, flipped(at, 1));
    for block in [2, 3] {
        let text = format!("root.verity, byte {}: hash block {} of tree level 0", block * 4096, block - 2);
        cases.push(stops(format!("root.verity, block {block}"), tree + block * 4096, text.clone()));
        cases.push(stops(format!("root.verity, end of block {block}"), tree + block * 4096 + 4095, text));
    }
    for (part, offset, piece) in [
        (Part::Boot, 0, 0),
        (Part::Boot, (1 << 20) - 1, 0),
        (Part::Boot, 1 << 20, 1 << 20),
        (Part::Boot, (1 << 20) + 12_344, 1 << 20),
        (Part::Recovery, 0, 0),
        (Part::Recovery, 20_000, 0),
        (Part::FileList, 0, 0),
        (Part::FileList, 12, 0),
    ] {
        let text = format!("{}, byte {piece}: SHA-256", part.name());
        cases.push(stops(format!("{}, byte {offset}", part.name()), start(part) + offset, text));
    }
    for offset in [0, 4095, 4096, 320 << 10, (640 << 10) - 1] {
        let text = format!("root.erofs, byte {}: block is", offset / 4096 * 4096);
        cases.push(stops(format!("root.erofs, byte {offset}"), start(Part::Root) + offset, text));
    }
    cases
}

/// Padding between extents and whatever follows the last one is not looked at and does not reach the slot.
pub(crate) fn flipped_padding() -> Vec<Case> {
    let mut cases = Vec::new();
    for part in Part::ALL.into_iter().filter(|part| ![Part::News, Part::Root, Part::Verity].contains(part)) {
        let end = span(part).1;
        assert!(
            !end.is_multiple_of(SECTOR)
                && slice(&stage().iso, slotd::domain::layout::Extent { offset: end as u64, size: 1 }) == [0]
        );
        cases.push(ignored(&format!("padding after {}", part.name()), end));
        cases.push(ignored(
            &format!("end of the padding after {}", part.name()),
            end.next_multiple_of(SECTOR) - 1,
        ));
    }
    let tail = |tail: Vec<u8>| move || [&stage().iso[..], &tail].concat();
    cases.push(Case::taken("tail of 300 KiB", tail(vec![0xa5; 300 << 10])));
    cases.push(Case::taken("tail of a byte on a pipe", tail(vec![1])).piped());
    cases
}
