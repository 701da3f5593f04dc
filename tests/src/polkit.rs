//! A stand-in for polkit on a private bus: answers every question the same way and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use zbus::interface;
use zbus::wire::OwnedVariant;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Authorized.
    Allow,
    /// Not authorized.
    Deny,
    /// Would be, after authentication.
    Challenge,
    /// No answer, ever.
    Silence,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Action id.
    pub action: String,
    /// Whether polkit might have asked a person.
    pub interactive: bool,
    /// Kind of the subject.
    pub subject: String,
}

/// The simulator; it is gone when this is dropped.
#[derive(Debug)]
pub struct Polkit {
    _connection: zbus::Connection,
    questions: Arc<Mutex<Vec<Question>>>,
}

struct Authority {
    answer: Answer,
    questions: Arc<Mutex<Vec<Question>>>,
}

impl Polkit {
    /// Takes polkit's name on the bus at `address`.
    pub async fn start(address: &str, answer: Answer) -> zbus::Result<Self> {
        let questions = Arc::default();
        let authority = Authority { answer, questions: Arc::clone(&questions) };
        let connection = zbus::connection::Builder::address(address)
            .serve_at("/org/freedesktop/PolicyKit1/Authority", authority)
            .name("org.freedesktop.PolicyKit1")
            .build()
            .await?;
        Ok(Self { _connection: connection, questions })
    }

    /// What it was asked so far.
    pub fn questions(&self) -> Vec<Question> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedVariant>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation: String,
    ) -> (bool, bool, HashMap<String, String>) {
        // slotd sends neither; both are part of the method all the same.
        drop((details, cancellation));
        let question = Question { action, interactive: flags & 1 != 0, subject: subject.0 };
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        if self.answer == Answer::Silence {
            std::future::pending::<()>().await;
        }
        (self.answer == Answer::Allow, self.answer == Answer::Challenge, HashMap::new())
    }
}
