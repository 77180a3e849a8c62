//! The Node object.

use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use larder_e2e::cluster::Cluster;
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
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let lease = serde_json::to_value(leases.get(cluster.node(0)).await?)?;
    ensure!(lease["spec"]["leaseDurationSeconds"] == 40, "{lease}");
    ensure!(lease["metadata"]["ownerReferences"][0]["kind"] == "Node", "{lease}");
    Ok(())
}

/// Somebody deletes the node: it comes back, as another object.
pub(crate) async fn deleted_and_recreated(cluster: &Cluster) -> Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let name = cluster.node(0);
    let before = nodes.get(name).await?.metadata.uid;
    nodes.delete(name, &DeleteParams::default()).await?;
    let is_new = |node: Option<&Node>| node.is_some_and(|node| node.metadata.uid != before);
    tokio::time::timeout(larder_e2e::scene::SOON, kube::runtime::wait::await_condition(nodes, name, is_new)).await??;
    cluster.wait_node_ready(name, true).await?;
    Ok(())
}
