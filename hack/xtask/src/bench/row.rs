//! What a bench says: rows of one form, as a table or as JSON.
//! Pure: no I/O, no clock, no randomness.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// Who was measured: Larder.
pub(super) const LARDER: &str = "larder";

/// One line of a result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The bench.
    pub bench: String,
    /// What was done, and after ` / ` which part of it.
    pub case: String,
    /// `larder`, or a peer's name and version.
    pub side: String,
    /// `ms`, `MB` ...
    pub unit: String,
    /// Number of samples.
    pub n: usize,
    /// The median.
    pub p50: f64,
    /// Nine of ten are no greater.
    pub p90: f64,
    /// 99 of 100 are no greater; with fewer than 100 samples it is the greatest.
    pub p99: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Row {
    /// Sums up samples of ours. `None` when there are none.
    pub fn of(bench: &str, case: &str, unit: &str, samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            bench: bench.to_owned(),
            case: case.to_owned(),
            side: LARDER.to_owned(),
            unit: unit.to_owned(),
            n: sorted.len(),
            p50: rank(&sorted, 50),
            p90: rank(&sorted, 90),
            p99: rank(&sorted, 99),
            min,
            max,
        })
    }
}

impl Row {
    /// The same, of another side.
    pub fn by(self, side: &str) -> Self {
        Self { side: side.to_owned(), ..self }
    }
}

/// The sample that this many percent are no greater than: the nearest rank, never a value between two samples.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

/// One JSON array, a row a line.
pub(super) fn json(rows: &[Row]) -> String {
    let lines: Vec<String> = rows.iter().filter_map(|row| serde_json::to_string(&rounded(row)).ok()).collect();
    format!("[\n{}\n]", lines.join(",\n"))
}

fn rounded(row: &Row) -> Row {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    Row {
        p50: round(row.p50),
        p90: round(row.p90),
        p99: round(row.p99),
        min: round(row.min),
        max: round(row.max),
        ..row.clone()
    }
}

/// A table for people.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["case", "side", "unit", "n", "p50", "p90", "p99", "min", "max"]);
    for row in rows {
        let mut cells = vec![row.case.clone(), row.side.clone(), row.unit.clone(), row.n.to_string()];
        cells.extend([row.p50, row.p90, row.p99, row.min, row.max].map(|value| shown(row, value)));
        table.add_row(cells);
    }
    for column in 3..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// A value as people read it: a ratio says nothing with one digit, nor does what takes less than a unit.
pub(super) fn shown(row: &Row, value: f64) -> String {
    let digits = if row.p50 < 1.0 { 3 } else { usize::from(row.unit == "x" || row.unit == "s") + 1 };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranks_are_samples() {
        let samples: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        let row = Row::of("start", "hit", "ms", &samples).unwrap();
        assert_eq!((row.n, row.p50, row.p90, row.p99, row.min, row.max), (50, 25.0, 45.0, 50.0, 1.0, 50.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Row::of("start", "hit", "ms", &hundred).unwrap().p99, 99.0);
        assert_eq!(Row::of("start", "hit", "ms", &[]), None);
    }

    #[test]
    fn json_is_one_array_of_rows() {
        let row = Row::of("start", "cache hit", "ms", &[1.23456]).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&json(&[row.clone(), row])).unwrap();
        assert_eq!(
            parsed[1],
            serde_json::json!({"bench": "start", "case": "cache hit", "side": "larder", "unit": "ms", "n": 1,
                "p50": 1.235, "p90": 1.235, "p99": 1.235, "min": 1.235, "max": 1.235})
        );
        assert_eq!(json(&[]), "[\n\n]");
    }

    proptest! {
        #[test]
        fn ranks_are_in_order(samples in proptest::collection::vec(0.0f64..1e6, 1..200)) {
            let row = Row::of("b", "c", "ms", &samples).unwrap();
            prop_assert!(row.min <= row.p50 && row.p50 <= row.p90 && row.p90 <= row.p99 && row.p99 <= row.max);
        }
    }
}
