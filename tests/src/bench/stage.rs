//! The scratch directory of a run: the image, the slots, a key pair. All of it goes when the stage is dropped.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::loopdev::{LoopDevice, detach_left_over};
use super::ours::Firmware;
use super::process::output_of;

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// What a slot has beyond the image: room for a hash tree (1/127 of it) and a tail.
const SLOT_ROOM_DIVISOR: u64 = 16;
/// Parts of a slot that a run must have written, spread evenly, first and last MiB of the image included.
const PROBES: u64 = 64;
const PROBE_LEN: u64 = 64 << 10;

/// A scratch directory and the image that everybody installs.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    image: PathBuf,
    image_len: u64,
    firmware: OnceCell<Firmware>,
    _only_one: Flock<File>,
}

impl Stage {
    /// Makes `dir/scratch` with an image of `len` bytes of random data, after clearing what a killed run has left
    /// there. Refuses if another run uses the directory.
    pub fn new(dir: &Path, len: u64) -> Result<Self> {
        if len < 2 * MIB || !len.is_multiple_of(MIB) {
            bail!("image size {len}: must be whole MiB, at least two");
        }
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let base = dir.canonicalize()?;
        let lock = File::create(base.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("{}: another benchmark uses it", base.display()))?;
        let scratch = base.join("scratch");
        detach_left_over(&scratch)?;
        remove_dir(&scratch)?;
        fs::create_dir(&scratch)?;
        let stage = Self {
            image: scratch.join("image"),
            dir: scratch,
            image_len: len,
            firmware: OnceCell::new(),
            _only_one: lock,
        };
        write_random(&stage.image, len)?;
        Ok(stage)
    }

    /// The image: incompressible, never changed.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its length in bytes.
    pub fn image_len(&self) -> u64 {
        self.image_len
    }

    /// The firmware ISO with the image in it; built when it is first asked for.
    pub fn firmware(&self) -> Result<&Firmware> {
        if let Some(firmware) = self.firmware.get() {
            return Ok(firmware);
        }
        let firmware = Firmware::build(self)?;
        Ok(self.firmware.get_or_init(|| firmware))
    }

    /// A new empty directory in the scratch directory; its name begins with `name`.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(&self.dir);
        Ok(dir.with_context(|| format!("creating a directory in {}", self.dir.display()))?.keep())
    }

    /// A new slot: a file with every block written once (so that no run pays for allocation) below a loop device.
    pub fn slot(&self, name: &str) -> Result<Slot> {
        let file = self.subdir("slot")?.join(name);
        write_random(&file, (self.image_len + self.image_len / SLOT_ROOM_DIVISOR).next_multiple_of(MIB))?;
        let device = LoopDevice::attach(&file)?;
        Ok(Slot { device, file, image: self.image.clone(), image_len: self.image_len })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_dir(&self.dir) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// A loop device that is installed into.
#[derive(Debug)]
pub struct Slot {
    device: LoopDevice,
    file: PathBuf,
    image: PathBuf,
    image_len: u64,
}

impl Slot {
    /// The device node.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// Zeroes the probed places, so that `holds_image` shows what was written after this.
    pub fn spoil(&self) -> Result<()> {
        let device = OpenOptions::new().write(true).open(self.path())?;
        let zeros = vec![0_u8; usize::try_from(PROBE_LEN)?];
        for offset in probe_offsets(self.image_len) {
            device.write_all_at(&zeros, offset)?;
        }
        device.sync_all().with_context(|| format!("zeroing places of {}", self.path().display()))
    }

    /// Compares the probed places with the image.
    pub fn holds_image(&self) -> Result<()> {
        let (device, image) = (File::open(self.path())?, File::open(&self.image)?);
        let len = usize::try_from(PROBE_LEN)?;
        let (mut found, mut expected) = (vec![0_u8; len], vec![0_u8; len]);
        for offset in probe_offsets(self.image_len) {
            device.read_exact_at(&mut found, offset)?;
            image.read_exact_at(&mut expected, offset)?;
            if found != expected {
                bail!("{} at {offset}: {len} bytes differ from the image", self.path().display());
            }
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The device is detached after this; the file's blocks go with its last user.
        let _ = fs::remove_file(&self.file);
    }
}

/// Evenly spread over the image, the first at its start and the last at its end.
fn probe_offsets(image_len: u64) -> impl Iterator<Item = u64> {
    let last = image_len - PROBE_LEN;
    (0..PROBES).map(move |n| (last * n / (PROBES - 1)) & !(PROBE_LEN - 1))
}

/// A key and a self-signed certificate for the rivals' signatures, made anew for every run.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// PEM.
    pub key: PathBuf,
    /// PEM; its own trust anchor.
    pub certificate: PathBuf,
}

impl KeyPair {
    /// Makes one in `dir`.
    pub fn generate(dir: &Path) -> Result<Self> {
        let pair = Self { key: dir.join("key.pem"), certificate: dir.join("cert.pem") };
        output_of(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-noenc",
                    "-subj",
                    "/CN=benchmark",
                    "-days",
                    "2",
                ])
                .arg("-keyout")
                .arg(&pair.key)
                .arg("-out")
                .arg(&pair.certificate),
        )?;
        Ok(pair)
    }
}

fn write_random(path: &Path, len: u64) -> Result<()> {
    let copy = || -> io::Result<u64> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        let mut random = File::open("/dev/urandom")?.take(len);
        let mut buffer = vec![0_u8; 1 << 20];
        let mut written = 0;
        loop {
            let got = random.read(&mut buffer)?;
            let Some(part) = buffer.get(..got).filter(|part| !part.is_empty()) else { break };
            file.write_all(part)?;
            written += part.len() as u64;
        }
        file.sync_all()?;
        Ok(written)
    };
    let written = copy().with_context(|| format!("writing {}", path.display()))?;
    if written != len {
        bail!("{}: {written} of {len} bytes written", path.display());
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_cover_start_and_end() {
        for len in [2 * MIB, 64 * MIB, 1024 * MIB] {
            let offsets: Vec<u64> = probe_offsets(len).collect();
            assert_eq!(offsets.first(), Some(&0));
            assert_eq!(offsets.last(), Some(&(len - PROBE_LEN)));
            assert!(offsets.iter().all(|offset| offset % PROBE_LEN == 0));
        }
    }

    #[test]
    fn a_stage_is_alone_in_its_directory_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path(), 2 * MIB).unwrap();
        assert_eq!(fs::metadata(stage.image()).unwrap().len(), 2 * MIB);
        let second = Stage::new(dir.path(), 2 * MIB).unwrap_err();
        assert!(format!("{second:#}").contains("another benchmark"), "{second:#}");
        drop(stage);
        assert!(!dir.path().join("scratch").exists());
        assert!(Stage::new(dir.path(), MIB + 1).is_err());
    }
}
