//! GRUB's environment block: 1,024 bytes of `name=value` lines, padded with `#`.
//!
//! Format (GRUB manual, "Environment block", and what `grub-editenv` 2.06 writes and lists): the signature line, then
//! lines that end with a newline. A line that begins with `#` is a comment. In a value a backslash takes the next byte
//! literally; GRUB so writes backslash and newline. Whatever follows the last newline is `#`.

/// Length of a block in bytes.
pub const SIZE: usize = 1024;
/// Longest content that is written, in bytes: what a disk writes whole or not at all, even in a power cut. Only `#`
/// lies behind it, before and after.
pub const WRITE_LIMIT: usize = 512;
/// Started unless told otherwise.
pub const DEFAULT: &str = "saved_entry";
/// Started once; `grub.cfg` clears it before it starts that.
pub const ONE_SHOT: &str = "next_entry";

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// Why bytes are no environment block, or an environment fits into none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvblkError {
    /// Other than [`SIZE`] bytes.
    #[error("environment block has {found} bytes; expected {SIZE}")]
    Size {
        /// Length in bytes.
        found: u64,
    },
    /// It begins with something else.
    #[error("byte 0: no signature of an environment block; expected \"# GRUB Environment Block\"")]
    Signature,
    /// A line is not one that GRUB writes.
    #[error("byte {offset}: {what}")]
    Line {
        /// Where the line begins in the block.
        offset: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A variable that a block cannot hold.
    #[error(
        "variable {name:?} cannot be stored: a name is not empty, does not begin with # and holds no = or newline; \
         neither name nor value holds a zero byte"
    )]
    Variable {
        /// Its name.
        name: String,
    },
    /// More than is written in one piece.
    #[error(
        "the variables take {found} bytes; a power cut leaves at most {WRITE_LIMIT} intact; remove some with \
         grub-editenv unset"
    )]
    TooLong {
        /// Length in bytes.
        found: usize,
    },
}

/// The variables of a block, in order, and the comments between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    variables: Vec<(Vec<u8>, Vec<u8>)>,
    /// Without the newline, from `#` on.
    comments: Vec<Vec<u8>>,
}

/// Reads a block. Stricter than GRUB, which takes what it finds: here a torn or half zeroed block is an error.
pub fn parse(block: &[u8]) -> Result<Environment, EnvblkError> {
    if block.len() != SIZE {
        return Err(EnvblkError::Size { found: block.len() as u64 });
    }
    let mut rest = block.strip_prefix(SIGNATURE).ok_or(EnvblkError::Signature)?;
    let mut environment = Environment::default();
    while rest.iter().any(|byte| *byte != b'#') {
        let fail = |what| Err(EnvblkError::Line { offset: SIZE.saturating_sub(rest.len()), what });
        let Some((line, after)) = split_line(rest) else {
            return fail("the last line does not end; the block is torn");
        };
        if line.contains(&0) {
            return fail("a zero byte; the block is torn");
        }
        if line.first() == Some(&b'#') {
            environment.comments.push(line.to_vec());
        } else {
            let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
                return fail("a line without =");
            };
            let (name, value) = line.split_at(equals);
            if !is_name(name) {
                return fail("no name before =");
            }
            if environment.variables.iter().any(|(other, _)| other == name) {
                return fail("a second value of the same name; the block is torn");
            }
            let value = unescape(value.get(1..).unwrap_or_default());
            environment.variables.push((name.to_vec(), value));
        }
        rest = after;
    }
    Ok(environment)
}

/// The line without its newline, and what follows. A byte after a backslash ends no line.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = bytes.iter().position(|byte| {
        let ends = *byte == b'\n' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    Some((bytes.get(..end)?, bytes.get(end.checked_add(1)?..)?))
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name.first(), None | Some(b'#')) && !name.iter().any(|byte| matches!(byte, 0 | b'\n' | b'='))
}

fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut bytes = raw.iter();
    std::iter::from_fn(|| match bytes.next()? {
        b'\\' => bytes.next().copied(),
        byte => Some(*byte),
    })
    .collect()
}

impl Environment {
    /// The value of a variable; an empty one is how GRUB scripts clear it.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.variables.iter().find(|(other, _)| other == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Sets a variable in its place, or after the others.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), EnvblkError> {
        if !is_name(name.as_bytes()) || value.contains(&0) {
            return Err(EnvblkError::Variable { name: name.to_owned() });
        }
        match self.variables.iter_mut().find(|(other, _)| other == name.as_bytes()) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.as_bytes().to_vec(), value.to_vec())),
        }
        Ok(())
    }

    /// Forgets a variable; there being none is fine.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(other, _)| other != name.as_bytes());
    }

    /// All variables, in order.
    pub fn variables(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.variables.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// The block: first [`DEFAULT`] and [`ONE_SHOT`], then the other variables, then the comments.
    pub fn render(&self) -> Result<[u8; SIZE], EnvblkError> {
        let mut text = SIGNATURE.to_vec();
        let ours = |name: &[u8]| name == DEFAULT.as_bytes() || name == ONE_SHOT.as_bytes();
        let (mut first, others): (Vec<_>, Vec<_>) = self.variables().partition(|(name, _)| ours(name));
        first.sort_by_key(|(name, _)| *name != DEFAULT.as_bytes());
        for (name, value) in first.into_iter().chain(others) {
            text.extend_from_slice(name);
            text.push(b'=');
            for byte in value {
                if matches!(byte, b'\\' | b'\n') {
                    text.push(b'\\');
                }
                text.push(*byte);
            }
            text.push(b'\n');
        }
        for comment in &self.comments {
            text.extend_from_slice(comment);
            text.push(b'\n');
        }
        if text.len() > WRITE_LIMIT {
            return Err(EnvblkError::TooLong { found: text.len() });
        }
        text.resize(SIZE, b'#');
        text.try_into().map_err(|text: Vec<u8>| EnvblkError::TooLong { found: text.len() })
    }
}
