//! The outer sandbox where systemd runs: a transient service unit.
//!
//! slotd's own unit has no capability and may make no namespace; systemd starts the helper beside it, with exactly what
//! it needs. Interface: org.freedesktop.systemd1(5); properties: systemd.exec(5), systemd.service(5),
//! systemd.resource-control(5), in the types in which systemd-run(1) sends them (a test compares).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::time::{Instant, MissedTickBehavior, interval};
use zbus::wire::{Fd, OwnedObjectPath, Variant};
use zbus::{Proxy, connection};

use crate::device::device_mapper;

use super::{ANSWER_LIMIT, CheckError, CheckReport, GRACE, Request, answer, helper_arguments};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long systemd may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(25);
/// How long the end of a unit that was stopped is waited for.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How often the cancel flag is looked at.
const TICK: Duration = Duration::from_millis(50);

/// As `bubblewrap::CAPABILITIES`: numbers of `linux/capability.h`.
const CAPABILITIES: u64 = 1 << 21 | 1 << 7 | 1 << 6 | 1 << 8 | 1 << 5;
/// Memory of helper and programs together, in bytes.
const MEMORY: u64 = 512 << 20;
/// Processes and threads of helper and programs together.
const TASKS: u64 = 128;

/// One per process and check.
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// See [`super::run`].
pub(super) fn run(
    bus: Option<&str>,
    request: &Request,
    cancel: &AtomicBool,
) -> Result<CheckReport, CheckError> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let unit = format!("sps-upgrade-check-{}-{number}.service", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CheckError::Start { program: request.helper.clone(), source })?;
    runtime.block_on(async {
        let failed = |source| CheckError::Unit { unit: unit.clone(), source };
        let builder = match bus {
            Some(address) => connection::Builder::address(address),
            None => connection::Builder::system(),
        };
        let connection = builder.method_timeout(ANSWER_TIME).build().await.map_err(failed)?;
        let manager = Proxy::new(&connection, NAME, PATH, MANAGER).await.map_err(failed)?;
        let (how, output) = run_unit(&manager, &unit, request, cancel).await?;
        let [stdout, stderr] = &output.bytes;
        answer(&how, stdout, stderr)
    })
}

/// What the unit writes.
struct Output {
    pipes: [pipe::Receiver; 2],
    bytes: [Vec<u8>; 2],
}

impl Output {
    /// Takes what is there. Beyond the limit it is dropped: the answer is then cut, and refused.
    fn drain(&mut self) {
        for (pipe, bytes) in self.pipes.iter_mut().zip(&mut self.bytes) {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = pipe.try_read(&mut chunk) {
                if bytes.len() < ANSWER_LIMIT {
                    bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
                }
            }
        }
    }
}

/// Starts the unit and waits for the end of its job: for `Type=oneshot` that is the end of the program. The word is
/// empty when it ended well.
async fn run_unit(
    manager: &Proxy<'_>,
    unit: &str,
    request: &Request,
    cancel: &AtomicBool,
) -> Result<(String, Output), CheckError> {
    let failed = |source| CheckError::Unit { unit: unit.to_owned(), source };
    let piped = |source| CheckError::Start { program: request.helper.clone(), source };
    // Without a subscriber systemd sends no JobRemoved.
    manager.call::<_, _, ()>("Subscribe", &()).await.map_err(failed)?;
    let mut removed = manager.receive_signal("JobRemoved").await.map_err(failed)?;
    let (stdout, stdout_end) = pipe().map_err(piped)?;
    let (stderr, stderr_end) = pipe().map_err(piped)?;
    let mut output = Output { pipes: [stdout, stderr], bytes: Default::default() };
    let properties = properties(request, stdout_end, stderr_end);
    let nothing: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let job: OwnedObjectPath =
        manager.call("StartTransientUnit", &(unit, "fail", properties, nothing)).await.map_err(failed)?;

    let limit = request.deadline.saturating_add(GRACE);
    let over = Instant::now() + limit;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            signal = removed.next() => match signal.as_ref().map(job_result) {
                Some(Some((path, result))) if path == job => break Ok(result),
                Some(_) => {}
                None => break Err(failed(zbus::Error::Failure("the bus was closed".to_owned()))),
            },
            _ = ticks.tick() => {
                if cancel.load(Ordering::Relaxed) { break Err(CheckError::Cancelled) }
                if Instant::now() >= over { break Err(CheckError::Deadline { limit }) }
            }
        }
        output.drain();
    };
    output.drain();
    if result.is_err() {
        stop(manager, unit).await;
    }
    // A unit that failed would stay listed; with CollectMode= it is usually gone already.
    let _ = manager.call::<_, _, ()>("ResetFailedUnit", &(unit,)).await;
    match result?.as_str() {
        "done" => Ok((String::new(), output)),
        "timeout" => Err(CheckError::Deadline { limit }),
        other => Ok((format!("systemd: {other}"), output)),
    }
}

/// Job and result of a `JobRemoved`: done, canceled, timeout, failed, dependency or skipped.
fn job_result(signal: &zbus::Message) -> Option<(OwnedObjectPath, String)> {
    let body = signal.body();
    let (_, path, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize().ok()?;
    Some((path, result))
}

/// Ends the unit. What systemd answers changes nothing: its own timeout ends the unit too.
async fn stop(manager: &Proxy<'_>, unit: &str) {
    let stopped = async {
        let _ = manager.call::<_, _, OwnedObjectPath>("StopUnit", &(unit, "replace")).await;
        // Stopped units are unloaded; GetUnit then fails.
        while manager.call::<_, _, OwnedObjectPath>("GetUnit", &(unit,)).await.is_ok() {
            tokio::time::sleep(TICK).await;
        }
    };
    let _ = tokio::time::timeout(STOP_TIME, stopped).await;
}

/// A pipe: its reading end for this process, its writing end for the unit.
fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// What the unit may open, and how.
fn devices(image: &str) -> [(String, String); 3] {
    let allowed = [(image, "r"), (device_mapper::CONTROL, "rw"), ("block-device-mapper", "r")];
    allowed.map(|(device, access)| (device.to_owned(), access.to_owned()))
}

/// The unit's properties, by their names on the bus.
fn properties(request: &Request, stdout: OwnedFd, stderr: OwnedFd) -> Vec<(&'static str, Variant<'static>)> {
    let limit = request.deadline.saturating_add(GRACE);
    let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let image = request.image.display().to_string();
    let helper = request.helper.display().to_string();
    let mut command = vec![helper.clone()];
    command.extend(helper_arguments(request, &image));
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut list: Vec<(&'static str, Variant<'static>)> = vec![
        ("Description", "Check programs of a new firmware".into()),
        // RuntimeMaxUSec has no effect on oneshot; its start timeout has (systemd.service(5)).
        ("Type", "oneshot".into()),
        ("ExecStart", vec![(helper, command, false)].into()),
        ("TimeoutStartUSec", micros.into()),
        ("TimeoutStopUSec", 5_000_000_u64.into()),
        ("KillSignal", 9_i32.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("StandardInput", "null".into()),
        ("StandardOutputFileDescriptor", Fd::from(stdout).into()),
        ("StandardErrorFileDescriptor", Fd::from(stderr).into()),
        // Rights: setuid to nobody and dropping capabilities work with no_new_privs.
        ("CapabilityBoundingSet", CAPABILITIES.into()),
        ("SystemCallArchitectures", words(&["native"]).into()),
        // No RestrictNamespaces=: namespaces are what the helper makes.
        ("SystemCallFilter", (true, words(&["@system-service", "@mount"])).into()),
        ("SystemCallErrorNumber", 1_i32.into()),
        ("RestrictAddressFamilies", (true, words(&["AF_UNIX"])).into()),
        // Devices: the slot, for reading, dm-verity over it, and the pseudo-devices that `closed` leaves.
        ("DevicePolicy", "closed".into()),
        ("ProtectSystem", "strict".into()),
        ("ProtectHome", "yes".into()),
        ("ProtectProc", "invisible".into()),
        ("KeyringMode", "private".into()),
        ("UMask", 0o077_u32.into()),
        ("OOMPolicy", "kill".into()),
        ("MemoryMax", MEMORY.into()),
        ("MemorySwapMax", 0_u64.into()),
        ("TasksMax", TASKS.into()),
        ("LimitCORE", 0_u64.into()),
    ];
    list.extend(devices(&image).map(|device| ("DeviceAllow", vec![device].into())));
    list.extend(
        [
            "NoNewPrivileges",
            "PrivateNetwork",
            "PrivateMounts",
            "PrivateIPC",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHostname",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "LockPersonality",
        ]
        .map(|name| (name, true.into())),
    );
    list
}
