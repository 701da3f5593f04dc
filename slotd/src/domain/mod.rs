//! The functional core: formats, decisions and the order law. No I/O, no clock, no panic.

pub mod boot;
pub mod efivar;
pub mod envblk;
pub mod file_list;
pub mod generation;
pub mod gpt;
pub mod iso;
pub mod layout;
pub mod load_option;
pub mod loader_conf;
pub mod machine;
pub mod manifest;
pub mod plan;
pub mod policy;
pub mod signature;
pub mod slot_state;
pub mod state;
pub mod systemd_boot;
pub mod taint;
pub mod trailer;
pub mod upgrade_check;
pub mod verity;
