//! The index of a compressed file: for each logical cluster (one block of content) whether a physical cluster
//! starts in it, and where in the image that one lies.

use super::error::Fault;
use super::source::{le16, le32};

/// Most logical clusters of one file: 16 GiB with blocks of 4 KiB.
pub(super) const MAX: u64 = 1 << 22;

/// In a continuation: the first of its physical cluster, the rest of the number is that one's blocks.
const BLOCK_COUNT: u32 = 1 << 11;

/// Indexes take two bytes where they can (compact), or are extents (full).
const ADVISE_TWO_BYTES: u16 = 0x01;
const ADVISE_BIG_1: u16 = 0x02;
const ADVISE_BIG_2: u16 = 0x04;
const ADVISE_INLINE: u16 = 0x08;
const ADVISE_FRAGMENT: u16 = 0x20;
const ADVISE_KNOWN: u16 = 0x3f;

/// The 8-byte header before the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    advise: u16,
    /// Low 32 bits of the fragment's offset; the upper half is the inline tail's size.
    low: u32,
    /// The whole file is a fragment at this offset.
    pub(super) whole: Option<u64>,
}

impl Header {
    pub(super) fn parse(bytes: [u8; 8]) -> Result<Self, Fault> {
        let value = u64::from_le_bytes(bytes);
        if value >> 63 != 0 {
            return Ok(Self { advise: 0, low: 0, whole: Some(value & !(1 << 63)) });
        }
        let header = Self { advise: le16(&bytes, 4), low: le32(&bytes, 0), whole: None };
        let advise = u64::from(header.advise);
        if header.advise & !ADVISE_KNOWN != 0 {
            return Err(Fault::Unsupported("compression advice bits", advise));
        }
        if header.inline().is_some() && header.advise & ADVISE_FRAGMENT != 0 {
            return Err(Fault::Corrupt("its tail is both inline and a fragment", advise));
        }
        if header.inline() == Some(0) {
            return Err(Fault::Corrupt("its inline tail is empty", advise));
        }
        let [.., bits] = bytes;
        if bits != 0 {
            return Err(Fault::Unsupported("logical clusters larger than a block", u64::from(bits)));
        }
        Ok(header)
    }

    /// Compressed size of the tail that stands behind the index.
    pub(super) fn inline(&self) -> Option<u64> {
        (self.advise & ADVISE_INLINE != 0).then_some(u64::from(self.low >> 16))
    }
}

/// One logical cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lcluster {
    /// A physical cluster starts here.
    Head {
        /// Its content starts at this byte of the logical cluster.
        start: u32,
        /// Its first block.
        block: u32,
        /// May have more than one block.
        big: bool,
    },
    /// The one before goes on, with this number of blocks where it is said.
    Rest(Option<u32>),
}

/// What holds the content from `logical` to the next one's `logical`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pcluster {
    pub(super) logical: u64,
    pub(super) held: Held,
}

/// Where a piece of a compressed file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Blocks of the image: first, count.
    Blocks(u64, u64),
    /// Behind the index.
    Inline,
    /// In the packed inode, at this byte.
    Fragment(u64),
}

/// The two forms of the index, and where their bytes are in the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    pub(super) start: u64,
    /// Bytes of index.
    pub(super) len: u64,
    clusters: u64,
    /// `None`: eight bytes each. `Some`: four bytes, then two, then four again; the first two counts.
    compact: Option<(u64, u64)>,
}

impl Index {
    /// Index of a file with `clusters` logical clusters, `header` being the image's offset of its header.
    pub(super) fn new(
        compact: bool,
        header: u64,
        advise: &Header,
        clusters: u64,
        block_bits: u32,
    ) -> Result<Self, Fault> {
        if clusters > MAX {
            return Err(Fault::Limit("blocks of content in a compressed file", MAX));
        }
        let two_bytes = advise.advise & ADVISE_TWO_BYTES != 0;
        if !compact {
            if two_bytes {
                return Err(Fault::Unsupported("encoded extents", u64::from(advise.advise)));
            }
            return Ok(Self { start: header + 16, len: clusters * 8, clusters, compact: None });
        }
        let start = header + 8;
        if block_bits > if two_bytes { 12 } else { 14 } {
            return Err(Fault::Unsupported("a compact index with this block size", u64::from(block_bits)));
        }
        // Packs of two bytes an index are 32 bytes long and aligned.
        let first = (start.next_multiple_of(32) - start) / 4;
        let middle = if two_bytes { clusters.saturating_sub(first) / 16 * 16 } else { 0 };
        let first = if middle == 0 { clusters } else { first };
        // A pack holds two indexes of four bytes, also where only one is needed.
        let last = clusters - first - middle;
        let len = (first.next_multiple_of(2) + last.next_multiple_of(2)) * 4 + middle * 2;
        Ok(Self { start, len, clusters, compact: Some((first, middle)) })
    }

    /// What holds the content of a file of `size` bytes, in file order; `bytes` are those of the index.
    pub(super) fn pclusters(
        &self,
        bytes: &[u8],
        header: &Header,
        size: u64,
        block_bits: u32,
    ) -> Result<Vec<Pcluster>, Fault> {
        let clusters = match self.compact {
            None => full(bytes, header.advise)?,
            Some((first, middle)) => {
                let bits = block_bits.max(12);
                let mut packs = Packs { out: Vec::new(), left: self.clusters, bits, advise: header.advise };
                let (first, rest) = split(bytes, first.next_multiple_of(2) * 4);
                let (middle, last) = split(rest, middle * 2);
                packs.read(first, 8, 16)?;
                packs.read(middle, 32, 14)?;
                packs.read(last, 8, 16)?;
                packs.out
            }
        };
        assemble(&clusters, header, self.compact.is_none(), size, block_bits)
    }
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at(at)
}

fn cluster(kind: u32, advise: u16, start: u32, block: u32) -> Lcluster {
    // Type 1 has the first algorithm; type 0 (stored as it is) goes with type 3, the second one.
    let bit = if kind == 1 { ADVISE_BIG_1 } else { ADVISE_BIG_2 };
    Lcluster::Head { start, block, big: advise & bit != 0 }
}

fn full(bytes: &[u8], advise: u16) -> Result<Vec<Lcluster>, Fault> {
    let one = |entry: &[u8]| {
        let kind = u32::from(le16(entry, 0)) & 3;
        if kind != 2 {
            return Ok(cluster(kind, advise, u32::from(le16(entry, 2)), le32(entry, 4)));
        }
        rest(u32::from(le16(entry, 4)), advise)
    };
    bytes.chunks_exact(8).map(one).collect()
}

fn rest(distance: u32, advise: u16) -> Result<Lcluster, Fault> {
    if distance & BLOCK_COUNT == 0 {
        return Ok(Lcluster::Rest(None));
    }
    if advise & (ADVISE_BIG_1 | ADVISE_BIG_2) == 0 {
        return Err(Fault::Corrupt("a block count without big physical clusters", u64::from(distance)));
    }
    Ok(Lcluster::Rest(Some(distance & !BLOCK_COUNT)))
}

/// Decoder of the compact form: packs of indexes of a few bits each, with one block address at the end of
/// each pack that the addresses of the heads in it count on from.
struct Packs {
    out: Vec<Lcluster>,
    left: u64,
    /// Bits of the number before the two bits of the type.
    bits: u32,
    advise: u16,
}

impl Packs {
    fn read(&mut self, bytes: &[u8], pack: usize, width: usize) -> Result<(), Fault> {
        for pack in bytes.chunks_exact(pack) {
            self.pack(pack, width)?;
        }
        Ok(())
    }

    fn pack(&mut self, pack: &[u8], width: usize) -> Result<(), Fault> {
        let body = pack.len().saturating_sub(4);
        let base = le32(pack, body);
        let big = self.advise & ADVISE_BIG_1 != 0;
        // Without big clusters the address is of the block before the first.
        let mut used = u32::from(!big);
        let mut open = false;
        for index in 0..body * 8 / width {
            if self.left == 0 {
                return Ok(());
            }
            self.left -= 1;
            let bit = index * width;
            // At most 16 bits from any bit of a byte: three bytes hold them; those past the body are masked.
            let value = le32(pack, bit / 8) >> (bit % 8);
            let (low, kind) = (value & ((1 << self.bits) - 1), value >> self.bits & 3);
            if kind == 2 {
                let rest = rest(low, self.advise)?;
                if let (Lcluster::Rest(Some(blocks)), true) = (rest, big) {
                    used = used.wrapping_add(blocks);
                    open = false;
                }
                self.out.push(rest);
                continue;
            }
            used = used.wrapping_add(u32::from(open));
            self.out.push(cluster(kind, self.advise, low, base.wrapping_add(used)));
            open = true;
        }
        Ok(())
    }
}

fn assemble(
    clusters: &[Lcluster],
    header: &Header,
    full: bool,
    size: u64,
    block_bits: u32,
) -> Result<Vec<Pcluster>, Fault> {
    let mut found = Vec::new();
    let mut tail = None;
    for (index, (cluster, at)) in clusters.iter().zip((0..).step_by(1 << block_bits)).enumerate() {
        let &Lcluster::Head { start, block, big } = cluster else {
            if index == 0 {
                return Err(Fault::Corrupt("its first block of content continues nothing", 0));
            }
            continue;
        };
        if start >> block_bits != 0 || index == 0 && start != 0 {
            return Err(Fault::Corrupt(
                "a physical cluster starts outside its logical one",
                u64::from(start),
            ));
        }
        let logical = at + u64::from(start);
        // A last head may only mark the end.
        if logical >= size {
            continue;
        }
        tail = Some((found.len(), block));
        let next = clusters.get(index + 1);
        let count = match next {
            Some(Lcluster::Rest(count)) if big => count.unwrap_or(0),
            _ => 1,
        };
        found.push(Pcluster { logical, held: Held::Blocks(u64::from(block), u64::from(count)) });
    }
    let last = tail.and_then(|(index, block)| Some((found.get_mut(index)?, block)));
    if let Some((last, block)) = last {
        if header.inline().is_some() {
            last.held = Held::Inline;
        } else if header.advise & ADVISE_FRAGMENT != 0 {
            let high = if full { u64::from(block) << 32 } else { 0 };
            last.held = Held::Fragment(high | u64::from(header.low));
        }
    }
    if found.iter().any(|pcluster| matches!(pcluster.held, Held::Blocks(_, 0))) {
        return Err(Fault::Corrupt("a physical cluster without a number of blocks", 0));
    }
    Ok(found)
}
