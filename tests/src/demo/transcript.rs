//! What the reader sees: headings, and one line for each check.

use std::fmt::Display;
use std::time::Instant;

/// The output and its tally.
pub(super) struct Transcript {
    start: Instant,
    passed: u32,
    failed: u32,
}

impl Transcript {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), passed: 0, failed: 0 }
    }

    pub(super) fn heading(&self, text: impl Display) {
        println!("\n== {text}  [{:.0} s]", self.start.elapsed().as_secs_f64());
    }

    /// A line for the reader.
    pub(super) fn say(text: impl Display) {
        println!("   {text}");
    }

    /// A claim and whether it holds.
    pub(super) fn check(&mut self, holds: bool, claim: impl Display) -> bool {
        if holds {
            self.passed += 1;
            println!("   ok    {claim}");
        } else {
            self.failed += 1;
            println!("   FAIL  {claim}");
        }
        holds
    }

    /// The same for two values that must be equal; a difference is shown.
    pub(super) fn equal<T: PartialEq + std::fmt::Debug>(
        &mut self,
        found: &T,
        expected: &T,
        claim: impl Display,
    ) {
        if !self.check(found == expected, claim) {
            println!("         found {found:?}, expected {expected:?}");
        }
    }

    /// Whether everything held, and something was checked at all.
    pub(super) fn passed(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    pub(super) fn summary(&self) -> String {
        format!("{} checks ok, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_it_all_and_nothing_checked_is_no_success() {
        let mut transcript = Transcript::new();
        assert!(!transcript.passed());
        transcript.check(true, "a");
        assert!(transcript.passed());
        transcript.equal(&1, &2, "b");
        assert!(!transcript.passed());
        assert_eq!(transcript.summary(), "1 checks ok, 1 failed");
    }
}
