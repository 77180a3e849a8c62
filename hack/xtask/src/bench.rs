//! `cargo xtask bench NAME`: measures and prints a table, or with `--json` one array of rows.
//!
//! `start`, `memory` and `cache` run on the cluster of `hack/up --empty` and bring it up where there is none. They take the first
//! virtual node for themselves, with a store of its own. `pull` needs no cluster. All leave everything as it was, also when
//! they are interrupted; what one that was killed leaves is put right by the next, and by `hack/up` and `hack/down`.

mod cache;
mod calibration;
mod ground;
mod kubelet;
mod large_image;
mod memory;
mod pods;
mod pull;
mod row;
mod start;
mod trace;

use crate::console::{note, say};
use crate::up::layout::Layout;
use anyhow::{Result, bail};
use clap::ValueEnum;
use ground::Ground;
use tokio::signal::unix::{SignalKind, signal};

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
    /// Starts of each case whose layers must be pulled; of `cache` the rounds, each with one
    #[arg(long, visible_alias = "runs", default_value_t = 5, value_name = "N")]
    pulls: usize,
    /// Pods at the same time [default: 20 to measure memory, 100 in `cache`]
    #[arg(long, value_name = "N")]
    pods: Option<usize>,
    /// ImageCache objects at the same time in `cache`; 0 leaves that part out
    #[arg(long, default_value_t = 1000, value_name = "N")]
    objects: usize,
    /// Leave the kubelet with containerd out of `cache`
    #[arg(long)]
    without_peer: bool,
    /// Measure only the cases of `start` and `pull` whose names contain this
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
}

/// The benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// From a pod's creation to Ready: cold pull, warm store, cache hit
    Start,
    /// Resident memory of the agent and the provider, idle and for each pod
    Memory,
    /// Image caches, and pods from their creation to Ready, beside the kubelet with containerd; writes a report with a chart
    Cache,
    /// Pulling an image and starting containers from it, the agent alone beside containerd: request to process
    Pull,
}

/// Runs one bench.
///
/// # Errors
/// When there is no cluster to be had, it is in use, or a measured pod fails.
pub async fn run(args: Args) -> Result<()> {
    let mut busy: Vec<String> = busy().into_iter().collect();
    busy.iter().for_each(|line| note(line));
    let mut rows = Vec::new();
    // The machine is put in order and what was measured is shown whatever came of it; the bench's own error is the one to
    // tell.
    let (measured, left) = match args.name {
        Name::Pull => {
            let ground = pull::Ground::take().await?;
            let measured = unless_interrupted(pull::run(&ground, args.pulls, &args.only, &mut rows)).await;
            (measured, ground.leave().await)
        }
        Name::Start | Name::Memory | Name::Cache => {
            let mut ground = Ground::take().await?;
            let measured = unless_interrupted(on_cluster(&mut ground, &args, &mut rows)).await;
            (measured, ground.leave().await)
        }
    };
    say(&if args.json { row::json(&rows) } else { row::table(&rows) });
    let verdicts = match args.name {
        Name::Pull => pull::verdicts(&rows),
        Name::Cache => {
            busy.extend(
                load().map(|(load, cores)| format!("load at the end: {load} on {cores} cores, the bench's own in it")),
            );
            note(&format!("report: {}", cache::write_report(&rows, &busy)?.display()));
            cache::verdicts(&rows)
        }
        Name::Start | Name::Memory => Vec::new(),
    };
    verdicts.iter().for_each(|line| note(line));
    measured?;
    left
}

/// Runs one of the benches that need a cluster.
async fn on_cluster(ground: &mut Ground, args: &Args, rows: &mut Vec<Row>) -> Result<()> {
    match args.name {
        Name::Memory => memory::run(ground, args.pods.unwrap_or(20).max(1), rows).await,
        Name::Cache => {
            let peer = if args.without_peer { cache::Peer::LeftOut } else { cache::Peer::Measured };
            let pods = args.pods.unwrap_or(100).max(1);
            let counts =
                cache::Counts { rounds: args.pulls.max(1), starts: args.starts, pods, objects: args.objects, peer };
            cache::run(ground, counts, rows).await
        }
        Name::Start | Name::Pull => {
            let counts = start::Counts { starts: args.starts, pulls: args.pulls };
            start::run(ground, counts, &args.only, rows).await
        }
    }
}

/// Removes what a bench that was killed has left, but for a node's store, which is where its agent is started and ended.
///
/// # Errors
/// When a process does not end or a file cannot be removed.
pub(crate) fn clear(layout: &Layout) -> Result<()> {
    pull::clear(layout)
}

/// A bench that is asked to end puts things in order first.
async fn unless_interrupted(bench: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        // Dropped in the middle of anything: whatever it started is found by its name and ended.
        measured = bench => measured,
        // Neither holds anything.
        pressed = tokio::signal::ctrl_c() => { pressed?; bail!("interrupted") }
        _ = terminate.recv() => bail!("asked to end"),
    }
}

/// Times that were taken beside other work say little: what is to be said about that.
fn busy() -> Option<String> {
    let (load, cores) = load()?;
    let is_busy = load > cores / 2.0;
    is_busy
        .then(|| format!("!! this machine is busy (load {load} on {cores} cores): its figures say little about Larder"))
}

/// The load of the last minute, and the number of cores.
fn load() -> Option<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Some((text.split(' ').next()?.parse().ok()?, cores as f64))
}
