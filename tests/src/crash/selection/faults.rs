//! Faults planted in a log, as a slotd that breaks the second table would leave it.

use std::sync::Arc;

use slotd::domain::envblk::{self, SIZE};
use slotd::domain::plan::SelectStep;
use slotd::domain::state::State;
use slotd::domain::{efivar, loader_conf};
use sps_base::durable::{self, Record};

use super::Scenario;
use super::law::steps;
use crate::recorder::{Device, Event};

impl Scenario<'_> {
    /// Leaves all of `step` out.
    pub fn without(&mut self, step: SelectStep) {
        self.leave_out(|found, _| found == Some(step));
    }

    /// Does not flush `step` of the state.
    pub fn unflushed(&mut self, step: SelectStep) {
        self.leave_out(|found, event| {
            found == Some(step) && *event == Event::Flush { device: Device::State }
        });
    }

    fn leave_out(&mut self, leave_out: impl Fn(Option<SelectStep>, &Event) -> bool) {
        let steps = steps(&self.start, &self.log);
        let kept = self.log.iter().zip(steps).filter(|(event, step)| !leave_out(*step, event));
        self.log = kept.map(|(event, _)| event.clone()).collect();
    }

    /// Carries all of `step` out in front of the first of `before`. What a write of the loader says is made anew from
    /// what it finds there.
    pub fn earlier(&mut self, step: SelectStep, before: SelectStep) {
        let steps = steps(&self.start, &self.log);
        let (early, mut rest): (Vec<_>, Vec<_>) =
            self.log.drain(..).zip(steps).partition(|(_, found)| *found == Some(step));
        let at = rest.iter().position(|(_, found)| *found == Some(before)).unwrap_or(rest.len());
        rest.splice(at..at, early);
        self.log = rest.into_iter().map(|(event, _)| event).collect();
    }

    /// Writes every state with this change.
    pub fn states_become(&mut self, change: fn(&mut State)) {
        for event in &mut self.log {
            let Event::Write { device: Device::State, data, .. } = event else { continue };
            let record = durable::parse(data).ok();
            let changed = record.and_then(|record| {
                let mut state = State::parse(&record.payload).ok()?;
                change(&mut state);
                durable::render(&Record { payload: state.render(), ..record }).ok()
            });
            if let Some(block) = changed {
                *data = block.into();
            }
        }
    }

    /// Writes the state of this step, and of no other, with this change.
    pub fn state_becomes(&mut self, step: SelectStep, change: fn(&mut State)) {
        let steps = steps(&self.start, &self.log);
        let mut altered = Scenario {
            log: self.log.clone(),
            start: self.start.clone(),
            finished: self.finished.clone(),
            flips: Vec::new(),
            ..*self
        };
        altered.states_become(change);
        for ((event, altered), found) in self.log.iter_mut().zip(altered.log).zip(steps) {
            if found == Some(step) {
                *event = altered;
            }
        }
    }

    /// Carries out all of `step` once more at the end.
    pub fn again_at_end(&mut self, step: SelectStep) {
        let steps = steps(&self.start, &self.log);
        let more: Vec<Event> = self
            .log
            .iter()
            .zip(steps)
            .filter(|(_, found)| *found == Some(step))
            .map(|(e, _)| e.clone())
            .collect();
        self.log.extend(more);
    }

    /// Has `step` set this slot in the loader, in every copy.
    pub fn wrong_slot(&mut self, step: SelectStep, slot: u32) {
        let steps = steps(&self.start, &self.log);
        let name = format!("sps-slot-{slot}");
        for (event, found) in self.log.iter_mut().zip(steps) {
            if found != Some(step) {
                continue;
            }
            let value = format!("{name}.efi");
            let default = step == SelectStep::SetDefault;
            let altered = match event {
                Event::Loader { block } => {
                    let mut environment = envblk::parse(&block[..]).unwrap_or_default();
                    let variable = if default { envblk::DEFAULT } else { envblk::ONE_SHOT };
                    let set = environment.set(variable, name.as_bytes()).and_then(|()| environment.render());
                    set.ok().map(|block| Event::Loader { block: Arc::new(block) })
                }
                Event::Variable { name, bytes: Some(_) } => {
                    let bytes = efivar::encode(&value).ok().map(Into::into);
                    Some(Event::Variable { name: name.clone(), bytes })
                }
                Event::EspWrite { name, data, .. } => {
                    let text = loader_conf::with_default(Some(data), &value).ok();
                    text.map(|text| Event::EspWrite { name: name.clone(), offset: 0, data: text.into() })
                }
                _ => None,
            };
            *event = altered.unwrap_or_else(|| event.clone());
        }
    }

    /// Does not sync what `step` does to the ESP.
    pub fn unsynced(&mut self, step: SelectStep) {
        self.leave_out(|found, event| {
            found == Some(step) && matches!(event, Event::EspSync | Event::EspSyncFile { .. })
        });
    }

    /// Writes `loader.conf` before the variable.
    pub fn conf_first(&mut self) {
        let is_variable =
            |event: &Event| matches!(event, Event::Variable { name, .. } if name == efivar::DEFAULT);
        let from = self.log.iter().position(is_variable);
        let to = self.log.iter().position(|event| matches!(event, Event::EspSync));
        if let (Some(from), Some(to)) = (from, to) {
            let variable = self.log.remove(from);
            self.log.insert(to, variable);
        }
    }

    /// Keeps the environment block as it would be if its settings lay across two sectors.
    pub fn across_sectors(&mut self) {
        self.start.loader = across_sectors(&self.start.loader);
        self.finished.loader = across_sectors(&self.finished.loader);
        for event in &mut self.log {
            if let Event::Loader { block } = event {
                *block = Arc::new(across_sectors(block));
            }
        }
    }

    /// Removes the older files of the ESP, and syncs that, before the newer ones are made.
    pub fn removal_first(&mut self) {
        let from = self.log.iter().position(|event| matches!(event, Event::EspRemove { .. }));
        let to = self.log.iter().position(|event| matches!(event, Event::EspCreate { .. }));
        if let (Some(from), Some(to)) = (from, to) {
            let removal: Vec<Event> = self.log.drain(from..).collect();
            self.log.splice(to..to, removal);
        }
    }
}

/// The same settings behind a comment that puts the end of the default five bytes before the end of the first sector.
fn across_sectors(block: &[u8; SIZE]) -> [u8; SIZE] {
    let text = String::from_utf8_lossy(block);
    let signature = text.lines().next().unwrap_or_default();
    let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let known = signature.len() + 1 + settings.first().map_or(0, |line| line.len() + 1);
    let comment = format!("#{}", "-".repeat(507 - 2 - known));
    let lines = [&[signature, comment.as_str()], settings.as_slice()].concat();
    let mut bytes = (lines.join("\n") + "\n").into_bytes();
    bytes.resize(SIZE, b'#');
    bytes.try_into().unwrap_or([0; SIZE])
}
