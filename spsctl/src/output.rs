//! Writing to the terminal or the pipe, without surprises from either.

use std::io::{self, IsTerminal, Write};

/// Whether colours and moving lines may be used on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// The stream is a terminal.
    pub terminal: bool,
    /// Colours are wanted.
    pub colour: bool,
}

impl Style {
    /// Neither.
    pub const PLAIN: Self = Self { terminal: false, colour: false };

    /// Of standard output.
    pub fn of_stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// Of standard error.
    pub fn of_stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { terminal, colour: terminal && !dumb && !set("NO_COLOR") }
    }

    /// What takes a moving line away before something else is written.
    pub fn new_line(self) -> &'static str {
        if self.terminal { "\r\x1b[K" } else { "" }
    }

    /// `text` in a colour (SGR number), where colours are wanted.
    pub fn paint(self, sgr: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Red.
pub const RED: u8 = 31;
/// Green.
pub const GREEN: u8 = 32;
/// Yellow.
pub const YELLOW: u8 = 33;

/// Writes to standard output. A reader that went away is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes to standard error; where that cannot be written to, there is nobody left to tell.
pub fn complain(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One line of text with everything escaped that a terminal would obey: control characters, line ends included,
/// and the characters that turn the writing direction.
pub fn line(text: &str) -> String {
    escape(text, |_| false)
}

/// Like [`line()`], but line ends and tabs stay.
pub fn lines(text: &str) -> String {
    escape(text, |c| c == '\n' || c == '\t')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if keep(c) || !(c.is_control() || turns_direction(c)) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_are_escaped() {
        assert_eq!(line("a\x1b[2Jb\u{9b}1m\r\n"), "a\\u{1b}[2Jb\\u{9b}1m\\r\\n");
        assert_eq!(lines("ä\n\tb\x07"), "ä\n\tb\\u{7}");
        assert_eq!(line("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn colour_only_where_wanted() {
        assert_eq!(Style::PLAIN.paint(RED, "bad"), "bad");
        assert_eq!(Style { terminal: true, colour: true }.paint(RED, "bad"), "\x1b[31mbad\x1b[0m");
    }
}
