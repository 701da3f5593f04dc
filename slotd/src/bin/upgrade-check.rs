//! Runs the check programs of a firmware from that firmware's own root. Started by slotd, inside a sandbox.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use slotd::check::helper::{Order, inside, outside};
use slotd::device::device_mapper::Verity;
use slotd::domain::manifest::Sha256Hex;

/// Runs the check programs that the firmware in a verified slot carries, and prints a report as JSON.
#[derive(Debug, Parser)]
#[command(name = "upgrade-check", version)]
struct Arguments {
    /// Block device or file that begins with the firmware's EROFS image.
    #[arg(long, value_name = "DEVICE_OR_FILE")]
    image: PathBuf,
    /// Verified bytes of that image.
    #[arg(long, value_name = "BYTES")]
    size: u64,
    /// Root hash of its dm-verity tree: a block device is then read through dm-verity.
    #[arg(long, value_name = "HEX", requires_all = ["salt", "hash_offset"], value_parser = root_hash)]
    root_hash: Option<Sha256Hex>,
    /// Salt of that tree; may be empty.
    #[arg(long, value_name = "HEX", requires = "root_hash")]
    salt: Option<String>,
    /// Where the superblock of that tree lies on the same device.
    #[arg(long, value_name = "BYTES", requires = "root_hash")]
    hash_offset: Option<u64>,
    /// Time for all check programs together.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
    /// Variable for the programs; its name begins with SPS_. May be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// For upgrade-check itself: this is the process inside the namespaces.
    #[arg(long, hide = true)]
    inside: bool,
}

fn root_hash(text: &str) -> Result<Sha256Hex, String> {
    Sha256Hex::try_from(text.to_owned())
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let order = Order {
        image: arguments.image,
        size: arguments.size,
        verity: match (arguments.root_hash, arguments.salt, arguments.hash_offset) {
            (Some(root_hash), Some(salt), Some(hash_offset)) => Some(Verity { root_hash, salt, hash_offset }),
            _ => None,
        },
        deadline: Duration::from_secs(arguments.deadline),
        environment: arguments.environment,
    };
    let given: Vec<_> = std::env::args_os().skip(1).collect();
    let result = if arguments.inside { inside(&order) } else { outside(&order, &given) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("upgrade-check: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
