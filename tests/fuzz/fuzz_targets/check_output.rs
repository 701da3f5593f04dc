//! What a check program of a new firmware says: one printable line of limited length reaches the operator.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slotd::check::report::{CheckReport, TEXT_LIMIT, last_line, one_line};

fn assert_line(line: &str, limit: usize) {
    assert!(line.len() <= limit, "{} bytes of at most {limit}", line.len());
    assert!(!line.contains(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)), "{line:?}");
}

fuzz_target!(|data: &[u8]| {
    let Some((limit, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    let limit = usize::from(*limit).max('…'.len_utf8());
    let line = one_line(&text, limit);
    assert_line(&line, limit);
    assert_eq!(one_line(&line, limit), line, "twice differs from once");
    assert_line(&last_line(&text), TEXT_LIMIT);
    if let Ok(report) = serde_json::from_slice::<CheckReport>(data) {
        let again = serde_json::to_vec(&report).unwrap_or_default();
        assert!(serde_json::from_slice(&again).is_ok_and(|again: CheckReport| again == report));
    }
});
