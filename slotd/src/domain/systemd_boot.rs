//! systemd-boot's own program on the ESP: which copy is replaced by the one of the running firmware, and in which order.
//!
//! There are two copies of it, one that a boot entry starts and the one that the firmware starts without an entry
//! (UEFI 2.10, 3.5.1.1). FAT cannot replace a file safely, so a copy is only written while the entry names the other.
//! Sources: `src/boot/boot.c` of systemd (the text of `LoaderInfo`); UAPI.10 (comparing versions); PE format (Microsoft).

use std::cmp::Ordering;

/// Longest program that is looked at, in bytes.
pub const LIMIT: usize = 4 << 20;

const BEFORE: &[u8] = b"#### LoaderInfo: systemd-boot ";
const AFTER: &[u8] = b" ####";
/// Longest version.
const VERSION_LIMIT: usize = 64;

/// Where a copy lies on the ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where a boot entry names it.
    Installed,
    /// Where the firmware looks without an entry.
    Removable,
}

impl Place {
    /// Path on the ESP.
    pub fn path(self) -> &'static str {
        match self {
            Self::Installed => "EFI/systemd/systemd-bootx64.efi",
            Self::Removable => "EFI/BOOT/BOOTX64.EFI",
        }
    }

    /// The same as a boot entry spells it.
    pub fn entry(self) -> String {
        format!("\\{}", self.path().replace('/', "\\"))
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The boot entry names this copy.
    StartFrom(Place),
    /// This copy is overwritten, and read back.
    Write(Place),
}

/// What lies at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found<'a> {
    /// Nothing, or what a cut has left.
    Nothing,
    /// A loader of another make.
    Foreign,
    /// A systemd-boot.
    Loader {
        /// Its version.
        version: &'a str,
        /// Whether somebody has signed it for Secure Boot.
        signed: bool,
    },
}

/// The version that a systemd-boot carries.
pub fn version(program: &[u8]) -> Option<&str> {
    let at = program.windows(BEFORE.len()).position(|window| window == BEFORE)?;
    let rest = program.get(at.saturating_add(BEFORE.len())..)?;
    let rest = rest.get(..rest.len().min(VERSION_LIMIT.saturating_add(AFTER.len())))?;
    let end = rest.windows(AFTER.len()).position(|window| window == AFTER)?;
    let text = std::str::from_utf8(rest.get(..end)?).ok()?;
    let printable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    printable.then_some(text)
}

/// The little-endian number of so many bytes at a place.
fn number(program: &[u8], at: usize, len: usize) -> Option<usize> {
    let bytes = program.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte)))
}

/// Where the PE header lies.
fn header(program: &[u8]) -> Option<usize> {
    let at = number(program, 0x3c, 4).filter(|_| program.starts_with(b"MZ"))?;
    program.get(at..at.checked_add(4)?).filter(|magic| *magic == b"PE\0\0").map(|_| at)
}

/// Whether bytes are a program that ends where its headers say, or later.
fn is_complete(program: &[u8]) -> bool {
    let sections_end = || {
        let header = header(program)?;
        let count = number(program, header.checked_add(6)?, 2)?;
        let table = header.checked_add(24)?.checked_add(number(program, header.checked_add(20)?, 2)?)?;
        let mut end = table.checked_add(count.checked_mul(40)?)?;
        for section in 0..count {
            let at = table.checked_add(section.checked_mul(40)?)?;
            let (start, size) =
                (number(program, at.checked_add(20)?, 4)?, number(program, at.checked_add(16)?, 4)?);
            end = end.max(start.checked_add(size)?);
        }
        Some(end)
    };
    sections_end().is_some_and(|end| end <= program.len())
}

/// Whether it has a certificate table: the fifth data directory of a PE32+ program.
fn is_signed(program: &[u8]) -> bool {
    let size = || {
        let optional = header(program)?.checked_add(24)?;
        let directories = number(program, optional, 2)
            .filter(|magic| *magic == 0x20b)
            .and_then(|_| number(program, optional.checked_add(108)?, 4))?;
        number(program, optional.checked_add(148)?, 4).filter(|_| directories > 4)
    };
    size().is_some_and(|size| size > 0)
}

fn look(program: Option<&[u8]>) -> Found<'_> {
    let Some(program) = program.filter(|program| is_complete(program)) else { return Found::Nothing };
    match version(program) {
        Some(version) => Found::Loader { version, signed: is_signed(program) },
        None => Found::Foreign,
    }
}

/// The copies that can be started, the installed one first. None where there is a loader of another make: then somebody
/// else has arranged what the firmware starts.
pub fn startable(installed: Option<&[u8]>, removable: Option<&[u8]>) -> Vec<Place> {
    let found = [(Place::Installed, look(installed)), (Place::Removable, look(removable))];
    if found.iter().any(|(_, found)| *found == Found::Foreign) {
        return Vec::new();
    }
    found.into_iter().filter(|(_, found)| *found != Found::Nothing).map(|(place, _)| place).collect()
}

/// What has to be done so that both copies are `new`; nothing where one of them is newer, of another make, or signed and
/// `new` is not. What is equal is not written.
pub fn plan(new: &[u8], installed: Option<&[u8]>, removable: Option<&[u8]>) -> Vec<Step> {
    let Found::Loader { version, signed } = look(Some(new)) else { return Vec::new() };
    let found = [look(installed), look(removable)];
    let stays = |found: &Found<'_>| match found {
        Found::Nothing => false,
        Found::Foreign => true,
        Found::Loader { version: there, signed: was } => {
            (*was && !signed) || compare(there, version) == Ordering::Greater
        }
    };
    if found.iter().any(stays) {
        return Vec::new();
    }
    let (first, last) = (installed != Some(new), removable != Some(new));
    let mut steps = Vec::new();
    if first {
        if found.last() == Some(&Found::Nothing) {
            steps.push(Step::Write(Place::Removable));
        }
        steps.extend([Step::StartFrom(Place::Removable), Step::Write(Place::Installed)]);
    }
    steps.push(Step::StartFrom(Place::Installed));
    if last && !steps.contains(&Step::Write(Place::Removable)) {
        steps.push(Step::Write(Place::Removable));
    }
    if first || last { steps } else { Vec::new() }
}

/// Compares two versions as UAPI.10 says: part by part, numbers by value, letters before numbers; `~` is before the end,
/// which is before `-`, `^`, `.` and anything else.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut a, mut b) = (one.as_bytes(), other.as_bytes());
    loop {
        (a, b) = (without_separators(a), without_separators(b));
        if let Some(order) = mark(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return b.is_empty().cmp(&a.is_empty());
        }
        for separator in *b"-^." {
            if let Some(order) = mark(&mut a, &mut b, separator) {
                return order;
            }
        }
        let numeric = [a, b].iter().any(|text| text.first().is_some_and(u8::is_ascii_digit));
        let order = if numeric {
            by_value(take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit))
        } else {
            take(&mut a, u8::is_ascii_alphabetic).cmp(take(&mut b, u8::is_ascii_alphabetic))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// What follows the bytes that mean nothing.
fn without_separators(text: &[u8]) -> &[u8] {
    let means = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    text.get(text.iter().position(means).unwrap_or(text.len())..).unwrap_or_default()
}

/// A mark that only one begins with decides; one that both begin with is passed over.
fn mark(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (a.split_first(), b.split_first()) {
        (Some((first, rest_a)), Some((second, rest_b))) if *first == mark && *second == mark => {
            (*a, *b) = (rest_a, rest_b);
            None
        }
        (Some((first, _)), _) if *first == mark => Some(Ordering::Less),
        (_, Some((second, _))) if *second == mark => Some(Ordering::Greater),
        _ => None,
    }
}

/// Takes the bytes of a kind that `text` begins with.
fn take<'a>(text: &mut &'a [u8], kind: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !kind(byte)).unwrap_or(text.len());
    let (taken, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
    *text = rest;
    taken
}

/// Compares digits; none is less than any.
fn by_value(a: &[u8], b: &[u8]) -> Ordering {
    let value =
        |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<_>>();
    let (first, second) = (value(a), value(b));
    let order = first.len().cmp(&second.len()).then_with(|| first.cmp(&second));
    b.is_empty().cmp(&a.is_empty()).then(order)
}

#[cfg(test)]
mod tests;
