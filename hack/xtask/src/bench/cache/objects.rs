//! A thousand ImageCache objects: how long the provider is busy with them, what it holds in memory, how long it takes to choose
//! among them, and how long pods take beside them.
//!
//! All name the same image, whose layers are in the store, so that nothing is fetched, and so that each of them fits the pods
//! exactly: the choice has to go through all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::super::memory::kilobytes;
use super::{BENCH, HIT, goals, milliseconds, one, remove_caches};
use crate::bench::ground::Ground;
use crate::bench::pods::{From, Kind, Placed, Starter, cache_object, field, image_caches, make_cache};
use crate::bench::row::Row;
use crate::console::step;
use crate::images::LARGE_GZIP;
use crate::ports;

/// How long all of them may take.
const DEADLINE: Duration = Duration::from_secs(900);
/// Requests at once.
const AT_ONCE: usize = 16;
/// How long a process must do next to nothing to be called quiet, and how closely it is looked at.
const QUIET: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// The kernel's unit of CPU time, which is the same everywhere.
const TICKS_A_SECOND: f64 = 100.0;
/// So much CPU time in [`QUIET`] is next to nothing.
const NOTHING: f64 = 0.06;

/// Measures into `rows`.
pub(super) async fn run(ground: &mut Ground, objects: usize, starts: usize, rows: &mut Vec<Row>) -> Result<()> {
    let [port] = ports::free()?;
    let flags = ["--image-caches-max", "0", "--metrics-listen", &format!("127.0.0.1:{port}")].map(str::to_owned);
    ground.fresh_store().await?;
    step("start the provider without a limit of image caches", ground.restart_provider(&flags)).await?;
    let image = ground.image(LARGE_GZIP);
    make_cache(ground, "larder-bench", &image).await?;
    rows.extend(step("pods beside one object", pods(ground, port, 1, starts)).await?);
    let before = resident(ground)?;
    rows.extend(step(&format!("make {objects} objects"), make(ground, objects, &image)).await?);
    let after = resident(ground)?;
    let megabytes = |case: &str, value: f64| Row::of(BENCH, case, "MiB", &[value / 1024.0]);
    rows.extend(megabytes("memory of the provider, 1 object", before));
    rows.extend(megabytes(&format!("memory of the provider, {objects} objects more"), after));
    rows.extend(step(&format!("pods beside {} objects", objects + 1), pods(ground, port, objects + 1, starts)).await?);
    rows.extend(step("delete them", delete(ground, objects)).await?);
    remove_caches(ground, &["larder-bench"]).await
}

/// Pods that start from the best of all caches, and the provider's own account of the choice.
async fn pods(ground: &Ground, port: u16, objects: usize, starts: usize) -> Result<Vec<Row>> {
    let kind = Kind { image: ground.image(LARGE_GZIP), from: From::Matched, placed: Placed::Directly };
    let mut starter = Starter::new(ground).await?;
    let mut samples = Vec::new();
    one(&mut starter, &kind).await?;
    let before = match_times(port).await?;
    for _ in 0..starts {
        samples.push(milliseconds(one(&mut starter, &kind).await?));
    }
    let after = match_times(port).await?;
    let all = if objects == 1 { "1 object".to_owned() } else { format!("{objects} objects") };
    let chosen = format!("{all}: {}", goals::MATCH);
    let rows = [
        Row::of(BENCH, &format!("{HIT}, beside {all}"), "ms", &samples),
        Row::of(BENCH, &chosen, "ms", &spread(&before, &after)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Makes so many objects and waits until all are seen Ready, and until the provider has nothing to do.
async fn make(ground: &Ground, objects: usize, image: &str) -> Result<Vec<Row>> {
    let caches = image_caches(&ground.client).await?;
    let config = watcher::Config::default().labels("larder-bench");
    let mut events = watcher(caches.clone(), config).boxed();
    let mut missing: BTreeSet<String> = (0..objects).map(|number| format!("larder-bench-{number}")).collect();
    let names: Vec<String> = missing.iter().cloned().collect();
    let pid = ground.provider_process()?.pid();
    let (begin, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let params = PostParams::default();
    let creations = futures::stream::iter(names).map(Ok).try_for_each_concurrent(AT_ONCE, |name| {
        let (caches, params) = (&caches, &params);
        async move {
            let object = cache_object(&name, image)?;
            caches.create(params, &object).await.with_context(|| format!("create image cache {name}"))?;
            Ok::<_, anyhow::Error>(())
        }
    });
    let ready = async {
        while !missing.is_empty() {
            let Some(event) = events.try_next().await? else { bail!("the watch of image caches ended") };
            let (Event::Apply(cache) | Event::InitApply(cache)) = event else { continue };
            match field(&cache, "phase") {
                Some("Ready") => drop(missing.remove(&cache.name_any())),
                Some("Failed") => bail!("image cache {} failed: {:?}", cache.name_any(), field(&cache, "reason")),
                Some(_) | None => {}
            }
        }
        Ok(begin.elapsed())
    };
    let both = async { tokio::try_join!(creations, ready) };
    let ((), all_ready) = tokio::time::timeout(DEADLINE, both).await.context("not all image caches are Ready")??;
    let quiet = quiet(pid, begin).await?;
    let cpu = cpu_seconds(pid)? - cpu;
    let seconds = |what: &str, value: f64| Row::of(BENCH, &format!("{objects} objects: {what}"), "s", &[value]);
    let rows = [
        seconds("all Ready", all_ready.as_secs_f64()),
        seconds("the provider is quiet", quiet.as_secs_f64()),
        seconds("CPU of the provider", cpu),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Deletes them and waits until they are gone.
async fn delete(ground: &Ground, objects: usize) -> Result<Vec<Row>> {
    let caches = image_caches(&ground.client).await?;
    let of_bench = ListParams::default().labels("larder-bench");
    let pid = ground.provider_process()?.pid();
    let (begin, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let names = (0..objects).map(|number| format!("larder-bench-{number}"));
    let params = DeleteParams::default();
    futures::stream::iter(names)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |name| {
            let (caches, params) = (&caches, &params);
            async move { caches.delete(&name, params).await.map(drop).with_context(|| format!("delete {name}")) }
        })
        .await?;
    // One is the first, which stays a moment longer.
    while caches.list_metadata(&of_bench).await?.items.len() > 1 {
        anyhow::ensure!(begin.elapsed() < DEADLINE, "image caches are not gone after {DEADLINE:?}");
        sleep(LOOK).await;
    }
    let took = begin.elapsed();
    quiet(pid, begin).await?;
    let seconds = |what: &str, value: f64| Row::of(BENCH, &format!("{objects} objects: {what}"), "s", &[value]);
    let rows = [
        seconds("deleted", took.as_secs_f64()),
        seconds("CPU of the provider while they are deleted", cpu_seconds(pid)? - cpu),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Waits until a process has nothing to do. Returns since when that is so, from `begin` on.
async fn quiet(pid: i32, begin: Instant) -> Result<Duration> {
    let (mut since, mut cpu) = (Instant::now(), cpu_seconds(pid)?);
    while since.elapsed() < QUIET {
        anyhow::ensure!(begin.elapsed() < DEADLINE, "process {pid} is still busy after {DEADLINE:?}");
        sleep(LOOK).await;
        let now = cpu_seconds(pid)?;
        if now - cpu > NOTHING {
            (since, cpu) = (Instant::now(), now);
        }
    }
    Ok(since.duration_since(begin))
}

fn resident(ground: &Ground) -> Result<f64> {
    kilobytes(&format!("/proc/{}/status", ground.provider_process()?.pid()), "VmRSS:")
}

/// CPU time of a process.
fn cpu_seconds(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    ticks(&text).map(|ticks| ticks / TICKS_A_SECOND).with_context(|| format!("{path} has no times"))
}

/// Fields 14 and 15 of a stat line (proc(5)).
fn ticks(line: &str) -> Option<f64> {
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// How many choices took at most so many seconds, by the text of that number, as the provider counts them.
async fn match_times(port: u16) -> Result<BTreeMap<String, u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("reach the provider's metrics")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.context("read the provider's metrics")?;
    Ok(buckets(&text))
}

fn buckets(text: &str) -> BTreeMap<String, u64> {
    let bucket = |line: &str| {
        let rest = line.strip_prefix("larder_provider_image_cache_match_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        Some((bound.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(bucket).collect()
}

/// One sample, in milliseconds, for each choice between two readings: the upper bound of its bucket, so none is made to look
/// faster than it was.
fn spread(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<f64> {
    let bound = |text: &str| text.parse().unwrap_or(f64::INFINITY);
    let mut all: Vec<(f64, u64)> = after
        .iter()
        .map(|(text, count)| (bound(text), count.saturating_sub(before.get(text).copied().unwrap_or_default())))
        .collect();
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (mut samples, mut counted) = (Vec::new(), 0);
    for (bound, up_to) in all {
        for _ in counted..up_to {
            samples.push(bound * 1000.0);
        }
        counted = counted.max(up_to);
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_between_two_readings_are_samples() {
        let text = |low: u64, all: u64| {
            format!(
                "# EOF\nlarder_provider_image_cache_match_seconds_bucket{{le=\"0.000128\"}} {low}\n\
                 larder_provider_image_cache_match_seconds_bucket{{le=\"0.000256\"}} {all}\n\
                 larder_provider_image_cache_match_seconds_bucket{{le=\"+Inf\"}} {all}\n"
            )
        };
        let samples = spread(&buckets(&text(1, 2)), &buckets(&text(3, 5)));
        assert_eq!(samples, [0.128, 0.128, 0.256]);
        assert!(spread(&buckets(""), &buckets("")).is_empty());
    }

    #[test]
    fn cpu_time_is_read() {
        assert_eq!(ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0"), Some(300.0));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert!(cpu_seconds(i32::try_from(std::process::id()).unwrap()).unwrap() >= 0.0);
    }
}
