//! What needs a provider, or a definition, other than the usual one.

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, ListParams};
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::scene::{Scene, image_caches, ready_cache, wait_cache};
use serde_json::json;

use super::{merge_kind, sleeper, wait_cache_gone};

async fn remove_all(cluster: &Cluster) -> Result<()> {
    let caches = image_caches(&cluster.client);
    for cache in caches.list(&ListParams::default()).await? {
        let name = cache.metadata.name.unwrap_or_default();
        caches.delete(&name, &DeleteParams::default()).await?;
        wait_cache_gone(cluster, &name).await?;
    }
    Ok(())
}

/// With room for two: a third by hand fails until there is room, and one for a pod takes the place of an older one for a pod.
pub(crate) async fn room_for_two(cluster: &mut Cluster) -> Result<()> {
    remove_all(cluster).await?;
    cluster.set_provider_flags(&["--image-caches-max", "2"])?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    let (first, second) = (cluster.own_image("room-1").await?, cluster.own_image("room-2").await?);
    ready_cache(cluster, "by-hand", &[&first]).await?;
    let scene = Scene::new(cluster, "room", &[]).await?;
    scene.pod("evicted", sleeper(&second)).await?;
    scene.wait_event("evicted", "ImageCacheAutoCreated", "").await?;
    let automatic = automatic(cluster, &second).await?.context("no cache was made for the pod")?;
    wait_cache(cluster, &automatic, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;

    let third = json!({"metadata": {"name": "one-too-many"}, "spec": {"images": [BUSYBOX]}});
    let object = serde_json::from_value(merge_kind(third))?;
    image_caches(&cluster.client).create(&Default::default(), &object).await?;
    let refused =
        wait_cache(cluster, "one-too-many", "refused", |cache| cache.data["status"]["phase"] == "Failed").await?;
    let reason = refused.data["status"]["reason"].as_str().unwrap_or_default().to_owned();
    ensure!(reason.starts_with("image cache quota 2 is used up: "), "{reason}");

    // Room for the one by hand that waited.
    image_caches(&cluster.client).delete("by-hand", &DeleteParams::default()).await?;
    wait_cache(cluster, "one-too-many", "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;

    let newer = cluster.own_image("room-3").await?;
    scene.pod("evicts", sleeper(&newer)).await?;
    scene.wait_event("evicts", "ImageCacheAutoCreated", "").await?;
    wait_cache_gone(cluster, &automatic).await?;

    // Nothing is left that could go.
    let automatic = self::automatic(cluster, &newer).await?.context("no cache was made for the second pod")?;
    image_caches(&cluster.client).delete(&automatic, &DeleteParams::default()).await?;
    wait_cache_gone(cluster, &automatic).await?;
    ready_cache(cluster, "by-hand-too", &[&first]).await?;
    scene.pod("full", sleeper(&cluster.own_image("room-4").await?)).await?;
    let told = scene.wait_event("full", "ImageCacheAutoCreateFailed", "quota 2 is used up").await?;
    ensure!(told.starts_with("[eci.imagecache]Image cache auto create failed for "), "{told}");
    for pod in ["evicted", "evicts", "full"] {
        scene.delete(pod).await?;
    }
    cluster.set_provider_flags(&[])?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    remove_all(cluster).await
}

/// The object of the cache that was made for a pod with this image.
async fn automatic(cluster: &Cluster, image: &str) -> Result<Option<String>> {
    let all = image_caches(&cluster.client).list(&ListParams::default()).await?;
    let is_its = |cache: &&kube::api::DynamicObject| cache.data["spec"]["images"] == json!([image]);
    Ok(all.items.iter().find(is_its).and_then(|cache| cache.metadata.name.clone()))
}

/// `--install-crds` brings the definition to a cluster that has none.
pub(crate) async fn definition_by_flag(cluster: &mut Cluster) -> Result<()> {
    remove_all(cluster).await?;
    cluster.kubectl(&["delete", "crd", "imagecaches.eci.alibabacloud.com", "--wait=true", "--timeout=60s"]).await?;
    cluster.set_provider_flags(&["--install-crds"])?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    let established = ["wait", "--for=condition=Established", "crd/imagecaches.eci.alibabacloud.com", "--timeout=60s"];
    cluster.kubectl(&established).await?;
    let managers = "jsonpath={.metadata.managedFields[*].manager}";
    let managers = cluster.kubectl(&["get", "crd", "imagecaches.eci.alibabacloud.com", "-o", managers]).await?;
    ensure!(managers.contains("larder-provider"), "{managers}");
    ready_cache(cluster, "installed", &[BUSYBOX]).await?;
    cluster.set_provider_flags(&[])?;
    cluster.wait_node_ready(cluster.node(0), true).await?;
    remove_all(cluster).await
}
