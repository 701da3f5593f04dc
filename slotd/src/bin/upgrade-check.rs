//! Runs the check programs of a firmware from that firmware's own root. Started by slotd, inside a sandbox.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use slotd::check::helper::{Order, inside, outside};

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

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let order = Order {
        image: arguments.image,
        size: arguments.size,
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
