//! The appliance: a private bus, slotd, two slots in files, an ESP in a directory, and the keys it trusts.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sps_images::{BuildDirs, Pki};

use super::Setting;
use super::console::Console;
use super::stop::Stop;
use super::transcript::Transcript;
use crate::bus::{Appliance, Layout};
use crate::loader::{Mishaps, Report};

/// Slots are a little larger than the ISO that goes into them, and whole multiples of this.
const SLOT_STEP: u64 = 64 << 20;
const STATE_SIZE: u64 = 1 << 20;

/// The appliance and its operator's terminal.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) console: Console,
    pub(super) dirs: BuildDirs,
    pub(super) pki: Pki,
    pub(super) stop: Stop,
    appliance: Appliance,
}

/// SHA-256 of everything that an install may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    slots: [String; 2],
    esp: String,
    state: String,
}

impl Machine {
    /// Bus and media; slotd is not yet started.
    pub(super) fn new(setting: &Setting<'_>, stop: &Stop) -> Result<Self> {
        let pki = Pki::open_or_create(setting.dirs.pki(), "SPS development")?;
        let appliance = Appliance::without_slotd(Layout {
            slot_size: SLOT_STEP,
            keyring: Some(pki.keyring_dir()),
            loader: true,
            parent: Some(setting.dirs.base().to_owned()),
            prefix: "demo-",
            programs: Some(setting.programs.to_owned()),
            // Even a demo that is killed leaves nothing running.
            launcher: &["setpriv", "--pdeathsig", "KILL"],
            ..Layout::default()
        })?;
        File::create(appliance.path("state"))?.set_len(STATE_SIZE)?;
        let console = Console::new(
            &appliance.path(""),
            setting.programs.join("spsctl"),
            appliance.address(),
            stop.clone(),
        );
        Ok(Self { console, dirs: setting.dirs.clone(), pki, stop: stop.clone(), appliance })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.appliance.path(name)
    }

    pub(super) fn address(&self) -> String {
        self.appliance.address()
    }

    pub(super) fn start_slotd(&mut self) -> Result<()> {
        self.stop.check()?;
        self.appliance.start_slotd()
    }

    /// Gives both slots room for an ISO of so many bytes; slotd does not run yet.
    pub(super) fn size_slots(&self, iso: u64) -> Result<()> {
        for name in ["slot-1", "slot-2"] {
            let size = (iso + SLOT_STEP / 4).next_multiple_of(SLOT_STEP);
            File::options().write(true).open(self.path(name))?.set_len(size)?;
        }
        Ok(())
    }

    /// Replaces slot 2 by a blank medium, so that whatever a resumed install finds there is its own.
    pub(super) fn blank_slot_2(&mut self) -> Result<()> {
        self.console.spsctl("delete 2")?;
        self.appliance.stop_slotd()?;
        let file = File::options().write(true).open(self.path("slot-2"))?;
        let size = file.metadata()?.len();
        file.set_len(0)?;
        file.set_len(size)?;
        self.start_slotd()
    }

    /// Cuts slotd off, as a power cut does.
    pub(super) fn kill_slotd(&mut self) -> Result<()> {
        self.appliance.kill_slotd()
    }

    /// Starts the machine through the simulated loader, and says what happened.
    pub(super) fn power_on(&mut self) -> Result<Report> {
        self.stop.check()?;
        let report = self.appliance.power_on(&Mishaps::default())?;
        for start in &report.starts {
            let slotboot = start.slotboot.map_or_else(|| "not reached".to_owned(), |code| code.to_string());
            Transcript::say(format!(
                "simulated start: {} by {}, root verified in slot {:?}, slotboot {slotboot}{}",
                start.entry,
                start.chosen_by,
                start.verified,
                if start.trial { ", on trial" } else { "" },
            ));
        }
        Ok(report)
    }

    /// Stops in order and starts again.
    pub(super) fn reboot(&mut self) -> Result<Report> {
        Transcript::say("reboot");
        self.appliance.stop_slotd()?;
        self.power_on()
    }

    /// Runs the health checks of a firmware's tree, as its sps-health.service would; the exit code.
    pub(super) fn health(&self, overlay: &str) -> Result<i32> {
        let program = self.appliance.program("sps-health")?;
        let directory = self.path(overlay).join("usr/lib/sps/health-checks.d");
        let line = format!(
            "{} --bus {} --log error check --directory {}",
            program.display(),
            self.address(),
            directory.display()
        );
        Ok(self.console.tool(&line)?.code)
    }

    /// What `spsctl status --json` says.
    pub(super) fn status(&self) -> Result<Value> {
        Ok(self.console.json("status")?["status"].take())
    }

    /// A slot as `spsctl slots --json` tells it.
    pub(super) fn slot(&self, number: u64) -> Result<Value> {
        let document = self.console.json("slots")?;
        let slots = document["slots"].as_array().context("no slots")?;
        let slot = slots.iter().find(|slot| slot["id"] == number);
        slot.cloned().with_context(|| format!("no slot {number}"))
    }

    /// State of a slot in one word.
    pub(super) fn word(&self, slot: u64) -> Result<String> {
        Ok(self.slot(slot)?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// The newest job, as `spsctl jobs --json` tells it.
    pub(super) fn newest_job(&self) -> Result<Value> {
        let document = self.console.json("jobs")?;
        let jobs = document["jobs"].as_array().context("no jobs")?;
        let newest = jobs.iter().max_by_key(|job| job["number"].as_u64());
        newest.cloned().context("no job")
    }

    /// Everything that an install may change.
    pub(super) fn fingerprint(&self) -> Result<Fingerprint> {
        self.stop.check()?;
        let (one, two) = std::thread::scope(|scope| {
            let two = scope.spawn(|| sha256_of(&self.path("slot-2")));
            (sha256_of(&self.path("slot-1")), two.join())
        });
        let two = two.map_err(|_| anyhow::anyhow!("reading slot 2 failed"))??;
        let esp = sha256_of_tree(&self.path("esp"))?;
        Ok(Fingerprint { slots: [one?, two], esp, state: sha256_of(&self.path("state"))? })
    }
}

impl Fingerprint {
    /// SHA-256 of slot 1.
    pub(super) fn slot_1(&self) -> &str {
        &self.slots[0]
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |hash: &str| hash.chars().take(16).collect::<String>();
        let [one, two] = &self.slots;
        write!(f, "slot-1 {} slot-2 {} ", short(one), short(two))?;
        write!(f, "esp {} state {}", short(&self.esp), short(&self.state))
    }
}

/// SHA-256 of a file, hex.
pub(super) fn sha256_of(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash_file(&mut hash, path)?;
    Ok(hex::encode(hash.finalize()))
}

/// SHA-256 of names and contents below a directory.
fn sha256_of_tree(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
        if path.is_dir() {
            let entries = fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
            let mut entries = entries.collect::<Result<Vec<_>>>()?;
            entries.sort();
            waiting.extend(entries);
        } else {
            hash_file(&mut hash, &path)?;
        }
    }
    Ok(hex::encode(hash.finalize()))
}

fn hash_file(hash: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        hash.update(&buffer[..length]);
    }
}
