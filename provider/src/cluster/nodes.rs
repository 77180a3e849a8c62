//! Nodes and their leases.

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::Value;

use super::watching::{WatchStream, follow_one};
use super::{ClusterError, KubeCluster, optional, within};

/// Where node leases live.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What the owner of a virtual node does at the API server.
#[async_trait]
pub trait NodeApi: Send + Sync + std::fmt::Debug {
    /// The node of this name, whether it is there or not.
    fn watch_node(&self, name: &str) -> WatchStream<Node>;

    /// Makes the node.
    async fn create_node(&self, node: &Node) -> Result<Node, ClusterError>;

    /// Patches what is no status (strategic merge).
    async fn patch_node(&self, name: &str, patch: Value) -> Result<Node, ClusterError>;

    /// Patches the status (strategic merge).
    async fn patch_node_status(&self, name: &str, patch: Value) -> Result<Node, ClusterError>;

    /// The lease of a node.
    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError>;

    /// Makes the lease.
    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError>;

    /// Replaces the lease; its `resourceVersion` must be the newest.
    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError>;
}

impl KubeCluster {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.client())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client(), LEASE_NAMESPACE)
    }
}

#[async_trait]
impl NodeApi for KubeCluster {
    fn watch_node(&self, name: &str) -> WatchStream<Node> {
        follow_one(format!("node {name}"), self.nodes(), name)
    }

    async fn create_node(&self, node: &Node) -> Result<Node, ClusterError> {
        let api = self.nodes();
        within(|| "create node".to_owned(), api.create(&PostParams::default(), node)).await
    }

    async fn patch_node(&self, name: &str, patch: Value) -> Result<Node, ClusterError> {
        let (api, patch) = (self.nodes(), Patch::Strategic(patch));
        within(|| format!("patch node {name}"), api.patch(name, &PatchParams::default(), &patch)).await
    }

    async fn patch_node_status(&self, name: &str, patch: Value) -> Result<Node, ClusterError> {
        let (api, patch) = (self.nodes(), Patch::Strategic(patch));
        within(|| format!("patch status of node {name}"), api.patch_status(name, &PatchParams::default(), &patch)).await
    }

    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError> {
        let api = self.leases();
        optional(within(|| format!("get lease of node {name}"), api.get(name)).await)
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let api = self.leases();
        within(|| "create lease of node".to_owned(), api.create(&PostParams::default(), lease)).await
    }

    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let (api, name) = (self.leases(), lease.metadata.name.as_deref().unwrap_or_default());
        within(|| format!("renew lease of node {name}"), api.replace(name, &PostParams::default(), lease)).await
    }
}
