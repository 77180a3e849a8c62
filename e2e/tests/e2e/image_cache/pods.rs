//! Pods: which cache they start from, and what is made when there is none.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::registry_proxy::Kind;
use larder_e2e::scene::{Scene, at, image_caches, phase, ready_cache, wait_cache};
use serde_json::{Value, json};

use super::{merge_kind, sleeper};

/// `eci-imc-id`: the pod starts from that cache, and the registry is not asked for anything.
pub(crate) async fn pinned_without_the_registry(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("pinned").await?;
    let id = ready_cache(cluster, "pinned", &[&image]).await?;
    let before = cluster.registry.count("pinned", Kind::Manifest) + cluster.registry.count("pinned", Kind::Blob);
    let scene = Scene::new(cluster, "pinned", &[]).await?;
    scene.annotated_pod("pod", json!({"k8s.aliyun.com/eci-imc-id": id}), sleeper(&image)).await?;
    scene.wait_ready("pod").await?;
    let after = cluster.registry.count("pinned", Kind::Manifest) + cluster.registry.count("pinned", Kind::Blob);
    ensure!(after == before, "the registry was asked: {:#?}", cluster.registry.seen());
    let says = |pod: &Pod| at(pod, "/metadata/annotations/k8s.aliyun.com~1eci-matched-image-cache") == id.as_str();
    scene.wait_pod("pod", "annotated with its cache", says).await?;
    let hit = scene.wait_event("pod", "SuccessfulHitImageCache", &id).await?;
    ensure!(
        hit == format!(
            "[eci.imagecache]Successfully hit image cache {id}, eci will be scheduled with this image cache."
        )
    );
    scene.wait_event("pod", "Pulled", "already present on machine").await?;
    image_caches(&cluster.client).delete("pinned", &Default::default()).await?;
    // Whoever runs from a cache that is deleted goes on running.
    let pod = scene.wait_ready("pod").await?;
    ensure!(phase(&pod) == "Running", "{pod:?}");
    Ok(())
}

/// `eci-auto-imc`, on by default: a Ready cache with the same image is found.
pub(crate) async fn matched_without_the_registry(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("matched").await?;
    let id = ready_cache(cluster, "matched", &[&image, BUSYBOX]).await?;
    let scene = Scene::new(cluster, "matched", &[]).await?;
    let before = cluster.registry.count("matched", Kind::Manifest) + cluster.registry.count("matched", Kind::Blob);
    scene.annotated_pod("pod", json!({"k8s.aliyun.com/imc-perfect-match": "true"}), sleeper(&image)).await?;
    scene.wait_ready("pod").await?;
    let after = cluster.registry.count("matched", Kind::Manifest) + cluster.registry.count("matched", Kind::Blob);
    ensure!(after == before, "the registry was asked: {:#?}", cluster.registry.seen());
    scene.wait_event("pod", "SuccessfulHitImageCache", &id).await?;
    let manifests = cluster.registry.count("matched", Kind::Manifest);
    let mut off = sleeper(&image);
    off["restartPolicy"] = json!("Never");
    scene.annotated_pod("off", json!({"k8s.aliyun.com/eci-auto-imc": "false"}), off).await?;
    scene.wait_ready("off").await?;
    ensure!(cluster.registry.count("matched", Kind::Manifest) > manifests, "turned off, the registry is asked");
    scene.wait_event("off", "Started", "").await?;
    let events = scene.events("off").await?;
    ensure!(!events.iter().any(|event| event.contains("ImageCache")), "{events:#?}");
    Ok(())
}

/// A pod that nothing matches starts all the same, and a cache is made of its images for the next one.
pub(crate) async fn made_when_missing(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("missing-cache").await?;
    let scene = Scene::new(cluster, "missing-cache", &[]).await?;
    scene.pod("first", sleeper(&image)).await?;
    scene.wait_ready("first").await?;
    let missed = scene.wait_event("first", "ImageCacheMissed", "").await?;
    ensure!(missed == "[eci.imagecache]Missed image cache.", "{missed}");
    scene.wait_event("first", "ImageCacheAutoCreated", "is auto created").await?;
    let caches = image_caches(&cluster.client).list(&ListParams::default()).await?;
    let holds = |cache: &&kube::api::DynamicObject| {
        cache.data["spec"]["images"].as_array().is_some_and(|images| images.contains(&json!(image)))
    };
    let cache = caches.items.iter().find(holds).context("no cache was made")?;
    let name = cache.metadata.name.clone().unwrap_or_default();
    ensure!(name.starts_with("auto-create-for-eci-"), "{name}");
    wait_cache(cluster, &name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    ensure_fetched_once(cluster, "missing-cache")?;
    scene.pod("second", sleeper(&image)).await?;
    scene.wait_ready("second").await?;
    scene.wait_event("second", "SuccessfulHitImageCache", "").await?;
    Ok(())
}

/// "The specified image cache must be in Ready state. Otherwise, pod creation fails."
pub(crate) async fn pinned_to_one_that_is_missing(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "pinned-missing", &[]).await?;
    let id = "imc-2zenothingnothing0000";
    scene.annotated_pod("pod", json!({"k8s.aliyun.com/eci-imc-id": id}), sleeper(BUSYBOX)).await?;
    let message = scene.wait_event("pod", "ImageCacheNotFound", id).await?;
    ensure!(message == format!("The specified image cache {id} does not exist."), "{message}");
    let pod = scene.wait_pod("pod", "refused", |pod| at(pod, "/status/reason") != Value::Null).await?;
    ensure!(phase(&pod) == "Pending", "{pod:?}");
    scene.delete("pod").await
}

/// A pod that names a cache which is not Ready waits, and starts when it is.
pub(crate) async fn pinned_to_one_in_the_making(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("in-the-making").await?;
    let caches = image_caches(&cluster.client);
    // Nobody serves the second image, so the cache is never Ready until its list is mended.
    let images = json!([image, "registry.larder.test/nothing:1"]);
    let object = merge_kind(json!({"metadata": {"name": "in-the-making"}, "spec": {"images": images}}));
    caches.create(&Default::default(), &serde_json::from_value(object)?).await?;
    let cache =
        wait_cache(cluster, "in-the-making", "Failed", |cache| cache.data["status"]["phase"] == "Failed").await?;
    let id = cache.data["status"]["imageCacheId"].as_str().context("it has no id")?.to_owned();
    let scene = Scene::new(cluster, "in-the-making", &[]).await?;
    scene.annotated_pod("pod", json!({"k8s.aliyun.com/eci-imc-id": id}), sleeper(&image)).await?;
    let waiting = scene.wait_pod("pod", "waiting", |pod| at(pod, "/status/reason") == "ImageCacheFailed").await?;
    ensure!(phase(&waiting) == "Pending", "{waiting:?}");
    let mended = kube::api::Patch::Merge(json!({"spec": {"images": [image]}}));
    caches.patch("in-the-making", &Default::default(), &mended).await?;
    wait_cache(cluster, "in-the-making", "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let pod = scene.wait_ready("pod").await?;
    ensure!(at(&pod, "/status/reason") == Value::Null, "{pod:?}");
    caches.delete("in-the-making", &Default::default()).await?;
    Ok(())
}

/// No byte of an image is fetched twice: it has one config and two layers.
fn ensure_fetched_once(cluster: &Cluster, repository: &str) -> Result<()> {
    let seen = cluster.registry.seen();
    let of_it = seen.iter().filter(|seen| seen.repository == repository && seen.method == http::Method::GET);
    let fetched = of_it.filter(|seen| seen.kind == Kind::Blob).count();
    ensure!(fetched <= 3, "one config and two layers were fetched with {fetched} requests");
    Ok(())
}

/// However many pods with the same images come together, one cache is made for them, of what one transfer has brought.
pub(crate) async fn one_for_many_pods(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("one-for-many").await?;
    let scene = Scene::new(cluster, "one-for-many", &[]).await?;
    let names: Vec<String> = (0..20).map(|n| format!("pod-{n}")).collect();
    futures::future::try_join_all(names.iter().map(|name| scene.pod(name, sleeper(&image)))).await?;
    for name in &names {
        scene.wait_ready(name).await?;
    }
    let caches = image_caches(&cluster.client).list(&ListParams::default()).await?;
    let made: Vec<_> = caches.items.iter().filter(|cache| cache.data["spec"]["images"] == json!([image])).collect();
    let [cache] = made[..] else { bail!("{} caches were made", made.len()) };
    let name = cache.metadata.name.as_deref().unwrap_or_default();
    wait_cache(cluster, name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    ensure_fetched_once(cluster, "one-for-many")
}

/// A value that means nothing is named, and does not keep the pod from running.
pub(crate) async fn invalid_annotations(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "invalid", &[]).await?;
    let cases = [
        ("auto", "k8s.aliyun.com/eci-auto-imc", "yes"),
        ("perfect", "k8s.aliyun.com/imc-perfect-match", "maybe"),
        ("count", "k8s.aliyun.com/imc-match-count-request", "-1"),
    ];
    for (name, key, value) in cases {
        scene.annotated_pod(name, json!({key: value}), sleeper(BUSYBOX)).await?;
        let pod: Pod = scene.wait_ready(name).await?;
        ensure!(phase(&pod) == "Running", "{pod:?}");
        // Of one pod they are written in their order.
        scene.wait_event(name, "Started", "").await?;
        let described = scene.describe(name).await?;
        let says = described.lines().any(|line| line.contains("Warning") && line.contains(key));
        ensure!(says, "no warning names {key}:\n{described}");
    }
    Ok(())
}
