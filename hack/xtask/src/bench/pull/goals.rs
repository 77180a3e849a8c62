//! What Larder sets itself for pulls, and what came of it.
//! Pure: no I/O, no clock, no randomness.

use super::case::{GZIP, GZIP4, MANY, NEXT, RATIO, ZSTD};
use crate::bench::Row;
use crate::bench::row::LARDER;

/// A goal for the median of a case, or of a part of it.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// At most this.
    Most(f64),
    /// At least this.
    Least(f64),
    /// At most the median of another case and this.
    AboveCase(&'static str, f64),
}

/// By case and the beginning of the part's name; the time itself has none.
const GOALS: [(&str, &str, Goal); 14] = [
    (GZIP, "", Goal::Most(3000.0)),
    (GZIP, RATIO, Goal::Least(2.5)),
    (GZIP, MEMORY, Goal::Most(MEMORY_MEBIBYTES)),
    (GZIP, STORE, Goal::Most(STORE_TIMES)),
    (GZIP4, "", Goal::Most(2500.0)),
    (GZIP4, MEMORY, Goal::Most(MEMORY_MEBIBYTES)),
    (GZIP4, STORE, Goal::Most(STORE_TIMES)),
    (ZSTD, "", Goal::Most(1800.0)),
    (ZSTD, MEMORY, Goal::Most(MEMORY_MEBIBYTES)),
    (ZSTD, STORE, Goal::Most(STORE_TIMES)),
    (NEXT, "", Goal::Most(150.0)),
    (NEXT, MEMORY, Goal::Most(MEMORY_MEBIBYTES)),
    (MANY, "", Goal::AboveCase(GZIP, 400.0)),
    (MANY, MEMORY, Goal::Most(MEMORY_MEBIBYTES)),
];

/// The beginnings of parts' names, and what is set for them wherever an image is pulled.
const MEMORY: &str = "peak memory";
const MEMORY_MEBIBYTES: f64 = 60.0;
const STORE: &str = "store, of";
const STORE_TIMES: f64 = 1.01;

/// One line a goal whose case was measured.
pub(in crate::bench) fn verdicts(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (case, part, goal) in GOALS {
        let Some(row) = find(rows, case, part) else { continue };
        let (limit, met) = match goal {
            Goal::Most(limit) => (limit, row.p50 <= limit),
            Goal::Least(limit) => (limit, row.p50 >= limit),
            Goal::AboveCase(other, more) => {
                let Some(other) = find(rows, other, "") else { continue };
                (other.p50 + more, row.p50 <= other.p50 + more)
            }
        };
        let word = if matches!(goal, Goal::Least(_)) { "at least" } else { "at most" };
        let verdict = if met { "met" } else { "MISSED" };
        lines.push(format!("{verdict}: {}: {:.2} {}, goal {word} {limit:.2}", row.case, row.p50, row.unit));
    }
    lines
}

/// Our row of this case, or of its first part whose name begins so.
fn find<'a>(rows: &'a [Row], case: &str, part: &str) -> Option<&'a Row> {
    rows.iter().filter(|row| row.side == LARDER).find(|row| match row.case.split_once(" / ") {
        None => part.is_empty() && row.case == case,
        Some((of, name)) => !part.is_empty() && of == case && name.starts_with(part),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, value: f64) -> Row {
        Row::of("pull", case, "ms", &[value]).unwrap()
    }

    #[test]
    fn goals_are_met_or_missed_by_the_median() {
        let rows = [
            row(GZIP, 3100.0).by("containerd 2.4.2"),
            row(GZIP, 2900.0),
            row("gzip, 1 layer / times as fast as containerd 2.4.2", 2.4),
            row("gzip, 1 layer / peak memory of the daemon", 61.0).by("containerd 2.4.2"),
            row("gzip, 1 layer / peak memory of the daemon", 59.0),
            row(MANY, 3301.0),
        ];
        let lines = verdicts(&rows);
        let starts = |word: &str, case: &str| lines.iter().any(|line| line.starts_with(&format!("{word}: {case}: ")));
        assert!(starts("met", GZIP));
        assert!(starts("MISSED", "gzip, 1 layer / times as fast as containerd 2.4.2"));
        assert!(starts("met", "gzip, 1 layer / peak memory of the daemon"));
        assert!(starts("MISSED", MANY));
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_case_that_was_not_measured_has_no_verdict() {
        assert!(verdicts(&[row(MANY, 1.0)]).is_empty());
    }
}
