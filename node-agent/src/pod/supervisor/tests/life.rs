//! One life of a pod: start, restarts, back-offs, disk use.

use super::*;
use crate::image::ChosenCache;

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
async fn a_pull_that_takes_long_tells_how_far_it_is() {
    let mut bench = Bench::new().await;
    bench.host.next_pull(Pull::Creeps);
    bench.run(one("Never")).await;
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    let events = bench.drain_events();
    let pulling: Vec<_> = events.iter().filter_map(|event| event.strip_prefix("Pulling: ")).collect();
    let progress = |done: u32| format!("Pulling image \"nginx:1\": {done} of 90 MiB, 1 of 2 layers");
    assert_eq!(pulling, ["Pulling image \"nginx:1\"".to_owned(), progress(29), progress(59), progress(89)]);
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

/// A pod's user writes on it what he likes, and a provider that has begun anew reads the chosen cache there.
#[tokio::test(start_paused = true)]
async fn a_newer_wish_changes_neither_the_cache_nor_how_registries_are_spoken_to() {
    let mut bench = Bench::new().await;
    let mut first = fakes::wish("u1", one("Always"));
    first.access.plain_http = vec!["registry:5000".to_owned()];
    bench.pods.run(first.clone()).await.unwrap();
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    assert_eq!(bench.host.count("ensure"), 1);
    let mut forged = fakes::wish("u1", json!({"containers": [{"name": "app", "image": "secret:1"}]}));
    forged.cache = Some(ChosenCache::by_hand("imc-of-somebody-else"));
    forged.access.insecure = vec!["registry:5000".to_owned()];
    bench.drain_events();
    bench.pods.run(forged.clone()).await.unwrap();
    let has_it = |snapshot: &PodSnapshot| {
        let mut statuses = snapshot.status.container_statuses.iter().flatten();
        statuses.any(|status| status.image.contains("secret:1") && status.state.as_ref().unwrap().running.is_some())
    };
    bench.until(has_it).await;
    // Out of a cache it would be there already, without a word of the registry.
    let events = bench.drain_events();
    assert!(events.iter().any(|event| event.starts_with("Pulling: Pulling image \"secret:1\"")), "{events:?}");
    let on_record = Ledger::new(bench.folder.path().join("pods")).read("u1").unwrap().unwrap().wish;
    assert_eq!((on_record.pod, on_record.cache, on_record.access), (forged.pod, None, first.access));
}

#[tokio::test(start_paused = true)]
async fn a_newer_wish_without_a_cache_leaves_the_chosen_one() {
    let mut bench = Bench::new().await;
    let mut wish = fakes::wish("u1", one("Always"));
    wish.cache = Some(ChosenCache::by_hand("imc-1"));
    bench.pods.run(wish.clone()).await.unwrap();
    bench.until(|snapshot| phase(snapshot) == "Running").await;
    bench.pods.run(PodWish { cache: None, ..wish.clone() }).await.unwrap();
    assert_eq!(Ledger::new(bench.folder.path().join("pods")).read("u1").unwrap().unwrap().wish, wish);
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
