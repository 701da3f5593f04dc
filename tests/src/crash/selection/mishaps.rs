//! Whole trials from the selection to the decision, and what else may be wrong meanwhile: a default that is damaged, lost
//! settings, a full ESP, a state of another firmware or at the end of its sequence numbers, three slots.

use std::collections::BTreeMap;

use anyhow::Context as _;
use slotd::domain::manifest::Sha256Hex;
use slotd::domain::plan::SelectStep::{
    ClearOneShot, CountBoot, ResetBoots, SetDefault, SetOneShot, WriteConfirming, WritePending,
};
use slotd::domain::state::Refused;
use slotd::domain::state::UpgradeOutcome::{Confirmed, Failed};
use slotd::store::RevertRequest;
use sps_base::durable::{self, Record};

use super::super::law::read_state;
use super::ground::{Ground, UNKNOWN, id, with_bad_block, with_sequence, with_state};
use super::law::{End, Flip, Verdict};
use super::loader;
use super::power::{Came, Health};
use super::scenarios::{end, flip, verdict};
use super::{Again, Scenario};
use crate::recorder::Media;

use Health::{Dead, Good, Ill, Silent};

/// Recovery, and nothing has taken over.
fn rescued(next: Option<(usize, bool)>) -> Verdict {
    Verdict { next, end: End { runs: None, confirmed: Some(1), outcome: Some(Failed) } }
}

impl Ground {
    /// Slot `to` is selected, tried, confirmed and started again.
    fn good_trial(&self, name: &'static str, start: Media, to: usize) -> anyhow::Result<Scenario<'_>> {
        let mut health = [Good, Silent, Silent];
        health[to - 1] = Good;
        let flips = vec![
            flip(WritePending, verdict(1, false, 1, Some(Failed))),
            flip(SetOneShot, verdict(to, true, to, Some(Confirmed))),
            flip(ClearOneShot, verdict(1, false, 1, Some(Failed))),
            flip(WriteConfirming, verdict(1, false, to, Some(Confirmed))),
            flip(SetDefault, verdict(to, false, to, Some(Confirmed))),
        ];
        let first = verdict(1, false, 1, None);
        let scenario = self.scenario(name, start, first, flips, |recorder| {
            self.activate(recorder, 1, to)?;
            self.came(recorder, health, true, Came::Up(to, true))?;
            self.came(recorder, health, true, Came::Up(to, false))
        })?;
        Ok(Scenario { health, again: Again::Confirm(to), ..scenario })
    }

    /// Slot 2 is selected, tried and found healthy.
    pub fn trial_good(&self) -> anyhow::Result<Scenario<'_>> {
        self.good_trial("trial good", self.two.clone(), 2)
    }

    /// The same with slot 3 of three.
    pub fn trial_good_of_three(&self) -> anyhow::Result<Scenario<'_>> {
        self.good_trial("trial good, three slots", self.three.clone(), 3)
    }

    /// Slot 2 is selected and tried in vain: slot 1 runs again.
    fn trial_in_vain(
        &self,
        name: &'static str,
        start: Media,
        behaves: Health,
    ) -> anyhow::Result<Scenario<'_>> {
        let (failed, health) = (verdict(1, false, 1, Some(Failed)), [Good, behaves, Silent]);
        let flips = vec![
            flip(WritePending, failed),
            flip(SetOneShot, verdict(2, true, 1, Some(Failed))),
            flip(ClearOneShot, failed),
        ];
        let scenario = self.scenario(name, start, verdict(1, false, 1, None), flips, |recorder| {
            self.activate(recorder, 1, 2)?;
            self.came(recorder, health, true, Came::Up(2, true))?;
            self.came(recorder, health, true, Came::Up(1, false))
        })?;
        Ok(Scenario { health, ..scenario })
    }

    /// Its health checks fail.
    pub fn trial_bad(&self) -> anyhow::Result<Scenario<'_>> {
        self.trial_in_vain("trial bad", self.two.clone(), Ill)
    }

    /// Nobody says anything; the watchdog resets.
    pub fn trial_hanging(&self) -> anyhow::Result<Scenario<'_>> {
        self.trial_in_vain("trial hanging", self.two.clone(), Dead)
    }

    /// The older firmware in slot 1 is gone back to, tried and confirmed.
    pub fn whole_reversion(&self) -> anyhow::Result<Scenario<'_>> {
        let health = [Good, Good, Silent];
        let flips = vec![
            flip(WritePending, verdict(2, false, 2, Some(Failed))),
            flip(SetOneShot, verdict(1, true, 1, Some(Confirmed))),
            flip(ClearOneShot, verdict(2, false, 2, Some(Failed))),
            flip(WriteConfirming, verdict(2, false, 1, Some(Confirmed))),
            flip(SetDefault, verdict(1, false, 1, Some(Confirmed))),
        ];
        let (start, first) = (self.upgraded(&self.two)?, verdict(2, false, 2, Some(Confirmed)));
        let scenario = self.scenario("revert with its trial", start, first, flips, |recorder| {
            let store = self.assemble(recorder, 2);
            store.revert("in a test", &RevertRequest::default(), "the test")?;
            drop(store);
            self.came(recorder, health, true, Came::Up(1, true))?;
            self.came(recorder, health, true, Came::Up(1, false))
        })?;
        Ok(Scenario { health, again: Again::Confirm(1), ..scenario })
    }

    /// The default is started for the third time since it was last healthy, and is healthy again.
    pub fn healthy_again(&self) -> anyhow::Result<Scenario<'_>> {
        let start = with_state(&self.two, |state| {
            state.boots.insert(id(1), 2);
        })?;
        // Three power cuts in a row look like a default that is dead: another is tried, and recovery is left.
        let dead = rescued(Some((2, true)));
        let healthy = verdict(1, false, 1, None);
        let flips = vec![flip(CountBoot, dead), flip(ResetBoots, healthy)];
        self.scenario("healthy again", start, healthy, flips, |recorder| {
            self.came(recorder, [Good, Silent, Silent], true, Came::Up(1, false))
        })
    }

    /// The sequence numbers of the state go round; the newest record is in this place.
    fn rollover(&self, name: &'static str, place: usize) -> anyhow::Result<Scenario<'_>> {
        self.good_trial(name, with_sequence(&self.two, u64::MAX - 2, place)?, 2)
    }

    /// The newest record is the first.
    pub fn rollover_first(&self) -> anyhow::Result<Scenario<'_>> {
        self.rollover("state rollover, first record", 0)
    }

    /// The newest record is the second.
    pub fn rollover_second(&self) -> anyhow::Result<Scenario<'_>> {
        self.rollover("state rollover, second record", 1)
    }

    /// A firmware that knew more has written the state; this one keeps what it does not know.
    pub fn newer_state(&self) -> anyhow::Result<Scenario<'_>> {
        let unknown = || BTreeMap::from([(UNKNOWN.to_owned(), serde_json::json!({"list": [1, null]}))]);
        let start = with_state(&self.selected(&self.two)?, |state| {
            let (root_hash, reason) = (Sha256Hex([7; 32]), "of another firmware".to_owned());
            state.refused.push(Refused { root_hash, reason, at: 1, unknown: unknown() });
            if let Some(pending) = &mut state.pending {
                pending.message = UNKNOWN.into();
                pending.unknown = unknown();
            }
        })?;
        let (failed, health) = (verdict(1, false, 1, Some(Failed)), [Good, Silent, Silent]);
        let flips = vec![flip(ClearOneShot, failed)];
        let first = verdict(2, true, 1, Some(Failed));
        self.scenario("state from newer firmware", start, first, flips, |recorder| {
            self.came(recorder, health, true, Came::Up(2, true))?;
            self.came(recorder, health, true, Came::Up(1, false))
        })
    }

    /// The same, but it says something that this firmware cannot understand: the state is lost, and stays as it is until
    /// the operator writes a fresh one.
    pub fn newer_schema(&self) -> anyhow::Result<Scenario<'_>> {
        let mut start = self.two.clone();
        let (sequence, at, state) = read_state(&start.state).map_err(anyhow::Error::msg)?;
        let mut value: serde_json::Value = serde_json::from_slice(&state.render())?;
        value["last_upgrade"] = serde_json::json!({"outcome": "postponed", "at": "tomorrow"});
        let record = Record { sequence: sequence + 1, payload: serde_json::to_vec(&value)? };
        start.state.write(at, &durable::render(&record)?);
        self.reset_from("state of a newer schema reset", start)
    }

    /// Slot 2 is selected while the root in slot 1, the default, has gone bad.
    fn bad_default(&self, name: &'static str, behaves: Health) -> anyhow::Result<Scenario<'_>> {
        let start = self.selected(&with_bad_block(&self.two, 1))?;
        let health = [Good, behaves, Silent];
        let (first, flips) = if behaves == Good {
            let good = |next, trial| verdict(next, trial, 2, Some(Confirmed));
            let flips = vec![
                flip(ClearOneShot, good(1, false)),
                flip(CountBoot, rescued(Some((1, false)))),
                flip(WriteConfirming, good(1, false)),
                flip(SetDefault, good(2, false)),
            ];
            (good(2, true), flips)
        } else {
            // It is counted once, and the default, which dies each time, three times.
            let counted = flip(CountBoot, rescued(Some((1, false))));
            let mut flips = vec![flip(ClearOneShot, rescued(Some((1, false))))];
            flips.extend([counted, counted, counted, flip(CountBoot, rescued(None))]);
            (rescued(Some((2, true))), flips)
        };
        let scenario = self.scenario(name, start, first, flips, |recorder| {
            self.came(recorder, health, true, Came::Up(2, true))?;
            if behaves == Good {
                return self.came(recorder, health, true, Came::Up(2, false));
            }
            let dead = Came::Up(1, false);
            [dead, dead, dead, Came::Again, Came::Recovery]
                .into_iter()
                .try_for_each(|came| self.came(recorder, health, true, came))
        })?;
        Ok(Scenario { health, ..scenario })
    }

    /// The trial fails, and what should run then does not: recovery.
    pub fn fallback_bad(&self) -> anyhow::Result<Scenario<'_>> {
        self.bad_default("fallback already bad", Ill)
    }

    /// The trial goes well.
    pub fn default_bad(&self) -> anyhow::Result<Scenario<'_>> {
        self.bad_default("default already bad, trial good", Good)
    }

    /// The default is dead; the newest of the others does not say a word; the third is healthy.
    pub fn fallback_of_three(&self) -> anyhow::Result<Scenario<'_>> {
        let start = with_state(&self.three, |state| {
            state.boots.insert(id(1), 3);
        })?;
        let health = [Dead, Good, Silent];
        let done = |next| Verdict { next, end: end(2, Some(Confirmed)) };
        let lost = rescued(None);
        let flips = vec![
            // Cut here, slot 3 is passed over: slot 2 is next.
            flip(WritePending, done(Some((2, true)))),
            flip(SetOneShot, done(Some((3, true)))),
            flip(ClearOneShot, done(Some((2, true)))),
            flip(CountBoot, done(Some((2, true)))),
            flip(WritePending, done(None)),
            flip(SetOneShot, done(Some((2, true)))),
            flip(ClearOneShot, done(None)),
            flip(CountBoot, lost),
            flip(WriteConfirming, done(Some((2, false)))),
            flip(SetDefault, done(Some((2, false)))),
        ];
        let first = done(Some((3, true)));
        let scenario = self.scenario("fallback, three slots", start, first, flips, |recorder| {
            for came in [Came::Again, Came::Up(3, true), Came::Again, Came::Up(2, true)] {
                self.came(recorder, health, true, came)?;
            }
            Ok(())
        })?;
        Ok(Scenario { health, ..scenario })
    }

    /// Slot 2 is confirmed while the ESP has no room for its recovery image.
    pub fn full_esp(&self) -> anyhow::Result<Scenario<'_>> {
        let mut start = self.in_trial(&self.two)?;
        start.esp_size = start.esp.values().map(|file| file.len() as u64).sum::<u64>() + 4096;
        self.confirmation_from("confirm, the ESP is full", start)
    }

    /// The loader's settings are lost in this way; it is started twice.
    fn lost_settings(
        &self,
        name: &'static str,
        (start, what): (&Media, &str),
        (first, flips): (Verdict, Vec<Flip>),
        came: [Came; 2],
    ) -> anyhow::Result<Scenario<'_>> {
        let lost = loader::losses(start).into_iter().find(|(_, how)| *how == what);
        let start = lost.context("this loader does not lose that")?.0;
        let health = [Good, Silent, Silent];
        let scenario = self.scenario(name, start, first, flips, |recorder| {
            came.into_iter().try_for_each(|came| self.came_blind(recorder, health, came))
        })?;
        Ok(Scenario { health, blind: true, ..scenario })
    }

    /// The loader takes the highest of its list; slotd there sets the default.
    fn lost_default(&self, name: &'static str, what: &str) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![flip(SetDefault, verdict(1, false, 1, None))];
        let right = (verdict(2, false, 1, None), flips);
        self.lost_settings(name, (&self.two, what), right, [Came::Up(2, false), Came::Up(1, false)])
    }

    /// Nothing is set any more.
    pub fn no_settings(&self) -> anyhow::Result<Scenario<'_>> {
        self.lost_default("lost loader variables", "no settings")
    }

    /// GRUB: the block is none any more.
    pub fn no_block(&self) -> anyhow::Result<Scenario<'_>> {
        self.lost_default("lost environment block", "the environment block zero")
    }

    /// systemd-boot: neither copy of the default can be read.
    pub fn no_copy(&self) -> anyhow::Result<Scenario<'_>> {
        let what = "the default variable cut in a character, loader.conf zero";
        self.lost_default("both copies of the default broken", what)
    }

    /// Nothing is set any more while slot 2 is selected, which the loader starts by chance.
    pub fn no_settings_while_selected(&self) -> anyhow::Result<Scenario<'_>> {
        let flips = vec![
            // Nothing says any more that slot 1 is the default: it is found as a fallback.
            flip(CountBoot, verdict(1, true, 1, Some(Confirmed))),
            flip(SetDefault, verdict(1, false, 1, Some(Failed))),
        ];
        let (right, start) = ((verdict(2, true, 1, Some(Failed)), flips), self.selected(&self.two)?);
        let name = "lost loader variables while another is selected";
        self.lost_settings(name, (&start, "no settings"), right, [Came::Up(2, true), Came::Up(1, false)])
    }

    /// systemd-boot: the variable is lost; `loader.conf` is the only copy.
    pub fn no_variable(&self) -> anyhow::Result<Scenario<'_>> {
        let right = (verdict(1, false, 1, None), Vec::new());
        let came = [Came::Up(1, false), Came::Up(1, false)];
        let start = (&self.two, "no default variable");
        let scenario = self.lost_settings("lost default variable", start, right, came)?;
        Ok(Scenario { blind: false, ..scenario })
    }

    /// systemd-boot: the one-shot is no text, so the loader neither starts nor removes it.
    pub fn broken_one_shot(&self) -> anyhow::Result<Scenario<'_>> {
        let failed = verdict(1, false, 1, Some(Failed));
        let start = self.selected(&self.two)?;
        let start = (&start, "the one-shot cut in a character");
        let came = [Came::Up(1, false), Came::Up(1, false)];
        self.lost_settings("broken one-shot", start, (failed, Vec::new()), came)
    }
}
