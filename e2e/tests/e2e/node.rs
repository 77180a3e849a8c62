//! The Node object.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::wait::await_condition;
use larder_e2e::cluster::{BUSYBOX, Cluster};
use larder_e2e::scene::{SOON, Scene, at, ready_cache, sh};
use serde_json::json;

/// Labels, taint, addresses, capacity and the rest, as ECI's virtual nodes have them.
pub(crate) async fn shape(cluster: &Cluster) -> Result<()> {
    let node = cluster.wait_node_ready(cluster.node(0), true).await?;
    let value = serde_json::to_value(&node)?;
    let labels = &value["metadata"]["labels"];
    for (key, wanted) in [
        ("type", "virtual-kubelet"),
        ("kubernetes.io/role", "agent"),
        ("kubernetes.io/hostname", cluster.node(0)),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    ] {
        ensure!(labels[key] == wanted, "{key}: {labels}");
    }
    let taint = json!({"key": "virtual-kubelet.io/provider", "value": "alibabacloud", "effect": "NoSchedule"});
    let taints = value["spec"]["taints"].as_array().cloned().unwrap_or_default();
    ensure!(taints.contains(&taint), "{taints:?}");
    let status = &value["status"];
    for key in ["cpu", "memory", "pods", "ephemeral-storage"] {
        ensure!(status["capacity"][key].is_string() && status["allocatable"][key].is_string(), "{status}");
    }
    ensure!(
        status["nodeInfo"]["containerRuntimeVersion"].as_str().is_some_and(|version| version.contains("://")),
        "{status}"
    );
    ensure!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"].is_number(), "{status}");
    let types: Vec<&str> = conditions(&node).collect();
    for wanted in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
        ensure!(types.contains(&wanted), "no condition {wanted}: {types:?}");
    }
    ensure!(
        status["addresses"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "InternalIP")),
        "{status}"
    );
    ready_cache(cluster, "node-shape", &[BUSYBOX]).await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let has_image = |node: Option<&Node>| node.is_some_and(|node| images(node).any(|name| name == BUSYBOX));
    tokio::time::timeout(SOON, await_condition(nodes, cluster.node(0), has_image)).await.context("no images")??;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let lease = serde_json::to_value(leases.get(cluster.node(0)).await?)?;
    ensure!(lease["spec"]["leaseDurationSeconds"] == 40, "{lease}");
    ensure!(lease["metadata"]["ownerReferences"][0]["kind"] == "Node", "{lease}");
    Ok(())
}

fn conditions(node: &Node) -> impl Iterator<Item = &str> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.map(|condition| condition.type_.as_str())
}

fn images(node: &Node) -> impl Iterator<Item = &String> {
    let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
    images.flat_map(|image| image.names.iter().flatten())
}

/// Somebody deletes the node: it comes back, as another object, and what runs on it goes on.
pub(crate) async fn deleted_and_recreated(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "node-deleted", &[]).await?;
    scene.pod("pod", json!({"containers": [sh("sleep 1000")]})).await?;
    let container = at(&scene.wait_ready("pod").await?, "/status/containerStatuses/0/containerID");
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.node(0);
    let before = nodes.get(name).await?.metadata.uid;
    nodes.delete(name, &DeleteParams::default()).await?;
    let is_new = |node: Option<&Node>| node.is_some_and(|node| node.metadata.uid != before);
    let node = tokio::time::timeout(SOON, await_condition(nodes, name, is_new)).await??.context("no node")?;
    cluster.wait_node_ready(name, true).await?;
    let owner = node.metadata.uid;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let is_its = |lease: Option<&Lease>| {
        let owners = lease.iter().flat_map(|lease| lease.metadata.owner_references.iter().flatten());
        owners.into_iter().any(|reference| Some(&reference.uid) == owner.as_ref())
    };
    tokio::time::timeout(SOON, await_condition(leases, name, is_its)).await.context("the lease has no new owner")??;
    let pod = scene.wait_ready("pod").await?;
    ensure!(at(&pod, "/status/containerStatuses/0/containerID") == container, "{pod:?}");
    ensure!(at(&pod, "/status/containerStatuses/0/restartCount") == 0, "{pod:?}");
    Ok(())
}
