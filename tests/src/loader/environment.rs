//! GRUB's environment block, by GRUB's own tool.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use clap::ValueEnum;

/// Started unless told otherwise.
pub const DEFAULT: &str = "saved_entry";
/// Started once.
pub const ONE_SHOT: &str = "next_entry";

const SIZE: usize = 1024;

/// How a block is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// Every byte is zero.
    Zeros,
    /// Every byte is anything.
    Garbage,
    /// It is sound, and nothing is set.
    Settings,
}

fn editenv(block: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new("grub-editenv").arg(block).args(arguments).output();
    output.context("grub-editenv (package grub-common)")
}

fn edit(block: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = editenv(block, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "grub-editenv {arguments:?}: {said}");
    Ok(())
}

/// Makes an empty block.
pub fn create(block: &Path) -> anyhow::Result<()> {
    edit(block, &["create"])
}

/// Sets a variable. As for GRUB, a block that is none is left as it is.
pub fn set(block: &Path, name: &str, value: &str) -> anyhow::Result<()> {
    edit(block, &["set", &format!("{name}={value}")])
}

/// The variables; none where the block is none.
pub fn list(block: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let output = editenv(block, &["list"])?;
    if !output.status.success() {
        return Ok(BTreeMap::new());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Loses the block.
pub fn lose(block: &Path, loss: Loss) -> anyhow::Result<()> {
    match loss {
        Loss::Zeros => Ok(fs::write(block, [0; SIZE])?),
        // Not text of any kind, and the same in every run.
        Loss::Garbage => {
            let bytes = (0..=u8::MAX).map(|byte| byte.wrapping_mul(151)).cycle();
            Ok(fs::write(block, bytes.take(SIZE).collect::<Vec<_>>())?)
        }
        Loss::Settings => [DEFAULT, ONE_SHOT].iter().try_for_each(|name| edit(block, &["unset", name])),
    }
}
