//! The content of a medium, in pages that copies share.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use twox_hash::XxHash3_128;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Pages of a group: what a copy shares or not, as a whole.
const GROUP: usize = 64;

/// What tells contents apart: XXH3 of 128 bits. Nobody tries to make two of them meet.
pub type Digest = [u8; 16];

/// Of these bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    XxHash3_128::oneshot(bytes).to_le_bytes()
}

/// 4 KiB and, once asked for, their digest.
#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE],
    digest: OnceLock<Digest>,
}

impl Page {
    fn new(bytes: &[u8; PAGE]) -> Option<Arc<Self>> {
        (*bytes != ZEROS).then(|| Arc::new(Self { bytes: *bytes, digest: OnceLock::new() }))
    }
}

const ZEROS: [u8; PAGE] = [0; PAGE];

/// A page; `None` is zeros. Most are, and what they share would be what all threads wait for.
type Shared = Option<Arc<Page>>;

fn bytes(page: &Shared) -> &[u8; PAGE] {
    page.as_ref().map_or(&ZEROS, |page| &page.bytes)
}

fn same(a: &Shared, b: &Shared) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.bytes == b.bytes,
        // Nothing else than `None` is zeros.
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Neighbouring pages and, once asked for, the digest of all.
#[derive(Debug)]
struct Group {
    pages: Vec<Shared>,
    digest: OnceLock<Digest>,
}

impl Clone for Group {
    /// A copy that is about to be changed.
    fn clone(&self) -> Self {
        Self { pages: self.pages.clone(), digest: OnceLock::new() }
    }
}

impl Group {
    fn digest(&self) -> &Digest {
        self.digest.get_or_init(|| {
            let of = |page: &Arc<Page>| *page.digest.get_or_init(|| digest(&page.bytes));
            let all: Vec<Digest> = self.pages.iter().map(|page| page.as_ref().map_or([0; 16], of)).collect();
            digest(all.as_flattened())
        })
    }
}

/// What is written at once: whole pages, shared by every medium that they are written to.
#[derive(Clone, Debug)]
pub struct Data {
    bytes: Arc<[u8]>,
    pages: Arc<OnceLock<Vec<Shared>>>,
}

impl Data {
    fn pages(&self) -> &[Shared] {
        self.pages.get_or_init(|| {
            let whole = self.bytes.chunks_exact(PAGE).filter_map(|page| page.try_into().ok());
            whole.map(Page::new).collect()
        })
    }
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), pages: Arc::default() }
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes) || self.bytes == other.bytes
    }
}

impl Eq for Data {}

/// The content of a medium. Copies share the pages that do not differ.
#[derive(Clone, Debug)]
pub struct Image {
    groups: Arc<Vec<Arc<Group>>>,
    pages: usize,
}

impl Image {
    /// `size` bytes of zeros, rounded up to 4 KiB.
    pub fn new(size: usize) -> Self {
        let pages = size.div_ceil(PAGE);
        let group = |first: usize| {
            let pages = vec![None; GROUP.min(pages - first)];
            Arc::new(Group { pages, digest: OnceLock::new() })
        };
        Self { groups: Arc::new((0..pages).step_by(GROUP).map(group).collect()), pages }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        (self.pages * PAGE) as u64
    }

    fn page(&self, number: usize) -> &[u8; PAGE] {
        bytes(&self.groups[number / GROUP].pages[number % GROUP])
    }

    fn set(&mut self, number: usize, page: Shared) {
        let group = Arc::make_mut(&mut Arc::make_mut(&mut self.groups)[number / GROUP]);
        group.digest = OnceLock::new();
        group.pages[number % GROUP] = page;
    }

    /// Fills `buf` from `offset`; false when that reaches past the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.pieces(offset, buf.len()).is_some_and(|pieces| {
            let mut done = 0;
            for (page, at, len) in pieces {
                buf[done..done + len].copy_from_slice(&self.page(page)[at..at + len]);
                done += len;
            }
            true
        })
    }

    /// Replaces what lies at `offset` by `data`; false when that reaches past the end.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        self.pieces(offset, data.len()).is_some_and(|pieces| {
            let mut done = 0;
            for (page, at, len) in pieces {
                let mut bytes = *self.page(page);
                bytes[at..at + len].copy_from_slice(&data[done..done + len]);
                self.set(page, Page::new(&bytes));
                done += len;
            }
            true
        })
    }

    /// The same for bytes `from..to` of what was written at `offset` as a whole; whole pages are shared.
    pub fn write_part(&mut self, offset: u64, data: &Data, from: usize, to: usize) -> bool {
        let to = to.min(data.len());
        let whole =
            (offset.is_multiple_of(PAGE as u64) && data.len().is_multiple_of(PAGE)).then(|| data.pages());
        let Some(pages) = whole else { return self.write(offset + from as u64, &data[from.min(to)..to]) };
        let Some(pieces) = self.pieces(offset + from as u64, to.saturating_sub(from)) else { return false };
        let first = usize::try_from(offset).unwrap_or(usize::MAX) / PAGE;
        for (number, at, len) in pieces {
            let page = &pages[number - first];
            if len == PAGE {
                self.set(number, page.clone());
            } else {
                let mut now = *self.page(number);
                now[at..at + len].copy_from_slice(&bytes(page)[at..at + len]);
                self.set(number, Page::new(&now));
            }
        }
        true
    }

    /// The same for those units of `unit` bytes of it that `kept` names one after the other.
    pub fn write_units(&mut self, offset: u64, data: &Data, unit: usize, mut kept: impl FnMut() -> bool) {
        let unit = unit.max(1);
        let mut from = None;
        for at in (0..data.len()).step_by(unit) {
            // Neighbours go together.
            match (kept(), from) {
                (true, None) => from = Some(at),
                (false, Some(first)) => {
                    self.write_part(offset, data, first, at);
                    from = None;
                }
                _ => {}
            }
        }
        if let Some(first) = from {
            self.write_part(offset, data, first, data.len());
        }
    }

    /// Pages that `len` bytes at `offset` touch: number, offset in the page, length.
    fn pieces(&self, offset: u64, len: usize) -> Option<impl Iterator<Item = (usize, usize, usize)> + use<>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len).filter(|end| *end as u64 <= self.size())?;
        Some((start / PAGE..end.div_ceil(PAGE)).map(move |page| {
            let from = start.max(page * PAGE);
            (page, from - page * PAGE, end.min((page + 1) * PAGE) - from)
        }))
    }

    /// What tells it from any other.
    pub fn digest(&self) -> Digest {
        let all: Vec<Digest> = self.groups.iter().map(|group| *group.digest()).collect();
        digest(all.as_flattened())
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let pages = |a: &Group, b: &Group| a.pages.iter().zip(&b.pages).all(|(a, b)| same(a, b));
        let groups = |(a, b): (&Arc<Group>, &Arc<Group>)| Arc::ptr_eq(a, b) || pages(a, b);
        self.pages == other.pages
            && (Arc::ptr_eq(&self.groups, &other.groups)
                || self.groups.iter().zip(&*other.groups).all(groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_write_is_what_writing_that_part_leaves() {
        let data: Data = (0..3 * PAGE).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<u8>>().into();
        for (from, to) in [(0, 3 * PAGE), (512, 4096), (4096, 8192), (3584, 9000), (700, 700)] {
            let (mut part, mut plain) = (Image::new(1 << 20), Image::new(1 << 20));
            assert!(part.write_part(8192, &data, from, to));
            assert!(plain.write(8192 + from as u64, &data[from..to]));
            assert!(part == plain && part.digest() == plain.digest(), "{from}..{to}");
        }
        let (mut units, mut plain) = (Image::new(1 << 20), Image::new(1 << 20));
        let mut drawn = (0..24).map(|unit| unit % 5 < 2);
        units.write_units(8192, &data, 512, || drawn.next().unwrap());
        for at in (0..3 * PAGE).step_by(512).filter(|at| at / 512 % 5 < 2) {
            assert!(plain.write(8192 + at as u64, &data[at..at + 512]));
        }
        assert!(units == plain && units.digest() == plain.digest());
        assert!(!Image::new(4096).write_part(4096, &data, 0, 1));
    }

    #[test]
    fn a_changed_copy_has_another_digest_and_the_original_its_own() {
        let original = Image::new(1 << 20);
        let before = original.digest();
        let mut copy = original.clone();
        assert!(copy.write(300_000, b"x"));
        assert!(copy != original && copy.digest() != before && original.digest() == before);
        assert!(copy.write(300_000, &[0]));
        assert!(copy == original && copy.digest() == before);
    }
}
