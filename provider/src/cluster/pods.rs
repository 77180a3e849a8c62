//! Pods: those that are bound to our nodes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use serde_json::{Value, json};

use super::watching::{WatchStream, follow};
use super::{ClusterError, KubeCluster, within};

/// What a pod worker does at the API server.
#[async_trait]
pub trait PodApi: Send + Sync + std::fmt::Debug {
    /// The pods that are bound to `node`.
    fn watch_pods(&self, node: &str) -> WatchStream<Pod>;

    /// Patches the status of the pod with this UID (strategic merge). A pod of the same name with another UID gives
    /// [`ClusterError::Conflict`].
    async fn patch_pod_status(&self, pod: &PodName, patch: Value) -> Result<Pod, ClusterError>;

    /// Adds labels and annotations to the pod with this UID.
    async fn annotate_pod(&self, pod: &PodName, set: &PodMarks) -> Result<Pod, ClusterError>;

    /// Removes the API object of the pod with this UID, at once. A pod that is not there any more is not an error.
    async fn remove_pod(&self, pod: &PodName) -> Result<(), ClusterError>;
}

/// Which pod is meant: the name to find it by, the UID to be sure.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodName {
    /// Reads it from the pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.name)
    }
}

/// Labels and annotations to write on a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMarks {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

impl PodMarks {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }

    /// True when the pod has them all already.
    pub fn are_on(&self, pod: &Pod) -> bool {
        let has = |have: &Option<BTreeMap<String, String>>, want: &BTreeMap<String, String>| {
            want.iter().all(|(key, value)| have.as_ref().is_some_and(|have| have.get(key) == Some(value)))
        };
        has(&pod.metadata.labels, &self.labels) && has(&pod.metadata.annotations, &self.annotations)
    }

    /// Puts them on the pod.
    pub fn put_on(&self, pod: &mut Pod) {
        for (have, want) in
            [(&mut pod.metadata.labels, &self.labels), (&mut pod.metadata.annotations, &self.annotations)]
        {
            if !want.is_empty() {
                have.get_or_insert_default().extend(want.clone());
            }
        }
    }
}

impl KubeCluster {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }
}

#[async_trait]
impl PodApi for KubeCluster {
    fn watch_pods(&self, node: &str) -> WatchStream<Pod> {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        follow(format!("pods of {node}"), Api::all(self.client()), config)
    }

    async fn patch_pod_status(&self, pod: &PodName, mut patch: Value) -> Result<Pod, ClusterError> {
        // A UID in the body is compared by the API server, which refuses a patch that would change it.
        patch["metadata"] = json!({"uid": pod.uid});
        let api = self.pods(&pod.namespace);
        let params = PatchParams::default();
        let patch = Patch::Strategic(patch);
        within(|| format!("patch status of {pod}"), api.patch_status(&pod.name, &params, &patch)).await
    }

    async fn annotate_pod(&self, pod: &PodName, set: &PodMarks) -> Result<Pod, ClusterError> {
        let patch = Patch::Merge(json!({
            "metadata": {"uid": pod.uid, "labels": set.labels, "annotations": set.annotations}
        }));
        let api = self.pods(&pod.namespace);
        within(|| format!("annotate {pod}"), api.patch(&pod.name, &PatchParams::default(), &patch)).await
    }

    async fn remove_pod(&self, pod: &PodName) -> Result<(), ClusterError> {
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid: Some(pod.uid.clone()), resource_version: None });
        let api = self.pods(&pod.namespace);
        match within(|| format!("remove {pod}"), api.delete(&pod.name, &params)).await {
            // A conflict is the UID's: the pod that was meant is gone, and another has its name.
            Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
