//! What the kernel lets only `unsafe` code say: which threads and which allocations matter less, which descriptors end
//! here, and what device-mapper is asked.
//!
//! This is the one module of the project with `unsafe`.
#![expect(unsafe_code, reason = "raw system calls without a safe wrapper; each block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

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
pub fn end_descriptors_at_exec() -> io::Result<()> {
    // SAFETY: close_range takes plain integers, and with this flag closes nothing here and now.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives free heap pages back to the kernel after a job.
pub fn trim_memory() {
    // SAFETY: malloc_trim takes an integer and is thread-safe.
    unsafe { libc::malloc_trim(0) };
}

/// Length of `struct dm_ioctl` (linux/dm-ioctl.h).
pub const DM_HEADER: usize = 312;
/// Where it holds the length of the whole message: 32 bits.
const DM_DATA_SIZE: std::ops::Range<usize> = 12..16;

/// Asks device-mapper, whose control node `control` is. `message` begins with a `struct dm_ioctl`, in which this function
/// sets `data_size`; what device-mapper answers replaces it. Blocks for as long as the kernel does.
pub fn device_mapper(control: BorrowedFd<'_>, command: u8, message: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if message.len() < DM_HEADER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    message.get_mut(DM_DATA_SIZE).unwrap_or_default().copy_from_slice(&length.to_ne_bytes());
    let request = nix::request_code_readwrite!(0xfd, command, DM_HEADER);
    // SAFETY: `message` lives and is borrowed exclusively through the call. Every device-mapper command copies at most
    // `data_size` bytes from and to it (linux/dm-ioctl.h), which was set to its length just above. Another kind of
    // descriptor than the control node does not know the request, whose size says DM_HEADER bytes: they are there.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
