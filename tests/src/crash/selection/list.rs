//! Every scenario and every planted fault of the second table, by name.
#![expect(clippy::redundant_closure_for_method_calls, reason = "a method's path is of one lifetime only")]

use slotd::domain::plan::SelectStep::{
    self, ClearOneShot, CountBoot, RefreshRecovery, ResetBoots, SetDefault, SetOneShot, WriteConfirmed,
    WriteConfirming, WriteEnded, WritePending,
};

use super::Scenario;
use super::ground::{Ground, Loader, id};

/// Records a scenario.
pub type Make = for<'a> fn(&'a Ground) -> anyhow::Result<Scenario<'a>>;

/// Every scenario of this ground's loader, to be recorded when it is its turn.
pub fn all(ground: &Ground) -> Vec<(&'static str, Make)> {
    let mut all: Vec<(&'static str, Make)> = vec![
        ("activate", Ground::activation),
        ("activate over another", Ground::activation_over_another),
        ("deactivate", Ground::withdrawal),
        ("boot counting", Ground::count),
        ("boot counting, the loader cannot clear", Ground::count_without_clearing),
        ("healthy again", Ground::healthy_again),
        ("trial good", Ground::trial_good),
        ("trial good, three slots", Ground::trial_good_of_three),
        ("trial bad", Ground::trial_bad),
        ("trial hanging", Ground::trial_hanging),
        ("start after a failed trial", Ground::start_after_a_failed_trial),
        ("reject", Ground::rejection),
        ("confirm", Ground::confirmation),
        ("confirm, the ESP is full", Ground::full_esp),
        ("revert", Ground::reversion),
        ("revert with its trial", Ground::whole_reversion),
        ("confirm a revert", Ground::confirmation_of_a_revert),
        ("fallback", Ground::fallback),
        ("fallback, three slots", Ground::fallback_of_three),
        ("fallback already bad", Ground::fallback_bad),
        ("default already bad, trial good", Ground::default_bad),
        ("roll forward in the initrd", Ground::roll_forward),
        ("roll forward in the initrd of the old default", Ground::roll_forward_from_the_old),
        ("state reset", Ground::reset),
        ("state reset, the records are garbage", Ground::reset_garbage),
        ("state reset while another is selected", Ground::reset_while_selected),
        ("state rollover, first record", Ground::rollover_first),
        ("state rollover, second record", Ground::rollover_second),
        ("state from newer firmware", Ground::newer_state),
        ("state of a newer schema reset", Ground::newer_schema),
        ("lost loader variables", Ground::no_settings),
        ("lost loader variables while another is selected", Ground::no_settings_while_selected),
    ];
    let of_loader: &[(&'static str, Make)] = match ground.loader() {
        Loader::Grub => &[("lost environment block", Ground::no_block)],
        Loader::SystemdBoot => &[
            ("lost default variable", Ground::no_variable),
            ("both copies of the default broken", Ground::no_copy),
            ("broken one-shot", Ground::broken_one_shot),
        ],
    };
    all.extend(of_loader);
    all
}

/// The steps of the second table, each once. The match makes a new one show.
pub fn select_steps() -> Vec<SelectStep> {
    let next = |step: &SelectStep| match step {
        WritePending => Some(SetOneShot),
        SetOneShot => Some(CountBoot),
        CountBoot => Some(WriteConfirming),
        WriteConfirming => Some(SetDefault),
        SetDefault => Some(WriteConfirmed),
        WriteConfirmed => Some(RefreshRecovery),
        RefreshRecovery => Some(ClearOneShot),
        ClearOneShot => Some(WriteEnded),
        WriteEnded => Some(ResetBoots),
        ResetBoots => None,
    };
    std::iter::successors(Some(WritePending), next).collect()
}

/// A fault in one step of the second table, as a slotd that breaks it would leave it in a log.
#[derive(Clone, Copy)]
pub struct Fault {
    /// The step that it concerns.
    pub step: SelectStep,
    /// What is wrong.
    pub name: &'static str,
    /// The scenario that it is planted in.
    pub make: Make,
    /// Plants it.
    pub plant: fn(&mut Scenario<'_>),
    /// What a violation says that shows it.
    pub sign: &'static str,
}

impl Fault {
    /// The scenario with the fault in it.
    pub fn planted<'a>(&self, ground: &'a Ground) -> anyhow::Result<Scenario<'a>> {
        let mut scenario = (self.make)(ground)?;
        let log = scenario.log.clone();
        (self.plant)(&mut scenario);
        anyhow::ensure!(scenario.log != log, "{self:?}: nothing was planted");
        Ok(scenario)
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.step, self.name)
    }
}

const UNLIKE: &str = "for the loader: true";
const DEFAULT: &str = "the default is";
const OTHERWISE: &str = "right is";

/// Every planted fault of this ground's loader.
pub fn faults(ground: &Ground) -> Vec<Fault> {
    let mut all = [selecting(), trying(), confirming(), confirmed()].concat();
    all.push(match ground.loader() {
        Loader::Grub => fault(
            SetOneShot,
            "settings across two sectors",
            Ground::activation,
            |s| s.across_sectors(),
            "the block is torn",
        ),
        Loader::SystemdBoot => fault(
            SetDefault,
            "loader.conf before the variable",
            Ground::no_variable,
            |s| s.conf_first(),
            "the default is slot None",
        ),
    });
    all
}

/// In selecting a firmware.
fn selecting() -> Vec<Fault> {
    vec![
        fault(WritePending, "not flushed", Ground::activation, |s| s.unflushed(WritePending), UNLIKE),
        fault(WritePending, "left out", Ground::activation, |s| s.without(WritePending), UNLIKE),
        fault(
            WritePending,
            "after the one-shot",
            Ground::activation,
            |s| s.earlier(SetOneShot, WritePending),
            UNLIKE,
        ),
        fault(
            WritePending,
            "of the wrong slot",
            Ground::activation_over_another,
            |s| {
                s.state_becomes(WritePending, |state| state.pending.iter_mut().for_each(|p| p.slot = id(2)));
            },
            UNLIKE,
        ),
        fault(
            WritePending,
            "unknown fields dropped",
            Ground::activation,
            |s| {
                s.state_becomes(WritePending, |state| state.unknown.clear());
            },
            "was lost",
        ),
        fault(
            SetOneShot,
            "lost after it was durable",
            Ground::activation,
            |s| s.without(SetOneShot),
            OTHERWISE,
        ),
        fault(
            SetOneShot,
            "of the wrong slot",
            Ground::activation,
            |s| s.wrong_slot(SetOneShot, 1),
            OTHERWISE,
        ),
        fault(SetOneShot, "done twice", Ground::trial_bad, |s| s.again_at_end(SetOneShot), UNLIKE),
    ]
}

/// In its start, and in the end of a trial that is not its confirmation.
fn trying() -> Vec<Fault> {
    vec![
        fault(CountBoot, "left out", Ground::count_without_clearing, |s| s.without(CountBoot), OTHERWISE),
        fault(
            CountBoot,
            "not flushed",
            Ground::count_without_clearing,
            |s| s.unflushed(CountBoot),
            OTHERWISE,
        ),
        fault(
            CountBoot,
            "of the wrong slot",
            Ground::count_without_clearing,
            |s| {
                s.state_becomes(CountBoot, |state| state.boots = [(id(1), 1)].into());
            },
            OTHERWISE,
        ),
        fault(ClearOneShot, "left out", Ground::withdrawal, |s| s.without(ClearOneShot), UNLIKE),
        fault(
            ClearOneShot,
            "after the end",
            Ground::withdrawal,
            |s| s.earlier(WriteEnded, ClearOneShot),
            UNLIKE,
        ),
        fault(
            ClearOneShot,
            "after another was selected",
            Ground::activation_over_another,
            |s| {
                s.earlier(WritePending, ClearOneShot);
            },
            UNLIKE,
        ),
        fault(WriteEnded, "left out", Ground::withdrawal, |s| s.without(WriteEnded), OTHERWISE),
        fault(WriteEnded, "not flushed", Ground::withdrawal, |s| s.unflushed(WriteEnded), OTHERWISE),
        fault(
            WriteEnded,
            "before the one-shot is cleared",
            Ground::withdrawal,
            |s| s.earlier(WriteEnded, ClearOneShot),
            UNLIKE,
        ),
        fault(ResetBoots, "left out", Ground::healthy_again, |s| s.without(ResetBoots), OTHERWISE),
        fault(ResetBoots, "not flushed", Ground::healthy_again, |s| s.unflushed(ResetBoots), OTHERWISE),
        fault(
            ResetBoots,
            "of the wrong slot",
            Ground::healthy_again,
            |s| {
                s.state_becomes(ResetBoots, |state| state.boots = [(id(1), 3)].into());
            },
            OTHERWISE,
        ),
    ]
}

/// In making a healthy one the default.
fn confirming() -> Vec<Fault> {
    vec![
        fault(WriteConfirming, "left out", Ground::confirmation, |s| s.without(WriteConfirming), DEFAULT),
        fault(
            WriteConfirming,
            "not flushed",
            Ground::confirmation,
            |s| s.unflushed(WriteConfirming),
            DEFAULT,
        ),
        fault(
            WriteConfirming,
            "after the default",
            Ground::confirmation,
            |s| s.earlier(SetDefault, WriteConfirming),
            DEFAULT,
        ),
        fault(
            SetDefault,
            "lost after it was durable",
            Ground::confirmation,
            |s| s.without(SetDefault),
            DEFAULT,
        ),
        fault(
            SetDefault,
            "after the state says so",
            Ground::confirmation,
            |s| s.earlier(WriteConfirmed, SetDefault),
            DEFAULT,
        ),
        fault(
            SetDefault,
            "of the wrong slot",
            Ground::confirmation_of_a_revert,
            |s| s.wrong_slot(SetDefault, 3),
            DEFAULT,
        ),
    ]
}

/// In what follows that.
fn confirmed() -> Vec<Fault> {
    vec![
        fault(
            WriteConfirmed,
            "before the default",
            Ground::confirmation,
            |s| s.earlier(WriteConfirmed, SetDefault),
            DEFAULT,
        ),
        fault(
            WriteConfirmed,
            "of the wrong slot",
            Ground::confirmation,
            |s| {
                s.state_becomes(WriteConfirmed, |state| {
                    state.confirmed.iter_mut().for_each(|c| c.slot = id(1));
                });
            },
            DEFAULT,
        ),
        fault(
            WriteConfirmed,
            "the epoch floor not raised",
            Ground::confirmation,
            |s| {
                s.state_becomes(WriteConfirmed, |state| state.epoch_floor = 1);
            },
            "below that of the confirmed firmware",
        ),
        fault(
            WriteConfirmed,
            "the epoch floor lowered",
            Ground::confirmation_of_a_revert,
            |s| {
                s.state_becomes(WriteConfirmed, |state| state.epoch_floor = 1);
            },
            "the epoch floor went from",
        ),
        fault(
            RefreshRecovery,
            "the old one removed first",
            Ground::confirmation,
            |s| s.removal_first(),
            "no recovery image",
        ),
        fault(
            RefreshRecovery,
            "not synced",
            Ground::confirmation,
            |s| s.unsynced(RefreshRecovery),
            "no recovery image",
        ),
    ]
}

fn fault(
    step: SelectStep,
    name: &'static str,
    make: Make,
    plant: fn(&mut Scenario<'_>),
    sign: &'static str,
) -> Fault {
    Fault { step, name, make, plant, sign }
}
