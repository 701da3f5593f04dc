//! The console of the recovery image: what happened, and the few things that can be done there, by number.
//!
//! Recovery runs when the system firmware or the boot loader could start nothing else, or was told to start it. `slotboot`
//! has put in order what can be and counted this start; slotd answers for the slots. Without either of them the page still
//! comes up, and the machine can be restarted. There is no shell.

mod media;
mod orders;
mod page;
mod terminal;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use orders::{Orders, Then};
use page::Found;
use sps_base::recovery::{FILE, Report};
use spsctl::client::Client;
use spsctl::error::CtlError;
use terminal::Terminal;

/// Time to press Enter before the machine restarts by itself.
const GRACE: u64 = 15;
/// One question to slotd, which reads from memory.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks for what is not there yet.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest report that is read.
const REPORT_LIMIT: u64 = 64 << 10;

/// Says on this terminal what happened, restarts by itself where a firmware can be started, and takes orders by number.
#[derive(Debug, Parser)]
#[command(name = "sps-recovery", version)]
struct Arguments {
    /// Directory where slotboot leaves its report; what one console decides the others read there too.
    #[arg(long, value_name = "DIR", default_value = "/run/sps")]
    run: PathBuf,
    /// How long slotboot's report and slotd's first answer are waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    patience: u64,
    /// Seconds to press Enter before the machine restarts by itself.
    #[arg(long, value_name = "SECONDS", default_value_t = GRACE)]
    grace: u64,
    /// The program `systemctl`, which restarts the machine.
    #[arg(long, value_name = "FILE", default_value = "systemctl")]
    systemctl: PathBuf,
    /// The program `spsctl`.
    #[arg(long, value_name = "FILE", default_value = "spsctl")]
    spsctl: PathBuf,
    /// Directory of the logs that the firmware has written.
    #[arg(long, value_name = "DIR", default_value = "/data/var/log/journal")]
    logs: PathBuf,
    /// Where sysfs and the nodes of devices are.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
    /// D-Bus address instead of the system bus.
    #[arg(long, value_name = "ADDRESS", env = "SPS_BUS_ADDRESS")]
    bus: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Nothing below needs more than one thread; a runtime that cannot be made is a page without slotd.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Ctrl-C is for what runs on this terminal, not for the console itself; a program that is run gets the usual effect.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::default());
    let mut terminal = Terminal::start();
    let console = Console { arguments: &arguments, runtime: runtime.as_ref().ok() };
    console.run(&mut terminal);
    ExitCode::SUCCESS
}

/// This console.
struct Console<'a> {
    arguments: &'a Arguments,
    runtime: Option<&'a tokio::runtime::Runtime>,
}

impl Console<'_> {
    fn run(&self, terminal: &mut Terminal) {
        terminal.say("\n=== SPS recovery ===\n\nLooking at the slots; Enter ends the waiting.\n");
        let patience = Instant::now() + Duration::from_secs(self.arguments.patience);
        let report = self.report(terminal, patience);
        let mut found = self.look(terminal, patience);
        if let Some(report) = &report
            && let Some(slot) = report.restarts
        {
            terminal.say(&page::page(Some(report), &found));
            terminal.say(&page::restarts(slot, &found, self.arguments.grace));
            if self.nobody_stays(terminal) {
                Orders::new(self.arguments).restart(terminal);
                return;
            }
            // Whatever is done from here on, somebody does it.
            found = self.look(terminal, Instant::now());
        }
        loop {
            terminal.say(&page::page(report.as_ref(), &found));
            terminal.say(page::MENU);
            if Orders::new(self.arguments).take(terminal, &found) == Then::End {
                return;
            }
            found = self.look(terminal, Instant::now());
        }
    }

    /// Counts down. False once somebody, here or on another console, has pressed Enter.
    fn nobody_stays(&self, terminal: &mut Terminal) -> bool {
        let mark = self.arguments.run.join("recovery-stays");
        for _ in 0..self.arguments.grace {
            if mark.exists() {
                return false;
            }
            if terminal.pause(Duration::from_secs(1)) {
                // The others restart when it cannot be made; this one still stays.
                let _ = fs::write(&mark, "");
                return false;
            }
        }
        !mark.exists()
    }

    /// What slotboot has found; `None` where it did not come so far.
    fn report(&self, terminal: &mut Terminal, patience: Instant) -> Option<Report> {
        let file = self.arguments.run.join(FILE);
        loop {
            let small = fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= REPORT_LIMIT);
            // It may be half written.
            if let Some(report) = small.then(|| fs::read(&file).ok()).flatten()
                && let Ok(report) = serde_json::from_slice(&report)
            {
                return Some(report);
            }
            if Instant::now() >= patience || terminal.pause(PAUSE) {
                return None;
            }
        }
    }

    /// What slotd says, which may still be starting; else why it does not.
    fn look(&self, terminal: &mut Terminal, patience: Instant) -> Result<Found, String> {
        let runtime = self.runtime.ok_or("this program cannot use the bus")?;
        loop {
            let asked = async { tokio::time::timeout(ANSWER, ask(self.arguments.bus.as_deref())).await };
            let why = match runtime.block_on(asked) {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it did not answer within {} s", ANSWER.as_secs()),
            };
            if Instant::now() >= patience || terminal.pause(PAUSE) {
                return Err(why);
            }
        }
    }
}

async fn ask(bus: Option<&str>) -> Result<Found, CtlError> {
    let client = Client::connect(bus).await?;
    let (summary, objects) = (client.summary().await?, client.objects().await?);
    let (health, state) = client.state().await?;
    Ok(Found { summary, slots: objects.slots, boots: page::boots(&state), health })
}
