//! `hack/bench cache`: image caches, and pods that start from them, beside the kubelet with containerd.
//!
//! Three things, in one run:
//! - How soon a cache is Ready: after the last byte that the registry sent, and after its creation where the store has its
//!   layers. The last byte is seen by a [`proxy`] of this process between the agent and the registry, so both ends of the time
//!   are of one clock. What lies in the sockets' buffers then, unread, counts against us.
//! - How long pods take from their creation until a watcher sees them Ready: with nothing in the store, with the layers there
//!   and no cache, and from a cache; then many at once. The same pods, through the same API server and watch, on the peer
//!   ([`super::kubelet`]): cold, with the image there, and many at once.
//! - What a thousand ImageCache objects cost ([`objects`]).
//!
//! It goes in rounds, of which the first is dropped. In each, every case has its turn, pods from the store and from the cache
//! one about the other; who of the two engines goes first changes from round to round. The other one does not run then.

mod chart;
mod goals;
mod objects;
mod proxy;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject};
use kube::runtime::wait::await_condition;
use tokio::time::sleep;

use super::calibration;
use super::ground::Ground;
use super::kubelet::Kubelet;
use super::pods::{From, Kind, Placed, Starter, image_caches, make_cache};
use super::row::{LARDER, Row};
use super::start::milliseconds;
use crate::console::step;
use crate::images::LARGE_GZIP;
use proxy::Proxy;

pub(super) use goals::verdicts;
pub(super) use report::write as write_report;

const BENCH: &str = "cache";
/// The pause before each start.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an object may take to be gone.
const DEADLINE: Duration = Duration::from_secs(60);

const AFTER_LAST_BYTE: &str = "ImageCache: last byte of the pull to Ready";
const FROM_STORE: &str = "ImageCache: created to Ready, layers in the store";
const COLD: &str = "pod: cold";
const STORE: &str = "pod: layers in the store";
const HIT: &str = "pod: cache hit";
const AT_ONCE: &str = "pods at once";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Rounds that count, each with one cold start.
    pub(super) rounds: usize,
    /// Starts of each warm case, over all rounds.
    pub(super) starts: usize,
    /// Pods at once.
    pub(super) pods: usize,
    /// ImageCache objects at once; none when 0.
    pub(super) objects: usize,
    /// Whether the peer is measured.
    pub(super) peer: Peer,
}

/// Whether the peer is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Beside us.
    Measured,
    /// Not.
    LeftOut,
}

/// Samples, by side and case.
type Samples = BTreeMap<(String, &'static str), Vec<f64>>;

/// Measures into `rows`, what came before a failure too.
pub(super) async fn run(ground: &mut Ground, counts: Counts, rows: &mut Vec<Row>) -> Result<()> {
    rows.extend(calibration::row(BENCH));
    let peer = match counts.peer {
        Peer::Measured => Some(Kubelet::prepare(ground).await?),
        Peer::LeftOut => None,
    };
    let mut samples = Samples::new();
    let measured = rounds(ground, peer.as_ref(), counts, &mut samples).await;
    if let Some(peer) = &peer {
        peer.end(ground).await?;
    }
    rows.extend(sum_up(&samples, counts.pods));
    measured?;
    if counts.objects > 0 {
        objects::run(ground, counts.objects, counts.starts, rows).await?;
    }
    rows.extend(calibration::row(BENCH));
    Ok(())
}

async fn rounds(ground: &Ground, peer: Option<&Kubelet>, counts: Counts, samples: &mut Samples) -> Result<()> {
    let starts = counts.starts.div_ceil(counts.rounds.max(1));
    for round in 0..=counts.rounds {
        let mut of_round = Samples::new();
        if let Some(peer) = peer.filter(|_| round % 2 == 1) {
            step(&format!("round {round}: {}", peer.side()), theirs(ground, peer, starts, counts.pods, &mut of_round))
                .await?;
        }
        step(&format!("round {round}: caches"), caches(ground, &mut of_round)).await?;
        step(&format!("round {round}: pods"), ours(ground, starts, counts.pods, &mut of_round)).await?;
        if let Some(peer) = peer.filter(|_| round % 2 == 0) {
            step(&format!("round {round}: {}", peer.side()), theirs(ground, peer, starts, counts.pods, &mut of_round))
                .await?;
        }
        if round > 0 {
            for (case, values) in of_round {
                samples.entry(case).or_default().extend(values);
            }
        }
    }
    Ok(())
}

/// A cache on an empty store, then another of the same layers.
async fn caches(ground: &Ground, samples: &mut Samples) -> Result<()> {
    ground.fresh_store().await?;
    let proxy = Proxy::start(ground.layout().registry_address()).await?;
    let image = format!("{}/{LARGE_GZIP}", proxy.address());
    let made = make_cache(ground, "larder-bench-first", &image).await?;
    let last = proxy.last_byte().context("the registry has not been asked")?;
    let mut add = |case, took| samples.entry((LARDER.to_owned(), case)).or_default().push(milliseconds(took));
    add(AFTER_LAST_BYTE, made.seen.saturating_duration_since(last));
    sleep(PAUSE).await;
    add(FROM_STORE, make_cache(ground, "larder-bench-second", &ground.image(LARGE_GZIP)).await?.took);
    remove_caches(ground, &["larder-bench-first", "larder-bench-second"]).await
}

async fn ours(ground: &Ground, starts: usize, pods: usize, samples: &mut Samples) -> Result<()> {
    ground.fresh_store().await?;
    let kind = |from| Kind { image: ground.image(LARGE_GZIP), from, placed: Placed::Directly };
    let mut starter = Starter::new(ground).await?;
    let mut add = |case, took| samples.entry((LARDER.to_owned(), case)).or_default().push(milliseconds(took));
    add(COLD, one(&mut starter, &kind(From::Registry)).await?);
    let made = make_cache(ground, "larder-bench", &ground.image(LARGE_GZIP)).await?;
    add(FROM_STORE, made.took);
    let hit = kind(From::Cache(made.id));
    for _ in 0..starts {
        add(STORE, one(&mut starter, &kind(From::Registry)).await?);
        add(HIT, one(&mut starter, &hit).await?);
    }
    sleep(PAUSE).await;
    let (names, took) = starter.start_at_once(&hit, pods).await?;
    add(AT_ONCE, took);
    starter.remove_all(names).await?;
    remove_caches(ground, &["larder-bench"]).await
}

async fn theirs(ground: &Ground, peer: &Kubelet, starts: usize, pods: usize, samples: &mut Samples) -> Result<()> {
    peer.fresh(ground).await?;
    let kind = Kind { image: ground.image(LARGE_GZIP), from: From::Registry, placed: Placed::Directly };
    let mut starter = Starter::on(ground, peer.node()).await?;
    let mut add = |case, took| samples.entry((peer.side().to_owned(), case)).or_default().push(milliseconds(took));
    add(COLD, one(&mut starter, &kind).await?);
    for _ in 0..starts {
        add(STORE, one(&mut starter, &kind).await?);
    }
    sleep(PAUSE).await;
    let (names, took) = starter.start_at_once(&kind, pods).await?;
    add(AT_ONCE, took);
    starter.remove_all(names).await?;
    peer.end(ground).await
}

/// Starts a pod after a pause, and removes it.
async fn one(starter: &mut Starter, kind: &Kind) -> Result<Duration> {
    sleep(PAUSE).await;
    let (name, took) = starter.start(kind).await?;
    starter.remove(&name).await?;
    Ok(took)
}

async fn remove_caches(ground: &Ground, names: &[&str]) -> Result<()> {
    let caches = image_caches(&ground.client).await?;
    for name in names {
        caches.delete(name, &DeleteParams::default()).await.with_context(|| format!("delete image cache {name}"))?;
        let gone = await_condition(caches.clone(), name, |cache: Option<&DynamicObject>| {
            cache.is_none_or(|cache| cache.name_any() != *name)
        });
        tokio::time::timeout(DEADLINE, gone).await.with_context(|| format!("image cache {name} is not gone"))??;
    }
    Ok(())
}

/// The rows of all cases, and how many times as fast we are as the peer in each that both have.
fn sum_up(samples: &Samples, pods: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in [AFTER_LAST_BYTE, FROM_STORE, COLD, STORE, HIT, AT_ONCE] {
        let title = title(case, pods);
        for ((side, _), values) in samples.iter().filter(|((_, of), _)| *of == case) {
            rows.extend(Row::of(BENCH, &title, "ms", values).map(|row| row.by(side)));
        }
    }
    let p50 = |side: &dyn Fn(&str) -> bool, case: &str| {
        let title = title(case, pods);
        rows.iter().find(|row| side(&row.side) && row.case == title).map(|row| (row.p50, row.side.clone()))
    };
    // The image of a pod that the kubelet starts again is there: what we compare that with is a cache hit, and the store.
    let pairs = [(COLD, COLD), (STORE, STORE), (HIT, STORE), (AT_ONCE, AT_ONCE)];
    let ratios: Vec<Row> = pairs
        .into_iter()
        .filter_map(|(own, other)| {
            let (ours, _) = p50(&|side| side == LARDER, own)?;
            let (theirs, side) = p50(&|side| side != LARDER, other)?;
            Row::of(BENCH, &format!("{} / {} {side}", title(own, pods), goals::RATIO), "x", &[theirs / ours])
        })
        .collect();
    rows.extend(ratios);
    rows
}

fn title(case: &str, pods: usize) -> String {
    if case == AT_ONCE { format!("{pods} {AT_ONCE}") } else { case.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_summed_up_and_compared() {
        let mut samples = Samples::new();
        let mut add = |side: &str, case, values: &[f64]| samples.insert((side.to_owned(), case), values.to_vec());
        add(LARDER, HIT, &[20.0, 30.0]);
        add(LARDER, AT_ONCE, &[1000.0]);
        add("peer", STORE, &[400.0]);
        add("peer", AT_ONCE, &[10_000.0]);
        let rows = sum_up(&samples, 7);
        let find = |case: &str, side: &str| rows.iter().find(|row| row.case == case && row.side == side).unwrap();
        assert_eq!(find("7 pods at once", "peer").p50, 10_000.0);
        assert_eq!(find("7 pods at once / times as fast as peer", LARDER).p50, 10.0);
        assert_eq!(find("pod: cache hit / times as fast as peer", LARDER).p50, 20.0);
        assert_eq!(rows.len(), 6);
    }
}
