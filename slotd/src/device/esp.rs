//! The ESP as a file interface. FAT has no journal and its rename is not atomic: after a cut a file that was being
//! created, written or removed may be old, new, absent, short or zero. So nothing here renames, and every file can be
//! rebuilt from a slot.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where boot images lie under the mount point.
pub const BOOT_IMAGES: &str = "EFI/Linux";

/// Most files of a directory that are listed.
pub const LIST_LIMIT: usize = 256;

/// The boot images of the ESP: flat files by name. Every call blocks.
pub trait Esp: Send + Sync + fmt::Debug {
    /// Length of a file; `None` when there is none.
    fn size(&self, name: &str) -> Result<Option<u64>, EspError>;
    /// Names of its regular files, at most [`LIST_LIMIT`].
    fn list(&self) -> Result<Vec<String>, EspError>;
    /// Fills `buf` from `offset` of a file, past the page cache where that is possible.
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), EspError>;
    /// Makes an empty file, replacing one of that name.
    fn create(&self, name: &str) -> Result<(), EspError>;
    /// Appends to a file made by [`Esp::create`]: `offset` is its length.
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), EspError>;
    /// Returns when the file is on stable storage.
    fn sync_file(&self, name: &str) -> Result<(), EspError>;
    /// Removes a file; there being none is fine.
    fn remove(&self, name: &str) -> Result<(), EspError>;
    /// Returns when everything on the file system is on stable storage.
    fn sync(&self) -> Result<(), EspError>;
    /// Free bytes.
    fn free(&self) -> Result<u64, EspError>;
}

/// An operation on the ESP that failed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot {operation}: {source}", path = path.display())]
pub struct EspError {
    /// File.
    pub path: PathBuf,
    /// What was tried.
    pub operation: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// The ESP where it is mounted.
#[derive(Debug)]
pub struct DirectoryEsp {
    images: PathBuf,
}

impl DirectoryEsp {
    /// The ESP mounted at `mount`, which must exist; `EFI/Linux` is made when it is missing.
    pub fn open(mount: &Path) -> Result<Self, EspError> {
        let fail = |source| EspError { path: mount.to_owned(), operation: "open", source };
        if !fs::metadata(mount).map_err(fail)?.is_dir() {
            return Err(fail(io::ErrorKind::NotADirectory.into()));
        }
        let images = mount.join(BOOT_IMAGES);
        fs::create_dir_all(&images).map_err(fail)?;
        Ok(Self { images })
    }

    fn fail(&self, name: &str, operation: &'static str) -> impl FnOnce(io::Error) -> EspError {
        let path = self.images.join(name);
        move |source| EspError { path, operation, source }
    }

    fn existing(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.images.join(name))
    }
}

impl Esp for DirectoryEsp {
    fn size(&self, name: &str) -> Result<Option<u64>, EspError> {
        match fs::symlink_metadata(self.images.join(name)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Err(self.fail(name, "use")(io::Error::other("not a regular file"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.fail(name, "stat")(e)),
        }
    }

    fn list(&self) -> Result<Vec<String>, EspError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.images).map_err(self.fail("", "list"))?.take(LIST_LIMIT) {
            let entry = entry.map_err(self.fail("", "list"))?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            // A name that is no text is none of ours.
            names.extend(entry.file_name().into_string().ok().filter(|_| is_file));
        }
        names.sort();
        Ok(names)
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), EspError> {
        let fail = self.fail(name, "read");
        let file = match File::open(self.images.join(name)) {
            Ok(file) => file,
            Err(e) => return Err(fail(e)),
        };
        // FAT under vfat takes no useful direct I/O; after sync_file, dropping the cache makes the device answer.
        let _ = nix::fcntl::posix_fadvise(
            &file,
            i64::try_from(offset).unwrap_or(0),
            i64::try_from(buf.len()).unwrap_or(0),
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        );
        file.read_exact_at(buf, offset).map_err(fail)
    }

    fn create(&self, name: &str) -> Result<(), EspError> {
        let path = self.images.join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map(drop)
            .map_err(self.fail(name, "create"))
    }

    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), EspError> {
        self.existing(name).and_then(|file| file.write_all_at(data, offset)).map_err(self.fail(name, "write"))
    }

    fn sync_file(&self, name: &str) -> Result<(), EspError> {
        self.existing(name).and_then(|file| file.sync_all()).map_err(self.fail(name, "sync"))
    }

    fn remove(&self, name: &str) -> Result<(), EspError> {
        match fs::remove_file(self.images.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.fail(name, "remove")(e)),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), EspError> {
        let directory = File::open(&self.images).map_err(self.fail("", "sync"))?;
        directory.sync_all().map_err(self.fail("", "sync"))?;
        nix::unistd::syncfs(&directory).map_err(|e| self.fail("", "sync")(e.into()))
    }

    fn free(&self) -> Result<u64, EspError> {
        let stat =
            nix::sys::statvfs::statvfs(&self.images).map_err(|e| self.fail("", "measure")(e.into()))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}
