//! Files of a journaling file system, for whoever changes several of them in an order that must survive a cut.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// What kind of thing has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// What there is to know of it without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Length of a file in bytes.
    pub length: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How a name is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Nothing has that name yet.
    New,
    /// Two things exchange their names.
    Exchange,
}

/// The operations, each as the kernel offers it; links are never followed. A change is there after a cut once the file, or
/// the directory that it is in, was synced.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// What is there; `None` where nothing is.
    fn look(&self, path: &Path) -> io::Result<Option<Attributes>>;
    /// The names in a directory, sorted.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// Bytes of a file from `offset` on, at most `length`.
    fn read_at(&self, file: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Where a link leads.
    fn read_link(&self, link: &Path) -> io::Result<PathBuf>;
    /// Makes a directory, mode 0700.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes an empty file, mode 0600, where nothing is.
    fn create_file(&self, path: &Path) -> io::Result<()>;
    /// Makes a link.
    fn create_link(&self, path: &Path, target: &Path) -> io::Result<()>;
    /// Writes into a file.
    fn write_at(&self, file: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file.
    fn truncate(&self, file: &Path, length: u64) -> io::Result<()>;
    /// Gives it this owner, group and, unless it is a link, mode.
    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()>;
    /// The content of a file, or the names in a directory, are on stable storage.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Gives another name.
    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()>;
    /// Takes a name away: of a file, a link, or an empty directory.
    fn remove(&self, path: &Path, kind: Kind) -> io::Result<()>;
}

/// The file systems that are mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mounted;

impl Mounted {
    fn open(path: &Path) -> io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
    }

    fn open_for_writing(path: &Path) -> io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path)
    }
}

impl FileSystem for Mounted {
    fn look(&self, path: &Path) -> io::Result<Option<Attributes>> {
        let metadata = match path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let kind = match metadata.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Link,
            _ => Kind::Other,
        };
        let (length, mode) = (metadata.len(), metadata.mode() & 0o7777);
        Ok(Some(Attributes { kind, length, mode, uid: metadata.uid(), gid: metadata.gid() }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = entries.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn read_at(&self, file: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = Self::open(file)?;
        let (mut bytes, mut filled) = (vec![0; length], 0);
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn read_link(&self, link: &Path) -> io::Result<PathBuf> {
        fs::read_link(link)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    }

    fn create_file(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
    }

    fn create_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        symlink(target, path)
    }

    fn write_at(&self, file: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Self::open_for_writing(file)?.write_all_at(bytes, offset)
    }

    fn truncate(&self, file: &Path, length: u64) -> io::Result<()> {
        Self::open_for_writing(file)?.set_len(length)
    }

    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
        if attributes.kind == Kind::Link {
            return lchown(path, uid, gid);
        }
        chown(path, uid, gid)?;
        // After the owner: that takes the set-user-ID bit away.
        fs::set_permissions(path, fs::Permissions::from_mode(attributes.mode))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        Self::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        let flags = match how {
            Rename::New => RenameFlags::NOREPLACE,
            Rename::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(renameat_with(CWD, from, CWD, to, flags)?)
    }

    fn remove(&self, path: &Path, kind: Kind) -> io::Result<()> {
        if kind == Kind::Directory { fs::remove_dir(path) } else { fs::remove_file(path) }
    }
}
