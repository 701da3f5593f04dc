//! The commands that choose the firmware: test, upgrade, activate, deactivate, confirm, reject and revert.

use serde_json::json;
use sps_base::error::ErrorKind;
use sps_base::slot::SlotId;

use crate::cli::{ActivateArgs, RevertArgs, TestArgs, UpgradeArgs};
use crate::client::{Client, Options};
use crate::error::CtlError;
use crate::follow::{OnInterrupt, follow};
use crate::install::quote;
use crate::output::{Style, line};
use crate::report::{self, Answer};

const LATER: &str = "it starts at the next reboot, for one trial";
const NOW: &str = "the appliance restarts into it now, for one trial";

pub(super) async fn test(
    client: &Client,
    args: &TestArgs,
    quiet: bool,
    style: Style,
) -> Result<Answer, CtlError> {
    let mut options = Options::new();
    if args.again {
        options.insert("again", true.into());
    }
    let number = client.test(args.slot, options).await?;
    Ok(report::ended(&follow(client, number, OnInterrupt::Cancel, quiet).await?, style))
}

pub(super) async fn upgrade(
    client: &Client,
    args: &UpgradeArgs,
    quiet: bool,
    style: Style,
) -> Result<Answer, CtlError> {
    let tested = test(client, &TestArgs { slot: args.slot, again: args.again }, quiet, style).await?;
    if tested.error.is_some() {
        return Ok(tested);
    }
    if let Err(error) = client.activate(args.slot, &args.message).await {
        return Ok(tested.with_error(&error));
    }
    let mut answer = activated(tested, args.slot, &args.message);
    restart(client, args.reboot, &mut answer).await;
    Ok(answer)
}

pub(super) async fn activate(client: &Client, args: &ActivateArgs) -> Result<Answer, CtlError> {
    client.activate(args.slot, &args.message).await?;
    let mut answer = activated(Answer::default(), args.slot, &args.message);
    answer.text = format!("{}; {LATER}\n", answer.text);
    Ok(answer)
}

fn activated(mut answer: Answer, slot: SlotId, message: &str) -> Answer {
    answer.text = format!("{}slot {slot} is selected", answer.text);
    let message = Some(message).filter(|message| !message.is_empty());
    answer.json.insert("activated".to_owned(), json!({ "slot": slot, "message": message }));
    answer
}

/// Ends the sentence that says what is selected, and restarts the appliance where that was asked for.
async fn restart(client: &Client, wanted: bool, answer: &mut Answer) {
    let result = if wanted { client.reboot().await } else { Ok(()) };
    let how = if wanted && result.is_ok() { NOW } else { LATER };
    answer.text = format!("{}; {how}\n", answer.text);
    answer.json.insert("rebooting".to_owned(), json!(wanted && result.is_ok()));
    if let Err(error) = result {
        *answer = std::mem::take(answer).with_error(&error);
    }
}

pub(super) async fn deactivate(client: &Client, slot: SlotId) -> Result<Answer, CtlError> {
    client.deactivate(slot).await?;
    let text = format!("slot {slot} is no longer selected; the default starts at the next reboot\n");
    Ok(Answer::new(text, "deactivated", json!({ "slot": slot })))
}

pub(super) async fn confirm(client: &Client) -> Result<Answer, CtlError> {
    client.confirm().await?;
    Ok(Answer::new("the running firmware is confirmed\n".to_owned(), "confirmed", json!(true)))
}

pub(super) async fn reject(client: &Client, reason: &str) -> Result<Answer, CtlError> {
    client.reject(reason).await?;
    let text = "the trial has failed; the default starts at the next reboot\n".to_owned();
    Ok(Answer::new(text, "rejected", json!({ "reason": reason })))
}

pub(super) async fn revert(
    client: &Client,
    args: &RevertArgs,
    bus: Option<&str>,
) -> Result<Answer, CtlError> {
    let mut options = Options::new();
    if let Some(slot) = args.slot {
        options.insert("slot", slot.get().into());
    }
    if let Some(date) = &args.accept_config {
        options.insert("accept_config", date.as_str().into());
    }
    if let Err(refusal) = client.revert(&args.reason, options).await {
        return Err(with_date(client, args, bus, refusal).await);
    }
    // What came of it is asked for; that it was done is known anyway.
    let slot = match args.slot {
        Some(slot) => Some(slot.get()),
        None => client.summary().await.ok().and_then(|summary| summary.after_reboot),
    };
    let words = slot.map_or_else(|| "the earlier firmware".to_owned(), |slot| format!("slot {slot}"));
    let reverted = json!({ "slot": slot, "reason": args.reason, "accept_config": args.accept_config });
    let mut answer = Answer::new(format!("{words} is selected"), "reverted", reverted);
    restart(client, args.reboot, &mut answer).await;
    Ok(answer)
}

/// A refusal because the date of the configuration is missing or another one: with the command that names it.
async fn with_date(client: &Client, args: &RevertArgs, bus: Option<&str>, refusal: CtlError) -> CtlError {
    let CtlError::Refused { kind: ErrorKind::InvalidArgument, message } = &refusal else { return refusal };
    // Whoever cannot be asked now gives slotd's own words alone.
    let date = configuration(client, args.slot).await.ok().flatten();
    match date.filter(|date| args.accept_config.as_ref() != Some(date)) {
        Some(date) => CtlError::Refused {
            kind: ErrorKind::InvalidArgument,
            message: format!(
                "{}; to accept that configuration, run: {}",
                line(message).trim_end_matches('.'),
                revert_command(args, bus, &date)
            ),
        },
        None => refusal,
    }
}

/// The date of the configuration that would come back.
async fn configuration(client: &Client, slot: Option<SlotId>) -> Result<Option<String>, CtlError> {
    let target = match slot {
        Some(slot) => Some(slot.get()),
        None => client.summary().await?.fallback,
    };
    let slots = client.objects().await?.slots;
    Ok(slots.into_iter().find(|slot| Some(slot.id) == target).and_then(|slot| slot.configuration))
}

fn revert_command(args: &RevertArgs, bus: Option<&str>, date: &str) -> String {
    let mut words = vec!["spsctl".to_owned()];
    if let Some(bus) = bus {
        words.extend(["--bus".to_owned(), quote(bus)]);
    }
    words.extend(["revert".to_owned(), "--reason".to_owned(), quote(&args.reason)]);
    if let Some(slot) = args.slot {
        words.extend(["--slot".to_owned(), slot.to_string()]);
    }
    words.extend(["--accept-config".to_owned(), quote(date)]);
    if args.reboot {
        words.push("--reboot".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn command_repeats_everything_that_was_said() {
        let line = ["spsctl", "revert", "--reason", "it's slow", "--slot", "2", "--reboot"];
        let crate::cli::Command::Revert(args) = crate::cli::Cli::try_parse_from(line).unwrap().command else {
            panic!("not a revert")
        };
        assert_eq!(
            revert_command(&args, Some("unix:path=/run/x"), "2026-05-28T20:26:40Z"),
            r"spsctl --bus unix:path=/run/x revert --reason 'it'\''s slow' --slot 2 --accept-config 2026-05-28T20:26:40Z --reboot"
        );
    }
}
