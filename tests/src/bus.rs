//! A private bus with the real slotd on it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use slotd::domain::state::State;
use sps_base::durable::{self, Record};
use tempfile::TempDir;

use crate::loader::environment;
use crate::static_program;

mod power;

/// How long anything may take that is expected at once.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of the state medium.
pub const STATE_SIZE: u64 = 1 << 20;

const BUS_CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=@SOCKET@</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// What an appliance is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Product name in `slotd.toml`.
    pub compatible: String,
    /// Hardware model in `slotd.toml`.
    pub hardware: String,
    /// Number of firmware slots, 1 to 9.
    pub slots: u32,
    /// Bytes of each slot's (sparse) file.
    pub slot_size: u64,
    /// `stall_timeout_s` in `slotd.toml`.
    pub stall_timeout_s: u64,
    /// Directory of trusted roots; an empty one when there is none.
    pub keyring: Option<PathBuf>,
    /// Whether the state medium holds the record that an installer writes; else zeros, which is a lost state.
    pub installed_state: bool,
    /// Whether there is a boot loader: GRUB, with an environment block in `grubenv`.
    pub loader: bool,
    /// `recycle_fallback` in `slotd.toml`, where something is said.
    pub recycle_fallback: Option<bool>,
    /// `require_message` in `slotd.toml`.
    pub require_message: bool,
    /// Kernel command line that slotd is shown.
    pub cmdline: String,
    /// More environment for slotd, `WATCHDOG_USEC` for example.
    pub environment: Vec<(String, String)>,
    /// In which directory the appliance gets its own; the system's for temporary files when not said.
    pub parent: Option<PathBuf>,
    /// How the name of its own begins.
    pub prefix: &'static str,
    /// Directory of the programs; built when not said.
    pub programs: Option<PathBuf>,
    /// What starts slotd and the bus: a program that becomes the one that it is given.
    pub launcher: &'static [&'static str],
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            compatible: "sps".to_owned(),
            hardware: "test-bench".to_owned(),
            slots: 2,
            slot_size: 64 << 20,
            stall_timeout_s: 60,
            keyring: None,
            installed_state: true,
            loader: false,
            recycle_fallback: None,
            require_message: false,
            cmdline: "quiet".to_owned(),
            environment: Vec::new(),
            parent: None,
            prefix: "sps-test-",
            programs: None,
            launcher: &["env"],
        }
    }
}

impl Layout {
    fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.programs.as_ref().map_or_else(|| program(name), |directory| Ok(directory.join(name)))
    }

    fn launch(&self) -> Command {
        let mut words = self.launcher.iter();
        let mut command = Command::new(words.next().unwrap_or(&"env"));
        command.args(words);
        command
    }
}

/// A bus, a slotd and what they work on, all in one temporary directory. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Appliance {
    dir: TempDir,
    layout: Layout,
    bus: Child,
    slotd: Option<Child>,
    notifications: UnixDatagram,
}

/// Path of a program of this workspace, built when the tests run under cargo.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_programs().map_err(|error| format!("{error:#}")));
    let directory = built.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let program = directory.join(name);
    ensure!(program.exists(), "{} is missing: run `cargo build` first", program.display());
    Ok(program)
}

/// `target/PROFILE`: a program lies there, a test in `deps` below it.
pub(crate) fn profile_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().context("a program lies in a directory")?;
    let directory = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(directory.context("a test lies in target/PROFILE/deps")?.to_owned())
}

/// Tests of one package do not build the binaries of another. The profile is that of the running test.
fn build_programs() -> anyhow::Result<PathBuf> {
    let directory = profile_directory()?;
    let release = directory.ends_with("release");
    if let Some(cargo) = std::env::var_os("CARGO") {
        // First: it leaves the static program where the next build puts the usual one.
        static_program::build_slotboot(
            Path::new(&cargo),
            if release { "release" } else { "dev" },
            &[],
            &directory.join("static"),
        )?;
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--locked", "--bins"]);
        build.args(["--package", "recovery", "--package", "slotd", "--package", "spsctl"]);
        build.args(release.then_some("--release"));
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cargo build")?;
        ensure!(status.success(), "cargo build of the programs under test: {status}");
    }
    Ok(directory)
}

/// Calls `look` until it gives something; fails after [`DEADLINE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(start.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Appliance {
    /// Starts an appliance with two empty slots and waits until slotd is ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(Layout::default())
    }

    /// Starts an appliance of this layout and waits until slotd is ready.
    pub fn with(layout: Layout) -> anyhow::Result<Self> {
        let mut appliance = Self::without_slotd(layout)?;
        appliance.start_slotd()?;
        Ok(appliance)
    }

    /// Makes everything but does not start slotd yet.
    pub fn without_slotd(layout: Layout) -> anyhow::Result<Self> {
        let parent = layout.parent.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix(layout.prefix).tempdir_in(parent)?;
        // Callers of other users must reach the bus socket.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for directory in ["keyring", "esp/EFI/Linux", "configuration"] {
            fs::create_dir_all(dir.path().join(directory))?;
        }
        for number in 1..=layout.slots {
            fs::File::create(dir.path().join(format!("slot-{number}")))?.set_len(layout.slot_size)?;
        }
        let state = fs::File::create(dir.path().join("state"))?;
        state.set_len(STATE_SIZE)?;
        if layout.installed_state {
            state.write_all_at(
                &durable::render(&Record { sequence: 1, payload: State::default().render() })?,
                0,
            )?;
        }
        fs::write(dir.path().join("cmdline"), &layout.cmdline)?;
        fs::write(dir.path().join("slotd.toml"), configuration(dir.path(), &layout)?)?;
        if layout.loader {
            environment::create(&dir.path().join("grubenv"))?;
        }
        let bus = start_bus(dir.path(), &layout)?;
        let notifications = UnixDatagram::bind(dir.path().join("notify"))?;
        notifications.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { dir, layout, bus, slotd: None, notifications })
    }

    /// Starts slotd, again after [`Self::stop_slotd`] or [`Self::kill_slotd`], and waits until it is ready.
    pub fn start_slotd(&mut self) -> anyhow::Result<()> {
        let mut command = self.layout.launch();
        command.args(self.slotd_words()?).stdout(self.log_file()?);
        self.slotd = Some(self.dress(&mut command)?.spawn().context("start slotd")?);
        self.wait_notified("READY=1")
    }

    /// Path of a program of this workspace.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.layout.program(name)
    }

    /// slotd and its arguments.
    fn slotd_words(&self) -> anyhow::Result<Vec<OsString>> {
        let slotd = self.program("slotd")?;
        let (address, path) = (self.address(), |name: &str| self.path(name).into_os_string());
        Ok(vec![
            slotd.into_os_string(),
            "--config".into(),
            path("slotd.toml"),
            "--bus".into(),
            address.into(),
            "--cmdline".into(),
            path("cmdline"),
            "--log".into(),
            "debug".into(),
        ])
    }

    fn log_file(&self) -> io::Result<fs::File> {
        fs::File::options().create(true).append(true).open(self.path("slotd.log"))
    }

    /// Gives a command slotd's surroundings, all but the standard output.
    fn dress<'a>(&self, command: &'a mut Command) -> io::Result<&'a mut Command> {
        let environment = self.layout.environment.iter().map(|(name, value)| (name, value));
        command.env_remove("JOURNAL_STREAM").env("NOTIFY_SOCKET", self.path("notify")).envs(environment);
        Ok(command.stdin(Stdio::null()).stderr(self.log_file()?))
    }

    /// Waits until slotd tells the service manager this line.
    pub fn wait_notified(&mut self, line: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        loop {
            match self.notifications.recv(&mut bytes) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&bytes[..length]);
                    if text.lines().any(|told| told == line) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("notification socket"),
            }
            if let Some(slotd) = &mut self.slotd
                && let Some(status) = slotd.try_wait()?
            {
                bail!("slotd ended with {status} before {line}:\n{}", self.log());
            }
            ensure!(start.elapsed() < DEADLINE, "no {line} within {DEADLINE:?}:\n{}", self.log());
        }
    }

    /// D-Bus address of the private bus.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    /// A connection of the calling process to the bus.
    pub async fn connect(&self) -> zbus::Result<zbus::Connection> {
        zbus::connection::Builder::address(self.address().as_str()).method_timeout(DEADLINE).build().await
    }

    /// A path in the appliance's directory: `slot-N`, `esp`, `keyring`, `state`, `grubenv`, `configuration`,
    /// `slotd.toml`, `cmdline`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything that slotd has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("slotd.log")).unwrap_or_default()
    }

    /// Process id of the running slotd.
    pub fn slotd_pid(&self) -> Option<u32> {
        self.slotd.as_ref().map(Child::id)
    }

    /// Cuts slotd off, as a power cut does.
    pub fn kill_slotd(&mut self) -> anyhow::Result<()> {
        if let Some(mut slotd) = self.slotd.take() {
            slotd.kill()?;
            slotd.wait()?;
        }
        Ok(())
    }

    /// Asks slotd to stop (SIGTERM) and waits until it has.
    pub fn stop_slotd(&mut self) -> anyhow::Result<ExitStatus> {
        let slotd = self.slotd.as_ref().context("slotd does not run")?;
        kill(Pid::from_raw(i32::try_from(slotd.id())?), Signal::SIGTERM)?;
        self.wait_slotd_end()
    }

    /// Waits until slotd ends by itself.
    pub fn wait_slotd_end(&mut self) -> anyhow::Result<ExitStatus> {
        let mut slotd = self.slotd.take().context("slotd does not run")?;
        let ended = wait_for("end of slotd", || Ok(slotd.try_wait()?));
        if ended.is_err() {
            // Still ours to end.
            self.slotd = Some(slotd);
        }
        ended
    }

    /// Ends the bus under everybody.
    pub fn stop_bus(&mut self) -> anyhow::Result<()> {
        self.bus.kill()?;
        self.bus.wait()?;
        Ok(())
    }

    /// Calls a method of slotd as the user `nobody`, with the stock client. `arguments` are dbus-send's.
    pub fn call_as_nobody(&self, object: &str, method: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "dbus-send"])
            .arg(format!("--bus={}", self.address()))
            .args(["--print-reply", "--reply-timeout=30000", "--dest=org.spsagent.Slots1", object, method])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("setpriv dbus-send (packages util-linux and dbus); it needs root")
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        for child in self.slotd.iter_mut().chain(std::iter::once(&mut self.bus)) {
            // Already ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn configuration(dir: &Path, layout: &Layout) -> anyhow::Result<String> {
    let keyring = layout.keyring.clone().unwrap_or_else(|| dir.join("keyring"));
    let mut text = String::new();
    for (key, value) in [
        ("compatible", layout.compatible.clone()),
        ("hardware", layout.hardware.clone()),
        ("keyring", keyring.display().to_string()),
        ("state", dir.join("state").display().to_string()),
        ("esp", dir.join("esp").display().to_string()),
    ] {
        writeln!(text, "{key} = '{value}'")?;
    }
    writeln!(text, "stall_timeout_s = {}", layout.stall_timeout_s)?;
    if layout.require_message {
        writeln!(text, "require_message = true")?;
    }
    if let Some(allowed) = layout.recycle_fallback {
        writeln!(text, "recycle_fallback = {allowed}")?;
    }
    if layout.loader {
        let helper = layout.program("upgrade-check")?;
        writeln!(text, "upgrade_check = '{}'\ncheck_runner = 'bubblewrap'", helper.display())?;
        writeln!(text, "configuration = '{}'", dir.join("configuration").display())?;
        let environment = dir.join("grubenv");
        writeln!(text, "[loader]\nkind = 'grub'\nenvironment = '{}'", environment.display())?;
    }
    for number in 1..=layout.slots {
        let device = dir.join(format!("slot-{number}"));
        writeln!(text, "[[slot]]\nid = {number}\nlabel = 'S{number}'\ndevice = '{}'", device.display())?;
    }
    Ok(text)
}

fn start_bus(dir: &Path, layout: &Layout) -> anyhow::Result<Child> {
    let config = dir.join("bus.conf");
    fs::write(&config, BUS_CONFIG.replace("@SOCKET@", &dir.join("bus").display().to_string()))?;
    let mut bus = layout
        .launch()
        .arg("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.join("bus.log"))?)
        .spawn()
        .context("dbus-daemon (package dbus)")?;
    // It prints its address once it listens, or ends.
    let mut address = String::new();
    let printed =
        bus.stdout.take().context("no output of dbus-daemon").and_then(|output| {
            BufReader::new(output).read_line(&mut address).context("address of dbus-daemon")
        });
    if !printed.is_ok_and(|length| length > 0) {
        let _ = bus.kill();
        bail!("dbus-daemon did not start: {:?}", bus.wait());
    }
    Ok(bus)
}
