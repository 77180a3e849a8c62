//! Pure: no I/O, no clock, no randomness.
//!
//! What ECI writes on a pod that it runs: annotations that say which instance it is and what it started from, and the label
//! of pods on virtual nodes. Only those are written that mean something here; keys about a cloud's network or accounts are
//! left out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::instance_size::{self, InstanceSize};
use crate::identity;

/// The image cache that the pod started from.
pub const MATCHED_IMAGE_CACHE: &str = "k8s.aliyun.com/eci-matched-image-cache";
/// The pod's instance.
pub const INSTANCE_ID: &str = "k8s.aliyun.com/eci-instance-id";
const REQUEST_ID: &str = "k8s.aliyun.com/eci-request-id";
const INSTANCE_SPEC: &str = "k8s.aliyun.com/eci-instance-spec";
const INSTANCE_CPU: &str = "k8s.aliyun.com/eci-instance-cpu";
const INSTANCE_MEMORY: &str = "k8s.aliyun.com/eci-instance-mem";
const INSTANCE_ZONE: &str = "k8s.aliyun.com/eci-instance-zone";
const CLUSTER_DOMAIN: &str = "k8s.aliyun.com/cluster-domain";
const VERSION: &str = "k8s.aliyun.com/vk-version";
const KUBERNETES_VERSION: &str = "k8s.aliyun.com/k8s-version";
const STREAM_PORT: &str = "kubernetes.io/pod-stream-port";
const CREATED: &str = "ProviderCreate";

/// On every pod that a virtual node runs.
pub const VIRTUAL_NODE_LABEL: &str = "serverless.alibabacloud.com/virtual-node";

/// What is the same for all pods of this provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The zone of the virtual node; empty for none.
    pub zone: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The API server's version; empty where it is not known.
    pub kubernetes_version: String,
    /// The port of the kubelet API; 0 where it is not known.
    pub stream_port: u16,
}

/// The annotations for a pod.
pub fn annotations(pod: &Pod, image_cache_id: Option<&str>, around: &Surroundings) -> BTreeMap<String, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let size = instance_size::of(pod);
    let mut written = BTreeMap::new();
    let mut write = |key: &str, value: String| {
        if !value.is_empty() {
            written.insert(key.to_owned(), value);
        }
    };
    write(INSTANCE_ID, identity::instance_id(uid));
    write(REQUEST_ID, identity::request_id(uid));
    write(INSTANCE_SPEC, size.spec());
    if let InstanceSize::Amount(amount) = size {
        write(INSTANCE_CPU, amount.cpu());
        write(INSTANCE_MEMORY, amount.gib());
    }
    write(INSTANCE_ZONE, around.zone.clone());
    write(CLUSTER_DOMAIN, around.cluster_domain.clone());
    write(KUBERNETES_VERSION, around.kubernetes_version.clone());
    write(VERSION, env!("CARGO_PKG_VERSION").to_owned());
    write(STREAM_PORT, if around.stream_port == 0 { String::new() } else { around.stream_port.to_string() });
    write(MATCHED_IMAGE_CACHE, image_cache_id.unwrap_or_default().to_owned());
    write(CREATED, "done".to_owned());
    written
}

/// The labels for a pod.
pub fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(VIRTUAL_NODE_LABEL.to_owned(), "true".to_owned())])
}

/// The text of the event `UserInstanceTypeSpec`.
pub fn size_message(pod: &Pod) -> String {
    let spec = instance_size::of(pod).spec();
    format!("[eci.containergroup]The user-specified instanceType for current eci instance is {spec}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "0b5a5f0e-7c1d-4a4b-9a39-1f5d4a3e2c11"},
            "spec": {"containers": [{"name": "c", "image": "nginx"}]},
        }))
        .unwrap()
    }

    fn around() -> Surroundings {
        Surroundings { cluster_domain: "cluster.local".to_owned(), stream_port: 10250, ..Surroundings::default() }
    }

    #[test]
    fn a_pod_is_told_its_instance() {
        let written = annotations(&pod(), Some("imc-2zebxkiifuyzzlhl0000"), &around());
        let read = |key: &str| written.get(key).map(String::as_str);
        assert!(read(INSTANCE_ID).unwrap().starts_with("eci-"));
        assert_eq!(read(INSTANCE_SPEC), Some("2.0-4.0Gi"));
        assert_eq!(read(INSTANCE_CPU), Some("2.0"));
        assert_eq!(read(INSTANCE_MEMORY), Some("4.0"));
        assert_eq!(read(MATCHED_IMAGE_CACHE), Some("imc-2zebxkiifuyzzlhl0000"));
        assert_eq!(read(CREATED), Some("done"));
        assert_eq!(read(STREAM_PORT), Some("10250"));
        assert_eq!(read(INSTANCE_ZONE), None);
    }

    #[test]
    fn asked_twice_it_is_the_same() {
        assert_eq!(annotations(&pod(), None, &around()), annotations(&pod(), None, &around()));
        assert!(!annotations(&pod(), None, &around()).contains_key(MATCHED_IMAGE_CACHE));
    }

    #[test]
    fn the_size_is_told_in_ecis_words() {
        assert_eq!(
            size_message(&pod()),
            "[eci.containergroup]The user-specified instanceType for current eci instance is 2.0-4.0Gi"
        );
    }
}
