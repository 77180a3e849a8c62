//! `hack/bench memory`: what the agent and the provider hold in memory, idle and for each pod.
//!
//! Resident memory is what the kernel counts for a process (`VmRSS`); monitors share their program's pages, so for them
//! it is the proportional share (`Pss`). What the kernel itself holds for a pod (namespaces, cgroups, mounts) is not in it.

use super::ground::Ground;
use super::pods::{From, Kind, Placed, Starter};
use super::row::Row;
use crate::console::step;
use crate::images::BUSYBOX;
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;
use tokio::time::sleep;

const BENCH: &str = "memory";
/// Samples of a value, and the pause between them.
const SAMPLES: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// Measures idle, then with `pods` pods, into `rows`.
pub(super) async fn run(ground: &Ground, pods: usize, rows: &mut Vec<Row>) -> Result<()> {
    ground.fresh_store().await?;
    let idle = step("measure idle", sample(ground)).await?;
    let mut starter = Starter::new(ground).await?;
    let kind = Kind { image: BUSYBOX.to_owned(), from: From::Registry, placed: Placed::Directly };
    step(&format!("start {pods} pods"), async {
        for _ in 0..pods {
            starter.start(&kind).await?;
        }
        Ok(())
    })
    .await?;
    let full = step(&format!("measure with {pods} pods"), sample(ground)).await?;
    let a_pod = |of: fn(&Sample) -> f64| -> Vec<f64> {
        idle.iter().zip(&full).map(|(idle, full)| (of(full) - of(idle)) / pods as f64).collect()
    };
    let megabytes = |of: fn(&Sample) -> f64, samples: &[Sample]| -> Vec<f64> {
        samples.iter().map(|sample| of(sample) / 1024.0).collect()
    };
    let measured = [
        Row::of(BENCH, "agent, idle", "MiB", &megabytes(|sample| sample.agent, &idle)),
        Row::of(BENCH, "provider, idle", "MiB", &megabytes(|sample| sample.provider, &idle)),
        Row::of(BENCH, &format!("agent, {pods} pods"), "MiB", &megabytes(|sample| sample.agent, &full)),
        Row::of(BENCH, &format!("provider, {pods} pods"), "MiB", &megabytes(|sample| sample.provider, &full)),
        Row::of(BENCH, "a pod in the agent", "KiB", &a_pod(|sample| sample.agent)),
        Row::of(BENCH, "a pod in the provider", "KiB", &a_pod(|sample| sample.provider)),
        Row::of(BENCH, "a pod's monitors", "KiB", &a_pod(|sample| sample.monitors)),
    ];
    rows.extend(measured.into_iter().flatten());
    Ok(())
}

/// KiB at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    agent: f64,
    provider: f64,
    monitors: f64,
}

async fn sample(ground: &Ground) -> Result<Vec<Sample>> {
    let (agent, provider) = (ground.agent_process()?.pid(), ground.provider_process()?.pid());
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        sleep(PAUSE).await;
        let mut monitors = 0.0;
        for pid in ground.monitors() {
            // One may have ended since it was found.
            monitors += kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:").unwrap_or_default();
        }
        samples.push(Sample {
            agent: kilobytes(&format!("/proc/{agent}/status"), "VmRSS:")?,
            provider: kilobytes(&format!("/proc/{provider}/status"), "VmRSS:")?,
            monitors,
        });
    }
    Ok(samples)
}

/// A value of one of the kernel's tables of `Name: value kB`.
pub(in crate::bench) fn kilobytes(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    value(&text, name).with_context(|| format!("{path} has no {name}"))
}

fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_table_is_read() {
        let text = "Name:\tlarder\nVmRSS:\t   18204 kB\nRss:  1 kB\nPss:                 120 kB\nPss_Dirty: 7 kB\n";
        assert_eq!(value(text, "VmRSS:"), Some(18204.0));
        assert_eq!(value(text, "Pss:"), Some(120.0));
        assert_eq!(value(text, "VmSwap:"), None);
    }

    #[test]
    fn this_process_is_resident() {
        assert!(kilobytes("/proc/self/status", "VmRSS:").unwrap() > 0.0);
        assert!(kilobytes("/proc/self/smaps_rollup", "Pss:").unwrap() > 0.0);
    }
}
