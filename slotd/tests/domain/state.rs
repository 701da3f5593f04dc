//! The durable state: what is known comes back, what is not known is kept.

use slotd::domain::state::{Action, CheckKind, State};
use sps_base::slot::SlotId;

fn slot(id: u32) -> SlotId {
    SlotId::new(id).unwrap()
}

fn selection() -> serde_json::Value {
    serde_json::json!({
        "slot": 2, "root_hash": "04".repeat(32), "version": "8.0.2", "from_version": "8.0.1", "kind": "upgrade",
        "message": "ünïcode", "who": ":1.7", "at": 7, "confirming": true, "until": 9,
    })
}

fn full() -> serde_json::Value {
    serde_json::json!({
        "epoch_floor": 3,
        "time_floor": 1_790_000_000_u64,
        "intent": {
            "slot": 2, "action": "install", "manifest": "ab".repeat(32), "transaction": "t-1", "sequence": 9,
            "source": [["root", {"offset": 4096, "size": 8192}], ["file_list", {"offset": 2048, "size": 1}]],
            "by": {"who": "a newer firmware"},
        },
        "checks": {
            "1": {"sequence": 8, "at": 5, "how": "full", "bad": "2 blocks", "seconds": 7},
            "9": {"sequence": 1, "at": 6, "how": "quick"},
        },
        "pending": selection(),
        "confirmed": {"slot": 1, "root_hash": "01".repeat(32), "at": 3, "before": [2, "02".repeat(32)], "how": "well"},
        "boots": {"1": 2},
        "refused": [{"root_hash": "03".repeat(32), "reason": "no network", "at": 4, "log": "x"}],
        "last_upgrade": {
            "selection": selection(), "outcome": "failed", "reason": "ill", "at": 5, "seconds": 9,
        },
        "later": {"slot": 2, "message": "ünïcode \u{0}"},
        "large": u64::MAX,
        "list": [1, [2, {"deep": null}], -3],
    })
}

#[test]
fn a_state_comes_back_with_the_fields_that_nobody_knows() {
    let payload = serde_json::to_vec(&full()).unwrap();
    let state = State::parse(&payload).unwrap();
    let intent = state.intent.as_ref().unwrap();
    assert_eq!(
        (intent.slot, intent.action, intent.sequence, intent.source.len()),
        (slot(2), Action::Install, 9, 2)
    );
    assert_eq!(state.checks[&slot(1)].bad.as_deref(), Some("2 blocks"));
    assert_eq!(state.checks[&slot(9)].how, CheckKind::Quick);
    assert_eq!(state.unknown.keys().collect::<Vec<_>>(), ["large", "later", "list"]);
    let written: serde_json::Value = serde_json::from_slice(&state.render()).unwrap();
    assert_eq!(written, full(), "what a newer firmware stored is written back");
    assert_eq!(State::parse(&state.render()).unwrap(), state);
}

#[test]
fn an_old_state_without_the_newer_fields_is_read() {
    assert_eq!(State::parse(b"{}").unwrap(), State::default());
    assert_eq!(State::parse(br#"{"epoch_floor":4}"#).unwrap().epoch_floor, 4);
}

#[test]
fn what_is_no_state_is_refused() {
    for bad in [
        &b""[..],
        b"[]",
        b"{} x",
        br#"{"epoch_floor":-1}"#,
        br#"{"epoch_floor":4294967296}"#,
        br#"{"checks":{"10":{"sequence":1,"at":1,"how":"full"}}}"#,
        br#"{"checks":{"x":{"sequence":1,"at":1,"how":"full"}}}"#,
        br#"{"intent":{"slot":1}}"#,
        br#"{"intent":{"slot":77,"action":"install","manifest":"","transaction":"","sequence":1}}"#,
        b"\xff",
    ] {
        assert!(State::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
    }
}
