//! An ISO with two more trees than the one that is read: Rock Ridge's names and Joliet's.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use slotd::domain::layout::Part;
use slotd::domain::manifest::{MANIFEST_NAME, PAYLOAD_ORDER, SIGNATURE_NAME};
use sps_base::error::ErrorKind::MediaCorrupt;

use crate::firmware::{index, stage};
use crate::judge::Case;

const SECTOR: usize = 2048;

/// The good firmware as xorriso writes it with both extensions.
fn image() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let directory = stage().path("trees");
        fs::create_dir(&directory).unwrap();
        let iso = stage().path("trees.iso");
        let mut tool = Command::new("xorriso");
        tool.args(["-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-J", "-U", "-o"])
            .arg(&iso);
        let order = [MANIFEST_NAME, SIGNATURE_NAME].into_iter().chain(PAYLOAD_ORDER);
        for (number, name) in (0..).zip(order.filter(|name| stage().good.sizes().contains_key(*name))) {
            fs::write(directory.join(name), stage().good.file(name)).unwrap();
            tool.args(["--sort-weight", &format!("{}", 1000 - number), &format!("/FIRMWARE/{name}")]);
        }
        let out =
            tool.arg("-graft-points").arg(format!("/FIRMWARE={}", directory.display())).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        fs::read(iso).unwrap()
    })
}

fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
}

/// Where the records of a directory begin.
fn records(directory: usize, size: usize) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), directory);
    while at < directory + size {
        match image()[at] {
            0 => at = (at / SECTOR + 1) * SECTOR,
            length => {
                found.push(at);
                at += usize::from(length);
            }
        }
    }
    found
}

/// Where the records of `/FIRMWARE` begin, in the tree of the descriptor in this sector.
fn firmware_of(descriptor: usize) -> Vec<usize> {
    let extent = |at: usize| (number(&image()[at + 2..]) * SECTOR, number(&image()[at + 10..]));
    let (root, size) = extent(descriptor * SECTOR + 156);
    let firmware = *records(root, size).iter().find(|at| image()[**at + 32] > 1).unwrap();
    let (directory, size) = extent(firmware);
    records(directory, size).into_iter().filter(|at| image()[*at + 32] > 1).collect()
}

/// Every place of `what` in the records of `/FIRMWARE` of the primary tree, behind their names.
fn rock_ridge(what: &[u8]) -> Vec<usize> {
    let record = |at: usize| {
        let length = usize::from(image()[at]);
        (0..length - what.len()).map(move |n| at + n)
    };
    firmware_of(16).into_iter().flat_map(record).filter(|at| image()[*at..].starts_with(what)).collect()
}

fn changed(change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> impl Fn() -> Vec<u8> + Send + Sync {
    move || {
        let mut bytes = image().clone();
        change(&mut bytes);
        bytes
    }
}

/// The primary tree is what counts: the others may say what they like.
pub(crate) fn rock_ridge_against_joliet() -> Vec<Case> {
    let joliet = firmware_of(17);
    assert_eq!((image()[17 * SECTOR], joliet.len()), (2, 8), "a supplementary descriptor with all files");
    let manifest = index(image()).get(Part::Manifest).unwrap();
    let (first, last) = (joliet[0], joliet[joliet.len() - 1]);
    let names = rock_ridge(b"NM");
    assert!(names.len() >= 8, "{names:?}");
    let primary = firmware_of(16);
    let primary_root = number(&image()[16 * SECTOR + 158..]) * SECTOR;
    let at = *records(primary_root, SECTOR).iter().find(|at| image()[**at + 32] > 1).unwrap();
    vec![
        Case::taken("both trees alike", changed(|_| {})),
        Case::taken(
            "Joliet: a file lies where another does",
            changed(move |bytes| {
                bytes.copy_within(last + 2..last + 18, first + 2);
            }),
        ),
        Case::taken("Joliet: every name is another", {
            let joliet = joliet.clone();
            changed(move |bytes| joliet.iter().for_each(|at| bytes[at + 34] = b'X'))
        }),
        Case::taken(
            "Joliet: no directory at all",
            changed(|bytes| bytes[17 * SECTOR + 158..][..16].fill(0xff)),
        ),
        Case::taken("Rock Ridge: every name is another", {
            let names = names.clone();
            // NM, length, version, flags, name.
            changed(move |bytes| names.iter().for_each(|at| bytes[at + 5] = b'X'))
        }),
        Case::taken("Rock Ridge: names of two files exchanged", {
            let (a, b) = (names[0], names[1]);
            changed(move |bytes| (bytes[a + 5], bytes[b + 5]) = (b'm', b'n'))
        }),
        Case::taken(
            "Rock Ridge: entries of no length",
            changed(move |bytes| names.iter().for_each(|at| bytes[at + 2] = 0)),
        ),
        Case::refused(
            "primary tree: a name is another, the others' are right",
            MediaCorrupt,
            "unexpected or repeated entry",
            {
                let at = primary[0];
                changed(move |bytes| bytes[at + 33] = b'X')
            },
        ),
        Case::refused(
            "primary tree: empty, the others are whole",
            MediaCorrupt,
            "/FIRMWARE is missing",
            changed(move |bytes| bytes[at] = 0),
        ),
        Case::refused(
            "primary tree: a file lies elsewhere, Joliet's is right",
            MediaCorrupt,
            "manifest.json at byte",
            changed(move |bytes| {
                let record =
                    primary.iter().find(|at| number(&bytes[**at + 2..]) as u64 * 2048 == manifest.offset);
                bytes[record.unwrap() + 2..][..8].copy_from_slice(&crate::firmware::both32(16));
            }),
        ),
    ]
}
