//! A boot loader, a kernel and an initrd, as far as starting a firmware needs them: one call of [`start`] is one press of
//! the power button.
//!
//! It reads only what they could: GRUB's environment block (with `grub-editenv`), the ESP, and the slots (with
//! `veritysetup`). The one program of the product in it is `slotboot`, which is the initrd's.

pub mod environment;
pub mod image;
mod slots;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use environment::Loss;
pub use slots::SlotFile;

/// Starts that follow one another without a hand on the machine; a real one would go on for ever.
const START_LIMIT: usize = 6;
/// Emergency reboots after which somebody boots the recovery image.
const EMERGENCY_LIMIT: usize = 3;
/// Exit code of slotboot that asks for another start.
const START_AGAIN: i32 = 10;

const RECOVERY: &str = "sps-recovery";

/// The machine.
#[derive(Clone, Debug, clap::Args)]
pub struct Machine {
    /// GRUB's environment block.
    #[arg(long)]
    pub environment: PathBuf,
    /// Mount point of the ESP.
    #[arg(long)]
    pub esp: PathBuf,
    /// A slot: its number and its file.
    #[arg(long = "slot", value_name = "N=FILE", value_parser = slots::parse)]
    pub slots: Vec<SlotFile>,
    /// The program `slotboot` of every initrd.
    #[arg(long)]
    pub slotboot: PathBuf,
    /// slotd's configuration, for slotboot.
    #[arg(long)]
    pub config: PathBuf,
    /// Directory that is empty after each start: `/run` and `/dev`.
    #[arg(long)]
    pub run: PathBuf,
}

/// What happens at this start besides what should.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Mishaps {
    /// Cut the power here.
    #[arg(long)]
    pub cut: Option<Cut>,
    /// Lose the environment block first.
    #[arg(long)]
    pub lose: Option<Loss>,
    /// Entry that somebody picks in the menu.
    #[arg(long, value_name = "NAME")]
    pub pick: Option<String>,
    /// The loader cannot write: what is started once stays set.
    #[arg(long)]
    pub locked: bool,
}

/// Where the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cut {
    /// The kernel runs; slotboot does not yet.
    BeforeSlotboot,
    /// slotboot has ended; the root is not open yet.
    AfterSlotboot,
}

/// What happened, from the power button to the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Every start, in order.
    pub starts: Vec<Start>,
    /// Where it ended.
    pub outcome: Outcome,
    /// Why, where it is not as it should be.
    pub reason: String,
}

/// Where a start ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A firmware runs.
    Running,
    /// The recovery image runs.
    Recovery,
    /// The power went.
    PowerCut,
    /// The kernel panicked: the root does not verify. The machine is off.
    Panic,
    /// Nothing could be started.
    Nothing,
}

/// One start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Start {
    /// Which entry.
    pub entry: String,
    /// What chose it: `next_entry`, `saved_entry`, `highest` or `hand`.
    pub chosen_by: String,
    /// Why the loader returned; empty when the image was loaded.
    pub returned: String,
    /// Root hash of the image's command line.
    pub root_hash: String,
    /// Slots whose root verifies under that hash.
    pub verified: Vec<u32>,
    /// Exit code of slotboot.
    pub slotboot: Option<i32>,
    /// What slotboot said.
    pub said: String,
    /// The slot to which its link points.
    pub link: Option<u32>,
    /// It left the marker of a trial.
    pub trial: bool,
}

impl Report {
    /// The slot that runs.
    pub fn running(&self) -> Option<u32> {
        let last = self.starts.last().filter(|_| self.outcome == Outcome::Running)?;
        last.link
    }

    /// The entries that were started, in order.
    pub fn entries(&self) -> Vec<&str> {
        self.starts.iter().map(|start| start.entry.as_str()).collect()
    }

    /// Exit codes of slotboot, in order.
    pub fn codes(&self) -> Vec<Option<i32>> {
        self.starts.iter().map(|start| start.slotboot).collect()
    }
}

/// How one start went on.
enum Step {
    /// Once more.
    Again,
    /// slotboot failed, which the initrd answers with a reboot.
    Emergency(String),
    /// That is the end.
    End(Outcome, String),
}

/// Starts the machine. Answers what happened, and the kernel's command line of what runs.
pub fn start(machine: &Machine, mishaps: &Mishaps) -> anyhow::Result<(Report, String)> {
    if let Some(loss) = mishaps.lose {
        environment::lose(&machine.environment, loss)?;
    }
    let mut report = Report { starts: Vec::new(), outcome: Outcome::Nothing, reason: String::new() };
    let mut pick = mishaps.pick.clone();
    let mut emergencies = 0;
    while report.starts.len() < START_LIMIT {
        let mut start = choose(machine, mishaps, pick.take())?;
        let (step, cmdline) = machine.one_start(mishaps, &mut start)?;
        report.starts.push(start);
        match step {
            Step::Again => {}
            Step::Emergency(_) if emergencies + 1 < EMERGENCY_LIMIT => emergencies += 1,
            Step::Emergency(why) | Step::End(Outcome::Recovery, why) => {
                return Ok(machine.recover(report, why));
            }
            Step::End(outcome, reason) => return Ok((Report { outcome, reason, ..report }, cmdline)),
        }
    }
    Ok(machine.recover(report, "it was started again and again".to_owned()))
}

/// GRUB's script: what is started once, which it clears; else the default; else its menu's first entry.
fn choose(machine: &Machine, mishaps: &Mishaps, pick: Option<String>) -> anyhow::Result<Start> {
    let variables = environment::list(&machine.environment)?;
    let value = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
    let once = value(environment::ONE_SHOT);
    if once.is_some() && !mishaps.locked {
        environment::set(&machine.environment, environment::ONE_SHOT, "")?;
    }
    let (entry, chosen_by) = match (pick, once, value(environment::DEFAULT)) {
        (Some(entry), ..) => (entry, "hand"),
        (None, Some(entry), _) => (entry, environment::ONE_SHOT),
        (None, None, Some(entry)) => (entry, environment::DEFAULT),
        (None, None, None) => (machine.images()?.pop().unwrap_or_default(), "highest"),
    };
    Ok(Start { entry, chosen_by: chosen_by.to_owned(), ..Start::default() })
}

impl Machine {
    /// Where slotboot makes its link.
    pub fn link(&self) -> PathBuf {
        self.run.join("sps/root")
    }

    /// Where slotboot marks a trial.
    pub fn trial_marker(&self) -> PathBuf {
        self.run.join("sps/trial")
    }

    fn cmdline(&self) -> PathBuf {
        self.run.join("cmdline")
    }

    fn one_start(&self, mishaps: &Mishaps, start: &mut Start) -> anyhow::Result<(Step, String)> {
        if self.run.exists() {
            fs::remove_dir_all(&self.run)?;
        }
        fs::create_dir_all(&self.run)?;
        let cmdline = match self.load(&start.entry) {
            Ok(cmdline) => cmdline,
            Err(why) => {
                start.returned = format!("{why:#}");
                let why = format!("{} did not start: {}", start.entry, start.returned);
                return Ok((Step::End(Outcome::Recovery, why), String::new()));
            }
        };
        let Some(root_hash) = word(&cmdline, "roothash=") else {
            return Ok((Step::End(Outcome::Recovery, String::new()), cmdline));
        };
        root_hash.clone_into(&mut start.root_hash);
        fs::write(self.cmdline(), &cmdline)?;
        if mishaps.cut == Some(Cut::BeforeSlotboot) {
            return Ok((Step::End(Outcome::PowerCut, "before slotboot".to_owned()), cmdline));
        }
        let step = self.initrd(mishaps, start, &cmdline)?;
        Ok((step, cmdline))
    }

    /// slotboot, then the root.
    fn initrd(&self, mishaps: &Mishaps, start: &mut Start, cmdline: &str) -> anyhow::Result<Step> {
        let output = Command::new(&self.slotboot)
            .arg("--config")
            .arg(&self.config)
            .arg("--cmdline")
            .arg(self.cmdline())
            .arg("--run")
            .arg(self.run.join("sps"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.slotboot.display().to_string())?;
        start.slotboot = output.status.code();
        start.said = [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).trim().to_owned())
            .concat();
        start.trial = self.trial_marker().exists();
        start.link = fs::read_link(self.link()).ok().and_then(|to| self.number(&to));
        match output.status.code() {
            Some(0) => {}
            Some(START_AGAIN) => return Ok(Step::Again),
            other => return Ok(Step::Emergency(format!("slotboot ended with {other:?}: {}", start.said))),
        }
        if mishaps.cut == Some(Cut::AfterSlotboot) {
            return Ok(Step::End(Outcome::PowerCut, "after slotboot".to_owned()));
        }
        // What the kernel does: no byte of a root is used that the root hash does not prove.
        for slot in &self.slots {
            if slot.verifies(&start.root_hash, cmdline)? {
                start.verified.push(slot.number);
            }
        }
        Ok(match start.link {
            Some(link) if start.verified.contains(&link) => Step::End(Outcome::Running, String::new()),
            link => {
                let why = format!("root in slot {link:?} does not verify; those do: {:?}", start.verified);
                Step::End(Outcome::Panic, why)
            }
        })
    }

    fn number(&self, file: &Path) -> Option<u32> {
        self.slots.iter().find(|slot| slot.file == file).map(|slot| slot.number)
    }

    /// The firmware's second boot entry: the recovery image.
    fn recover(&self, report: Report, why: String) -> (Report, String) {
        let (outcome, reason, cmdline) = match self.load(RECOVERY) {
            Ok(cmdline) => (Outcome::Recovery, why, cmdline),
            Err(also) => {
                let reason = format!("{why}; {RECOVERY} did not start: {also:#}");
                (Outcome::Nothing, reason, String::new())
            }
        };
        (Report { outcome, reason, ..report }, cmdline)
    }

    /// Command line of an entry's boot image.
    fn load(&self, entry: &str) -> anyhow::Result<String> {
        let named = |name: &&String| *name == entry || (entry == RECOVERY && name.starts_with(RECOVERY));
        let images = self.images()?;
        let name = images.iter().rev().find(named).context("there is no such boot image")?;
        let bytes = fs::read(self.directory().join(format!("{name}.efi")))?;
        Ok(image::parse(&bytes)?.trim_end_matches(['\0', '\n']).to_owned())
    }

    fn directory(&self) -> PathBuf {
        self.esp.join("EFI/Linux")
    }

    /// Names of the boot images, ascending.
    fn images(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.directory())? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            names.extend(name.strip_suffix(".efi").map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

/// What follows `name` in a word of a command line.
fn word<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(name))
}
