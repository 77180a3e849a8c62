//! `cargo xtask bench NAME`: measures and prints a table, or with `--json` one array of rows.
//!
//! A bench runs on the cluster of `hack/up --empty` and brings it up where there is none. It takes the first virtual node
//! for itself, with a store of its own, and leaves everything as it was.

mod ground;
mod memory;
mod pods;
mod row;
mod start;
mod trace;

use crate::console::{note, say};
use anyhow::Result;
use clap::ValueEnum;
use ground::Ground;

pub use row::Row;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bench
    #[arg(value_enum)]
    name: Name,
    /// Print one JSON array of rows instead of a table
    #[arg(long)]
    json: bool,
    /// Starts of each case whose layers are on the node
    #[arg(long, default_value_t = 50, value_name = "N")]
    starts: usize,
    /// Starts of each case whose layers must be pulled
    #[arg(long, default_value_t = 5, value_name = "N")]
    pulls: usize,
    /// Pods at the same time, to measure memory
    #[arg(long, default_value_t = 20, value_name = "N")]
    pods: usize,
}

/// The benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// From a pod's creation to Ready: cold pull, warm store, cache hit
    Start,
    /// Resident memory of the agent and the provider, idle and for each pod
    Memory,
}

/// Runs one bench.
///
/// # Errors
/// When there is no cluster to be had, it is in use, or a measured pod fails.
pub async fn run(args: Args) -> Result<()> {
    warn_if_busy();
    let ground = Ground::take().await?;
    let counts = start::Counts { starts: args.starts, pulls: args.pulls };
    let mut rows = Vec::new();
    let measured = match args.name {
        Name::Start => start::run(&ground, counts, &mut rows).await,
        Name::Memory => memory::run(&ground, args.pods.max(1), &mut rows).await,
    };
    // The cluster is put in order and what was measured is shown whatever came of it; the bench's own error is the one to
    // tell.
    let left = ground.leave().await;
    say(&if args.json { row::json(&rows) } else { row::table(&rows) });
    measured?;
    left
}

/// Times that were taken beside other work say little.
fn warn_if_busy() {
    let Ok(text) = std::fs::read_to_string("/proc/loadavg") else { return };
    let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if load > cores as f64 / 2.0 {
        note(&format!("!! this machine is busy (load {load} on {cores} cores): its figures say little about Larder"));
    }
}
