//! What can be done, by number. A wrong word is answered and asked again; nothing here ends the console.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Arguments;
use crate::media;
use crate::page::Found;
use crate::terminal::{Raw, Terminal};

/// Largest file that is taken from the line: 64 GiB.
const FILE_LIMIT: u64 = 64 << 30;
/// A line that is silent for so long has ended.
const SILENCE: Duration = Duration::from_secs(60);
/// What is left of a file has come when the line is silent for so long.
const QUIET: Duration = Duration::from_secs(3);
/// Until a shutdown must have ended this program.
const SHUTDOWN: Duration = Duration::from_secs(90);
/// Why a slot is selected here.
const REASON: &str = "started from recovery";

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The page is shown again.
    Page,
    /// There is nobody to take orders from, or nothing more to do.
    End,
}

/// Takes orders.
pub(crate) struct Orders<'a> {
    arguments: &'a Arguments,
}

impl<'a> Orders<'a> {
    pub(crate) fn new(arguments: &'a Arguments) -> Self {
        Self { arguments }
    }

    /// Takes one order and carries it out.
    pub(crate) fn take(&self, terminal: &mut Terminal, found: &Result<Found, String>) -> Then {
        loop {
            let Some(line) = ask(terminal, "Choice: ") else { return Then::End };
            match line.as_str() {
                "" => return Then::Page,
                "1" => {
                    if let Some(slot) = which(terminal, found) {
                        self.spsctl(terminal, &["verify", "--full", &slot], Stdio::null());
                    }
                }
                "2" => {
                    if let Some(slot) = which(terminal, found)
                        && self.spsctl(
                            terminal,
                            &["revert", "--slot", &slot, "--reason", REASON],
                            Stdio::null(),
                        )
                    {
                        return self.restart(terminal);
                    }
                }
                "3" => self.install_from_medium(terminal, found),
                "4" => self.install_from_line(terminal, found),
                "5" => self.log(terminal),
                "6" => {
                    self.spsctl(terminal, &["status"], Stdio::null());
                    self.spsctl(terminal, &["doctor"], Stdio::null());
                }
                "7" => {
                    self.spsctl(terminal, &["state", "reset", "--reason", "from recovery"], Stdio::null());
                }
                "8" => return self.restart(terminal),
                "9" => return self.end(terminal, "poweroff"),
                _ => {
                    terminal.say("A number from 1 to 9, please.\n");
                    continue;
                }
            }
            let Some(_) = ask(terminal, "\nPress Enter. ") else { return Then::End };
            return Then::Page;
        }
    }

    /// Restarts the machine. Comes back only when that is not possible.
    pub(crate) fn restart(&self, terminal: &mut Terminal) -> Then {
        self.end(terminal, "reboot")
    }

    fn end(&self, terminal: &mut Terminal, how: &str) -> Then {
        terminal.say("\n");
        let systemctl = &self.arguments.systemctl;
        // Not `systemctl reboot`: that asks logind, which is not here.
        let start = ["start", "--no-block", "--job-mode=replace-irreversibly", &format!("{how}.target")];
        if run(terminal, Command::new(systemctl).args(start).stdin(Stdio::null())) {
            // What shuts down ends this program.
            std::thread::sleep(SHUTDOWN);
        }
        run(terminal, Command::new(systemctl).args([how, "--force", "--force"]).stdin(Stdio::null()));
        Then::Page
    }

    fn install_from_medium(&self, terminal: &mut Terminal, found: &Result<Found, String>) {
        let media = media::list(&self.arguments.root);
        if media.is_empty() {
            terminal.say("No medium holds an ISO image. Put one in and try again.\n");
            return;
        }
        for (number, medium) in media.iter().enumerate() {
            let size = medium.size.map(|size| format!(", {} MiB", size >> 20)).unwrap_or_default();
            terminal.say(&format!("  {}  {}: {}{size}\n", number + 1, medium.node.display(), medium.name));
        }
        let Some(line) = ask(terminal, "Medium: ") else { return };
        let Some(medium) = line.parse::<usize>().ok().and_then(|n| media.get(n.checked_sub(1)?)) else {
            terminal.say("That is none of them.\n");
            return;
        };
        match File::open(&medium.node) {
            Ok(file) => drop(self.install(terminal, found, file.into())),
            Err(error) => terminal.say(&format!("{} cannot be read: {error}\n", medium.node.display())),
        }
    }

    fn install(&self, terminal: &mut Terminal, found: &Result<Found, String>, image: Stdio) -> bool {
        let Some(slot) = target(terminal, found) else { return false };
        let mut words = vec!["install", "-"];
        words.extend(slot.iter().map(String::as_str));
        self.spsctl(terminal, &words, image)
    }

    /// A file that the other end of the line sends as it is: its length is told before, for nothing in it says where it
    /// ends. What is lost on the way is found by slotd, as everything else that is wrong with it.
    fn install_from_line(&self, terminal: &mut Terminal, found: &Result<Found, String>) {
        let Some(slot) = target(terminal, found) else { return };
        let Some(line) = ask(terminal, "Length of the file in bytes: ") else { return };
        let Some(length) = line.parse::<u64>().ok().filter(|length| (1..=FILE_LIMIT).contains(length)) else {
            terminal.say(&format!("A number from 1 to {FILE_LIMIT}, please.\n"));
            return;
        };
        let mut command = self.command(&["install", "-"]);
        command.args(slot);
        let mut child = match command.stdin(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return terminal.say(&format!("spsctl cannot be run: {error}\n")),
        };
        let raw = Raw::start();
        terminal.say("Send the file now, as it is.\r\n");
        let mut left = length;
        if let Some(mut pipe) = child.stdin.take() {
            while let Some(bytes) = (left > 0).then(|| terminal.bytes_within(left, SILENCE)).flatten() {
                left = left.saturating_sub(bytes.len() as u64);
                if pipe.write_all(&bytes).is_err() {
                    break;
                }
            }
        }
        if left > 0 {
            terminal.say("\r\nThe file did not come as a whole, or was refused.\r\n");
            terminal.drain(QUIET);
        }
        let ended = child.wait();
        drop(raw);
        told(terminal, ended);
    }

    fn log(&self, terminal: &mut Terminal) {
        let journal = |words: &[&str]| {
            let mut command = Command::new("journalctl");
            command.args(["--no-pager", "--quiet"]).args(words).stdin(Stdio::null());
            command
        };
        if Path::new(&self.arguments.logs).exists() {
            terminal.say("What the firmware has logged last:\n");
            let directory = format!("--directory={}", self.arguments.logs.display());
            run(terminal, &mut journal(&[&directory, "--lines=100"]));
        } else {
            terminal.say("The firmware's log cannot be read.\n");
        }
        terminal.say("\nThis start of recovery, what is worth knowing:\n");
        run(terminal, &mut journal(&["--boot", "--lines=40", "--priority=notice"]));
    }

    fn spsctl(&self, terminal: &mut Terminal, words: &[&str], input: Stdio) -> bool {
        run(terminal, self.command(words).stdin(input))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.arguments.spsctl);
        command.args(self.arguments.bus.iter().map(|bus| format!("--bus={bus}"))).args(words);
        command
    }
}

/// Runs a program on this terminal. True when it says that all is well.
fn run(terminal: &mut Terminal, command: &mut Command) -> bool {
    let ended = command.status();
    told(terminal, ended)
}

fn told(terminal: &mut Terminal, ended: std::io::Result<std::process::ExitStatus>) -> bool {
    match ended {
        Ok(status) if status.success() => return true,
        Ok(status) => terminal.say(&format!("It ended with {status}.\n")),
        Err(error) => terminal.say(&format!("The program cannot be run: {error}\n")),
    }
    false
}

/// What somebody answers, without space around it; `None` when nobody will.
fn ask(terminal: &mut Terminal, question: &str) -> Option<String> {
    terminal.say(question);
    Some(terminal.line()?.trim().to_owned())
}

/// A slot that there is.
fn which(terminal: &mut Terminal, found: &Result<Found, String>) -> Option<String> {
    let slot = ask(terminal, "Slot: ")?;
    known(terminal, found, slot)
}

/// The words of spsctl that name the slot for a new firmware: none where slotd shall choose.
fn target(terminal: &mut Terminal, found: &Result<Found, String>) -> Option<Vec<String>> {
    let slot = ask(terminal, "Into which slot (Enter: slotd chooses): ")?;
    if slot.is_empty() {
        return Some(Vec::new());
    }
    Some(vec!["--slot".to_owned(), known(terminal, found, slot)?])
}

fn known(terminal: &Terminal, found: &Result<Found, String>, slot: String) -> Option<String> {
    let all = found.as_ref().map_or(&[][..], |found| &found.slots);
    let numbers: Vec<String> =
        all.iter().filter(|slot| slot.id != 0).map(|slot| slot.id.to_string()).collect();
    // Without slotd nothing can be done with any of them; spsctl says so.
    if numbers.is_empty() || numbers.contains(&slot) {
        return Some(slot);
    }
    terminal.say(&format!("There is no slot {slot:?}; there are {}.\n", numbers.join(", ")));
    None
}
