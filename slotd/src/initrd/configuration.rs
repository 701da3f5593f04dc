//! The configuration generation of the firmware that starts: kept, or a copy of the one that ran before.

use std::io;
use std::path::{Path, PathBuf};

use crate::device::file_system::{Attributes, FileSystem, Kind, Rename};
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
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    files: &dyn FileSystem,
    configuration: &Path,
    starting: &Sha256Hex,
    origin: &Origin,
) -> Result<Made, ConfigurationError> {
    let own = configuration.join(starting.to_string());
    let unfinished = configuration.join(UNFINISHED);
    // From a start that was cut.
    remove(files, &unfinished)?;
    let directory = |path: &Path| {
        let found = files.look(path).map_err(fail("look at", path))?;
        Ok(found.filter(|found| found.kind == Kind::Directory))
    };
    let there = directory(&own)?.is_some();
    let from = match origin {
        Origin::Copy(from) => Some(from),
        Origin::KeepOrCopy(from) if !there => Some(from),
        Origin::Keep | Origin::KeepOrCopy(_) => None,
    };
    let from = from.map(|from| configuration.join(from.to_string()));
    let from = match from {
        Some(from) => directory(&from)?.map(|attributes| (from, attributes)),
        None => None,
    };
    if there && from.is_none() {
        return Ok(Made::Kept);
    }
    files.create_directory(&unfinished).map_err(fail("make", &unfinished))?;
    if let Some((from, attributes)) = &from {
        files.set_attributes(&unfinished, attributes).map_err(fail("set the owner of", &unfinished))?;
        Copy { files, entries: ENTRIES, bytes: BYTES, whole: from }.all(from, &unfinished, DEPTH)?;
    }
    sync(files, &unfinished)?;
    let how = if there { Rename::Exchange } else { Rename::New };
    files.rename(&unfinished, &own, how).map_err(fail("put in place", &own))?;
    sync(files, configuration)?;
    remove(files, &unfinished)?;
    Ok(if from.is_some() { Made::Copied } else { Made::Empty })
}

/// A copy under way, and what may still be copied.
struct Copy<'a> {
    files: &'a dyn FileSystem,
    entries: usize,
    bytes: u64,
    whole: &'a Path,
}

impl Copy<'_> {
    fn take(&mut self, entries: usize, bytes: u64) -> Result<(), ConfigurationError> {
        let left = self.entries.checked_sub(entries).zip(self.bytes.checked_sub(bytes));
        let Some((entries, bytes)) = left else {
            return Err(ConfigurationError::TooLarge { path: self.whole.to_owned() });
        };
        (self.entries, self.bytes) = (entries, bytes);
        Ok(())
    }

    fn all(&mut self, from: &Path, to: &Path, depth: usize) -> Result<(), ConfigurationError> {
        if depth == 0 {
            return Err(ConfigurationError::TooLarge { path: self.whole.to_owned() });
        }
        for name in self.files.list(from).map_err(fail("list", from))? {
            self.one(&from.join(&name), &to.join(&name), depth)?;
        }
        Ok(())
    }

    fn one(&mut self, source: &Path, target: &Path, depth: usize) -> Result<(), ConfigurationError> {
        let files = self.files;
        let found = files.look(source).map_err(fail("look at", source))?;
        let attributes = found.ok_or_else(|| fail("look at", source)(io::ErrorKind::NotFound.into()))?;
        self.take(1, 0)?;
        match attributes.kind {
            Kind::Link => {
                let link = files.read_link(source).map_err(fail("read", source))?;
                files.create_link(target, &link).map_err(fail("make", target))?;
            }
            Kind::Directory => {
                files.create_directory(target).map_err(fail("make", target))?;
                self.all(source, target, depth - 1)?;
            }
            Kind::File => {
                files.create_file(target).map_err(fail("make", target))?;
                self.content(source, target, &attributes)?;
            }
            Kind::Other => return Err(ConfigurationError::Kind { path: source.to_owned() }),
        }
        files.set_attributes(target, &attributes).map_err(fail("set the owner and mode of", target))?;
        if attributes.kind == Kind::Link { Ok(()) } else { sync(files, target) }
    }

    fn content(&mut self, source: &Path, target: &Path, of: &Attributes) -> Result<(), ConfigurationError> {
        // Before anything is written: a file with a hole in it can be longer than the medium.
        if of.length > self.bytes {
            self.take(0, of.length)?;
        }
        let mut offset = 0;
        loop {
            let bytes = self.files.read_at(source, offset, CHUNK).map_err(fail("read", source))?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.take(0, bytes.len() as u64)?;
            self.files.write_at(target, offset, &bytes).map_err(fail("write", target))?;
            offset += bytes.len() as u64;
        }
    }
}

fn sync(files: &dyn FileSystem, path: &Path) -> Result<(), ConfigurationError> {
    files.sync(path).map_err(fail("flush", path))
}

/// Removes what is there, with all below it.
fn remove(files: &dyn FileSystem, path: &Path) -> Result<(), ConfigurationError> {
    let Some(found) = files.look(path).map_err(fail("look at", path))? else { return Ok(()) };
    if found.kind == Kind::Directory {
        for name in files.list(path).map_err(fail("list", path))? {
            remove(files, &path.join(name))?;
        }
    }
    files.remove(path, found.kind).map_err(fail("remove", path))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

    use super::*;
    use crate::device::file_system::Mounted;

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
        assert_eq!(prepare(&Mounted, base, &OLD, &Origin::Keep).unwrap(), Made::Empty);
        write(base, OLD, "revisions/000001.json", "{}");
        fs::set_permissions(
            base.join(OLD.to_string()).join("revisions/000001.json"),
            PermissionsExt::from_mode(0o640),
        )
        .unwrap();
        symlink("revisions/000001.json", base.join(OLD.to_string()).join("HEAD")).unwrap();
        assert_eq!(prepare(&Mounted, base, &OLD, &Origin::Keep).unwrap(), Made::Kept);

        assert_eq!(prepare(&Mounted, base, &NEW, &Origin::Copy(OLD)).unwrap(), Made::Copied);
        assert_eq!(read(base, NEW, "HEAD").as_deref(), Some("{}"));
        let copied = base.join(NEW.to_string()).join("revisions/000001.json");
        assert_eq!(copied.metadata().unwrap().mode() & 0o777, 0o640);
        // The new firmware migrates its copy; the old one does not see it.
        write(base, NEW, "revisions/000001.json", "migrated");
        assert_eq!(read(base, OLD, "HEAD").as_deref(), Some("{}"));
        // Gone back to and forth by hand: each has its own.
        assert_eq!(prepare(&Mounted, base, &NEW, &Origin::KeepOrCopy(OLD)).unwrap(), Made::Kept);
        assert_eq!(read(base, NEW, "HEAD").as_deref(), Some("migrated"));
        // Tried again: from what runs now.
        write(base, OLD, "revisions/000001.json", "later");
        assert_eq!(prepare(&Mounted, base, &NEW, &Origin::Copy(OLD)).unwrap(), Made::Copied);
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
        assert_eq!(prepare(&Mounted, base, &NEW, &Origin::KeepOrCopy(OLD)).unwrap(), Made::Copied);
        assert_eq!(read(base, NEW, "a").as_deref(), Some("1"));
        // The confirmed one has none: nothing is lost, and nothing invented.
        assert_eq!(prepare(&Mounted, base, &NEW, &Origin::Copy(Sha256Hex([9; 32]))).unwrap(), Made::Kept);
        assert_eq!(read(base, NEW, "a").as_deref(), Some("1"));
    }

    #[test]
    fn what_is_no_configuration_is_not_copied() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        write(base, OLD, "huge", "");
        let huge = base.join(OLD.to_string()).join("huge");
        File::options().write(true).open(&huge).unwrap().set_len(BYTES + 1).unwrap();
        let error = prepare(&Mounted, base, &NEW, &Origin::Copy(OLD)).unwrap_err();
        assert!(matches!(error, ConfigurationError::TooLarge { .. }), "{error}");
        assert!(!base.join(NEW.to_string()).exists());

        fs::remove_file(&huge).unwrap();
        nix::unistd::mkfifo(&huge, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = prepare(&Mounted, base, &NEW, &Origin::Copy(OLD)).unwrap_err();
        assert!(matches!(error, ConfigurationError::Kind { .. }), "{error}");
    }
}
