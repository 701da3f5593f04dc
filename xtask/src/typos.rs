//! Spelling, with a pinned wheel of `typos`.

use anyhow::{Context, Result};

use crate::{process, workspace};

/// Version and hashes of what is installed: the file that `pip --require-hashes` reads.
const REQUIREMENTS: &str = "xtask/python-tools.txt";

/// Checks the spelling of everything that git tracks.
pub(crate) fn check() -> Result<()> {
    let tools = workspace::scratch().join("tools");
    let wanted = std::fs::read_to_string(workspace::root().join(REQUIREMENTS)).context(REQUIREMENTS)?;
    let stamp = tools.join("installed.txt");
    if std::fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
        // Debian's own Python where there is one: python3-venv belongs to it.
        let python = if process::exists("/usr/bin/python3") { "/usr/bin/python3" } else { "python3" };
        process::run(process::command(python).args(["-m", "venv", "--clear"]).arg(&tools))?;
        process::run(
            process::command(tools.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5"])
                .args(["--only-binary", ":all:", "--require-hashes", "--requirement", REQUIREMENTS]),
        )?;
        std::fs::write(&stamp, wanted)?;
    }
    process::run(process::command(tools.join("bin/typos")).args(["--config", "typos.toml"]))
}
