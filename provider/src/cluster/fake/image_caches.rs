//! ImageCache objects in memory.

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{FakeCluster, conflict, list_then, not_found, stamp};
use crate::cluster::objects::ObjectContent;
use crate::cluster::{ClusterError, ImageCacheApi, ObjectKey, ObjectKind, WatchStream, Watched};
use crate::custom_resource::{ImageCache, ImageCacheStatus};

impl FakeCluster {
    /// Writes an ImageCache as somebody else would.
    pub fn put_image_cache(&self, mut cache: ImageCache) -> ImageCache {
        let mut record = self.lock();
        stamp(&mut record, &mut cache);
        let version = record.version;
        let metadata = &mut cache.metadata;
        metadata.uid.get_or_insert_with(|| format!("image-cache-uid-{version}"));
        metadata.generation.get_or_insert(1);
        metadata
            .creation_timestamp
            .get_or_insert_with(|| Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()));
        record.image_caches.insert(metadata.name.clone().unwrap_or_default(), cache.clone());
        let _ = self.image_caches.send(Watched::Applied(cache.clone()));
        drop(record);
        self.touch();
        cache
    }

    /// Deletes an ImageCache as somebody else would: one with finalizers stays until they are gone.
    pub fn delete_image_cache(&self, name: &str) {
        let Some(mut cache) = self.lock().image_caches.get(name).cloned() else { return };
        if cache.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.drop_image_cache(name);
        } else {
            cache.metadata.deletion_timestamp.get_or_insert_with(|| Time(Timestamp::now()));
            self.put_image_cache(cache);
        }
    }

    /// Takes an ImageCache away, finalizers or not.
    pub fn drop_image_cache(&self, name: &str) {
        let removed = self.lock().image_caches.remove(name);
        if let Some(cache) = removed {
            let _ = self.image_caches.send(Watched::Deleted(cache));
        }
        self.touch();
    }
}

#[async_trait]
impl ImageCacheApi for FakeCluster {
    fn watch_image_caches(&self) -> WatchStream<ImageCache> {
        let record = self.lock();
        list_then(record.image_caches.values().cloned().collect(), self.image_caches.subscribe())
    }

    async fn create_image_cache(&self, cache: &ImageCache) -> Result<ImageCache, ClusterError> {
        self.panic_if_broken("create_image_cache");
        let record = self.online()?;
        let name = cache.metadata.name.clone().unwrap_or_default();
        if record.image_caches.contains_key(&name) {
            return Err(conflict(&name, "already exists"));
        }
        drop(record);
        Ok(self.put_image_cache(cache.clone()))
    }

    async fn write_image_cache_status(
        &self,
        name: &str,
        status: &ImageCacheStatus,
    ) -> Result<ImageCache, ClusterError> {
        let mut cache = self.online()?.image_caches.get(name).cloned().ok_or_else(|| not_found(name))?;
        cache.status = Some(status.clone());
        Ok(self.put_image_cache(cache))
    }

    async fn remove_image_cache(&self, name: &str, uid: &str) -> Result<(), ClusterError> {
        let is_meant = self.online()?.image_caches.get(name).is_some_and(|it| it.metadata.uid.as_deref() == Some(uid));
        if is_meant {
            self.delete_image_cache(name);
        }
        Ok(())
    }

    async fn set_finalizers(&self, cache: &ImageCache, finalizers: &[String]) -> Result<ImageCache, ClusterError> {
        let name = cache.metadata.name.clone().unwrap_or_default();
        let mut there = self.online()?.image_caches.get(&name).cloned().ok_or_else(|| not_found(&name))?;
        if there.metadata.resource_version != cache.metadata.resource_version {
            return Err(conflict(&name, "has changed"));
        }
        there.metadata.finalizers = Some(finalizers.to_vec()).filter(|finalizers| !finalizers.is_empty());
        if there.metadata.finalizers.is_none() && there.metadata.deletion_timestamp.is_some() {
            self.drop_image_cache(&name);
            return Ok(there);
        }
        Ok(self.put_image_cache(there))
    }

    async fn read_secret(&self, namespace: &str, name: &str) -> Result<Option<ObjectContent>, ClusterError> {
        let key = ObjectKey { kind: ObjectKind::Secret, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(self.online()?.objects.get(&key).cloned())
    }
}
