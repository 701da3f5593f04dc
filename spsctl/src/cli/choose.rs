//! Options of the commands that choose the firmware: test, upgrade, activate, deactivate, reject and revert.

use clap::Args;
use sps_base::slot::SlotId;

use super::parse::{firmware_slot, message, reason};

/// Options of `test`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "\
Every block of the slot is checked, then version, storage, configuration, taint, the firmware's own check \
programs and high availability. Nothing is changed. A test that passed is good for 15 minutes and until \
either firmware or the configuration changes.

A test that did not pass ends with exit code 24 (TestFailed); each check says what to do. Ctrl-C cancels it.

Examples:
  spsctl test 2
  spsctl test 2 --json | jq '.job.result.checks'")]
pub struct TestArgs {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = firmware_slot)]
    pub slot: SlotId,
    /// Test it although its last trial failed
    #[arg(long)]
    pub again: bool,
}

/// Options of `upgrade`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The same as `spsctl test SLOT` and then, when it passed, `spsctl activate SLOT`. The firmware is started for \
one trial: when its health checks pass it is confirmed and becomes the default, otherwise the appliance \
comes back to the firmware that runs now.

Examples:
  spsctl upgrade 2 --message \"ticket 4711\"
  spsctl upgrade 2 --reboot

This works over SSH too, without the web interface. When an upgrade did not happen: spsctl doctor, and \
docs/troubleshooting.md.")]
pub struct UpgradeArgs {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = firmware_slot)]
    pub slot: SlotId,
    /// Kept with the upgrade, at most 1024 bytes
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = message)]
    pub message: String,
    /// Test it although its last trial failed
    #[arg(long)]
    pub again: bool,
    /// Restart the appliance at once
    #[arg(long)]
    pub reboot: bool,
}

/// Options of `activate`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Needs a test of this slot that passed in the last 15 minutes, else TestRequired (exit code 25). It does not \
restart anything: the firmware starts, for one trial, at the next reboot.

Example:
  spsctl test 2 && spsctl activate 2 --message \"ticket 4711\"")]
pub struct ActivateArgs {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = firmware_slot)]
    pub slot: SlotId,
    /// Kept with the upgrade, at most 1024 bytes
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = message)]
    pub message: String,
}

/// Options of `deactivate`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "The slot stays as it is; the default starts at the next reboot.")]
pub struct DeactivateArgs {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = firmware_slot)]
    pub slot: SlotId,
}

/// Options of `reject`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Only during a trial. The appliance does not restart by itself: until it does, the rejected firmware goes on \
running. Usually the health check does both.

Example:
  spsctl reject --reason \"no link on the second port\" && systemctl reboot")]
pub struct RejectArgs {
    /// Why, for the log; at most 1024 bytes
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
}

/// Options of `revert`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The one way back to an older version. The firmware starts for one trial, with the configuration it had when \
it last ran: what was configured since is not in it. That is why its date must be named. Without \
`--accept-config` the refusal prints the command that names it.

Examples:
  spsctl revert --reason \"printing broken since 8.1, ticket 4711\"
  spsctl revert --reason \"ticket 4711\" --accept-config 2026-05-28T20:26:40Z --reboot")]
pub struct RevertArgs {
    /// Why, for the log; at most 1024 bytes
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    /// Go back to the firmware in this slot [default: the fallback, see `spsctl status`]
    #[arg(long, value_name = "N", value_parser = firmware_slot)]
    pub slot: Option<SlotId>,
    /// The date of the configuration that comes back, as the refusal names it
    #[arg(long, value_name = "DATE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub accept_config: Option<String>,
    /// Restart the appliance at once
    #[arg(long)]
    pub reboot: bool,
}
