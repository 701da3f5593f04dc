//! The command line: commands, options and their help.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use sps_base::slot::SlotId;

const EXAMPLES: &str = "\
Examples:
  spsctl slots                       what is in the slots
  spsctl install firmware.iso        install into an empty slot and watch
  curl -sSf URL | spsctl install -   install while it downloads
  spsctl verify 2 --full             read every block of slot 2 and check it
  spsctl jobs --json | jq .jobs      for scripts: docs/spsctl-json.md

Exit codes:
  0    done
  1    something unexpected
  2    the command line is wrong
  3    the bus or slotd cannot be reached
  10…  slotd refused or the job failed; each error has its own code, see docs/errors.md
  130  Ctrl-C left a job running

A failure prints one line that starts with `error:` on standard error. NO_COLOR turns colours off.";

/// Shows, fills and checks the firmware slots of this appliance.
#[derive(Debug, Parser)]
#[command(name = "spsctl", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON document on standard output (docs/spsctl-json.md)
    #[arg(long, global = true, display_order = 100)]
    pub json: bool,
    /// D-Bus address of the bus on which slotd is [default: the system bus]
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = bus_address, display_order = 101)]
    pub bus: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the slots and what is in them
    #[command(after_help = "\
States:
  empty     nothing in it
  writing   an install has not ended; it can be resumed
  verified  signed, complete and read back
  bad       not to be trusted; the reason says why

NOW marks the slot that runs, NEXT the one that runs after the next reboot. VERIFIED says how the slot was \
last checked (installed, quick or full) and when. Times are UTC.")]
    Slots,
    /// Show the appliance in short: what runs, what is free, warnings, running jobs, slots
    Status,
    /// Install a firmware ISO into a slot, verified as it arrives
    Install(InstallArgs),
    /// Print the upgrade notes of the firmware in a slot
    Notes(SlotArg),
    /// Print the upgrade news of the firmware in a slot
    News(SlotArg),
    /// Check a slot against its signature
    Verify(VerifyArgs),
    /// Empty a slot
    #[command(after_help = "\
The running slot and the slot that runs after the next reboot are refused (SlotInUse, exit code 20). \
Nothing asks back: deleted is deleted.

Example:
  spsctl delete 2")]
    Delete(SlotArg),
    /// List jobs: running ones and the newest finished ones
    Jobs,
    /// Follow a job until it ends
    #[command(after_help = "\
The exit code is 0 when the job is done, otherwise that of its error. Ctrl-C stops watching, the job goes \
on.

Example:
  job=$(spsctl install firmware.iso --detach) && spsctl wait \"$job\"")]
    Wait(JobArg),
    /// Ask a job to stop
    #[command(after_help = "Returns at once; `spsctl wait JOB` tells how the job ended.")]
    Cancel(JobArg),
    /// Show or reset slotd's durable state
    State {
        /// What to do with it.
        #[command(subcommand)]
        command: StateCommand,
    },
}

/// What can be done with the durable state.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Print the state and how it was found
    Show,
    /// Write a fresh state after it was lost
    #[command(after_help = "\
The security epoch's floor is taken from the valid slots. The reason goes to the log.

Example:
  spsctl state reset --reason \"state partition replaced, ticket 4711\"")]
    Reset {
        /// Why, for the log
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
}

/// Options of `install`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The image is checked while it arrives: signature and release rules are judged before the first byte is \
written, every block before that block is. slotd gets the open file; it need not be able to open it itself. \
Ctrl-C cancels the install; a second one leaves it to slotd.

Every install has a transaction id; one is made up when none is given. When an install is cut, the same \
command with `--transaction ID` goes on where it stopped; what is in the slot is checked, not trusted. From \
a pipe the rest is enough: `--offset N` says that the first byte sent is byte N of the image. A failed \
install prints the command that resumes it.

Examples:
  spsctl install firmware.iso
  spsctl install firmware.iso --slot 2 --replace
  curl -sSf URL | spsctl install - --transaction nightly-42
  curl -sSf -r 104857600- URL | spsctl install - --transaction nightly-42 --offset 104857600")]
pub struct InstallArgs {
    /// The ISO, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Install into this slot [default: an empty one]
    #[arg(long, value_name = "N", value_parser = firmware_slot)]
    pub slot: Option<SlotId>,
    /// Overwrite the slot when it is filled
    #[arg(long)]
    pub replace: bool,
    /// Write the same firmware again over a damaged copy
    #[arg(long)]
    pub repair: bool,
    /// Refuse every image but the one whose manifest has this SHA-256
    #[arg(long, value_name = "HEX", value_parser = sha256_hex)]
    pub manifest_sha256: Option<String>,
    /// Name of the transaction; the same name resumes a cut install
    #[arg(long, value_name = "ID", value_parser = transaction_id)]
    pub transaction: Option<String>,
    /// The first byte sent is this byte of the image
    #[arg(long, value_name = "BYTE", requires = "transaction")]
    pub offset: Option<u64>,
    /// Print the job's number and do not wait
    #[arg(long)]
    pub detach: bool,
}

/// Options of `verify`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("mode"), after_help = "\
A quick check reads the signature, the top of the hash tree and blocks picked at random, and states the \
chance that it missed a damaged block. A full check reads every block.

A slot that is not healthy gives exit code 21 (SlotBad); the report names the first and last bad block and \
the files they belong to. Ctrl-C cancels the check.

Examples:
  spsctl verify 1
  spsctl verify 2 --full
  spsctl verify 2 --full --scheduled --detach")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct VerifyArgs {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = slot)]
    pub slot: SlotId,
    /// Check every block
    #[arg(long, group = "mode")]
    pub full: bool,
    /// Check the signature and random blocks (default)
    #[arg(long, group = "mode")]
    pub quick: bool,
    /// Read with idle priority, so that nothing else is slowed down
    #[arg(long)]
    pub scheduled: bool,
    /// Print the job's number and do not wait
    #[arg(long)]
    pub detach: bool,
}

/// A slot.
#[derive(Clone, Copy, Debug, Args)]
pub struct SlotArg {
    /// Number of the slot
    #[arg(value_name = "SLOT", value_parser = slot)]
    pub slot: SlotId,
}

/// A job.
#[derive(Clone, Copy, Debug, Args)]
pub struct JobArg {
    /// Number of the job
    #[arg(value_name = "JOB")]
    pub job: u64,
}

fn slot(text: &str) -> Result<SlotId, String> {
    let number: u32 = text.parse().map_err(|_| "not a slot number".to_owned())?;
    SlotId::try_from(number)
}

fn firmware_slot(text: &str) -> Result<SlotId, String> {
    slot(text).and_then(|id| {
        if id == SlotId::RECOVERY {
            Err(format!("slot 0 is the recovery image; firmware slots are 1 to {}", SlotId::MAX))
        } else {
            Ok(id)
        }
    })
}

fn sha256_hex(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is 64 hexadecimal digits".to_owned())
    }
}

fn transaction_id(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a transaction id is 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned())
    }
}

fn bus_address(text: &str) -> Result<String, String> {
    text.parse::<zbus::Address>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn install_options_are_parsed() {
        let hash = "AB".repeat(32);
        let line = [
            "spsctl",
            "install",
            "-",
            "--slot",
            "2",
            "--manifest-sha256",
            &hash,
            "--transaction",
            "t.1",
            "--offset",
            "4096",
            "--json",
        ];
        let cli = Cli::try_parse_from(line).unwrap();
        assert!(cli.json);
        let Command::Install(args) = cli.command else { panic!("not an install") };
        assert_eq!(args.slot, SlotId::new(2));
        assert_eq!(args.manifest_sha256, Some("ab".repeat(32)));
        assert_eq!((args.transaction.as_deref(), args.offset), (Some("t.1"), Some(4096)));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "spsctl",
            "spsctl notes",
            "spsctl notes 10",
            "spsctl notes -1",
            "spsctl install x --slot 0",
            "spsctl install x --offset 5",
            "spsctl install x --manifest-sha256 abc",
            "spsctl install x --transaction a/b",
            "spsctl verify 1 --full --quick",
            "spsctl state reset",
            "spsctl slots --bus nonsense",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        assert!(Cli::try_parse_from(["spsctl", "state", "reset", "--reason", ""]).is_err());
    }
}
