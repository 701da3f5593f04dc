//! Numbers drawn from a seed: the same seed, the same numbers (`SplitMix64`).

use sha2::{Digest as _, Sha256};

/// A source of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Numbers of this seed for what `place` names.
    pub fn new(seed: u64, place: &[u64]) -> Self {
        let mut hash = Sha256::new();
        for word in std::iter::once(&seed).chain(place) {
            hash.update(word.to_le_bytes());
        }
        Self(first_word(&hash.finalize()))
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.word() % (end.max(1) as u64)).unwrap_or(0)
    }

    /// True once in `of`.
    pub fn once_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

/// The first eight bytes of a digest.
pub fn first_word(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}
