//! `cargo xtask bench`: ours against the programs that people use today, in turn, on one machine, in one run.
//!
//! Rules for every pair: both sides from a cold cache, the same incompressible image, loop slots with direct I/O whose
//! blocks were all written before, medians of at least seven pairs with their spread, and after each run a proof that
//! the slot holds the image.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use self::dd::{Dd, DdRead};
use self::limits::Limits;
use self::pairing::{Contender, Runner};
use self::rauc::Rauc;
use self::stage::{MIB, Stage};
use self::swupdate::SwUpdate;
use self::table::Row;
use self::veritysetup::{Verity, VeritySetup};

pub mod bus;
pub mod dd;
pub mod limits;
pub mod loopdev;
pub mod pairing;
pub mod process;
pub mod rauc;
pub mod stage;
pub mod statistics;
pub mod swupdate;
pub mod table;
pub mod veritysetup;

/// What to measure, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Benchmarks to run, by group (`install`) or full name (`install/rauc`); all of them if none is named.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Also write the rows to this file, as a JSON list of `{name, metric, unit, ours, rival, rival_name, ratio, pairs}`.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How many pairs to take of each.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub pairs: u16,
    /// Size of the image, MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..))]
    pub size_mib: u16,
    /// Where to put image, bundles and slots (about eight times the image), on a file system with direct I/O.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub dir: PathBuf,
}

/// One entry of the list of benchmarks; it may give several rows.
struct Benchmark {
    name: &'static str,
    measure: fn(&Stage, &Runner) -> Result<Vec<Row>>,
}

const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "floor/rauc",
        measure: |stage, runner| floor("rauc", &mut Dd::new(stage)?, &mut Rauc::new(stage)?, runner),
    },
    Benchmark {
        name: "floor/swupdate",
        measure: |stage, runner| floor("swupdate", &mut Dd::new(stage)?, &mut SwUpdate::new(stage)?, runner),
    },
    Benchmark { name: "floor/veritysetup", measure: floor_of_verify },
];

/// Runs what `args` names, prints the table beside the limits of the machine, and writes the JSON if asked.
pub fn run(args: &Args) -> Result<()> {
    let chosen = select(&args.names)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("loop devices and a cold cache need root: run this as root");
    }
    let runner = Runner::new(usize::from(args.pairs))?;
    eprintln!("bench: {} pairs, {} MiB of random data in {}", args.pairs, args.size_mib, args.dir.display());
    let mut rows = Vec::new();
    let (before, after);
    {
        let stage = Stage::new(&args.dir, u64::from(args.size_mib) * MIB)?;
        before = Limits::measure(&stage)?;
        for benchmark in chosen {
            eprintln!("{}", benchmark.name);
            rows.extend((benchmark.measure)(&stage, &runner).with_context(|| benchmark.name)?);
        }
        after = Limits::measure(&stage)?;
    }
    print!("{}", table::render(&rows));
    println!("limits before: {before}\nlimits after:  {after}");
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// The benchmarks that `names` name, in the order of the list.
fn select(names: &[String]) -> Result<Vec<&'static Benchmark>> {
    let is_called = |benchmark: &Benchmark, name: &str| {
        benchmark.name == name || benchmark.name.split('/').next() == Some(name)
    };
    for name in names {
        if !BENCHMARKS.iter().any(|benchmark| is_called(benchmark, name)) {
            let known: Vec<&str> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
            bail!("no benchmark is called {name}; there are: {}", known.join(", "));
        }
    }
    Ok(BENCHMARKS
        .iter()
        .filter(|benchmark| names.is_empty() || names.iter().any(|name| is_called(benchmark, name)))
        .collect())
}

/// How far a rival is above `dd`, which stands in the place of ours: seconds, and MiB of memory.
fn floor(
    metric: &str,
    dd: &mut dyn Contender,
    rival: &mut dyn Contender,
    runner: &Runner,
) -> Result<Vec<Row>> {
    let pairs = runner.pair(dd, rival)?;
    Ok(vec![
        Row::paired(("floor", metric), "s", &pairs, |sample| sample.seconds)?,
        Row::paired(("floor", &format!("{metric}-rss")), "MiB", &pairs, |sample| sample.peak_rss_mib)?,
    ])
}

/// The same for a check at rest, of a slot that holds random data and its hash tree, against a mere read of it.
fn floor_of_verify(stage: &Stage, runner: &Runner) -> Result<Vec<Row>> {
    let slot = stage.slot("verity")?;
    let mut rival = VeritySetup::new(stage, Verity::format(stage, &slot)?)?;
    floor("veritysetup", &mut DdRead::new(stage, slot.path())?, &mut rival, runner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<&'static str>> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Ok(select(&names)?.into_iter().map(|benchmark| benchmark.name).collect())
    }

    #[test]
    fn names_are_groups_or_full_names() {
        assert_eq!(chosen(&[]).unwrap().len(), BENCHMARKS.len());
        assert_eq!(chosen(&["floor/swupdate"]).unwrap(), ["floor/swupdate"]);
        assert_eq!(chosen(&["floor"]).unwrap(), ["floor/rauc", "floor/swupdate", "floor/veritysetup"]);
        let error = chosen(&["flor"]).unwrap_err().to_string();
        assert!(error.contains("flor") && error.contains("floor/rauc"), "{error}");
    }
}
