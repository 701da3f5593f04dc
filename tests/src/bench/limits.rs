//! What this machine gives at this time: direct I/O by `dd`, hashing by `openssl speed`.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::dd::copy;
use super::pairing::drop_caches;
use super::process::{output_of, timed};
use super::stage::{MIB, Stage};

/// Rates in MiB/s, and how busy the machine was with other work.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The load average of the minute before, as the kernel prints it.
    pub load: String,
    /// Reading the image, direct.
    pub read: f64,
    /// Writing the image from the page cache into a slot, direct, with a flush at the end.
    pub write: f64,
    /// SHA-256 of 4 KiB blocks in one process, by the wall clock.
    pub sha256_one: f64,
    /// The same in two processes at a time, their sum.
    pub sha256_two: f64,
}

impl Limits {
    /// Measures for about fifteen seconds at 1 GiB.
    pub fn measure(stage: &Stage) -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        let slot = stage.slot("limits")?;
        let null = Path::new("/dev/null");
        let image = stage.image();
        let mib = f64::from(u32::try_from(stage.image_len() / MIB)?);

        drop_caches()?;
        let read = timed(copy(image, null).arg("iflag=direct"), &log)?;
        timed(&mut copy(image, null), &log)?;
        let write = timed(copy(image, slot.path()).args(["oflag=direct", "conv=fsync"]), &log)?;
        Ok(Self {
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            read: mib / read.seconds,
            write: mib / write.seconds,
            sha256_one: sha256_speed(1)?,
            sha256_two: sha256_speed(2)?,
        })
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "dd direct read {:.0}, write {:.0} MiB/s; openssl sha256 of 4 KiB: one process {:.0}, two {:.0} MiB/s; load {}",
            self.read, self.write, self.sha256_one, self.sha256_two, self.load
        )
    }
}

fn sha256_speed(processes: u32) -> Result<f64> {
    let mut command = Command::new("openssl");
    command.args(["speed", "-elapsed", "-mr", "-seconds", "2", "-bytes", "4096", "-evp", "sha256"]);
    if processes > 1 {
        command.args(["-multi", &processes.to_string()]);
    }
    parse_speed(&output_of(&mut command)?)
}

/// The result line of `openssl speed -mr` is `+F:index:name:bytes per second`, with more fields for more sizes.
fn parse_speed(output: &str) -> Result<f64> {
    let line = output.lines().find(|line| line.starts_with("+F:")).context("openssl speed: no line +F:")?;
    let [_, _, _, rate] = line.split(':').collect::<Vec<_>>()[..] else { bail!("openssl speed: {line:?}") };
    let bytes: f64 = rate.trim().parse().with_context(|| format!("openssl speed: {line:?}"))?;
    Ok(bytes / f64::from(1_u32 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_fourth_field() {
        let text = "+DT:sha256:2:4096\n+R:544000:sha256:2.000000\n+H:4096\n+F:22:sha256:1048576000.00\n";
        assert!((parse_speed(text).unwrap() - 1000.0).abs() < 1e-9);
        assert!(parse_speed("+F:22:sha256:1.0:2.0\n").is_err());
        assert!(parse_speed("+H:4096\n").is_err());
    }
}
