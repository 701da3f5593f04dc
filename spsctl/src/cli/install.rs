//! Options of `install`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sps_base::slot::SlotId;

use super::parse::{firmware_slot, seconds, sha256_hex, transaction_id};

/// Options of `install`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The image is checked while it arrives: signature and release rules are judged before the first byte is \
written, every block before that block is. slotd gets the open file; it need not be able to open it itself. \
Ctrl-C cancels the install; a second one leaves it to slotd (and ends the download of a URL, so the install \
fails).

Every install has a transaction id; one is made up when none is given. When an install is cut, the same \
command with `--transaction ID` goes on where it stopped; what is in the slot is checked, not trusted. From \
a pipe or a URL the rest is enough: `--offset N` says that the first byte sent is byte N of the image. A \
failed install prints the command that resumes it.

A URL is downloaded by spsctl itself, with your rights, and handed on as it arrives; no file is written. A \
broken connection is taken up again where it broke, as long as the file on the server is the same; slotd \
waits a minute for the next byte where nothing else is configured. The server's certificate must be signed \
by an authority of this system, or by one of `--ca` and then by no other. http is taken from this machine \
only. A proxy is that of `--proxy`, else of https_proxy or all_proxy, except for hosts in no_proxy. A URL \
with a user name or a password is refused: other users could see it.

Examples:
  spsctl install firmware.iso
  spsctl install firmware.iso --slot 2 --replace
  spsctl install https://updates.example.com/firmware.iso --ca /etc/updates-ca.pem
  ssh HOST cat firmware.iso | spsctl install - --transaction nightly-42
  ssh HOST tail -c +104857601 firmware.iso | spsctl install - --transaction nightly-42 --offset 104857600")]
pub struct InstallArgs {
    /// The ISO: a file, an https URL, or - for standard input
    #[arg(value_name = "FILE|URL|-")]
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
    /// Print the job's number and do not wait (not with a URL, which this process downloads)
    #[arg(long)]
    pub detach: bool,
    /// How a URL is downloaded.
    #[command(flatten)]
    pub download: DownloadArgs,
}

/// How a URL is downloaded.
#[derive(Clone, Debug, Default, Args, PartialEq, Eq)]
#[command(next_help_heading = "Options for a URL")]
pub struct DownloadArgs {
    /// Go through this HTTP proxy (CONNECT), as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Trust the authorities in this PEM file and no others
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Give a connection up when nothing arrives for so long [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stall_timeout: Option<Duration>,
    /// Connect again at most so often in a row without getting on [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100))]
    pub retries: Option<u32>,
}
