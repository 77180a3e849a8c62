//! Pods that another life of the agent, or of the host, has left.

use super::*;

#[tokio::test(start_paused = true)]
async fn another_life_of_the_agent_adopts_everything() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    let before = bench.until(|snapshot| phase(snapshot) == "Running").await;
    let mut bench = bench.restart().await;
    let after = bench.pods.publisher.get("u1").unwrap();
    assert_eq!(before.status, after.status);
    assert!(after.generation >= before.generation);
    assert_eq!((bench.host.count("start app"), bench.host.count("ensure")), (1, 1));
    assert_eq!(bench.host.count("adopt docker.io/library/nginx:1"), 1);
    // It goes on as if nothing had been: a crash restarts it, and the count goes on.
    bench.host.exit("app", 1);
    let again = bench.until(|snapshot| restarts(snapshot) == 1 && waiting(snapshot).is_empty()).await;
    assert!(again.generation > before.generation);
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_nobody_looked_is_restarted() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    bench.ends.cancel();
    while bench.running.join_next().await.is_some() {}
    bench.host.exit("app", 3);
    let mut bench = Bench::on(bench.host, bench.folder).await;
    let again = bench.until(|snapshot| restarts(snapshot) == 1 && waiting(snapshot).is_empty()).await;
    let container = &again.status.container_statuses.as_ref().unwrap()[0];
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.exit_code, 3);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_finished_by_the_next_life() {
    let mut bench = Bench::new().await;
    bench.host.be_deaf();
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    bench.pods.stop("u1".into(), Some(Duration::from_secs(20))).await.unwrap();
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("signal Stop") == 1).await.unwrap();
    let mut bench = bench.restart().await;
    bench.until_gone().await;
    assert_eq!(bench.host.count("signal Kill"), 1);
    assert!(!bench.folder.path().join("pods/u1").exists());
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_pod_is_removed() {
    let host = FakeHost::new();
    host.plant_stranger();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("pods/half-written")).unwrap();
    let bench = Bench::on(host, folder).await;
    assert_eq!((bench.host.containers(), bench.host.sandboxes()), (0, 0));
    assert!(!bench.folder.path().join("pods/half-written").exists());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_over_never_runs_again() {
    let mut bench = Bench::new().await;
    let mut wish = fakes::wish("u1", one("Always"));
    wish.pod.status = serde_json::from_value(json!({"phase": "Succeeded", "containerStatuses": [{
        "name": "app", "image": "nginx:1", "imageID": "i", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
    }]}))
    .unwrap();
    bench.pods.run(wish).await.unwrap();
    let over = bench.until(|snapshot| snapshot.terminated).await;
    assert_eq!(phase(&over), "Succeeded");
    assert_eq!(bench.host.count("start"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_from_before_a_reboot_goes_on_counting() {
    for (policy, expected, count) in [("Always", "Running", 5), ("Never", "Failed", 4)] {
        let mut bench = Bench::new().await;
        let mut wish = fakes::wish("u1", one(policy));
        wish.pod.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
            "name": "app", "image": "nginx:1", "imageID": "i", "ready": true, "restartCount": 4,
            "containerID": "fake://old", "state": {"running": {}},
        }]}))
        .unwrap();
        bench.pods.run(wish).await.unwrap();
        bench.until(|snapshot| phase(snapshot) == expected && restarts(snapshot) == count).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_on_record_is_gone_on_with_and_not_begun_beside() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    bench.ends.cancel();
    while bench.running.join_next().await.is_some() {}
    // Another life that has not found the pod, and is asked for it.
    let (parts, settings) = (bench.host.parts(bench.folder.path()), fakes::settings(bench.folder.path()));
    let (supervisor, pods) = Supervisor::new(parts, settings, CancellationToken::new());
    bench.running.spawn(supervisor.run());
    (bench.told, bench.pods) = (pods.publisher.subscribe(), pods);
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert_eq!((bench.host.count("start app"), bench.host.containers()), (1, 1));
    assert!(bench.pods.stop("u1".into(), None).await.unwrap());
    bench.until_gone().await;
    assert_eq!(bench.host.containers(), 0);
}
