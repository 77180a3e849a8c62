//! What the machine itself is like at this moment, told beside every result.

use super::Row;
use tokio::time::Instant;

/// Memory that is touched, in pages of 4 KiB: 64 MiB.
const PAGES: usize = 16 * 1024;

/// What it costs to touch a page for the first time, now: a machine that has given idle memory back to its host is several
/// times slower at everything that allocates, and its results mean nothing beside others.
pub(super) fn row(bench: &str) -> Option<Row> {
    let mut samples = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        let mut memory = vec![0u8; PAGES * 4096];
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        std::hint::black_box(&memory);
        samples.push(begin.elapsed().as_secs_f64() * 1e6 / PAGES as f64);
    }
    Row::of(bench, "calibration: first touch of a page", "us", &samples)
}
