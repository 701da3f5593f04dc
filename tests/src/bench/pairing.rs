//! Contenders in turn: A B A B, each from a cold cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

/// What one run of a contender took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Wall clock, from the start of the command to its end.
    pub seconds: f64,
    /// Highest resident set of the process that does the work, MiB.
    pub peak_rss_mib: f64,
}

/// One side of a pair.
pub trait Contender {
    /// Its name in the table.
    fn name(&self) -> &str;
    /// Untimed, before every run: everything that is not the work itself.
    fn prepare(&mut self) -> Result<()>;
    /// The work, which measures itself; the page cache is cold when this is called.
    fn run(&mut self) -> Result<Sample>;
    /// Untimed, after every run: proves that the work was done.
    fn check(&mut self) -> Result<()>;
}

/// The samples of both sides, in the order taken; both have the same length.
#[derive(Debug, Default, Clone)]
pub struct Pairs {
    /// The first side.
    pub ours: Vec<Sample>,
    /// The second side.
    pub rival: Vec<Sample>,
    /// The second side's name.
    pub rival_name: String,
}

/// How the runs of this process are taken.
#[derive(Debug, Clone)]
pub struct Runner {
    pairs: usize,
    interrupted: Arc<AtomicBool>,
    empty_cache: fn() -> Result<()>,
}

impl Runner {
    /// Takes `pairs` pairs, stops between two runs after SIGINT or SIGTERM: so what was set up is taken down.
    pub fn new(pairs: usize) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("catching signals")?;
        }
        Ok(Self { pairs, interrupted, empty_cache: drop_caches })
    }

    /// How many pairs are taken.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Runs both sides in turn.
    pub fn pair(&self, ours: &mut dyn Contender, rival: &mut dyn Contender) -> Result<Pairs> {
        let mut pairs = Pairs { rival_name: rival.name().to_owned(), ..Pairs::default() };
        for number in 1..=self.pairs {
            let a = self.once(ours)?;
            let b = self.once(rival)?;
            eprintln!(
                "  pair {number}/{}: {} {:.2} s, {} {:.2} s",
                self.pairs,
                ours.name(),
                a.seconds,
                rival.name(),
                b.seconds
            );
            pairs.ours.push(a);
            pairs.rival.push(b);
        }
        Ok(pairs)
    }

    /// One run of one side: prepare, cold cache, work, check.
    pub fn once(&self, side: &mut dyn Contender) -> Result<Sample> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted by a signal");
        }
        let name = side.name().to_owned();
        side.prepare().with_context(|| format!("preparing {name}"))?;
        (self.empty_cache)()?;
        let sample = side.run().with_context(|| format!("running {name}"))?;
        side.check().with_context(|| format!("checking what {name} did"))?;
        Ok(sample)
    }
}

/// Writes everything dirty out and forgets every clean page, directory entry and inode (kernel's
/// `Documentation/admin-guide/sysctl/vm.rst`, `drop_caches`).
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("writing /proc/sys/vm/drop_caches (needs root)")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    struct Fake {
        name: &'static str,
        calls: Rc<RefCell<Vec<String>>>,
        good: bool,
    }

    impl Fake {
        fn note(&self, what: &str) {
            self.calls.borrow_mut().push(format!("{}.{what}", self.name));
        }
    }

    impl Contender for Fake {
        fn name(&self) -> &str {
            self.name
        }
        fn prepare(&mut self) -> Result<()> {
            self.note("prepare");
            Ok(())
        }
        fn run(&mut self) -> Result<Sample> {
            self.note("run");
            Ok(Sample { seconds: 1.0, peak_rss_mib: 2.0 })
        }
        fn check(&mut self) -> Result<()> {
            self.note("check");
            if self.good { Ok(()) } else { bail!("the slot differs") }
        }
    }

    fn runner(pairs: usize) -> Runner {
        Runner { pairs, interrupted: Arc::default(), empty_cache: || Ok(()) }
    }

    #[test]
    fn sides_take_turns() {
        let calls = Rc::<RefCell<Vec<String>>>::default();
        let mut a = Fake { name: "a", calls: Rc::clone(&calls), good: true };
        let mut b = Fake { name: "b", calls: Rc::clone(&calls), good: true };
        let pairs = runner(2).pair(&mut a, &mut b).unwrap();
        assert_eq!((pairs.ours.len(), pairs.rival.len()), (2, 2));
        let one = ["a.prepare", "a.run", "a.check", "b.prepare", "b.run", "b.check"];
        assert_eq!(*calls.borrow(), [one, one].concat());
    }

    #[test]
    fn work_that_was_not_done_is_no_sample() {
        let calls = Rc::default();
        let mut a = Fake { name: "a", calls, good: false };
        let error = runner(1).once(&mut a).unwrap_err();
        assert_eq!(format!("{error:#}"), "checking what a did: the slot differs");
    }

    #[test]
    fn a_signal_stops_before_the_next_run() {
        let calls = Rc::<RefCell<Vec<String>>>::default();
        let mut a = Fake { name: "a", calls: Rc::clone(&calls), good: true };
        let runner = runner(1);
        runner.interrupted.store(true, Ordering::Relaxed);
        assert!(runner.once(&mut a).is_err());
        assert!(calls.borrow().is_empty());
    }
}
