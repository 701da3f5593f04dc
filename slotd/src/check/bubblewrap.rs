//! The outer sandbox where systemd does not run: `bwrap`, started as root, so without a user namespace.

#![expect(clippy::disallowed_methods, reason = "the sandboxed checks are the processes that slotd may start")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use super::process::{Bounds, End, follow};
use super::{ANSWER_LIMIT, CheckError, CheckReport, GRACE, Request, answer, helper_arguments};

/// What the helper needs: mounts, namespaces and `pivot_root`; to become an unprivileged user; to take capabilities
/// away for good; to end the programs of that user.
pub const CAPABILITIES: [&str; 5] = ["CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"];

/// Where the helper sees itself and the image.
const INSIDE_HELPER: &str = "/upgrade-check";
const INSIDE_IMAGE: &str = "/image";
/// Loop devices that are shown to the helper at most.
const LOOPS: usize = 64;

/// See [`super::run`].
pub(super) fn run(program: &Path, request: &Request, cancel: &AtomicBool) -> Result<CheckReport, CheckError> {
    let started = |source| CheckError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments(request)?).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(started)?;
    let limit = request.deadline.saturating_add(GRACE);
    let bounds = Bounds { time: limit, keep: ANSWER_LIMIT, cancel: Some(cancel) };
    // Everything else goes with it: --die-with-parent, and the process namespace.
    let finished = follow(child, &bounds, |child| drop(child.kill())).map_err(started)?;
    let how = match finished.end {
        End::Exited(0) => String::new(),
        End::Deadline => return Err(CheckError::Deadline { limit }),
        End::Cancelled => return Err(CheckError::Cancelled),
        end => end.to_string(),
    };
    answer(&how, &finished.stdout.into_bytes(), &finished.stderr.into_bytes())
}

/// The whole command line after the program's name (bwrap(1)).
fn arguments(request: &Request) -> Result<Vec<OsString>, CheckError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = fs::metadata(&request.image)
        .map_err(|source| CheckError::Image { image: request.image.clone(), source })?
        .file_type();

    let mut list: Vec<OsString> = Vec::new();
    let mut push = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    push(&["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    push(&["--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
    for capability in CAPABILITIES {
        push(&["--cap-add", capability]);
    }
    // The helper's own libraries, and mount(8) for kernels that need a loop device.
    for path in ["/usr", "/lib", "/lib64", "/bin", "/sbin"] {
        push(&["--ro-bind-try", path, path]);
    }
    push(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/"]);
    if kind.is_file() {
        for device in loop_devices() {
            list.extend(["--dev-bind-try".into(), device.clone().into(), device.into()]);
        }
    }
    list.extend(["--ro-bind".into(), request.helper.clone().into(), INSIDE_HELPER.into()]);
    // bwrap's plain binds carry nodev.
    let bind = if kind.is_block_device() { "--dev-bind" } else { "--ro-bind" };
    list.extend([bind.into(), request.image.clone().into(), INSIDE_IMAGE.into()]);
    list.extend(["--remount-ro".into(), "/".into(), "--".into(), INSIDE_HELPER.into()]);
    list.extend(helper_arguments(request, INSIDE_IMAGE).into_iter().map(OsString::from));
    Ok(list)
}

fn loop_devices() -> Vec<PathBuf> {
    let number = |name: &str| name.strip_prefix("loop").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let mut devices = vec![PathBuf::from("/dev/loop-control")];
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(number));
    devices.extend(found.map(|entry| entry.path()).take(LOOPS));
    devices
}
