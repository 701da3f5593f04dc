//! What is done to the appliance, and what the second table says of it.

use slotd::domain::plan::SelectStep::{
    self, ClearOneShot, CountBoot, SetDefault, SetOneShot, WriteConfirmed, WriteConfirming, WriteEnded,
    WritePending,
};
use slotd::domain::state::UpgradeOutcome::{self, Confirmed, Failed, Withdrawn};
use slotd::store::RevertRequest;

use super::ground::{Ground, id, recorded, with_state};
use super::law::{End, Flip, Lost, Verdict, steps};
use super::power::{Came, Health, Power};
use super::{Again, Scenario};
use crate::recorder::{Media, Recorder};

use Health::{Dead, Good, Silent};

pub(super) fn end(confirmed: usize, outcome: Option<UpgradeOutcome>) -> End {
    End { runs: Some(confirmed), confirmed: Some(confirmed), outcome }
}

/// Next this slot, as the default or as a trial; in the end the confirmed one.
pub(super) fn verdict(
    next: usize,
    trial: bool,
    confirmed: usize,
    outcome: Option<UpgradeOutcome>,
) -> Verdict {
    Verdict { next: Some((next, trial)), end: end(confirmed, outcome) }
}

pub(super) fn flip(step: SelectStep, verdict: Verdict) -> Flip {
    (Some(step), verdict)
}

impl Ground {
    pub(super) fn scenario<'a>(
        &'a self,
        name: &'static str,
        start: Media,
        first: Verdict,
        flips: Vec<Flip>,
        run: impl FnOnce(&Recorder) -> anyhow::Result<()>,
    ) -> anyhow::Result<Scenario<'a>> {
        let (finished, log) = recorded(&start, run)?;
        Ok(Scenario {
            ground: self,
            name,
            start,
            log,
            finished,
            health: [Good, Silent, Silent],
            forgets: true,
            blind: false,
            first,
            flips,
            again: Again::Start,
        })
    }

    fn power<'a>(&'a self, before: &'a Media, health: [Health; 3]) -> Power<'a> {
        Power { ground: self, before, health, forgets: true, lost: Lost::default(), starts: None }
    }

    pub(super) fn came(
        &self,
        recorder: &Recorder,
        health: [Health; 3],
        forgets: bool,
        expected: Came,
    ) -> anyhow::Result<()> {
        let before = recorder.media();
        let power = Power { forgets, ..self.power(&before, health) };
        let came = power.start(recorder).map_err(anyhow::Error::msg)?;
        anyhow::ensure!(came == expected, "{came:?} came up, not {expected:?}");
        Ok(())
    }

    /// The same when the loader's settings may be lost.
    pub(super) fn came_blind(
        &self,
        recorder: &Recorder,
        health: [Health; 3],
        expected: Came,
    ) -> anyhow::Result<()> {
        let before = recorder.media();
        let lost = Lost { loader: true, ..Lost::default() };
        let came =
            Power { lost, ..self.power(&before, health) }.start(recorder).map_err(anyhow::Error::msg)?;
        anyhow::ensure!(came == expected, "{came:?} came up, not {expected:?}");
        Ok(())
    }

    /// Slot 2 is selected.
    pub(super) fn selected(&self, media: &Media) -> anyhow::Result<Media> {
        Ok(recorded(media, |recorder| self.activate(recorder, 1, 2))?.0)
    }

    /// Slot 2 is in its trial and has said nothing yet.
    pub(super) fn in_trial(&self, media: &Media) -> anyhow::Result<Media> {
        let trial =
            |recorder: &Recorder| self.came(recorder, [Good, Silent, Silent], true, Came::Up(2, true));
        Ok(recorded(&self.selected(media)?, trial)?.0)
    }

    /// Slot 2 has taken over from slot 1.
    pub(super) fn upgraded(&self, media: &Media) -> anyhow::Result<Media> {
        Ok(recorded(&self.in_trial(media)?, |recorder| {
            Ok(self.assemble(recorder, 2).confirm().map(drop)?)
        })?
        .0)
    }

    /// Selects slot 2 while slot 1 runs.
    pub fn activation(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            flip(WritePending, verdict(1, false, 1, Some(Failed))),
            flip(SetOneShot, verdict(2, true, 1, Some(Failed))),
        ];
        let first = verdict(1, false, 1, None);
        let scenario = self
            .scenario("activate", self.two.clone(), first, flips, |recorder| self.activate(recorder, 1, 2))?;
        Ok(Scenario { again: Again::Select(2), ..scenario })
    }

    /// Selects slot 3 while slot 2 is selected.
    pub fn activation_over_another(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            flip(ClearOneShot, verdict(1, false, 1, Some(Failed))),
            flip(SetOneShot, verdict(3, true, 1, Some(Failed))),
        ];
        let first = verdict(2, true, 1, Some(Failed));
        let start = self.selected(&self.three)?;
        let scenario = self.scenario("activate over another", start, first, flips, |recorder| {
            self.activate(recorder, 1, 3)
        })?;
        Ok(Scenario { again: Again::Select(3), ..scenario })
    }

    /// Takes the selection of slot 2 back.
    pub fn withdrawal(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            flip(ClearOneShot, verdict(1, false, 1, Some(Failed))),
            flip(WriteEnded, verdict(1, false, 1, Some(Withdrawn))),
        ];
        let first = verdict(2, true, 1, Some(Failed));
        self.scenario("deactivate", self.selected(&self.two)?, first, flips, |recorder| {
            Ok(self.assemble(recorder, 1).deactivate(id(2))?)
        })
    }

    /// The first start of the selected slot 2, from the loader to slotd.
    pub fn count(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![flip(ClearOneShot, verdict(1, false, 1, Some(Failed)))];
        let first = verdict(2, true, 1, Some(Failed));
        self.scenario("boot counting", self.selected(&self.two)?, first, flips, |recorder| {
            self.came(recorder, [Good, Silent, Silent], true, Came::Up(2, true))
        })
    }

    /// The same with a loader that cannot clear its one-shot entry: only the counter keeps it from starting for ever.
    pub fn count_without_clearing(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![flip(CountBoot, verdict(1, false, 1, Some(Failed)))];
        let first = verdict(2, true, 1, Some(Failed));
        let scenario = self.scenario(
            "boot counting, the loader cannot clear",
            self.selected(&self.two)?,
            first,
            flips,
            |recorder| self.came(recorder, [Good, Dead, Silent], false, Came::Up(2, true)),
        )?;
        Ok(Scenario { forgets: false, health: [Good, Dead, Silent], ..scenario })
    }

    /// Slot 2 is healthy in its trial; its recovery image replaces the older one.
    pub fn confirmation(&self) -> anyhow::Result<Scenario<'_>> {
        self.confirmation_from("confirm", self.in_trial(&self.two)?)
    }

    pub(super) fn confirmation_from(&self, name: &'static str, start: Media) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            flip(WriteConfirming, verdict(1, false, 2, Some(Confirmed))),
            flip(SetDefault, verdict(2, false, 2, Some(Confirmed))),
        ];
        let first = verdict(1, false, 1, Some(Failed));
        let scenario = self.scenario(name, start, first, flips, |recorder| {
            Ok(self.assemble(recorder, 2).confirm().map(drop)?)
        })?;
        Ok(Scenario { health: [Good, Good, Silent], again: Again::Confirm(2), ..scenario })
    }

    /// Slot 2 is not healthy in its trial.
    pub fn rejection(&self) -> anyhow::Result<Scenario<'_>> {
        let failed = verdict(1, false, 1, Some(Failed));
        self.scenario(
            "reject",
            self.in_trial(&self.two)?,
            failed,
            vec![flip(WriteEnded, failed)],
            |recorder| Ok(self.assemble(recorder, 2).reject("ill")?),
        )
    }

    /// An operator goes from slot 2 back to the older firmware in slot 1.
    pub fn reversion(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            flip(WritePending, verdict(2, false, 2, Some(Failed))),
            flip(SetOneShot, verdict(1, true, 2, Some(Failed))),
        ];
        let first = verdict(2, false, 2, Some(Confirmed));
        let scenario = self.scenario("revert", self.upgraded(&self.two)?, first, flips, |recorder| {
            let store = self.assemble(recorder, 2);
            Ok(store.revert("in a test", &RevertRequest::default(), "the test").map(drop)?)
        })?;
        Ok(Scenario { health: [Silent, Good, Silent], again: Again::Select(1), ..scenario })
    }

    /// The older firmware in slot 1 is healthy after that: the floors stay where they are.
    pub fn confirmation_of_a_revert(&self) -> anyhow::Result<Scenario<'_>> {
        let reverted = recorded(&self.upgraded(&self.two)?, |recorder| {
            let store = self.assemble(recorder, 2);
            store.revert("in a test", &RevertRequest::default(), "the test")?;
            self.came(recorder, [Silent, Good, Silent], true, Came::Up(1, true))
        })?;
        let flips = vec![
            flip(WriteConfirming, verdict(2, false, 1, Some(Confirmed))),
            flip(SetDefault, verdict(1, false, 1, Some(Confirmed))),
        ];
        let first = verdict(2, false, 2, Some(Failed));
        let scenario = self.scenario("confirm a revert", reverted.0, first, flips, |recorder| {
            Ok(self.assemble(recorder, 1).confirm().map(drop)?)
        })?;
        Ok(Scenario { again: Again::Confirm(1), health: [Good, Good, Silent], ..scenario })
    }

    /// The default starts after a trial that said nothing.
    pub fn start_after_a_failed_trial(&self) -> anyhow::Result<Scenario<'_>> {
        let failed = verdict(1, false, 1, Some(Failed));
        let start = self.in_trial(&self.two)?;
        self.scenario(
            "start after a failed trial",
            start,
            failed,
            vec![flip(WriteEnded, failed)],
            |recorder| self.came(recorder, [Good, Silent, Silent], true, Came::Up(1, false)),
        )
    }

    /// The default was started three times and died each time: its initrd selects another firmware.
    pub fn fallback(&self) -> anyhow::Result<Scenario<'_>> {
        let start = with_state(&self.two, |state| {
            state.boots.insert(id(1), 3);
        })?;
        let chosen = verdict(2, true, 2, Some(Confirmed));
        // Nothing tells a fallback that was not selected in full from one that did not start: recovery comes between.
        let flips = vec![flip(WritePending, Verdict { next: None, ..chosen }), flip(SetOneShot, chosen)];
        let scenario = self.scenario("fallback", start, chosen, flips, |recorder| {
            self.came(recorder, [Dead, Good, Silent], true, Came::Again)
        })?;
        Ok(Scenario { health: [Dead, Good, Silent], ..scenario })
    }

    /// Slot 2 was confirmed up to the first of `step`; since then `worn` was started three times and cut off each time.
    fn half_confirmed(&self, step: SelectStep, worn: usize) -> anyhow::Result<Media> {
        let Scenario { start: mut media, log, .. } = self.confirmation()?;
        let steps = steps(&media, &log);
        for (event, _) in log.iter().zip(steps).take_while(|(_, found)| *found != Some(step)) {
            media.apply(event);
        }
        with_state(&media, |state| {
            state.boots.insert(id(worn), 3);
        })
    }

    /// Slot 2 is healthy and the default, which only the state does not say yet: the initrd rolls it forward.
    pub fn roll_forward(&self) -> anyhow::Result<Scenario<'_>> {
        let (start, done) = (self.half_confirmed(WriteConfirmed, 2)?, verdict(2, false, 2, Some(Confirmed)));
        let scenario = self.scenario("roll forward in the initrd", start, done, Vec::new(), |recorder| {
            self.came(recorder, [Good, Good, Silent], true, Came::Up(2, false))
        })?;
        Ok(Scenario { health: [Good, Good, Silent], ..scenario })
    }

    /// Slot 2 is healthy, slot 1 is still the default.
    pub fn roll_forward_from_the_old(&self) -> anyhow::Result<Scenario<'_>> {
        let (start, done) = (self.half_confirmed(SetDefault, 1)?, verdict(2, false, 2, Some(Confirmed)));
        let name = "roll forward in the initrd of the old default";
        let scenario = self.scenario(name, start, done, Vec::new(), |recorder| {
            self.came(recorder, [Dead, Good, Silent], true, Came::Again)
        })?;
        Ok(Scenario { health: [Dead, Good, Silent], ..scenario })
    }

    /// The state is lost, and the operator writes a fresh one.
    pub fn reset(&self) -> anyhow::Result<Scenario<'_>> {
        self.reset_from("state reset", lost_state(&self.two, 0))
    }

    /// The same where the records hold garbage.
    pub fn reset_garbage(&self) -> anyhow::Result<Scenario<'_>> {
        self.reset_from("state reset, the records are garbage", lost_state(&self.two, 0x5a))
    }

    pub(super) fn reset_from(&self, name: &'static str, start: Media) -> anyhow::Result<Scenario<'_>> {
        let (lost, fresh) = (lost_verdict(1), verdict(1, false, 1, None));
        let scenario = self.scenario(name, start, lost, vec![(None, fresh)], |recorder| {
            Ok(self.assemble(recorder, 1).reset_state("in a test")?)
        })?;
        Ok(Scenario { again: Again::Reset, ..scenario })
    }

    /// The same while slot 2 is selected, which only the loader still knows.
    pub fn reset_while_selected(&self) -> anyhow::Result<Scenario<'_>> {
        let start = lost_state(&self.selected(&self.two)?, 0);
        let fresh = verdict(1, false, 1, None);
        let flips = vec![flip(ClearOneShot, lost_verdict(1)), (None, fresh)];
        let name = "state reset while another is selected";
        let scenario = self.scenario(name, start, lost_verdict(2), flips, |recorder| {
            Ok(self.assemble(recorder, 1).reset_state("in a test")?)
        })?;
        Ok(Scenario { again: Again::Reset, ..scenario })
    }
}

/// Without a state nothing is counted and nothing is a trial: boot goes on, in the end with the default.
fn lost_verdict(next: usize) -> Verdict {
    Verdict { next: Some((next, false)), end: End { runs: Some(1), confirmed: None, outcome: None } }
}

/// The same media with these bytes for the beginning of both records.
pub(in super::super) fn lost_state(media: &Media, bytes: u8) -> Media {
    let mut media = media.clone();
    for at in [0, media.state.size() / 2] {
        media.state.write(at, &[bytes; 512]);
    }
    media
}
