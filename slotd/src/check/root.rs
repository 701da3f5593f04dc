//! The root in which check programs run: the image, read-only, with nothing of the host but a few pseudo-devices.
//!
//! Everything here is done by process 1 of namespaces that the helper made; it ends with them.

#![expect(clippy::disallowed_methods, reason = "mount points of the sandbox; mount(8) for a loop device")]

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::pivot_root;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::device::device_mapper;

/// Where the image is mounted before it becomes the root. Every system has this directory.
const STAGE: &str = "/tmp";
/// Devices that programs see.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Private `/tmp` of one program.
const TMP_OPTIONS: &str = "size=16m,nr_inodes=1024,mode=1777";
/// Address space of one process, in bytes.
const MEMORY: u64 = 512 << 20;
/// Largest file, in bytes.
const FILE_SIZE: u64 = 16 << 20;
/// Processes of the unprivileged user; the kernel counts those outside the sandbox too.
const PROCESSES: u64 = 64;
/// Open files of one process.
const FILES: u64 = 256;

/// EROFS superblock (Linux: `fs/erofs/erofs_fs.h`): at byte 1024, magic `0xE0F5E1E2`, then at +12 the block size as a power
/// of two, and at +36 the number of blocks; little-endian.
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// Why the root cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The image cannot be read.
    #[error("cannot read {}", image.display())]
    Read {
        /// Which device or file.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file", image.display())]
    Kind {
        /// What was named.
        image: PathBuf,
    },
    /// No superblock.
    #[error("{} is no EROFS: its superblock at byte {SUPERBLOCK} has no magic number", image.display())]
    NoErofs {
        /// Which device or file.
        image: PathBuf,
    },
    /// The file system reaches beyond what was verified.
    #[error("the EROFS in {} claims {found} bytes, but only {size} were verified", image.display())]
    Size {
        /// Which device or file.
        image: PathBuf,
        /// What the superblock says, in bytes.
        found: u64,
        /// What was verified, in bytes.
        size: u64,
    },
    /// A directory on which something is mounted is missing in the image.
    #[error("the firmware has no directory /{name}; check programs need it")]
    Directory {
        /// Its name.
        name: &'static str,
    },
    /// A system call was refused.
    #[error("cannot {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `mount -o loop` failed.
    #[error("this kernel mounts no EROFS from a file, and `mount -o loop` failed: {message}")]
    Loop {
        /// What mount(8) said.
        message: String,
    },
}

fn call<T, E: Into<io::Error>>(what: &'static str, result: Result<T, E>) -> Result<T, RootError> {
    result.map_err(|source| RootError::Call { what, source: source.into() })
}

/// What is mounted from here on is seen by nobody else. Comes first.
pub(crate) fn make_mounts_private() -> Result<(), RootError> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    call("make mounts private", mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
}

/// The control node of device-mapper; `None` where this kernel has none. An outer sandbox may have a `/dev` of its own, in
/// which the nodes of new mappings never appear: the kernel's own is then put over it.
pub(crate) fn device_mapper_control() -> Result<Option<File>, RootError> {
    let open = || call("open device-mapper", device_mapper::open_control());
    if let Some(control) = open()? {
        return Ok(Some(control));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    match mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), flags, None::<&str>) {
        Ok(()) => open(),
        // A kernel, or a container, without it.
        Err(_) => Ok(None),
    }
}

/// Makes the image the root of this mount namespace, with `/proc` and `/dev`; nothing of the old root stays.
pub(crate) fn enter(image: &Path, size: u64) -> Result<(), RootError> {
    check_superblock(image, size)?;
    let is_file = fs::metadata(image).is_ok_and(|found| found.is_file());
    mount_image(image, Path::new(STAGE), is_file)?;
    for name in ["proc", "dev", "tmp"] {
        let found = fs::symlink_metadata(Path::new(STAGE).join(name));
        if !found.is_ok_and(|found| found.is_dir()) {
            return Err(RootError::Directory { name });
        }
    }
    mount_devices(&Path::new(STAGE).join("dev"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = Path::new(STAGE).join("proc");
    call("mount /proc", mount(Some("proc"), &proc, Some("proc"), flags, Some("hidepid=2")))?;
    // pivot_root(2): with "." twice the old root lies on top of the new one until it is taken away.
    call("enter the image", std::env::set_current_dir(STAGE))?;
    call("make the image the root", pivot_root(".", "."))?;
    call("leave the old root", umount2(".", MntFlags::MNT_DETACH))?;
    call("enter the new root", std::env::set_current_dir("/"))
}

/// Nothing that is not EROFS, and nothing that reaches beyond the verified bytes, is shown to the kernel.
fn check_superblock(image: &Path, size: u64) -> Result<(), RootError> {
    let failed = |source| RootError::Read { image: image.to_owned(), source };
    let mut file = File::open(image).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(RootError::Kind { image: image.to_owned() });
    }
    let mut block = [0; 40];
    file.seek(SeekFrom::Start(SUPERBLOCK)).map_err(failed)?;
    match file.read_exact(&mut block) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(failed(error)),
    }
    let Some(claimed) = claimed_size(&block) else {
        return Err(RootError::NoErofs { image: image.to_owned() });
    };
    if claimed > size {
        return Err(RootError::Size { image: image.to_owned(), found: claimed, size });
    }
    Ok(())
}

/// Bytes that the file system says it has; none where this is no superblock.
fn claimed_size(block: &[u8; 40]) -> Option<u64> {
    let (magic, rest) = block.split_first_chunk::<4>()?;
    let shift = u32::from(*rest.get(8)?);
    let blocks = u32::from_le_bytes(*rest.get(32..36)?.first_chunk::<4>()?);
    if *magic != MAGIC || shift > 16 {
        return None;
    }
    Some(u64::from(blocks) << shift)
}

/// A block device directly; a file as the kernel can (6.12 with `CONFIG_EROFS_FS_BACKED_BY_FILE`), else by a read-only
/// loop device that goes with the mount.
fn mount_image(image: &Path, target: &Path, is_file: bool) -> Result<(), RootError> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match mount(Some(image), target, Some("erofs"), flags, None::<&str>) {
        Err(Errno::ENOTBLK) if is_file => mount_loop(image, target),
        result => call("mount the image", result),
    }
}

fn mount_loop(image: &Path, target: &Path) -> Result<(), RootError> {
    let mut command = Command::new("/usr/bin/mount");
    command.args(["-t", "erofs", "-o", "loop,ro,nosuid,nodev"]).arg(image).arg(target).env_clear();
    let output = call("start mount(8)", command.env("LANG", "C").output())?;
    if output.status.success() {
        return Ok(());
    }
    Err(RootError::Loop { message: super::report::last_line(&String::from_utf8_lossy(&output.stderr)) })
}

/// Binds of the host's nodes: making nodes would need one more capability.
fn mount_devices(target: &Path) -> Result<(), RootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("size=64k,nr_inodes=16,mode=755");
    call("mount /dev", mount(Some("tmpfs"), target, Some("tmpfs"), flags, options))?;
    for name in DEVICES {
        let node = target.join(name);
        call("make a file in /dev", File::create(&node))?;
        let host = Path::new("/dev").join(name);
        call("bind a device", mount(Some(&host), &node, None::<&str>, MsFlags::MS_BIND, None::<&str>))?;
    }
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    call("make /dev read-only", mount(None::<&str>, target, None::<&str>, flags, None::<&str>))
}

/// A fresh `/tmp`; the one before goes away with all that is in it.
pub(crate) fn fresh_tmp(used: bool) -> Result<(), RootError> {
    if used {
        call("unmount /tmp", umount2("/tmp", MntFlags::MNT_DETACH))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    call("mount /tmp", mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some(TMP_OPTIONS)))
}

/// Limits that this process hands on, and the end of every way to more rights. It keeps for itself only what it needs
/// to start, end and clean up after programs; they lose even that when they become another user.
pub(crate) fn confine(cpu_seconds: u64) -> Result<(), RootError> {
    umask(Mode::from_bits_truncate(0o077));
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return call("drop capabilities", Err(io::Error::from(error))),
        }
    }
    call("forbid new privileges", prctl::set_no_new_privs())?;
    let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    call("keep few capabilities", rustix::thread::set_capabilities(None, sets))?;
    for (resource, limit) in [
        (Resource::RLIMIT_CPU, cpu_seconds.max(1)),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_FSIZE, FILE_SIZE),
        (Resource::RLIMIT_NPROC, PROCESSES),
        (Resource::RLIMIT_NOFILE, FILES),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        call("set limits", setrlimit(resource, limit, limit))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_says_how_far_the_file_system_reaches() {
        let mut block = [0; 40];
        assert_eq!(claimed_size(&block), None);
        block[..4].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        block[12] = 12;
        block[36..].copy_from_slice(&3_u32.to_le_bytes());
        assert_eq!(claimed_size(&block), Some(3 * 4096));
        block[12] = 200;
        assert_eq!(claimed_size(&block), None);
    }

    #[test]
    fn an_image_larger_than_what_was_verified_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let made = Command::new("mkfs.erofs").arg(&image).arg(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(made.status.success(), "mkfs.erofs (package erofs-utils)");
        let size = fs::metadata(&image).unwrap().len();
        check_superblock(&image, size).unwrap();
        let error = check_superblock(&image, size - 4096).unwrap_err();
        assert!(matches!(error, RootError::Size { .. }), "{error}");
        fs::write(&image, b"short").unwrap();
        assert!(matches!(check_superblock(&image, size), Err(RootError::NoErofs { .. })));
        assert!(matches!(check_superblock(directory.path(), size), Err(RootError::Kind { .. })));
    }

    /// The way of older kernels, which this one would not take by itself.
    #[test]
    fn a_loop_device_serves_where_the_kernel_mounts_no_file() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, target) = (directory.path().join("image"), directory.path().join("mounted"));
        fs::create_dir(&target).unwrap();
        let made = Command::new("mkfs.erofs").arg(&image).arg(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(made.status.success(), "mkfs.erofs (package erofs-utils)");
        // Only this thread sees the mount; it ends with the thread.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        match mount_loop(&image, &target) {
            Ok(()) => assert!(target.join("Cargo.toml").exists()),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
