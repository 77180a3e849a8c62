//! The definition of the ImageCache resource, for whoever has the provider install it.

use async_trait::async_trait;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;

use super::watching::{WatchStream, follow};
use super::{ClusterError, KubeCluster, within};

/// Who owns the fields that we apply.
const OWNER: &str = "larder-provider";

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
        let name = wanted.metadata.name.as_deref().unwrap_or_default();
        let (api, params) = (self.definitions(), PatchParams::apply(OWNER).force());
        within(|| format!("apply definition {name}"), api.patch(name, &params, &Patch::Apply(wanted))).await.map(drop)
    }

    fn watch_definition(&self, name: &str) -> WatchStream<CustomResourceDefinition> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        follow(format!("definition {name}"), self.definitions(), config)
    }
}
