//! Selectors, and pods that no node takes, in memory.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::{FakeCluster, conflict, late, list_then, stamp};
use crate::cluster::pods::PodName;
use crate::cluster::selectors::SelectorApi;
use crate::cluster::{ClusterError, WatchStream, Watched};
use crate::custom_resource::selector::{Selector, SelectorSpec};

impl FakeCluster {
    /// Writes a Selector of the namespace `ns`, or takes it away.
    pub fn put_selector(&self, name: &str, spec: Option<SelectorSpec>) {
        let mut record = self.lock();
        let change = match spec {
            Some(spec) => {
                let mut selector = Selector::new(name, spec);
                selector.metadata.namespace = Some("ns".to_owned());
                selector.metadata.uid = Some(format!("{name}-uid"));
                stamp(&mut record, &mut selector);
                record.selectors.insert(name.to_owned(), selector.clone());
                Some(Watched::Applied(selector))
            }
            None => record.selectors.remove(name).map(Watched::Deleted),
        };
        if let Some(change) = change {
            let _ = self.selectors.send(change);
        }
        drop(record);
        self.touch();
    }
}

#[async_trait]
impl SelectorApi for FakeCluster {
    fn watch_selectors(&self) -> WatchStream<Selector> {
        let record = self.lock();
        let watch = list_then(record.selectors.values().cloned().collect(), self.selectors.subscribe());
        late(record.selector_delay, watch)
    }

    fn watch_unbound_pods(&self) -> WatchStream<Pod> {
        let record = self.lock();
        let is_unbound = |pod: &&Pod| pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none());
        list_then(record.pods.values().filter(is_unbound).cloned().collect(), self.pods.subscribe())
    }

    async fn write_tolerations(&self, pod: &Pod, tolerations: &[Toleration]) -> Result<(), ClusterError> {
        let version = pod.metadata.resource_version.clone();
        let change = |current: &Pod| {
            if current.metadata.resource_version != version {
                return Err(conflict("pod", "the object has been modified"));
            }
            let mut current = current.clone();
            current.spec.get_or_insert_default().tolerations = Some(tolerations.to_vec());
            Ok(current)
        };
        self.change_pod(&PodName::of(pod), |_, current| change(current)).map(drop)
    }
}
