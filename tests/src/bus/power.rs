//! Switching an appliance on and off: with a boot loader, through the simulated one.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use slotd::domain::state::State;
use sps_base::dbus::{SLOTS1_NAME, SLOTS1_PATH};
use sps_base::durable::{self, RECORD};

use super::{Appliance, Layout, STATE_SIZE};
use crate::loader::environment;
use crate::loader::{Mishaps, Outcome, Report};

impl Appliance {
    /// An appliance whose slot 1 holds the firmware of this ISO, started and confirmed: as an installer and the first
    /// start leave it.
    pub fn installed(layout: Layout, iso: &Path) -> anyhow::Result<Self> {
        let mut appliance = Self::with(Layout { loader: true, ..layout })?;
        let output = Command::new(appliance.program("spsctl")?)
            .args(["--bus", &appliance.address(), "install", "--slot", "1"])
            .arg(iso)
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "spsctl install: {}", String::from_utf8_lossy(&output.stderr));
        environment::set(&appliance.path("grubenv"), environment::DEFAULT, "sps-slot-1")?;
        let report = appliance.reboot()?;
        ensure!(report.running() == Some(1), "{report:?}");
        appliance.send("Confirm", &[])?;
        Ok(appliance)
    }

    /// Calls a method of the manager with the stock client, as root.
    pub fn send(&self, method: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new("dbus-send")
            .arg(format!("--bus={}", self.address()))
            .args(["--print-reply", "--reply-timeout=30000"])
            .arg(format!("--dest={SLOTS1_NAME}"))
            .args([SLOTS1_PATH, &format!("{SLOTS1_NAME}.Manager.{method}")])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("dbus-send (package dbus)")?;
        ensure!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Stops in order, and starts again.
    pub fn reboot(&mut self) -> anyhow::Result<Report> {
        self.stop_slotd()?;
        self.power_on(&Mishaps::default())
    }

    /// Cuts the power while the system runs.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        self.kill_slotd()
    }

    /// Cuts the power, and starts again.
    pub fn restart(&mut self) -> anyhow::Result<Report> {
        self.restart_with(&Mishaps::default())
    }

    /// The same; not everything goes as it should.
    pub fn restart_with(&mut self, mishaps: &Mishaps) -> anyhow::Result<Report> {
        self.power_cut()?;
        self.power_on(mishaps)
    }

    /// Starts the machine through the simulated loader. Where a firmware or the recovery image runs, slotd is ready.
    pub fn power_on(&mut self, mishaps: &Mishaps) -> anyhow::Result<Report> {
        let mut command = self.layout.launch();
        command.arg(self.program("simulated-loader")?);
        for (option, path) in [
            ("--environment", self.path("grubenv")),
            ("--esp", self.path("esp")),
            ("--config", self.path("slotd.toml")),
            ("--run", self.path("run")),
            ("--cmdline", self.path("cmdline")),
            ("--slotboot", self.program("static/slotboot")?),
        ] {
            command.arg(option).arg(path);
        }
        for number in 1..=self.layout.slots {
            let file = self.path(&format!("slot-{number}"));
            command.arg("--slot").arg(format!("{number}={}", file.display()));
        }
        command.args(words(mishaps)).arg("--").args(self.slotd_words()?).stdout(Stdio::piped());
        let mut loader = self.dress(&mut command)?.spawn().context("start the simulated loader")?;
        let mut line = String::new();
        let output = loader.stdout.take().context("no output of the loader")?;
        BufReader::new(output).read_line(&mut line)?;
        let report: Report = serde_json::from_str(&line)
            .with_context(|| format!("the simulated loader said {line:?}:\n{}", self.log()))?;
        if matches!(report.outcome, Outcome::Running | Outcome::Recovery) {
            self.slotd = Some(loader);
            self.wait_notified("READY=1")?;
        } else {
            loader.wait()?;
        }
        Ok(report)
    }

    /// What the state medium holds; `None` where it is lost.
    pub fn state(&self) -> anyhow::Result<Option<State>> {
        let medium = fs::File::open(self.path("state"))?;
        let record = |at: u64| {
            let mut block = vec![0; RECORD];
            medium.read_exact_at(&mut block, at).map(|()| durable::parse(&block))
        };
        let found = durable::choose(record(0)?, record(STATE_SIZE / 2)?).ok();
        Ok(found.map(|(record, _)| State::parse(&record.payload)).transpose()?)
    }

    /// Writes zeros over the state.
    pub fn lose_state(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.path("state"), vec![0; usize::try_from(STATE_SIZE)?])?)
    }

    /// What the loader's environment block says.
    pub fn grubenv(&self, name: &str) -> anyhow::Result<String> {
        Ok(environment::list(&self.path("grubenv"))?.remove(name).unwrap_or_default())
    }

    /// Removes a boot image from the ESP; false when there was none.
    pub fn lose_boot_image(&self, name: &str) -> anyhow::Result<bool> {
        match fs::remove_file(self.path("esp/EFI/Linux").join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    }
}

/// The options of the simulated loader.
fn words(mishaps: &Mishaps) -> Vec<String> {
    fn value(value: &impl ValueEnum) -> String {
        value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
    let Mishaps { cut, lose, pick, locked } = mishaps;
    let options =
        [("--cut", cut.as_ref().map(value)), ("--lose", lose.as_ref().map(value)), ("--pick", pick.clone())];
    let given = options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten();
    given.chain(locked.then(|| "--locked".to_owned())).collect()
}
