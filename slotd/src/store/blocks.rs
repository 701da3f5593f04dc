//! Proving, writing and reading back the blocks of a root image, on all cores and in bounded memory.
//!
//! One thread reads what arrives; the workers prove each chunk against the tree, write the very buffer that was
//! proven, flush every segment, and read it back while the next one arrives.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::device::buffer::Buffer;
use crate::device::kernel;
use crate::device::medium::{Medium, MediumError};
use crate::device::source::{Source, SourceError};
use crate::domain::manifest::BLOCK;
use crate::domain::verity::{BLOCK_LEN, Hash, PER_BLOCK, Tree, TreeError};

/// What is read, proven and written at once, in bytes.
pub(super) const CHUNK: u64 = 1 << 20;
/// What is flushed and read back at once, in bytes.
pub(super) const SEGMENT: u64 = 64 << 20;
/// Chunks that may be on their way from the source to the medium.
const BUFFERS: usize = 12;
/// Stack of a worker in bytes; it only hashes and calls the kernel.
const STACK: usize = 128 << 10;

/// A root image in a slot and the tree that proves it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a> {
    /// The slot.
    pub medium: &'a dyn Medium,
    /// Its tree, upper levels proven.
    pub tree: &'a Tree,
    /// Where `root.verity` begins in the slot.
    pub tree_at: u64,
    /// Length of the image in bytes; it begins at byte 0 of the slot.
    pub size: u64,
}

/// Why blocks did not get into the slot.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockError {
    /// What arrived is not what was signed.
    #[error(
        "root.erofs, byte {at}: block is {found}, the signed tree says {expected}; the image is damaged or was altered",
        found = hex::encode(found),
        expected = hex::encode(expected)
    )]
    Arrived {
        /// Offset in `root.erofs`.
        at: u64,
        /// Signed.
        expected: Hash,
        /// Arrived.
        found: Hash,
    },
    /// What was written does not come back.
    #[error(
        "byte {at} of the slot: block reads back as {found}, {expected} was written; the medium is failing",
        found = hex::encode(found),
        expected = hex::encode(expected)
    )]
    ReadBack {
        /// Offset in the slot.
        at: u64,
        /// Written.
        expected: Hash,
        /// Read.
        found: Hash,
    },
    /// The tree in the slot does not prove itself any more.
    #[error("root.verity in the slot: {0}; the medium is failing")]
    Tree(#[from] TreeError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The source ended or failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No thread could be started.
    #[error("cannot start a worker: {0}")]
    Thread(std::io::Error),
}

/// A leaf that does not match.
struct Mismatch {
    leaf: u64,
    expected: Hash,
    found: Hash,
}

impl Image<'_> {
    /// The digests of `leaves` leaves from `first` (a multiple of 128) on, read from the slot and proven.
    pub(super) fn leaf_hashes(&self, first: u64, leaves: u64) -> Result<Vec<u8>, BlockError> {
        let Some(level) = self.tree.geometry().levels.first() else { return Ok(self.tree.root().to_vec()) };
        let (index, blocks) = (first / PER_BLOCK, leaves.div_ceil(PER_BLOCK));
        let mut buffer = Buffer::new(to_usize(blocks * BLOCK));
        self.medium.read_at(self.tree_at + (level.start + index) * BLOCK, &mut buffer)?;
        for (number, block) in (index..).zip(buffer.chunks_exact(BLOCK_LEN)) {
            self.tree.prove_leaf_hashes(number, block)?;
        }
        Ok(buffer[..to_usize(leaves * 32)].to_vec())
    }

    /// The first block of `data` (leaves from `first` on) that `hashes` do not prove.
    fn mismatch(&self, first: u64, data: &[u8], hashes: &[u8]) -> Option<Mismatch> {
        let tree = self.tree;
        data.chunks_exact(BLOCK_LEN).zip(hashes.chunks_exact(32)).zip(first..).find_map(
            |((block, expected), leaf)| {
                let found = tree.hasher().hash(block);
                (found != expected).then(|| Mismatch {
                    leaf,
                    expected: expected.try_into().unwrap_or_default(),
                    found,
                })
            },
        )
    }
}

/// A segment on its way.
struct Segment {
    /// Offset in the image, in bytes.
    at: u64,
    size: u64,
    hashes: Vec<u8>,
    /// Chunks that are not yet written, then chunks that are not yet read back.
    left: AtomicU64,
}

impl Segment {
    fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK)
    }

    fn hashes_of(&self, chunk_at: u64) -> &[u8] {
        self.hashes.get(to_usize((chunk_at - self.at) / BLOCK * 32)..).unwrap_or(&[])
    }

    /// Counts one chunk off; true for the last.
    fn finish_one(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

enum Task {
    Write { segment: Arc<Segment>, at: u64, data: Buffer, len: usize },
    Flush(Arc<Segment>),
    ReadBack { segment: Arc<Segment>, at: u64, len: usize },
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Task>,
    reads: VecDeque<Task>,
    reading: usize,
    buffers: Vec<Buffer>,
    made: usize,
    segments_left: u64,
    /// Segments that ended before their predecessor did.
    ended: Vec<(u64, u64)>,
    durable: u64,
    closed: bool,
    error: Option<BlockError>,
}

/// State shared by the reader and the workers of one install.
struct Pool<'a> {
    image: Image<'a>,
    read_back: bool,
    workers: usize,
    queue: Mutex<Queue>,
    /// For the workers: there is a task, or nothing will come any more.
    tasks: Condvar,
    /// For the reader: a buffer is free, a segment has ended, or something failed.
    progress: Condvar,
    marks: &'a Marks<'a>,
}

/// Whom to tell how far it is.
pub(super) struct Marks<'a> {
    /// So many more bytes have arrived.
    pub received: &'a (dyn Fn(u64) + Sync),
    /// So many bytes from the image's start are in the slot without a gap, flushed and read back.
    pub durable: &'a (dyn Fn(u64) + Sync),
}

/// Writes the image from byte `from` (a multiple of [`CHUNK`]) on: proves, writes, flushes and, unless `read_back` is
/// false, reads back. `source` stands at that byte. Returns when everything is in the slot.
pub(super) fn write(
    image: Image<'_>,
    source: &mut Source<'_>,
    from: u64,
    read_back: bool,
    marks: &Marks<'_>,
) -> Result<(), BlockError> {
    let queue = Queue { durable: from, ..Queue::default() };
    let (tasks, progress) = (Condvar::new(), Condvar::new());
    let workers = workers();
    let pool = Pool { image, read_back, workers, queue: Mutex::new(queue), tasks, progress, marks };
    thread::scope(|scope| {
        for _ in 0..workers {
            let worker = thread::Builder::new().name("slot-write".into()).stack_size(STACK);
            if let Err(e) = worker.spawn_scoped(scope, || pool.work()) {
                pool.fail(BlockError::Thread(e));
            }
        }
        let fed = pool.feed(source, from);
        if let Err(e) = fed {
            pool.fail(e);
        }
        pool.drain()
    })
}

/// Two more than there are cores, so that hashing goes on while others wait for the device. Asking costs the kernel a
/// look into several cgroup files.
fn workers() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get).min(16) + 2
}

impl Pool<'_> {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: BlockError) {
        let mut queue = self.lock();
        // The first error is the cause; what follows is its echo.
        queue.error.get_or_insert(error);
        queue.writes.clear();
        queue.reads.clear();
        self.tasks.notify_all();
        self.progress.notify_one();
    }

    /// Reads chunk after chunk and hands it to the workers.
    fn feed(&self, source: &mut Source<'_>, from: u64) -> Result<(), BlockError> {
        let mut at = from;
        while at < self.image.size {
            let size = (SEGMENT - at % SEGMENT).min(self.image.size - at);
            let hashes = self.image.leaf_hashes(at / BLOCK, size / BLOCK)?;
            let segment = Arc::new(Segment { at, size, hashes, left: AtomicU64::new(size.div_ceil(CHUNK)) });
            self.lock().segments_left += 1;
            let end = at + size;
            while at < end {
                let len = to_usize(CHUNK.min(end - at));
                let Some(mut data) = self.buffer() else { return Ok(()) };
                source.read(&mut data[..len])?;
                (self.marks.received)(len as u64);
                let task = Task::Write { segment: Arc::clone(&segment), at, data, len };
                self.lock().writes.push_back(task);
                self.tasks.notify_one();
                at += len as u64;
            }
        }
        Ok(())
    }

    /// A free buffer; `None` when the install has failed.
    fn buffer(&self) -> Option<Buffer> {
        let mut queue = self.lock();
        loop {
            if queue.error.is_some() {
                return None;
            }
            if let Some(buffer) = queue.buffers.pop() {
                return Some(buffer);
            }
            if queue.made < BUFFERS {
                queue.made += 1;
                drop(queue);
                return Some(Buffer::new(to_usize(CHUNK)));
            }
            queue = self.progress.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until every segment has ended, or one has failed.
    fn drain(&self) -> Result<(), BlockError> {
        let mut queue = self.lock();
        while queue.segments_left > 0 && queue.error.is_none() {
            queue = self.progress.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.closed = true;
        self.tasks.notify_all();
        queue.error.take().map_or(Ok(()), Err)
    }

    fn work(&self) {
        kernel::background_thread();
        let mut buffer = None;
        while let Some(task) = self.next() {
            let reading = matches!(task, Task::ReadBack { .. });
            if let Err(e) = self.run(task, &mut buffer) {
                self.fail(e);
            }
            if reading {
                self.lock().reading -= 1;
            }
        }
    }

    /// The next task. Half of the workers read back while there is something to write, so that neither waits.
    fn next(&self) -> Option<Task> {
        let mut queue = self.lock();
        loop {
            if queue.closed || queue.error.is_some() {
                return None;
            }
            let may_read = queue.writes.is_empty() || queue.reading < self.workers / 2;
            if let Some(task) = if may_read { queue.reads.pop_front() } else { None } {
                queue.reading += usize::from(matches!(task, Task::ReadBack { .. }));
                return Some(task);
            }
            if let Some(task) = queue.writes.pop_front() {
                return Some(task);
            }
            queue = self.tasks.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, task: Task, own: &mut Option<Buffer>) -> Result<(), BlockError> {
        match task {
            Task::Write { segment, at, data, len } => {
                self.write_chunk(&segment, at, &data[..len])?;
                let mut queue = self.lock();
                queue.buffers.push(data);
                if segment.finish_one() {
                    queue.reads.push_front(Task::Flush(segment));
                    self.tasks.notify_one();
                }
                drop(queue);
                self.progress.notify_one();
            }
            Task::Flush(segment) => {
                self.image.medium.flush()?;
                self.flushed(&segment);
            }
            Task::ReadBack { segment, at, len } => {
                let buffer = own.get_or_insert_with(|| Buffer::new(to_usize(CHUNK)));
                self.image.medium.read_at(at, &mut buffer[..len])?;
                if let Some(bad) = self.image.mismatch(at / BLOCK, &buffer[..len], segment.hashes_of(at)) {
                    let Mismatch { leaf, expected, found } = bad;
                    return Err(BlockError::ReadBack { at: leaf * BLOCK, expected, found });
                }
                if segment.finish_one() {
                    self.ended(&segment);
                }
            }
        }
        Ok(())
    }

    /// The one place where data enters a slot: proven here, written here, from the same memory.
    fn write_chunk(&self, segment: &Segment, at: u64, data: &[u8]) -> Result<(), BlockError> {
        if let Some(bad) = self.image.mismatch(at / BLOCK, data, segment.hashes_of(at)) {
            let Mismatch { leaf, expected, found } = bad;
            return Err(BlockError::Arrived { at: leaf * BLOCK, expected, found });
        }
        Ok(self.image.medium.write_at(at, data)?)
    }

    fn flushed(&self, segment: &Arc<Segment>) {
        if !self.read_back {
            return self.ended(segment);
        }
        segment.left.store(segment.chunks(), Ordering::Release);
        let mut queue = self.lock();
        let mut at = segment.at;
        while at < segment.at + segment.size {
            let len = to_usize(CHUNK.min(segment.at + segment.size - at));
            queue.reads.push_back(Task::ReadBack { segment: Arc::clone(segment), at, len });
            at += len as u64;
        }
        drop(queue);
        self.tasks.notify_all();
    }

    fn ended(&self, segment: &Segment) {
        let mut queue = self.lock();
        queue.segments_left -= 1;
        queue.ended.push((segment.at, segment.size));
        while let Some(next) = queue.ended.iter().position(|(at, _)| *at == queue.durable) {
            let (_, size) = queue.ended.swap_remove(next);
            queue.durable += size;
        }
        let durable = queue.durable;
        // Under the lock, so that two segments that end together are told in order.
        (self.marks.durable)(durable);
        drop(queue);
        self.progress.notify_one();
    }
}

pub(super) fn to_usize(bytes: u64) -> usize {
    // Every length that comes here is bounded by a constant of this module or by a part's limit.
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
pub(super) mod tests;
