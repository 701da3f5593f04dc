//! The transient unit, against a stand-in for systemd on a private bus.
//!
//! The stand-in does what org.freedesktop.systemd1(5) says of `StartTransientUnit`, `StopUnit` and `JobRemoved`, for a
//! service of `Type=oneshot` (systemd.service(5): its start job ends with its program), and confines nothing. The types
//! of the properties are systemd's own: `systemd-run` is asked to send the same ones.
#![expect(clippy::unused_self, clippy::used_underscore_binding, reason = "the interface macro wants methods")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use slotd::check::{self, CheckError, CheckReport, Request, Runner};
use zbus::object_server::SignalEmitter;
use zbus::wire::{OwnedObjectPath, OwnedVariant, Variant};
use zbus::{Connection, fdo, interface};

use super::firmware::Firmware;
use super::{TURN, assert_contained, can_mount, processes_with, request, wait_until};

/// What arrived.
#[derive(Default)]
struct Seen {
    /// Methods, in order.
    calls: Vec<String>,
    /// Properties of the last unit: name, signature and text of the value, or of the values of a list that came one by one.
    properties: BTreeMap<String, (String, String)>,
    /// Process id of its program.
    running: Option<u32>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Seen>>);

const JOB: &str = "/org/freedesktop/systemd1/job/7";

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Fake {
    fn subscribe(&self) {
        self.0.lock().unwrap().calls.push("Subscribe".to_owned());
    }

    fn start_transient_unit(
        &self,
        name: String,
        mode: &str,
        properties: Vec<(String, OwnedVariant)>,
        _aux: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<OwnedObjectPath> {
        let mut seen = self.0.lock().unwrap();
        seen.calls.push(format!("StartTransientUnit {mode}"));
        let mut command = None;
        let mut streams = Vec::new();
        for (key, value) in properties {
            let (signature, described) = (value.value_signature().to_string(), format!("{value:?}"));
            let seen = seen.properties.entry(key.clone()).or_insert((signature, String::new()));
            seen.1 += &described;
            match (key.as_str(), &*value) {
                ("ExecStart", value) => command = Some(command_of(value)),
                ("StandardOutputFileDescriptor" | "StandardErrorFileDescriptor", Variant::Fd(fd)) => {
                    streams.push(std::os::fd::AsFd::as_fd(fd).try_clone_to_owned().unwrap());
                }
                _ => {}
            }
        }
        let mut command = command.unwrap();
        let mut streams: Vec<OwnedFd> = streams;
        command
            .stderr(streams.pop().unwrap())
            .stdout(streams.pop().unwrap())
            .stdin(Stdio::null())
            .env_clear();
        let child = command.spawn().map_err(|error| fdo::Error::Failed(error.to_string()))?;
        seen.running = Some(child.id());
        drop(command);
        let connection = connection.clone();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || runtime.block_on(follow(child, name, connection)));
        Ok(OwnedObjectPath::try_from(JOB).unwrap())
    }

    fn stop_unit(&self, _name: &str, mode: &str) -> OwnedObjectPath {
        let mut seen = self.0.lock().unwrap();
        seen.calls.push(format!("StopUnit {mode}"));
        if let Some(pid) = seen.running.take() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/8").unwrap()
    }

    fn get_unit(&self, name: &str) -> fdo::Result<OwnedObjectPath> {
        Err(fdo::Error::Failed(format!("unit {name} not loaded")))
    }

    fn reset_failed_unit(&self, _name: &str) {
        self.0.lock().unwrap().calls.push("ResetFailedUnit".to_owned());
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// `ExecStart`: a(sasb).
fn command_of(value: &Variant<'_>) -> Command {
    let lines: Vec<(String, Vec<String>, bool)> = value.try_clone().unwrap().try_into().unwrap();
    let (program, words, _) = &lines[0];
    let mut command = Command::new(program);
    command.args(&words[1..]);
    command
}

async fn follow(mut child: Child, name: String, connection: Connection) {
    let result = if child.wait().unwrap().success() { "done" } else { "failed" };
    let emitter = SignalEmitter::new(&connection, "/org/freedesktop/systemd1").unwrap();
    let job = |path| OwnedObjectPath::try_from(path).unwrap();
    // Somebody else's job first.
    Fake::job_removed(&emitter, 6, job("/org/freedesktop/systemd1/job/6"), "x.service", "failed")
        .await
        .unwrap();
    Fake::job_removed(&emitter, 7, job(JOB), &name, result).await.unwrap();
}

/// A private bus with the stand-in on it.
struct Stage {
    address: String,
    fake: Fake,
    bus: Child,
    end: Arc<tokio::sync::Notify>,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl Stage {
    fn new() -> Self {
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1", "--address=unix:tmpdir=/tmp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let (fake, end) = (Fake::default(), Arc::new(tokio::sync::Notify::new()));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let serving = std::thread::spawn({
            let (address, fake, end) = (address.clone(), fake.clone(), Arc::clone(&end));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let _connection = zbus::connection::Builder::address(address.as_str())
                        .serve_at("/org/freedesktop/systemd1", fake)
                        .name("org.freedesktop.systemd1")
                        .build()
                        .await
                        .unwrap();
                    ready.send(()).unwrap();
                    end.notified().await;
                });
            }
        });
        is_ready.recv().unwrap();
        Self { address, fake, bus, end, serving: Some(serving) }
    }

    fn run(&self, request: &Request, cancel: &AtomicBool) -> Result<CheckReport, CheckError> {
        check::run(&Runner::Systemd { bus: Some(self.address.clone()) }, request, cancel)
    }

    fn calls(&self) -> Vec<String> {
        self.fake.0.lock().unwrap().calls.clone()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

#[test]
fn a_transient_unit_runs_the_helper_and_its_answer_comes_back() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::new();
    let firmware =
        Firmware::new().check("10-a", "echo \"comes from $SPS_FROM_VERSION\"").check("20-b", "exit 1");
    let (image, size) = firmware.pack();
    // As slotd calls it: from a thread for blocking calls.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (runner, request) = (Runner::Systemd { bus: Some(stage.address.clone()) }, request(image, size));
    let blocking = move || check::run(&runner, &request, &AtomicBool::new(false));
    let report = runtime.block_on(async { tokio::task::spawn_blocking(blocking).await.unwrap() }).unwrap();
    assert_eq!(report.checks[0].detail, "comes from 2.1.0");
    assert_eq!(report.checks[1].detail, "failed and did not say why");
    assert_eq!(stage.calls(), ["Subscribe", "StartTransientUnit fail", "ResetFailedUnit"]);
}

/// The stand-in confines nothing, so this is what the helper does by itself.
#[test]
fn the_helper_alone_contains_a_program() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::new();
    assert_contained(|request| stage.run(request, &AtomicBool::new(false)).unwrap());
}

#[test]
fn a_helper_that_fails_is_quoted_from_its_standard_error() {
    let stage = Stage::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = stage.run(&request(file.path().to_owned(), 1), &AtomicBool::new(false)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("systemd: failed") && text.contains("upgrade-check: "), "{text}");
}

#[test]
fn cancelling_stops_and_resets_the_unit() {
    let (stage, cancel) = (Stage::new(), AtomicBool::new(false));
    let directory = tempfile::tempdir().unwrap();
    let sleeper = directory.path().join("sleeper");
    std::fs::write(&sleeper, "#!/bin/sh\nexec sleep 434343\n").unwrap();
    std::fs::set_permissions(&sleeper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let request = Request { helper: sleeper, ..request("/dev/null".into(), 1) };
    let result = std::thread::scope(|scope| {
        let checking = scope.spawn(|| stage.run(&request, &cancel));
        wait_until("the unit runs", || processes_with("434343") > 0);
        cancel.store(true, Ordering::Relaxed);
        checking.join().unwrap()
    });
    assert!(matches!(result, Err(CheckError::Cancelled)), "{result:?}");
    let calls = stage.calls();
    assert_eq!(calls[2..], ["StopUnit replace", "ResetFailedUnit"], "{calls:?}");
    wait_until("the unit is gone", || processes_with("434343") == 0);
}

#[test]
fn a_systemd_that_is_not_there_is_told_with_the_unit() {
    let stage = Stage::new();
    let address = stage.address.clone();
    drop(stage);
    let runner = Runner::Systemd { bus: Some(address) };
    let error = check::run(&runner, &request("/dev/null".into(), 1), &AtomicBool::new(false)).unwrap_err();
    assert!(
        matches!(&error, CheckError::Unit { unit, .. } if unit.starts_with("sps-upgrade-check-")),
        "{error}"
    );
}

/// As `systemd-run -p` takes them.
const ASSIGNMENTS: &[&str] = &[
    "Type=oneshot",
    "TimeoutStartSec=80",
    "TimeoutStopSec=5",
    "KillSignal=SIGKILL",
    "CollectMode=inactive-or-failed",
    "StandardInput=null",
    "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service @mount",
    "SystemCallErrorNumber=EPERM",
    "RestrictAddressFamilies=AF_UNIX",
    "DevicePolicy=closed",
    "DeviceAllow=/image r",
    "DeviceAllow=/dev/mapper/control rw",
    "DeviceAllow=block-device-mapper r",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectProc=invisible",
    "KeyringMode=private",
    "UMask=0077",
    "OOMPolicy=kill",
    "MemoryMax=512M",
    "MemorySwapMax=0",
    "TasksMax=128",
    "LimitCORE=0",
    "NoNewPrivileges=yes",
    "PrivateNetwork=yes",
    "PrivateMounts=yes",
    "PrivateIPC=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
];

#[test]
fn every_property_is_sent_as_systemds_own_client_sends_it() {
    let stage = Stage::new();
    let request = Request { helper: "/bin/true".into(), image: "/image".into(), ..request("/".into(), 1) };
    // /bin/true gives no report; what it was started with is what counts.
    assert!(matches!(stage.run(&request, &AtomicBool::new(false)), Err(CheckError::Answer(_))));
    let ours = std::mem::take(&mut stage.fake.0.lock().unwrap().properties);

    let runtime_directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--pipe", "--quiet"]);
    for assignment in ASSIGNMENTS {
        command.args(["-p", assignment]);
    }
    let mut client = command
        .arg("/bin/true")
        .env("DBUS_SESSION_BUS_ADDRESS", &stage.address)
        .env("XDG_RUNTIME_DIR", runtime_directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("systemd-run was here", || stage.fake.0.lock().unwrap().properties.contains_key("ExecStart"));
    let theirs = std::mem::take(&mut stage.fake.0.lock().unwrap().properties);
    let _ = client.kill();
    client.wait().unwrap();

    let values = ["Description", "ExecStart", "StandardOutputFileDescriptor", "StandardErrorFileDescriptor"];
    for (name, (signature, value)) in &ours {
        let Some((their_signature, their_value)) = theirs.get(name) else {
            // With --pipe systemd-run hands descriptors; the word is tested by its type only.
            assert_eq!(
                (name.as_str(), signature.as_str()),
                ("StandardInput", "s"),
                "systemd-run sent no {name}"
            );
            continue;
        };
        assert_eq!(signature, their_signature, "{name}");
        if !values.contains(&name.as_str()) {
            assert_eq!(value, their_value, "{name}");
        }
    }
    assert!(ours.len() >= ASSIGNMENTS.len());
}
