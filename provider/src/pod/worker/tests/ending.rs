//! The end of pods: nothing is removed before its processes are gone, and nothing runs twice.

use super::*;

fn deleting(pod: &mut Pod, seconds: i64) {
    pod.metadata.deletion_timestamp = Some(Timestamp::from_second(1).unwrap().into());
    pod.metadata.deletion_grace_period_seconds = Some(seconds);
}

#[tokio::test(start_paused = true)]
async fn the_object_stays_until_the_agent_says_that_nothing_runs() {
    let bench = Bench::with_running_pod().await;
    bench.cluster.edit_pod("ns", "p", |pod| deleting(pod, 7));
    bench.agent.wait("stop", |record| record.stops == [("u1".to_owned(), Some(Duration::from_secs(7)))]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(bench.cluster.see(|record| record.removals.is_empty()));
    bench.agent.gone("u1");
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
    // What controllers count by was written before the object went.
    let last = bench.cluster.see(|record| record.status_patches.last().unwrap().1.clone());
    assert_eq!(last["status"]["phase"], "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_ran_is_removed_once_the_agent_has_confirmed() {
    let mut bench = Bench::new();
    let mut doomed = pod("p", "u1");
    deleting(&mut doomed, 0);
    bench.cluster.put_pod(doomed);
    bench.start();
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
    assert_eq!(bench.agent.see(|record| (record.stops.len(), record.runs.len())), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn while_the_agent_is_away_nothing_is_removed() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.agent.go_offline();
    bench.cluster.edit_pod("ns", "p", |pod| deleting(pod, 0));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(bench.cluster.see(|record| record.removals.is_empty()));
    bench.agent.go_online();
    bench.agent.wait("stop", |record| !record.stops.is_empty()).await;
    bench.agent.gone("u1");
    bench.cluster.wait("removal", |record| record.pods.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_of_an_earlier_life_are_ended() {
    let mut bench = Bench::new();
    bench.agent.set(|record| {
        record.pods.insert("old".into(), on_record("old", "p", "Running"));
    });
    bench.start();
    bench.agent.wait("stop", |record| record.stops == [("old".to_owned(), None)]).await;
    bench.agent.gone("old");
    // A pod that is taken away by force is one, too.
    bench.cluster.put_pod(pod("q", "u2"));
    bench.ran(1).await;
    bench.cluster.drop_pod("ns", "q");
    bench.agent.wait("stop", |record| record.stops.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_under_an_old_name_is_another() {
    let mut bench = Bench::new();
    bench.start();
    bench.cluster.put_pod(pod("p", "u1"));
    bench.ran(1).await;
    bench.cluster.drop_pod("ns", "p");
    bench.cluster.put_pod(pod("p", "u2"));
    bench.ran(2).await;
    bench.agent.wait("stop of the old", |record| record.stops.iter().any(|(uid, _)| uid == "u1")).await;
    bench.agent.report("u2", status("Running"));
    bench.agent.gone("u1");
    bench.phase("p", "Running").await;
    let uids = bench.cluster.see(|record| record.pods["ns/p"].metadata.uid.clone());
    assert_eq!(uids.as_deref(), Some("u2"));
    assert!(bench.agent.see(|record| record.stops.iter().all(|(uid, _)| uid == "u1")));
}

#[tokio::test(start_paused = true)]
async fn a_final_pod_never_runs_again() {
    let mut bench = Bench::new();
    let mut over = pod("p", "u1");
    over.status = Some(status("Succeeded"));
    bench.cluster.put_pod(over);
    bench.start();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.agent.see(|record| record.runs.len()), 0);
}
