//! The floor: `dd` with direct I/O.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::pairing::{Contender, Sample};
use super::process::timed;
use super::stage::{Slot, Stage};

/// `dd bs=4M iflag=direct oflag=direct conv=fsync` of the image into a slot of its own.
#[derive(Debug)]
pub struct Dd {
    slot: Slot,
    image: PathBuf,
    log: PathBuf,
}

impl Dd {
    /// Makes the slot.
    pub fn new(stage: &Stage) -> Result<Self> {
        let log = stage.subdir("dd")?.join("log");
        Ok(Self { slot: stage.slot("dd")?, image: stage.image().to_owned(), log })
    }
}

impl Contender for Dd {
    fn name(&self) -> &'static str {
        "dd"
    }

    fn prepare(&mut self) -> Result<()> {
        self.slot.spoil()
    }

    fn run(&mut self) -> Result<Sample> {
        let mut command = copy(&self.image, self.slot.path());
        timed(command.args(["iflag=direct", "oflag=direct", "conv=fsync"]), &self.log)
    }

    fn check(&mut self) -> Result<()> {
        self.slot.holds_image()
    }
}

/// `dd bs=4M` from one path to another; the caller adds the flags.
pub(super) fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("dd");
    command.args(["bs=4M", "status=none"]);
    command.arg(format!("if={}", from.display())).arg(format!("of={}", to.display()));
    command
}
