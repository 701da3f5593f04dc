//! What the program `upgrade-check` does, in two processes.
//!
//! The first makes namespaces and starts the second as process 1 of them, waits for it, and passes its answer on. The
//! second makes the image its root and runs the check programs, one after the other, as an unprivileged user. After each
//! it ends whatever that program left; when it ends itself the kernel ends the rest.

#![expect(clippy::disallowed_methods, reason = "the sandboxed checks are the processes that slotd may start")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use super::process::{Bounds, End, follow};
use super::report::{Check, CheckReport, Schema, judge, last_line};
use crate::device::device_mapper::{DeviceMapperError, Mapping, Verity};
use crate::device::kernel;

use super::{ANSWER_LIMIT, CheckError, DIRECTORY, check_variables, root};

/// The user and group that check programs run as (nobody).
pub const USER: u32 = 65534;
/// Most programs that are run.
pub const PROGRAMS: usize = 64;
/// Longest time for one program, whatever the deadline for all is.
pub const PROGRAM_TIME: Duration = Duration::from_secs(60);
/// Bytes that are kept of each stream of a program.
pub const OUTPUT_KEPT: usize = 4096;
/// Entries of the directory that are looked at.
const ENTRIES: usize = 4096;
/// What the second process may take beyond the programs.
const GRACE: Duration = Duration::from_secs(10);

/// What the program was asked.
#[derive(Clone, Debug)]
pub struct Order {
    /// Device or file.
    pub image: PathBuf,
    /// Verified bytes of the file system.
    pub size: u64,
    /// The signed tree over it.
    pub verity: Option<Verity>,
    /// Time for all programs.
    pub deadline: Duration,
    /// `KEY=VALUE`, as given.
    pub environment: Vec<(String, String)>,
}

/// Why the helper gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// A variable that is not for check programs.
    #[error(transparent)]
    Variable(#[from] CheckError),
    /// The second process was started by hand.
    #[error("--inside is for upgrade-check itself; leave it out")]
    NotInside,
    /// A program would inherit descriptors that are not for it.
    #[error("cannot keep descriptors from check programs; this needs Linux 5.11")]
    Descriptors(#[source] io::Error),
    /// Namespaces need root.
    #[error("cannot make namespaces; upgrade-check needs root with CAP_SYS_ADMIN")]
    Namespaces(#[source] io::Error),
    /// The second process did not start or was lost.
    #[error("cannot start in the new namespaces")]
    Start(#[source] io::Error),
    /// The second process failed; it has said why.
    #[error("{message} ({how})")]
    Inside {
        /// Its end.
        how: String,
        /// The last line of its standard error.
        message: String,
    },
    /// The image cannot be opened.
    #[error("cannot open the image")]
    Image(#[source] io::Error),
    /// The image cannot be read through dm-verity.
    #[error(transparent)]
    DeviceMapper(#[from] DeviceMapperError),
    /// The root could not be made.
    #[error("the firmware's root cannot be entered")]
    Root(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The directory of programs cannot be read.
    #[error("cannot read {DIRECTORY} of the firmware")]
    Directory(#[source] io::Error),
    /// The answer was not taken.
    #[error("cannot write the answer")]
    Answer(#[source] io::Error),
}

impl From<root::RootError> for HelperError {
    fn from(error: root::RootError) -> Self {
        Self::Root(Box::new(error))
    }
}

/// The first process: `arguments` are those of this program; the answer goes to standard output.
pub fn outside(order: &Order, arguments: &[OsString]) -> Result<(), HelperError> {
    check_variables(&order.environment)?;
    kernel::end_descriptors_at_exec().map_err(HelperError::Descriptors)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|error| HelperError::Namespaces(error.into()))?;
    let child = Command::new("/proc/self/exe")
        .args(arguments)
        .arg("--inside")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(HelperError::Start)?;
    let bounds = Bounds { time: order.deadline.saturating_add(GRACE), keep: ANSWER_LIMIT, cancel: None };
    let finished = follow(child, &bounds, |child| drop(child.kill())).map_err(HelperError::Start)?;
    if finished.end != End::Exited(0) {
        let message = last_line(&finished.stderr.text());
        return Err(HelperError::Inside { how: finished.end.to_string(), message });
    }
    write_answer(&finished.stdout.into_bytes())
}

/// The second process: process 1 of its namespaces.
pub fn inside(order: &Order) -> Result<(), HelperError> {
    if getpid().as_raw() != 1 {
        return Err(HelperError::NotInside);
    }
    check_variables(&order.environment)?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| HelperError::Namespaces(error.into()))?;
    root::make_mounts_private()?;
    let (verity, mapping) = guard(order)?;
    root::enter(mapping.as_ref().map_or(&order.image, Mapping::node), order.size)?;
    // The mount uses it from here on, until the namespace ends.
    drop(mapping);
    root::confine(order.deadline.min(PROGRAM_TIME).as_secs())?;
    let checks = match programs(Path::new(DIRECTORY)).map_err(HelperError::Directory)? {
        names if names.len() > PROGRAMS => {
            let found = names.len();
            vec![Check::failed(
                DIRECTORY,
                &format!("holds {found} programs; at most {PROGRAMS} may be there"),
            )]
        }
        names => run_all(&names, order)?,
    };
    let report = CheckReport { schema: Schema, verity, checks };
    write_answer(&serde_json::to_vec(&report).map_err(|error| HelperError::Answer(error.into()))?)
}

/// Puts dm-verity over the image where that can be done, and says why where it cannot. Where it can be done and fails,
/// nothing is mounted.
fn guard(order: &Order) -> Result<(String, Option<Mapping>), HelperError> {
    let none = |why: &str| Ok((format!("none: {why}"), None));
    let Some(verity) = &order.verity else { return none("no root hash was given") };
    let image = File::open(&order.image).map_err(HelperError::Image)?;
    if !image.metadata().map_err(HelperError::Image)?.file_type().is_block_device() {
        return none("the slot is a file, and dm-verity needs a block device");
    }
    let Some(control) = root::device_mapper_control()? else {
        return none("this kernel has no device-mapper (/dev/mapper/control is missing)");
    };
    let mapping = Mapping::verity(&control, &image, order.size, verity)?;
    Ok(("dm-verity".to_owned(), Some(mapping)))
}

fn write_answer(bytes: &[u8]) -> Result<(), HelperError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(HelperError::Answer)
}

/// Names of the regular, executable files, sorted by their bytes. Links are not followed: a firmware carries its checks.
/// A directory that is not there holds none.
pub(crate) fn programs(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries.take(ENTRIES) {
        let entry = entry?;
        let found = fs::symlink_metadata(entry.path())?;
        if found.is_file() && found.permissions().mode() & 0o111 != 0 {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

fn run_all(names: &[OsString], order: &Order) -> Result<Vec<Check>, HelperError> {
    let start = Instant::now();
    let mut checks = Vec::new();
    for (position, name) in names.iter().enumerate() {
        let left = order.deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            let over = format!("was not run: the {} s for all checks were over", order.deadline.as_secs());
            checks.push(Check::failed(&name.to_string_lossy(), &over));
            continue;
        }
        root::fresh_tmp(position > 0)?;
        checks.push(run_one(name, left.min(PROGRAM_TIME), &order.environment));
    }
    Ok(checks)
}

fn run_one(name: &OsString, time: Duration, environment: &[(String, String)]) -> Check {
    let shown = name.to_string_lossy();
    let mut command = Command::new(Path::new(DIRECTORY).join(name));
    command
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C")])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .uid(USER)
        .gid(USER)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Check::failed(&shown, &format!("cannot be started: {error}")),
    };
    let bounds = Bounds { time, keep: OUTPUT_KEPT, cancel: None };
    // Every process but this one. The kernel does it in one go, so no fork escapes.
    let finished = follow(child, &bounds, |_| {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    });
    while waitpid(None::<Pid>, None).is_ok() {}
    match finished {
        Ok(finished) => judge(&shown, &finished, time),
        Err(error) => Check::failed(&shown, &format!("cannot be followed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_regular_files_are_programs_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o555), ("README", 0o644)] {
            let path = directory.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(directory.path().join("15-directory")).unwrap();
        std::os::unix::fs::symlink("10-a", directory.path().join("05-link")).unwrap();
        assert_eq!(programs(directory.path()).unwrap(), ["10-a", "20-b"]);
        assert!(programs(&directory.path().join("missing")).unwrap().is_empty());
    }

    #[test]
    fn the_second_process_refuses_to_run_on_the_host() {
        let order = Order {
            image: PathBuf::from("/dev/null"),
            size: 0,
            verity: None,
            deadline: Duration::from_secs(1),
            environment: Vec::new(),
        };
        assert!(matches!(inside(&order), Err(HelperError::NotInside)));
    }
}
