//! What a slot is: one pure decision over everything that is known of it.

use super::plan::{self, Step};
use super::state::{Action, Check, Intent};

/// What the last block of the slot said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrailerFound {
    /// Zeros.
    Absent,
    /// Neither zeros nor a valid trailer.
    Torn(String),
    /// The medium could not be read.
    Unreadable(String),
    /// A valid trailer with this sequence number.
    Valid(u64),
}

/// What checking the manifest that the trailer names said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignatureFound {
    /// Manifest and signature verify.
    Good,
    /// The signature or the keyring refuses.
    Refused(String),
    /// Manifest, signature or layout are not what the trailer says.
    Corrupt(String),
    /// The medium could not be read.
    Unreadable(String),
}

/// What the ESP holds for this slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootImageFound {
    /// The firmware has none.
    NotNeeded,
    /// The one of the manifest.
    Same,
    /// None.
    Missing,
    /// Another one, or an incomplete one.
    Different,
    /// The ESP could not be read.
    Unreadable(String),
}

/// Everything that decides.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// The slot's last block.
    pub trailer: TrailerFound,
    /// Only looked at when the trailer is valid.
    pub signature: SignatureFound,
    /// Only looked at when the signature is good.
    pub boot_image: BootImageFound,
    /// The write intent, if it names this slot.
    pub intent: Option<&'a Intent>,
    /// The last check at rest of this slot.
    pub check: Option<&'a Check>,
}

/// What is in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Empty,
    /// An install that did not end.
    Writing,
    /// A firmware, complete and signed.
    Verified,
    /// Something that must not boot.
    Bad {
        /// Class, as the contract spells it: `trailer`, `unreadable`, `untrusted`, `corrupt`, `blocks`,
        /// `boot-image`, `deletion`.
        class: &'static str,
        /// One sentence.
        reason: String,
    },
}

/// The decision: what it is, and which steps of the order law make everything else agree with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What is in the slot (after the steps, where there are any).
    pub content: Content,
    /// What remains to do; empty when nothing does. Repeating them is harmless.
    pub remaining: &'static [Step],
}

/// Decides what a slot is.
pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let bad = |class, reason: &str, remaining| Judgement {
        content: Content::Bad { class, reason: reason.into() },
        remaining,
    };
    let deleting = evidence.intent.is_some_and(|intent| intent.action == Action::Delete);
    match (&evidence.trailer, evidence.intent) {
        (TrailerFound::Unreadable(why), _) => bad("unreadable", why, &[]),
        // A deletion that was cut is carried out: it was asked for, and half of it may have happened. Where that
        // fails (a device, not a cut), the slot is not called empty while its trailer still stands.
        (TrailerFound::Absent, Some(_)) if deleting => {
            Judgement { content: Content::Empty, remaining: &plan::DELETE }
        }
        (_, Some(_)) if deleting => bad("deletion", "its deletion has not ended", &plan::DELETE),
        (TrailerFound::Absent, None) => Judgement { content: Content::Empty, remaining: &[] },
        // Zeros, or a trailer that was being written: either way the install had not ended.
        (TrailerFound::Absent | TrailerFound::Torn(_), Some(_)) => {
            Judgement { content: Content::Writing, remaining: &[] }
        }
        (TrailerFound::Torn(why), None) => bad("trailer", why, &[]),
        (TrailerFound::Valid(sequence), intent) => judge_filled(evidence, *sequence, intent.is_some()),
    }
}

/// A slot with a valid trailer. With an intent it is either the old content, not yet touched, or the new one,
/// complete: both are settled the same way, from the slot.
fn judge_filled(evidence: &Evidence<'_>, sequence: u64, intent: bool) -> Judgement {
    let settle: &'static [Step] = if intent { &plan::SETTLE } else { &[] };
    let bad = |class, reason: &str| Judgement {
        content: Content::Bad { class, reason: reason.into() },
        remaining: if intent { &[Step::DropIntent] } else { &[] },
    };
    match &evidence.signature {
        SignatureFound::Good => {}
        SignatureFound::Refused(why) => return bad("untrusted", why),
        SignatureFound::Corrupt(why) => return bad("corrupt", why),
        SignatureFound::Unreadable(why) => return bad("unreadable", why),
    }
    let remaining = match &evidence.boot_image {
        BootImageFound::NotNeeded | BootImageFound::Same => settle,
        BootImageFound::Missing | BootImageFound::Different if intent => settle,
        BootImageFound::Missing | BootImageFound::Different => &[Step::CopyBootImage],
        BootImageFound::Unreadable(why) => return bad("boot-image", why),
    };
    match evidence.check.filter(|check| check.sequence == sequence).and_then(|check| check.bad.as_deref()) {
        Some(why) => Judgement { content: Content::Bad { class: "blocks", reason: why.into() }, remaining },
        None => Judgement { content: Content::Verified, remaining },
    }
}
