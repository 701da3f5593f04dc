//! `doctor`: asks everything that can be read.

use serde_json::json;

use crate::client::Client;
use crate::doctor::{self, Check, Findings};
use crate::error::CtlError;
use crate::output::Style;
use crate::report::Answer;

/// Never an error of its own: what cannot be read is what it is there to tell.
pub(super) async fn doctor(bus: Option<&str>, style: Style) -> Answer {
    let findings = match Client::connect(bus).await {
        Ok(client) => Findings {
            reached: Ok(()),
            state: client.state().await.map(|(health, _)| health),
            summary: client.summary().await,
            objects: client.objects().await,
            polkit: client.has_polkit().await,
        },
        Err(error) => Findings::unreachable(error),
    };
    let checks = doctor::judge(&findings);
    let failed = checks.iter().filter(|check| check.result == doctor::Verdict::Fail).count();
    let answer = Answer::new(doctor::render(&checks, style), "checks", json!(checks));
    if failed == 0 { answer } else { answer.with_error(&unhealthy(failed, &checks)) }
}

fn unhealthy(failed: usize, checks: &[Check]) -> CtlError {
    CtlError::Unhealthy { failed, checks: checks.len() }
}
