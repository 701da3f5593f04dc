//! Ours: the real slotd on a private bus, driven by the real spsctl, into a loop slot.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use slotd::domain::iso::{Head, MAX_HEAD, parse_head};
use slotd::domain::layout::{Extent, Part};
use sps_images::{BuildDirs, FirmwareSpec, Pki, Source, build_firmware};

use super::bus::PrivateBus;
use super::pairing::{Contender, Sample};
use super::process::{Daemon, last_lines, output_of, peak_rss_mib, timed, wait_until};
use super::stage::{Slot, Stage};

/// The firmware ISO that carries the image of a stage, and the keys that sign it.
#[derive(Debug)]
pub struct Firmware {
    /// The ISO.
    pub iso: PathBuf,
    /// Where the root image lies in it.
    pub root: Extent,
    /// Root hash, hexadecimal.
    pub root_hash: String,
    keys: PathBuf,
    keyring: PathBuf,
}

impl Firmware {
    /// Builds it: an uncompressed EROFS with the image as its only file.
    pub fn build(stage: &Stage) -> Result<Self> {
        Self::build_of(stage, None, |file| Ok(fs::hard_link(stage.image(), file)?))
    }

    /// Another one by the same signer, a quarter as long.
    pub fn build_other(stage: &Stage) -> Result<Self> {
        let keys = stage.firmware()?.keys.as_path();
        Self::build_of(stage, Some(keys), |file| {
            let mut part = File::open(stage.image())?.take(stage.image_len() / 4);
            std::io::copy(&mut part, &mut File::create(file)?)?;
            Ok(())
        })
    }

    fn build_of(stage: &Stage, keys: Option<&Path>, image: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = stage.subdir("firmware")?;
        let tree = dir.join("tree");
        fs::create_dir(&tree)?;
        image(&tree.join("image"))?;
        let mut spec = FirmwareSpec::new("1.0.0", Source::Tree(tree));
        spec.compress = false;
        let dirs = BuildDirs::new(dir.join("build"))?;
        let keys = keys.map_or_else(|| dirs.pki(), Path::to_path_buf);
        let pki = Pki::open_or_create(&keys, "bench")?;
        let built = build_firmware(&spec, &dirs, &pki, Some(&dir.join("firmware.iso")))?;
        let mut head = Vec::new();
        File::open(&built.iso)?.take(MAX_HEAD).read_to_end(&mut head)?;
        let Head::Complete(index) = parse_head(&head, Some(built.size))? else {
            bail!("no directory in the ISO")
        };
        let root = index.get(Part::Root).context("no root image in the ISO")?;
        let root_hash = built.manifest.root.verity.root_hash.to_string();
        Ok(Self { iso: built.iso, root, root_hash, keyring: pki.keyring_dir(), keys })
    }
}

/// slotd with loop slots.
#[derive(Debug)]
pub struct Appliance<'a> {
    // Dropped in this order: the service before its bus, both before the slots.
    slotd: Option<Daemon>,
    bus: PrivateBus,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// What it installs.
    pub firmware: &'a Firmware,
    dir: PathBuf,
    programs: PathBuf,
}

impl<'a> Appliance<'a> {
    /// An appliance with `slots` slots, slotd not started.
    pub fn new(stage: &'a Stage, slots: usize) -> Result<Self> {
        let firmware = stage.firmware()?;
        let dir = stage.subdir("appliance")?;
        let slots = (1..=slots).map(|n| stage.slot(&format!("slot-{n}"))).collect::<Result<Vec<_>>>()?;
        fs::create_dir(dir.join("esp"))?;
        File::create(dir.join("state"))?.set_len(1 << 20)?;
        let mut config = format!(
            "compatible = 'sps'\nhardware = 'bench'\nkeyring = '{}'\nstate = '{}'\nesp = '{}'\n",
            firmware.keyring.display(),
            dir.join("state").display(),
            dir.join("esp").display()
        );
        for (slot, id) in slots.iter().zip(1..) {
            let device = slot.path().display();
            // Writing to a String does not fail.
            let _ = write!(config, "\n[[slot]]\nid = {id}\nlabel = '{id}'\ndevice = '{device}'\n");
        }
        fs::write(dir.join("slotd.toml"), config)?;
        let programs = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
        let appliance = Self { slotd: None, bus: PrivateBus::start()?, slots, firmware, dir, programs };
        for program in ["slotd", "spsctl"] {
            if !appliance.programs.join(program).exists() {
                bail!("{program} is not built; run `cargo xtask bench`, which builds it");
            }
        }
        Ok(appliance)
    }

    /// Starts slotd anew and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.slotd = None;
        let log = File::create(self.dir.join("slotd.log"))?;
        let program = self.programs.join("slotd");
        let mut slotd = Daemon::start(program.to_str().context("path")?, |command| {
            command.arg("--config").arg(self.dir.join("slotd.toml")).args(["--bus", self.bus.address()]);
            command.arg("--cmdline").arg("/dev/null");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
        })?;
        wait_until("slotd answers", || {
            slotd.still_runs().with_context(|| last_lines(&self.dir.join("slotd.log")))?;
            Ok(output_of(self.spsctl().arg("status")).is_ok())
        })?;
        self.slotd = Some(slotd);
        if output_of(self.spsctl().args(["state", "show"]))?.contains("lost") {
            output_of(self.spsctl().args(["state", "reset", "--reason", "benchmark"]))?;
        }
        Ok(())
    }

    /// A command to slotd.
    pub fn spsctl(&self) -> Command {
        let mut command = Command::new(self.programs.join("spsctl"));
        command.args(["--bus", self.bus.address()]);
        command
    }

    /// Address of its bus.
    pub fn bus(&self) -> &str {
        self.bus.address()
    }

    /// Process of slotd.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.slotd.as_ref().context("slotd was not started")?.pid())
    }

    /// Installs from the file into a slot, whatever it holds.
    pub fn install(&self, slot: usize) -> Command {
        self.install_file(&self.firmware.iso, slot)
    }

    /// The same with another ISO.
    pub fn install_file(&self, iso: &Path, slot: usize) -> Command {
        let mut command = self.spsctl();
        command.arg("install").arg(iso).args(["--slot", &slot.to_string(), "--repair", "--replace"]);
        command
    }

    /// Installs from a pipe as fast as it takes the bytes; answers how long it took after the last byte.
    pub fn install_from_pipe(&self, slot: usize) -> Result<Duration> {
        let mut command = self.spsctl();
        command.args(["install", "-", "--slot", &slot.to_string(), "--repair", "--replace"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let mut pipe = child.stdin.take().context("no pipe")?;
        let mut iso = File::open(&self.firmware.iso)?.take(self.firmware.root.end());
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = iso.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            pipe.write_all(&buffer[..n])?;
        }
        let last = Instant::now();
        drop(pipe);
        let status = child.wait()?;
        if !status.success() {
            bail!("install from a pipe failed: {status}; {}", last_lines(&self.dir.join("slotd.log")));
        }
        Ok(last.elapsed())
    }

    /// Where a log of a command goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("command.log")
    }

    /// The slot holds the root image of the ISO at 64 places, and slotd says that it is verified.
    pub fn check(&self, slot: usize) -> Result<()> {
        holds(&self.firmware.iso, self.firmware.root, self.slots[slot - 1].path())?;
        let slots = output_of(self.spsctl().args(["slots", "--json"]))?;
        let json: serde_json::Value = serde_json::from_str(&slots)?;
        let state = json["slots"].as_array().and_then(|all| all.iter().find(|s| s["id"] == slot));
        match state.and_then(|s| s["state"].as_str()) {
            Some("verified") => Ok(()),
            other => bail!("slot {slot} is {other:?} after an install"),
        }
    }
}

fn holds(iso: &Path, root: Extent, slot: &Path) -> Result<()> {
    let (iso, slot) = (File::open(iso)?, File::open(slot)?);
    let (mut expected, mut found) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    for n in 0..64 {
        let at = (root.size - (64 << 10)) * n / 63 / 4096 * 4096;
        iso.read_exact_at(&mut expected, root.offset + at)?;
        slot.read_exact_at(&mut found, at)?;
        if expected != found {
            bail!("byte {at} of the slot differs from the image");
        }
    }
    Ok(())
}

/// `spsctl install FILE`, read-back included.
#[derive(Debug)]
pub struct Install<'a>(Appliance<'a>);

impl<'a> Install<'a> {
    /// An appliance with one slot.
    pub fn new(stage: &'a Stage) -> Result<Self> {
        Ok(Self(Appliance::new(stage, 1)?))
    }
}

impl Contender for Install<'_> {
    fn name(&self) -> &'static str {
        "slotd"
    }

    /// A new slotd each time: its highest resident set is that of one installation.
    fn prepare(&mut self) -> Result<()> {
        self.0.slots[0].spoil()?;
        self.0.start()
    }

    fn run(&mut self) -> Result<Sample> {
        let sample =
            timed(&mut self.0.install(1), &self.0.log()).with_context(|| last_lines(&self.0.log()))?;
        Ok(Sample { peak_rss_mib: peak_rss_mib(self.0.pid()?)?, ..sample })
    }

    fn check(&mut self) -> Result<()> {
        self.0.check(1)
    }
}

/// The same engine without read-back: a library call, because the product has no such option.
#[derive(Debug)]
pub struct NoReadBack<'a> {
    appliance: Appliance<'a>,
}

impl<'a> NoReadBack<'a> {
    /// An appliance with one slot.
    pub fn new(stage: &'a Stage) -> Result<Self> {
        Ok(Self { appliance: Appliance::new(stage, 1)? })
    }
}

impl Contender for NoReadBack<'_> {
    fn name(&self) -> &'static str {
        "slotd (no read-back)"
    }

    fn prepare(&mut self) -> Result<()> {
        self.appliance.slots[0].spoil()?;
        // slotd makes the state; then the engine has the media to itself.
        self.appliance.start()?;
        self.appliance.slotd = None;
        Ok(())
    }

    fn run(&mut self) -> Result<Sample> {
        use slotd::settings::read_settings;
        use slotd::store::{Assembly, Environment, InstallRequest, Progress, Store};
        let start = Instant::now();
        let settings = read_settings(&[self.appliance.dir.join("slotd.toml")])?;
        let environment =
            Environment { cmdline: String::new(), now: crate::lab::now, hardware: "bench".into() };
        let mut parts = Assembly::from_settings(&settings, environment);
        parts.read_back = false;
        let store = Store::assemble(parts);
        let request = InstallRequest {
            slot: sps_base::slot::SlotId::new(1),
            repair: true,
            replace: true,
            ..InstallRequest::default()
        };
        let reservation = store.reserve_install(&request)?;
        let image = File::open(&self.appliance.firmware.iso)?;
        // A thread of its own, as in slotd: the engine lowers the priority of the threads it works on.
        std::thread::scope(|scope| {
            let done =
                scope.spawn(|| store.install(reservation, image.into(), &request, &Progress::default()));
            done.join().map_err(|_| anyhow::anyhow!("the engine panicked"))
        })??;
        Ok(Sample { seconds: start.elapsed().as_secs_f64(), peak_rss_mib: 0.0 })
    }

    fn check(&mut self) -> Result<()> {
        holds(&self.appliance.firmware.iso, self.appliance.firmware.root, self.appliance.slots[0].path())
    }
}

/// `spsctl verify 1 --full` of a filled slot.
#[derive(Debug)]
pub struct Verify<'a>(pub Appliance<'a>);

impl<'a> Verify<'a> {
    /// An appliance whose only slot is filled.
    pub fn new(stage: &'a Stage) -> Result<Self> {
        let mut appliance = Appliance::new(stage, 1)?;
        appliance.start()?;
        output_of(&mut appliance.install(1))?;
        Ok(Self(appliance))
    }

    /// The same slot for the rival.
    pub fn verity(&self) -> super::veritysetup::Verity {
        super::veritysetup::Verity {
            device: self.0.slots[0].path().to_owned(),
            hash_offset: self.0.firmware.root.size,
            root_hash: self.0.firmware.root_hash.clone(),
        }
    }
}

impl Contender for Verify<'_> {
    fn name(&self) -> &'static str {
        "slotd"
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self) -> Result<Sample> {
        timed(self.0.spsctl().args(["verify", "1", "--full"]), &self.0.log())
    }

    fn check(&mut self) -> Result<()> {
        self.0.check(1)
    }
}
