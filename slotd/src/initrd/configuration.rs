//! The configuration generation of the firmware that starts: kept, or a copy of the one that ran before.

#![expect(clippy::disallowed_methods, reason = "makes the generation, on the data partition")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::domain::generation::Origin;
use crate::domain::manifest::Sha256Hex;

/// Files, directories and links of one generation.
const ENTRIES: usize = 16_384;
/// Bytes of all files of one generation.
const BYTES: u64 = 256 << 20;
/// Directories in each other.
const DEPTH: usize = 16;
/// What a copy is called until it is whole, and what it has replaced until that is removed.
const UNFINISHED: &str = ".unfinished";

/// Why a generation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than any configuration.
    #[error("{} has more than {ENTRIES} entries, {BYTES} bytes or {DEPTH} levels; that is no configuration", path.display())]
    TooLarge {
        /// The generation.
        path: PathBuf,
    },
    /// Neither file, directory nor link.
    #[error("{} is neither a file nor a directory nor a link; a configuration has no others", path.display())]
    Kind {
        /// What was found.
        path: PathBuf,
    },
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfigurationError + use<> {
    let path = path.to_owned();
    move |source| ConfigurationError::Io { operation, path, source }
}

/// How the generation came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// It was there.
    Kept,
    /// Copied from another one.
    Copied,
    /// There was nothing to copy.
    Empty,
}

/// Makes the generation of `starting` below `configuration`. Whole or not at all: after a cut the earlier one is there.
pub fn prepare(
    configuration: &Path,
    starting: &Sha256Hex,
    origin: &Origin,
) -> Result<Made, ConfigurationError> {
    let own = configuration.join(starting.to_string());
    let unfinished = configuration.join(UNFINISHED);
    // From a start that was cut.
    remove(&unfinished)?;
    let there = own.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let from = match origin {
        Origin::Copy(from) => Some(from),
        Origin::KeepOrCopy(from) if !there => Some(from),
        Origin::Keep | Origin::KeepOrCopy(_) => None,
    };
    let from = from.map(|from| configuration.join(from.to_string())).filter(|from| from.is_dir());
    if there && from.is_none() {
        return Ok(Made::Kept);
    }
    let mode = from.as_ref().and_then(|from| from.metadata().ok()).map_or(0o700, |m| m.mode() & 0o7777);
    fs::create_dir(&unfinished).map_err(fail("make", &unfinished))?;
    fs::set_permissions(&unfinished, PermissionsExt::from_mode(mode))
        .map_err(fail("set the mode of", &unfinished))?;
    if let Some(from) = &from {
        let mut left = Left { entries: ENTRIES, bytes: BYTES, whole: from.clone() };
        copy(from, &unfinished, DEPTH, &mut left)?;
    }
    sync(&unfinished)?;
    let flags = if there { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, &unfinished, CWD, &own, flags)
        .map_err(|errno| fail("put in place", &own)(errno.into()))?;
    sync(configuration)?;
    remove(&unfinished)?;
    Ok(if from.is_some() { Made::Copied } else { Made::Empty })
}

/// What may still be copied.
struct Left {
    entries: usize,
    bytes: u64,
    whole: PathBuf,
}

impl Left {
    fn take(&mut self, entries: usize, bytes: u64) -> Result<(), ConfigurationError> {
        let left = self.entries.checked_sub(entries).zip(self.bytes.checked_sub(bytes));
        let Some((entries, bytes)) = left else {
            return Err(ConfigurationError::TooLarge { path: self.whole.clone() });
        };
        (self.entries, self.bytes) = (entries, bytes);
        Ok(())
    }
}

fn copy(from: &Path, to: &Path, depth: usize, left: &mut Left) -> Result<(), ConfigurationError> {
    if depth == 0 {
        return Err(ConfigurationError::TooLarge { path: left.whole.clone() });
    }
    for entry in fs::read_dir(from).map_err(fail("list", from))? {
        let entry = entry.map_err(fail("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = source.symlink_metadata().map_err(fail("look at", &source))?;
        let kind = metadata.file_type();
        left.take(1, if kind.is_file() { metadata.len() } else { 0 })?;
        let (uid, gid) = (Some(metadata.uid()), Some(metadata.gid()));
        if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(fail("read", &source))?;
            symlink(link, &target).map_err(fail("make", &target))?;
            lchown(&target, uid, gid).map_err(fail("set the owner of", &target))?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&target).map_err(fail("make", &target))?;
            copy(&source, &target, depth - 1, left)?;
        } else if kind.is_file() {
            let mut content = File::open(&source).map_err(fail("open", &source))?;
            let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
            let mut file = new.map_err(fail("make", &target))?;
            io::copy(&mut content, &mut file).map_err(fail("write", &target))?;
            file.sync_all().map_err(fail("flush", &target))?;
        } else {
            return Err(ConfigurationError::Kind { path: source });
        }
        chown(&target, uid, gid).map_err(fail("set the owner of", &target))?;
        fs::set_permissions(&target, metadata.permissions()).map_err(fail("set the mode of", &target))?;
        if kind.is_dir() {
            sync(&target)?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), ConfigurationError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(fail("flush", path))
}

fn remove(path: &Path) -> Result<(), ConfigurationError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Sha256Hex = Sha256Hex([1; 32]);
    const NEW: Sha256Hex = Sha256Hex([2; 32]);

    fn read(base: &Path, of: Sha256Hex, name: &str) -> Option<String> {
        fs::read_to_string(base.join(of.to_string()).join(name)).ok()
    }

    fn write(base: &Path, of: Sha256Hex, name: &str, text: &str) {
        let path = base.join(of.to_string()).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn an_upgrade_starts_from_a_copy_and_the_old_one_stays_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        assert_eq!(prepare(base, &OLD, &Origin::Keep).unwrap(), Made::Empty);
        write(base, OLD, "revisions/000001.json", "{}");
        fs::set_permissions(
            base.join(OLD.to_string()).join("revisions/000001.json"),
            PermissionsExt::from_mode(0o640),
        )
        .unwrap();
        symlink("revisions/000001.json", base.join(OLD.to_string()).join("HEAD")).unwrap();
        assert_eq!(prepare(base, &OLD, &Origin::Keep).unwrap(), Made::Kept);

        assert_eq!(prepare(base, &NEW, &Origin::Copy(OLD)).unwrap(), Made::Copied);
        assert_eq!(read(base, NEW, "HEAD").as_deref(), Some("{}"));
        let copied = base.join(NEW.to_string()).join("revisions/000001.json");
        assert_eq!(copied.metadata().unwrap().mode() & 0o777, 0o640);
        // The new firmware migrates its copy; the old one does not see it.
        write(base, NEW, "revisions/000001.json", "migrated");
        assert_eq!(read(base, OLD, "HEAD").as_deref(), Some("{}"));
        // Gone back to and forth by hand: each has its own.
        assert_eq!(prepare(base, &NEW, &Origin::KeepOrCopy(OLD)).unwrap(), Made::Kept);
        assert_eq!(read(base, NEW, "HEAD").as_deref(), Some("migrated"));
        // Tried again: from what runs now.
        write(base, OLD, "revisions/000001.json", "later");
        assert_eq!(prepare(base, &NEW, &Origin::Copy(OLD)).unwrap(), Made::Copied);
        assert_eq!(read(base, NEW, "HEAD").as_deref(), Some("later"));
        assert_eq!(fs::read_dir(base).unwrap().count(), 2);
    }

    #[test]
    fn a_copy_that_was_cut_is_made_again() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        write(base, OLD, "a", "1");
        fs::create_dir(base.join(UNFINISHED)).unwrap();
        fs::write(base.join(UNFINISHED).join("a"), "half").unwrap();
        assert_eq!(prepare(base, &NEW, &Origin::KeepOrCopy(OLD)).unwrap(), Made::Copied);
        assert_eq!(read(base, NEW, "a").as_deref(), Some("1"));
        // The confirmed one has none: nothing is lost, and nothing invented.
        assert_eq!(prepare(base, &NEW, &Origin::Copy(Sha256Hex([9; 32]))).unwrap(), Made::Kept);
        assert_eq!(read(base, NEW, "a").as_deref(), Some("1"));
    }

    #[test]
    fn what_is_no_configuration_is_not_copied() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        write(base, OLD, "huge", "");
        let huge = base.join(OLD.to_string()).join("huge");
        File::options().write(true).open(&huge).unwrap().set_len(BYTES + 1).unwrap();
        let error = prepare(base, &NEW, &Origin::Copy(OLD)).unwrap_err();
        assert!(matches!(error, ConfigurationError::TooLarge { .. }), "{error}");
        assert!(!base.join(NEW.to_string()).exists());

        fs::remove_file(&huge).unwrap();
        nix::unistd::mkfifo(&huge, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = prepare(base, &NEW, &Origin::Copy(OLD)).unwrap_err();
        assert!(matches!(error, ConfigurationError::Kind { .. }), "{error}");
    }
}
