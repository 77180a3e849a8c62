//! The agent is killed, and nothing is lost.

use serde_json::json;

use super::bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_finds_its_containers_again() {
    let mut bench = Bench::new().await;
    let mut client = bench.client().await;
    client.run(bench.request(&bench.pod("u-keep", "trap 'exit 0' TERM; while true; do sleep 0.1; done"))).await;
    let before = client.until_phase(&bench, "u-keep", "Running").await;
    let requests = bench.registry.requests();

    bench.kill_agent();
    bench.start_agent();
    let mut client = bench.client().await;
    let after = client.until_phase(&bench, "u-keep", "Running").await;
    let container = |told: &super::bench::Told| told.status("u-keep")["containerStatuses"][0].clone();
    assert_eq!(container(&before), container(&after));
    assert_eq!(before.status("u-keep"), after.status("u-keep"));
    assert!(after.pods["u-keep"].0 >= before.pods["u-keep"].0);
    assert_eq!(bench.registry.requests(), requests, "what runs needs no registry");

    client.stop("u-keep", 10).await;
    let told = client.until_gone(&bench, "u-keep").await;
    assert_eq!(told.gone["u-keep"]["phase"], "Succeeded");
    assert_eq!(bench.container_processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_meanwhile_is_told_and_restarted() {
    let mut bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut always = bench.pod("u-again", "sleep 2; exit 4");
    always["spec"]["restartPolicy"] = json!("Always");
    client.run(bench.request(&always)).await;
    client.run(bench.request(&bench.pod("u-once", "sleep 2; exit 5"))).await;
    client.until_phase(&bench, "u-again", "Running").await;
    client.until_phase(&bench, "u-once", "Running").await;
    bench.kill_agent();
    // Both end while nobody looks.
    while bench.container_processes() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bench.start_agent();
    let mut client = bench.client().await;
    let told = client.until_phase(&bench, "u-once", "Failed").await;
    assert_eq!(told.status("u-once")["containerStatuses"][0]["state"]["terminated"]["exitCode"], 5);
    let restarted = |told: &super::bench::Told| {
        told.status("u-again")["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|count| count >= 1)
    };
    let told = client.until(&bench, "restarted", restarted).await;
    assert_eq!(told.status("u-again")["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 4);
    assert_eq!(told.disorder, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_survives_an_agent_that_is_killed_at_any_moment_of_its_start_and_stop() {
    let mut bench = Bench::new().await;
    let mut client = bench.client().await;
    let pod = bench.pod("u-any", "trap 'exit 0' TERM; while true; do sleep 0.1; done");
    client.run(bench.request(&pod)).await;
    // A start takes some ten milliseconds; each life of the agent is a little longer than the one before.
    for life in 0..12 {
        tokio::time::sleep(std::time::Duration::from_millis(life * 7)).await;
        bench.kill_agent();
        bench.start_agent();
        client = bench.client().await;
    }
    let told = client.until_phase(&bench, "u-any", "Running").await;
    assert_eq!(told.status("u-any")["containerStatuses"][0]["restartCount"], 0, "{}", bench.log());
    client.stop("u-any", 10).await;
    for life in 0..6 {
        tokio::time::sleep(std::time::Duration::from_millis(life * 7)).await;
        bench.kill_agent();
        bench.start_agent();
        client = bench.client().await;
        if client.pods.list_pods(larder_proto::v1::ListPodsRequest {}).await.unwrap().into_inner().pods.is_empty() {
            break;
        }
    }
    let empty = |told: &super::bench::Told| told.pods.is_empty();
    client.until(&bench, "no pods", empty).await;
    assert_eq!(bench.container_processes(), 0);
    assert!(std::fs::read_dir(bench.path("run/pods")).unwrap().next().is_none());
}
