//! The scenarios of the second table.

use std::time::Instant;

use anyhow::Context as _;

use super::super::selection::Scenario;
use super::super::selection::ground::Ground;
use super::Args;
use super::table::{Row, Table};

/// Records a scenario.
type Make = for<'a> fn(&'a Ground) -> anyhow::Result<Scenario<'a>>;

const ALL: [(&str, Make); 15] = [
    ("activate", Ground::activation),
    ("activate over another", Ground::activation_over_another),
    ("deactivate", Ground::withdrawal),
    ("boot counting", Ground::count),
    ("boot counting, the loader cannot clear", Ground::count_without_clearing),
    ("confirm", Ground::confirmation),
    ("reject", Ground::rejection),
    ("revert", Ground::reversion),
    ("confirm a revert", Ground::confirmation_of_a_revert),
    ("start after a failed trial", Ground::start_after_a_failed_trial),
    ("fallback", Ground::fallback),
    ("roll forward in the initrd", Ground::roll_forward),
    ("roll forward in the initrd of the old default", Ground::roll_forward_from_the_old),
    ("state reset", Ground::reset),
    ("state reset while another is selected", Ground::reset_while_selected),
];

/// Their names.
pub(super) fn names() -> anyhow::Result<Vec<&'static str>> {
    Ok(ALL.iter().map(|(name, _)| *name).collect())
}

/// Checks those that `args` name.
pub(super) fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    if !ALL.iter().any(|(name, _)| args.chosen(name)) {
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    let ground = Ground::new(work.path())?;
    for (name, make) in ALL.iter().filter(|(name, _)| args.chosen(name)) {
        let scenario = make(&ground).with_context(|| format!("cannot record {name}"))?;
        let begin = Instant::now();
        let report = scenario.check(4);
        table.add(Row {
            name: (*name).into(),
            events: report.events,
            distinct: report.states + report.third,
            second: report.second,
            seconds: begin.elapsed().as_secs_f64(),
            violations: report.violations,
            ..Row::default()
        });
    }
    Ok(())
}
