//! `docs/errors.md` and `ErrorKind` say the same.

use sps_base::error::ErrorKind;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");

/// The cells of each table row, without the header and the line under it.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter(|line| line.starts_with('|') && !line.contains("Exit code") && !line.starts_with("|-"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn table_of_errors_is_complete_and_in_order() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let documented: Vec<_> = rows(&text)
        .into_iter()
        .filter(|cells| cells.len() == 5)
        .map(|cells| {
            assert!(!cells[3].is_empty() && !cells[4].is_empty(), "{cells:?} does not say what to do");
            (cells[0].trim_matches('`').to_owned(), cells[1].to_owned(), cells[2].to_owned())
        })
        .collect();
    let in_code: Vec<_> = ErrorKind::ALL
        .iter()
        .map(|k| (k.name().to_owned(), k.exit_code().to_string(), k.http_status().to_string()))
        .collect();
    assert_eq!(documented, in_code);
}

#[test]
fn exit_codes_of_spsctl_itself_are_no_error_kind() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let own: Vec<u8> =
        rows(&text).iter().filter(|cells| cells.len() == 3).map(|cells| cells[0].parse().unwrap()).collect();
    assert_eq!(own, [0, 1, 2, 3, 4, 130]);
    assert!(ErrorKind::ALL.iter().all(|kind| !own.contains(&kind.exit_code())));
}
