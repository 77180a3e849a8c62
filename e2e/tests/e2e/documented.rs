//! The documented manifests, applied exactly as they stand.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams};
use larder_dev::manifests;
use larder_e2e::cluster::{BUSYBOX, Cluster, NGINX, SAMPLE_REGISTRY};
use larder_e2e::scene::{SOON, Scene, image_caches, ready_cache, wait_cache};
use serde_json::json;

const AUTOMATIC: &str = include_str!("../data/automatic.yaml");
const PINNED: &str = include_str!("../data/pinned.yaml");
const IMAGE_CACHE: &str = include_str!("../data/imagecache.yaml");
/// The id in the pinned one, which no cache has.
const NOBODYS: &str = "imc-2ze5tm5gehgtiiga****";

async fn available(scene: &Scene<'_>) -> Result<Vec<Pod>> {
    let both = |found: Option<&Deployment>| {
        found.and_then(|one| one.status.as_ref()).and_then(|status| status.available_replicas) == Some(2)
    };
    let waiting = kube::runtime::wait::await_condition(scene.api::<Deployment>(), "test", both);
    tokio::time::timeout(SOON, waiting).await.with_context(|| scene.cluster.log_tails())??;
    Ok(scene.api::<Pod>().list(&ListParams::default()).await?.items)
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// "Automatically match an image cache": both pods start whole from the cache, and need neither selector nor toleration.
pub(crate) async fn automatic(cluster: &Cluster) -> Result<()> {
    ready_cache(cluster, "documented-automatic", &[NGINX, BUSYBOX]).await?;
    let scene = Scene::new(cluster, "documented-automatic", &[]).await?;
    manifests::apply(&cluster.client, AUTOMATIC, &scene.namespace).await?;
    for pod in available(&scene).await? {
        scene.wait_event(name(&pod), "SuccessfulHitImageCache", "imc-").await?;
        ensure!(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(cluster.node(0)), "{pod:?}");
    }
    image_caches(&cluster.client).delete("documented-automatic", &Default::default()).await?;
    Ok(())
}

/// "Specify an image cache": with the id of nobody's cache its pods wait and say why; with that of one they start from it.
pub(crate) async fn pinned(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "documented-pinned", &[]).await?;
    manifests::apply(&cluster.client, PINNED, &scene.namespace).await?;
    let templates = ListParams::default().labels("app=nginx");
    let made = |found: Option<&Deployment>| {
        found.and_then(|one| one.status.as_ref()).and_then(|status| status.replicas) == Some(2)
    };
    let waiting = kube::runtime::wait::await_condition(scene.api::<Deployment>(), "test", made);
    tokio::time::timeout(SOON, waiting).await??;
    for pod in scene.api::<Pod>().list(&templates).await? {
        let told = scene.wait_event(name(&pod), "ImageCacheNotFound", "").await?;
        ensure!(told == format!("The specified image cache {NOBODYS} does not exist."), "{told}");
    }
    manifests::delete(&cluster.client, PINNED, &scene.namespace).await?;

    let id = ready_cache(cluster, "documented-pinned", &[NGINX]).await?;
    let scene = Scene::new(cluster, "documented-pinned-ready", &[]).await?;
    manifests::apply(&cluster.client, &PINNED.replace(NOBODYS, &id), &scene.namespace).await?;
    for pod in available(&scene).await? {
        scene.wait_event(name(&pod), "SuccessfulHitImageCache", &id).await?;
    }
    image_caches(&cluster.client).delete("documented-pinned", &Default::default()).await?;
    Ok(())
}

/// The documented ImageCache with all its fields, once the Secrets that it names are there.
pub(crate) async fn image_cache(cluster: &Cluster) -> Result<()> {
    let config = json!({"auths": {SAMPLE_REGISTRY: {"username": "user", "password": "secret"}}});
    for (namespace, name) in [("default", "secret1"), ("kube-system", "secret3")] {
        let mut secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson"}))?;
        secret.data = Some([(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))].into());
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
        secrets.create(&Default::default(), &secret).await?;
    }
    manifests::apply(&cluster.client, IMAGE_CACHE, "default").await?;
    let name = "imagecache-sample-test";
    let cache = wait_cache(cluster, name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let status = &cache.data["status"];
    ensure!(status["progress"] == "100%" && status["imageCacheSize"] == 25, "{status}");
    ensure!(status["expireDateTime"].is_string(), "{status}");
    image_caches(&cluster.client).delete(name, &Default::default()).await?;
    Ok(())
}
