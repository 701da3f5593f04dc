//! Reading a root image at rest and proving every block of it, on all cores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::blocks::{Image, to_usize};
use super::types::Progress;
use crate::device::buffer::Buffer;
use crate::device::kernel;
use crate::domain::manifest::BLOCK;
use crate::domain::verity::{BLOCK_LEN, PER_BLOCK};

/// What one worker takes at a time, in bytes: 16 hash blocks cover it.
const STRIDE: u64 = 8 << 20;
/// What is read at once, in bytes.
const CHUNK: usize = 1 << 20;
/// Runs of bad blocks that are kept one by one; further ones are only counted.
pub(super) const MAX_RUNS: usize = 1024;
const STACK: usize = 128 << 10;

/// Bad blocks of a slot: numbers of 4 KiB blocks from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BadBlocks {
    runs: BTreeMap<u64, u64>,
    /// How many.
    pub count: u64,
    /// The last one.
    pub last: Option<u64>,
}

impl BadBlocks {
    /// Notes one. One that was noted before counts once: a quick check may meet it again.
    pub(super) fn add(&mut self, block: u64) {
        if self.runs.range(..=block).next_back().is_some_and(|(start, len)| block - start < *len) {
            return;
        }
        self.count += 1;
        self.last = self.last.max(Some(block));
        let before = self.runs.range_mut(..block).next_back().filter(|(start, len)| **start + **len == block);
        if let Some((_, len)) = before {
            *len += 1;
        } else {
            self.runs.insert(block, 1);
            if self.runs.len() > 2 * MAX_RUNS {
                self.runs.pop_last();
            }
        }
    }

    /// Takes over what another scan has found.
    pub(super) fn merge(&mut self, other: &Self) {
        for (&start, &len) in &other.runs {
            for block in start..start + len {
                self.add(block);
            }
        }
        // Runs that were only counted stay counted.
        let listed: u64 = other.runs.values().sum();
        self.count += other.count - listed;
        self.last = self.last.max(other.last);
    }

    /// The first one.
    pub(super) fn first(&self) -> Option<u64> {
        self.runs.keys().next().copied()
    }

    /// Runs (first, count), neighbours joined, at most [`MAX_RUNS`].
    pub(super) fn extents(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (&start, &len) in &self.runs {
            match joined.last_mut() {
                Some((first, count)) if *first + *count == start => *count += len,
                _ => joined.push((start, len)),
            }
        }
        joined.truncate(MAX_RUNS);
        joined
    }
}

/// How a scan is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Threads; 0 means one more than there are cores.
    pub threads: usize,
    /// Idle I/O class.
    pub idle: bool,
}

/// Proves bytes `from..to` of the image (multiples of [`STRIDE`] or its end) and notes what is bad: data blocks and
/// blocks of the lowest tree level, unreadable ones among them. `None` when it was cancelled.
pub(super) fn scan(
    image: Image<'_>,
    from: u64,
    to: u64,
    pace: Pace,
    progress: &Progress,
) -> Option<BadBlocks> {
    let next = AtomicU64::new(from);
    let bad = Mutex::new(BadBlocks::default());
    let work = || {
        kernel::background_thread();
        if pace.idle {
            kernel::idle_io();
        }
        let mut buffer = Buffer::new(CHUNK);
        loop {
            let at = next.fetch_add(STRIDE, Ordering::Relaxed);
            if at >= to || progress.is_cancelled() {
                return;
            }
            let end = (at + STRIDE).min(to);
            let found = stride(image, at, end, &mut buffer);
            if !found.is_empty() {
                let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                for block in found {
                    bad.add(block);
                }
            }
            progress.advance(end - at);
        }
    };
    thread::scope(|scope| {
        let threads = match pace.threads {
            0 => thread::available_parallelism().map_or(2, std::num::NonZero::get).min(16) + 1,
            some => some,
        };
        for _ in 1..threads {
            let worker = thread::Builder::new().name("slot-verify".into()).stack_size(STACK);
            if worker.spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        // This thread works too, so that a scan ends even where no thread could be started; on a thread of its own,
        // because niceness cannot be taken back.
        work();
    });
    (!progress.is_cancelled()).then(|| bad.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The bad blocks of one stride.
fn stride(image: Image<'_>, from: u64, to: u64, buffer: &mut Buffer) -> Vec<u64> {
    let mut bad = Vec::new();
    let hashes = stride_hashes(image, from / BLOCK, (to - from) / BLOCK, &mut bad);
    let mut at = from;
    while at < to {
        let len = CHUNK.min(to_usize(to - at));
        let Some(data) = buffer.get_mut(..len) else { break };
        if image.medium.read_at(at, data).is_ok() {
            judge(image, at, data, &hashes, from, &mut bad);
        } else {
            // Block by block, so that one unreadable sector does not take its neighbours along.
            for block_at in (at..at + len as u64).step_by(BLOCK_LEN) {
                let Some(block) = data.get_mut(..BLOCK_LEN) else { break };
                match image.medium.read_at(block_at, block) {
                    Ok(()) => judge(image, block_at, block, &hashes, from, &mut bad),
                    Err(_) => bad.push(block_at / BLOCK),
                }
            }
        }
        at += len as u64;
    }
    bad
}

fn judge(image: Image<'_>, at: u64, data: &[u8], hashes: &[Option<[u8; 32]>], from: u64, bad: &mut Vec<u64>) {
    let first = to_usize((at - from) / BLOCK);
    for (number, block) in (at / BLOCK..).zip(data.chunks_exact(BLOCK_LEN)) {
        let index = first + to_usize(number - at / BLOCK);
        // Leaves under a bad hash block cannot be judged; the hash block itself is reported.
        if let Some(Some(expected)) = hashes.get(index)
            && image.tree.hasher().hash(block) != *expected
        {
            bad.push(number);
        }
    }
}

/// The proven digest of each leaf; `None` where its hash block is bad, which is noted.
fn stride_hashes(image: Image<'_>, first: u64, leaves: u64, bad: &mut Vec<u64>) -> Vec<Option<[u8; 32]>> {
    let Some(level) = image.tree.geometry().levels.first() else { return vec![Some(*image.tree.root())] };
    let blocks = first / PER_BLOCK..(first + leaves).div_ceil(PER_BLOCK);
    let start = image.tree_at + (level.start + blocks.start) * BLOCK;
    let mut read = Buffer::new(to_usize((blocks.end - blocks.start) * BLOCK));
    let readable = image.medium.read_at(start, &mut read).is_ok();
    let mut hashes = Vec::with_capacity(to_usize(leaves));
    for ((index, at), block) in blocks.zip((start..).step_by(BLOCK_LEN)).zip(read.chunks_exact_mut(BLOCK_LEN))
    {
        // Block by block where the whole cannot be read, so that one unreadable sector does not take its neighbours along.
        let proven = (readable || image.medium.read_at(at, block).is_ok())
            && image.tree.prove_leaf_hashes(index, block).is_ok();
        if !proven {
            bad.push(at / BLOCK);
        }
        hashes.extend(block.chunks_exact(32).map(|hash| hash.try_into().ok().filter(|_| proven)));
    }
    hashes
}

#[cfg(test)]
mod tests;
