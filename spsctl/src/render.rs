//! Tables and lists as text: values in, text out.

use std::fmt::Write;

use crate::model::{Job, LastUpgrade, Slot, Summary, Taint, rfc3339};
use crate::output::{GREEN, RED, Style, YELLOW, line};
use crate::progress::{amount, percent};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes as MiB, from one GiB on as GiB.
pub fn size(bytes: u64) -> String {
    // Rounded down, so that nothing looks complete before it is.
    let (unit, name, parts) = if bytes < GIB { (MIB, "MiB", 10_u64) } else { (GIB, "GiB", 100) };
    let fraction = u128::from(bytes % unit) * u128::from(parts) / u128::from(unit);
    let digits = if parts == 10 { 1 } else { 2 };
    format!("{}.{fraction:0digits$} {name}", bytes / unit)
}

/// The table of `slots`.
pub fn slots(slots: &[Slot], style: Style) -> String {
    let mut rows = vec![
        ["SLOT", "LABEL", "STATE", "VERSION", "BOOT", "INSTALLED", "VERIFIED", "NOW", "NEXT", "REASON"]
            .map(Cell::plain)
            .to_vec(),
    ];
    for slot in slots {
        rows.push(vec![
            Cell::plain(&slot.id.to_string()),
            Cell::of(slot.label.as_deref()),
            Cell::coloured(&slot.state, state_colour(&slot.state)),
            Cell::of(slot.version.as_deref()),
            Cell::of(slot.boot_version.as_deref()),
            Cell::of(slot.installed_at.map(rfc3339).as_deref()),
            Cell::of(verified(slot).as_deref()),
            Cell::of(slot.current.then_some("yes")),
            Cell::of(slot.after_reboot.then_some("yes")),
            Cell::of(slot.reason.as_deref()),
        ]);
    }
    table(&rows, style)
}

fn verified(slot: &Slot) -> Option<String> {
    let at = rfc3339(slot.verified_at?);
    Some(match &slot.verified_how {
        Some(how) => format!("{how} {at}"),
        None => at,
    })
}

/// The table of `jobs`.
pub fn jobs(jobs: &[Job], style: Style) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let head = ["JOB", "KIND", "SLOT", "STATE", "PHASE", "PROGRESS", "STARTED", "FINISHED", "ERROR"];
    let mut rows = vec![head.map(Cell::plain).to_vec()];
    for job in jobs {
        rows.push(vec![
            Cell::plain(&job.number.to_string()),
            Cell::plain(&job.kind),
            Cell::plain(&job.slot.to_string()),
            Cell::coloured(&job.state, state_colour(&job.state)),
            Cell::of(job.phase.as_deref()),
            Cell::plain(&job_progress(job)),
            Cell::of(job.started_at.map(rfc3339).as_deref()),
            Cell::of(job.finished_at.map(rfc3339).as_deref()),
            Cell::of(job.error.as_ref().map(|error| error.name.as_str())),
        ]);
    }
    table(&rows, style)
}

fn job_progress(job: &Job) -> String {
    match percent(job) {
        Some(percent) => format!("{percent} % of {}", size(job.bytes_total.unwrap_or(0))),
        None => amount(job),
    }
}

/// The page of `status`.
pub fn status(summary: &Summary, slots: &[Slot], jobs: &[Job], style: Style) -> String {
    let booted = match summary.booted {
        Some(id) => format!("slot {id}, {}", standing(summary, style)),
        None => "no slot (recovery, or not an appliance)".to_owned(),
    };
    let text = |value: &Option<String>| line(value.as_deref().unwrap_or("unknown"));
    let mut fields = vec![
        ("product", text(&summary.compatible)),
        ("running", booted),
        ("default", slot_word(summary.default)),
        ("next start", slot_word(summary.after_reboot)),
        ("fallback", summary.fallback.map_or_else(|| "none".to_owned(), |id| format!("slot {id}"))),
        ("boot loader", loader(summary.loader.as_deref())),
        ("epoch floor", summary.security_epoch.to_string()),
        ("empty slots", summary.empty_slots.to_string()),
        ("taint", taint_word(summary.taint_count, style)),
        ("read-back", readback(summary.readback.as_deref())),
        ("revocation", revocation(summary.revocation.as_deref())),
    ];
    if let Some(last) = &summary.last_upgrade {
        fields.push(("last upgrade", upgrade(last, style)));
    }
    for slot in slots {
        fields.push(("slot", short_slot(slot, style)));
    }
    for job in jobs.iter().filter(|job| !job.is_over()) {
        fields.push(("job", short_job(job)));
    }
    for warning in &summary.warnings {
        fields.push(("warning", style.paint(YELLOW, &line(warning))));
    }
    list(&fields)
}

/// Whether the running firmware has proven itself.
fn standing(summary: &Summary, style: Style) -> String {
    match (summary.trial, summary.confirmed) {
        (true, _) => style.paint(YELLOW, "in its trial, not confirmed yet"),
        (false, true) => style.paint(GREEN, "confirmed"),
        (false, false) => style.paint(YELLOW, "not confirmed"),
    }
}

fn taint_word(count: u32, style: Style) -> String {
    match count {
        0 => "none".to_owned(),
        1 => style.paint(YELLOW, "1 record"),
        count => style.paint(YELLOW, &format!("{count} records")),
    }
}

/// The table of `taint`.
pub fn taint(records: &[Taint], style: Style) -> String {
    if records.is_empty() {
        return "no records\n".to_owned();
    }
    let mut rows = vec![["NUMBER", "TIME", "CAUSE", "PLACE", "DETAIL"].map(Cell::plain).to_vec()];
    rows.extend(records.iter().map(|record| {
        vec![
            Cell::plain(&record.number.to_string()),
            Cell::of(record.at.map(rfc3339).as_deref()),
            Cell::coloured(&record.cause, Some(YELLOW)),
            Cell::plain(&record.place),
            Cell::of(record.detail.as_deref()),
        ]
    }));
    table(&rows, style)
}

fn slot_word(slot: Option<u32>) -> String {
    slot.map_or_else(|| "no slot".to_owned(), |id| format!("slot {id}"))
}

fn loader(word: Option<&str>) -> String {
    match word {
        Some("none") => "none (no firmware can be activated)".to_owned(),
        other => line(other.unwrap_or("unknown")),
    }
}

/// The last selection on one line.
pub fn upgrade(last: &LastUpgrade, style: Style) -> String {
    let colour = match last.outcome.as_str() {
        "confirmed" => GREEN,
        "failed" => RED,
        _ => YELLOW,
    };
    let mut text = style.paint(colour, &line(&last.outcome));
    let kind = line(last.kind.as_deref().unwrap_or("upgrade"));
    text = format!("{text}  {kind}");
    if let Some(version) = &last.version {
        text = match &last.from_version {
            Some(from) => format!("{text} from {} to {}", line(from), line(version)),
            None => format!("{text} to {}", line(version)),
        };
    }
    if let Some(slot) = last.slot {
        text = format!("{text} in slot {slot}");
    }
    if let Some(at) = last.ended_at.or(last.selected_at) {
        text = format!("{text}  {}", rfc3339(at));
    }
    for words in [&last.message, &last.reason].into_iter().flatten() {
        text = format!("{text}  {}", line(words));
    }
    text
}

fn readback(word: Option<&str>) -> String {
    match word {
        Some("direct") => "direct (what was written is read from the medium)".to_owned(),
        Some("cached") => "cached (reading back may be answered by a cache)".to_owned(),
        Some("impossible") => "impossible (these media cannot show what they stored)".to_owned(),
        other => line(other.unwrap_or("unknown")),
    }
}

fn revocation(word: Option<&str>) -> String {
    match word {
        Some("checked") => "checked against the CRL".to_owned(),
        Some("none") => "not checked (no CRL configured)".to_owned(),
        other => line(other.unwrap_or("unknown")),
    }
}

fn short_slot(slot: &Slot, style: Style) -> String {
    let mut text =
        format!("{}  {}", slot.id, style.paint(state_colour(&slot.state).unwrap_or(0), &line(&slot.state)));
    if let Some(version) = &slot.version {
        text = format!("{text}  {}", line(version));
    }
    for (is, word) in [(slot.current, "runs now"), (slot.after_reboot, "runs after the next reboot")] {
        if is {
            text = format!("{text}  {word}");
        }
    }
    match &slot.reason {
        Some(reason) => format!("{text}  {}", line(reason)),
        None => text,
    }
}

fn short_job(job: &Job) -> String {
    let phase = job.phase.as_deref().unwrap_or(&job.state);
    format!(
        "{}  {} of slot {}  {}  {}",
        job.number,
        line(&job.kind),
        job.slot,
        line(phase),
        job_progress(job)
    )
}

fn state_colour(state: &str) -> Option<u8> {
    match state {
        "verified" | "done" => Some(GREEN),
        "bad" | "failed" => Some(RED),
        "writing" | "running" | "queued" | "cancelled" => Some(YELLOW),
        _ => None,
    }
}

/// Names and values, aligned.
pub fn list(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:width$}  {value}");
    }
    out
}

#[derive(Clone)]
struct Cell {
    text: String,
    colour: Option<u8>,
}

impl Cell {
    fn plain(text: &str) -> Self {
        Self::coloured(text, None)
    }

    fn of(text: Option<&str>) -> Self {
        Self::plain(text.unwrap_or("-"))
    }

    fn coloured(text: &str, colour: Option<u8>) -> Self {
        Self { text: line(text), colour }
    }
}

/// Columns aligned at their widest cell; no spaces at the end of a line.
fn table(rows: &[Vec<Cell>], style: Style) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.text.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    rows.iter().map(|row| table_line(row, &widths, style)).collect()
}

fn table_line(row: &[Cell], widths: &[usize], style: Style) -> String {
    let mut out = String::new();
    let mut gap = 0;
    for (cell, width) in row.iter().zip(widths) {
        out.extend(std::iter::repeat_n(' ', gap));
        match cell.colour {
            Some(colour) => out.push_str(&style.paint(colour, &cell.text)),
            None => out.push_str(&cell.text),
        }
        gap = width.saturating_sub(cell.text.chars().count()) + 2;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobError;

    fn filled() -> Slot {
        Slot {
            id: 1,
            label: Some("A".into()),
            state: "verified".into(),
            version: Some("2.1.0".into()),
            boot_version: Some("7".into()),
            security_epoch: 3,
            size: 4 * GIB,
            installed_at: Some(1_780_000_000),
            verified_at: Some(1_780_000_060),
            verified_how: Some("full".into()),
            current: true,
            after_reboot: true,
            ..Slot::default()
        }
    }

    fn damaged() -> Slot {
        Slot {
            id: 2,
            label: Some("B".into()),
            state: "bad".into(),
            reason: Some("trailer\x1b[2J missing".into()),
            ..Slot::default()
        }
    }

    fn running() -> Job {
        Job {
            number: 12,
            kind: "install".into(),
            slot: 2,
            state: "running".into(),
            phase: Some("writing".into()),
            bytes_done: GIB / 4,
            bytes_total: Some(GIB),
            started_at: Some(1_780_000_000),
            ..Job::default()
        }
    }

    #[test]
    fn taint_table() {
        let record = Taint {
            number: 3,
            id: "0123456789abcdef".into(),
            cause: "data-full".into(),
            place: "data".into(),
            detail: Some("no\nroom".into()),
            at: Some(1_780_000_000),
            cleared_at: None,
        };
        assert_eq!(
            taint(&[record], Style::PLAIN),
            "\
NUMBER  TIME                  CAUSE      PLACE  DETAIL
3       2026-05-28T20:26:40Z  data-full  data   no\\nroom
"
        );
        assert_eq!(taint(&[], Style::PLAIN), "no records\n");
    }

    // rows: J5
    #[test]
    fn slots_table() {
        assert_eq!(
            slots(&[filled(), damaged()], Style::PLAIN),
            "\
SLOT  LABEL  STATE     VERSION  BOOT  INSTALLED             VERIFIED                   NOW  NEXT  REASON
1     A      verified  2.1.0    7     2026-05-28T20:26:40Z  full 2026-05-28T20:27:40Z  yes  yes   -
2     B      bad       -        -     -                     -                          -    -     trailer\\u{1b}[2J missing
"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let style = Style { terminal: true, colour: true };
        let coloured = slots(&[filled(), damaged()], style);
        assert!(coloured.contains("\x1b[32mverified\x1b[0m  2.1.0"));
        let stripped = coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(stripped, slots(&[filled(), damaged()], Style::PLAIN));
    }

    #[test]
    fn jobs_table() {
        let failed = Job {
            number: 3,
            kind: "verify".into(),
            slot: 1,
            state: "failed".into(),
            bytes_done: MIB * 3 / 2,
            error: Some(JobError { name: "Device".into(), message: "read error".into() }),
            finished_at: Some(1_780_000_000),
            ..Job::default()
        };
        assert_eq!(
            jobs(&[failed, running()], Style::PLAIN),
            "\
JOB  KIND     SLOT  STATE    PHASE    PROGRESS          STARTED               FINISHED              ERROR
3    verify   1     failed   -        1.5 MiB           -                     2026-05-28T20:26:40Z  Device
12   install  2     running  writing  25 % of 1.00 GiB  2026-05-28T20:26:40Z  -                     -
"
        );
        assert_eq!(jobs(&[], Style::PLAIN), "no jobs\n");
    }

    #[test]
    fn status_page() {
        let summary = Summary {
            booted: Some(2),
            default: Some(1),
            after_reboot: Some(1),
            trial: true,
            fallback: Some(1),
            loader: Some("grub".into()),
            last_upgrade: Some(LastUpgrade {
                outcome: "trial".into(),
                kind: Some("upgrade".into()),
                slot: Some(2),
                version: Some("2.2.0".into()),
                from_version: Some("2.1.0".into()),
                message: Some("ticket\n4711".into()),
                selected_at: Some(1_780_000_000),
                ..LastUpgrade::default()
            }),
            compatible: Some("sps-1".into()),
            security_epoch: 3,
            empty_slots: 0,
            taint_count: 1,
            readback: Some("cached".into()),
            revocation: Some("none".into()),
            warnings: vec!["state was lost".into()],
            ..Summary::default()
        };
        let over = Job { state: "done".into(), ..running() };
        assert_eq!(
            status(&summary, &[filled(), damaged()], &[over, running()], Style::PLAIN),
            "\
product       sps-1
running       slot 2, in its trial, not confirmed yet
default       slot 1
next start    slot 1
fallback      slot 1
boot loader   grub
epoch floor   3
empty slots   0
taint         1 record
read-back     cached (reading back may be answered by a cache)
revocation    not checked (no CRL configured)
last upgrade  trial  upgrade from 2.1.0 to 2.2.0 in slot 2  2026-05-28T20:26:40Z  ticket\\n4711
slot          1  verified  2.1.0  runs now  runs after the next reboot
slot          2  bad  trailer\\u{1b}[2J missing
job           12  install of slot 2  writing  25 % of 1.00 GiB
warning       state was lost
"
        );
    }

    #[test]
    fn status_of_a_system_from_no_slot() {
        let text = status(&Summary::default(), &[], &[], Style::PLAIN);
        for row in ["running      no slot (recovery", "next start   no slot\n", "fallback     none\n"] {
            assert!(text.contains(row), "{row:?} is not in\n{text}");
        }
        assert!(!text.contains("last upgrade"), "{text}");
    }

    #[test]
    fn sizes() {
        assert_eq!(
            [size(0), size(MIB - 1), size(GIB - 1), size(GIB), size(u64::MAX)],
            ["0.0 MiB", "0.9 MiB", "1023.9 MiB", "1.00 GiB", "17179869183.99 GiB"]
        );
    }
}
