//! GRUB: its two settings are variables of the environment block, usually `/boot/grub/grubenv`.
//!
//! There is one copy. It is written in place, because GRUB finds it by its sectors, and all that is ever written lies
//! in the first of them ([`envblk::WRITE_LIMIT`]): a cut leaves the old or the new settings.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Loader, LoaderError};
use crate::domain::boot::{Entry, Selection};
use crate::domain::envblk::{self, EnvblkError, Environment};

/// Where a block is kept.
pub trait Block: Send + fmt::Debug {
    /// What to call it in errors.
    fn path(&self) -> &Path;
    /// The block as it is on the medium; `Corrupt` when it is shorter or longer.
    fn read(&self) -> Result<[u8; envblk::SIZE], LoaderError>;
    /// Overwrites the block in place, and makes its length right; on stable storage when it returns.
    fn write(&self, block: &[u8; envblk::SIZE]) -> Result<(), LoaderError>;
}

/// The block in a file, which must exist: the installer makes it.
#[derive(Debug)]
pub struct FileBlock {
    path: PathBuf,
}

impl FileBlock {
    /// The file at `path`; it is opened at each call.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn fail(&self, operation: &'static str) -> impl FnOnce(io::Error) -> LoaderError {
        let path = self.path.clone();
        move |source| LoaderError::Io { path, operation, source }
    }
}

impl Block for FileBlock {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<[u8; envblk::SIZE], LoaderError> {
        let file = File::open(&self.path).map_err(self.fail("open"))?;
        let length = file.metadata().map_err(self.fail("stat"))?.len();
        // After a write and a flush, dropping the cache makes the device answer.
        let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut bytes = Vec::with_capacity(envblk::SIZE);
        file.take(envblk::SIZE as u64).read_to_end(&mut bytes).map_err(self.fail("read"))?;
        match bytes.try_into() {
            Ok(block) if length == envblk::SIZE as u64 => Ok(block),
            _ => Err(corrupt(&self.path, &EnvblkError::Size { found: length })),
        }
    }

    fn write(&self, block: &[u8; envblk::SIZE]) -> Result<(), LoaderError> {
        let file = OpenOptions::new().write(true).open(&self.path).map_err(self.fail("open"))?;
        file.write_all_at(block, 0).map_err(self.fail("write"))?;
        // GRUB takes the whole file for the block. What follows is rubbish; the sectors before it stay where they are.
        if file.metadata().map_err(self.fail("stat"))?.len() != envblk::SIZE as u64 {
            file.set_len(envblk::SIZE as u64).map_err(self.fail("cut"))?;
        }
        file.sync_all().map_err(self.fail("flush"))
    }
}

/// GRUB's settings in one block.
#[derive(Debug)]
pub struct Grub<B> {
    block: Mutex<B>,
}

impl<B: Block> Grub<B> {
    /// The settings in this block.
    pub fn new(block: B) -> Self {
        Self { block: Mutex::new(block) }
    }

    /// Changes the block that `read` gave, and checks that the medium has it. It is written even when nothing
    /// changes: what the cache holds may be of a write that failed.
    fn change(
        block: &B,
        mut environment: Environment,
        name: &str,
        entry: Option<&Entry>,
    ) -> Result<(), LoaderError> {
        let refuse =
            |e: EnvblkError| LoaderError::Refused { path: block.path().to_owned(), what: e.to_string() };
        match entry {
            None => environment.unset(name),
            Some(entry) => environment.set(name, value(block, entry)?.as_bytes()).map_err(refuse)?,
        }
        let bytes = environment.render().map_err(refuse)?;
        block.write(&bytes)?;
        if block.read()? != bytes {
            return Err(LoaderError::ReadBack { path: block.path().to_owned() });
        }
        Ok(())
    }
}

impl<B: Block> Loader for Grub<B> {
    fn name(&self) -> &'static str {
        "grub"
    }

    fn read(&self) -> Result<Selection, LoaderError> {
        let block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = read(&*block)?;
        Ok(Selection {
            default: entry(&*block, &environment, envblk::DEFAULT)?,
            one_shot: entry(&*block, &environment, envblk::ONE_SHOT)?,
            damage: None,
        })
    }

    /// On a corrupt block this fails, also for taking back: what the block says cannot be told, so it cannot be kept.
    /// `set_default` repairs it.
    fn set_one_shot(&self, entry: Option<&Entry>) -> Result<(), LoaderError> {
        let block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        Self::change(&block, read(&*block)?, envblk::ONE_SHOT, entry)
    }

    /// Replaces a corrupt block by one that holds this and nothing else.
    fn set_default(&self, entry: &Entry) -> Result<(), LoaderError> {
        let block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = match read(&*block) {
            Err(LoaderError::Corrupt { .. }) => Environment::default(),
            other => other?,
        };
        Self::change(&block, environment, envblk::DEFAULT, Some(entry))
    }
}

fn corrupt(path: &Path, error: &EnvblkError) -> LoaderError {
    LoaderError::Corrupt { path: path.to_owned(), what: error.to_string() }
}

fn read(block: &impl Block) -> Result<Environment, LoaderError> {
    envblk::parse(&block.read()?).map_err(|e| corrupt(block.path(), &e))
}

fn entry(
    block: &impl Block,
    environment: &Environment,
    name: &'static str,
) -> Result<Option<Entry>, LoaderError> {
    let Some(value) = environment.get(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let Ok(value) = std::str::from_utf8(value) else {
        let what = format!("the value of {name} is no UTF-8");
        return Err(LoaderError::Corrupt { path: block.path().to_owned(), what });
    };
    Ok(Some(Entry::parse(value)))
}

fn value(block: &impl Block, entry: &Entry) -> Result<String, LoaderError> {
    match entry.name() {
        name if name.is_empty() => Err(LoaderError::Refused {
            path: block.path().to_owned(),
            what: "an entry without a name cannot be started".to_owned(),
        }),
        name => Ok(name),
    }
}
