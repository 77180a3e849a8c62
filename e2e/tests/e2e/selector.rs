//! Selector objects: which pods they bring to the virtual nodes by which policy, and what they write on them.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{Scene, at, sh};
use serde_json::{Value, json};

use crate::profile::{admitted, until};

const MARK: &str = "/metadata/annotations/eci.alibabacloud.com~1selector";
const WRITTEN: &str = "/metadata/annotations/eci.alibabacloud.com~1selector-effect";
const KEY: &str = "/metadata/annotations/k";
const OUR_TAINT: &str = "virtual-kubelet.io/provider";
/// As upstream's README has it.
const README: &str = include_str!("../data/selector.yaml");

fn selectors(scene: &Scene<'_>) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("eci.aliyun.com", "v1", "Selector");
    let resource = ApiResource::from_gvk_with_plural(&kind, "selectors");
    Api::namespaced_with(scene.cluster.client.clone(), &scene.namespace, &resource)
}

/// Writes a Selector of pods of this scene with `app: <app>`, which writes its own name on them.
async fn write(scene: &Scene<'_>, name: &str, app: &str, policy: Value, priority: i32) -> Result<()> {
    let scope = json!({"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}});
    let mut spec = json!({
        "namespaceLabels": scope, "objectLabels": {"matchLabels": {"app": app}}, "priority": priority,
        "effect": {"annotations": {"k": name}, "labels": {"l": name}},
    });
    if !policy.is_null() {
        spec["policy"] = policy;
    }
    let object =
        json!({"apiVersion": "eci.aliyun.com/v1", "kind": "Selector", "metadata": {"name": name}, "spec": spec});
    selectors(scene).patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&object)).await?;
    Ok(())
}

async fn remove(scene: &Scene<'_>, name: &str) -> Result<()> {
    selectors(scene).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Waits until a pod with `app: <app>` would bear the name of this Selector, or of none.
async fn acts(scene: &Scene<'_>, app: &str, selector: Option<&str>) -> Result<Pod> {
    let wanted = selector.map_or(Value::Null, |name| json!(format!("{}/{name}", scene.namespace)));
    until(scene, json!({"app": app}), |pod| at(pod, MARK) == wanted).await
}

async fn create(scene: &Scene<'_>, app: &str) -> Result<()> {
    let metadata = json!({"name": app, "labels": {"app": app, "l": "own"}, "annotations": {"k": "own"}});
    let spec = json!({"containers": [sh("exec sleep 1000")], "terminationGracePeriodSeconds": 1});
    let _: Pod = scene.create(json!({"metadata": metadata, "spec": spec})).await?;
    Ok(())
}

fn tolerates(pod: &Pod) -> bool {
    at(pod, "/spec/tolerations").as_array().into_iter().flatten().any(|toleration| toleration["key"] == OUR_TAINT)
}

fn has_effect(pod: &Pod, name: &str) -> bool {
    at(pod, KEY) == name && at(pod, "/metadata/labels/l") == name && at(pod, WRITTEN) == "written"
}

/// Each policy, where there are virtual nodes only.
pub(crate) async fn policies(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "selector-policies", &[]).await?;
    let policies = [
        ("none", Value::Null),
        ("virtual", json!({"virtualNodeOnly": {}})),
        ("fair", json!({"fair": {}})),
        ("prefer", json!({"normalNodePrefer": {"cpuRatio": 2}})),
        ("normal", json!({"normalNodeOnly": {}})),
    ];
    for (name, policy) in &policies {
        write(&scene, name, name, policy.clone(), 0).await?;
    }
    for (name, _) in &policies {
        let pod = acts(&scene, name, Some(name)).await?;
        let goes_there = at(&pod, "/spec/nodeSelector/type") == "virtual-kubelet";
        let is_only = matches!(*name, "none" | "virtual");
        ensure!(goes_there == is_only && has_effect(&pod, name) == is_only, "{name}: {:?}", pod.metadata);
        ensure!(tolerates(&pod) == (is_only || *name == "fair"), "{name}: {:?}", pod.spec);
        create(&scene, name).await?;
    }
    scene.wait_event("prefer", "NotHonoured", "spec.policy.normalNodePrefer.cpuRatio: 2 is not honoured").await?;
    for name in ["none", "virtual", "fair", "prefer"] {
        scene.wait_ready(name).await?;
        let pod = scene.wait_pod(name, "given the effect", |pod| has_effect(pod, name)).await?;
        ensure!(at(&pod, "/spec/nodeName") == cluster.node(0) && tolerates(&pod), "{name}: {:?}", pod.spec);
    }
    scene.wait_event("normal", "FailedScheduling", "untolerated taint").await?;
    let pod = scene.wait_pod("normal", "there", |_| true).await?;
    ensure!(!tolerates(&pod) && at(&pod, KEY) == "own" && at(&pod, "/spec/nodeName").is_null(), "{pod:?}");
    for (name, _) in &policies {
        remove(&scene, name).await?;
        scene.delete(name).await?;
    }
    acts(&scene, "none", None).await?;
    Ok(())
}

/// A node without a kubelet: the scheduler takes it for one for as long as nobody misses its heartbeats.
async fn with_ordinary_node(cluster: &Cluster, test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    const NAME: &str = "ordinary";
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": NAME}}))?;
    nodes.create(&PostParams::default(), &node).await?;
    let resources = json!({"cpu": "4", "memory": "4Gi", "pods": "10"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "Test", "message": ""});
    let status = json!({"status": {"capacity": resources, "allocatable": resources, "conditions": [ready]}});
    nodes.patch_status(NAME, &PatchParams::default(), &Patch::Merge(&status)).await?;
    nodes.patch(NAME, &PatchParams::default(), &Patch::Merge(&json!({"spec": {"taints": []}}))).await?;
    let outcome = test().await;
    nodes.delete(NAME, &DeleteParams::default()).await?;
    outcome
}

/// Where an ordinary node has room it is preferred, and the only one; and no effect is written there.
pub(crate) async fn ordinary_nodes_come_first(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "selector-ordinary", &[]).await?;
    write(&scene, "prefer", "prefer", json!({"normalNodePrefer": {}}), 0).await?;
    write(&scene, "normal", "normal", json!({"normalNodeOnly": {}}), 0).await?;
    for name in ["prefer", "normal"] {
        acts(&scene, name, Some(name)).await?;
    }
    with_ordinary_node(cluster, async || {
        for name in ["prefer", "normal"] {
            create(&scene, name).await?;
            let pod = scene.wait_pod(name, "bound", |pod| !at(pod, "/spec/nodeName").is_null()).await?;
            ensure!(at(&pod, "/spec/nodeName") == "ordinary" && !tolerates(&pod), "{name}: {:?}", pod.spec);
            ensure!(at(&pod, KEY) == "own" && at(&pod, WRITTEN).is_null(), "{name}: {:?}", pod.metadata);
            scene.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await?;
            remove(&scene, name).await?;
        }
        Ok(())
    })
    .await
}

/// Of several, one alone; its effect over the pod's own; after the ConfigMap; and gone with the object.
pub(crate) async fn the_highest_priority_acts_alone(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "selector-priority", &[]).await?;
    write(&scene, "b", "x", json!({}), 0).await?;
    write(&scene, "low", "x", json!({}), -1).await?;
    write(&scene, "a", "x", json!({}), 0).await?;
    acts(&scene, "x", Some("a")).await?;
    write(&scene, "high", "x", json!({"normalNodeOnly": {}}), 7).await?;
    let pod = acts(&scene, "x", Some("high")).await?;
    ensure!(at(&pod, "/spec/nodeSelector").is_null() && at(&pod, KEY).is_null() && !tolerates(&pod), "{pod:?}");
    remove(&scene, "high").await?;
    acts(&scene, "x", Some("a")).await?;
    let own = admitted(&scene, json!({"app": "x", "l": "own"}), json!({"k": "own"}), json!({})).await?;
    ensure!(has_effect(&own, "a"), "{:?}", own.metadata);
    // The pod's own no, and pods that none selects.
    let no = json!({"app": "x", "alibabacloud.com/eci": "false"});
    for labels in [no, json!({"app": "y"})] {
        let pod = admitted(&scene, labels, json!({}), json!({})).await?;
        ensure!(at(&pod, MARK).is_null() && at(&pod, "/spec/nodeSelector").is_null(), "{:?}", pod.metadata);
    }
    // A pod that brings the mark of another one along.
    let copied = json!({"eci.alibabacloud.com/selector": format!("{}/low", scene.namespace)});
    let pod = admitted(&scene, json!({"app": "x"}), copied, json!({})).await?;
    ensure!(has_effect(&pod, "a"), "{:?}", pod.metadata);

    let profile = json!([{"name": "p", "objectSelector": {"matchLabels": {"app": "x"}},
        "effect": {"annotations": {"k": "profile", "p": "profile"}}}]);
    crate::profile::write(cluster, json!({"selectors": profile.to_string()})).await?;
    let pod = until(&scene, json!({"app": "x"}), |pod| at(pod, "/metadata/annotations/p") == "profile").await?;
    ensure!(has_effect(&pod, "a"), "{:?}", pod.metadata);
    crate::profile::remove(cluster).await?;
    for name in ["a", "b", "low"] {
        remove(&scene, name).await?;
    }
    acts(&scene, "x", None).await?;
    Ok(())
}

/// What the API server takes and shows; what it refuses; and what it cannot know is named, and the last good state holds, also
/// over a restart of the provider.
pub(crate) async fn a_broken_one_is_named_and_the_last_good_state_holds(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "selector-broken", &[]).await?;
    write(&scene, "good", "x", json!({"fair": {}}), 0).await?;
    acts(&scene, "x", Some("good")).await?;
    for (spec, says) in [
        (json!({}), "objectLabels or namespaceLabels is needed"),
        (json!({"objectLabels": {}, "policy": {"fair": {}, "virtualNodeOnly": {}}}), "one policy can hold"),
        (json!({"objectLabels": {}, "effect": {"labels": {"a": 1}}}), "spec.effect.labels.a"),
    ] {
        let object =
            json!({"apiVersion": "eci.aliyun.com/v1", "kind": "Selector", "metadata": {"name": "bad"}, "spec": spec});
        match selectors(&scene).create(&PostParams::default(), &serde_json::from_value(object)?).await {
            Ok(_) => bail!("{spec} is taken"),
            Err(error) => ensure!(error.to_string().contains(says), "{spec}: {error}"),
        }
    }
    write(&scene, "good", "not a value", json!({"fair": {}}), 0).await?;
    let message = scene.wait_event("good", "InvalidSelector", "spec.objectLabels.matchLabels[app]: ").await?;
    ensure!(message.ends_with("; what it said before still holds"), "{message}");
    write(&scene, "other", "y", json!({"fair": {}}), 0).await?;
    acts(&scene, "y", Some("other")).await?;
    acts(&scene, "x", Some("good")).await?;

    cluster.provider_process()?.kill()?;
    cluster.start_provider()?;
    acts(&scene, "x", Some("good")).await?;
    write(&scene, "good", "z", json!({"fair": {}}), 0).await?;
    acts(&scene, "z", Some("good")).await?;
    acts(&scene, "x", None).await?;
    for name in ["good", "other"] {
        remove(&scene, name).await?;
    }
    acts(&scene, "y", None).await?;
    Ok(())
}

/// Upstream's own example under its own version, and what kubectl shows of it.
pub(crate) async fn upstreams_example(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let scene = Scene::new(cluster, "selector-readme", &[]).await?;
    let file = std::env::temp_dir().join(format!("larder-selector-{}.yaml", std::process::id()));
    std::fs::write(&file, README)?;
    let path = file.to_str().context("a path of text")?;
    let applied = cluster.kubectl(&["apply", "-n", &scene.namespace, "-f", path]).await;
    std::fs::remove_file(&file)?;
    applied?;
    let pod = until(&scene, json!({"app": "nginx"}), |pod| !at(pod, MARK).is_null()).await?;
    ensure!(tolerates(&pod), "{:?}", pod.spec);
    let table = cluster.kubectl(&["get", "selectors", "-n", &scene.namespace]).await?;
    ensure!(table.contains("PRIORITY") && table.contains(r#"{"fair":{}}"#), "{table}");
    let explained = cluster.kubectl(&["explain", "selectors.spec.policy"]).await?;
    ensure!(explained.contains("normalNodePrefer") && explained.contains("no ordinary node takes"), "{explained}");
    remove(&scene, "test-fair").await?;
    until(&scene, json!({"app": "nginx"}), |pod| at(pod, MARK).is_null()).await?;
    Ok(())
}
