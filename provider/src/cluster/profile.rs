//! The ConfigMap `kube-system/eci-profile`.

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::Api;

use super::KubeCluster;
use super::watching::{WatchStream, follow_one};

/// Its namespace.
pub const NAMESPACE: &str = "kube-system";
/// Its name.
pub const NAME: &str = "eci-profile";

/// What the owner of the profile does at the API server.
pub trait ProfileApi: Send + Sync + std::fmt::Debug {
    /// The ConfigMap, whether it is there or not.
    fn watch_profile(&self) -> WatchStream<ConfigMap>;
}

impl ProfileApi for KubeCluster {
    fn watch_profile(&self) -> WatchStream<ConfigMap> {
        follow_one(format!("ConfigMap {NAMESPACE}/{NAME}"), Api::namespaced(self.client(), NAMESPACE), NAME)
    }
}

/// The reference to it that an event carries.
pub fn regarding_profile(config_map: Option<&ConfigMap>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        name: Some(NAME.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        uid: config_map.and_then(|config_map| config_map.metadata.uid.clone()),
        resource_version: config_map.and_then(|config_map| config_map.metadata.resource_version.clone()),
        field_path: None,
    }
}
