//! What a build, or a start from a cache, comes to when something it needs goes away in the middle.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use larder_e2e::cluster::Cluster;
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{Scene, at, image_caches, phase, ready_cache, sh, wait_cache};
use serde_json::{Value, json};

use super::{create, delete, is, sleeper, wait_cache_gone, wait_until};

/// Begins a cache whose transfer takes some ten seconds; gives its id.
async fn begin_slowly(cluster: &Cluster, name: &str) -> Result<String> {
    let image = cluster.own_image(name).await?;
    let drip = Fault::Drip { piece: 8 << 10, pause: Duration::from_millis(100) };
    cluster.registry.add(name, Rule::every(Kind::Blob, drip));
    create(cluster, json!({"metadata": {"name": name}, "spec": {"images": [image]}})).await?;
    let cache = wait_cache(cluster, name, "being built", |cache| is(cache, "phase", "Creating")).await?;
    cache.data["status"]["imageCacheId"].as_str().map(str::to_owned).context("it has no id")
}

/// Whether the host has ended the build, by its own record.
fn is_built(cluster: &Cluster, id: &str) -> bool {
    let record = std::fs::read(cluster.store(0).join("caches").join(format!("{id}.json"))).unwrap_or_default();
    serde_json::from_slice::<Value>(&record).is_ok_and(|record| record["phase"] == "Ready")
}

/// `kill -9` of the provider in the middle of a build: the host goes on alone, and what came of it is told afterwards.
pub(crate) async fn provider_killed_in_mid_build(cluster: &mut Cluster) -> Result<()> {
    let id = begin_slowly(cluster, "provider-lost").await?;
    cluster.provider_process()?.kill()?;
    ensure!(!is_built(cluster, &id), "the build ended before the provider was killed");
    cluster.registry.heal("provider-lost");
    wait_until("the host has built it", || is_built(cluster, &id)).await?;
    let asked = cluster.registry.count("provider-lost", Kind::Manifest);
    cluster.start_provider()?;
    let cache = wait_cache(cluster, "provider-lost", "Ready", |cache| is(cache, "phase", "Ready")).await?;
    ensure!(cache.data["status"]["imageCacheId"] == json!(id), "{}", cache.data["status"]);
    ensure!(cluster.registry.count("provider-lost", Kind::Manifest) == asked, "it was built a second time");
    delete(cluster, "provider-lost").await
}

/// `kill -9` of the agent in the middle of a build: the agent that is started goes on with it.
pub(crate) async fn agent_killed_in_mid_build(cluster: &mut Cluster) -> Result<()> {
    let id = begin_slowly(cluster, "agent-lost").await?;
    cluster.agent_process(0)?.kill()?;
    ensure!(!is_built(cluster, &id), "the build ended before the agent was killed");
    cluster.registry.heal("agent-lost");
    cluster.start_agent(0)?;
    wait_cache(cluster, "agent-lost", "Ready", |cache| is(cache, "phase", "Ready")).await?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    delete(cluster, "agent-lost").await
}

/// An API server that is away while a build ends is told when it is back, with the time of the end.
pub(crate) async fn api_server_away_while_a_build_ends(cluster: &mut Cluster) -> Result<()> {
    let id = begin_slowly(cluster, "nobody-to-tell").await?;
    cluster.control_plane.stop_api_server()?;
    let was_built = is_built(cluster, &id);
    let built = wait_until("the host has built it", || is_built(cluster, &id)).await;
    cluster.control_plane.start_api_server().await?;
    built?;
    ensure!(!was_built, "the build ended before the API server was stopped");
    cluster.registry.heal("nobody-to-tell");
    let cache = wait_cache(cluster, "nobody-to-tell", "Ready", |cache| is(cache, "phase", "Ready")).await?;
    ensure!(cache.data["status"]["progress"] == "100%", "{}", cache.data["status"]);
    let scene = Scene::new(cluster, "nobody-to-tell", &[]).await?;
    scene.pod("new", json!({"restartPolicy": "Never", "containers": [sh("true")]})).await?;
    // After refused watches the scheduler may take a minute to look again.
    scene.wait_pod_for(Duration::from_secs(180), "new", "Succeeded", |pod| phase(pod) == "Succeeded").await?;
    scene.delete("new").await?;
    delete(cluster, "nobody-to-tell").await
}

/// A cache that is deleted while pods start from it: those that have it keep it, the others pull, and all run.
pub(crate) async fn deleted_while_pods_start(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("deleted-early").await?;
    ready_cache(cluster, "deleted-early", &[&image]).await?;
    let scene = Scene::new(cluster, "deleted-early", &[]).await?;
    let names: Vec<String> = (0..8).map(|n| format!("pod-{n}")).collect();
    let reads = "while cat /own-image > /dev/null; do sleep 0.1; done";
    for name in &names {
        let main =
            json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", reads]});
        scene.pod(name, json!({"containers": [main]})).await?;
    }
    image_caches(&cluster.client).delete("deleted-early", &Default::default()).await?;
    for name in &names {
        scene.wait_ready(name).await?;
    }
    wait_cache_gone(cluster, "deleted-early").await?;
    // Takes longer than a turn of theirs.
    scene.pod("later", sleeper(&image)).await?;
    scene.wait_ready("later").await?;
    for name in &names {
        let pod = scene.wait_ready(name).await?;
        ensure!(at(&pod, "/status/containerStatuses/0/restartCount") == 0, "it has lost its files: {pod:?}");
        scene.delete(name).await?;
    }
    Ok(())
}
