//! The terminal: lines for orders, and bytes as they come for a file.

use std::io::{self, Read as _, Write as _};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Longest line that is taken; more of it is left out.
const LINE_LIMIT: usize = 256;
/// Pieces that wait to be taken.
const AHEAD: usize = 64;

/// What came of waiting for a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line, without its end.
    Text(String),
    /// None in time.
    Nothing,
    /// There will be none.
    End,
}

/// Standard input and output.
#[derive(Debug)]
pub(crate) struct Terminal {
    pieces: Receiver<Vec<u8>>,
    /// What came and was not taken yet.
    left: Vec<u8>,
}

impl Terminal {
    /// Reads from now on, aside, so that waiting can end.
    pub(crate) fn start() -> Self {
        let (send, pieces) = mpsc::sync_channel(AHEAD);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match io::stdin().lock().read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        let piece = buffer.get(..length).unwrap_or_default().to_vec();
                        if send.send(piece).is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        Self { pieces, left: Vec::new() }
    }

    /// Shows a text. A terminal that is gone is no reason to stop.
    #[expect(clippy::unused_self, reason = "what is shown is the terminal's, as what is read")]
    pub(crate) fn say(&self, text: &str) {
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// The next line, whenever it comes; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        loop {
            match self.line_within(Duration::from_secs(3600)) {
                Line::Text(line) => return Some(line),
                Line::Nothing => {}
                Line::End => return None,
            }
        }
    }

    /// The next line, if it comes in time.
    pub(crate) fn line_within(&mut self, time: Duration) -> Line {
        loop {
            if let Some(line) = take_line(&mut self.left) {
                return Line::Text(line);
            }
            match self.pieces.recv_timeout(time) {
                Ok(piece) => self.left.extend(piece),
                Err(RecvTimeoutError::Timeout) => return Line::Nothing,
                Err(RecvTimeoutError::Disconnected) => return Line::End,
            }
            // A line that never ends is cut, not kept.
            if self.left.len() > 4 * LINE_LIMIT && !self.left.contains(&b'\n') {
                self.left.truncate(LINE_LIMIT);
            }
        }
    }

    /// Waits so long; true when somebody has pressed Enter meanwhile. A terminal that is gone is nobody.
    pub(crate) fn pause(&mut self, time: Duration) -> bool {
        let came = self.line_within(time);
        if came == Line::End {
            std::thread::sleep(time);
        }
        matches!(came, Line::Text(_))
    }

    /// Bytes as they come, at most `most` of them; `None` when nothing comes in time, or ever again.
    pub(crate) fn bytes_within(&mut self, most: u64, time: Duration) -> Option<Vec<u8>> {
        if self.left.is_empty() {
            self.left = self.pieces.recv_timeout(time).ok()?;
        }
        let take = usize::try_from(most).unwrap_or(usize::MAX).min(self.left.len());
        let rest = self.left.split_off(take);
        Some(std::mem::replace(&mut self.left, rest))
    }

    /// Forgets what comes until nothing has come for so long: what is left of a file is no order.
    pub(crate) fn drain(&mut self, quiet: Duration) {
        while self.bytes_within(u64::MAX, quiet).is_some() {}
    }
}

/// The terminal passes every byte on as it is until this is dropped.
pub(crate) struct Raw(Option<Termios>);

impl Raw {
    /// Nothing changes where standard input is no terminal.
    pub(crate) fn start() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let set = tcsetattr(io::stdin(), SetArg::TCSANOW, &raw);
        Self(set.is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Takes the first whole line: printable characters alone, so that nothing of it does anything when it is shown again.
fn take_line(left: &mut Vec<u8>) -> Option<String> {
    let end = left.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    let mut line: Vec<u8> = left.drain(..=end).collect();
    line.truncate(LINE_LIMIT);
    let mut shown = String::new();
    let text = String::from_utf8_lossy(&line);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            // A key, or the terminal's answer to systemd, which asks it how large it is (ECMA-48, 5.4).
            let _ = characters.find(|c| ('@'..='~').contains(c));
        } else if !character.is_control() {
            shown.push(character);
        }
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(pieces: &[&[u8]]) -> Terminal {
        let (send, receive) = mpsc::sync_channel(AHEAD);
        for piece in pieces {
            send.send(piece.to_vec()).unwrap();
        }
        Terminal { pieces: receive, left: Vec::new() }
    }

    #[test]
    fn lines_are_taken_whatever_comes() {
        let mut terminal = fed(&[b"1", b"2\n\x1b[A3\x1b[24;80R\x07\r", b"\xff\n", &[b'x'; 9000], b"\nlast"]);
        let text = |terminal: &mut Terminal| terminal.line().unwrap();
        assert_eq!([text(&mut terminal), text(&mut terminal)], ["12", "3"]);
        assert_eq!(text(&mut terminal), "\u{fffd}");
        assert!(text(&mut terminal).len() <= LINE_LIMIT);
        assert_eq!(terminal.line(), None);
    }

    #[test]
    fn a_file_takes_its_bytes_and_no_more() {
        let mut terminal = fed(&[b"5\nab", b"\n\0\xff9\n"]);
        assert_eq!(terminal.line().as_deref(), Some("5"));
        let mut got = Vec::new();
        while got.len() < 5 {
            got.extend(terminal.bytes_within(5 - got.len() as u64, Duration::ZERO).unwrap());
        }
        assert_eq!(got, b"ab\n\0\xff");
        assert_eq!(terminal.line().as_deref(), Some("9"));
        assert_eq!(terminal.bytes_within(1, Duration::ZERO), None);
    }
}
