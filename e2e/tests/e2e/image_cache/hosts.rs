//! Several hosts: where a cache is, where it is wanted, and what a host that is lost in the middle leaves behind.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{DynamicObject, Patch, PatchParams};
use larder_e2e::cluster::Cluster;
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{image_caches, ready_cache, wait_cache};
use serde_json::json;

use super::{create, delete, is};

/// What a status says of each host: node and phase.
fn hosts(cache: &DynamicObject) -> Vec<(&str, &str)> {
    let all = cache.data["status"]["hosts"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .map(|host| (host["node"].as_str().unwrap_or_default(), host["phase"].as_str().unwrap_or_default()))
        .collect()
}

async fn annotate(cluster: &Cluster, name: &str, key: &str, value: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
    image_caches(&cluster.client).patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Every host holds it, and the status says of each where it stands.
pub(crate) async fn each_host_is_shown(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("each-host").await?;
    ready_cache(cluster, "each-host", &[&image]).await?;
    let cache = wait_cache(cluster, "each-host", "on both hosts", |cache| is(cache, "readyHosts", "2/2")).await?;
    ensure!(hosts(&cache) == [(cluster.node(0), "Ready"), (cluster.node(1), "Ready")], "{}", cache.data["status"]);
    let wide = cluster.kubectl(&["get", "imagecache", "each-host", "-o", "wide"]).await?;
    let columns: Vec<_> = wide.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(columns == ["NAME", "AGE", "CACHEID", "PHASE", "PROGRESS", "HOSTS", "IMAGES", "SIZE", "REASON"], "{wide}");
    ensure!(wide.contains("2/2"), "{wide}");
    delete(cluster, "each-host").await
}

/// A selector names the virtual nodes whose hosts are to hold it; one that means nothing, or that no node fits, is named.
pub(crate) async fn only_where_it_is_wanted(cluster: &Cluster) -> Result<()> {
    const SELECTOR: &str = "eci.alibabacloud.com/node-selector";
    let image = cluster.own_image("selected").await?;
    let on = |index: usize| format!("kubernetes.io/hostname={}", cluster.node(index));
    let metadata = json!({"name": "selected", "annotations": {SELECTOR: on(1), "k8s.aliyun.com/imc-os-type": "linux"}});
    create(cluster, json!({"metadata": metadata, "spec": {"images": [image]}})).await?;
    let cache = wait_cache(cluster, "selected", "Ready", |cache| is(cache, "phase", "Ready")).await?;
    ensure!(hosts(&cache) == [(cluster.node(1), "Ready")], "{}", cache.data["status"]);
    let id = cache.data["status"]["imageCacheId"].as_str().context("it has no id")?.to_owned();
    let fact = |index: usize| cluster.store(index).join("caches").join(format!("{id}.json"));
    ensure!(fact(1).exists() && !fact(0).exists(), "it is not on the second host alone");

    annotate(cluster, "selected", SELECTOR, &on(0)).await?;
    let moved = |cache: &DynamicObject| hosts(cache) == [(cluster.node(0), "Ready")];
    wait_cache(cluster, "selected", "moved", moved).await?;
    annotate(cluster, "selected", SELECTOR, "zone in").await?;
    let cache = wait_cache(cluster, "selected", "refused", |cache| is(cache, "phase", "UpdateFailed")).await?;
    ensure!(
        cache.data["status"]["reason"].as_str().is_some_and(|reason| reason.contains(SELECTOR)),
        "{:?}",
        cache.data
    );
    annotate(cluster, "selected", SELECTOR, "zone=nowhere").await?;
    let cache = wait_cache(cluster, "selected", "nowhere", |cache| is(cache, "phase", "Failed")).await?;
    ensure!(
        is(&cache, "reason", "no host has a node with the labels zone=nowhere,kubernetes.io/os=linux"),
        "{:?}",
        cache.data
    );
    delete(cluster, "selected").await
}

/// An agent that dies in the middle of a build costs the other host nothing, and goes on when it is back.
pub(crate) async fn a_host_lost_in_mid_build(cluster: &mut Cluster) -> Result<()> {
    let image = cluster.own_image("lost-host").await?;
    let drip = Fault::Drip { piece: 512, pause: Duration::from_millis(100) };
    cluster.registry.add("lost-host", Rule::every(Kind::Blob, drip));
    create(cluster, json!({"metadata": {"name": "lost-host"}, "spec": {"images": [image]}})).await?;
    let both = |cache: &DynamicObject| hosts(cache) == [(cluster.node(0), "Creating"), (cluster.node(1), "Creating")];
    wait_cache(cluster, "lost-host", "being built on both hosts", both).await?;
    cluster.agent_process(1)?.kill()?;
    cluster.registry.heal("lost-host");
    let cache = wait_cache(cluster, "lost-host", "Ready", |cache| is(cache, "phase", "Ready")).await?;
    ensure!(is(&cache, "readyHosts", "1/2"), "{}", cache.data["status"]);
    cluster.start_agent(1)?;
    wait_cache(cluster, "lost-host", "on both hosts", |cache| is(cache, "readyHosts", "2/2")).await?;
    cluster.wait_node_ready(cluster.node(1), true).await?;
    delete(cluster, "lost-host").await
}

/// A host that was not there when a cache was made gets it when it comes.
pub(crate) async fn a_host_that_joins_later(cluster: &mut Cluster) -> Result<()> {
    cluster.agent_process(1)?.stop(Duration::from_secs(20))?;
    cluster.wait_node_ready(cluster.node(1), false).await?;
    let image = cluster.own_image("late-host").await?;
    ready_cache(cluster, "late-host", &[&image]).await?;
    cluster.start_agent(1)?;
    let cache = wait_cache(cluster, "late-host", "on both hosts", |cache| is(cache, "readyHosts", "2/2")).await?;
    ensure!(hosts(&cache) == [(cluster.node(0), "Ready"), (cluster.node(1), "Ready")], "{}", cache.data["status"]);
    cluster.wait_node_ready(cluster.node(1), true).await?;
    delete(cluster, "late-host").await
}

/// A deletion does not wait for a host that is gone, and that host forgets the cache when it comes back.
pub(crate) async fn deleted_while_a_host_is_away(cluster: &mut Cluster) -> Result<()> {
    let image = cluster.own_image("deleted-away").await?;
    let id = ready_cache(cluster, "deleted-away", &[&image]).await?;
    wait_cache(cluster, "deleted-away", "on both hosts", |cache| is(cache, "readyHosts", "2/2")).await?;
    let fact = |index: usize| cluster.store(index).join("caches").join(format!("{id}.json"));
    cluster.agent_process(1)?.kill()?;
    delete(cluster, "deleted-away").await?;
    ensure!(!fact(0).exists() && fact(1).exists(), "the object went before the host that was there had forgotten it");
    cluster.start_agent(1)?;
    super::wait_until("the host that came back has forgotten it", || !fact(1).exists()).await?;
    cluster.wait_node_ready(cluster.node(1), true).await.map(drop)
}
