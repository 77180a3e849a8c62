//! Pods that run: their status comes back, whoever was away meanwhile.

use super::*;
use crate::agent::{PodChange, PodGone};

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_its_status_comes_back() {
    let bench = Bench::with_running_pod().await;
    let written = bench.cluster.see(|record| record.pods["ns/p"].status.clone().unwrap());
    assert_eq!(written.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(written.observed_generation, Some(1));
    let found = bench.directory.clone().unwrap().find("ns", "p").await.unwrap();
    assert_eq!(found.metadata.uid.as_deref(), Some("u1"));
    assert_eq!(bench.directory.unwrap().all().await.len(), 1);
    assert_eq!(bench.agent.see(|record| record.runs.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_while_the_agent_is_away_runs_when_it_is_back() {
    let mut bench = Bench::new();
    bench.agent.go_offline();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.agent.go_online();
    bench.ran(1).await;
    bench.agent.report("u1", status("Running"));
    bench.phase("p", "Running").await;
    // The pod ends while nobody listens; the list says so.
    bench.agent.go_offline();
    bench.agent.set(|record| {
        record.pods.insert("u1".into(), on_record("u1", "p", "Succeeded"));
    });
    bench.agent.go_online();
    bench.phase("p", "Succeeded").await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_only_the_newest_status_is_kept() {
    let bench = Bench::with_running_pod().await;
    let before = bench.cluster.see(|record| record.status_patches.len());
    bench.cluster.go_offline();
    for restarts in 1..20 {
        let mut newer = status("Running");
        newer.container_statuses.as_mut().unwrap()[0].restart_count = restarts;
        bench.agent.report("u1", newer);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    bench.cluster.go_online();
    let count = |record: &Record| {
        record.pods["ns/p"].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].restart_count
    };
    bench.cluster.wait("the newest", |record| count(record) == 19).await;
    assert_eq!(bench.cluster.see(|record| record.status_patches.len()), before + 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_newer_is_dropped() {
    let bench = Bench::with_running_pod().await;
    let stale = PodState { generation: 1, ..on_record("u1", "p", "Failed") };
    bench.agent.send(PodChange::Changed(stale.clone()));
    bench.agent.send(PodChange::Gone(PodGone { uid: "u1".into(), generation: 1, status: stale.status }));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.phase("p", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_pods_are_adopted_and_nothing_is_told_twice() {
    let mut bench = Bench::with_running_pod().await;
    bench.restart().await;
    // Fresh tokens and objects, for the same pod that goes on running.
    bench.ran(2).await;
    bench.agent.report("u1", status("Succeeded"));
    bench.phase("p", "Succeeded").await;
    assert!(bench.agent.see(|record| record.stops.is_empty()));
}
