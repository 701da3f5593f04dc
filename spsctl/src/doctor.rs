//! `doctor`: whether upgrades would work here, judged from what slotd tells. Values in, text out.

use serde::Serialize;

use crate::client::Objects;
use crate::error::CtlError;
use crate::model::{Slot, Summary};
use crate::output::{GREEN, RED, Style, YELLOW, line};
use crate::render::upgrade;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// To be looked at.
    Warn,
    /// Something has to be done.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub result: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do; none when there is nothing to do.
    pub next: Option<String>,
}

/// Everything that was read, or why it could not be.
#[derive(Debug)]
pub struct Findings {
    /// Whether slotd is there.
    pub reached: Result<(), CtlError>,
    /// How slotd found its state.
    pub state: Result<String, CtlError>,
    /// The manager's properties.
    pub summary: Result<Summary, CtlError>,
    /// Slots and jobs.
    pub objects: Result<Objects, CtlError>,
    /// Whether polkit is on the bus.
    pub polkit: Result<bool, CtlError>,
}

impl Findings {
    /// Where nothing could be asked.
    pub fn unreachable(error: CtlError) -> Self {
        let not_asked = || CtlError::Usage("slotd was not asked".to_owned());
        Self {
            reached: Err(error),
            state: Err(not_asked()),
            summary: Err(not_asked()),
            objects: Err(not_asked()),
            polkit: Err(not_asked()),
        }
    }
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, result: Verdict::Ok, detail: detail.into(), next: None }
}

fn warn(name: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Check {
    Check { name, result: Verdict::Warn, detail: detail.into(), next: Some(next.into()) }
}

fn fail(name: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Check {
    Check { result: Verdict::Fail, ..warn(name, detail, next) }
}

/// All checks, in the order in which they are worth repairing.
pub fn judge(findings: &Findings) -> Vec<Check> {
    if let Err(error) = &findings.reached {
        let next = "systemctl status dbus slotd; with --bus, check the address";
        return vec![fail("slotd", error.full_message(), next)];
    }
    let mut checks = vec![ok("slotd", "answers on the bus")];
    let unread = |name, error: &CtlError| fail(name, error.full_message(), "journalctl -u slotd");
    checks.push(match &findings.state {
        Ok(health) => state(health),
        Err(error) => unread("state", error),
    });
    match &findings.summary {
        Ok(summary) => {
            checks.extend([loader(summary), revocation(summary), readback(summary)]);
            checks.extend([running(summary), next_start(summary), last_upgrade(summary)]);
            let slots = findings.objects.as_ref().map(|objects| objects.slots.as_slice()).unwrap_or_default();
            checks.push(fallback(summary, slots));
            match &findings.objects {
                Ok(_) => checks.extend(bad_slots(summary, slots)),
                Err(error) => checks.push(unread("slots", error)),
            }
            checks.extend(warnings(summary));
        }
        Err(error) => checks.push(unread("properties", error)),
    }
    checks.push(match &findings.polkit {
        Ok(true) => ok("polkit", "on the bus"),
        Ok(false) => warn("polkit", "not on the bus, so root alone may change anything", "install polkitd"),
        Err(error) => unread("polkit", error),
    });
    checks
}

fn state(health: &str) -> Check {
    if health == "valid" {
        ok("state", "valid")
    } else {
        fail("state", health, "look at it with spsctl state show, then spsctl state reset --reason TEXT")
    }
}

fn loader(summary: &Summary) -> Check {
    match summary.loader.as_deref() {
        Some(loader) if loader != "none" => ok("boot loader", format!("{loader} is driven")),
        _ => fail(
            "boot loader",
            "none is driven, so no firmware can be activated",
            "set it in slotd's configuration; journalctl -u slotd says what was tried",
        ),
    }
}

fn revocation(summary: &Summary) -> Check {
    match summary.revocation.as_deref() {
        Some("checked") => ok("revocation", "signers are checked against the CRL"),
        _ => warn(
            "revocation",
            "withdrawn signing keys would not be noticed",
            "put a CRL (*.crl) into the keyring directory of the firmware",
        ),
    }
}

fn readback(summary: &Summary) -> Check {
    match summary.readback.as_deref() {
        Some("direct") => ok("read-back", "from the medium"),
        other => warn(
            "read-back",
            format!("{}: reading back does not prove what the media stored", other.unwrap_or("unknown")),
            "use slots on media that allow direct reads",
        ),
    }
}

/// The running firmware is the default and confirmed, or on its way there.
fn running(summary: &Summary) -> Check {
    let name = "running";
    let Some(booted) = summary.booted else {
        let next = "boot a firmware, or install one";
        return warn(name, "no firmware from a slot (recovery, or not an appliance)", next);
    };
    if summary.trial {
        let next = "wait for the health checks: journalctl -u sps-health";
        return warn(name, format!("slot {booted} is in its trial and not confirmed yet"), next);
    }
    if summary.default != Some(booted) {
        let default = summary.default.map_or_else(|| "no slot".to_owned(), |slot| format!("slot {slot}"));
        let next = "restart to run the default; journalctl -b tells why this one was started";
        return warn(name, format!("slot {booted}, but {default} is the default"), next);
    }
    if summary.confirmed {
        return ok(name, format!("slot {booted}, the default, confirmed"));
    }
    let next = "journalctl -u sps-health; spsctl confirm overrides the checks";
    warn(name, format!("slot {booted} is the default and has not proven itself healthy in this boot"), next)
}

fn next_start(summary: &Summary) -> Check {
    let name = "next start";
    match (summary.after_reboot, summary.default) {
        (None, _) => fail(
            name,
            "no slot that slotd knows",
            "spsctl slots shows what is there; install a firmware or activate one before you restart",
        ),
        (Some(next), default) if default != Some(next) => warn(
            name,
            format!("slot {next} is selected for one trial"),
            format!("restart to begin it, or take it back with spsctl deactivate {next}"),
        ),
        (Some(next), _) => ok(name, format!("slot {next}, the default")),
    }
}

fn last_upgrade(summary: &Summary) -> Check {
    let name = "last upgrade";
    match &summary.last_upgrade {
        None => ok(name, "there was none"),
        Some(last) if last.outcome == "failed" => {
            let slot = last.slot.map_or_else(|| "N".to_owned(), |slot| slot.to_string());
            let next = format!(
                "look at journalctl -b -1 (docs/troubleshooting.md), remove the cause, then spsctl upgrade {slot} --again"
            );
            warn(name, upgrade(last, Style::PLAIN), next)
        }
        Some(last) => ok(name, upgrade(last, Style::PLAIN)),
    }
}

fn fallback(summary: &Summary, slots: &[Slot]) -> Check {
    let name = "fallback";
    match summary.fallback {
        None => warn(name, "no firmware to go back to", "install a second one: spsctl install"),
        Some(id) if slots.iter().any(|slot| slot.id == id && slot.state != "verified") => {
            let next = format!("install it again: spsctl install --slot {id} --replace");
            fail(name, format!("slot {id} is not verified"), next)
        }
        Some(id) => ok(name, format!("slot {id}")),
    }
}

/// A check for each bad slot; one in use is worse than one that is not.
fn bad_slots(summary: &Summary, slots: &[Slot]) -> Vec<Check> {
    let name = "slots";
    let used = [summary.booted, summary.default, summary.after_reboot, summary.fallback];
    let bad: Vec<_> = slots.iter().filter(|slot| slot.state == "bad").collect();
    if bad.is_empty() {
        return vec![ok(name, format!("none of {} is bad", slots.len()))];
    }
    let judge = |slot: &&Slot| {
        let detail =
            format!("slot {} is bad: {}", slot.id, slot.reason.as_deref().unwrap_or("no reason given"));
        let next = format!(
            "spsctl verify {0} --full, then install its firmware again or spsctl delete {0}",
            slot.id
        );
        if used.contains(&Some(slot.id)) { fail(name, detail, next) } else { warn(name, detail, next) }
    };
    bad.iter().map(judge).collect()
}

fn warnings(summary: &Summary) -> Vec<Check> {
    if summary.warnings.is_empty() {
        return vec![ok("warnings", "none")];
    }
    let next = "journalctl -u slotd";
    summary.warnings.iter().map(|warning| warn("warnings", warning.as_str(), next)).collect()
}

/// One line a check.
pub fn render(checks: &[Check], style: Style) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let (word, colour) = match check.result {
            Verdict::Ok => ("ok  ", GREEN),
            Verdict::Warn => ("warn", YELLOW),
            Verdict::Fail => ("fail", RED),
        };
        let next = check.next.as_ref().map(|next| format!(" -> {}", line(next))).unwrap_or_default();
        let detail = line(&check.detail);
        out = format!("{out}{}  {:width$}  {detail}{next}\n", style.paint(colour, word), check.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LastUpgrade;

    fn sound() -> Findings {
        let slot = |id: u32| Slot { id, state: "verified".into(), ..Slot::default() };
        Findings {
            reached: Ok(()),
            state: Ok("valid".into()),
            summary: Ok(Summary {
                booted: Some(1),
                default: Some(1),
                after_reboot: Some(1),
                confirmed: true,
                fallback: Some(2),
                loader: Some("grub".into()),
                readback: Some("direct".into()),
                revocation: Some("checked".into()),
                ..Summary::default()
            }),
            objects: Ok(Objects { slots: vec![slot(1), slot(2)], jobs: Vec::new() }),
            polkit: Ok(true),
        }
    }

    /// Name and result of what is not ok after `change`.
    fn found(change: impl FnOnce(&mut Findings, &mut Summary)) -> Vec<(&'static str, Verdict)> {
        let mut findings = sound();
        let mut summary = findings.summary.as_ref().unwrap().clone();
        change(&mut findings, &mut summary);
        if findings.summary.is_ok() {
            findings.summary = Ok(summary);
        }
        let checks = judge(&findings);
        for check in &checks {
            assert_eq!(check.result == Verdict::Ok, check.next.is_none(), "{check:?}");
        }
        let others = checks.iter().filter(|check| check.result != Verdict::Ok);
        others.map(|check| (check.name, check.result)).collect()
    }

    #[test]
    fn sound_appliance_has_nothing_but_ok() {
        assert_eq!(found(|_, _| {}), []);
        assert_eq!(judge(&sound()).len(), 12);
    }

    #[test]
    fn each_trouble_is_found_and_weighed() {
        use Verdict::{Fail, Warn};
        let refused = || Err(CtlError::Usage("x".into()));
        assert_eq!(found(|f, _| f.state = Ok("lost: both records".into())), [("state", Fail)]);
        assert_eq!(found(|f, _| f.state = Err(CtlError::Usage("x".into()))), [("state", Fail)]);
        assert_eq!(found(|f, _| f.polkit = Ok(false)), [("polkit", Warn)]);
        assert_eq!(found(|f, _| f.summary = Err(CtlError::Usage("x".into()))), [("properties", Fail)]);
        assert_eq!(found(|f, _| f.objects = Err(CtlError::Usage("x".into()))), [("slots", Fail)]);
        assert_eq!(found(|_, s| s.loader = Some("none".into())), [("boot loader", Fail)]);
        assert_eq!(found(|_, s| s.revocation = Some("none".into())), [("revocation", Warn)]);
        assert_eq!(found(|_, s| s.readback = Some("cached".into())), [("read-back", Warn)]);
        assert_eq!(found(|_, s| s.booted = None), [("running", Warn)]);
        assert_eq!(found(|_, s| s.trial = true), [("running", Warn)]);
        assert_eq!(found(|_, s| s.confirmed = false), [("running", Warn)]);
        assert_eq!(found(|_, s| s.booted = Some(2)), [("running", Warn)]);
        assert_eq!(found(|_, s| s.after_reboot = Some(2)), [("next start", Warn)]);
        assert_eq!(found(|_, s| s.after_reboot = None), [("next start", Fail)]);
        assert_eq!(found(|_, s| s.fallback = None), [("fallback", Warn)]);
        assert_eq!(found(|_, s| s.warnings = vec!["a".into(), "b".into()]), [("warnings", Warn); 2]);
        let failed = LastUpgrade { outcome: "failed".into(), ..LastUpgrade::default() };
        assert_eq!(found(|_, s| s.last_upgrade = Some(failed)), [("last upgrade", Warn)]);
        assert_eq!(found(|f, _| f.reached = refused()), [("slotd", Fail)]);
    }

    #[test]
    fn bad_slot_in_use_is_worse_than_an_idle_one() {
        let bad = |f: &mut Findings| {
            f.objects.as_mut().unwrap().slots.push(Slot { id: 3, state: "bad".into(), ..Slot::default() });
        };
        assert_eq!(found(|f, _| bad(f)), [("slots", Verdict::Warn)]);
        let both = [("fallback", Verdict::Fail), ("slots", Verdict::Fail)];
        assert_eq!(
            found(|f, s| {
                bad(f);
                s.fallback = Some(3);
            }),
            both
        );
    }

    #[test]
    fn lines_are_aligned_and_cannot_be_forged() {
        let checks = [ok("state", "valid"), warn("warnings", "a\nok    b\x1b", "look")];
        assert_eq!(
            render(&checks, Style::PLAIN),
            "ok    state     valid\nwarn  warnings  a\\nok    b\\u{1b} -> look\n"
        );
    }
}
