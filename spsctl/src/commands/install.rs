//! `install`: from a file, a pipe or a URL.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use crate::cli::{Cli, InstallArgs};
use crate::client::Client;
use crate::download::{Download, DownloadError, End, Environment, Server};
use crate::error::CtlError;
use crate::follow::{OnInterrupt, follow, follow_expecting};
use crate::install;
use crate::model::Job;
use crate::output::{Style, complain, line};
use crate::render::size;
use crate::report::{self, Answer};

pub(super) async fn install(cli: &Cli, args: &InstallArgs, style: Style) -> Result<Answer, CtlError> {
    let transaction = install::transaction(args, jiff::Timestamp::now(), std::process::id());
    let options = install::options(args, &transaction);
    let (result, download) = if let Some(url) = install::url(args)? {
        let server = Server::new(url, &args.download, &Environment::of_process())?;
        let client = Client::connect(cli.bus.as_deref()).await?;
        // Nothing has begun when the server does not have it.
        let download = Download::open(server, args.offset.unwrap_or(0))?;
        let total = download.total();
        let (image, outcome) = hand_on(download, cli.json)?;
        let number = client.install(image, options).await?;
        let result = follow_expecting(&client, number, OnInterrupt::Cancel, cli.json, total).await;
        (result, outcome.try_recv().ok().and_then(Result::err))
    } else {
        let image = install::open(&args.file)?;
        let client = Client::connect(cli.bus.as_deref()).await?;
        let number = client.install(image, options).await?;
        if args.detach {
            return Ok(report::detached(&client.job(number).await?));
        }
        (follow(&client, number, OnInterrupt::Cancel, cli.json).await, None)
    };
    Ok(answer(cli, args, &transaction, &result, download, style))
}

/// What came of it, and how to go on where it can go on.
fn answer(
    cli: &Cli,
    args: &InstallArgs,
    transaction: &str,
    result: &Result<Job, CtlError>,
    download: Option<DownloadError>,
    style: Style,
) -> Answer {
    let resumable = match result {
        Ok(job) => job.problem().is_some() && job.next_offset > 0,
        // The download of a URL ends with this process.
        Err(CtlError::Interrupted { .. }) => install::url(args).is_ok_and(|url| url.is_some()),
        Err(error) => matches!(error, CtlError::JobLost { .. }),
    };
    let mut answer = match (result, download) {
        // slotd saw an image that ends too early; this is why.
        (Ok(job), Some(error)) if job.problem().is_some() => {
            report::ended(job, style).with_error(&CtlError::Download(error))
        }
        (Ok(job), _) => report::ended(job, style),
        (Err(error), _) => Answer::failure(error),
    };
    if resumable {
        let job = result.as_ref().ok();
        let command = install::resume_command(args, cli.bus.as_deref(), transaction, job);
        let offset = install::resume_offset(args, job);
        let resume = json!({ "transaction_id": transaction, "offset": offset, "command": command });
        answer.json.insert("resume".to_owned(), resume);
        answer = answer.with_hint(&report::resume_hint(&command, offset));
    }
    answer
}

/// Starts the thread that downloads into a pipe: the end that slotd reads, and how it ended.
///
/// The outcome is there before the pipe ends, so whoever sees the end finds out why.
fn hand_on(
    download: Download,
    quiet: bool,
) -> Result<(OwnedFd, Receiver<Result<End, DownloadError>>), CtlError> {
    let failed = |source| CtlError::System { doing: "cannot start the download", source };
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    let (report, outcome) = channel();
    if let (false, Some(total)) = (quiet, download.total()) {
        complain(&format!("the image has {}\n", size(total)));
    }
    let tell = move |text: &str| {
        if !quiet {
            complain(&format!("{}{}\n", Style::of_stderr().new_line(), line(text)));
        }
    };
    let work = move || {
        // Nobody listens when the install ended first.
        let _ = report.send(download.pump(&mut writer, &tell));
        drop(writer);
    };
    std::thread::Builder::new().name("download".to_owned()).spawn(work).map_err(failed)?;
    Ok((reader.into(), outcome))
}
