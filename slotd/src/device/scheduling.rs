//! What the kernel lets only `unsafe` code say: which threads and which allocations matter less, and which
//! descriptors end here.
//!
//! This is the one module of the project with `unsafe`.
#![expect(unsafe_code, reason = "raw system calls without a safe wrapper; each block says why it is sound")]

use nix::libc;

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// Lets the calling thread yield to every other: hashing on all cores must not make status slow. Threads inherit
/// nothing back; a failure only costs latency and is ignored.
pub fn background_thread() {
    // SAFETY: setpriority takes plain integers; on Linux who = 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Gives the calling thread's I/O the idle class (for a scheduled check).
pub fn idle_io() {
    // SAFETY: ioprio_set takes plain integers; who = 0 means the calling thread.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT)
    };
}

/// Makes every large buffer a mapping of its own for good, so that memory goes back to the kernel after a job.
/// Without it the allocator's threshold rises with the first large buffer that is freed.
pub fn return_large_buffers() {
    // SAFETY: mallopt takes plain integers and is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Every descriptor but standard input, output and error ends at the next `exec`. Ours do anyway; this is for what was
/// handed down by mistake. Linux 5.11.
pub fn end_descriptors_at_exec() -> std::io::Result<()> {
    // SAFETY: close_range takes plain integers, and with this flag closes nothing here and now.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Gives free heap pages back to the kernel after a job.
pub fn trim_memory() {
    // SAFETY: malloc_trim takes an integer and is thread-safe.
    unsafe { libc::malloc_trim(0) };
}
