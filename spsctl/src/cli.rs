//! The command line: commands, options and their help.

mod choose;
mod install;
mod parse;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use sps_base::slot::SlotId;

pub use choose::{ActivateArgs, DeactivateArgs, RejectArgs, RevertArgs, TestArgs, UpgradeArgs};
pub use install::{DownloadArgs, InstallArgs};
pub use parse::MESSAGE_LIMIT;
use parse::{bus_address, reason, slot};

const EXAMPLES: &str = "\
Examples:
  spsctl slots                       what is in the slots
  spsctl install firmware.iso        install into an empty slot and watch
  spsctl install https://HOST/x.iso  install while it downloads
  spsctl upgrade 2 --reboot          test the firmware in slot 2, then restart into it for a trial
  spsctl doctor                      check that upgrades would work, and what to do where not
  spsctl verify 2 --full             read every block of slot 2 and check it
  spsctl jobs --json | jq .jobs      for scripts: docs/spsctl-json.md

Exit codes:
  0      done
  1      something unexpected, or a check of `doctor` failed
  2      the command line is wrong
  3      the bus or slotd cannot be reached
  4      the download of an image failed
  10-33  slotd refused or the job failed; each error has its own code, see docs/errors.md
  130    Ctrl-C left a job running

A failure prints one line that starts with `error:` on standard error. NO_COLOR turns colours off.";

/// Shows, fills, checks and chooses the firmware slots of this appliance.
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
    /// Show the appliance in short: what runs, what starts next, the last upgrade, warnings, running jobs, slots
    Status,
    /// Install a firmware ISO into a slot, verified as it arrives
    Install(Box<InstallArgs>),
    /// Test whether the firmware in a slot can take over
    Test(TestArgs),
    /// Test the firmware in a slot and select it for the next start
    Upgrade(UpgradeArgs),
    /// Select a tested slot for one trial start
    Activate(ActivateArgs),
    /// Take the selection of a slot back
    Deactivate(DeactivateArgs),
    /// Say that the running firmware is healthy: a trial becomes the default
    #[command(after_help = "\
Usually the health check does this after its checks passed. By hand it overrides them.")]
    Confirm,
    /// Say that the running firmware, in a trial, is not healthy
    Reject(RejectArgs),
    /// Select a firmware that was here before, for a trial
    Revert(RevertArgs),
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
    /// Check that upgrades would work here, and say what to do where not
    #[command(after_help = "\
Asks everything that can be read and changes nothing. One line a check: ok, warn (look at it) or fail (do \
something), then what was found and the next step. The exit code is 0 when nothing fails, otherwise 1.")]
    Doctor,
    /// List what has happened to this appliance that its firmware did not foresee
    #[command(after_help = "\
Causes:
  state-lost   no record of the state was valid
  state-reset  an operator wrote a fresh state
  data-lost    memory stands in for the data partition
  data-full    memory stands in for /var
  log-lost     the log of these records is not the one that the state knows of

Records are only ever added. A number that is missing was lost.")]
    Taint,
    /// Show or reset slotd's durable state
    State {
        /// What to do with it.
        #[command(subcommand)]
        command: StateCommand,
    },
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  spsctl completion bash > /usr/share/bash-completion/completions/spsctl
  spsctl completion zsh > /usr/share/zsh/vendor-completions/_spsctl
  spsctl completion fish > /usr/share/fish/vendor_completions.d/spsctl.fish")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// A shell that can be given a completion script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash, with the package bash-completion
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    /// The script.
    pub fn script(self) -> String {
        let shell = match self {
            Self::Bash => clap_complete::Shell::Bash,
            Self::Zsh => clap_complete::Shell::Zsh,
            Self::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "spsctl", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
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
        #[arg(long, value_parser = reason)]
        reason: String,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

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
        for command in ["state reset", "reject", "revert"] {
            for reason in ["", " ", &"x".repeat(MESSAGE_LIMIT + 1)] {
                let line = ["spsctl"].into_iter().chain(command.split(' ')).chain(["--reason", reason]);
                assert!(Cli::try_parse_from(line).is_err(), "{command} {reason:?}");
            }
        }
    }

    #[test]
    fn messages_are_measured_in_bytes() {
        let upgrade = |message: &str| Cli::try_parse_from(["spsctl", "upgrade", "2", "--message", message]);
        assert!(upgrade("").is_ok() && upgrade(&"ä".repeat(MESSAGE_LIMIT / 2)).is_ok());
        let refusal = upgrade(&"ä".repeat(MESSAGE_LIMIT / 2 + 1)).unwrap_err().to_string();
        assert!(refusal.contains("it has 1026 bytes, at most 1024 are kept"), "{refusal}");
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = shell.script();
            for word in ["upgrade", "accept-config", "doctor"] {
                assert!(script.contains(word), "{word} is not in the script of {shell:?}");
            }
        }
    }
}
