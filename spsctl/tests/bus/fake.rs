//! A private bus with a slotd that plays a part: enough of the contract to see what `spsctl` does with each answer.
#![expect(
    clippy::unused_self,
    clippy::needless_pass_by_value,
    reason = "the interface macro wants methods and values"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sps_base::dbus::TaintEntry;
use tokio::sync::Notify;
use zbus::fdo::ObjectManager;
use zbus::object_server::SignalEmitter;
use zbus::wire::{OwnedFd, OwnedObjectPath, OwnedVariant, Variant};
use zbus::{Connection, interface};

/// What the fake does with a job.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    /// Ends well, with signals on the way.
    Succeed,
    /// Ends well and never sends a signal.
    Silent,
    /// Fails after a few bytes.
    Fail,
    /// Takes a few bytes of the image and refuses it.
    Refuse,
    /// Runs until it is cancelled.
    Cancellable,
    /// Runs until it is cancelled; then slotd goes away, as when it is stopped.
    Stopped,
    /// Runs whatever it is told.
    Stubborn,
    /// slotd goes away once it was asked how it is going.
    Die,
}

#[derive(Clone, Default)]
struct JobState {
    state: &'static str,
    kind: &'static str,
    done: u64,
    error: (String, String),
    result: Vec<(&'static str, Scripted)>,
}

/// The values that a fake result needs.
#[derive(Clone)]
enum Scripted {
    Text(&'static str),
    Number(u64),
    Truth(bool),
    Texts(Vec<&'static str>),
    Code(i32),
    Checks(Vec<(&'static str, &'static str, &'static str, &'static str)>),
}

/// What arrived.
#[derive(Default)]
pub(crate) struct Seen {
    /// Bytes of the image.
    pub(crate) image: Vec<u8>,
    /// The image where it is not read.
    kept: Option<std::fs::File>,
    /// Options, as text.
    pub(crate) options: HashMap<String, String>,
    /// Methods called, with their arguments.
    pub(crate) calls: Vec<String>,
}

struct Shared {
    part: Part,
    seen: Mutex<Seen>,
    job: Mutex<JobState>,
    die: Notify,
}

impl Shared {
    fn call(&self, call: String) {
        self.seen.lock().unwrap().calls.push(call);
    }

    /// What a slotd that plays a failure answers to a choice.
    fn refuse(&self) -> Result<(), Refusal> {
        if self.part == Part::Fail { Err(Refusal::TestRequired("test slot 2 first".into())) } else { Ok(()) }
    }
}

/// Date of the configuration that comes back with slot 2.
pub(crate) const CONFIGURATION: &str = "2026-05-28T20:26:40Z";

/// `org.spsagent.Error.*`.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.spsagent.Error")]
enum Refusal {
    SlotEmpty(String),
    TestRequired(String),
    InvalidArgument(String),
}

/// systemd-logind, as far as it restarts the machine.
struct Login(Arc<Shared>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Login {
    fn reboot(&self, interactive: bool) {
        self.0.call(format!("Reboot {interactive}"));
    }
}

struct Manager(Arc<Shared>);

#[interface(name = "org.spsagent.Slots1.Manager")]
impl Manager {
    async fn install(
        &self,
        image: OwnedFd,
        options: HashMap<String, OwnedVariant>,
        #[zbus(connection)] connection: &Connection,
    ) -> OwnedObjectPath {
        {
            let mut seen = self.0.seen.lock().unwrap();
            let mut file = std::fs::File::from(std::os::fd::OwnedFd::from(image));
            let wanted = if self.0.part == Part::Refuse { 10 } else { u64::MAX };
            if self.0.part == Part::Cancellable {
                // As a slotd that is still reading when it is told to stop.
                seen.kept = Some(file);
            } else {
                file.by_ref().take(wanted).read_to_end(&mut seen.image).unwrap();
            }
            seen.options = options.iter().map(|(key, value)| (key.clone(), (**value).to_string())).collect();
        }
        start(&self.0, connection, "install").await
    }

    fn state(&self) -> (&'static str, &'static str) {
        ("valid", r#"{"epoch_floor":3}"#)
    }

    fn reset_state(&self, reason: &str) {
        self.0.call(format!("ResetState {reason}"));
    }

    fn confirm(&self) -> Result<(), Refusal> {
        self.0.call("Confirm".to_owned());
        self.0.refuse()
    }

    fn reject(&self, reason: &str) -> Result<(), Refusal> {
        self.0.call(format!("Reject {reason}"));
        self.0.refuse()
    }

    fn revert(&self, reason: &str, options: HashMap<String, OwnedVariant>) -> Result<(), Refusal> {
        let shown: std::collections::BTreeMap<_, _> =
            options.iter().map(|(key, value)| (key.clone(), (**value).to_string())).collect();
        self.0.call(format!("Revert {reason} {shown:?}"));
        let accepted = shown.get("accept_config").map(String::as_str);
        if accepted != Some(&format!("\"{CONFIGURATION}\"")) {
            let why = format!("option accept_config: expected {CONFIGURATION}, found {accepted:?}.");
            return Err(Refusal::InvalidArgument(why));
        }
        Ok(())
    }

    #[zbus(property)]
    fn taint_count(&self) -> u32 {
        1
    }
    #[zbus(property)]
    fn booted(&self) -> u32 {
        1
    }
    #[zbus(property)]
    fn default(&self) -> u32 {
        1
    }
    #[zbus(property)]
    fn after_reboot(&self) -> u32 {
        2
    }
    #[zbus(property)]
    fn trial(&self) -> bool {
        false
    }
    #[zbus(property)]
    fn confirmed(&self) -> bool {
        true
    }
    #[zbus(property)]
    fn fallback(&self) -> u32 {
        2
    }
    #[zbus(property)]
    fn last_upgrade(&self) -> HashMap<&'static str, Variant<'static>> {
        HashMap::from([
            ("outcome", "failed".into()),
            ("slot", 2_u32.into()),
            ("version", "2.2.0".into()),
            ("selected_at", 1_780_000_000_u64.into()),
            ("reason", "no link".into()),
        ])
    }
    #[zbus(property)]
    fn loader(&self) -> &'static str {
        if self.0.part == Part::Fail { "none" } else { "grub" }
    }
    #[zbus(property)]
    fn compatible(&self) -> &'static str {
        "sps-1"
    }
    #[zbus(property)]
    fn security_epoch(&self) -> u32 {
        3
    }
    #[zbus(property)]
    fn empty_slots(&self) -> u32 {
        1
    }
    #[zbus(property)]
    fn readback(&self) -> &'static str {
        "direct"
    }
    #[zbus(property)]
    fn revocation(&self) -> &'static str {
        "checked"
    }
    #[zbus(property)]
    fn warnings(&self) -> Vec<&'static str> {
        vec!["state was lost"]
    }
}

struct Taint;

#[interface(name = "org.spsagent.Slots1.Taint1")]
impl Taint {
    fn list(&self, offset: u32, limit: u32) -> Vec<TaintEntry> {
        assert_eq!(limit, 256);
        let entry = |number: u64| {
            let (id, cause, place) = (format!("{number:016}"), "state-lost".into(), "state".into());
            (id, cause, place, "zeros\x1b[2J".into(), number, 1_780_000_000, 0)
        };
        (u64::from(offset) + 1..=300).take(256).map(entry).collect()
    }
}

struct Slot {
    shared: Arc<Shared>,
    id: u32,
}

impl Slot {
    fn filled(&self) -> bool {
        self.id == 1
    }
}

#[interface(name = "org.spsagent.Slots1.Slot")]
impl Slot {
    fn notes(&self) -> Result<&'static str, Refusal> {
        if self.filled() {
            Ok("# Notes\n\x1b[2Jraw")
        } else {
            Err(Refusal::SlotEmpty("slot 2 is empty".into()))
        }
    }
    fn news(&self) -> &'static str {
        ""
    }
    async fn verify(
        &self,
        mode: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(connection)] connection: &Connection,
    ) -> OwnedObjectPath {
        let call = format!("Verify {mode} {:?}", options.keys().collect::<Vec<_>>());
        self.shared.call(call);
        start(&self.shared, connection, "verify").await
    }
    async fn test(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(connection)] connection: &Connection,
    ) -> OwnedObjectPath {
        self.shared.call(format!("Test {} {:?}", self.id, options.keys().collect::<Vec<_>>()));
        start(&self.shared, connection, "test").await
    }
    fn activate(&self, message: &str, options: HashMap<String, OwnedVariant>) -> Result<(), Refusal> {
        self.shared.call(format!("Activate {} {message:?} {}", self.id, options.len()));
        self.shared.refuse()
    }
    fn deactivate(&self) -> Result<(), Refusal> {
        self.shared.call(format!("Deactivate {}", self.id));
        self.shared.refuse()
    }
    fn delete(&self) {
        self.shared.call(format!("Delete {}", self.id));
    }

    #[zbus(property)]
    fn id(&self) -> u32 {
        self.id
    }
    #[zbus(property)]
    fn label(&self) -> &'static str {
        if self.filled() { "A" } else { "B" }
    }
    #[zbus(property)]
    fn state(&self) -> &'static str {
        if self.filled() { "verified" } else { "empty" }
    }
    #[zbus(property)]
    fn reason(&self) -> &'static str {
        ""
    }
    #[zbus(property)]
    fn version(&self) -> &'static str {
        if self.filled() { "2.1.0" } else { "" }
    }
    #[zbus(property)]
    fn boot_version(&self) -> &'static str {
        ""
    }
    #[zbus(property)]
    fn build_date(&self) -> &'static str {
        ""
    }
    #[zbus(property)]
    fn root_hash(&self) -> &'static str {
        ""
    }
    #[zbus(property)]
    fn security_epoch(&self) -> u32 {
        3
    }
    #[zbus(property)]
    fn size(&self) -> u64 {
        1 << 30
    }
    #[zbus(property)]
    fn installed_at(&self) -> u64 {
        0
    }
    #[zbus(property)]
    fn verified_at(&self) -> u64 {
        0
    }
    #[zbus(property)]
    fn verified_how(&self) -> &'static str {
        ""
    }
    #[zbus(property)]
    fn configuration(&self) -> &'static str {
        if self.filled() { "" } else { CONFIGURATION }
    }
    #[zbus(property)]
    fn current(&self) -> bool {
        self.filled()
    }
    #[zbus(property)]
    fn after_reboot(&self) -> bool {
        self.filled()
    }
}

struct Job(Arc<Shared>);

impl Job {
    fn now(&self) -> JobState {
        self.0.job.lock().unwrap().clone()
    }
}

#[interface(name = "org.spsagent.Slots1.Job")]
impl Job {
    async fn cancel(&self, #[zbus(signal_emitter)] emitter: SignalEmitter<'_>) {
        self.0.call("Cancel".to_owned());
        if matches!(self.0.part, Part::Cancellable | Part::Stopped) {
            {
                let mut job = self.0.job.lock().unwrap();
                job.state = "cancelled";
                job.error = ("org.spsagent.Error.Cancelled".to_owned(), "cancelled by its caller".to_owned());
            }
            self.error_changed(&emitter).await.unwrap();
            self.state_changed(&emitter).await.unwrap();
        }
        if self.0.part == Part::Stopped {
            self.0.die.notify_one();
        }
    }

    #[zbus(property)]
    fn kind(&self) -> &'static str {
        self.now().kind
    }
    #[zbus(property)]
    fn slot(&self) -> u32 {
        2
    }
    #[zbus(property)]
    fn phase(&self) -> &'static str {
        "writing"
    }
    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.now().done
    }
    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        100 << 20
    }
    #[zbus(property)]
    fn next_offset(&self) -> u64 {
        if self.now().state == "failed" { 4096 } else { 0 }
    }
    #[zbus(property)]
    fn state(&self) -> &'static str {
        if self.0.part == Part::Die {
            self.0.die.notify_one();
        }
        self.now().state
    }
    #[zbus(property)]
    fn error(&self) -> (String, String) {
        self.now().error
    }
    #[zbus(property)]
    fn result(&self) -> HashMap<&'static str, Variant<'static>> {
        self.now().result.into_iter().map(|(key, value)| (key, value.into())).collect()
    }
    #[zbus(property)]
    fn sender(&self) -> &'static str {
        ":1.1"
    }
    #[zbus(property)]
    fn started_at(&self) -> u64 {
        1_780_000_000
    }
    #[zbus(property)]
    fn finished_at(&self) -> u64 {
        0
    }
}

impl From<Scripted> for Variant<'static> {
    fn from(value: Scripted) -> Self {
        match value {
            Scripted::Text(text) => text.into(),
            Scripted::Number(number) => number.into(),
            Scripted::Truth(truth) => truth.into(),
            Scripted::Texts(texts) => texts.into(),
            Scripted::Code(code) => code.into(),
            Scripted::Checks(checks) => checks.into(),
        }
    }
}

/// Puts job 1 on the bus and lets it play.
async fn start(shared: &Arc<Shared>, connection: &Connection, kind: &'static str) -> OwnedObjectPath {
    let path = "/org/spsagent/slots1/job/1";
    *shared.job.lock().unwrap() = JobState { state: "running", kind, ..JobState::default() };
    connection.object_server().at(path, Job(Arc::clone(shared))).await.unwrap();
    if !matches!(shared.part, Part::Cancellable | Part::Stopped | Part::Stubborn | Part::Die) {
        tokio::spawn(play(Arc::clone(shared), connection.clone(), path));
    }
    OwnedObjectPath::try_from(path).unwrap()
}

async fn play(shared: Arc<Shared>, connection: Connection, path: &'static str) {
    let object = connection.object_server().interface::<_, Job>(path).await.unwrap();
    for percent in [10, 30, 60, 100] {
        shared.job.lock().unwrap().done = percent << 20;
        if shared.part != Part::Silent {
            object.get().await.bytes_done_changed(object.signal_emitter()).await.unwrap();
        }
    }
    end(&shared);
    if shared.part != Part::Silent {
        object.get().await.state_changed(object.signal_emitter()).await.unwrap();
    }
}

fn end(shared: &Shared) {
    let mut job = shared.job.lock().unwrap();
    if job.kind == "test" {
        job.state = "done";
        job.result = test_result(shared.part == Part::Fail);
        return;
    }
    if matches!(shared.part, Part::Fail | Part::Refuse) {
        job.state = "failed";
        job.error =
            ("org.spsagent.Error.MediaCorrupt".to_owned(), "firmware.erofs: byte 9 differs".to_owned());
        return;
    }
    job.state = "done";
    job.result = if job.kind == "install" {
        vec![("version", Scripted::Text("2.2.0")), ("bytes_written", Scripted::Number(100 << 20))]
    } else {
        // As slotd ends a check that finds damage: failed, and still with its result.
        job.state = "failed";
        job.error = ("org.spsagent.Error.SlotBad".to_owned(), "1 block is bad".to_owned());
        vec![
            ("healthy", Scripted::Truth(false)),
            ("summary", Scripted::Text("1 block is bad")),
            ("owners", Scripted::Texts(vec!["file /usr/bin/x"])),
        ]
    };
}

fn test_result(fails: bool) -> Vec<(&'static str, Scripted)> {
    let (summary, storage) = if fails {
        ("Storage check started\nStorage check failed", ("storage", "failed", "12 MiB free", "free 100 MiB"))
    } else {
        ("Storage check started\nStorage check finished", ("storage", "passed", "1 GiB free", ""))
    };
    vec![
        ("exit_code", Scripted::Code(i32::from(fails))),
        ("test_summary", Scripted::Text(summary)),
        ("checks", Scripted::Checks(vec![storage])),
        ("verity", Scripted::Text("guarded")),
    ]
}

/// A private bus and, on it, the fake.
pub(crate) struct Stage {
    pub(crate) address: String,
    shared: Arc<Shared>,
    bus: Child,
    slotd: Option<JoinHandle<()>>,
}

impl Stage {
    /// Starts both.
    pub(crate) fn new(part: Part) -> Self {
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1", "--address=unix:tmpdir=/tmp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let shared =
            Arc::new(Shared { part, seen: Mutex::default(), job: Mutex::default(), die: Notify::new() });
        let (ready, is_ready) = std::sync::mpsc::channel();
        let slotd = std::thread::spawn({
            let (address, shared) = (address.clone(), Arc::clone(&shared));
            move || serve(&address, &shared, &ready)
        });
        is_ready.recv().unwrap();
        Self { address, shared, bus, slotd: Some(slotd) }
    }

    /// What has arrived so far.
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shared.die.notify_one();
        if let Some(slotd) = self.slotd.take() {
            let _ = slotd.join();
        }
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

fn serve(address: &str, shared: &Arc<Shared>, ready: &std::sync::mpsc::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = "/org/spsagent/slots1";
        let slot = |id| Slot { shared: Arc::clone(shared), id };
        let _connection = zbus::connection::Builder::address(address)
            .serve_at(root, ObjectManager)
            .serve_at(root, Manager(Arc::clone(shared)))
            .serve_at(format!("{root}/taint"), Taint)
            .serve_at(format!("{root}/slot/1"), slot(1))
            .serve_at(format!("{root}/slot/2"), slot(2))
            .serve_at("/org/freedesktop/login1", Login(Arc::clone(shared)))
            .name("org.spsagent.Slots1")
            .name("org.freedesktop.login1")
            .build()
            .await
            .unwrap();
        ready.send(()).unwrap();
        shared.die.notified().await;
    });
}
