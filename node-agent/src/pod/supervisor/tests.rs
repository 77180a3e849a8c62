use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::pod::{
    fakes::{self, FakeHost, Pull},
    ledger::Ledger,
    publisher::{Change, PodSnapshot, Subscription},
};

/// An agent's pods on a host in memory.
struct Bench {
    folder: TempDir,
    host: Arc<FakeHost>,
    pods: Pods,
    told: Subscription,
    /// Reason and message of the events, in order.
    events: Vec<String>,
    ends: CancellationToken,
    running: JoinSet<()>,
}

impl Bench {
    async fn new() -> Self {
        Self::on(FakeHost::new(), tempfile::tempdir().unwrap()).await
    }

    async fn on(host: Arc<FakeHost>, folder: TempDir) -> Self {
        let ends = CancellationToken::new();
        let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
        let (mut supervisor, pods) = Supervisor::new(parts, settings, ends.clone());
        supervisor.adopt().await.unwrap();
        let mut running = JoinSet::new();
        running.spawn(supervisor.run());
        let told = pods.publisher.subscribe();
        Self { folder, host, pods, told, events: Vec::new(), ends, running }
    }

    /// The agent ends and another life of it begins.
    async fn restart(mut self) -> Self {
        self.ends.cancel();
        while self.running.join_next().await.is_some() {}
        Self::on(self.host, self.folder).await
    }

    async fn run(&self, spec: serde_json::Value) {
        self.pods.run(fakes::wish("u1", spec)).await.unwrap();
    }

    /// Waits, in time that passes as it is needed, until the pod is as wanted.
    async fn until(&mut self, wanted: impl Fn(&PodSnapshot) -> bool) -> PodSnapshot {
        if let Some(snapshot) = self.pods.publisher.get("u1")
            && wanted(&snapshot)
        {
            return (*snapshot).clone();
        }
        loop {
            match tokio::time::timeout(Duration::from_secs(3600), self.told.next()).await.expect("it is told") {
                Change::Changed(snapshot) if wanted(&snapshot) => return (*snapshot).clone(),
                Change::Gone(snapshot) => panic!("gone: {snapshot:?}"),
                Change::Changed(_) => {}
                Change::Event(event) => self.take(&event),
            }
        }
    }

    async fn until_gone(&mut self) -> PodSnapshot {
        loop {
            match tokio::time::timeout(Duration::from_secs(3600), self.told.next()).await.expect("it is told") {
                Change::Gone(snapshot) => return (*snapshot).clone(),
                Change::Changed(_) => {}
                Change::Event(event) => self.take(&event),
            }
        }
    }

    fn take(&mut self, event: &crate::pod::events::PodEvent) {
        self.events.push(format!("{}: {}", event.notice.reason, event.notice.message));
    }

    /// Takes the events that have been told.
    fn drain_events(&mut self) -> Vec<String> {
        while let Some(change) = futures::FutureExt::now_or_never(self.told.next()) {
            if let Change::Event(event) = change {
                self.take(&event);
            }
        }
        std::mem::take(&mut self.events)
    }
}

fn one(policy: &str) -> serde_json::Value {
    json!({"restartPolicy": policy, "containers": [{"name": "app", "image": "nginx:1"}]})
}

fn phase(snapshot: &PodSnapshot) -> &str {
    snapshot.status.phase.as_deref().unwrap_or_default()
}

fn waiting(snapshot: &PodSnapshot) -> &str {
    let container = snapshot.status.container_statuses.iter().flatten().next();
    let state = container.and_then(|container| container.state.as_ref());
    state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default()
}

fn restarts(snapshot: &PodSnapshot) -> i32 {
    snapshot.status.container_statuses.iter().flatten().map(|container| container.restart_count).sum()
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_to_its_end() {
    let mut bench = Bench::new().await;
    bench.run(one("Never")).await;
    let running = bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert!(!running.terminated);
    bench.host.exit("app", 0);
    let ended = bench.until(|snapshot| snapshot.terminated).await;
    assert_eq!(phase(&ended), "Succeeded");
    assert!(ended.generation > running.generation);
    // Processes and network are gone, the record stays.
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("tear down") == 1).await.unwrap();
    assert_eq!((host.containers(), host.sandboxes()), (0, 0));
    assert!(bench.folder.path().join("pods/u1/pod.json").exists());
    // Volumes and images come at the same time.
    let (mounted, others): (Vec<_>, Vec<_>) =
        bench.drain_events().into_iter().partition(|event| event.starts_with("SuccessfulMountVolume"));
    assert_eq!(mounted, ["SuccessfulMountVolume: MountVolume.SetUp succeeded for volume \"data\""]);
    assert_eq!(
        others,
        [
            "Pulling: Pulling image \"nginx:1\"",
            "Pulled: Successfully pulled image \"nginx:1\" in 1s (1s including waiting). Image size: 42 bytes.",
            "Created: Created container: app",
            "Started: Started container app"
        ]
        .map(str::to_owned)
    );
    assert!(bench.pods.stop("u1".into(), None).await.unwrap());
    bench.until_gone().await;
    assert!(!bench.folder.path().join("pods/u1").exists());
    assert!(!bench.pods.stop("u1".into(), None).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    let begun = tokio::time::Instant::now();
    bench.host.exit("app", 1);
    // The first restart comes at once.
    bench.until(|snapshot| restarts(snapshot) == 1 && waiting(snapshot).is_empty()).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    for (run, delay) in [(2, 10), (3, 20), (4, 40)] {
        let died = tokio::time::Instant::now();
        bench.host.exit("app", 1);
        let looping = bench.until(|snapshot| waiting(snapshot) == "CrashLoopBackOff").await;
        assert_eq!(phase(&looping), "Running");
        bench.until(|snapshot| restarts(snapshot) == run && waiting(snapshot).is_empty()).await;
        assert!(died.elapsed() >= Duration::from_secs(delay), "{:?}", died.elapsed());
        assert!(died.elapsed() < Duration::from_secs(delay + 1), "{:?}", died.elapsed());
    }
    let events = bench.drain_events();
    assert!(events.contains(&"BackOff: Back-off restarting failed container app in pod web_shop(u1)".to_owned()));
    // Only the container that runs is left on the host.
    assert_eq!(bench.host.containers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pull_backs_off_and_recovers_by_itself() {
    let mut bench = Bench::new().await;
    bench.host.next_pull(Pull::Fails("connection refused"));
    bench.host.next_pull(Pull::Fails("connection refused"));
    let begun = tokio::time::Instant::now();
    bench.run(one("Always")).await;
    bench.until(|snapshot| waiting(snapshot) == "ErrImagePull").await;
    bench.until(|snapshot| waiting(snapshot) == "ImagePullBackOff").await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    // 10 s and 20 s.
    assert!((30..32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let events = bench.drain_events();
    for event in [
        "Failed: Failed to pull image \"nginx:1\": failed to pull image \"nginx:1\": connection refused",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"nginx:1\"",
        "Failed: Error: ImagePullBackOff",
    ] {
        assert_eq!(events.iter().filter(|other| *other == event).count(), 2, "{event}: {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn newer_objects_are_tried_at_once() {
    let mut bench = Bench::new().await;
    bench.host.next_volumes_fail("configmap \"c\" not found");
    bench.run(one("Always")).await;
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("set up") == 1).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut wish = fakes::wish("u1", one("Always"));
    wish.objects.config_maps.insert("c".into(), Default::default());
    bench.pods.run(wish.clone()).await.unwrap();
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    // The same wish again changes nothing.
    let asked = bench.host.log().len();
    bench.pods.run(wish).await.unwrap();
    assert_eq!(bench.host.log().len(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_pod_stopped_while_pulling_is_gone() {
    let mut bench = Bench::new().await;
    bench.host.next_pull(Pull::Hangs);
    bench.run(one("Always")).await;
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("ensure") == 1).await.unwrap();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(30))).await.unwrap();
    let begun = tokio::time::Instant::now();
    let last = bench.until_gone().await;
    assert_eq!(phase(&last), "Failed");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.host.sandboxes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_stopped_in_its_back_off_is_gone() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    for _ in 0..2 {
        bench.until(|snapshot| phase(snapshot) == "Running" && waiting(snapshot).is_empty()).await;
        let started = bench.host.count("start app");
        bench.host.exit("app", 1);
        let host = Arc::clone(&bench.host);
        if started == 1 {
            host.asked.subscribe().wait_for(|_| host.count("start app") == 2).await.unwrap();
            bench.until(|snapshot| restarts(snapshot) == 1 && waiting(snapshot).is_empty()).await;
        }
    }
    bench.until(|snapshot| waiting(snapshot) == "CrashLoopBackOff").await;
    bench.pods.stop("u1".into(), None).await.unwrap();
    let last = bench.until_gone().await;
    assert_eq!(phase(&last), "Failed");
    assert_eq!(bench.host.count("signal"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_killed_at_the_deadline() {
    let mut bench = Bench::new().await;
    bench.host.be_deaf();
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    let begun = tokio::time::Instant::now();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(60))).await.unwrap();
    bench.pods.stop("u1".into(), Some(Duration::from_secs(5))).await.unwrap();
    bench.until_gone().await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!((bench.host.count("signal Stop"), bench.host.count("signal Kill")), (1, 1));
    assert!(bench.drain_events().contains(&"Killing: Stopping container app".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_had_its_time_says_so_once() {
    let mut bench = Bench::new().await;
    let spec = json!({"activeDeadlineSeconds": 60, "containers": [{"name": "app", "image": "nginx:1"}]});
    bench.run(spec).await;
    let ended = bench.until(|snapshot| snapshot.terminated).await;
    assert_eq!(ended.status.reason.as_deref(), Some("DeadlineExceeded"));
    let wanted = "DeadlineExceeded: Pod was active on the node longer than the specified deadline";
    assert_eq!(bench.drain_events().iter().filter(|event| *event == wanted).count(), 1);
}

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
async fn containers_of_one_image_all_start_and_ask_for_it_once() {
    let mut bench = Bench::new().await;
    let containers: Vec<_> =
        ["a", "b", "c", "d", "e"].iter().map(|name| json!({"name": name, "image": "nginx:1"})).collect();
    bench.run(json!({"containers": containers})).await;
    let running = bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert_eq!(running.status.container_statuses.unwrap().len(), 5);
    // One image, asked for once; told once as pulled and then as present.
    assert_eq!(bench.host.count("ensure"), 1);
    let events = bench.drain_events();
    assert_eq!(events.iter().filter(|event| event.contains("already present on machine")).count(), 4);
    let mut starts: Vec<String> = bench.host.log().into_iter().filter(|entry| entry.starts_with("start ")).collect();
    starts.sort();
    assert_eq!(starts, ["start a 0", "start b 0", "start c 0", "start d 0", "start e 0"]);
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
async fn a_pod_whose_step_broke_off_is_taken_up_however_long_the_host_does_not_answer() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.host.fail_lists(2);
    let begun = tokio::time::Instant::now();
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    // Once it broke off, and twice the host did not answer: 1 s, 2 s and 4 s.
    assert_eq!(begun.elapsed().as_secs(), 7);
    let started: Vec<String> = bench.host.log().into_iter().filter(|entry| entry.starts_with("start ")).collect();
    assert_eq!(started, ["start app 0", "start app 0"], "it never ran, so it is the same attempt");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_pause() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.host.fail_lists(4);
    bench.run(one("Always")).await;
    // 1 + 2 + 4 s have passed, and 8 s are to come.
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("list containers") == 4).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert!(bench.pods.stop("u1".into(), None).await.unwrap(), "the pod is known though no worker is there");
    // Asked for, it is taken up at once; the host fails a last time, which costs the next pause.
    bench.until_gone().await;
    assert_eq!(begun.elapsed().as_secs(), 16);
    assert_eq!((bench.host.sandboxes(), bench.host.containers()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_comes_in_the_pause_is_taken_at_once() {
    let mut bench = Bench::new().await;
    bench.host.next_start_panics();
    bench.run(one("Always")).await;
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("start app") == 1).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut wish = fakes::wish("u1", one("Always"));
    wish.objects.config_maps.insert("c".into(), Default::default());
    bench.pods.run(wish.clone()).await.unwrap();
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(Ledger::new(bench.folder.path().join("pods")).read("u1").unwrap().unwrap().wish, wish);
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

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pod_does_not_touch_its_successor() {
    let (host, folder) = (FakeHost::new(), tempfile::tempdir().unwrap());
    let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
    let (mut supervisor, _pods) = Supervisor::new(parts, settings, CancellationToken::new());
    supervisor.begin(fakes::wish("u1", one("Always"))).unwrap();
    assert!(supervisor.stop("u1".into(), None).unwrap());
    let ended = supervisor.tasks.join_next_with_id().await.unwrap();
    // Before its end is taken in, the pod is asked for again.
    let (reply, answer) = oneshot::channel();
    supervisor.take_wish(Box::new(fakes::wish("u1", one("Always"))), reply);
    answer.await.unwrap().unwrap();
    supervisor.take_end(ended);
    assert!(supervisor.stop("u1".into(), None).unwrap(), "the new one is known");
    let ended = supervisor.tasks.join_next_with_id().await.unwrap();
    supervisor.take_end(ended);
    assert!(!supervisor.stop("u1".into(), None).unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_does_not_say_that_a_pod_is_not_there() {
    let (host, folder) = (FakeHost::new(), tempfile::tempdir().unwrap());
    let ends = CancellationToken::new();
    let (parts, settings) = (host.parts(folder.path()), fakes::settings(folder.path()));
    let (mut supervisor, _pods) = Supervisor::new(parts, settings, ends.clone());
    supervisor.begin(fakes::wish("u1", one("Always"))).unwrap();
    ends.cancel();
    supervisor.tasks.join_next().await.unwrap().unwrap();
    assert!(matches!(supervisor.stop("u1".into(), None), Err(RequestError::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_more_of_the_disk_than_it_may_is_evicted() {
    let mut bench = Bench::new().await;
    let mut spec = one("Always");
    spec["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Gi"}});
    bench.run(spec).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    let begun = tokio::time::Instant::now();
    bench.host.write("app", 1 << 30);
    // It is measured again and again, and has what it may have.
    let host = Arc::clone(&bench.host);
    host.asked.subscribe().wait_for(|_| host.count("measure container") == 3).await.unwrap();
    assert_eq!(bench.host.count("signal"), 0);
    bench.host.write("app", (1 << 30) + 1);
    let ended = bench.until(|snapshot| snapshot.terminated).await;
    assert!((30..42).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ";
    assert_eq!(phase(&ended), "Failed");
    assert_eq!((ended.status.reason.as_deref(), ended.status.message.as_deref()), (Some("Evicted"), Some(message)));
    assert!(bench.drain_events().contains(&format!("Evicted: {message}")));
    assert!(bench.pods.stop("u1".into(), None).await.unwrap());
    let last = bench.until_gone().await;
    assert_eq!(last.status.reason.as_deref(), Some("Evicted"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_limit_is_not_measured() {
    let mut bench = Bench::new().await;
    bench.run(one("Always")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.host.count("measure"), 0);
}
