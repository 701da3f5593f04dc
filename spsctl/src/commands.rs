//! One function per command: ask slotd, make the answer.

use serde_json::{Value, json};
use sps_base::slot::SlotId;

use crate::cli::{Cli, Command, InstallArgs, StateCommand, VerifyArgs};
use crate::client::{Client, Options};
use crate::error::{CtlError, UNEXPECTED};
use crate::follow::{OnInterrupt, follow};
use crate::output::{Style, complain, lines, print};
use crate::report::{self, Answer};
use crate::{install, render};

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
    if let Command::Install(args) = &cli.command {
        return run_install(cli, args, style).await;
    }
    let client = Client::connect(cli.bus.as_deref()).await?;
    match &cli.command {
        Command::Slots => slots(&client, style).await,
        Command::Status => status(&client, style).await,
        Command::Install(args) => run_install(cli, args, style).await,
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

async fn run_install(cli: &Cli, args: &InstallArgs, style: Style) -> Result<Answer, CtlError> {
    let image = install::open(&args.file)?;
    let client = Client::connect(cli.bus.as_deref()).await?;
    let transaction = install::transaction(args, jiff::Timestamp::now(), std::process::id());
    let number = client.install(image, install::options(args, &transaction)).await?;
    if args.detach {
        return Ok(report::detached(&client.job(number).await?));
    }
    let result = follow(&client, number, OnInterrupt::Cancel, cli.json).await;
    let (mut answer, job) = match &result {
        Ok(job) => (report::ended(job, style), Some(job)),
        Err(error) => (Answer::failure(error), None),
    };
    let resumable = match &result {
        Ok(job) => job.problem().is_some() && job.next_offset > 0,
        Err(error) => matches!(error, CtlError::JobLost { .. }),
    };
    if resumable {
        let command = install::resume_command(args, cli.bus.as_deref(), &transaction, job);
        let offset = install::resume_offset(args, job);
        let resume = json!({ "transaction_id": transaction, "offset": offset, "command": command });
        answer.json.insert("resume".to_owned(), resume);
        answer = answer.with_hint(&report::resume_hint(&command, offset));
    }
    Ok(answer)
}
