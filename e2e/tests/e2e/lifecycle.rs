//! From start to end of a pod.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams};
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::scene::{Scene, at, phase, sh};
use serde_json::{Value, json};

/// Phase, exit code and reason are a kubelet's.
pub(crate) async fn completion_and_exit_codes(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "completion", &[]).await?;
    let cases = [
        ("succeeds", "echo done", "Succeeded", 0, "Completed"),
        ("fails", "exit 3", "Failed", 3, "Error"),
        ("by-signal", "", "Failed", 137, "Error"),
    ];
    for (name, command, wanted, code, reason) in cases {
        // Process 1 of a namespace cannot end itself by a signal, so a child does; `$$` is a plain `$` to Kubernetes.
        let command = if name == "by-signal" { "sh -c 'kill -9 $$$$'; exit $?" } else { command };
        scene.pod(name, json!({"restartPolicy": "Never", "containers": [sh(command)]})).await?;
        let pod = scene.wait_phase(name, wanted).await?;
        let state = at(&pod, "/status/containerStatuses/0/state/terminated");
        ensure!(state["exitCode"] == code && state["reason"] == reason, "{name}: {state}");
        ensure!(state["startedAt"].is_string() && state["finishedAt"].is_string(), "{name}: {state}");
    }
    for reason in ["Scheduled", "Created", "Started"] {
        scene.wait_event("succeeds", reason, "").await?;
    }
    let id = at(&scene.wait_phase("succeeds", "Succeeded").await?, "/status/containerStatuses/0/imageID");
    ensure!(id.as_str().is_some_and(|id| id.contains("@sha256:")), "{id}");
    Ok(())
}

/// A container that fails again and again is restarted, later each time, and says so.
pub(crate) async fn crash_loop_backs_off(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "crash-loop", &[]).await?;
    scene.pod("crasher", json!({"containers": [sh("exit 7")]})).await?;
    let status = |pod: &Pod| at(pod, "/status/containerStatuses/0");
    let waits = |pod: &Pod| status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod =
        scene.wait_pod("crasher", "in CrashLoopBackOff", |pod| waits(pod) && status(pod)["restartCount"] == 1).await?;
    ensure!(status(&pod)["lastState"]["terminated"]["exitCode"] == 7, "{pod:?}");
    ensure!(phase(&pod) == "Running", "{pod:?}");
    let message = status(&pod)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.starts_with("back-off") && message.contains("restarting failed container"), "{message}");
    scene.wait_event("crasher", "BackOff", "Back-off restarting failed container").await?;
    scene.wait_pod("crasher", "restarted again", |pod| status(pod)["restartCount"] == 2).await?;
    scene.delete("crasher").await
}

/// SIGTERM first; a container that heeds it ends at once, one that does not is killed when its grace is over.
pub(crate) async fn deletion_keeps_to_its_grace(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "grace", &[]).await?;
    let heeds = json!({"terminationGracePeriodSeconds": 30, "containers": [sh("trap 'exit 0' TERM; while :; do sleep 0.1; done")]});
    let ignores =
        json!({"terminationGracePeriodSeconds": 3, "containers": [sh("trap '' TERM; while :; do sleep 0.1; done")]});
    scene.pod("heeds", heeds).await?;
    scene.pod("ignores", ignores).await?;
    scene.wait_ready("heeds").await?;
    scene.wait_ready("ignores").await?;
    let took = async |name: &str| -> Result<Duration> {
        let start = now();
        scene.api::<Pod>().delete(name, &DeleteParams::default()).await?;
        scene.wait_gone(name).await?;
        Ok(start.elapsed())
    };
    // Neither is about speed: one must not use its grace up, the other must not be cut short.
    let heeded = took("heeds").await?;
    ensure!(heeded < Duration::from_secs(25), "{heeded:?}");
    let ignored = took("ignores").await?;
    ensure!(ignored >= Duration::from_secs(3), "{ignored:?}");
    scene.wait_event("ignores", "Killing", "Stopping container main").await?;
    Ok(())
}

/// One after the other, before the app; a failure of one is the pod's.
pub(crate) async fn init_containers_run_in_order(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "init", &[]).await?;
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let container = |name: &str, command: &str| json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", command], "volumeMounts": mount});
    let spec = json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "work", "emptyDir": {}}],
        "initContainers": [container("one", "echo one >> /work/log"), container("two", "echo two >> /work/log")],
        "containers": [container("main", "cat /work/log")],
    });
    scene.pod("ordered", spec).await?;
    scene.wait_phase("ordered", "Succeeded").await?;
    let log = scene.logs("ordered", &LogParams::default()).await?;
    ensure!(log == "one\ntwo\n", "{log:?}");
    let failing = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "bad", "image": BUSYBOX, "command": ["sh", "-c", "exit 5"]}],
        "containers": [sh("echo never")],
    });
    scene.pod("stopped", failing).await?;
    let pod = scene.wait_phase("stopped", "Failed").await?;
    ensure!(at(&pod, "/status/initContainerStatuses/0/state/terminated/exitCode") == 5, "{pod:?}");
    ensure!(at(&pod, "/status/containerStatuses/0/state/waiting/reason") == "PodInitializing", "{pod:?}");
    Ok(())
}

/// `kubectl logs` with its options, through the API server.
pub(crate) async fn logs_have_the_kubelets_options(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "logs", &[]).await?;
    let output = scene.run("talker", "for i in 1 2 3; do echo line $i; done; echo err >&2").await?;
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["err", "line 1", "line 2", "line 3"], "{output:?}");
    let tail = scene.logs("talker", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?;
    ensure!(tail.lines().count() == 1, "{tail:?}");
    let limited = scene.logs("talker", &LogParams { limit_bytes: Some(4), ..LogParams::default() }).await?;
    ensure!(limited.len() == 4, "{limited:?}");
    let stamped = scene.logs("talker", &LogParams { timestamps: true, ..LogParams::default() }).await?;
    let stamp = stamped.split(' ').next().unwrap_or_default();
    ensure!(stamp.contains('T') && stamp.len() > 20, "{stamped:?}");
    scene.pod("twice", json!({"containers": [sh("echo run; exit 1")]})).await?;
    scene.wait_pod("twice", "restarted", |pod| at(pod, "/status/containerStatuses/0/restartCount") == 1).await?;
    let previous = scene.logs("twice", &LogParams { previous: true, ..LogParams::default() }).await?;
    ensure!(previous == "run\n", "{previous:?}");
    let follow = async {
        let params = LogParams { follow: true, ..LogParams::default() };
        scene.pod("follower", json!({"restartPolicy": "Never", "containers": [sh("echo a; sleep 1; echo b")]})).await?;
        scene.wait_pod("follower", "started", |pod| matches!(phase(pod), "Running" | "Succeeded")).await?;
        scene.logs("follower", &params).await
    };
    let followed = follow.await?;
    ensure!(followed == "a\nb\n", "{followed:?}");
    let unknown = LogParams { container: Some("nobody".into()), ..LogParams::default() };
    ensure!(scene.logs("talker", &unknown).await.is_err());
    Ok(())
}

/// A container that uses more memory than it may is ended, and says that this was why.
pub(crate) async fn memory_limit_kills(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "memory", &[]).await?;
    let mut container = sh("head -c 200m /dev/zero | tail");
    container["resources"] = json!({"limits": {"memory": "32Mi", "cpu": "500m"}});
    // The shell is process 1 and outlives the child that is killed, and passes its code on.
    container["command"] = json!(["tail", "/dev/zero"]);
    scene.pod("greedy", json!({"restartPolicy": "Never", "containers": [container]})).await?;
    let pod = scene.wait_phase("greedy", "Failed").await?;
    let state = at(&pod, "/status/containerStatuses/0/state/terminated");
    ensure!(state["reason"] == "OOMKilled" && state["exitCode"] == 137, "{state}");
    Ok(())
}

/// What is not there yet is refused, never run as if it had been honoured.
pub(crate) async fn unsupported_fields_are_refused_by_name(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "unsupported", &[]).await?;
    let mut probed = sh("exec sleep 1000");
    probed["livenessProbe"] = json!({"exec": {"command": ["true"]}});
    scene.pod("probed", json!({"containers": [probed]})).await?;
    let pod = scene.wait_pod("probed", "refused", |pod| at(pod, "/status/reason") != Value::Null).await?;
    let message = at(&pod, "/status/message");
    ensure!(message.as_str().is_some_and(|text| text.contains("livenessProbe")), "{message}");
    scene.delete("probed").await
}

#[expect(clippy::disallowed_methods, reason = "a test has no clock passed in")]
fn now() -> Instant {
    Instant::now()
}
