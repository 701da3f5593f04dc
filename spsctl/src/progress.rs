//! How a running job is shown: one line that moves on a terminal, few plain lines elsewhere.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::Job;
use crate::output::line;
use crate::render::size;

/// The rate is that of the last few seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// Columns of the moving line; more would wrap on a narrow terminal and then not move any more.
const COLUMNS: usize = 79;

/// What was shown so far. Time is passed in, so that a test can tell it.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    phase: String,
    tenths: Option<u64>,
    samples: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// For a terminal, or for anything else.
    pub fn new(terminal: bool) -> Self {
        Self { terminal, phase: String::new(), tenths: None, samples: VecDeque::new() }
    }

    /// What to write to standard error for `job` at `now` (time since the start); may be empty.
    pub fn update(&mut self, now: Duration, job: &Job) -> String {
        let phase = job.phase.as_deref().unwrap_or(&job.state);
        let new_phase = phase != self.phase;
        if new_phase {
            phase.clone_into(&mut self.phase);
            self.tenths = None;
            self.samples.clear();
        }
        if self.terminal {
            self.sample(now, job.bytes_done);
            let text: String = self.moving_line(job).chars().take(COLUMNS).collect();
            return format!("\r\x1b[K{text}");
        }
        self.plain_line(new_phase, job)
    }

    /// What takes the moving line away again.
    pub fn end(&self) -> &'static str {
        if self.terminal { "\r\x1b[K" } else { "" }
    }

    fn sample(&mut self, now: Duration, done: u64) {
        if self.samples.back().is_some_and(|(_, last)| *last > done) {
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over the window.
    fn rate(&self) -> Option<u64> {
        let (from, first) = self.samples.front()?;
        let (to, last) = self.samples.back()?;
        let milliseconds = to.saturating_sub(*from).as_millis();
        let bytes = u128::from(last.saturating_sub(*first));
        u64::try_from((bytes * 1000).checked_div(milliseconds)?).ok().filter(|rate| *rate > 0)
    }

    fn moving_line(&self, job: &Job) -> String {
        let mut text = format!("slot {}  {}  {}", job.slot, line(&self.phase), amount(job));
        if let Some(percent) = percent(job) {
            text = format!("{text}  {percent} %");
        }
        if let Some(rate) = self.rate() {
            text = format!("{text}  {}/s", size(rate));
            if let Some(total) = job.bytes_total {
                let left = total.saturating_sub(job.bytes_done).div_ceil(rate);
                text = format!("{text}  {} left", duration(left));
            }
        }
        text
    }

    fn plain_line(&mut self, new_phase: bool, job: &Job) -> String {
        let tenths = percent(job).map(|percent| percent / 10);
        let further = tenths.is_some_and(|now| self.tenths.is_none_or(|before| now > before));
        if !new_phase && !further {
            return String::new();
        }
        self.tenths = tenths.or(self.tenths);
        let phase = line(&self.phase);
        match percent(job) {
            Some(percent) => format!("slot {}: {phase}: {percent} % ({})\n", job.slot, amount(job)),
            None if job.bytes_done > 0 => format!("slot {}: {phase}: {}\n", job.slot, amount(job)),
            None => format!("slot {}: {phase}\n", job.slot),
        }
    }
}

/// Bytes done, of how many.
pub fn amount(job: &Job) -> String {
    match job.bytes_total {
        Some(total) => format!("{} of {}", size(job.bytes_done), size(total)),
        None => size(job.bytes_done),
    }
}

/// Whole percent done, never above 100.
pub fn percent(job: &Job) -> Option<u64> {
    let total = u128::from(job.bytes_total?);
    u64::try_from((u128::from(job.bytes_done) * 100).checked_div(total)?.min(100)).ok()
}

/// Seconds for people.
pub fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn job(phase: &str, done: u64, total: u64) -> Job {
        Job {
            slot: 2,
            state: "running".to_owned(),
            phase: Some(phase.to_owned()),
            bytes_done: done,
            bytes_total: Some(total).filter(|total| *total > 0),
            ..Job::default()
        }
    }

    #[test]
    fn terminal_line_has_bytes_rate_and_time_left() {
        let mut progress = Progress::new(true);
        progress.update(Duration::ZERO, &job("writing", 0, 1024 * MIB));
        assert_eq!(
            progress.update(Duration::from_secs(2), &job("writing", 256 * MIB, 1024 * MIB)),
            "\r\x1b[Kslot 2  writing  256.0 MiB of 1.00 GiB  25 %  128.0 MiB/s  6 s left"
        );
    }

    #[test]
    fn rate_forgets_what_is_long_ago() {
        let mut progress = Progress::new(true);
        for second in 0..20_u64 {
            let done = if second < 10 { 0 } else { (second - 9) * 10 * MIB };
            progress.update(Duration::from_secs(second), &job("writing", done, 0));
        }
        assert_eq!(progress.rate(), Some(10 * MIB));
    }

    #[test]
    fn unknown_total_and_no_rate_are_left_out() {
        let mut progress = Progress::new(true);
        assert_eq!(
            progress.update(Duration::ZERO, &job("checking", MIB, 0)),
            "\r\x1b[Kslot 2  checking  1.0 MiB"
        );
    }

    #[test]
    fn plain_lines_come_once_a_phase_and_every_ten_percent() {
        let mut progress = Progress::new(false);
        let mut text = String::new();
        text += &progress.update(Duration::ZERO, &job("manifest", 0, 0));
        text += &progress.update(Duration::ZERO, &job("manifest", 0, 0));
        for percent in 0..=25 {
            text += &progress.update(Duration::from_secs(percent), &job("writing", percent * MIB, 100 * MIB));
        }
        text += &progress.update(Duration::from_mins(1), &job("flushing", 100 * MIB, 100 * MIB));
        assert_eq!(
            text,
            "slot 2: manifest\n\
             slot 2: writing: 0 % (0.0 MiB of 100.0 MiB)\n\
             slot 2: writing: 10 % (10.0 MiB of 100.0 MiB)\n\
             slot 2: writing: 20 % (20.0 MiB of 100.0 MiB)\n\
             slot 2: flushing: 100 % (100.0 MiB of 100.0 MiB)\n"
        );
    }

    #[test]
    fn long_line_is_cut_before_it_wraps() {
        let mut progress = Progress::new(true);
        let text = progress.update(Duration::ZERO, &job(&"x".repeat(200), 0, 0));
        assert_eq!(text.chars().count(), COLUMNS + "\r\x1b[K".len());
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([duration(5), duration(65), duration(3700)], ["5 s", "1 min 05 s", "1 h 01 min"]);
    }
}
