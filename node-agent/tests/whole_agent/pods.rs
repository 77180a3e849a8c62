//! Pods from their wish to their end.

use serde_json::{Value, json};

use super::bench::{Bench, DEADLINE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_is_seen_logged_measured_and_stopped() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-run", "echo hello from $NAME; trap 'exit 0' TERM; while true; do sleep 0.1; done");
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    client.run(bench.request(&pod)).await;
    let told = client.until_phase(&bench, "u-run", "Running").await;
    let status = told.status("u-run");
    let ip = status["podIP"].as_str().unwrap();
    assert_eq!(status["hostIP"], status["podIP"]);
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 1);
    let container = &status["containerStatuses"][0];
    assert_eq!(
        (&container["ready"], &container["started"], &container["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert!(container["containerID"].as_str().unwrap().starts_with("larder://"), "{container}");
    assert!(container["imageID"].as_str().unwrap().contains("@sha256:"), "{container}");
    let conditions = status["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 5);
    assert!(conditions.iter().all(|condition| condition["status"] == "True"), "{conditions:?}");
    // One list when it was taken on or one telling while its image came, and one when it ran.
    assert!(told.changes["u-run"] <= 3, "{:?}", told.changes);

    let told = client.until(&bench, "started", |told| told.events.iter().any(|event| event.1 == "Started")).await;
    let events = told.events_of("u-run");
    assert_eq!(events[0], format!("Pulling: Pulling image \"{}\"", bench.registry.image()));
    assert!(events[1].starts_with("Pulled: Successfully pulled image"), "{events:?}");
    assert_eq!(events[2..], ["Created: Created container: app", "Started: Started container app"]);

    assert_eq!(client.read_log("u-run").await, format!("hello from {ip}\n"));
    let stats = client.node.get_stats(larder_proto::v1::GetStatsRequest {}).await.unwrap().into_inner();
    assert_eq!(stats.pods[0].containers[0].name, "app");
    let facts = client.node.get_node(larder_proto::v1::GetNodeRequest {}).await.unwrap().into_inner();
    assert!(facts.container_runtime_version.starts_with("larder://"), "{facts:?}");

    assert!(client.stop("u-run", 10).await);
    let told = client.until_gone(&bench, "u-run").await;
    let last = &told.gone["u-run"];
    assert_eq!(last["phase"], "Succeeded");
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(bench.container_processes(), 0);
    assert!(!bench.path("run/pods/u-run").exists() && !bench.path("logs/test_u-run_u-run").exists());
    assert!(!client.stop("u-run", 10).await);
    assert!(bench.log().contains("larder::start"), "{}", bench.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_to_its_end_after_its_init_containers() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-job", "cat /data/one /data/two; echo bye > /dev/termination-log; exit 3");
    let mount = json!([{"name": "data", "mountPath": "/data"}]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    pod["spec"]["initContainers"] = json!([
        bench.container("first", "echo 1 > /data/one"),
        bench.container("second", "cp /data/one /data/two; echo 2 >> /data/two")
    ]);
    for init in [0, 1] {
        pod["spec"]["initContainers"][init]["volumeMounts"] = mount.clone();
    }
    // cp is not among the links of the image.
    pod["spec"]["initContainers"][1]["command"][2] = Value::from("cat /data/one > /data/two; echo 2 >> /data/two");
    client.run(bench.request(&pod)).await;
    let told = client.until_phase(&bench, "u-job", "Failed").await;
    let status = told.status("u-job");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(3), &json!("Error"), &json!("bye\n"))
    );
    assert!(status["initContainerStatuses"].as_array().unwrap().iter().all(|init| init["ready"] == true), "{status}");
    assert_eq!(client.read_log("u-job").await, "1\n1\n2\n");
    // It keeps its record until it is taken away, but holds no process.
    assert_eq!(bench.container_processes(), 0);
    assert!(client.stop("u-job", 1).await);
    client.until_gone(&bench, "u-job").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_counts_and_backs_off() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-loop", "exit 7");
    pod["spec"]["restartPolicy"] = json!("Always");
    client.run(bench.request(&pod)).await;
    let looping = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let told = client.until(&bench, "looping", |told| looping(&told.status("u-loop"))).await;
    let status = told.status("u-loop");
    assert_eq!(status["phase"], "Running");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=app pod=u-loop_test(u-loop)"
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 7);
    // Stopped during the back-off: nothing is there to wait for.
    assert!(client.stop("u-loop", 30).await);
    let told = client.until_gone(&bench, "u-loop").await;
    assert_eq!(told.gone["u-loop"]["phase"], "Failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_fails_tells_why_and_recovers_when_the_wish_changes() {
    let bench = Bench::new().await;
    bench.registry.set_broken(true);
    let mut client = bench.client().await;
    let pod = bench.pod("u-pull", "while true; do sleep 0.1; done");
    let mut request = bench.request(&pod);
    client.run(request.clone()).await;
    let waits = |status: &Value, reason: &str| status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason;
    client.until(&bench, "failing", |told| waits(&told.status("u-pull"), "ErrImagePull")).await;
    let told = client.until(&bench, "backing off", |told| waits(&told.status("u-pull"), "ImagePullBackOff")).await;
    let status = told.status("u-pull");
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("Back-off pulling image") && message.contains("403"), "{message}");
    assert_eq!(status["phase"], "Pending");
    bench.registry.set_broken(false);
    // Credentials that came later are tried at once, not after the back-off.
    request.credentials.push(larder_proto::v1::RegistryCredential { registry: "other".into(), ..Default::default() });
    client.run(request).await;
    client.until_phase(&bench, "u-pull", "Running").await;
    client.stop("u-pull", 1).await;
    client.until_gone(&bench, "u-pull").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_stopped_while_its_image_comes_is_gone_at_once() {
    let bench = Bench::new().await;
    bench.registry.set_stalled(true);
    let mut client = bench.client().await;
    let mut pulls = client.pulls.watch_pulls(larder_proto::v1::WatchPullsRequest {}).await.unwrap().into_inner();
    let mut waiting_for = async |wanted: &[(String, u32)]| {
        let news = async {
            while let Some(list) = pulls.message().await.unwrap() {
                let seen: Vec<_> = list.pulls.into_iter().map(|pull| (pull.reference, pull.waiting)).collect();
                if seen == wanted {
                    return;
                }
            }
            panic!("the agent ended the stream");
        };
        tokio::time::timeout(DEADLINE, news).await.unwrap();
    };
    waiting_for(&[]).await;
    client.run(bench.request(&bench.pod("u-slow", "true"))).await;
    client.until(&bench, "pulling", |told| told.events.iter().any(|event| event.1 == "Pulling")).await;
    waiting_for(&[(bench.registry.image(), 1)]).await;
    assert!(client.stop("u-slow", 30).await);
    let told = client.until_gone(&bench, "u-slow").await;
    assert_eq!(told.gone["u-slow"]["phase"], "Failed");
    // Nobody waits for it any more, so it does not go on.
    waiting_for(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ignores_the_request_to_end_is_killed() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    client.run(bench.request(&bench.pod("u-deaf", "trap '' TERM; while true; do sleep 0.1; done"))).await;
    client.until_phase(&bench, "u-deaf", "Running").await;
    client.stop("u-deaf", 60).await;
    // A later request may shorten the time.
    client.stop("u-deaf", 2).await;
    let told = client.until_gone(&bench, "u-deaf").await;
    assert_eq!(told.gone["u-deaf"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_offered_is_refused() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-no", "true");
    pod["spec"]["hostNetwork"] = json!(true);
    let status = client.pods.run_pod(bench.request(&pod)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("spec.hostNetwork"), "{status}");
    pod["spec"]["hostNetwork"] = json!(false);
    pod["metadata"]["uid"] = json!("../escape");
    let status = client.pods.run_pod(bench.request(&pod)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(bench.registry.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_image_has_changed_runs_again_in_the_same_sandbox() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-new", "trap 'exit 0' TERM; while true; do sleep 0.1; done");
    client.run(bench.request(&pod)).await;
    let before = client.until_phase(&bench, "u-new", "Running").await.status("u-new");
    pod["spec"]["containers"][0]["image"] = Value::from(bench.registry.image_by_digest());
    pod["metadata"]["generation"] = json!(2);
    client.run(bench.request(&pod)).await;
    let restarted = |status: &Value| {
        let container = &status["containerStatuses"][0];
        container["restartCount"] == 1 && container["state"]["running"].is_object()
    };
    let told = client.until(&bench, "restarted", |told| restarted(&told.status("u-new"))).await;
    let after = told.status("u-new");
    assert_eq!((&before["podIP"], &after["observedGeneration"]), (&after["podIP"], &json!(2)));
    assert!(after["containerStatuses"][0]["image"].as_str().unwrap().contains("@sha256:"), "{after}");
    let killing = "Killing: Container app definition changed, will be restarted".to_owned();
    assert!(told.events_of("u-new").contains(&killing), "{:?}", told.events);
    client.stop("u-new", 5).await;
    client.until_gone(&bench, "u-new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_log_stands_in_for_a_message_that_was_not_left() {
    let mut bench = Bench::new().await;
    let mut client = bench.client().await;
    let mut pod = bench.pod("u-words", "echo all is well; sleep 1; echo no it is not >&2; exit 1");
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    client.run(bench.request(&pod)).await;
    client.until_phase(&bench, "u-words", "Running").await;
    // Also when it ends while nobody looks.
    bench.kill_agent();
    while bench.container_processes() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bench.start_agent();
    let mut client = bench.client().await;
    let told = client.until_phase(&bench, "u-words", "Failed").await;
    let ended = &told.status("u-words")["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["message"], "all is well\nno it is not\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fills_the_disk_is_evicted() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    // The image's program is larger than a mebibyte.
    let script = "trap '' TERM; cat /bin/busybox > /data/file; while true; do sleep 0.1; done";
    let mut pod = bench.pod("u-full", script);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    client.run(bench.request(&pod)).await;
    client.until_phase(&bench, "u-full", "Running").await;
    let told = client.until_phase(&bench, "u-full", "Failed").await;
    let status = told.status("u-full");
    assert_eq!(status["reason"], "Evicted");
    assert_eq!(status["message"], "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ");
    let told = client.until(&bench, "evicted", |told| told.events.iter().any(|event| event.1 == "Evicted")).await;
    assert!(told.events_of("u-full").iter().any(|event| event.starts_with("Evicted: Usage of EmptyDir")));
    let ended = client.until(&bench, "its end", |told| {
        told.status("u-full")["containerStatuses"][0]["state"]["terminated"].is_object()
    });
    assert_eq!(ended.await.status("u-full")["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    assert!(client.stop("u-full", 10).await);
    client.until_gone(&bench, "u-full").await;
    assert_eq!(bench.container_processes(), 0);
}
