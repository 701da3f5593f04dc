//! The manifest: one spelling only, every field in its range, and an order of versions.

use std::cmp::Ordering;

use proptest::prelude::*;
use slotd::domain::manifest::{
    Boot, MAX_MANIFEST, MAX_ROOT, Manifest, ManifestError, PIECE, Sha256Hex, UpgradeFrom, Version, parse_utc,
};

use super::sample;

fn error_of(text: &str) -> ManifestError {
    match Manifest::parse(text.as_bytes()) {
        Err(e) => e,
        Ok(_) => panic!("this was taken: {text}"),
    }
}

/// The sample with one piece of text replaced, which must be there.
fn with(old: &str, new: &str) -> String {
    let text = sample().render();
    assert!(text.contains(old), "{old}");
    text.replacen(old, new, 1)
}

#[test]
fn other_spellings_of_the_same_manifest_are_not_canonical() {
    let text = sample().render();
    Manifest::parse(text.as_bytes()).unwrap();
    let spellings = [
        format!(" {text}"),
        format!("{text}\n"),
        with(":", ": "),
        with(r#""boot":"none","boot_version":"8.0.0""#, r#""boot_version":"8.0.0","boot":"none""#),
        with(r#""hardware":["m1"],"product":"sps""#, r#""product":"sps","hardware":["m1"]"#),
        with(r#""note":"a""#, r#""note":"\u0061""#),
        with(r#""note":"a""#, r#""note":"b","note":"a""#),
        with(r#""note":"a""#, r#""z":"b","a":"a""#),
        with(r#""note":"a""#, r#""note":"\/""#),
        with(r#""note":"a""#, r#""note":"\u000A""#),
        with(r#""note":"a""#, r#""note":"\u00e4""#),
        with(r#""files":[{"name":"notes.md""#, r#""files":[{"name":"notes.md","pieces":[]"#),
        with(r#""product":"sps""#, r#""product":"\u0073ps""#),
    ];
    for spelling in spellings {
        match error_of(&spelling) {
            ManifestError::NotCanonical(at) => {
                let canonical = serde_json::from_str::<Manifest>(&spelling).unwrap().render();
                assert_eq!(spelling.as_bytes()[..at], canonical.as_bytes()[..at]);
                assert_ne!(spelling.as_bytes().get(at), canonical.as_bytes().get(at), "{spelling}");
            }
            other => panic!("{other}: {spelling}"),
        }
    }
    // Characters that need no escape, and the shortest escapes, are canonical.
    let mut manifest = sample();
    manifest.meta.insert("ä\"\\\n\u{1f}\u{7f}".into(), "\u{2028}🦀".into());
    Manifest::parse(manifest.render().as_bytes()).unwrap();
}

#[test]
fn what_is_not_of_the_schema_is_no_manifest() {
    let deep = format!(r#""note":{}"#, "[".repeat(5000));
    let texts = [
        String::new(),
        "{}".into(),
        "[]".into(),
        "null".into(),
        format!("\u{feff}{}", sample().render()),
        format!("{}x", sample().render()),
        format!("{0}{0}", sample().render()),
        with(r#""version":"8.0.1""#, r#""version":"8.0.1","version":"8.0.1""#),
        with(r#""schema":1"#, r#""schema":1.0"#),
        with(r#""schema":1"#, r#""schema":1e0"#),
        with(r#""schema":1"#, r#""schema":"1""#),
        with(r#""security_epoch":3"#, r#""security_epoch":-3"#),
        with(r#""security_epoch":3"#, r#""security_epoch":03"#),
        with(r#""security_epoch":3"#, r#""security_epoch":4294967296"#),
        with(r#""required_space":0"#, r#""required_space":18446744073709551616"#),
        with(r#""boot":"none""#, r#""boot":"grub""#),
        with(r#""boot":"none","#, ""),
        with(r#""note":"a""#, r#""note":1"#),
        with(r#""note":"a""#, r#""note":null"#),
        with(r#""note":"a""#, &deep),
        with(r#""note":"a""#, "\"note\":\"\n\""),
        // Unknown keys, at every level.
        with(r#""version":"8.0.1""#, r#""version":"8.0.1","x":1"#),
        with(r#""product":"sps""#, r#""product":"sps","x":1"#),
        with(r#""size":4096}"#, r#""size":4096,"x":1}"#),
        with(r#""root":{"#, r#""root":{"x":1,"#),
        with(r#""salt":"00""#, r#""salt":"00","x":1"#),
        with(r#""min":"7.0.5""#, r#""min":"7.0.5","x":1"#),
        // Digests.
        with(&"0".repeat(64), &"0".repeat(63)),
        with(&"0".repeat(64), &"A".repeat(64)),
        with(&"0".repeat(64), &"g".repeat(64)),
    ];
    for text in texts {
        assert!(matches!(error_of(&text), ManifestError::Json { .. }), "{text:.300}");
    }
    let mut bytes = sample().render().into_bytes();
    let at = bytes.windows(3).position(|w| w == b"sps").unwrap();
    bytes[at] = 0xff;
    assert!(matches!(Manifest::parse(&bytes), Err(ManifestError::Json { .. })), "not UTF-8");
    let long = vec![b' '; usize::try_from(MAX_MANIFEST).unwrap() + 1];
    assert!(matches!(Manifest::parse(&long), Err(ManifestError::TooLong(_))));
}

type Change = fn(&mut Manifest);

#[test]
fn each_field_out_of_its_range_is_named() {
    let cases: &[(&str, Change)] = &[
        ("schema", |m| m.schema = 2),
        ("version", |m| m.version = "v8".into()),
        ("version", |m| m.version = String::new()),
        ("version", |m| m.version = "1.2.3.4.5.6".into()),
        ("version", |m| m.version = "8.4294967296".into()),
        ("version", |m| m.version = format!("8-{}", "a".repeat(63))),
        ("boot_version", |m| m.boot_version = "8.".into()),
        ("build_date", |m| m.build_date = "2026-11-22".into()),
        ("build_date", |m| m.build_date = "2026-13-22T00:00:00Z".into()),
        ("build_date", |m| m.build_date = "1969-12-31T23:59:59Z".into()),
        ("compatible", |m| m.compatible.product.clear()),
        ("compatible", |m| m.compatible.hardware.clear()),
        ("hardware", |m| m.compatible.hardware = vec!["m".into(); 257]),
        ("meta", |m| m.meta = (0..257).map(|i| (i.to_string(), String::new())).collect()),
        ("upgrade_from", |m| m.upgrade_from = vec![UpgradeFrom { from: "7".into(), min: "x".into() }]),
        ("upgrade_from", |m| m.upgrade_from = vec![UpgradeFrom { from: String::new(), min: "7".into() }]),
        ("files", |m| m.files[0].name = "../notes.md".into()),
        ("files", |m| m.files[0].name = "root.erofs".into()),
        ("files", |m| m.files[1].name = "notes.md".into()),
        ("files", |m| drop(m.files.remove(0))),
        ("files", |m| drop(m.files.remove(1))),
        ("files", |m| drop(m.files.remove(2))),
        ("files", |m| m.boot = Boot::Uki),
        ("files", |m| m.files[0].size = PIECE + 1),
        ("files", |m| m.files[0].pieces = vec![Sha256Hex::default()]),
        ("files", |m| m.files[1].pieces = vec![Sha256Hex::default()]),
        ("files", |m| m.files[2].size = PIECE + 1),
        ("files", |m| {
            m.files[2].size = (256 << 20) + 1;
            m.files[2].pieces = vec![Sha256Hex::default(); 257];
        }),
        ("root.size", |m| m.root.size = 0),
        ("root.size", |m| m.root.size = 4097),
        ("root.size", |m| m.root.size = MAX_ROOT + 4096),
        ("root.size", |m| m.root.size = u64::MAX - 4095),
        ("root.verity.algorithm", |m| m.root.verity.algorithm = "sha512".into()),
        ("root.verity.data_block", |m| m.root.verity.data_block = 512),
        ("root.verity.data_block", |m| m.root.verity.hash_block = 1024),
        ("root.verity.salt", |m| m.root.verity.salt = "0".into()),
        ("root.verity.salt", |m| m.root.verity.salt = "AB".into()),
        ("root.verity.salt", |m| m.root.verity.salt = "00".repeat(257)),
        ("root.verity.uuid", |m| m.root.verity.uuid = "0".repeat(36)),
        ("root.verity.uuid", |m| m.root.verity.uuid.make_ascii_uppercase()),
        ("root.verity.uuid", |m| m.root.verity.uuid = m.root.verity.uuid.replacen('-', "", 1)),
    ];
    for (number, (name, change)) in cases.iter().enumerate() {
        let mut manifest = sample();
        change(&mut manifest);
        match error_of(&manifest.render()) {
            ManifestError::Field { field, found, expected } => {
                assert!(field.contains(name), "case {number}: {field} is named, not {name}");
                assert!(!found.is_empty() || *name == "version", "case {number}");
                assert!(!expected.is_empty(), "case {number}");
            }
            other => panic!("case {number} ({name}): {other}"),
        }
    }
}

#[test]
fn the_edges_of_the_ranges_are_inside() {
    let cases: &[Change] = &[
        |m| m.root.size = MAX_ROOT,
        |m| m.required_space = u64::MAX,
        |m| m.security_epoch = u32::MAX,
        |m| m.root.verity.salt = String::new(),
        |m| m.root.verity.salt = "ab".repeat(256),
        |m| m.version = format!("8-{}", "a".repeat(62)),
        |m| m.version = "4294967295.0.0.0.1".into(),
        |m| m.files[0].size = PIECE,
        |m| m.compatible.hardware = vec!["m".into(); 256],
        |m| m.upgrade_from.clear(),
    ];
    for (number, change) in cases.iter().enumerate() {
        let mut manifest = sample();
        change(&mut manifest);
        let parsed = Manifest::parse(manifest.render().as_bytes());
        assert_eq!(parsed.unwrap_or_else(|e| panic!("case {number}: {e}")), manifest);
    }
}

#[test]
fn dates_are_utc_with_whole_seconds() {
    assert_eq!(parse_utc("1970-01-01T00:00:01Z"), Some(1));
    assert_eq!(parse_utc("2026-11-22T00:00:00Z"), Some(1_795_305_600));
    for bad in
        ["2026-11-22T00:00:00+00:00", "2026-11-22 00:00:00Z", "2026-11-22T00:00:00z", "20261122T000000.000Z"]
    {
        assert_eq!(parse_utc(bad), None, "{bad}");
    }
}

fn versions() -> impl Strategy<Value = String> {
    "[0-9]{1,3}(\\.[0-9]{1,2}){0,4}(-[a-z0-9.+~_-]{1,6})?"
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_manifest(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
    }

    #[test]
    fn no_changed_byte_gives_the_same_manifest(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let text = sample().render();
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        // One manifest has one spelling: what still parses is another one, and spelled canonically.
        if let Ok(other) = Manifest::parse(&bytes) {
            prop_assert_eq!(other.render().into_bytes(), bytes);
            prop_assert_ne!(other, sample());
        }
    }

    #[test]
    fn versions_have_a_total_order(a in versions(), b in versions(), c in versions()) {
        let [x, y, z] = [&a, &b, &c].map(|text| Version::parse(text).unwrap());
        prop_assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
        prop_assert_eq!(x == y, x.cmp(&y) == Ordering::Equal);
        if x <= y && y <= z {
            prop_assert!(x <= z);
        }
        prop_assert_eq!(x.partial_cmp(&y), Some(x.cmp(&y)));
        if let Some((release, _)) = a.split_once('-') {
            prop_assert!(x < Version::parse(release).unwrap(), "a candidate comes before its release");
        }
    }

    #[test]
    fn a_version_is_of_the_lines_it_begins_with(
        numbers in prop::collection::vec(0_u32..1000, 1..=5),
        depth in 1_usize..=5,
        suffix in "(-rc[0-9])?",
    ) {
        let text = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        let version = Version::parse(&format!("{}{suffix}", text(&numbers))).unwrap();
        let depth = depth.min(numbers.len());
        prop_assert!(version.is_of_line(&text(&numbers[..depth])));
        let mut other = numbers[..depth].to_vec();
        other[depth - 1] += 1;
        prop_assert!(!version.is_of_line(&text(&other)));
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in ".{0,80}") {
        let _ = Version::parse(&text);
        let _ = parse_utc(&text);
        prop_assert!(!Version::parse("8.0").unwrap().is_of_line(&text) || text.starts_with('8') || text.starts_with('0'));
    }
}

#[test]
fn versions_order_as_people_read_them() {
    let sorted = ["7.9", "8.0.0-alpha", "8.0.0-rc1", "8.0.0-rc2", "8", "8.0.1", "8.0.10", "8.1", "10.0"];
    let parsed: Vec<Version> = sorted.iter().map(|text| Version::parse(text).unwrap()).collect();
    assert!(parsed.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(Version::parse("8"), Version::parse("8.0.0.0.0"));
    for bad in ["", ".", "8.", ".8", "8..0", "8-", "8 ", "-rc1", "8.x", "8-ä", "8/1", "+8", "8-a/b", "0x8"] {
        assert_eq!(Version::parse(bad), None, "{bad}");
    }
}
