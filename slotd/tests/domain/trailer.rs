//! The trailer: what is written comes back, and nothing else does.

use proptest::prelude::*;
use slotd::domain::layout::{Extent, Layout, Part};
use slotd::domain::manifest::Sha256Hex;
use slotd::domain::trailer::{Found, Trailer, parse, render};

use super::sample;

fn trailers() -> impl Strategy<Value = Trailer> {
    let part = (prop::sample::select(&Part::ALL[..]), any::<u64>(), any::<u64>())
        .prop_map(|(part, offset, size)| (part, Extent { offset, size }));
    (any::<u64>(), any::<u64>(), any::<[u8; 32]>(), prop::collection::vec(part, 0..=9)).prop_map(
        |(sequence, installed_at, manifest, parts)| Trailer {
            sequence,
            installed_at,
            manifest: Sha256Hex(manifest),
            parts,
        },
    )
}

proptest! {
    #[test]
    fn what_is_rendered_parses(trailer in trailers()) {
        prop_assert_eq!(parse(&render(&trailer)), Found::Valid(trailer));
    }

    #[test]
    fn a_torn_trailer_is_never_valid(old in trailers(), new in trailers(), zero in any::<bool>(), sectors in 0_u8..=255) {
        let old = if zero { [0; 4096] } else { render(&old) };
        let new = render(&new);
        let mut torn = old;
        // Any subset of the eight sectors arrived, not just a prefix.
        for sector in (0..8).filter(|sector| sectors & (1 << sector) != 0) {
            torn[sector * 512..][..512].copy_from_slice(&new[sector * 512..][..512]);
        }
        match parse(&torn) {
            Found::Valid(_) => prop_assert!(torn == old || torn == new),
            Found::Absent => prop_assert!(torn.iter().all(|b| *b == 0)),
            Found::Torn(_) => prop_assert!(torn != old && torn != new),
        }
    }

    #[test]
    fn arbitrary_blocks_do_not_panic(start in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let mut block = [0; 4096];
        block[..start.len()].copy_from_slice(&start);
        if magic {
            block[..8].copy_from_slice(b"SPSSLOT1");
        }
        prop_assert!(!matches!(parse(&block), Found::Valid(_)));
    }
}

fn usual() -> Trailer {
    let parts = Layout::of(&sample(), 900, 1500).parts().to_vec();
    Trailer { sequence: 7, installed_at: 1_790_000_000, manifest: Sha256Hex([0xab; 32]), parts }
}

#[test]
fn every_flipped_bit_is_found() {
    let block = render(&usual());
    for byte in 0..block.len() {
        for bit in 0..8 {
            let mut bad = block;
            bad[byte] ^= 1 << bit;
            assert!(matches!(parse(&bad), Found::Torn(_)), "byte {byte}, bit {bit}");
        }
    }
}

#[test]
fn zeros_are_absent_and_a_single_one_is_not() {
    assert_eq!(parse(&[0; 4096]), Found::Absent);
    let mut block = [0; 4096];
    block[4095] = 1;
    assert!(matches!(parse(&block), Found::Torn(_)));
}

/// A block whose checksum is right, whatever it says.
fn sealed(change: impl FnOnce(&mut [u8; 4096])) -> [u8; 4096] {
    use sha2::Digest as _;
    let mut block = render(&usual());
    change(&mut block);
    let sum = sha2::Sha256::digest(&block[..4064]);
    block[4064..].copy_from_slice(&sum);
    block
}

#[test]
fn other_formats_unknown_parts_and_long_lists_are_refused() {
    let cases: [(usize, u32, &str); 4] =
        [(8, 2, "format"), (12, 4000, "room"), (12, u32::MAX, "room"), (64, 99, "part")];
    for (at, value, word) in cases {
        let block = sealed(|b| b[at..at + 4].copy_from_slice(&value.to_le_bytes()));
        match parse(&block) {
            Found::Torn(why) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
