//! The ImageCache objects: how they are made, shown and removed.

use anyhow::{Context as _, Result, ensure};
use larder_e2e::cluster::{BUSYBOX, Cluster, NGINX};
use larder_e2e::scene::{image_caches, ready_cache, wait_cache};
use serde_json::json;

use super::merge_kind;

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
    let deadline = tokio::time::Instant::now() + larder_e2e::scene::SOON;
    while fact.exists() {
        ensure!(tokio::time::Instant::now() < deadline, "{} is still there", fact.display());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
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
    for (name, spec) in
        [("none", json!({"images": []})), ("secret", json!({"images": ["a"], "imagePullSecrets": ["nocolon"]}))]
    {
        let object = serde_json::from_value(merge_kind(json!({"metadata": {"name": name}, "spec": spec})))?;
        let refused = image_caches(&cluster.client).create(&Default::default(), &object).await;
        ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422), "{refused:?}");
    }
    Ok(())
}
