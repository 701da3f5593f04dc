//! The formats and decisions of `slotd::domain`, against stock tools where there is one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests make their own files and run stock tools"
)]

mod diagram;
mod envblk;
mod explorer;
mod file_list;
mod iso;
mod iso_image;
mod manifest;
mod policy;
mod slot_state;
mod state;
mod trailer;
mod verity;

use slotd::domain::manifest::Manifest;

/// A manifest that parses, as the base of variations.
pub(crate) fn sample() -> Manifest {
    let hash = "0".repeat(64);
    let file = |name: &str, size: u64| format!(r#"{{"name":"{name}","sha256":"{hash}","size":{size}}}"#);
    let files = [file("notes.md", 1), file("root.verity", 4096), file("files.ndjson.zst", 1)].join(",");
    let text = format!(
        r#"{{"boot":"none","boot_version":"8.0.0","build_date":"2026-11-22T00:00:00Z","compatible":{{"hardware":["m1"],"product":"sps"}},"config_schema":1,"files":[{files}],"meta":{{"note":"a"}},"required_space":0,"revoked_below":0,"root":{{"size":4096,"verity":{{"algorithm":"sha256","data_block":4096,"hash_block":4096,"root_hash":"{hash}","salt":"00","uuid":"01234567-89ab-cdef-0123-456789abcdef"}}}},"schema":1,"security_epoch":3,"state_schema":1,"upgrade_from":[{{"from":"7.0","min":"7.0.5"}},{{"from":"8","min":"8.0.0"}}],"version":"8.0.1"}}"#
    );
    Manifest::parse(text.as_bytes()).unwrap()
}
