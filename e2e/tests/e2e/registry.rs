//! A registry that misbehaves: the cause is in `kubectl describe pod`, nothing half-done stays, and the pod recovers by itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::DynamicObject;
use larder_e2e::cluster::{Cluster, TEST_REGISTRY};
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{SOON, Scene, at, image_caches, phase, wait_cache};
use serde_json::json;

/// Breaks a repository, sees that a pod says what is wrong, heals it, and sees the pod succeed.
async fn broken_then_healed(cluster: &Cluster, name: &str, rule: Rule, words: &[&str]) -> Result<()> {
    let image = cluster.own_image(name).await?;
    cluster.registry.add(name, rule);
    let scene = Scene::new(cluster, name, &[]).await?;
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": image, "command": ["true"]}]});
    scene.pod("puller", spec).await?;
    let waiting = |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting");
    let is_backing_off = |pod: &Pod| waiting(pod)["reason"] == "ImagePullBackOff";
    let pod = scene.wait_pod("puller", "backing off", is_backing_off).await?;
    ensure!(phase(&pod) == "Pending", "{pod:?}");
    scene.wait_event("puller", "Failed", "Failed to pull image").await?;
    let described = scene.describe("puller").await?;
    for word in words {
        ensure!(described.contains(word), "{word:?} is not in\n{described}");
    }
    ensure!(described.contains("ErrImagePull") && described.contains("Failed to pull image"), "{described}");
    nothing_half_done(cluster).await?;
    cluster.registry.heal(name);
    scene.wait_phase("puller", "Succeeded").await?;
    Ok(())
}

/// Waits until nothing is in progress in the store (others may be pulling), and sees that every layer in it is whole:
/// `meta.json` is what is written last.
async fn nothing_half_done(cluster: &Cluster) -> Result<()> {
    let store = cluster.store(0);
    let in_progress = || -> Result<Vec<PathBuf>> {
        std::fs::read_dir(store.join("ingest"))?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut pauses = tokio::time::interval(Duration::from_millis(100));
    let ended = async {
        while !in_progress()?.is_empty() {
            pauses.tick().await;
        }
        Ok::<_, anyhow::Error>(())
    };
    match tokio::time::timeout(SOON, ended).await {
        Ok(result) => result?,
        Err(_) => anyhow::bail!("this stays in the store: {:?}", in_progress()?),
    }
    for entry in std::fs::read_dir(store.join("layers"))? {
        let layer = entry?.path();
        ensure!(layer.join("meta.json").exists(), "{} is half-done", layer.display());
    }
    Ok(())
}

pub(crate) async fn wrong_digest(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::FlipByte { at: 600 });
    // The registry itself is away, and that is not all that went wrong.
    let words = ["dns error", "before that, mirror content from", "has digest sha256:", "expected sha256:"];
    broken_then_healed(cluster, "wrong-digest", rule, &words).await
}

pub(crate) async fn truncated(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Truncate { after: 100 });
    broken_then_healed(cluster, "truncated", rule, &["blob"]).await
}

pub(crate) async fn unauthorized(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Manifest, Fault::Status(StatusCode::UNAUTHORIZED));
    broken_then_healed(cluster, "unauthorized", rule, &["401", "imagePullSecrets"]).await
}

pub(crate) async fn not_found(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Manifest, Fault::Status(StatusCode::NOT_FOUND));
    broken_then_healed(cluster, "not-found", rule, &["not found"]).await
}

pub(crate) async fn too_many_requests(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Manifest, Fault::TooManyRequests { retry_after: 1 });
    broken_then_healed(cluster, "too-many", rule, &["429"]).await
}

/// More bytes than the manifest says are refused before they are taken.
pub(crate) async fn wrong_length(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Longer { by: 7 });
    broken_then_healed(cluster, "wrong-length", rule, &["bytes, expected"]).await
}

pub(crate) async fn reset(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Reset { after: 100 });
    broken_then_healed(cluster, "reset", rule, &["/blobs/sha256:"]).await
}

pub(crate) async fn server_errors(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Status(StatusCode::BAD_GATEWAY));
    broken_then_healed(cluster, "server-errors", rule, &["502 Bad Gateway"]).await
}

/// A registry that takes requests and does not answer is given up after `--registry-stall`, which is short here.
pub(crate) async fn silent(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Silence);
    broken_then_healed(cluster, "silent", rule, &["no data from the registry for 5s"]).await
}

/// An error body without end is not read to its end.
pub(crate) async fn endless(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Blob, Fault::Endless(StatusCode::INTERNAL_SERVER_ERROR));
    broken_then_healed(cluster, "endless", rule, &["500 Internal Server Error"]).await
}

/// A token that is never good enough is not fetched for ever.
pub(crate) async fn token_loop(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Manifest, Fault::TokenLoop);
    broken_then_healed(cluster, "token-loop", rule, &["401", "imagePullSecrets"]).await
}

pub(crate) async fn huge_manifest(cluster: &Cluster) -> Result<()> {
    let rule = Rule::every(Kind::Manifest, Fault::Replace(vec![b' '; 20 << 20].into()));
    broken_then_healed(cluster, "huge-manifest", rule, &["manifest from", "is longer than"]).await
}

/// An index that is given for whatever is asked, also for what it names.
pub(crate) async fn manifest_of_itself(cluster: &Cluster) -> Result<()> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json", "size": 1,
            "digest": format!("sha256:{}", "0".repeat(64)),
            "platform": {"os": "linux", "architecture": architecture},
        }],
    });
    let rule = Rule::every(Kind::Manifest, Fault::Replace(index.to_string().into_bytes().into()));
    broken_then_healed(cluster, "of-itself", rule, &["digest", "expected sha256:0000"]).await
}

/// A redirect is followed, and nothing but a matter of that other host.
pub(crate) async fn redirected(cluster: &Cluster) -> Result<()> {
    let away = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let to = format!("http://localhost:{}", away.local_addr()?.port());
    // Nobody takes the connection any more.
    drop(away);
    let rule = Rule::every(Kind::Blob, Fault::Redirect { to });
    broken_then_healed(cluster, "redirected", rule, &["Connection refused"]).await
}

/// A slow registry is waited for.
pub(crate) async fn slow(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("slow").await?;
    let drip = Fault::Drip { piece: 64 << 10, pause: Duration::from_millis(200) };
    cluster.registry.add("slow", Rule::every(Kind::Blob, drip));
    let scene = Scene::new(cluster, "slow", &[]).await?;
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": image, "command": ["true"]}]});
    scene.pod("patient", spec).await?;
    scene.wait_phase("patient", "Succeeded").await?;
    scene.wait_event("patient", "Started", "").await?;
    let events = scene.events("patient").await?;
    ensure!(!events.iter().any(|event| event.starts_with("Failed")), "{events:#?}");
    cluster.registry.heal("slow");
    Ok(())
}

/// A private image is had with the pod's secret, and not without.
pub(crate) async fn pull_secret(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("private").await?;
    let needs = Fault::Credentials { username: "user".into(), password: "secret".into() };
    cluster.registry.add("private", Rule { kind: None, reference: None, fault: needs, times: None });
    let scene = Scene::new(cluster, "pull-secret", &[]).await?;
    let container = json!({"name": "main", "image": image, "command": ["true"]});
    scene.pod("without", json!({"restartPolicy": "Never", "containers": [container]})).await?;
    let refused = |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting/reason") == "ImagePullBackOff";
    scene.wait_pod("without", "refused", refused).await?;
    // The mirror has the image, so it is the mirror's name that the login is for: no login goes to another host.
    let mirror = cluster.registry.address().to_string();
    let login = json!({"username": "user", "password": "secret"});
    let config = json!({"auths": {TEST_REGISTRY: {"username": "user", "password": "wrong"}, mirror: login}});
    let mut secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "login"}, "type": "kubernetes.io/dockerconfigjson"}))?;
    secret.data = Some([(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))].into());
    scene.api::<Secret>().create(&Default::default(), &secret).await?;
    let spec = json!({"restartPolicy": "Never", "containers": [container], "imagePullSecrets": [{"name": "login"}]});
    scene.pod("with", spec).await?;
    scene.wait_phase("with", "Succeeded").await?;
    // What another pod pulled with its credentials is not there for one that has none, and neither is the cache that was
    // made of it.
    scene.wait_event("with", "ImageCacheAutoCreated", "").await?;
    let caches = image_caches(&cluster.client).list(&Default::default()).await?;
    let spec = |cache: &DynamicObject, field: &str| cache.data["spec"][field].clone();
    let secrets = json!([format!("{}:login", scene.namespace)]);
    let is_its =
        |cache: &&DynamicObject| spec(cache, "images") == json!([image]) && spec(cache, "imagePullSecrets") == secrets;
    let name = caches.items.iter().find(is_its).and_then(|cache| cache.metadata.name.clone()).context("no cache")?;
    wait_cache(cluster, &name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let again = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": image, "command": ["true"], "imagePullPolicy": "IfNotPresent"}]});
    scene.pod("still-without", again).await?;
    scene.wait_pod("still-without", "refused", refused).await?;
    cluster.registry.heal("private");
    Ok(())
}
