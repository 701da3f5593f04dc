//! GRUB's environment block: both ways, torn, and against any bytes.

use proptest::prelude::*;
use slotd::domain::envblk::{DEFAULT, EnvblkError, Environment, ONE_SHOT, SIZE, WRITE_LIMIT, parse};

fn block(lines: &str) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n{lines}").into_bytes();
    block.resize(SIZE, b'#');
    block
}

fn variables(lines: &str) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    parse(&block(lines)).unwrap().variables().map(|(name, value)| (text(name), text(value))).collect()
}

/// First the two that are ours, as `render` orders them.
fn environment(values: &[(&str, &[u8])]) -> Environment {
    let mut environment = Environment::default();
    for (name, value) in values {
        environment.set(name, value).unwrap();
    }
    environment
}

#[test]
fn lines_are_read_as_grub_reads_them() {
    for (lines, expected) in [
        ("", vec![]),
        ("# a comment\n####\n", vec![]),
        ("saved_entry=sps-slot-1\n", vec![("saved_entry", "sps-slot-1")]),
        ("a=1\nb=\nc=x=y\n", vec![("a", "1"), ("b", ""), ("c", "x=y")]),
        ("a=b c\\\\d\n", vec![("a", "b c\\d")]),
        ("a=x\\\ny\n# c\\\nb=1\nd=#\n", vec![("a", "x\ny"), ("d", "#")]),
        (" a#b =5\n", vec![(" a#b ", "5")]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(variables(lines), expected, "{lines:?}");
    }
}

#[test]
fn what_grub_does_not_write_is_an_error_with_its_place() {
    let line = |offset| move |what| EnvblkError::Line { offset, what };
    for (lines, expected) in [
        ("a=1\nfoo\n", line(29)("a line without =")),
        ("=1\n", line(25)("no name before =")),
        ("a=1\na=2\n", line(29)("a second value of the same name; the block is torn")),
        ("a=1", line(25)("the last line does not end; the block is torn")),
        ("a=1\n##x", line(29)("the last line does not end; the block is torn")),
        ("a=1\\\n", line(25)("the last line does not end; the block is torn")),
        ("a=1\nb=\0\n", line(29)("a zero byte; the block is torn")),
        ("# \0\n", line(25)("a zero byte; the block is torn")),
    ] {
        assert_eq!(parse(&block(lines)), Err(expected), "{lines:?}");
    }
    assert_eq!(parse(&[b'#'; SIZE]), Err(EnvblkError::Signature));
    assert_eq!(parse(&[0; SIZE]), Err(EnvblkError::Signature));
    for length in [0, 1, 512, SIZE - 1, SIZE + 1] {
        let mut short = block("");
        short.resize(length, b'#');
        assert_eq!(parse(&short), Err(EnvblkError::Size { found: length as u64 }));
    }
}

#[test]
fn a_full_block_without_padding_is_read() {
    let full = format!("a={}\n", "x".repeat(SIZE - 25 - 3));
    assert_eq!(variables(&full).len(), 1);
}

#[test]
fn ours_come_first_and_the_rest_is_kept() {
    let mut environment =
        parse(&block("# made by hand\nx=1\\\\\nnext_entry=sps-slot-2\nsaved_entry=\ny=2\n")).unwrap();
    environment.set(DEFAULT, b"sps-slot-1").unwrap();
    let expected = "saved_entry=sps-slot-1\nnext_entry=sps-slot-2\nx=1\\\\\ny=2\n# made by hand\n";
    assert_eq!(environment.render().unwrap().as_slice(), block(expected));
    environment.unset(ONE_SHOT);
    environment.unset(ONE_SHOT);
    let expected = "saved_entry=sps-slot-1\nx=1\\\\\ny=2\n# made by hand\n";
    assert_eq!(environment.render().unwrap().as_slice(), block(expected));
}

#[test]
fn only_what_one_sector_holds_is_written() {
    let room = WRITE_LIMIT - 25 - "x=\n".len();
    let fits = environment(&[("x", "y".repeat(room).as_bytes())]).render().unwrap();
    assert_eq!(fits[WRITE_LIMIT - 1], b'\n');
    assert!(fits[WRITE_LIMIT..].iter().all(|byte| *byte == b'#'));
    let longer = environment(&[("x", "y".repeat(room + 1).as_bytes())]);
    assert_eq!(longer.render(), Err(EnvblkError::TooLong { found: WRITE_LIMIT + 1 }));
    let escaped = environment(&[("x", "\\".repeat(room / 2 + 1).as_bytes())]);
    assert!(matches!(escaped.render(), Err(EnvblkError::TooLong { .. })));
}

#[test]
fn a_cut_between_the_sectors_leaves_the_old_or_the_new_block() {
    let old = environment(&[(DEFAULT, b"sps-slot-1"), ("x", &[b'y'; 400])]).render().unwrap();
    let new = environment(&[(DEFAULT, b"sps-slot-2"), (ONE_SHOT, b"sps-slot-1")]).render().unwrap();
    for (first, second) in [(&old, &new), (&new, &old)] {
        let torn = [&first[..WRITE_LIMIT], &second[WRITE_LIMIT..]].concat();
        assert_eq!(parse(&torn), parse(first));
    }
    // A block of GRUB's that is longer, and a second sector from before it: no value is taken from half a line.
    let long = block(&format!("x={}\nsaved_entry=sps-slot-1\n", "y".repeat(600)));
    let torn = [&long[..WRITE_LIMIT], &new[WRITE_LIMIT..]].concat();
    assert!(matches!(parse(&torn), Err(EnvblkError::Line { offset: 25, .. })));
}

#[test]
fn names_and_values_that_would_not_read_back_are_refused() {
    let mut environment = Environment::default();
    for (name, value) in [("", "1"), ("#a", "1"), ("a=b", "1"), ("a\nb", "1"), ("a\0", "1"), ("a", "\0")] {
        let error = environment.set(name, value.as_bytes()).unwrap_err();
        assert_eq!(error, EnvblkError::Variable { name: name.to_owned() });
    }
    assert_eq!(environment, Environment::default());
}

/// Lines much like GRUB's, damaged ones among them.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"=".to_vec()),
        Just(b"\\".to_vec()),
        Just(b"#".to_vec()),
        Just(b"saved_entry=".to_vec()),
        Just(b"a=1\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 1..20),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn an_environment_reads_back(
        default in proptest::option::of("[^\\x00]{0,20}"),
        one_shot in proptest::option::of("[^\\x00]{0,20}"),
        others in proptest::collection::btree_map("[a-z\\\\ ][a-z0-9_#\\\\]{0,8}", proptest::collection::vec(1_u8.., 0..30), 0..4),
    ) {
        let mut environment = Environment::default();
        let ours = [(DEFAULT, default), (ONE_SHOT, one_shot)];
        for (name, value) in ours.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            environment.set(name, value.as_bytes()).unwrap();
        }
        for (name, value) in &others {
            environment.set(name, value).unwrap();
        }
        let block = environment.render().unwrap();
        prop_assert_eq!(parse(&block).unwrap(), environment);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn what_is_read_can_be_written_and_read_again(lines in lines()) {
        let mut bytes = b"# GRUB Environment Block\n".to_vec();
        bytes.extend(lines);
        bytes.resize(SIZE, b'#');
        if let Ok(environment) = parse(&bytes) {
            let once = parse(&environment.render().unwrap()).unwrap();
            prop_assert_eq!(once.render().unwrap(), environment.render().unwrap());
            for (name, value) in environment.variables() {
                prop_assert!(once.variables().any(|other| other == (name, value)));
            }
        }
    }
}
