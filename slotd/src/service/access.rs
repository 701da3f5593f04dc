//! Who may do what: root everything, anybody else what polkit says. No polkit, no answer, no right.

use std::collections::HashMap;
use std::time::Duration;

use sps_base::error::{CallError, ErrorKind};
use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus::proxy::CacheProperties;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// How long polkit may take when it may ask a person.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
/// How long polkit may take on its own; the bus may have to start it first.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);

/// What a rule of polkit may look at beside the action: `action.lookup("slot")`.
pub(crate) type Details = HashMap<&'static str, String>;

/// Lets the caller of `header` do `action`, or says why not. Answers who it is, for the record: user and bus name.
pub(crate) async fn authorize(
    connection: &Connection,
    header: &Header<'_>,
    action: &'static str,
    details: Details,
) -> Result<String, CallError> {
    let sender = header.sender().map_or("an unnamed caller", |name| name.as_str());
    let refuse = |why: &str| {
        tracing::warn!(sender, action, why, "call refused");
        Err(CallError::new(ErrorKind::NotAuthorized, format!("{action} is not allowed to you: {why}")))
    };
    let who = match caller(connection, header).await {
        Ok(Some(0)) => return Ok(format!("user 0 ({sender})")),
        Ok(Some(user)) => format!("user {user} ({sender})"),
        Ok(None) => sender.to_owned(),
        Err(error) => return refuse(&format!("the bus does not say who you are ({error})")),
    };
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let deadline = if interactive { ASK_DEADLINE } else { CHECK_DEADLINE };
    match tokio::time::timeout(deadline, ask_polkit(connection, header, action, &details, interactive)).await
    {
        Ok(Ok(Answer::Allowed)) => Ok(who),
        Ok(Ok(Answer::Challenge)) => refuse("polkit wants authentication; ask interactively, or as root"),
        Ok(Ok(Answer::Denied)) => refuse("polkit denies it"),
        Ok(Err(error)) => refuse(&format!("polkit is not there, so only root may ({error})")),
        Err(_) => refuse("polkit does not answer, so only root may"),
    }
}

/// User of the connection that sent the message, as the bus knows it.
async fn caller(connection: &Connection, header: &Header<'_>) -> Result<Option<u32>, CallError> {
    let failed = |error: &dyn std::fmt::Display| CallError::new(ErrorKind::NotAuthorized, error.to_string());
    let sender = header.sender().ok_or_else(|| failed(&"no sender"))?.to_owned();
    let bus = zbus::fdo::DBusProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|error| failed(&error))?;
    let known = bus.get_connection_credentials(sender.into()).await.map_err(|error| failed(&error))?;
    Ok(known.unix_user_id())
}

enum Answer {
    Allowed,
    Challenge,
    Denied,
}

async fn ask_polkit(
    connection: &Connection,
    header: &Header<'_>,
    action: &str,
    details: &Details,
    interactive: bool,
) -> Result<Answer, CallError> {
    let failed = |error: &dyn std::fmt::Display| CallError::new(ErrorKind::NotAuthorized, error.to_string());
    let subject = Subject::new_for_message_header(header).map_err(|error| failed(&error))?;
    let polkit = AuthorityProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|error| failed(&error))?;
    let details: HashMap<&str, &str> = details.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let flags = if interactive {
        CheckAuthorizationFlags::ALLOW_USER_INTERACTION
    } else {
        CheckAuthorizationFlags::empty()
    };
    let answer = polkit
        .check_authorization(&subject, action, &details, flags, "")
        .await
        .map_err(|error| failed(&error))?;
    Ok(match (answer.is_authorized, answer.is_challenge) {
        (true, _) => Answer::Allowed,
        (false, true) => Answer::Challenge,
        (false, false) => Answer::Denied,
    })
}
