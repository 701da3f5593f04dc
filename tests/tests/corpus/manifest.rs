//! Manifests that are rightly signed, so that they are parsed, and are none.

use slotd::domain::manifest::{MANIFEST_NAME, MAX_MANIFEST, SIGNATURE_NAME};
use sps_base::error::ErrorKind::{MediaCorrupt, SignatureInvalid};

use crate::firmware::stage;
use crate::judge::Case;

/// What precedes every complaint about a manifest whose signature is good.
const SIGNED: &str = "the signature is good, but what was signed is no manifest: manifest.json";
const NO_JSON: &str = "is not a manifest of schema 1 (line 1, column ";

/// The good manifest with one piece of text replaced, signed.
fn with(name: impl Into<String>, old: &str, new: &str, text: &str) -> Case {
    let rendered = stage().good.manifest.render();
    assert!(rendered.contains(old), "{old}");
    signed(name, rendered.replacen(old, new, 1).into_bytes(), text)
}

/// These bytes, signed, and refused for this reason.
fn signed(name: impl Into<String>, bytes: Vec<u8>, text: &str) -> Case {
    let text = format!("{SIGNED}{}{text}", if text.starts_with(':') { "" } else { " " });
    Case::refused(name, MediaCorrupt, text, move || stage().good.with_text(&bytes).iso())
}

fn good() -> String {
    stage().good.manifest.render()
}

pub(crate) fn duplicate_keys() -> Vec<Case> {
    let version = r#""version":"8.0.2""#;
    vec![
        with("the version, the same", version, &format!("{version},{version}"), NO_JSON),
        with("the version, another", version, &format!(r#"{version},"version":"9.0.0""#), NO_JSON),
        with("the root hash", r#""salt":"#, r#""root_hash":"00","salt":"#, NO_JSON),
        with("a file's size", r#""name":"notes.md","#, r#""name":"notes.md","name":"news.md","#, NO_JSON),
        with("the product", r#""product":"sps""#, r#""product":"sps","product":"sps""#, NO_JSON),
        with(
            "a note",
            r#""meta":{}"#,
            r#""meta":{"a":"1","a":"2"}"#,
            "is not canonical: first difference at byte",
        ),
        with(
            "by an escape",
            r#""meta":{}"#,
            r#""meta":{"a":"1","\u0061":"2"}"#,
            "is not canonical: first difference",
        ),
        with(
            "a file twice",
            r#""files":["#,
            &format!(r#""files":[{},"#, first_file()),
            ": files is notes.md twice",
        ),
    ]
}

fn first_file() -> String {
    let text = good();
    let start = text.find(r#"{"name":"notes.md""#).unwrap();
    text[start..=start + text[start..].find('}').unwrap()].to_owned()
}

pub(crate) fn overflow() -> Vec<Case> {
    let (four, eight) = ("4294967296", "18446744073709551616");
    let manifest = &stage().good.manifest;
    let notes = manifest.file("notes.md").unwrap().size;
    let fields = [
        (format!(r#""config_schema":{}"#, manifest.config_schema), four),
        (format!(r#""required_space":{}"#, manifest.required_space), eight),
        (format!(r#""revoked_below":{}"#, manifest.revoked_below), four),
        (format!(r#""schema":{}"#, manifest.schema), four),
        (format!(r#""security_epoch":{}"#, manifest.security_epoch), four),
        (format!(r#""state_schema":{}"#, manifest.state_schema), four),
        (format!(r#""data_block":{}"#, manifest.root.verity.data_block), four),
        (format!(r#""hash_block":{}"#, manifest.root.verity.hash_block), four),
        (format!(r#""root":{{"size":{}"#, manifest.root.size), eight),
        (format!(r#""size":{notes}"#), eight),
    ];
    let mut cases = Vec::new();
    for (field, limit) in &fields {
        let key = &field[..=field.rfind(':').unwrap()];
        for value in
            [*limit, "-1", "1.5", "1e3", "99999999999999999999999999999999999999", "\"1\"", "null", "01"]
        {
            cases.push(with(format!("{key}{value}"), field, &format!("{key}{value}"), NO_JSON));
        }
    }
    let size = format!(r#""root":{{"size":{}"#, manifest.root.size);
    for value in [u64::MAX, u64::MAX - 4095, (64 << 30) + 4096, 0, 4097] {
        let text = format!(": root.size is {value}; expected a multiple of 4096, at most 64 GiB");
        cases.push(with(format!("root.size {value}"), &size, &format!(r#""root":{{"size":{value}"#), &text));
    }
    let text = ": files is notes.md with 0 pieces; expected 17592186044416 pieces of 1 MiB";
    cases.push(with(
        "a file of 2^64 - 1 bytes",
        &format!(r#""size":{notes}"#),
        &format!(r#""size":{}"#, u64::MAX),
        text,
    ));
    cases.push(with(
        "a version of 2^32",
        r#""version":"8.0.2"}"#,
        r#""version":"8.4294967296"}"#,
        ": version is 8.4294967296;",
    ));
    cases
}

/// The manifest and the directory disagree about a length.
pub(crate) fn size_and_extent() -> Vec<Case> {
    let mut cases = Vec::new();
    let wrong = |name: &str, found: u64, expected: u64| {
        format!(
            "{name} has {found} bytes on the ISO, the manifest says {expected}; the image is damaged or was altered"
        )
    };
    for name in ["notes.md", "root.verity", "boot.efi", "recovery.efi", "files.ndjson.zst"] {
        for (by, word) in [(1_i64, "longer"), (-1, "shorter")] {
            let there = stage().good.file(name).len() as u64;
            let signed = there.checked_add_signed(by).unwrap();
            let case = format!("{name} signed as a byte {word}");
            cases.push(Case::refused(case, MediaCorrupt, wrong(name, there, signed), move || {
                let change = |manifest: &mut slotd::domain::manifest::Manifest| {
                    manifest.files.iter_mut().find(|file| file.name == name).unwrap().size = signed;
                };
                stage().good.with_manifest(change).iso()
            }));
        }
    }
    let root = stage().good.manifest.root.size;
    for size in [root - 4096, root + 4096] {
        let (name, text) = (format!("root.erofs signed as {size}"), wrong("root.erofs", root, size));
        cases.push(Case::refused(name, MediaCorrupt, text, move || {
            stage().good.with_manifest(|m| m.root.size = size).iso()
        }));
    }
    for name in ["notes.md", "root.verity", "boot.efi", "files.ndjson.zst", "root.erofs"] {
        let there = stage().good.file(name).len() as u64;
        cases.push(Case::refused(
            format!("{name} a block longer on the ISO"),
            MediaCorrupt,
            wrong(name, there + 4096, there),
            move || {
                let longer = [stage().good.file(name), &[0; 4096]].concat();
                stage().good.with_file(name, longer).iso()
            },
        ));
    }
    cases.push(Case::refused("news.md that is not signed", MediaCorrupt, wrong("news.md", 4, 0), || {
        let mut firmware = stage().good.clone();
        firmware.files.insert(3, (b"news.md".to_vec(), b"news".to_vec()));
        firmware.iso()
    }));
    cases
}

/// Names that lead out of the directory or look like another, in the manifest and on the ISO.
pub(crate) fn path_tricks() -> Vec<Case> {
    let names = [
        ("../", "../notes.md"),
        ("absolute", "/notes.md"),
        ("absolute elsewhere", "/etc/passwd"),
        ("./", "./notes.md"),
        ("a directory", "x/notes.md"),
        ("a backslash", "..\\notes.md"),
        ("NUL", "notes.md\0"),
        ("NUL within", "notes\0.md"),
        ("another case", "NOTES.MD"),
        ("one letter's case", "Notes.md"),
        ("a trailing dot", "notes.md."),
        ("a trailing space", "notes.md "),
        ("a version", "notes.md;1"),
        ("empty", ""),
        ("a dot", "."),
        ("two dots", ".."),
        ("Cyrillic о", "n\u{43e}tes.md"),
        ("full-width", "ｎotes.md"),
        ("a combining mark", "notes\u{301}.md"),
        ("zero width", "notes\u{200b}.md"),
        ("right to left", "\u{202e}dm.seton"),
        ("the root", "root.erofs"),
        ("the manifest", "manifest.json"),
        ("a trailer", "trailer"),
    ];
    let mut cases = Vec::new();
    for (what, name) in names {
        let text = format!(": files is {name:?}; expected a payload name of the format");
        let text = format!("{SIGNED}{text}");
        cases.push(Case::refused(format!("manifest: {what}"), MediaCorrupt, text, move || {
            stage().good.with_manifest(|manifest| manifest.files[0].name = name.into()).iso()
        }));
        // A record's version number, and a second root or manifest, are cases of their own.
        if ["", ".", "..", "notes.md;1"].contains(&name) {
            continue;
        }
        let text = "unexpected or repeated entry";
        cases.push(Case::refused(format!("ISO: {what}"), MediaCorrupt, text, move || {
            stage().good.renamed("notes.md", name.as_bytes()).iso()
        }));
    }
    cases.push(Case::taken("ISO: with a version number", || {
        stage().good.renamed("notes.md", b"notes.md;1").iso()
    }));
    cases.push(Case::refused(
        "ISO: with another version number",
        MediaCorrupt,
        "unexpected or repeated entry \"notes.md;2\"",
        || stage().good.renamed("notes.md", b"notes.md;2").iso(),
    ));
    cases.push(Case::refused("ISO: not UTF-8", MediaCorrupt, "unexpected or repeated entry", || {
        stage().good.renamed("notes.md", b"n\xfftes.md").iso()
    }));
    cases
}

/// What is read before anything is trusted has a limit, and so have the lists within.
pub(crate) fn a_million_entries() -> Vec<Case> {
    let limit = usize::try_from(MAX_MANIFEST).unwrap();
    let million =
        |entry: &str, open: &str, shut: &str| format!("{open}{}{shut}", vec![entry; 1_000_000].join(","));
    // As many as fit under the limit.
    let many = |old: &str, open: &str, entry: &dyn Fn(usize) -> String, shut: &str| {
        let rest = good().replacen(old, &format!("{open}{shut}"), 1).len();
        let (mut list, mut n) = (String::new(), 0);
        loop {
            let next = entry(n);
            if rest + list.len() + next.len() + 1 > limit {
                break;
            }
            list = list + if n > 0 { "," } else { "" } + &next;
            n += 1;
        }
        (n, good().replacen(old, &format!("{open}{list}{shut}"), 1))
    };
    let mut cases = Vec::new();
    for (what, old, open, entry, shut) in [
        ("hardware models", r#"["*"]"#, "[", "\"\"", "]"),
        ("files", r#""files":["#, r#""files":["#, "{}", ","),
        ("notes", r#""meta":{"#, r#""meta":{"#, r#""a":"b""#, ","),
    ] {
        let text = good().replacen(old, &million(entry, open, shut), 1);
        let refused = format!("manifest.json has {} bytes; the limit is {limit}", text.len());
        cases.push(Case::refused(format!("a million {what}"), MediaCorrupt, refused, move || {
            // Never signed: it is refused before that would be looked at.
            stage().good.with_file(MANIFEST_NAME, text.clone().into_bytes()).iso()
        }));
    }
    let longer = ": compatible.hardware, upgrade_from, meta is a longer list; expected at most 256 entries";
    let (n, text) = many(r#"["*"]"#, "[", &|_| "\"\"".into(), "]");
    cases.push(signed(format!("{n} hardware models in 1 MiB"), text.into_bytes(), longer));
    let (n, text) = many(r#""meta":{}"#, r#""meta":{"#, &|n| format!(r#""{n:06}":"""#), "}");
    cases.push(signed(format!("{n} notes in 1 MiB"), text.into_bytes(), longer));
    let rule = r#"{"from":"8","min":"8.0.0"}"#;
    let (n, text) = many(&format!("[{rule}]"), "[", &|_| rule.into(), "]");
    cases.push(signed(format!("{n} rules in 1 MiB"), text.into_bytes(), longer));
    let (n, text) = many(r#""files":["#, r#""files":["#, &|_| first_file(), ",");
    cases.push(signed(format!("{n} files in 1 MiB"), text.into_bytes(), ": files is notes.md twice"));
    let piece = format!("\"{}\"", "0".repeat(64));
    let (n, text) =
        many(r#"{"name":"notes.md","#, r#"{"name":"notes.md","pieces":["#, &|_| piece.clone(), "],");
    cases.push(signed(
        format!("{n} pieces in 1 MiB"),
        text.into_bytes(),
        &format!(": files is notes.md with {n} pieces"),
    ));
    for over in [0, 1] {
        let mut text = good();
        let filler = limit + over - text.len() - r#""a":"""#.len();
        text = text.replacen(r#""meta":{}"#, &format!(r#""meta":{{"a":"{}"}}"#, "x".repeat(filler)), 1);
        assert_eq!(text.len(), limit + over);
        let (signature, bytes) = (text.clone().into_bytes(), text.into_bytes());
        cases.push(if over == 0 {
            let firmware = move || stage().good.with_text(&bytes);
            let again = move || stage().good.with_text(&signature);
            Case::taken("a manifest of 1 MiB", move || firmware().iso()).signed(again)
        } else {
            let refused = format!("manifest.json has {} bytes; the limit is {limit}", limit + 1);
            Case::refused("a manifest of 1 MiB and a byte", MediaCorrupt, refused, move || {
                stage().good.with_text(&bytes).iso()
            })
        });
    }
    for (over, what) in [(1, "64 KiB and a byte"), (1 << 20, "1 MiB more than that")] {
        let length = (64 << 10) + over;
        let text = format!("manifest.p7s has {length} bytes; the limit is 65536");
        cases.push(Case::refused(format!("a signature of {what}"), SignatureInvalid, text, move || {
            stage().good.with_file(SIGNATURE_NAME, vec![0x30; length]).iso()
        }));
    }
    cases
}

pub(crate) fn deep_nesting() -> Vec<Case> {
    let deep = |open: &str, shut: &str, depth: usize| open.repeat(depth) + &shut.repeat(depth);
    let mut cases = Vec::new();
    for depth in [2, 127, 128, 129, 10_000, 400_000] {
        let array = deep("[", "]", depth);
        cases.push(with(
            format!("{depth} arrays in a note"),
            r#""meta":{}"#,
            &format!(r#""meta":{{"a":{array}}}"#),
            NO_JSON,
        ));
        cases.push(signed(format!("{depth} arrays"), array.into_bytes(), NO_JSON));
    }
    let object = deep(r#"{"meta":"#, "}", 100_000);
    cases.push(signed("100000 objects", object.into_bytes(), NO_JSON));
    cases.push(signed("400000 arrays that do not end", "[".repeat(400_000).into_bytes(), NO_JSON));
    cases
}

pub(crate) fn byte_order_mark() -> Vec<Case> {
    let utf16 = |text: String| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let start = "is not a manifest of schema 1 (line 1, column 1)";
    vec![
        signed("UTF-8 with a mark", format!("\u{feff}{}", good()).into_bytes(), start),
        signed("UTF-16 with a mark", [vec![0xff, 0xfe], utf16(good())].concat(), start),
        signed("UTF-16 without", utf16(good()), NO_JSON),
        signed("a mark at the end", format!("{}\u{feff}", good()).into_bytes(), NO_JSON),
    ]
}

pub(crate) fn trailing_bytes() -> Vec<Case> {
    let after =
        |name: &str, tail: &str, text: &str| signed(name, format!("{}{tail}", good()).into_bytes(), text);
    vec![
        after("a line end", "\n", "is not canonical: first difference at byte"),
        after("a space", " ", "is not canonical: first difference at byte"),
        after("NUL", "\0", NO_JSON),
        after("a letter", "x", NO_JSON),
        after("a brace", "}", NO_JSON),
        after("a second manifest", &good(), NO_JSON),
        signed(
            "a space in front",
            format!(" {}", good()).into_bytes(),
            "is not canonical: first difference at byte 0",
        ),
        signed("nothing at all", Vec::new(), "is not a manifest of schema 1 (line 1, column 0)"),
        signed("a brace less", good().as_bytes()[..good().len() - 1].to_vec(), NO_JSON),
    ]
}
