//! The static build of `slotboot`: nothing of the firmware but this one file is needed to run it in an initrd.
//!
//! The flags go to the last compiler run alone (`cargo rustc`), so every library is the one that is built anyway; the
//! linker takes `libc.a`, which every machine with a C linker has (Debian: libc6-dev). The musl target would need a
//! second standard library and a second build of everything.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// No dynamic section and no interpreter, and no symbols to carry along.
const FLAGS: [&str; 6] =
    ["-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-C", "strip=symbols"];

/// Builds it with this cargo, profile and environment, and puts it in `directory`.
pub fn build_slotboot(
    cargo: &Path,
    profile: &str,
    environment: &[(&str, &OsStr)],
    directory: &Path,
) -> anyhow::Result<PathBuf> {
    let output = Command::new(cargo)
        .args(["rustc", "--quiet", "--locked", "--package", "slotd", "--bin", "slotboot"])
        .args(["--profile", profile])
        .args(["--message-format", "json-render-diagnostics", "--"])
        .args(FLAGS)
        .envs(environment.iter().copied())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo rustc")?;
    ensure!(output.status.success(), "cargo rustc of slotboot: {}", output.status);
    let built = executable(&String::from_utf8_lossy(&output.stdout)).context("cargo built no slotboot")?;
    fs::create_dir_all(directory)?;
    // Beside it first: one that runs just now stays whole.
    let (new, program) = (directory.join("slotboot.new"), directory.join("slotboot"));
    fs::copy(&built, &new).with_context(|| built.display().to_string())?;
    fs::rename(&new, &program)?;
    Ok(program)
}

fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).next_back()
}

/// What keeps a program from being started without anything else: its interpreter or dynamic section, as `readelf`
/// shows them.
pub fn needs(program: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("readelf").arg("--wide").arg("--segments").arg(program).output();
    let output = output.context("readelf (package binutils)")?;
    ensure!(output.status.success(), "readelf: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("LOAD"), "{} is no program: {text}", program.display());
    let needs = |line: &&str| line.contains("INTERP") || line.contains("DYNAMIC");
    Ok(text.lines().map(str::trim).filter(needs).map(str::to_owned).collect())
}
