//! `hack/bench start`: how long pods take from their creation until a watcher sees them Ready.
//!
//! Every case has one more run than it counts: the first is dropped, because memory that the machine has not touched for a
//! while is slow the first time. Between starts there is a pause, so each is one start and not a part of a burst. The
//! registry is on this machine and its files are in the page cache.

use super::calibration;
use super::ground::Ground;
use super::pods::{From, Kind, Placed, Starter, make_cache};
use super::row::Row;
use super::trace;
use crate::console::step;
use crate::images::{LARGE_GZIP, LARGE_GZIP4, LARGE_NEXT, LARGE_ZSTD, LARGE_ZSTD4};
use anyhow::Result;
use std::time::Duration;
use tokio::time::sleep;

const BENCH: &str = "start";
/// The pause before each start.
const PAUSE: Duration = Duration::from_millis(200);

/// How often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Starts of a case whose layers are on the node.
    pub(super) starts: usize,
    /// Pulls of a case whose layers are not.
    pub(super) pulls: usize,
}

/// Measures the cases whose names contain `only` into `rows`, those before a failure too.
pub(super) async fn run(ground: &Ground, counts: Counts, only: &str, rows: &mut Vec<Row>) -> Result<()> {
    rows.extend(calibration::row(BENCH));
    for (case, image) in [
        ("cold pull, gzip, 1 layer", LARGE_GZIP),
        ("cold pull, zstd, 1 layer", LARGE_ZSTD),
        ("cold pull, zstd, 4 layers", LARGE_ZSTD4),
        ("cold pull, gzip, 4 layers", LARGE_GZIP4),
    ] {
        if case.contains(only) {
            rows.extend(step(case, cold(ground, case, image, counts.pulls)).await?);
        }
    }
    ground.fresh_store().await?;
    let image = ground.image(LARGE_GZIP);
    let hit = From::Cache(make_cache(ground, "larder-bench", &image).await?.id);
    for (case, from, placed) in [
        ("warm store", From::Registry, Placed::Directly),
        ("cache hit", hit.clone(), Placed::Directly),
        ("cache hit, by the scheduler", hit, Placed::ByScheduler),
    ] {
        if case.contains(only) {
            let kind = Kind { image: image.clone(), from, placed };
            rows.extend(repeat(ground, case, &kind, counts.starts).await?);
        }
    }
    rows.extend(calibration::row(BENCH));
    Ok(())
}

/// Starts from an empty store; then, where the image has a successor with one small new layer, that one.
async fn cold(ground: &Ground, case: &str, image: &str, pulls: usize) -> Result<Vec<Row>> {
    let mut samples = vec![Vec::new(); 2];
    let mut images = vec![image];
    if image == LARGE_GZIP4 {
        images.push(LARGE_NEXT);
    }
    for run in 0..=pulls {
        ground.fresh_store().await?;
        let mut starter = Starter::new(ground).await?;
        for (image, samples) in images.iter().zip(&mut samples) {
            let kind = Kind { image: ground.image(image), from: From::Registry, placed: Placed::Directly };
            sleep(PAUSE).await;
            let (name, took) = starter.start(&kind).await?;
            if run > 0 {
                samples.push(milliseconds(took));
            }
            starter.remove(&name).await?;
        }
    }
    let cases = [case, "pull of one small new layer"];
    Ok(cases.iter().zip(&samples).filter_map(|(case, samples)| Row::of(BENCH, case, "ms", samples)).collect())
}

/// Starts the same pod again and again, and splits the time by the agent's own account of it.
async fn repeat(ground: &Ground, case: &str, kind: &Kind, starts: usize) -> Result<Vec<Row>> {
    step(&format!("{case}, {starts} times"), async {
        let mut starter = Starter::new(ground).await?;
        let mut samples = Vec::new();
        let mut mark = ground.log_mark()?;
        for run in 0..=starts {
            sleep(PAUSE).await;
            let (name, took) = starter.start(kind).await?;
            if run > 0 {
                samples.push(milliseconds(took));
            } else {
                mark = ground.log_mark()?;
            }
            starter.remove(&name).await?;
        }
        let mut rows: Vec<Row> = Row::of(BENCH, case, "ms", &samples).into_iter().collect();
        for (name, samples) in trace::steps(&ground.log_since(mark)?) {
            rows.extend(Row::of(BENCH, &format!("{case} / {name}"), "ms", &samples));
        }
        Ok(rows)
    })
    .await
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
