//! What a pod's annotations about image caches do: how much of a pod a cache holds, init containers, changes that come too
//! late, and what is counted.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, Patch};
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::registry_proxy::{Fault, Kind, Rule};
use larder_e2e::scene::{Scene, at, image_caches, ready_cache};
use serde_json::{Value, json};

const MATCHED: &str = "k8s.aliyun.com/eci-matched-image-cache";

fn container(name: &str, image: &str, command: &[&str]) -> Value {
    json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": command})
}

fn sleeper(name: &str, image: &str) -> Value {
    container(name, image, &["sleep", "1000"])
}

async fn annotate(scene: &Scene<'_>, pod: &str, annotations: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    scene.api::<Pod>().patch(pod, &Default::default(), &patch).await?;
    Ok(())
}

/// A cache that holds one of two images: the pod starts from it, is told how much it holds, and pulls the other. So does a
/// pod that names the cache.
pub(crate) async fn partly_hit(cluster: &Cluster) -> Result<()> {
    let (held, other) = (cluster.own_image("partly-held").await?, cluster.own_image("partly-other").await?);
    let id = ready_cache(cluster, "partly", &[&held]).await?;
    let scene = Scene::new(cluster, "partly", &[]).await?;
    let spec = || json!({"containers": [sleeper("a", &held), sleeper("b", &other)]});
    // The second is pinned, since a cache that holds both is on its way as soon as the first has come.
    for (name, annotations) in [("matched", json!({})), ("pinned", json!({"k8s.aliyun.com/eci-imc-id": id}))] {
        scene.annotated_pod(name, annotations, spec()).await?;
        scene.wait_ready(name).await?;
        let told = scene.wait_event(name, "ImageCachePartiallyHit", "").await?;
        ensure!(
            told == format!("[eci.imagecache]Image cache {id} holds 1 of 2 images of the pod, the others are pulled."),
            "{told}"
        );
        scene.wait_event(name, "SuccessfulHitImageCache", &id).await?;
    }
    scene.wait_event("matched", "ImageCacheAutoCreated", "").await?;
    image_caches(&cluster.client).delete("partly", &Default::default()).await?;
    Ok(())
}

/// Init containers count as the others do, and two containers of one image count once.
pub(crate) async fn init_containers_count(cluster: &Cluster) -> Result<()> {
    let (init, app) = (cluster.own_image("counted-init").await?, cluster.own_image("counted-app").await?);
    let id = ready_cache(cluster, "counted", &[&app]).await?;
    let scene = Scene::new(cluster, "counted", &[]).await?;
    let with_init = |restart: &str| {
        json!({
            "restartPolicy": restart,
            "initContainers": [container("init", &init, &["true"])],
            "containers": [sleeper("app", &app)],
        })
    };
    let twice = || json!({"containers": [sleeper("a", &app), sleeper("b", &app)]});
    let perfect = json!({"k8s.aliyun.com/imc-perfect-match": "true"});
    let two = json!({"k8s.aliyun.com/imc-match-count-request": "2"});
    // Before anybody has missed, after whom there is a cache of both.
    scene.annotated_pod("twice", perfect.clone(), twice()).await?;
    scene.wait_event("twice", "SuccessfulHitImageCache", &id).await?;
    scene.wait_ready("twice").await?;
    scene.annotated_pod("twice-two", two, twice()).await?;
    scene.wait_event("twice-two", "ImageCacheMissed", "").await?;
    scene.annotated_pod("init", perfect.clone(), with_init("Always")).await?;
    scene.wait_event("init", "ImageCacheMissed", "").await?;
    scene.wait_ready("init").await?;
    let whole = ready_cache(cluster, "counted-whole", &[&init, &app]).await?;
    scene.annotated_pod("init-again", perfect, with_init("Never")).await?;
    let pod = scene.wait_ready("init-again").await?;
    let hit = scene.wait_event("init-again", "SuccessfulHitImageCache", "").await?;
    let matched = at(&pod, &format!("/metadata/annotations/{}", MATCHED.replace('/', "~1")));
    ensure!(hit.contains(matched.as_str().context("it is not written on the pod")?), "{hit} but {matched}");
    for name in ["counted", "counted-whole"] {
        image_caches(&cluster.client).delete(name, &Default::default()).await?;
    }
    ensure!(whole.starts_with("imc-"), "{whole}");
    Ok(())
}

/// "Annotations only take effect at pod creation. Changing annotations on an existing pod has no effect."
pub(crate) async fn a_change_comes_too_late_and_is_told_once(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "too-late", &[]).await?;
    let key = "k8s.aliyun.com/eci-imc-id";
    let off = json!({"k8s.aliyun.com/eci-auto-imc": "false", MATCHED: "imc-of-nobody"});
    scene.annotated_pod("pod", off, json!({"containers": [sleeper("main", BUSYBOX)]})).await?;
    scene.wait_ready("pod").await?;
    let acted_on = |pod: &Pod| at(pod, "/metadata/annotations/eci.alibabacloud.com~1acted-on") != Value::Null;
    let pod = scene.wait_pod("pod", "marked", acted_on).await?;
    // What a user writes about the cache it started from is not true, and does not stay.
    ensure!(pod.metadata.annotations.is_some_and(|annotations| !annotations.contains_key(MATCHED)));
    annotate(&scene, "pod", json!({key: "imc-2zenothingnothing0000", "other": "1"})).await?;
    let told = scene.wait_event("pod", "AnnotationIgnored", key).await?;
    ensure!(
        told == format!(
            "[eci.imagecache]Changing {key} has no effect: annotations act when a pod is created; create the pod anew to \
             have it."
        ),
        "{told}"
    );
    let told_of = |pod: &Pod| at(pod, "/metadata/annotations/eci.alibabacloud.com~1ignored") != Value::Null;
    scene.wait_pod("pod", "marked", told_of).await?;
    annotate(&scene, "pod", json!({"other": "2"})).await?;
    // A second change is told after whatever the first edit of another key would have led to.
    annotate(&scene, "pod", json!({"k8s.aliyun.com/imc-perfect-match": "true"})).await?;
    scene.wait_event("pod", "AnnotationIgnored", "imc-perfect-match").await?;
    let params = ListParams::default().fields("involvedObject.name=pod,reason=AnnotationIgnored");
    let events = scene.api::<Event>().list(&params).await?.items;
    ensure!(events.len() == 2 && events.iter().all(|event| event.count == Some(1)), "{events:#?}");
    let pod = scene.wait_ready("pod").await?;
    ensure!(at(&pod, "/status/containerStatuses/0/restartCount") == 0, "{pod:?}");
    Ok(())
}

/// Hits, misses with their reason, builds, and what the registry did not have to send.
pub(crate) async fn figures(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("figures").await?;
    let choices = |labels: &str| format!("larder_provider_image_cache_choices_total{{{labels}}}");
    let hits = choices("outcome=\"hit\",reason=\"\"");
    let misses = choices("outcome=\"miss\",reason=\"NoCandidate\"");
    let off = choices("outcome=\"off\",reason=\"\"");
    let refused = choices("outcome=\"refused\",reason=\"ImageCacheNotFound\"");
    let built = "larder_provider_image_cache_builds_total{outcome=\"ready\"}";
    let saved = "larder_agent_image_cache_saved_bytes_total";
    let mut before = Vec::new();
    for name in [&hits, &misses, &off, &refused, built] {
        before.push((name, cluster.provider_figure(name).await?));
    }
    let saved_before = cluster.agent_figure(0, saved).await?;
    let scene = Scene::new(cluster, "figures", &[]).await?;
    let spec = || json!({"containers": [sleeper("main", &image)]});
    scene.pod("miss", spec()).await?;
    scene.wait_event("miss", "ImageCacheMissed", "").await?;
    let id = ready_cache(cluster, "figures", &[&image]).await?;
    scene.pod("hit", spec()).await?;
    scene.wait_event("hit", "SuccessfulHitImageCache", "").await?;
    scene.wait_ready("hit").await?;
    scene.annotated_pod("off", json!({"k8s.aliyun.com/eci-auto-imc": "false"}), spec()).await?;
    scene.annotated_pod("refused", json!({"k8s.aliyun.com/eci-imc-id": "imc-none"}), spec()).await?;
    scene.wait_event("refused", "ImageCacheNotFound", "").await?;
    scene.wait_ready("off").await?;
    for (name, before) in before {
        let now = cluster.provider_figure(name).await?;
        ensure!(now > before, "{name} is {now} and was {before}");
    }
    ensure!(cluster.provider_figure("larder_provider_image_cache_build_seconds_count").await? >= 1.0);
    ensure!(cluster.provider_figure("larder_provider_image_caches{phase=\"Ready\"}").await? >= 1.0);
    // The image has a file of a megabyte that is a name over and over, so it is small on the way.
    let saved_now = cluster.agent_figure(0, saved).await?;
    ensure!(saved_now > saved_before, "{saved} is {saved_now}");
    ensure!(id.starts_with("imc-"), "{id}");
    image_caches(&cluster.client).delete("figures", &Default::default()).await?;
    Ok(())
}

/// A user writes a cache on his pod, changes its image to one that only that cache holds, and waits for a restart of the
/// provider: he gets what his pod may pull, which is nothing.
pub(crate) async fn a_forged_cache_is_not_believed(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let image = cluster.own_image("forged").await?;
    let id = ready_cache(cluster, "forged", &[&image]).await?;
    let needs = Fault::Credentials { username: "user".into(), password: "secret".into() };
    cluster.registry.add("forged", Rule { kind: None::<Kind>, reference: None, fault: needs, times: None });
    let scene = Scene::new(cluster, "forged", &[]).await?;
    let off = json!({"k8s.aliyun.com/eci-auto-imc": "false"});
    scene.annotated_pod("pod", off, json!({"containers": [sleeper("main", BUSYBOX)]})).await?;
    scene.wait_ready("pod").await?;
    cluster.provider_process()?.kill()?;
    annotate(&scene, "pod", json!({MATCHED: id})).await?;
    let patch = Patch::Strategic(json!({"spec": {"containers": [{"name": "main", "image": image}]}}));
    scene.api::<Pod>().patch("pod", &Default::default(), &patch).await?;
    cluster.start_provider()?;
    let refused = |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting/reason") == "ImagePullBackOff";
    scene.wait_pod("pod", "refused", refused).await?;
    cluster.registry.heal("forged");
    scene.delete("pod").await?;
    image_caches(&cluster.client).delete("forged", &Default::default()).await?;
    Ok(())
}
