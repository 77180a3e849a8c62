//! Pods: those that are bound to our nodes.

use std::collections::{BTreeMap, BTreeSet};

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

    /// Adds labels and annotations to the pod with this UID, and takes annotations away.
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

/// Labels and annotations to write on a pod, and annotations to take off it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMarks {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Annotations that the pod must not have: none of those above.
    pub cleared: BTreeSet<String>,
}

impl PodMarks {
    /// True when the pod is as they want it already.
    pub fn are_on(&self, pod: &Pod) -> bool {
        let has = |have: &Option<BTreeMap<String, String>>, want: &BTreeMap<String, String>| {
            want.iter().all(|(key, value)| have.as_ref().is_some_and(|have| have.get(key) == Some(value)))
        };
        let annotations = &pod.metadata.annotations;
        let has_cleared = annotations.iter().flatten().any(|(key, _)| self.cleared.contains(key));
        has(&pod.metadata.labels, &self.labels) && has(annotations, &self.annotations) && !has_cleared
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
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.retain(|key, _| !self.cleared.contains(key));
        }
    }

    /// As a merge patch of the pod with this UID.
    fn patch(&self, uid: &str) -> Value {
        let mut annotations = json!(self.annotations);
        for key in &self.cleared {
            annotations[key] = Value::Null;
        }
        json!({"metadata": {"uid": uid, "labels": self.labels, "annotations": annotations}})
    }
}

impl KubeCluster {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.bounded_client(), namespace)
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
        let patch = Patch::Merge(set.patch(&pod.uid));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_is_gone_from_the_pod_and_null_in_the_patch() {
        let set = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let marks = PodMarks {
            labels: set(&[("l", "1")]),
            annotations: set(&[("a", "1")]),
            cleared: BTreeSet::from(["b".to_owned()]),
        };
        let mut pod = Pod::default();
        pod.metadata.annotations = Some(set(&[("b", "forged"), ("c", "kept")]));
        assert!(!marks.are_on(&pod));
        marks.put_on(&mut pod);
        assert!(marks.are_on(&pod));
        assert_eq!(pod.metadata.annotations, Some(set(&[("a", "1"), ("c", "kept")])));
        let patch = json!({"metadata": {"uid": "u", "labels": {"l": "1"}, "annotations": {"a": "1", "b": null}}});
        assert_eq!(marks.patch("u"), patch);
    }
}
