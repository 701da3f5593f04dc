//! The deadline of a trial, and the one place that makes a failed trial reboot: this program's failure is the failure
//! of `sps-trial.service`, whose `FailureAction=` reboots by force.

use std::path::Path;
use std::time::Duration;

use sps_base::journal;
use tokio::time::{Instant, sleep, timeout};

use super::{HealthError, RETRY, Slotd, text};

/// How a watch over a trial ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// This start is no trial, as far as anybody knows.
    NoTrial,
    /// The firmware was confirmed.
    Confirmed,
    /// The trial has failed, with this reason: the appliance must reboot.
    Failed(String),
}

/// What slotd says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    NoTrial,
    OnTrial,
    Confirmed,
    Rejected,
}

/// Watches until the trial is confirmed, rejected, or `deadline` has passed, counted from now.
///
/// A bus or a slotd that does not answer is asked again until then. If slotd never answered, nobody can confirm
/// anything, but nobody knows either that this is a trial; `marker`, a file that the initrd leaves in one, decides.
pub async fn watch(bus: Option<&str>, deadline: Duration, marker: Option<&Path>) -> Watched {
    let end = Instant::now() + deadline;
    let mut on_trial = false;
    let mut connected: Option<Slotd> = None;
    let mut trouble = String::new();
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left, ask(bus, &mut connected, on_trial)).await {
            Ok(Ok(Answer::NoTrial)) => return Watched::NoTrial,
            Ok(Ok(Answer::Confirmed)) => return Watched::Confirmed,
            Ok(Ok(Answer::Rejected)) => return failed("the firmware was rejected".to_owned()),
            Ok(Ok(Answer::OnTrial)) => on_trial = true,
            Ok(Err(error)) => {
                connected = None;
                let text = error.chain();
                if text != trouble {
                    tracing::warn!("{text}; asking again");
                    trouble = text;
                }
            }
            Err(_) => {}
        }
        sleep(RETRY.min(end.saturating_duration_since(Instant::now()))).await;
    }
    let late = format!("not healthy within {} s", deadline.as_secs());
    if on_trial {
        return reject(bus, &late).await;
    }
    if marker.is_some_and(Path::exists) {
        return failed(format!("{late}, and slotd never answered: {trouble}"));
    }
    tracing::warn!("slotd never answered, and nothing says that this is a trial: {trouble}");
    Watched::NoTrial
}

async fn ask(
    bus: Option<&str>,
    connected: &mut Option<Slotd>,
    on_trial: bool,
) -> Result<Answer, HealthError> {
    let slotd = match connected {
        Some(slotd) => slotd,
        None => connected.insert(Slotd::connect(bus).await?),
    };
    let (trial, confirmed) = (slotd.trial().await?, slotd.confirmed().await?);
    Ok(match (trial, confirmed) {
        (_, true) if on_trial => Answer::Confirmed,
        (false, _) if !on_trial => Answer::NoTrial,
        (false, _) => Answer::Rejected,
        (true, _) if text(&slotd.last_upgrade().await?, "outcome") == "failed" => Answer::Rejected,
        (true, _) => Answer::OnTrial,
    })
}

/// The deadline has passed in a trial. A confirmation that came at the last moment counts; nothing else does.
async fn reject(bus: Option<&str>, reason: &str) -> Watched {
    let told = async {
        let mut connected = None;
        match ask(bus, &mut connected, true).await {
            Ok(Answer::Confirmed) => return true,
            Ok(_) => {}
            Err(error) => tracing::error!("{}", error.chain()),
        }
        if let Some(slotd) = connected
            && let Err(error) = slotd.reject(reason).await
        {
            // The default was never changed: the reboot alone ends the trial.
            tracing::error!("{}", error.chain());
        }
        false
    };
    match timeout(Duration::from_secs(20), told).await {
        Ok(true) => Watched::Confirmed,
        Ok(false) | Err(_) => failed(reason.to_owned()),
    }
}

fn failed(reason: String) -> Watched {
    tracing::error!(
        MESSAGE_ID = journal::TRIAL_TIMEOUT,
        REASON = reason,
        "trial failed: {reason}; rebooting"
    );
    Watched::Failed(reason)
}
