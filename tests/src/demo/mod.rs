//! `cargo xtask demo`: the product on real input, every claim checked.
//!
//! Two firmware ISOs from a real Debian tree, a private bus, the real slotd on two file-backed slots, and the real
//! spsctl for every action. What is printed is what happened; every `ok` was checked, and one that is not makes the
//! whole demo fail.

mod console;
mod cut;
mod damage;
mod firmware;
mod install;
mod machine;
mod refusals;
mod stop;
mod transcript;
mod trial;

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use sps_images::BuildDirs;

use self::firmware::Shelf;
use self::machine::Machine;
use self::stop::Stop;
use self::transcript::Transcript;

/// How to run it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Repeat a run: where the damage and the cuts fall [default: by chance; it is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// What it works with.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Where the Debian tree is kept and the temporary directory is made.
    pub dirs: &'a BuildDirs,
    /// Directory of slotd and spsctl, built.
    pub programs: &'a Path,
    /// Root directory of the sources.
    pub sources: &'a Path,
}

/// Runs the demo; true when every step showed what it should. Whatever happens, no process and no file of it is left.
pub fn run(args: &Args, setting: &Setting<'_>) -> Result<bool> {
    let start = Instant::now();
    let mut transcript = Transcript::new();
    let stop = Stop::on_signals()?;
    let seed = args.seed.unwrap_or_else(seed_of_now);
    println!("seed {seed} (the same again: cargo xtask demo --seed {seed})");
    let done = show(&mut transcript, &stop, setting, seed);
    if let Err(error) = &done {
        transcript.check(false, format!("the demo could not go on: {error:#}"));
    }
    let passed = transcript.passed();
    println!("\n{}, {:.0} s", transcript.summary(), start.elapsed().as_secs_f64());
    println!("demo: {}", if passed { "PASS" } else { "FAIL" });
    Ok(passed)
}

fn show(transcript: &mut Transcript, stop: &Stop, setting: &Setting<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let mut machine = Machine::new(setting, stop)?;
    let shelf = Shelf::build(setting, &machine, transcript)?;
    install::first(&mut machine, &shelf, transcript)?;
    install::second(&mut machine, &shelf, transcript)?;
    let slot_1 = machine.fingerprint()?;
    refusals::before_the_first_write(&mut machine, &shelf, transcript, &mut random)?;
    refusals::at_a_block(&mut machine, &shelf, transcript, &mut random)?;
    damage::flipped_byte(&mut machine, &shelf, transcript, &mut random)?;
    cut::kill(&mut machine, &shelf, transcript, &mut random)?;
    cut::pipe(&mut machine, &shelf, transcript, &mut random)?;
    install::end(&mut machine, slot_1.slot_1(), transcript)?;
    trial::upgrade(&mut machine, &shelf, transcript)?;
    trial::revert(&mut machine, transcript)?;
    trial::refused_by_itself(&mut machine, transcript)?;
    trial::unhealthy(&mut machine, transcript)?;
    trial::power_cut(&mut machine, transcript)
}

fn seed_of_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) ^ since.as_secs()
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    /// A number between a tenth and nine tenths of `whole`.
    fn middle_of(&mut self, whole: u64) -> u64 {
        whole / 10 + self.below(whole / 10 * 8)
    }
}
