//! Work for all cores, in bounded memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// States that wait for a thread.
const QUEUE: usize = 64;

static CHECKED: AtomicU64 = AtomicU64::new(0);

/// So many states this process has checked: for whoever waits for the end.
pub fn checked() -> u64 {
    CHECKED.load(Ordering::Relaxed)
}

/// Counts one.
pub(super) fn count() {
    CHECKED.fetch_add(1, Ordering::Relaxed);
}

/// Threads that work at a time.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// Has `take` called, on all cores, for whatever `make` hands on.
pub(super) fn on_all_cores<T: Send>(make: impl FnOnce(&mut dyn FnMut(T)), take: impl Fn(T) + Sync) {
    let (send, receive) = sync_channel::<T>(QUEUE);
    let receive = Mutex::new(receive);
    let next = || lock(&receive).recv();
    thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(|| {
                while let Ok(one) = next() {
                    take(one);
                }
            });
        }
        // The receiver lives as long as this scope.
        make(&mut |one| drop(send.send(one)));
        drop(send);
    });
}

/// What a thread that panicked left is still right: each change is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
