//! What is measured, and how samples become rows.
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use super::engine::Sample;
use crate::bench::Row;
use crate::images::{LARGE_GZIP, LARGE_GZIP4, LARGE_NEXT, LARGE_ZSTD};

/// One start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// As a row names it.
    pub(super) title: &'static str,
    /// The sample image.
    pub(super) image: &'static str,
    /// How many containers at the same moment.
    pub(super) containers: usize,
}

/// Starts that follow each other in one life of an engine, which begins with an empty store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) steps: &'static [Step],
}

impl Case {
    pub(super) fn titles(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.title)
    }
}

pub(super) const GZIP: &str = "gzip, 1 layer";
pub(super) const GZIP4: &str = "gzip, 4 layers";
pub(super) const NEXT: &str = "one small new layer";
pub(super) const ZSTD: &str = "zstd, 1 layer";
pub(super) const MANY: &str = "gzip, 1 layer, 20 pods";

/// All cases.
pub(super) const CASES: [Case; 4] = [
    Case { steps: &[Step { title: GZIP, image: LARGE_GZIP, containers: 1 }] },
    Case {
        steps: &[
            Step { title: GZIP4, image: LARGE_GZIP4, containers: 1 },
            Step { title: NEXT, image: LARGE_NEXT, containers: 1 },
        ],
    },
    Case { steps: &[Step { title: ZSTD, image: LARGE_ZSTD, containers: 1 }] },
    Case { steps: &[Step { title: MANY, image: LARGE_GZIP, containers: 20 }] },
];

/// The row of how many times as fast the first side is.
pub(super) const RATIO: &str = "times as fast";

/// The rows of one step: for each side its time, CPU time, memory and disk; then how the first compares with the second, and
/// what the engines themselves say of their steps. Samples of the same place in both lists were taken side by side.
pub(super) fn rows(bench: &str, title: &str, plain_bytes: u64, sides: &[(&str, Vec<Sample>); 2]) -> Vec<Row> {
    let part = |part: &str| format!("{title} / {part}");
    let plain = plain_bytes as f64;
    let mut rows = Vec::new();
    type Value = fn(&Sample) -> f64;
    let values: [(String, &str, Value); 4] = [
        (title.to_owned(), "ms", |sample| sample.milliseconds),
        (part("CPU"), "s", |sample| sample.cpu_seconds),
        (part("peak memory of the daemon"), "MiB", |sample| sample.peak_mebibytes),
        (part("store"), "MB", |sample| sample.store_bytes / 1e6),
    ];
    for (case, unit, value) in &values {
        for (side, samples) in sides {
            let samples: Vec<f64> = samples.iter().map(value).collect();
            rows.extend(Row::of(bench, case, unit, &samples).map(|row| row.by(side)));
        }
    }
    for (side, samples) in sides {
        let samples: Vec<f64> = samples.iter().map(|sample| sample.store_bytes / plain).collect();
        rows.extend(Row::of(bench, &part("store, of the plain bytes"), "x", &samples).map(|row| row.by(side)));
    }
    let [(first, ours), (second, theirs)] = sides;
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| b.milliseconds / a.milliseconds).collect();
    let ratio = Row::of(bench, &format!("{} as {second}", part(RATIO)), "x", &ratios);
    rows.extend(ratio.map(|row| row.by(first)));
    for (side, samples) in sides {
        let mut steps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, values) in samples.iter().flat_map(|sample| &sample.steps) {
            steps.entry(name).or_default().extend(values);
        }
        for (name, samples) in steps {
            rows.extend(Row::of(bench, &part(name), "ms", &samples).map(|row| row.by(side)));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(milliseconds: f64, image: f64) -> Sample {
        let steps = BTreeMap::from([("image".to_owned(), vec![image])]);
        Sample { milliseconds, cpu_seconds: 3.0, peak_mebibytes: 50.0, store_bytes: 800e6, steps }
    }

    #[test]
    fn both_sides_are_told_and_compared_pair_by_pair() {
        let ours = vec![sample(1000.0, 900.0), sample(2000.0, 1900.0), sample(4000.0, 3900.0)];
        let theirs = vec![sample(3000.0, 0.0), sample(4000.0, 0.0), sample(20_000.0, 0.0)];
        let rows = rows("pull", "x", 792_000_000, &[("larder", ours), ("peer 2.4", theirs)]);
        let find = |case: &str, side: &str| rows.iter().find(|row| row.case == case && row.side == side).unwrap();
        assert_eq!((find("x", "larder").p50, find("x", "peer 2.4").p50), (2000.0, 4000.0));
        let ratio = find("x / times as fast as peer 2.4", "larder");
        assert_eq!((ratio.min, ratio.p50, ratio.max, ratio.unit.as_str()), (2.0, 3.0, 5.0, "x"));
        assert_eq!(find("x / store", "larder").p50, 800.0);
        assert!((find("x / store, of the plain bytes", "peer 2.4").p50 - 1.0101).abs() < 0.001);
        assert_eq!(find("x / image", "larder").max, 3900.0);
        assert!(rows.iter().all(|row| row.n == 3 && row.bench == "pull"));
    }

    #[test]
    fn titles_differ() {
        let titles: Vec<&str> = CASES.iter().flat_map(Case::titles).collect();
        let distinct: std::collections::BTreeSet<_> = titles.iter().collect();
        assert_eq!(titles.len(), distinct.len());
    }
}
