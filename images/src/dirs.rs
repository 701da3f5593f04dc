//! The build directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The build directory, `target/sps` unless said otherwise: the development PKI, cached trees, images, work in progress.
#[derive(Clone, Debug)]
pub struct BuildDirs {
    base: PathBuf,
}

impl BuildDirs {
    /// The build directory at `base`, made when it is missing.
    pub fn new(base: impl AsRef<Path>) -> anyhow::Result<Self> {
        let base = base.as_ref();
        fs::create_dir_all(base.join("work"))
            .with_context(|| format!("build directory {} cannot be made", base.display()))?;
        Ok(Self { base: base.canonicalize()? })
    }

    /// The directory itself, absolute.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where the development PKI lies.
    pub fn pki(&self) -> PathBuf {
        self.base.join("pki")
    }

    /// A new directory for one build, removed when dropped. On the file system of the trees, so that these can be hard-linked.
    pub fn work(&self) -> anyhow::Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(self.base.join("work"))
            .context("no work directory")
    }

    /// Waits until no other process makes `what`, and keeps others from it until the file is dropped.
    pub fn lock(&self, what: &str) -> anyhow::Result<File> {
        let path = self.base.join(format!("{what}.lock"));
        let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        file.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
        Ok(file)
    }
}
