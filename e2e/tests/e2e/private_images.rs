//! Private images that a host holds: which pods get them without pulling, by each of KEP-2535's policies.

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DynamicObject, Patch};
use larder_e2e::cluster::{Cluster, TEST_REGISTRY};
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{Scene, at, image_caches, wait_cache};
use serde_json::{Value, json};

/// What only pods with a login that can pull it are told.
const ON_THE_NODE: &str = "has the image on this node";
const POLICY: &str = "eci.alibabacloud.com/image-pull-credentials-verification-policy";
const PINNED: &str = "k8s.aliyun.com/eci-imc-id";
/// The repository that the agents of the tests have on their list.
pub(crate) const ALLOWED: &str = "private-allowed";

/// From now on the registry lets this user into a repository, and nobody else.
fn only_for(cluster: &Cluster, repository: &str, user: &str) {
    let needs = Fault::Credentials { username: user.to_owned(), password: "secret".to_owned() };
    cluster.registry.heal(repository);
    cluster.registry.add(repository, Rule { kind: None, reference: None, fault: needs, times: None });
}

fn away(cluster: &Cluster, repository: &str) {
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    cluster.registry.heal(repository);
    cluster.registry.add(repository, Rule { kind: None, reference: None, fault, times: None });
}

/// A Secret of a tenant with a user's login.
async fn secret(tenant: &Scene<'_>, name: &str, user: &str) -> Result<()> {
    let login = json!({"username": user, "password": "secret"});
    let config = json!({"auths": {TEST_REGISTRY: login, tenant.cluster.registry.address().to_string(): login}});
    let mut secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson"}))?;
    secret.data = Some([(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))].into());
    tenant.api::<Secret>().create(&Default::default(), &secret).await?;
    Ok(())
}

/// A pod of one image, with these Secrets.
fn spec(image: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
    let container =
        json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]});
    json!({"containers": [container], "imagePullSecrets": secrets})
}

/// How often the registry was asked for manifests and for blobs of a repository.
fn asked(cluster: &Cluster, repository: &str) -> (usize, usize) {
    (cluster.registry.count(repository, Kind::Manifest), cluster.registry.count(repository, Kind::Blob))
}

/// A pod that must start from what is here, with so many requests for manifests at most and none for blobs.
async fn starts(
    tenant: &Scene<'_>,
    name: &str,
    pinned: &str,
    spec: Value,
    repository: &str,
    most: usize,
) -> Result<()> {
    let before = asked(tenant.cluster, repository);
    let annotations = if pinned.is_empty() { json!({}) } else { json!({PINNED: pinned}) };
    tenant.annotated_pod(name, annotations, spec).await?;
    tenant.wait_ready(name).await?;
    let after = asked(tenant.cluster, repository);
    ensure!(after.1 == before.1, "{name}: blobs were asked for: {:#?}", tenant.cluster.registry.seen());
    let manifests = after.0 - before.0;
    ensure!(
        (most == 0) == (manifests == 0) && manifests <= most,
        "{name}: {manifests} requests, at most {most} wanted"
    );
    tenant.wait_event(name, "Pulled", "already present on machine").await?;
    tenant.delete(name).await
}

/// A pod that must not start, and says why.
async fn is_refused(tenant: &Scene<'_>, name: &str, pinned: &str, spec: Value) -> Result<()> {
    let annotations = if pinned.is_empty() { json!({}) } else { json!({PINNED: pinned}) };
    tenant.annotated_pod(name, annotations, spec).await?;
    let told = tenant.wait_event(name, "Failed", ON_THE_NODE).await?;
    ensure!(told.contains("401") && told.contains("imagePullSecrets"), "{told}");
    let waiting = |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting/reason") == "ImagePullBackOff";
    tenant.wait_pod(name, "refused", waiting).await?;
    tenant.delete(name).await
}

/// The name and the id of the automatic cache of an image, once it is ready.
async fn automatic(cluster: &Cluster, image: &str) -> Result<(String, String)> {
    let caches = image_caches(&cluster.client).list(&Default::default()).await?;
    let is_its = |cache: &&DynamicObject| cache.data["spec"]["images"] == json!([image]);
    let name = caches.items.iter().find(is_its).and_then(|cache| cache.metadata.name.clone()).context("no cache")?;
    let cache = wait_cache(cluster, &name, "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let id = cache.data["status"]["imageCacheId"].as_str().context("it has no id")?.to_owned();
    Ok((name, id))
}

/// What one tenant's login has brought is another's only when that one's login can pull it: whatever the Secrets are called.
pub(crate) async fn of_another_tenant(cluster: &Cluster) -> Result<()> {
    let repository = "private-automatic";
    let image = cluster.own_image(repository).await?;
    let (a, b) = (Scene::new(cluster, "private-a", &[]).await?, Scene::new(cluster, "private-b", &[]).await?);
    only_for(cluster, repository, "anna");
    secret(&a, "login", "anna").await?;
    a.pod("first", spec(&image, &["login"])).await?;
    a.wait_ready("first").await?;
    a.wait_event("first", "ImageCacheAutoCreated", "").await?;
    let (_, id) = automatic(cluster, &image).await?;
    starts(&a, "second", "", spec(&image, &["login"]), repository, 0).await?;

    // Neither without a login, nor with a Secret of the same name and another login; not by naming the cache either.
    is_refused(&b, "without", "", spec(&image, &[])).await?;
    secret(&b, "login", "bert").await?;
    is_refused(&b, "wrong", "", spec(&image, &["login"])).await?;
    is_refused(&b, "by-id", &id, spec(&image, &["login"])).await?;
    // The same login under another name is known already.
    secret(&b, "borrowed", "anna").await?;
    starts(&b, "borrowed", "", spec(&image, &["borrowed"]), repository, 0).await?;
    // The tenant's own login is shown to the registry once: unasked, then with the password.
    only_for(cluster, repository, "bert");
    starts(&b, "own", "", spec(&image, &["login"]), repository, 2).await?;
    starts(&b, "own-again", "", spec(&image, &["login"]), repository, 0).await?;

    away(cluster, repository);
    starts(&a, "away", "", spec(&image, &["login"]), repository, 0).await?;
    starts(&b, "away", "", spec(&image, &["login"]), repository, 0).await?;
    cluster.registry.heal(repository);
    Ok(())
}

/// A cache that was made by hand is everybody's, unless its annotation says otherwise; and an automatic one is not.
pub(crate) async fn each_policy(cluster: &Cluster) -> Result<()> {
    let repository = "private-by-hand";
    let (image, allowed) = (cluster.own_image(repository).await?, cluster.own_image(ALLOWED).await?);
    let (a, b) = (Scene::new(cluster, "policy-a", &[]).await?, Scene::new(cluster, "policy-b", &[]).await?);
    for repository in [repository, ALLOWED] {
        only_for(cluster, repository, "anna");
    }
    secret(&a, "login", "anna").await?;
    let caches = image_caches(&cluster.client);
    let object = json!({
        "apiVersion": "eci.alibabacloud.com/v1", "kind": "ImageCache", "metadata": {"name": "private-by-hand"},
        "spec": {"images": [image, allowed], "imagePullSecrets": ["policy-a:login"]},
    });
    caches.create(&Default::default(), &serde_json::from_value(object)?).await?;
    let cache =
        wait_cache(cluster, "private-by-hand", "Ready", |cache| cache.data["status"]["phase"] == "Ready").await?;
    let id = cache.data["status"]["imageCacheId"].as_str().context("it has no id")?.to_owned();
    let set = async |name: &str, policy: &str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {POLICY: policy}}}));
        caches.patch(name, &Default::default(), &patch).await?;
        // What the provider has read is what it tells hosts; it says so nowhere.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        anyhow::Ok(())
    };

    starts(&b, "preloaded", &id, spec(&image, &[]), repository, 0).await?;
    set("private-by-hand", "NeverVerifyPreloadedImages").await?;
    starts(&b, "preloaded-too", &id, spec(&image, &[]), repository, 0).await?;
    set("private-by-hand", "AlwaysVerify").await?;
    is_refused(&b, "always", &id, spec(&image, &[])).await?;
    starts(&a, "always", &id, spec(&image, &["login"]), repository, 0).await?;
    set("private-by-hand", "NeverVerifyAllowlistedImages").await?;
    is_refused(&b, "not-listed", &id, spec(&image, &[])).await?;
    starts(&b, "listed", &id, spec(&allowed, &[]), ALLOWED, 0).await?;
    // A value that means nothing gives nothing away, and is told.
    set("private-by-hand", "Never").await?;
    is_refused(&b, "invalid", &id, spec(&image, &[])).await?;
    let described = cluster.kubectl(&["describe", "imagecache", "private-by-hand"]).await?;
    ensure!(described.contains("InvalidAnnotation") && described.contains(POLICY), "{described}");
    set("private-by-hand", "NeverVerify").await?;
    starts(&b, "never", &id, spec(&image, &[]), repository, 0).await?;
    caches.delete("private-by-hand", &Default::default()).await?;

    // An automatic one, and the policy that gives it to everybody.
    a.pod("alone", spec(&allowed, &["login"])).await?;
    a.wait_ready("alone").await?;
    a.wait_event("alone", "ImageCacheAutoCreated", "").await?;
    let (name, id) = automatic(cluster, &allowed).await?;
    is_refused(&b, "automatic", &id, spec(&allowed, &[])).await?;
    set(&name, "NeverVerify").await?;
    starts(&b, "given", &id, spec(&allowed, &[]), ALLOWED, 0).await?;
    for repository in [repository, ALLOWED] {
        cluster.registry.heal(repository);
    }
    Ok(())
}

/// A public image needs no word of the registry, so that its pods start while that is away; `Always` asks for the manifest.
pub(crate) async fn public_ones_need_no_request(cluster: &Cluster) -> Result<()> {
    let repository = "public-automatic";
    let image = cluster.own_image(repository).await?;
    let (a, b) = (Scene::new(cluster, "public-a", &[]).await?, Scene::new(cluster, "public-b", &[]).await?);
    // A login that nobody asks for.
    secret(&a, "login", "anna").await?;
    a.pod("first", spec(&image, &["login"])).await?;
    a.wait_ready("first").await?;
    a.wait_event("first", "ImageCacheAutoCreated", "").await?;
    automatic(cluster, &image).await?;
    starts(&b, "without", "", spec(&image, &[]), repository, 0).await?;
    away(cluster, repository);
    starts(&b, "away", "", spec(&image, &[]), repository, 0).await?;
    cluster.registry.heal(repository);
    let before = asked(cluster, repository);
    let mut always = spec(&image, &[]);
    always["containers"][0]["imagePullPolicy"] = json!("Always");
    b.pod("always", always).await?;
    b.wait_ready("always").await?;
    let after = asked(cluster, repository);
    ensure!((after.0 - before.0, after.1 - before.1) == (1, 0), "{before:?} {after:?}");
    Ok(())
}
