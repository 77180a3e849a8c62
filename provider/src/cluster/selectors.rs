//! Selector objects, and the pods that no node takes, which one of their policies is for.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Toleration};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Resource as _};
use serde_json::{Value, json};

use super::pods::PodName;
use super::watching::{WatchStream, follow};
use super::{ClusterError, KubeCluster, within};
use crate::custom_resource::selector::Selector;

/// What the owner of the Selectors does at the API server.
#[async_trait]
pub trait SelectorApi: Send + Sync + std::fmt::Debug {
    /// All Selectors.
    fn watch_selectors(&self) -> WatchStream<Selector>;

    /// The pods of the whole cluster that are bound to no node.
    fn watch_unbound_pods(&self) -> WatchStream<Pod>;

    /// Writes the tolerations of a pod, which must not have changed since.
    async fn write_tolerations(&self, pod: &Pod, tolerations: &[Toleration]) -> Result<(), ClusterError>;
}

#[async_trait]
impl SelectorApi for KubeCluster {
    fn watch_selectors(&self) -> WatchStream<Selector> {
        follow("selectors".to_owned(), Api::all(self.client()), watcher::Config::default())
    }

    fn watch_unbound_pods(&self) -> WatchStream<Pod> {
        let config = watcher::Config::default().fields("spec.nodeName=");
        follow("unbound pods".to_owned(), Api::all(self.client()), config)
    }

    async fn write_tolerations(&self, pod: &Pod, tolerations: &[Toleration]) -> Result<(), ClusterError> {
        let name = PodName::of(pod);
        let api: Api<Pod> = Api::namespaced(self.client(), &name.namespace);
        let patch = Patch::Merge(tolerations_patch(pod, tolerations));
        let what = || format!("write the tolerations of {name}");
        within(what, api.patch(&name.name, &PatchParams::default(), &patch)).await.map(drop)
    }
}

/// With the UID and the version that the list was read from: it is written whole, and others add to it as well.
fn tolerations_patch(pod: &Pod, tolerations: &[Toleration]) -> Value {
    json!({
        "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "spec": {"tolerations": tolerations},
    })
}

/// The reference to a Selector that an event carries.
pub fn regarding_selector(selector: &Selector) -> ObjectReference {
    selector.object_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_is_for_the_pod_that_was_read() {
        let mut pod = Pod::default();
        (pod.metadata.uid, pod.metadata.resource_version) = (Some("u".to_owned()), Some("7".to_owned()));
        let patch = tolerations_patch(&pod, &[Toleration { key: Some("k".to_owned()), ..Toleration::default() }]);
        let expected =
            json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": {"tolerations": [{"key": "k"}]}});
        assert_eq!(patch, expected);
    }
}
