//! One function per command: ask slotd, make the answer.

mod choose;
mod doctor;
mod install;

use serde_json::{Value, json};
use sps_base::slot::SlotId;

use crate::cli::{Cli, Command, Shell, StateCommand, VerifyArgs};
use crate::client::{Client, Options};
use crate::error::{CtlError, UNEXPECTED};
use crate::follow::{OnInterrupt, follow};
use crate::output::{Style, complain, lines, print};
use crate::render;
use crate::report::{self, Answer};

/// Runs the command and shows its answer; the exit code.
pub fn run(cli: &Cli) -> u8 {
    let answer = answer(cli);
    let text = if cli.json { format!("{:#}\n", answer.document()) } else { answer.text.clone() };
    complain(&answer.complaint(Style::of_stderr()));
    match print(&text) {
        Ok(()) => answer.exit_code(),
        Err(error) => {
            complain(&format!("error: cannot write to standard output: {error}\n"));
            answer.exit_code().max(UNEXPECTED)
        }
    }
}

fn answer(cli: &Cli) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|source| CtlError::System { doing: "cannot start", source })
        .and_then(|runtime| runtime.block_on(dispatch(cli, Style::of_stdout())));
    result.unwrap_or_else(|error| Answer::failure(&error))
}

async fn dispatch(cli: &Cli, style: Style) -> Result<Answer, CtlError> {
    // What the client can refuse itself needs no bus.
    match &cli.command {
        Command::Install(args) => return install::install(cli, args, style).await,
        Command::Doctor => return Ok(doctor::doctor(cli.bus.as_deref(), style).await),
        Command::Completion { shell } => return Ok(completion(*shell)),
        _ => {}
    }
    let client = Client::connect(cli.bus.as_deref()).await?;
    match &cli.command {
        Command::Slots => slots(&client, style).await,
        Command::Status => status(&client, style).await,
        // They need no bus, or not at once, and were run above.
        Command::Install(_) | Command::Doctor | Command::Completion { .. } => Ok(Answer::default()),
        Command::Test(args) => choose::test(&client, args, cli.json, style).await,
        Command::Upgrade(args) => choose::upgrade(&client, args, cli.json, style).await,
        Command::Activate(args) => choose::activate(&client, args).await,
        Command::Deactivate(args) => choose::deactivate(&client, args.slot).await,
        Command::Confirm => choose::confirm(&client).await,
        Command::Reject(args) => choose::reject(&client, &args.reason).await,
        Command::Revert(args) => choose::revert(&client, args, cli.bus.as_deref()).await,
        Command::Notes(args) => Ok(document(args.slot, "notes", client.notes(args.slot).await?, style)),
        Command::News(args) => Ok(document(args.slot, "news", client.news(args.slot).await?, style)),
        Command::Verify(args) => verify(&client, args, cli.json, style).await,
        Command::Delete(args) => delete(&client, args.slot).await,
        Command::Jobs => jobs(&client, style).await,
        Command::Wait(args) => {
            let job = follow(&client, args.job, OnInterrupt::Leave, cli.json).await?;
            Ok(report::ended(&job, style))
        }
        Command::Cancel(args) => cancel(&client, args.job).await,
        Command::Taint => taint(&client, style).await,
        Command::State { command: StateCommand::Show } => show_state(&client, style).await,
        Command::State { command: StateCommand::Reset { reason } } => {
            client.reset_state(reason).await?;
            Ok(Answer::new("the state is fresh\n".to_owned(), "reset", json!({ "reason": reason })))
        }
    }
}

async fn slots(client: &Client, style: Style) -> Result<Answer, CtlError> {
    let slots = client.objects().await?.slots;
    Ok(Answer::new(render::slots(&slots, style), "slots", json!(slots)))
}

async fn jobs(client: &Client, style: Style) -> Result<Answer, CtlError> {
    let jobs = client.objects().await?.jobs;
    Ok(Answer::new(render::jobs(&jobs, style), "jobs", json!(jobs)))
}

async fn taint(client: &Client, style: Style) -> Result<Answer, CtlError> {
    let records = client.taint().await?;
    Ok(Answer::new(render::taint(&records, style), "taint", json!(records)))
}

async fn status(client: &Client, style: Style) -> Result<Answer, CtlError> {
    let summary = client.summary().await?;
    let mut objects = client.objects().await?;
    objects.jobs.retain(|job| !job.is_over());
    let text = render::status(&summary, &objects.slots, &objects.jobs, style);
    let mut answer = Answer::new(text, "status", json!(summary));
    answer.json.insert("slots".to_owned(), json!(objects.slots));
    answer.json.insert("jobs".to_owned(), json!(objects.jobs));
    Ok(answer)
}

/// Notes or news: raw, so that they can be piped into a Markdown viewer, but a terminal is not to obey them.
fn document(slot: SlotId, member: &str, text: String, style: Style) -> Answer {
    let value = if text.is_empty() { Value::Null } else { json!(text) };
    let mut shown = if style.terminal { lines(&text) } else { text };
    if style.terminal && !shown.is_empty() && !shown.ends_with('\n') {
        shown.push('\n');
    }
    let mut answer = Answer::new(shown, member, value);
    answer.json.insert("slot".to_owned(), json!(slot));
    answer
}

async fn verify(client: &Client, args: &VerifyArgs, quiet: bool, style: Style) -> Result<Answer, CtlError> {
    let mut options = Options::new();
    if args.scheduled {
        options.insert("scheduled", true.into());
    }
    let mode = if args.full { "full" } else { "quick" };
    let number = client.verify(args.slot, mode, options).await?;
    if args.detach {
        return Ok(report::detached(&client.job(number).await?));
    }
    Ok(report::ended(&follow(client, number, OnInterrupt::Cancel, quiet).await?, style))
}

async fn delete(client: &Client, slot: SlotId) -> Result<Answer, CtlError> {
    client.delete(slot).await?;
    Ok(Answer::new(format!("slot {slot} is empty now\n"), "deleted", json!({ "slot": slot })))
}

async fn cancel(client: &Client, number: u64) -> Result<Answer, CtlError> {
    client.cancel(number).await?;
    let job = client.job(number).await?;
    Ok(Answer::new(format!("job {number} was asked to stop\n"), "job", json!(job)))
}

async fn show_state(client: &Client, style: Style) -> Result<Answer, CtlError> {
    let (health, text) = client.state().await?;
    let parsed = serde_json::from_str::<Value>(&text).ok();
    let pretty = parsed.as_ref().map_or_else(|| text.clone(), |value| format!("{value:#}"));
    let pretty = if style.terminal { lines(&pretty) } else { pretty };
    let shown = format!("health: {}\n{}\n", crate::output::line(&health), pretty.trim_end());
    let mut answer = Answer::new(shown, "health", json!(health));
    // Text that is no JSON is passed on as it is: it is what a repair starts from.
    let state = parsed.unwrap_or_else(|| if text.is_empty() { Value::Null } else { json!(text) });
    answer.json.insert("state".to_owned(), state);
    Ok(answer)
}

fn completion(shell: Shell) -> Answer {
    let script = shell.script();
    let name = format!("{shell:?}").to_lowercase();
    Answer::new(script.clone(), "completion", json!({ "shell": name, "script": script }))
}
