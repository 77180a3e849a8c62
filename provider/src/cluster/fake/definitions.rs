//! The definition of ImageCache in memory.

use async_trait::async_trait;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{FakeCluster, list_then, stamp};
use crate::cluster::definitions::DefinitionApi;
use crate::cluster::{ClusterError, WatchStream, Watched};

impl FakeCluster {
    /// Writes the definition as somebody else would; its status stays until it is written.
    pub fn put_definition(&self, mut definition: CustomResourceDefinition) {
        let mut record = self.lock();
        stamp(&mut record, &mut definition);
        let known = record.definition.take().and_then(|known| known.status);
        definition.status = definition.status.or(known);
        record.definition = Some(definition.clone());
        let _ = self.definitions.send(Watched::Applied(definition));
        drop(record);
        self.touch();
    }
}

#[async_trait]
impl DefinitionApi for FakeCluster {
    async fn apply_definition(&self, wanted: &CustomResourceDefinition) -> Result<(), ClusterError> {
        drop(self.online()?);
        self.put_definition(wanted.clone());
        Ok(())
    }

    fn watch_definition(&self, _name: &str) -> WatchStream<CustomResourceDefinition> {
        let record = self.lock();
        list_then(record.definition.clone().into_iter().collect(), self.definitions.subscribe())
    }
}
