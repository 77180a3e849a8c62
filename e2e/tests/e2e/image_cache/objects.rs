//! The ImageCache objects: how they are made, shown and removed.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{DynamicObject, Patch, PatchParams};
use larder_e2e::cluster::{BUSYBOX, Cluster, NGINX};
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{Scene, image_caches, ready_cache, wait_cache};
use serde_json::json;

use super::{merge_kind, wait_cache_gone};

/// Progress on the way, Ready at the end, with what `kubectl describe` is asked for.
pub(crate) async fn made_by_hand(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("by-hand").await?;
    let id = ready_cache(cluster, "by-hand", &[&image]).await?;
    ensure!(id.starts_with("imc-") && id.len() == 24, "{id}");
    let cache = image_caches(&cluster.client).get("by-hand").await?;
    let status = &cache.data["status"];
    ensure!(status["progress"] == "100%" && status["startTime"].is_string(), "{status}");
    let events = status["events"].as_array().context("it has no events")?;
    ensure!(events.iter().any(|event| event["message"].as_str().is_some_and(|text| text.contains("pull"))), "{status}");
    let failing = json!({"metadata": {"name": "failing"}, "spec": {"images": ["registry.larder.test/nothing:1"]}});
    let object = serde_json::from_value(merge_kind(failing))?;
    image_caches(&cluster.client).create(&Default::default(), &object).await?;
    let failed = wait_cache(cluster, "failing", "Failed", |cache| cache.data["status"]["phase"] == "Failed").await?;
    let reason = failed.data["status"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("nothing"), "{reason:?}");
    image_caches(&cluster.client).delete("failing", &Default::default()).await?;
    image_caches(&cluster.client).delete("by-hand", &Default::default()).await?;
    Ok(())
}

/// A cache whose object is deleted is no longer on the host's list.
pub(crate) async fn gone_from_the_host_when_deleted(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("gone").await?;
    let id = ready_cache(cluster, "gone", &[&image]).await?;
    let fact = cluster.store(0).join("caches").join(format!("{id}.json"));
    ensure!(fact.exists(), "{} is not there", fact.display());
    image_caches(&cluster.client).delete("gone", &Default::default()).await?;
    super::wait_until("the host has forgotten it", || !fact.exists()).await
}

/// Step 1 of the documentation, the columns, the short names, and what the API server refuses.
pub(crate) async fn as_kubectl_shows_it(cluster: &Cluster) -> Result<()> {
    let crd = cluster.kubectl(&["get", "crd/imagecaches.eci.alibabacloud.com"]).await?;
    ensure!(crd.contains("imagecaches.eci.alibabacloud.com"), "{crd}");
    ready_cache(cluster, "shown", &[BUSYBOX, NGINX]).await?;
    for name in ["imagecaches", "ic", "imc"] {
        let table = cluster.kubectl(&["get", name]).await?;
        let mut lines = table.lines();
        let columns: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
        ensure!(columns == ["NAME", "AGE", "CACHEID", "PHASE", "PROGRESS"], "{table}");
        ensure!(
            lines.any(|line| line.starts_with("shown") && line.contains("Ready") && line.contains("100%")),
            "{table}"
        );
    }
    let all = cluster.kubectl(&["get", "all"]).await?;
    ensure!(all.contains("imagecache.eci.alibabacloud.com/shown"), "{all}");
    let described = cluster.kubectl(&["describe", "imagecache", "shown"]).await?;
    for part in ["Started", "Pulled", "Successfully pulled image", "Ready", "EciService"] {
        ensure!(described.contains(part), "{part} is not in\n{described}");
    }
    let cache = image_caches(&cluster.client).get("shown").await?;
    let said = |text: &str| {
        cache.data["status"]["events"].as_array().is_some_and(|all| all.iter().any(|event| event["message"] == text))
    };
    for text in ["Successfully check image cache resource.", "start to pull images"] {
        ensure!(said(text), "{text:?} is not said: {}", cache.data["status"]["events"]);
    }
    ensure!(said(&format!("Successfully pulled image {NGINX}")), "{}", cache.data["status"]["events"]);
    image_caches(&cluster.client).delete("shown", &Default::default()).await?;
    wait_cache_gone(cluster, "shown").await
}

/// `kubectl explain` names the fields, their limits, and the annotations.
pub(crate) async fn explained(cluster: &Cluster) -> Result<()> {
    let spec = cluster.kubectl(&["explain", "imagecache.spec"]).await?;
    for part in [
        "images",
        "imagePullSecrets",
        "namespace:secretName",
        "imageCacheSize",
        "20 to 32768",
        "retentionDays",
        "1 to 65536",
        "k8s.aliyun.com/imc-size",
        "k8s.aliyun.com/plain-http-registry",
        "eci.alibabacloud.com/node-selector",
        "eci.alibabacloud.com/refresh",
        "eci.alibabacloud.com/image-pull-credentials-verification-policy",
    ] {
        ensure!(spec.contains(part), "{part} is not in\n{spec}");
    }
    let status = cluster.kubectl(&["explain", "imagecache.status.hosts"]).await?;
    ensure!(status.contains("node") && status.contains("progress"), "{status}");
    Ok(())
}

/// What the API server refuses, with a message that names the field; and the limits, which it takes.
pub(crate) async fn refused_and_taken(cluster: &Cluster) -> Result<()> {
    let caches = image_caches(&cluster.client);
    let many = |count: usize| json!((0..count).map(|n| format!("registry.larder.test/many:{n}")).collect::<Vec<_>>());
    let refused = [
        (json!({"images": []}), "spec.images"),
        (json!({}), "spec.images"),
        (json!({"images": many(21)}), "spec.images"),
        (json!({"images": [""]}), "spec.images[0]"),
        (json!({"images": ["a"], "imageCacheSize": 32_769}), "spec.imageCacheSize"),
        (json!({"images": ["a"], "imageCacheSize": 0}), "spec.imageCacheSize"),
        (json!({"images": ["a"], "retentionDays": 0}), "spec.retentionDays"),
        (json!({"images": ["a"], "retentionDays": 65_537}), "spec.retentionDays"),
        (json!({"images": ["a"], "imagePullSecrets": ["nocolon"]}), "must be written namespace:secretName"),
        (json!({"images": ["a"], "imagePullSecrets": [":s"]}), "must be written namespace:secretName"),
        (json!({"images": ["a"], "imagePullSecrets": ["n:S"]}), "must be written namespace:secretName"),
    ];
    for (spec, named) in refused {
        let object = serde_json::from_value(merge_kind(json!({"metadata": {"name": "refused"}, "spec": spec})))?;
        let Err(kube::Error::Api(answer)) = caches.create(&Default::default(), &object).await else {
            bail!("{spec} is taken");
        };
        ensure!(answer.code == 422 && answer.message.contains(named), "{spec}: {answer:?}");
    }
    let taken = [
        ("taken-many", json!({"images": many(20)})),
        ("taken-small", json!({"images": [BUSYBOX], "imageCacheSize": 10, "retentionDays": 65_536})),
    ];
    for (name, spec) in taken {
        let object = serde_json::from_value(merge_kind(json!({"metadata": {"name": name}, "spec": spec})))?;
        let made = caches.create(&Default::default(), &object).await?;
        let status = &made.data["status"];
        ensure!(status["phase"] == "Pending" && status["progress"] == "0%", "a new object has no standing: {status}");
    }
    // As ECI does: what is too small is raised.
    let small = wait_cache(cluster, "taken-small", "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    ensure!(small.data["status"]["imageCacheSize"] == 20, "{}", small.data["status"]);
    for (name, _) in [("taken-many", ()), ("taken-small", ())] {
        caches.delete(name, &Default::default()).await?;
        wait_cache_gone(cluster, name).await?;
    }
    Ok(())
}

/// A changed list builds again in place: Updating, then Ready or UpdateFailed, and the old images serve meanwhile.
pub(crate) async fn updated(cluster: &Cluster) -> Result<()> {
    let (old, new) = (cluster.own_image("updated-old").await?, cluster.own_image("updated-new").await?);
    ready_cache(cluster, "updated", &[&old]).await?;
    let caches = image_caches(&cluster.client);
    let set = async |images: serde_json::Value| {
        let patch = Patch::Merge(json!({"spec": {"images": images}}));
        caches.patch("updated", &PatchParams::default(), &patch).await
    };
    let phase = |wanted: &'static str| move |cache: &DynamicObject| cache.data["status"]["phase"] == wanted;
    let row = async || cluster.kubectl(&["get", "imagecache", "updated"]).await;
    // What is on its way goes on like this when the registry is well again.
    let drip = Fault::Drip { piece: 32 << 10, pause: Duration::from_millis(100) };
    cluster.registry.add("updated-new", Rule::every(Kind::Blob, drip));
    set(json!([new])).await?;
    wait_cache(cluster, "updated", "Updating", phase("Updating")).await?;
    let table = row().await?;
    ensure!(table.contains("Updating") && !table.contains("100%"), "{table}");
    cluster.registry.heal("updated-new");
    wait_cache(cluster, "updated", "Ready", phase("Ready")).await?;
    set(json!([new, "registry.larder.test/nothing:1"])).await?;
    let failed = wait_cache(cluster, "updated", "UpdateFailed", phase("UpdateFailed")).await?;
    let reason = failed.data["status"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("registry.larder.test/nothing:1"), "{reason}");
    ensure!(
        failed.data["status"].get("expireDateTime").is_none(),
        "what still serves expires: {}",
        failed.data["status"]
    );
    let table = row().await?;
    ensure!(table.contains("UpdateFailed"), "{table}");
    let scene = Scene::new(cluster, "updated", &[]).await?;
    let id = failed.data["status"]["imageCacheId"].clone();
    scene.annotated_pod("pod", json!({"k8s.aliyun.com/eci-imc-id": id}), super::sleeper(&new)).await?;
    scene.wait_event("pod", "Pulled", "already present on machine").await?;
    set(json!([new])).await?;
    wait_cache(cluster, "updated", "Ready again", phase("Ready")).await?;

    // A tag that has moved is fetched again when its owner says so.
    let before = cluster.registry.count("updated-new", Kind::Manifest);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"eci.alibabacloud.com/refresh": "1"}}}));
    caches.patch("updated", &PatchParams::default(), &patch).await?;
    super::wait_until("the manifest is asked for again", || {
        cluster.registry.count("updated-new", Kind::Manifest) > before
    })
    .await?;
    wait_cache(cluster, "updated", "Ready after a refresh", phase("Ready")).await?;
    scene.delete("pod").await?;
    caches.delete("updated", &Default::default()).await?;
    wait_cache_gone(cluster, "updated").await
}

/// Annotations that only Alibaba's cloud can honour are taken, and told of once.
pub(crate) async fn annotations_are_told_of_once(cluster: &Cluster) -> Result<()> {
    let annotations = json!({
        "k8s.aliyun.com/vswitch-ids": "vsw-a,vsw-b",
        "k8s.aliyun.com/auto-create-eip": "true",
        "k8s.aliyun.com/imc-enable-reuse": "true",
        "k8s.aliyun.com/imc-enable-flash": "true",
        "k8s.aliyun.com/imc-size": "lots",
    });
    let object = json!({"metadata": {"name": "annotated", "annotations": annotations}, "spec": {"images": [BUSYBOX]}});
    let caches = image_caches(&cluster.client);
    caches.create(&Default::default(), &serde_json::from_value(merge_kind(object))?).await?;
    let cache = wait_cache(cluster, "annotated", "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let events = cache.data["status"]["events"].as_array().context("it has no events")?;
    let of = |reason: &str| events.iter().filter(|event| event["reason"] == reason).count();
    ensure!((of("NotHonoured"), of("InvalidAnnotation")) == (2, 1), "{events:#?}");
    let described = cluster.kubectl(&["describe", "imagecache", "annotated"]).await?;
    for key in ["vswitch-ids is accepted and has no effect", "auto-create-eip is accepted", "imc-size is \"lots\""] {
        ensure!(described.contains(key), "{key} is not in\n{described}");
    }
    ensure!(!described.contains("imc-enable-reuse is accepted"), "{described}");
    caches.delete("annotated", &Default::default()).await?;
    wait_cache_gone(cluster, "annotated").await
}
