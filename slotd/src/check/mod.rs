//! The check programs that a new firmware carries, run from that firmware's own root.
//!
//! slotd has no capability and may make no namespace. A helper program, `upgrade-check`, mounts the slot and runs the
//! programs; [`run`] starts it inside one of two outer sandboxes. The contract of a check program is
//! `docs/firmware-checks.md`.

pub mod bubblewrap;
pub mod helper;
pub mod process;
pub mod report;
mod root;
pub mod systemd;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::device::device_mapper::Verity;

pub use report::{Check, CheckReport, Outcome};

/// Where a firmware carries its check programs.
pub const DIRECTORY: &str = "/usr/lib/sps/upgrade-checks.d";
/// Where the helper is installed.
pub const HELPER: &str = "/usr/lib/sps/upgrade-check";
/// Most variables that a check program is given beside `PATH` and `LANG`.
pub const VARIABLES: usize = 32;
/// Longest value of such a variable, in bytes.
pub const VALUE_LIMIT: usize = 4096;
/// What the helper may take beyond the deadline of the programs: mounting, ending what still runs.
const GRACE: Duration = Duration::from_secs(20);
/// Longest answer of the helper, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// Which outer sandbox starts the helper.
#[derive(Clone, Debug)]
pub enum Runner {
    /// `bwrap`, started by this process; needs root with its capabilities.
    Bubblewrap {
        /// The program, usually `/usr/bin/bwrap`.
        program: PathBuf,
    },
    /// A transient unit of the service manager. The only one that works from within slotd's own unit, which has no
    /// capability and may make no namespace.
    Systemd {
        /// D-Bus address of the bus on which systemd answers; the system bus when there is none.
        bus: Option<String>,
    },
}

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The helper, usually [`HELPER`].
    pub helper: PathBuf,
    /// Block device or regular file; its first byte is the first byte of the EROFS image. Verified immediately before.
    pub image: PathBuf,
    /// Bytes of the EROFS image. The helper refuses a file system that claims more.
    pub size: u64,
    /// The signed tree over it, where there is one: a block device is then read through dm-verity.
    pub verity: Option<Verity>,
    /// Time for all check programs together.
    pub deadline: Duration,
    /// Variables for the programs: names begin with `SPS_`.
    pub environment: Vec<(String, String)>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A name or value that is not for check programs.
    #[error(
        "variable {name:?} cannot be given to check programs; expected at most {VARIABLES} names of SPS_ and A-Z, 0-9 and _, values of at most {VALUE_LIMIT} bytes"
    )]
    Variable {
        /// The name.
        name: String,
    },
    /// The slot is not there.
    #[error("cannot look at {}", image.display())]
    Image {
        /// Which device or file.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The outer sandbox did not start, or its output was lost.
    #[error("cannot start the check programs by {}", program.display())]
    Start {
        /// What was started.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd refused the unit or did not answer.
    #[error("systemd does not start the unit {unit} for the check programs")]
    Unit {
        /// Its name.
        unit: String,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// Helper and programs did not end in time; they were ended.
    #[error("the check programs and their helper did not end within {} s; they were ended", limit.as_secs())]
    Deadline {
        /// The limit, with the helper's own share.
        limit: Duration,
    },
    /// The caller asked to stop.
    #[error("the check was cancelled")]
    Cancelled,
    /// The helper could not mount the image, or ended in another way.
    #[error("the helper of the check programs failed ({how}): {message}")]
    Helper {
        /// Exit code, signal, or systemd's word.
        how: String,
        /// What it wrote on standard error.
        message: String,
    },
    /// The helper's answer is not the document that it should be.
    #[error("the helper of the check programs answered something that is no report")]
    Answer(#[source] serde_json::Error),
}

/// Runs the check programs of an image and waits for them. Blocks; `cancel` is looked at twenty times a second.
///
/// Whatever happens, nothing that was started runs on when this returns (or, under systemd, it was asked to stop).
pub fn run(runner: &Runner, request: &Request, cancel: &AtomicBool) -> Result<CheckReport, CheckError> {
    check_variables(&request.environment)?;
    match runner {
        Runner::Bubblewrap { program } => bubblewrap::run(program, request, cancel),
        Runner::Systemd { bus } => systemd::run(bus.as_deref(), request, cancel),
    }
}

/// Names and values that a check program may be given, and no others.
pub fn check_variables(variables: &[(String, String)]) -> Result<(), CheckError> {
    let good = |name: &str, value: &str| {
        name.strip_prefix("SPS_").is_some_and(|rest| !rest.is_empty())
            && name.len() <= 64
            && name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
            && value.len() <= VALUE_LIMIT
            && !value.contains('\0')
    };
    let bad = variables.iter().find(|(name, value)| !good(name, value));
    match bad.or_else(|| variables.get(VARIABLES)) {
        Some((name, _)) => Err(CheckError::Variable { name: name.clone() }),
        None => Ok(()),
    }
}

/// The helper's arguments for an image that it sees at `image`.
fn helper_arguments(request: &Request, image: &str) -> Vec<String> {
    let mut arguments = vec![
        "--image".to_owned(),
        image.to_owned(),
        "--size".to_owned(),
        request.size.to_string(),
        "--deadline".to_owned(),
        request.deadline.as_secs().max(1).to_string(),
    ];
    if let Some(Verity { root_hash, salt, hash_offset }) = &request.verity {
        let offset = hash_offset.to_string();
        let options = ["--root-hash", &root_hash.to_string(), "--salt", salt, "--hash-offset", &offset];
        arguments.extend(options.map(str::to_owned));
    }
    for (name, value) in &request.environment {
        arguments.extend(["--environment".to_owned(), format!("{name}={value}")]);
    }
    arguments
}

/// The report from what the helper wrote; `how` tells its end, empty when it ended well.
fn answer(how: &str, stdout: &[u8], stderr: &[u8]) -> Result<CheckReport, CheckError> {
    if how.is_empty() {
        return serde_json::from_slice(stdout).map_err(CheckError::Answer);
    }
    let message = report::last_line(&String::from_utf8_lossy(stderr));
    let message = if message.is_empty() { "it said nothing".to_owned() } else { message };
    Err(CheckError::Helper { how: how.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_variables_of_ours_reach_a_program() {
        assert!(check_variables(&variables(&[("SPS_FROM_VERSION", "2.1.0 = x"), ("SPS_A", "")])).is_ok());
        for name in ["PATH", "LD_PRELOAD", "SPS_", "SPS_a", "SPS_A=B", "", "xSPS_A"] {
            let error = check_variables(&variables(&[(name, "x")])).unwrap_err();
            assert!(matches!(error, CheckError::Variable { .. }), "{name}");
        }
        assert!(check_variables(&variables(&[("SPS_A", "a\0b")])).is_err());
        let value = "x".repeat(VALUE_LIMIT + 1);
        assert!(check_variables(&variables(&[("SPS_A", &value)])).is_err());
        assert!(check_variables(&vec![("SPS_A".to_owned(), String::new()); VARIABLES + 1]).is_err());
        assert!(check_variables(&vec![("SPS_A".to_owned(), String::new()); VARIABLES]).is_ok());
    }

    #[test]
    fn a_helper_that_fails_is_quoted() {
        let error = answer("exit code 1", b"", b"upgrade-check: no EROFS\n").unwrap_err();
        assert!(error.to_string().ends_with("(exit code 1): upgrade-check: no EROFS"), "{error}");
        assert!(matches!(answer("", b"{", b""), Err(CheckError::Answer(_))));
    }
}
