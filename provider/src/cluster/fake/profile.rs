//! The ConfigMap `kube-system/eci-profile` in memory.

use k8s_openapi::api::core::v1::ConfigMap;

use super::{FakeCluster, list_then, stamp};
use crate::cluster::profile::{NAME, NAMESPACE, ProfileApi};
use crate::cluster::{WatchStream, Watched};

impl FakeCluster {
    /// Writes the data of the profile, or takes the profile away.
    pub fn put_profile(&self, data: Option<&[(&str, &str)]>) {
        let mut record = self.lock();
        let change = match data {
            Some(data) => {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(NAME.to_owned());
                map.metadata.namespace = Some(NAMESPACE.to_owned());
                map.metadata.uid = Some("profile-uid".to_owned());
                map.data = Some(data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
                stamp(&mut record, &mut map);
                record.profile = Some(map.clone());
                Some(Watched::Applied(map))
            }
            None => record.profile.take().map(Watched::Deleted),
        };
        if let Some(change) = change {
            let _ = self.profiles.send(change);
        }
        drop(record);
        self.touch();
    }
}

impl ProfileApi for FakeCluster {
    fn watch_profile(&self) -> WatchStream<ConfigMap> {
        let record = self.lock();
        list_then(record.profile.clone().into_iter().collect(), self.profiles.subscribe())
    }
}
