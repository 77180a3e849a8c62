//! What is measured: an engine that pulls images and starts containers from them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

use super::account::{self, Account};
use super::disk::{self, Disk};
use crate::process::Process;

/// Before each start: what the engine does when it has just begun is over.
const PAUSE: Duration = Duration::from_millis(500);

/// How long anything may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(180);

/// Containers that are started at the same moment.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// The image, with the registry's address.
    pub(super) image: String,
    /// How many, each with a name of its own that begins with this.
    pub(super) containers: usize,
    pub(super) name: String,
}

impl Start {
    /// The containers' names.
    pub(super) fn names(&self) -> Vec<String> {
        (0..self.containers).map(|number| format!("{}-{number}", self.name)).collect()
    }
}

/// An engine under measurement. It holds one life of its daemon at most.
pub(super) trait Engine {
    /// As a row names it.
    fn side(&self) -> &str;
    /// Starts the daemon with an empty store below this folder, and runs one small container with it. Nothing of an earlier
    /// life is left.
    async fn begin(&mut self, store: &Path, account: &Account) -> Result<()>;
    /// Pulls and starts, and comes back when the engine has said of the last container that its process runs.
    async fn start(&mut self, start: &Start, account: &Account) -> Result<()>;
    /// The daemon.
    fn daemon(&self) -> Result<&Process>;
    /// What the engine itself says of the steps of the start before, in milliseconds; empty if it says nothing.
    async fn steps(&mut self, start: &Start) -> Result<BTreeMap<String, Vec<f64>>>;
    /// Ends the daemon, its containers and all that they left, but for the store.
    async fn end(&mut self) -> Result<()>;
}

/// What one start was like.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) milliseconds: f64,
    pub(super) cpu_seconds: f64,
    /// Greatest resident memory of the daemon.
    pub(super) peak_mebibytes: f64,
    /// What it added to the store since the engine began.
    pub(super) store_bytes: f64,
    pub(super) steps: BTreeMap<String, Vec<f64>>,
}

/// One life of an engine on a fresh disk: these starts, one after the other.
pub(super) async fn life(engine: &mut impl Engine, folder: &Path, starts: &[Start]) -> Result<Vec<Sample>> {
    let folder = folder.to_owned();
    let disk = tokio::task::spawn_blocking(move || Disk::fresh(&folder)).await.context("making a disk panicked")??;
    let account = Account::open()?;
    engine.begin(disk.root(), &account).await.with_context(|| format!("start {}", engine.side()))?;
    let before = used_bytes(disk.root()).await?;
    let mut samples = Vec::new();
    for start in starts {
        let mut sample = one(engine, &account, start)
            .await
            .with_context(|| format!("start {} with {}", start.image, engine.side()))?;
        sample.store_bytes = used_bytes(disk.root()).await? - before;
        samples.push(sample);
    }
    engine.end().await?;
    tokio::task::spawn_blocking(move || disk.remove()).await.context("removing a disk panicked")??;
    Ok(samples)
}

async fn one(engine: &mut impl Engine, account: &Account, start: &Start) -> Result<Sample> {
    let pid = engine.daemon()?.pid();
    // What was written before is not to be written out while the clock runs.
    settle().await?;
    account::reset_peak(pid)?;
    let cpu = account.cpu()?;
    let begin = Instant::now();
    tokio::time::timeout(DEADLINE, engine.start(start, account))
        .await
        .context("not all runs after three minutes")??;
    let took = begin.elapsed();
    let cpu = account.cpu()?.saturating_sub(cpu);
    let peak_mebibytes = account::peak_mebibytes(pid)?;
    let steps = engine.steps(start).await?;
    Ok(Sample {
        milliseconds: took.as_secs_f64() * 1000.0,
        cpu_seconds: cpu.as_secs_f64(),
        peak_mebibytes,
        store_bytes: 0.0,
        steps,
    })
}

/// What lies on the disk, once all is written.
async fn used_bytes(store: &Path) -> Result<f64> {
    settle().await?;
    let store = store.to_owned();
    let used = tokio::task::spawn_blocking(move || disk::used_bytes(&store)).await.context("measuring panicked")??;
    Ok(used as f64)
}

async fn settle() -> Result<()> {
    tokio::task::spawn_blocking(rustix::fs::sync).await.context("writing out panicked")?;
    sleep(PAUSE).await;
    Ok(())
}
