//! Variables of the UEFI firmware through efivarfs: a file each, read and written in one call.
//!
//! The kernel protects the files with the immutable flag (kernel documentation, `filesystems/efivarfs`): it is taken
//! off for a change and put back after it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use rustix::io::Errno;

use super::LoaderError;
use crate::domain::{efivar, load_option};

/// The variables of one vendor, by name. Every call blocks.
pub trait Variables: Send + fmt::Debug {
    /// What to call a variable in errors.
    fn path(&self, variable: &str) -> PathBuf;
    /// Attributes and text, at most one byte more than [`efivar::LIMIT`]; `None` when there is none.
    fn read(&self, variable: &str) -> Result<Option<Vec<u8>>, LoaderError>;
    /// Sets attributes and text; kept by the firmware when it returns.
    fn write(&self, variable: &str, bytes: &[u8]) -> Result<(), LoaderError>;
    /// Removes a variable; there being none is fine.
    fn remove(&self, variable: &str) -> Result<(), LoaderError>;
    /// Names of those that are there, at most [`NAMES_LIMIT`]; nothing where they cannot be listed.
    fn names(&self) -> Result<Vec<String>, LoaderError> {
        Ok(Vec::new())
    }
}

/// Most variables that are listed.
pub const NAMES_LIMIT: usize = 4096;

/// The flag that keeps a file from being changed or removed, also by root.
pub trait ImmutableFlag: Send + fmt::Debug {
    /// Whether it is set; no where the file system has none.
    fn is_set(&self, file: &File) -> io::Result<bool>;
    /// Sets or clears it.
    fn set(&self, file: &File, immutable: bool) -> io::Result<()>;
}

/// The flag that the kernel keeps with the inode (`FS_IMMUTABLE_FL`); setting it needs `CAP_LINUX_IMMUTABLE`.
#[derive(Clone, Copy, Debug)]
pub struct InodeFlag;

impl ImmutableFlag for InodeFlag {
    fn is_set(&self, file: &File) -> io::Result<bool> {
        match rustix::fs::ioctl_getflags(file) {
            Ok(flags) => Ok(flags.contains(IFlags::IMMUTABLE)),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set(&self, file: &File, immutable: bool) -> io::Result<()> {
        let mut flags = rustix::fs::ioctl_getflags(file)?;
        flags.set(IFlags::IMMUTABLE, immutable);
        Ok(rustix::fs::ioctl_setflags(file, flags)?)
    }
}

/// The variables in the directory where efivarfs is mounted.
#[derive(Debug)]
pub struct Efivarfs<F = InodeFlag> {
    directory: PathBuf,
    vendor: &'static str,
    flag: F,
}

impl Efivarfs {
    /// The directory, usually `/sys/firmware/efi/efivars`; it is looked at in each call.
    pub fn new(directory: &Path) -> Self {
        Self::with_flag(directory, InodeFlag)
    }

    /// The same for the variables that the UEFI specification defines.
    pub fn of_firmware(directory: &Path) -> Self {
        Self { vendor: load_option::VENDOR, ..Self::new(directory) }
    }
}

impl<F: ImmutableFlag> Efivarfs<F> {
    /// A directory whose files are protected by this flag.
    pub fn with_flag(directory: &Path, flag: F) -> Self {
        Self { directory: directory.to_owned(), vendor: efivar::VENDOR, flag }
    }

    /// Opens a variable; `None` when there is none. Without the directory nothing can be told.
    fn open(&self, path: &Path) -> Result<Option<File>, LoaderError> {
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::read_dir(&self.directory) {
                Ok(_) => Ok(None),
                Err(e) => Err(fail(&self.directory, "open")(e)),
            },
            Err(e) => Err(fail(path, "open")(e)),
        }
    }

    /// Makes a change with the flag off, and puts it back whether the change was made or not.
    fn unprotected<T>(
        &self,
        path: &Path,
        file: &File,
        change: impl FnOnce() -> Result<T, LoaderError>,
    ) -> Result<T, LoaderError> {
        if !self.flag.is_set(file).map_err(fail(path, "read the flags of"))? {
            return change();
        }
        self.flag.set(file, false).map_err(fail(path, "clear the immutable flag of"))?;
        let changed = change();
        // A removed file has no flag that matters.
        let protected = match path.try_exists() {
            Ok(false) => Ok(()),
            _ => self.flag.set(file, true).map_err(fail(path, "set the immutable flag of")),
        };
        changed.and_then(|done| protected.map(|()| done))
    }
}

impl<F: ImmutableFlag> Variables for Efivarfs<F> {
    fn path(&self, variable: &str) -> PathBuf {
        self.directory.join(efivar::file_name_of(variable, self.vendor))
    }

    fn names(&self) -> Result<Vec<String>, LoaderError> {
        let failed = || fail(&self.directory, "list");
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed())?.take(NAMES_LIMIT) {
            let name = entry.map_err(failed())?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(self.vendor)?.strip_suffix('-'));
            names.extend(name.map(str::to_owned));
        }
        Ok(names)
    }

    fn read(&self, variable: &str) -> Result<Option<Vec<u8>>, LoaderError> {
        let path = self.path(variable);
        let Some(file) = self.open(&path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(efivar::LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(fail(&path, "read"))?;
        // A variable always has attributes: an empty file is one that was made and never written.
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    fn write(&self, variable: &str, bytes: &[u8]) -> Result<(), LoaderError> {
        let path = self.path(variable);
        match self.open(&path)? {
            Some(file) => self.unprotected(&path, &file, || put(&path, bytes).map_err(fail(&path, "write"))),
            None => put(&path, bytes).map_err(|e| {
                // Without this an empty file stays where the firmware has no room.
                let _ = fs::remove_file(&path);
                fail(&path, "make")(e)
            }),
        }
    }

    fn remove(&self, variable: &str) -> Result<(), LoaderError> {
        let path = self.path(variable);
        let Some(file) = self.open(&path)? else { return Ok(()) };
        self.unprotected(&path, &file, || fs::remove_file(&path).map_err(fail(&path, "remove")))
    }
}

/// One write is one call of the firmware, which replaces the variable as a whole and keeps it when it returns.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let written = loop {
        match file.write(bytes) {
            // The kernel limits how often the firmware is called.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if written != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    // In efivarfs the length follows; elsewhere (a simulator's directory) the end of a longer text would stay.
    if file.metadata()?.len() != bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

fn fail(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> LoaderError {
    let path = path.to_owned();
    move |source| LoaderError::Io { path, operation, source }
}
