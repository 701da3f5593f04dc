//! What a slot is: every combination of evidence against the rules, and the rows of the format literally.

use std::collections::BTreeMap;

use slotd::domain::manifest::Sha256Hex;
use slotd::domain::plan::{DELETE, SETTLE, Step};
use slotd::domain::slot_state::{
    BootImageFound, Content, Evidence, Judgement, SignatureFound, TrailerFound, judge,
};
use slotd::domain::state::{Action, Check, Intent, State};
use sps_base::slot::SlotId;

const SEQUENCE: u64 = 5;

fn intent(action: Action) -> Intent {
    Intent {
        slot: SlotId::new(1).unwrap(),
        action,
        manifest: Sha256Hex::default(),
        transaction: "t".into(),
        sequence: SEQUENCE,
        source: Vec::new(),
        unknown: BTreeMap::new(),
    }
}

/// A check of the trailer with this sequence number, as the state stores it.
fn check(sequence: u64, bad: Option<&str>) -> Check {
    let text =
        serde_json::json!({"checks": {"1": {"sequence": sequence, "at": 1, "how": "full", "bad": bad}}});
    let state = State::parse(text.to_string().as_bytes()).unwrap();
    state.checks.into_values().next().unwrap()
}

fn trailers() -> [TrailerFound; 4] {
    use TrailerFound::{Absent, Torn, Unreadable, Valid};
    [Absent, Torn("torn".into()), Unreadable("EIO".into()), Valid(SEQUENCE)]
}

fn signatures() -> [SignatureFound; 4] {
    use SignatureFound::{Corrupt, Good, Refused, Unreadable};
    [Good, Refused("refused".into()), Corrupt("corrupt".into()), Unreadable("EIO".into())]
}

fn boot_images() -> [BootImageFound; 5] {
    use BootImageFound::{Different, Missing, NotNeeded, Same, Unreadable};
    [NotNeeded, Same, Missing, Different, Unreadable("EIO".into())]
}

fn class(content: &Content) -> Option<&'static str> {
    match content {
        Content::Bad { class, .. } => Some(class),
        _ => None,
    }
}

/// The rules that hold whatever else is known.
fn assert_rules(evidence: &Evidence<'_>, judged: &Judgement) {
    use TrailerFound::{Absent, Torn, Unreadable, Valid};
    let content = &judged.content;
    let action = evidence.intent.map(|intent| intent.action);
    let deleting = action == Some(Action::Delete);
    let valid = matches!(evidence.trailer, Valid(_));
    let good = valid && evidence.signature == SignatureFound::Good;
    let found_bad = evidence.check.is_some_and(|c| c.sequence == SEQUENCE && c.bad.is_some());

    // What could not be read is never called empty, nor anything else that sounds like knowledge.
    if matches!(evidence.trailer, Unreadable(_)) {
        assert_eq!(class(content), Some("unreadable"));
        assert_eq!(judged.remaining, &[], "nothing is done to a slot that cannot be read");
        return;
    }
    if *content == Content::Verified {
        assert!(good && !found_bad && !deleting);
    }
    if *content == Content::Empty {
        assert!(evidence.trailer == Absent && (deleting || action.is_none()));
    }
    if *content == Content::Writing {
        assert_eq!(action, Some(Action::Install));
        assert!(matches!(evidence.trailer, Absent | Torn(_)));
        assert_eq!(judged.remaining, &[], "an install that was cut goes on with its image only");
    }
    if let Some(class) = class(content) {
        let Content::Bad { reason, .. } = content else { unreachable!() };
        assert!(!reason.is_empty());
        assert!(
            ["trailer", "unreadable", "untrusted", "corrupt", "blocks", "boot-image", "deletion"]
                .contains(&class)
        );
    }
    // An intent that says nothing any more is dropped, last.
    if action.is_some() && *content != Content::Writing {
        assert_eq!(judged.remaining.last(), Some(&Step::DropIntent));
    }
    if action.is_none() {
        assert!(!judged.remaining.contains(&Step::DropIntent));
    }
    // Nothing but a deletion touches the slot, and no boot image is copied from a slot that nobody signed.
    for step in judged.remaining {
        match step {
            Step::ZeroTrailer | Step::RemoveBootImage | Step::WriteIntent => assert!(deleting),
            Step::CopyBootImage => assert!(good && !deleting),
            Step::DropIntent => {}
            Step::WriteParts | Step::WriteTrailer => panic!("{step:?} needs an image"),
        }
    }
    // A needed boot image that is not there is always put back.
    let missing = matches!(evidence.boot_image, BootImageFound::Missing | BootImageFound::Different);
    if *content == Content::Verified && missing {
        assert!(judged.remaining.contains(&Step::CopyBootImage));
    }
}

#[test]
fn every_combination_of_evidence_keeps_the_rules() {
    let intents = [None, Some(intent(Action::Install)), Some(intent(Action::Delete))];
    let checks = [
        None,
        Some(check(SEQUENCE, None)),
        Some(check(SEQUENCE, Some("2 blocks"))),
        Some(check(SEQUENCE - 1, Some("2 blocks"))),
        Some(check(SEQUENCE + 1, Some("2 blocks"))),
    ];
    let mut judged = 0;
    for trailer in trailers() {
        for signature in signatures() {
            for boot_image in boot_images() {
                for intent in &intents {
                    for check in &checks {
                        let (trailer, signature) = (trailer.clone(), signature.clone());
                        let (intent, check) = (intent.as_ref(), check.as_ref());
                        let boot_image = boot_image.clone();
                        let evidence = Evidence { trailer, signature, boot_image, intent, check };
                        let judgement = judge(&evidence);
                        assert_rules(&evidence, &judgement);
                        // Evidence that is not looked at does not decide.
                        if !matches!(evidence.trailer, TrailerFound::Valid(_)) {
                            let plain = Evidence {
                                signature: SignatureFound::Good,
                                boot_image: BootImageFound::NotNeeded,
                                check: None,
                                ..evidence.clone()
                            };
                            assert_eq!(judge(&plain), judgement);
                        }
                        judged += 1;
                    }
                }
            }
        }
    }
    assert_eq!(judged, 4 * 4 * 5 * 3 * 5);
}

fn good(trailer: TrailerFound) -> Evidence<'static> {
    Evidence {
        trailer,
        signature: SignatureFound::Good,
        boot_image: BootImageFound::Same,
        intent: None,
        check: None,
    }
}

/// Content (or class of a bad one) and remaining steps of these rows of the format, in its words.
#[test]
fn the_rows_of_the_format() {
    use TrailerFound::{Absent, Torn, Unreadable, Valid};
    let (install, delete) = (intent(Action::Install), intent(Action::Delete));
    let says = |evidence: &Evidence<'_>| {
        let Judgement { content, remaining } = judge(evidence);
        let word = match content {
            Content::Empty => "Empty",
            Content::Writing => "Writing",
            Content::Verified => "Verified",
            Content::Bad { class, .. } => class,
        };
        (word, remaining)
    };
    let none: &[Step] = &[];
    let writes = |trailer| Evidence { intent: Some(&install), ..good(trailer) };
    let deletes = |trailer| Evidence { intent: Some(&delete), ..good(trailer) };
    // No trailer, no intent = Empty; no trailer, intent = Writing.
    assert_eq!(says(&good(Absent)), ("Empty", none));
    assert_eq!(says(&writes(Absent)), ("Writing", none));
    assert_eq!(says(&writes(Torn("t".into()))), ("Writing", none));
    // Torn trailer = Bad{trailer}; read error = Bad{unreadable}, never Empty.
    assert_eq!(says(&good(Torn("t".into()))), ("trailer", none));
    assert_eq!(says(&good(Unreadable("e".into()))), ("unreadable", none));
    assert_eq!(says(&deletes(Unreadable("e".into()))), ("unreadable", none));
    // A valid trailer whose signature or keyring refuses = Bad{untrusted}.
    let refused = SignatureFound::Refused("no".into());
    assert_eq!(says(&Evidence { signature: refused, ..good(Valid(5)) }), ("untrusted", none));
    // A valid trailer, boot image missing or different = finish it from the slot, then Verified.
    assert_eq!(says(&good(Valid(5))), ("Verified", none));
    for boot_image in [BootImageFound::Missing, BootImageFound::Different] {
        let copy: &[Step] = &[Step::CopyBootImage];
        assert_eq!(says(&Evidence { boot_image: boot_image.clone(), ..good(Valid(5)) }), ("Verified", copy));
        assert_eq!(says(&Evidence { boot_image, ..writes(Valid(5)) }), ("Verified", &SETTLE[..]));
    }
    // A cut after the trailer rolls forward; a cut deletion is carried out.
    assert_eq!(says(&writes(Valid(5))), ("Verified", &SETTLE[..]));
    assert_eq!(says(&deletes(Valid(5))), ("deletion", &DELETE[..]));
    assert_eq!(says(&deletes(Absent)), ("Empty", &DELETE[..]));
    // A check at rest binds the content that it judged, and no other.
    let (bad, other) = (check(5, Some("1 block")), check(4, Some("1 block")));
    assert_eq!(says(&Evidence { check: Some(&bad), ..good(Valid(5)) }), ("blocks", none));
    assert_eq!(says(&Evidence { check: Some(&other), ..good(Valid(5)) }), ("Verified", none));
}
