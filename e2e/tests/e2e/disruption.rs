//! Parts of the cluster die or go away. Containers go on running, and everything is right again afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{Scene, at, phase, sh};
use serde_json::json;

/// A container that counts, so that a restart would show.
fn counter() -> serde_json::Value {
    json!({"containers": [sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done")]})
}

/// What would change if the container had been started anew.
fn identity(pod: &Pod) -> (serde_json::Value, serde_json::Value) {
    (at(pod, "/status/containerStatuses/0/containerID"), at(pod, "/status/containerStatuses/0/restartCount"))
}

async fn last_number(scene: &Scene<'_>, pod: &str) -> Result<u64> {
    let log = scene.logs(pod, &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?;
    // What is written while the log is read may come on top.
    let last = log.lines().last().unwrap_or_default();
    last.parse().with_context(|| format!("{log:?} is not a number"))
}

/// Waits until the container has counted beyond `number`: it runs now.
async fn counts_beyond(scene: &Scene<'_>, pod: &str, number: u64) -> Result<u64> {
    let params = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let stream = scene.api::<Pod>().log_stream(pod, &params).await?;
    let mut lines = futures::AsyncBufReadExt::lines(stream);
    let read = async {
        while let Some(line) = futures::TryStreamExt::try_next(&mut lines).await? {
            let now: u64 = line.trim().parse().with_context(|| format!("{line:?} is not a number"))?;
            if now > number {
                return Ok(now);
            }
        }
        anyhow::bail!("the log ended")
    };
    tokio::time::timeout(larder_e2e::scene::SOON, read).await.context("the container does not count")?
}

/// `kill -9` of the agent: containers live on, the restarted agent takes them over, and what ended meanwhile is known.
pub(crate) async fn agent_killed(cluster: &mut Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "agent-killed", &[]).await?;
    scene.pod("lives", counter()).await?;
    scene.pod("ends", json!({"restartPolicy": "Never", "containers": [sh("while ! test -e /dev/shm/go; do sleep 0.1; done; exit 4")]})).await?;
    scene.pod("idle", json!({"containers": [sh("exec sleep 1000")]})).await?;
    let lives = scene.wait_ready("lives").await?;
    scene.wait_ready("ends").await?;
    scene.wait_ready("idle").await?;
    let before = last_number(&scene, "lives").await?;
    let agent = scene.cluster.agent_process(0)?;
    agent.kill()?;
    let ends = scene.api::<Pod>().get("ends").await?;
    std::fs::write(shared_memory(scene.cluster, &ends)?.join("go"), "")?;
    scene.cluster.wait_node_ready(scene.cluster.node(0), false).await?;
    scene.cluster.start_agent(0)?;
    scene.cluster.wait_node_ready(scene.cluster.node(0), true).await?;
    let ended = scene.wait_phase("ends", "Failed").await?;
    ensure!(at(&ended, "/status/containerStatuses/0/state/terminated/exitCode") == 4, "{ended:?}");
    counts_beyond(&scene, "lives", before).await?;
    let after = scene.wait_ready("lives").await?;
    ensure!(identity(&after) == identity(&lives), "{:?} is not {:?}", identity(&after), identity(&lives));
    let idle = scene.wait_ready("idle").await?;
    ensure!(identity(&idle).1 == 0, "{idle:?}");
    scene.pod("new", json!({"restartPolicy": "Never", "containers": [sh("true")]})).await?;
    scene.wait_phase("new", "Succeeded").await?;
    for pod in ["lives", "idle", "ends"] {
        scene.delete(pod).await?;
    }
    Ok(())
}

/// A pod's `/dev/shm` on the host: a way to tell a container something while its agent is dead.
fn shared_memory(cluster: &Cluster, pod: &Pod) -> Result<PathBuf> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for entry in std::fs::read_dir(cluster.agents[0].run_dir.join("sandboxes"))? {
        let folder = entry?.path();
        if std::fs::read_to_string(folder.join("slot.json")).is_ok_and(|record| record.contains(uid)) {
            return Ok(folder.join("shm"));
        }
    }
    anyhow::bail!("the pod has no sandbox")
}

/// `kill -9` of the provider: nothing changes on the host, and the restarted provider goes on where it was.
pub(crate) async fn provider_killed(cluster: &mut Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "provider-killed", &[]).await?;
    scene.pod("lives", counter()).await?;
    scene.pod("ends", json!({"restartPolicy": "Never", "containers": [sh("sleep 3; exit 4")]})).await?;
    scene.pod("deleted", counter()).await?;
    let lives = scene.wait_ready("lives").await?;
    scene.wait_ready("deleted").await?;
    let before = last_number(&scene, "lives").await?;
    scene.cluster.provider_process()?.kill()?;
    scene.api::<Pod>().delete("deleted", &Default::default()).await?;
    scene.pod("made-meanwhile", json!({"restartPolicy": "Never", "containers": [sh("true")]})).await?;
    scene.cluster.start_provider()?;
    let ended = scene.wait_phase("ends", "Failed").await?;
    ensure!(at(&ended, "/status/containerStatuses/0/state/terminated/exitCode") == 4, "{ended:?}");
    scene.wait_gone("deleted").await?;
    scene.wait_phase("made-meanwhile", "Succeeded").await?;
    counts_beyond(&scene, "lives", before).await?;
    let after = scene.wait_ready("lives").await?;
    ensure!(identity(&after) == identity(&lives), "{after:?}");
    scene.delete("lives").await
}

/// The node says that its agent is away, and why.
pub(crate) async fn agent_away_shows_on_the_node(cluster: &mut Cluster) -> Result<()> {
    cluster.agent_process(0)?.stop(Duration::from_secs(20))?;
    let node = cluster.wait_node_ready(cluster.node(0), false).await?;
    let value = serde_json::to_value(&node)?;
    let ready = value["status"]["conditions"].as_array().and_then(|all| all.iter().find(|one| one["type"] == "Ready"));
    let ready = ready.context("no condition Ready")?;
    ensure!(ready["status"] == "False" && ready["reason"].is_string(), "{ready}");
    ensure!(ready["message"].as_str().is_some_and(|text| text.contains("agent")), "{ready}");
    cluster.start_agent(0)?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    Ok(())
}

/// The API server is away for 30 seconds: what runs runs, what ends meanwhile is told afterwards.
pub(crate) async fn api_server_away(cluster: &mut Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "api-server-away", &[]).await?;
    scene.pod("lives", counter()).await?;
    scene.pod("ends", json!({"restartPolicy": "Never", "containers": [sh("sleep 8; exit 6")]})).await?;
    let lives = scene.wait_ready("lives").await?;
    scene.wait_ready("ends").await?;
    let before = last_number(&scene, "lives").await?;
    scene.cluster.control_plane.stop_api_server()?;
    // The time away is what this test is about.
    tokio::time::sleep(Duration::from_secs(30)).await;
    scene.cluster.control_plane.start_api_server().await?;
    let ended = scene.wait_phase("ends", "Failed").await?;
    ensure!(at(&ended, "/status/containerStatuses/0/state/terminated/exitCode") == 6, "{ended:?}");
    counts_beyond(&scene, "lives", before + 100).await?;
    let after = scene.wait_ready("lives").await?;
    ensure!(identity(&after) == identity(&lives), "{after:?}");
    scene.pod("new", json!({"restartPolicy": "Never", "containers": [sh("true")]})).await?;
    // After half a minute of refused watches the scheduler may take a minute to look again.
    scene.wait_pod_for(Duration::from_secs(180), "new", "Succeeded", |pod| phase(pod) == "Succeeded").await?;
    scene.delete("lives").await
}

/// The store's file system is full: the pull says so with sizes, running pods are untouched, and room heals it.
pub(crate) async fn disk_full(cluster: &mut Cluster) -> Result<()> {
    let image = cluster.own_image("disk-full").await?;
    let lives = {
        let scene = Scene::new(cluster, "disk-full", &[]).await?;
        scene.pod("lives", counter()).await?;
        scene.wait_ready("lives").await?
    };
    let scene = Scene { cluster, namespace: "disk-full".into() };
    let filler = fill(cluster.store(0))?;
    // Also while the node says that its disk is full.
    let spec = json!({
        "restartPolicy": "Never",
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "main", "image": image, "command": ["true"]}],
    });
    scene.pod("puller", spec).await?;
    let backs_off = |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting/reason") == "ImagePullBackOff";
    scene.wait_pod("puller", "backing off", backs_off).await?;
    scene.wait_event("puller", "Failed", "Failed to pull image").await?;
    let described = scene.describe("puller").await?;
    ensure!(
        described.contains("no space left") && described.contains("unused layers, which can be removed"),
        "{described}"
    );
    let after = scene.wait_ready("lives").await?;
    ensure!(identity(&after) == identity(&lives) && phase(&after) == "Running", "{after:?}");
    std::fs::remove_file(filler)?;
    scene.wait_phase("puller", "Succeeded").await?;
    scene.delete("lives").await
}

/// Fills a file system up but for a little, with one file.
fn fill(folder: &Path) -> Result<PathBuf> {
    let free = rustix::fs::statvfs(folder).map(|stat| stat.f_bavail * stat.f_frsize)?;
    let path = folder.with_file_name("filler");
    let file = std::fs::File::create(&path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free.saturating_sub(256 << 10))?;
    Ok(path)
}
