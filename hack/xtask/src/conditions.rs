//! What objects of the API server say of themselves in their conditions.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::core::v1::{Node, Pod};

/// Whether a node's condition `Ready` is True.
#[must_use]
pub fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Whether a pod's condition `Ready` is True.
#[must_use]
pub fn pod_is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}
