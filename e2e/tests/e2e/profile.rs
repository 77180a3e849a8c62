//! `kube-system/eci-profile`: which pods its selectors bring to the virtual nodes, and what they write on them.
//!
//! Most pods here are created as a dry run: what the API server answers is the pod as it would be.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::scene::{SOON, Scene, at};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../data/profile.json");

/// Writes the data of the ConfigMap.
pub(crate) async fn write(cluster: &Cluster, data: Value) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "eci-profile"}, "data": data});
    maps.patch("eci-profile", &PatchParams::apply("e2e").force(), &Patch::Apply(&object)).await?;
    Ok(())
}

/// Takes the ConfigMap away, and waits until no selector of it is called for.
pub(crate) async fn remove(cluster: &Cluster) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    maps.delete("eci-profile", &DeleteParams::default()).await?;
    registered(cluster, 0).await
}

/// Waits until the API server calls for so many selectors.
async fn registered(cluster: &Cluster, count: usize) -> Result<()> {
    let entries: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let has = |entry: Option<&MutatingWebhookConfiguration>| {
        let webhooks = entry.and_then(|entry| entry.webhooks.as_ref());
        webhooks.is_some_and(|all| all.iter().filter(|one| one.name.starts_with("profile-")).count() == count)
    };
    let waiting = kube::runtime::wait::await_condition(entries, "vk-webhook", has);
    tokio::time::timeout(SOON, waiting).await.with_context(|| format!("{count} selectors are not called for"))??;
    Ok(())
}

fn pod(labels: &Value, annotations: &Value, spec: Value) -> Result<Pod> {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "main", "image": BUSYBOX, "command": ["sleep", "1000"]}]);
    let metadata = json!({"generateName": "pod-", "labels": labels, "annotations": annotations});
    Ok(serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?)
}

/// The pod as it would be.
pub(crate) async fn admitted(scene: &Scene<'_>, labels: Value, annotations: Value, spec: Value) -> Result<Pod> {
    let params = PostParams { dry_run: true, ..PostParams::default() };
    Ok(scene.api::<Pod>().create(&params, &pod(&labels, &annotations, spec)?).await?)
}

/// Waits until a pod with these labels would be as wanted: the API server reads webhooks' entries a moment after they are
/// written, and tells nobody when.
pub(crate) async fn until(scene: &Scene<'_>, labels: Value, wanted: impl Fn(&Pod) -> bool) -> Result<Pod> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let pod = admitted(scene, labels.clone(), json!({}), json!({})).await?;
        if wanted(&pod) {
            return Ok(pod);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("a pod with {labels} is {:?}\n{}", pod.metadata, scene.cluster.log_tails());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn annotation(pod: &Pod, key: &str) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(key).cloned()
}

fn label(pod: &Pod, key: &str) -> Option<String> {
    pod.metadata.labels.as_ref()?.get(key).cloned()
}

fn goes_there(pod: &Pod) -> bool {
    at(pod, "/spec/nodeSelector/type") == "virtual-kubelet"
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn selector(name: &str, namespace: Value, object: Value, effect: Value) -> Value {
    let mut selector = json!({"name": name, "effect": effect});
    for (field, labels) in [("namespaceSelector", namespace), ("objectSelector", object)] {
        if labels != Value::Null {
            selector[field] = json!({"matchLabels": labels});
        }
    }
    selector
}

/// Of namespace and pod labels, both, and neither; in order, and in another one after a reload; the pod's own keys win.
pub(crate) async fn selects_and_writes_in_order(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let team = Scene::new(cluster, "profile-team", &[("team", "a")]).await?;
    let plain = Scene::new(cluster, "profile-plain", &[]).await?;
    let writes = |key: &str, more: &str| json!({"annotations": {"k": key, more: "1"}});
    let mut selectors = vec![
        selector("both", json!({"team": "a"}), json!({"app": "x"}), writes("both", "by-both")),
        selector("namespace", json!({"team": "a"}), Value::Null, writes("namespace", "by-namespace")),
        selector("all", Value::Null, Value::Null, json!({"labels": {"all": "1"}, "annotations": {"k": "all"}})),
        selector("object", Value::Null, json!({"app": "x"}), writes("object", "by-object")),
    ];
    write(cluster, json!({"selectors": json!(selectors).to_string()})).await?;
    registered(cluster, 3).await?;
    let app = |name: &str| json!({"app": name});
    let both = until(&team, app("x"), |pod| annotation(pod, "by-object").is_some()).await?;
    ensure!(goes_there(&both) && annotation(&both, "k") == some("both"), "{:?}", both.metadata);
    ensure!(annotation(&both, "by-namespace").is_some() && label(&both, "all").is_some(), "{:?}", both.metadata);

    let namespace = admitted(&team, app("y"), json!({}), json!({})).await?;
    ensure!(goes_there(&namespace) && annotation(&namespace, "k") == some("namespace"), "{:?}", namespace.metadata);
    ensure!(annotation(&namespace, "by-object").is_none() && label(&namespace, "all").is_some());

    // Of a pod that only the last one selects, the one before it that is for all pods comes first.
    let object = admitted(&plain, app("x"), json!({}), json!({})).await?;
    ensure!(goes_there(&object) && annotation(&object, "k") == some("all"), "{:?}", object.metadata);
    ensure!(annotation(&object, "by-object").is_some() && annotation(&object, "by-namespace").is_none());

    let nobodys = admitted(&plain, app("y"), json!({}), json!({})).await?;
    ensure!(!goes_there(&nobodys) && annotation(&nobodys, "k").is_none() && label(&nobodys, "all").is_none());
    let labelled = admitted(&plain, json!({"alibabacloud.com/eci": "true"}), json!({}), json!({})).await?;
    ensure!(goes_there(&labelled) && annotation(&labelled, "k") == some("all"), "{:?}", labelled.metadata);
    for spec in [json!({"nodeSelector": {"type": "virtual-kubelet"}}), json!({"nodeName": cluster.node(0)})] {
        let bound = admitted(&plain, json!({"all": "own"}), json!({}), spec).await?;
        ensure!(annotation(&bound, "k") == some("all") && label(&bound, "all") == some("own"), "{:?}", bound.metadata);
    }
    let own = admitted(&team, app("x"), json!({"k": "own"}), json!({})).await?;
    ensure!(annotation(&own, "k") == some("own") && annotation(&own, "by-both").is_some(), "{:?}", own.metadata);
    let refuses = json!({"app": "x", "alibabacloud.com/eci": "false"});
    let refusing = admitted(&team, refuses, json!({}), json!({})).await?;
    ensure!(!goes_there(&refusing) && annotation(&refusing, "k").is_none(), "{:?}", refusing.metadata);

    selectors.reverse();
    write(cluster, json!({"selectors": json!(selectors).to_string()})).await?;
    let reversed = until(&team, app("x"), |pod| annotation(pod, "k") == some("object")).await?;
    ensure!(annotation(&reversed, "by-both").is_some(), "{:?}", reversed.metadata);
    remove(cluster).await?;
    until(&team, app("x"), |pod| annotation(pod, "k").is_none()).await?;
    Ok(())
}

/// The documented profile, as it stands.
pub(crate) async fn documented(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "profile-documented", &[("eci", "true")]).await?;
    write(cluster, json!({"selectors": DOCUMENTED})).await?;
    let there = until(&scene, json!({"eci": "true"}), |pod| label(pod, "created-by-eci").is_some()).await?;
    ensure!(goes_there(&there) && annotation(&there, "k8s.aliyun.com/eci-auto-imc") == some("true"));
    let other = admitted(&scene, json!({}), json!({}), json!({})).await?;
    ensure!(goes_there(&other) && label(&other, "created-by-eci").is_none(), "{:?}", other.metadata);
    remove(cluster).await
}

/// Waits for an event of the ConfigMap.
async fn told(cluster: &Cluster, reason: &str) -> Result<String> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "kube-system");
    let config = watcher::Config::default().fields(&format!("involvedObject.name=eci-profile,reason={reason}"));
    let mut stream = Box::pin(watcher(events, config).default_backoff().applied_objects());
    let next = tokio::time::timeout(SOON, futures::TryStreamExt::try_next(&mut stream)).await;
    let event = next.with_context(|| format!("no event {reason}\n{}", cluster.log_tails()))??;
    Ok(event.and_then(|event| event.message).unwrap_or_default())
}

/// What is broken is named with its line, and what was good before holds, also over a restart of the provider.
pub(crate) async fn a_broken_one_is_named_and_the_last_good_one_holds(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "profile-broken", &[]).await?;
    let good = json!([selector("good", Value::Null, json!({"app": "x"}), json!({"annotations": {"k": "good"}}))]);
    write(cluster, json!({"selectors": good.to_string(), "vSwitchIds": "vsw-1", "securityGroupId": "sg-1"})).await?;
    let is_good = |pod: &Pod| annotation(pod, "k") == some("good") && goes_there(pod);
    until(&scene, json!({"app": "x"}), is_good).await?;
    let ignored = told(cluster, "ProfileKeyIgnored").await?;
    ensure!(ignored == "securityGroupId, vSwitchIds mean nothing here and are passed over", "{ignored}");

    let broken = "[\n  {\"name\": \"bad\",\n   \"objectSelector\": {\"matchLabels\": {\"app\" \"x\"}}}\n]";
    write(cluster, json!({"selectors": broken})).await?;
    let message = told(cluster, "InvalidProfile").await?;
    ensure!(message.starts_with("selectors, line 3, column "), "{message}");
    ensure!(message.ends_with("; the profile before this one still holds"), "{message}");
    let pod = admitted(&scene, json!({"app": "x"}), json!({}), json!({})).await?;
    ensure!(is_good(&pod), "{:?}", pod.metadata);

    cluster.provider_process()?.kill()?;
    cluster.start_provider()?;
    until(&scene, json!({"app": "x"}), is_good).await?;
    let mended = json!([selector("mended", Value::Null, json!({"app": "x"}), json!({"annotations": {"k": "mended"}}))]);
    write(cluster, json!({"selectors": mended.to_string()})).await?;
    until(&scene, json!({"app": "x"}), |pod| annotation(pod, "k") == some("mended")).await?;
    remove(cluster).await
}
