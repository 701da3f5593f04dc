//! `cargo xtask bench`: ours against the programs that people use today, in turn, on one machine, in one run.
//!
//! Rules for every pair: both sides from a cold cache, the same incompressible image, loop slots with direct I/O whose
//! blocks were all written before, medians of at least seven pairs with their spread, and after each run a proof that
//! the slot holds the image.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use self::dd::Dd;
use self::limits::Limits;
use self::ours::{Install, NoReadBack, Verify};
use self::pairing::Runner;
use self::rauc::Rauc;
use self::stage::{MIB, Stage};
use self::swupdate::SwUpdate;
use self::table::Row;
use self::veritysetup::VeritySetup;

pub mod bus;
pub mod daemon;
pub mod dd;
pub mod limits;
pub mod loopdev;
pub mod ours;
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
    Benchmark { name: "install/rauc", measure: install_rauc },
    Benchmark {
        name: "install/swupdate",
        measure: |stage, runner| {
            let pairs = runner.pair(&mut Install::new(stage)?, &mut SwUpdate::new(stage)?)?;
            Ok(vec![Row::paired(("install", "swupdate"), "s", &pairs, |sample| sample.seconds)?])
        },
    },
    Benchmark {
        name: "install/rauc-nr",
        measure: |stage, runner| {
            let pairs = runner.pair(&mut NoReadBack::new(stage)?, &mut Rauc::new(stage)?)?;
            Ok(vec![Row::paired(("install", "rauc-nr"), "s", &pairs, |sample| sample.seconds)?])
        },
    },
    Benchmark {
        name: "raw/dd",
        measure: |stage, runner| {
            let pairs = runner.pair(&mut Install::new(stage)?, &mut Dd::new(stage)?)?;
            Ok(vec![Row::paired(("raw", "dd"), "s", &pairs, |sample| sample.seconds)?])
        },
    },
    Benchmark { name: "tail/s-per-gib", measure: daemon::tail },
    Benchmark {
        name: "verify/veritysetup",
        measure: |stage, runner| {
            let mut ours = Verify::new(stage)?;
            let mut rival = VeritySetup::new(stage, ours.verity())?;
            let pairs = runner.pair(&mut ours, &mut rival)?;
            Ok(vec![Row::paired(("verify", "veritysetup"), "s", &pairs, |sample| sample.seconds)?])
        },
    },
    Benchmark { name: "status/p99-ms", measure: daemon::status },
    Benchmark { name: "idle/rest", measure: daemon::idle },
];

/// Time and memory of the same pairs.
fn install_rauc(stage: &Stage, runner: &Runner) -> Result<Vec<Row>> {
    let pairs = runner.pair(&mut Install::new(stage)?, &mut Rauc::new(stage)?)?;
    Ok(vec![
        Row::paired(("install", "rauc"), "s", &pairs, |sample| sample.seconds)?,
        Row::paired(("install", "rss"), "MiB", &pairs, |sample| sample.peak_rss_mib)?,
    ])
}

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
        assert_eq!(chosen(&["install/swupdate"]).unwrap(), ["install/swupdate"]);
        assert_eq!(chosen(&["install"]).unwrap(), ["install/rauc", "install/swupdate", "install/rauc-nr"]);
        let error = chosen(&["install/dd"]).unwrap_err().to_string();
        assert!(error.contains("install/dd") && error.contains("install/rauc"), "{error}");
    }
}
