//! How pods come to a virtual node, and which are sent away.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use larder_dev::conditions::pod_is_ready;
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{Scene, at, sh};
use serde_json::{Value, json};

fn on_virtual_node(pod: &Pod, cluster: &Cluster) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(cluster.node(0))
}

/// The documented Deployment needs no nodeSelector of its own: the label is enough.
pub(crate) async fn by_label(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "by-label", &[]).await?;
    let template = json!({
        "metadata": {"labels": {"app": "x", "alibabacloud.com/eci": "true"}},
        "spec": {"containers": [sh("exec sleep 1000")], "terminationGracePeriodSeconds": 1},
    });
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "x"}}, "template": template});
    let _: Deployment = scene.create(json!({"metadata": {"name": "test"}, "spec": spec})).await?;
    let deployments = scene.api::<Deployment>();
    let available = kube::runtime::wait::await_condition(deployments, "test", |found: Option<&Deployment>| {
        found.and_then(|one| one.status.as_ref()).and_then(|status| status.available_replicas) == Some(2)
    });
    tokio::time::timeout(larder_e2e::scene::SOON, available).await??;
    for pod in scene.api::<Pod>().list(&ListParams::default()).await? {
        ensure!(on_virtual_node(&pod, cluster) && pod_is_ready(&pod), "{pod:?}");
        let spec = at(&pod, "/spec");
        ensure!(spec["nodeSelector"]["type"] == "virtual-kubelet", "{spec}");
        let labels = at(&pod, "/metadata/labels");
        ensure!(labels["serverless.alibabacloud.com/virtual-node"] == "true", "{labels}");
        let instance = at(&pod, "/metadata/annotations/k8s.aliyun.com~1eci-instance-id");
        ensure!(instance.as_str().is_some_and(|id| id.starts_with("eci-")), "{instance}");
    }
    Ok(())
}

/// A label on the namespace sends all its pods there.
pub(crate) async fn by_namespace_label(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "by-namespace-label", &[("alibabacloud.com/eci", "true")]).await?;
    let object = json!({
        "metadata": {"name": "plain"},
        "spec": {"containers": [sh("exec sleep 1000")], "terminationGracePeriodSeconds": 1},
    });
    let _: Pod = scene.create(object).await?;
    let pod = scene.wait_ready("plain").await?;
    ensure!(on_virtual_node(&pod, cluster), "{pod:?}");
    Ok(())
}

/// A pod with its own selector and toleration works without the webhook's help.
pub(crate) async fn by_node_selector(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "by-node-selector", &[]).await?;
    scene.pod("chosen", json!({"containers": [sh("exec sleep 1000")]})).await?;
    let pod = scene.wait_ready("chosen").await?;
    ensure!(on_virtual_node(&pod, cluster), "{pod:?}");
    Ok(())
}

/// A pod that asks for nothing of ours is neither changed nor scheduled to us, and never waits for the webhook.
pub(crate) async fn other_pods_are_left_alone(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "other-pods", &[]).await?;
    for (name, labels) in [("none", json!({})), ("other-value", json!({"alibabacloud.com/eci": "false"}))] {
        let object = json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [sh("true")]}});
        let pod: Pod = scene.create(object).await?;
        ensure!(at(&pod, "/spec/nodeSelector") == Value::Null, "{pod:?}");
        // The only node has our taint, so the scheduler says that nothing fits.
        scene.wait_event(name, "FailedScheduling", "untolerated taint").await?;
    }
    Ok(())
}

/// What ECI cannot run is refused with what, where and what to do.
pub(crate) async fn refused_pods_say_why(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "refused", &[]).await?;
    let privileged = {
        let mut container = sh("true");
        container["securityContext"] = json!({"privileged": true});
        container
    };
    let cases = [
        ("host-network", "hostNetwork", json!({"hostNetwork": true, "containers": [sh("true")]})),
        ("host-pid", "hostPID", json!({"hostPID": true, "containers": [sh("true")]})),
        ("privileged", "privileged", json!({"containers": [privileged]})),
        (
            "host-path",
            "hostPath",
            json!({"containers": [sh("true")], "volumes": [{"name": "host", "hostPath": {"path": "/"}}]}),
        ),
    ];
    for (name, word, spec) in cases {
        scene.pod(name, spec).await?;
        let refused = |pod: &Pod| at(pod, "/status/reason") != Value::Null;
        let pod = scene.wait_pod(name, "refused", refused).await?;
        let message = at(&pod, "/status/message");
        ensure!(message.as_str().is_some_and(|text| text.contains(word)), "{name}: {message}");
        scene.wait_event(name, "ProviderCreateFailed", word).await?;
        let described = scene.describe(name).await?;
        ensure!(described.contains(word) && described.contains("Warning"), "{described}");
        scene.delete(name).await?;
    }
    Ok(())
}
