use proptest::prelude::*;

use super::*;

/// Made by `efibootmgr --create --disk /dev/loop0 --part 1 --label "SPS firmware" --loader '\EFI\systemd\systemd-bootx64.efi'`
/// (efibootmgr 17, `EFIVARFS_PATH` on a directory) on a disk of `sfdisk` with `start=2048, size=65536,
/// uuid=01234567-89AB-CDEF-0123-456789ABCDEF`; without the four bytes of attributes. `virt.firmware.efi` of virt-firmware
/// 26.10 (`PyPI`) makes the same bytes.
const LOADER: &str = "01000000 7400 5300500053002000660069007200 6d007700610072006500 0000 \
    04012a00 01000000 0008000000000000 0000010000000000 67452301ab89efcd0123456789abcdef 0202 \
    04044600 5c004500460049005c00730079007300740065006d0064005c00730079007300740065006d0064002d00\
    62006f006f0074007800360034002e006500660069000000 7fff0400";

const FILE: &str = r"\EFI\systemd\systemd-bootx64.efi";

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

fn esp() -> Partition {
    let guid = bytes("67452301ab89efcd0123456789abcdef").try_into().unwrap();
    Partition { number: 1, start: 2048, size: 65_536, guid }
}

fn option(description: &str, file: &str) -> LoadOption {
    LoadOption::of_file(description, &esp(), file)
}

#[test]
fn an_entry_is_what_the_stock_tool_writes() {
    let ours = option("SPS firmware", FILE);
    assert_eq!(ours.render().unwrap(), bytes(LOADER));
    assert_eq!(LoadOption::parse(&bytes(LOADER)).unwrap(), ours);
    assert_eq!((variable(0x1a), number("Boot001A")), ("Boot001A".to_owned(), Some(0x1a)));
    for name in ["Boot001a", "Boot01A", "BootOrder", "Boot+01A", "boot001A", "Boot00011"] {
        assert_eq!(number(name), None, "{name}");
    }
    assert_eq!(parse_order(&render_order(&[1, 0xffff])), Ok(vec![1, 0xffff]));
    assert_eq!(parse_order(&[1, 0, 2]), Err(LoadOptionError::OddLength { found: 3 }));
    assert_eq!(parse_order(&vec![0; LIMIT + 1]), Err(LoadOptionError::TooLong { found: LIMIT + 1 }));
}

#[test]
fn what_is_no_entry_is_an_error_with_its_place() {
    let short = |offset, field| LoadOptionError::TooShort { offset, field };
    for (text, error) in [
        ("", short(0, "the attributes")),
        ("010000", short(0, "the attributes")),
        ("01000000 74", short(4, "the length of the path")),
        ("01000000 0400", short(6, "the description")),
        ("01000000 0400 5300 53", short(6, "the description")),
        ("01000000 0400 00d8 0000 7fff0400", LoadOptionError::Text { offset: 6 }),
        ("01000000 0500 5300 0000 7fff0400", short(10, "the path")),
    ] {
        assert_eq!(LoadOption::parse(&bytes(text)), Err(error), "{text}");
    }
    assert_eq!(LoadOption::parse(&vec![0; LIMIT + 1]), Err(LoadOptionError::TooLong { found: LIMIT + 1 }));
    let long = LoadOption { optional: vec![0; LIMIT], ..option("x", FILE) };
    assert!(matches!(long.render(), Err(LoadOptionError::TooLong { .. })));
    let long = option("x", &"y".repeat(40_000));
    assert!(matches!(long.render(), Err(LoadOptionError::TooLong { .. })));
}

const RECOVERY: &str = r"\EFI\Linux\sps-recovery-8.0.1.efi";

fn wanted() -> Vec<Wanted> {
    vec![
        Wanted { description: "SPS firmware", files: vec![FILE.into(), r"\EFI\BOOT\BOOTX64.EFI".into()] },
        Wanted { description: "SPS recovery", files: vec![RECOVERY.into()] },
    ]
}

/// Numbers of the entries that are written, and the order where it is.
fn planned(found: &[(u16, Option<LoadOption>)], order: &[u16]) -> (Vec<u16>, Option<Vec<u16>>) {
    let found = found.iter().cloned().collect();
    let Plan { entries, order } = plan(&found, order, &esp(), &wanted()).unwrap();
    let first = [option("SPS firmware", FILE), option("SPS recovery", RECOVERY)];
    assert!(entries.iter().all(|(_, entry)| first.contains(entry)), "{entries:?}");
    (entries.into_iter().map(|(number, _)| number).collect(), order)
}

#[test]
fn loader_and_recovery_come_first_and_nothing_of_others_is_touched() {
    let (loader, recovery) = (option("SPS firmware", FILE), option("SPS recovery", RECOVERY));
    let other = || Some(LoadOption { path: END.to_vec(), ..option("Debian", "") });
    let some = |entry: &LoadOption| Some(entry.clone());
    // An empty NVRAM; one with entries of others, of which one cannot be read.
    assert_eq!(planned(&[], &[]), (vec![0, 1], Some(vec![0, 1])));
    assert_eq!(planned(&[(0, other()), (2, None)], &[2, 0]), (vec![1, 3], Some(vec![1, 3, 2, 0])));
    // All is well, also where the order names what is not there.
    let good = [(5, some(&loader)), (3, some(&recovery)), (0, other())];
    assert_eq!(planned(&good, &[5, 3, 0, 9]), (vec![], None));
    assert_eq!(planned(&good, &[0, 3, 5, 3]), (vec![], Some(vec![5, 3, 0])));
    // Whatever it is called and however it is spelt, and the other copy of the loader will do.
    let installer = option("Linux Boot Manager", &FILE.to_uppercase());
    assert_eq!(planned(&[(1, some(&installer)), (3, some(&recovery))], &[1, 3]), (vec![], None));
    let copy = option("SPS firmware", r"\EFI\BOOT\BOOTX64.EFI");
    assert_eq!(planned(&[(1, some(&copy)), (3, some(&recovery))], &[1, 3]), (vec![], None));
    // The way to the disk, which firmware may add: `PciRoot(0x0)/Pci(0x3,0x0)`.
    let way = bytes("02010c00d041030a00000000 010106000003");
    let full = LoadOption { path: [way, loader.path.clone()].concat(), ..loader.clone() };
    assert_eq!(planned(&[(1, some(&full)), (3, some(&recovery))], &[1, 3]), (vec![], None));
    // Ours is preferred to one that is equal.
    assert_eq!(
        planned(&[(1, some(&installer)), (2, some(&loader)), (3, some(&recovery))], &[2, 3, 1]).0,
        [0_u16; 0]
    );
    // Another file, another partition, inactive, with arguments: ours is replaced, of others another one is made.
    let old = option("SPS recovery", r"\EFI\Linux\sps-recovery-8.0.0.efi");
    assert_eq!(planned(&[(5, some(&loader)), (3, some(&old))], &[5, 3]), (vec![3], None));
    let elsewhere = LoadOption::of_file("SPS firmware", &Partition { guid: [7; 16], ..esp() }, FILE);
    let inactive = LoadOption { attributes: 0, ..loader.clone() };
    let told = LoadOption { optional: vec![1], ..loader.clone() };
    for ours in [elsewhere, inactive, told] {
        assert_eq!(planned(&[(5, some(&ours)), (3, some(&recovery))], &[5, 3]), (vec![5], None));
        let theirs = LoadOption { description: "Linux".into(), ..ours };
        let entries = [(5, some(&theirs)), (3, some(&recovery))];
        assert_eq!(planned(&entries, &[5, 3]), (vec![0], Some(vec![0, 3, 5])));
    }
    let full: Vec<_> = (0..=u16::MAX).map(|number| (number, None)).collect();
    assert_eq!(plan(&full.into_iter().collect(), &[], &esp(), &wanted()), Err(LoadOptionError::Full));
}

proptest! {
    #[test]
    fn what_is_rendered_reads_back(
        attributes: u32,
        description in "[^\\x00]{0,40}",
        path in proptest::collection::vec(any::<u8>(), 0..100),
        optional in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let option = LoadOption { attributes, description, path, optional };
        prop_assert_eq!(LoadOption::parse(&option.render().unwrap()).unwrap(), option);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(option) = LoadOption::parse(&bytes) {
            prop_assert_eq!(option.render().unwrap(), bytes);
        }
    }

    #[test]
    fn a_plan_is_carried_out_once(order in proptest::collection::vec(0_u16..6, 0..6), numbers in proptest::collection::btree_set(0_u16..6, 0..4)) {
        let mut found: BTreeMap<u16, Option<LoadOption>> = numbers.into_iter().map(|number| (number, None)).collect();
        let Plan { entries, order: next } = plan(&found, &order, &esp(), &wanted()).unwrap();
        found.extend(entries.into_iter().map(|(number, entry)| (number, Some(entry))));
        let order = next.unwrap_or(order);
        prop_assert_eq!(plan(&found, &order, &esp(), &wanted()).unwrap(), Plan::default());
    }
}
