//! The manifest: one spelling, every limit kept, and whatever is computed from it fits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slotd::domain::layout::Layout;
use slotd::domain::manifest::{BLOCK, MAX_ROOT, Manifest, PAYLOAD_ORDER, Version, parse_utc};
use slotd::domain::policy::{self, Appliance};
use slotd::domain::verity::Tree;

/// What the documentation promises of the levels of a tree that are held in memory, in bytes.
const HELD: u64 = 4_300_000;

fn judge(manifest: &Manifest, len: u64) {
    let layout = Layout::of(manifest, len, 2000);
    let mut end = 0;
    for (part, extent) in layout.parts() {
        assert!(extent.offset.is_multiple_of(BLOCK) && extent.offset == end, "{part:?} {extent:?}");
        end = extent.end().next_multiple_of(BLOCK);
    }
    assert!(layout.needed() == end + BLOCK);
    assert!(manifest.root.size <= MAX_ROOT && manifest.salt().is_some() && manifest.uuid().is_some());
    assert!(Tree::new(manifest).upper_blocks() * BLOCK <= HELD);
    assert!(parse_utc(&manifest.build_date).is_some());
    assert!(manifest.files.len() < PAYLOAD_ORDER.len());
    assert!(
        manifest.meta.len().max(manifest.upgrade_from.len()).max(manifest.compatible.hardware.len()) <= 256
    );
}

fn compare(manifest: &Manifest) {
    let versions: Vec<Version> = [&manifest.version, &manifest.boot_version]
        .into_iter()
        .filter_map(|text| Version::parse(text))
        .collect();
    let [a, b] = &versions[..] else { unreachable!("a version that was accepted is none") };
    assert!(a.cmp(b) == b.cmp(a).reverse() && (a == b) == a.cmp(b).is_eq());
    for rule in &manifest.upgrade_from {
        a.is_of_line(&rule.from);
    }
    let appliance =
        Appliance { product: "sps", hardware: "test", epoch_floor: 1, running: Some(&manifest.boot_version) };
    if let Err(error) = policy::admit(manifest, &appliance) {
        // Signed text, so it may be long; but it was written by somebody who signs.
        assert!(!error.to_string().is_empty());
    } else {
        assert!(manifest.compatible.product == "sps" && manifest.security_epoch >= 1);
    }
}

fuzz_target!(|data: &[u8]| {
    match Manifest::parse(data) {
        Ok(manifest) => {
            assert_eq!(manifest.render().as_bytes(), data, "another spelling was accepted");
            judge(&manifest, data.len() as u64);
            compare(&manifest);
        }
        // It may repeat what it refuses, which somebody has signed.
        Err(error) => drop(error.to_string()),
    }
});
