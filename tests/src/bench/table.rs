//! Rows of results: the printed table and its JSON.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::pairing::{Pairs, Sample};
use super::statistics::Summary;

/// One row. The JSON of a run is a list of these.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was done, `install`.
    pub name: String,
    /// What was measured, `rauc`.
    pub metric: String,
    /// Its unit, `s`.
    pub unit: String,
    /// Our median.
    pub ours: f64,
    /// The rival's median; null where there is no rival.
    pub rival: Option<f64>,
    /// Who the rival is.
    pub rival_name: Option<String>,
    /// `ours / rival`.
    pub ratio: Option<f64>,
    /// How many pairs the medians are of; without a rival, how many runs.
    pub pairs: usize,
    /// Least and greatest of ours.
    #[serde(skip)]
    pub ours_spread: (f64, f64),
    /// Least and greatest of the rival's.
    #[serde(skip)]
    pub rival_spread: Option<(f64, f64)>,
    /// Least and greatest ratio within one pair.
    #[serde(skip)]
    pub ratio_spread: Option<(f64, f64)>,
}

impl Row {
    /// A row of one quantity of the samples of `pairs`.
    pub fn paired(
        title: (&str, &str),
        unit: &str,
        pairs: &Pairs,
        quantity: fn(&Sample) -> f64,
    ) -> Result<Self> {
        let ours: Vec<f64> = pairs.ours.iter().map(quantity).collect();
        let rival: Vec<f64> = pairs.rival.iter().map(quantity).collect();
        let ratios: Vec<f64> = ours.iter().zip(&rival).map(|(ours, rival)| ours / rival).collect();
        let against = Summary::of(&rival).context("no pair was taken")?;
        let within = Summary::of(&ratios).context("no pair was taken")?;
        let mut row = Self::single(title, unit, &ours)?;
        row.rival = Some(rounded(against.median));
        row.rival_name = Some(pairs.rival_name.clone());
        row.ratio = Some(rounded(Summary::of(&ours).context("no pair was taken")?.median / against.median));
        row.rival_spread = Some((against.min, against.max));
        row.ratio_spread = Some((within.min, within.max));
        Ok(row)
    }

    /// A row of a quantity that no rival has.
    pub fn single((name, metric): (&str, &str), unit: &str, values: &[f64]) -> Result<Self> {
        let ours = Summary::of(values).with_context(|| format!("{name}/{metric}: nothing was measured"))?;
        Ok(Self {
            name: name.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            ours: rounded(ours.median),
            rival: None,
            rival_name: None,
            ratio: None,
            pairs: values.len(),
            ours_spread: (ours.min, ours.max),
            rival_spread: None,
            ratio_spread: None,
        })
    }
}

/// To a thousandth: what the JSON says is not finer than what a clock and a scheduler give.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The table as text: medians, with least and greatest in brackets.
pub fn render(rows: &[Row]) -> String {
    let header = ["name", "unit", "ours", "rival", "ratio", "n"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    text
}

fn cells(row: &Row) -> [String; 6] {
    let rival = match (&row.rival_name, row.rival, row.rival_spread) {
        (Some(name), Some(median), Some(spread)) => format!("{name} {}", with_spread(median, spread)),
        _ => "-".to_owned(),
    };
    let ratio = match (row.ratio, row.ratio_spread) {
        (Some(ratio), Some(spread)) => with_spread(ratio, spread),
        _ => "-".to_owned(),
    };
    [
        format!("{}/{}", row.name, row.metric),
        row.unit.clone(),
        with_spread(row.ours, row.ours_spread),
        rival,
        ratio,
        row.pairs.to_string(),
    ]
}

fn with_spread(median: f64, (min, max): (f64, f64)) -> String {
    format!("{median:.2} [{min:.2}..{max:.2}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Pairs {
        let sample = |seconds| Sample { seconds, peak_rss_mib: 10.0 };
        Pairs {
            ours: [1.0, 2.0, 1.5].map(sample).to_vec(),
            rival: [2.0, 5.0, 4.0].map(sample).to_vec(),
            rival_name: "RAUC".to_owned(),
        }
    }

    #[test]
    fn json_has_the_named_fields_and_no_other() {
        let row = Row::paired(("install", "rauc"), "s", &pairs(), |sample| sample.seconds).unwrap();
        assert_eq!(
            serde_json::to_string(&[row]).unwrap(),
            r#"[{"name":"install","metric":"rauc","unit":"s","ours":1.5,"rival":4.0,"rival_name":"RAUC","ratio":0.375,"pairs":3}]"#
        );
        let row = Row::single(("idle", "pss-mib"), "MiB", &[5.0]).unwrap();
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"name":"idle","metric":"pss-mib","unit":"MiB","ours":5.0,"rival":null,"rival_name":null,"ratio":null,"pairs":1}"#
        );
    }

    #[test]
    fn table_shows_medians_and_spread() {
        let paired = Row::paired(("install", "rauc"), "s", &pairs(), |sample| sample.seconds).unwrap();
        let single = Row::single(("idle", "pss-mib"), "MiB", &[5.0]).unwrap();
        let expected = "\
name          unit  ours               rival                   ratio              n
install/rauc  s     1.50 [1.00..2.00]  RAUC 4.00 [2.00..5.00]  0.38 [0.38..0.50]  3
idle/pss-mib  MiB   5.00 [5.00..5.00]  -                       -                  1
";
        assert_eq!(render(&[paired, single]), expected);
    }

    #[test]
    fn nothing_measured_is_no_row() {
        assert!(Row::single(("a", "b"), "s", &[]).is_err());
        assert!(Row::paired(("a", "b"), "s", &Pairs::default(), |sample| sample.seconds).is_err());
    }
}
