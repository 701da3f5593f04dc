//! What is shown: no input, no output.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sps_base::recovery::Report;
use sps_base::slot::SlotId;
use spsctl::model::{Slot, Summary};

/// What can be done.
pub(crate) const MENU: &str = "
  1  check a slot completely
  2  start a slot once, on trial: restarts the machine
  3  install from a medium (USB stick, disc)
  4  install from this line (a file of known length)
  5  show the log
  6  show everything that is known, and what could be wrong
  7  write a fresh state in place of a lost one
  8  restart
  9  power off
  Enter shows the page again.
";

/// What slotd has told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) summary: Summary,
    pub(crate) slots: Vec<Slot>,
    /// Starts of each slot since its firmware was last healthy.
    pub(crate) boots: BTreeMap<u32, u64>,
    /// What slotd calls its state: valid, lost …
    pub(crate) health: String,
}

/// The text of the page: slotboot's report, `None` where it did not come so far; what slotd says, or why nothing.
pub(crate) fn page(report: Option<&Report>, found: &Result<Found, String>) -> String {
    let mut text = String::from("\n=== SPS recovery: no firmware runs ===\n\n");
    match found {
        Ok(found) => told(found, &mut text),
        Err(why) => {
            let _ = writeln!(text, "slotd does not answer, so the slots cannot be told: {why}");
        }
    }
    text.push('\n');
    let _ = match report {
        None => writeln!(text, "Nothing was put in order at this start; the log may say why."),
        Some(Report { restarts: Some(slot), .. }) => writeln!(text, "A restart starts slot {slot}."),
        Some(report) => writeln!(text, "Nothing was started by itself: {}.", report.why),
    };
    if let Some(report) = report.filter(|report| report.starts > 1) {
        let _ = writeln!(text, "Recovery was started {} times in a row.", report.starts);
    }
    for warning in report.filter(|_| found.is_err()).map_or(&[][..], |report| &report.warnings) {
        let _ = writeln!(text, "! {warning}");
    }
    text
}

fn told(found: &Found, text: &mut String) {
    let _ = match &found.summary.last_upgrade {
        Some(last) => {
            let to = last.version.as_deref().unwrap_or("?");
            let from = last.from_version.as_deref().filter(|from| !from.is_empty());
            let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
            let reason = last.reason.as_deref().filter(|reason| !reason.is_empty());
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            writeln!(text, "Last upgrade{from} to {to}: {}{reason}.", last.outcome)
        }
        None => writeln!(text, "No upgrade is on record."),
    };
    if found.health != "valid" {
        let _ = writeln!(text, "The durable state is {}.", found.health);
    }
    for slot in found.slots.iter().filter(|slot| slot.id != 0) {
        let _ = writeln!(text, "Slot {}: {}", slot.id, line(slot, found));
    }
    for warning in &found.summary.warnings {
        let _ = writeln!(text, "! {warning}");
    }
}

/// A slot in one line.
fn line(slot: &Slot, found: &Found) -> String {
    let version = slot.version.as_deref().filter(|version| !version.is_empty());
    let reason = slot.reason.as_deref().filter(|reason| !reason.is_empty());
    let why = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let state = match slot.state.as_str() {
        "verified" => "sound, as far as it was looked at".to_owned(),
        "empty" => "not sound: empty".to_owned(),
        other => format!("not sound: {other}{why}"),
    };
    let mut line = version.map_or(state.clone(), |version| format!("{version}, {state}"));
    if found.summary.default == Some(slot.id) {
        line.push_str("; the default");
    }
    if let Some(count) = found.boots.get(&slot.id).filter(|count| **count > 0) {
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
        let _ = write!(line, "; started {times} without a sign of health");
    }
    line
}

/// What is said before the machine restarts by itself.
pub(crate) fn restarts(slot: SlotId, found: &Result<Found, String>, seconds: u64) -> String {
    let slots = found.as_ref().map_or(&[][..], |found| &found.slots);
    let version =
        slots.iter().find(|known| known.id == slot.get()).and_then(|known| known.version.as_deref());
    let version = version.map(|version| format!(" ({version})")).unwrap_or_default();
    format!("Slot {slot}{version} is sound and is started again in {seconds} s; press Enter to stay here.\n")
}

/// Starts of each slot, from the text of slotd's state.
pub(crate) fn boots(state: &str) -> BTreeMap<u32, u64> {
    let state: serde_json::Value = serde_json::from_str(state).unwrap_or_default();
    let counted = state["boots"].as_object().into_iter().flatten();
    counted.filter_map(|(slot, count)| Some((slot.parse().ok()?, count.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let slot = |id, state: &str, reason: Option<&str>| Slot {
            id,
            state: state.to_owned(),
            version: (state != "empty").then(|| format!("8.0.{id}")),
            reason: reason.map(str::to_owned),
            ..Slot::default()
        };
        let last_upgrade = spsctl::model::LastUpgrade {
            outcome: "failed".into(),
            version: Some("8.0.2".into()),
            from_version: Some("8.0.1".into()),
            reason: Some("it was not started".into()),
            ..Default::default()
        };
        Found {
            summary: Summary { default: Some(1), last_upgrade: Some(last_upgrade), ..Summary::default() },
            slots: vec![
                slot(0, "verified", None),
                slot(1, "verified", None),
                slot(2, "bad", Some("its root is damaged")),
                slot(3, "empty", None),
            ],
            boots: boots(r#"{"boots":{"0":2,"1":3,"x":1,"2":"?"}}"#),
            health: "valid".into(),
        }
    }

    #[test]
    fn the_page_says_what_happened_and_names_every_slot() {
        let report = Report { starts: 2, why: "slot 1 is spent".into(), ..Report::default() };
        let text = page(Some(&report), &Ok(found()));
        for part in [
            "Last upgrade from 8.0.1 to 8.0.2: failed: it was not started.\n",
            "Slot 1: 8.0.1, sound, as far as it was looked at; the default; started 3 times without a sign of health\n",
            "Slot 2: 8.0.2, not sound: bad (its root is damaged)\n",
            "Slot 3: not sound: empty\n",
            "Nothing was started by itself: slot 1 is spent.\n",
            "Recovery was started 2 times in a row.\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("Slot 0"), "{text}");
        let lost = Found { health: "lost".into(), ..Found::default() };
        let text = page(None, &Ok(lost));
        assert!(text.contains("The durable state is lost.\n") && text.contains("No upgrade"), "{text}");
        assert!(text.contains("Nothing was put in order"), "{text}");
    }

    #[test]
    fn without_slotd_it_says_what_slotboot_knows() {
        let warnings = vec!["The state is lost.".to_owned()];
        let report = Report { why: "no default".into(), warnings, ..Report::default() };
        let text = page(Some(&report), &Err("nobody there".into()));
        for part in
            ["slotd does not answer", "nobody there", "by itself: no default.", "! The state is lost."]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn a_restart_is_announced() {
        let slot = SlotId::new(1).unwrap();
        let said = restarts(slot, &Ok(found()), 15);
        assert!(said.contains("Slot 1 (8.0.1) is sound and is started again in 15 s"), "{said}");
        assert!(restarts(slot, &Err(String::new()), 15).contains("Slot 1 is sound"));
        assert_eq!(boots("no json"), BTreeMap::new());
    }
}
