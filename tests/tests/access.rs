//! Who may do what: root everything, anybody else what polkit says, and reading everybody.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::process::Output;

use system_tests::bus::Appliance;
use system_tests::polkit::{Answer, Polkit, Question};

const SLOT: &str = "/org/spsagent/slots1/slot/1";
const DELETE: &str = "org.spsagent.Slots1.Slot.Delete";
const MANAGER: &str = "/org/spsagent/slots1";
const RESET: &str = "org.spsagent.Slots1.Manager.ResetState";
const DENIED: &str = "org.spsagent.Error.NotAuthorized";

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The stock client runs as its own process; the simulator must be able to answer meanwhile.
async fn delete_as_nobody(appliance: Appliance) -> (Appliance, String) {
    tokio::task::spawn_blocking(move || {
        let output = appliance.call_as_nobody(SLOT, DELETE, &[]).unwrap();
        assert!(!output.status.success(), "deleting an empty slot cannot succeed");
        let text = errors(&output);
        (appliance, text)
    })
    .await
    .unwrap()
}

#[test]
fn without_polkit_only_root_may_change_anything() {
    let appliance = Appliance::start().unwrap();
    for (object, method, arguments) in [(SLOT, DELETE, &[][..]), (MANAGER, RESET, &["string:lost"][..])] {
        let text = errors(&appliance.call_as_nobody(object, method, arguments).unwrap());
        assert!(text.contains(DENIED) && text.contains("polkit is not there"), "{method}: {text}");
    }
    assert!(appliance.log().contains("call refused"), "{}", appliance.log());
}

#[test]
fn everybody_may_read() {
    let appliance = Appliance::start().unwrap();
    let state = appliance.call_as_nobody(MANAGER, "org.spsagent.Slots1.Manager.State", &[]).unwrap();
    assert!(state.status.success(), "{}", errors(&state));
    let notes = appliance.call_as_nobody(SLOT, "org.spsagent.Slots1.Slot.Notes", &[]).unwrap();
    assert!(errors(&notes).contains("org.spsagent.Error.SlotEmpty"), "{}", errors(&notes));
}

#[tokio::test]
async fn polkit_is_asked_for_the_action_and_obeyed() {
    for (answer, words) in [
        (Answer::Allow, "org.spsagent.Error.SlotEmpty"),
        (Answer::Deny, "polkit denies it"),
        (Answer::Challenge, "polkit wants authentication"),
    ] {
        let appliance = Appliance::start().unwrap();
        let polkit = Polkit::start(&appliance.address(), answer).await.unwrap();
        let (_appliance, text) = delete_as_nobody(appliance).await;
        assert!(text.contains(words), "{answer:?}: {text}");
        assert_eq!(text.contains(DENIED), answer != Answer::Allow, "{answer:?}: {text}");
        let question = Question {
            action: "org.spsagent.slots1.delete".to_owned(),
            interactive: false,
            subject: "system-bus-name".to_owned(),
        };
        assert_eq!(polkit.questions(), [question]);
    }
}

#[tokio::test]
async fn a_polkit_that_does_not_answer_is_a_refusal() {
    let appliance = Appliance::start().unwrap();
    let _polkit = Polkit::start(&appliance.address(), Answer::Silence).await.unwrap();
    let (_appliance, text) = delete_as_nobody(appliance).await;
    assert!(text.contains(DENIED) && text.contains("does not answer"), "{text}");
}
