//! The definitions of our resources, for whoever has the provider install them.

use async_trait::async_trait;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;

use super::watching::{WatchStream, follow_one};
use super::{ClusterError, KubeCluster, apply};

/// What whoever installs a definition does at the API server.
#[async_trait]
pub trait DefinitionApi: Send + Sync + std::fmt::Debug {
    /// Makes the definition, or makes it as given; our fields are taken back from whoever has changed them.
    async fn apply_definition(&self, wanted: &CustomResourceDefinition) -> Result<(), ClusterError>;

    /// The definition of this name, whether it is there or not.
    fn watch_definition(&self, name: &str) -> WatchStream<CustomResourceDefinition>;
}

impl KubeCluster {
    fn definitions(&self) -> Api<CustomResourceDefinition> {
        Api::all(self.client())
    }
}

#[async_trait]
impl DefinitionApi for KubeCluster {
    async fn apply_definition(&self, wanted: &CustomResourceDefinition) -> Result<(), ClusterError> {
        apply("definition", &self.definitions(), wanted).await
    }

    fn watch_definition(&self, name: &str) -> WatchStream<CustomResourceDefinition> {
        follow_one(format!("definition {name}"), self.definitions(), name)
    }
}
