//! What Larder sets itself for image caches, and what came of it.
//! Pure: no I/O, no clock, no randomness.

use super::{AFTER_LAST_BYTE, AT_ONCE, FROM_STORE, HIT};
use crate::bench::Row;
use crate::bench::row::LARDER;

/// The beginning of the part of a row that says how many times as fast we are.
pub(super) const RATIO: &str = "times as fast as";
/// The case of the choice among many caches.
pub(super) const MATCH: &str = "the choice of a pod's cache";

/// A value of a row.
#[derive(Debug, Clone, Copy)]
enum Value {
    P50,
    P99,
    Max,
}

/// By the end of the case's name: the most that it may be.
const GOALS: [(&str, Value, f64); 6] = [
    (AFTER_LAST_BYTE, Value::P50, 250.0),
    (FROM_STORE, Value::P50, 150.0),
    (HIT, Value::P50, 35.0),
    (HIT, Value::P99, 100.0),
    (AT_ONCE, Value::Max, 2000.0),
    (MATCH, Value::P99, 1.0),
];

/// One line a goal whose case was measured.
pub(in crate::bench) fn verdicts(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (case, value, limit) in GOALS {
        for row in rows.iter().filter(|row| row.side == LARDER && row.case.ends_with(case)) {
            let (name, measured) = match value {
                Value::P50 => ("p50", row.p50),
                Value::P99 => ("p99", row.p99),
                Value::Max => ("max", row.max),
            };
            let verdict = if measured <= limit { "met" } else { "MISSED" };
            lines.push(format!("{verdict}: {}: {name} {measured:.2} {}, goal at most {limit}", row.case, row.unit));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_or_missed_by_our_own_rows_alone() {
        let row = |case: &str, value| Row::of("cache", case, "ms", &[value]).unwrap();
        let rows = [row(HIT, 36.0), row("100 pods at once", 1999.0), row("100 pods at once", 20_000.0).by("peer")];
        let lines = verdicts(&rows);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("MISSED: pod: cache hit: p50 36.00 ms"));
        assert!(lines[1].starts_with("met: pod: cache hit: p99"));
        assert!(lines[2].starts_with("met: 100 pods at once: max"));
    }
}
