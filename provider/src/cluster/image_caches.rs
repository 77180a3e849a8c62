//! ImageCache objects, and the Secrets that they name.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use serde_json::{Value, json};

use super::objects::ObjectContent;
use super::watching::{WatchStream, follow};
use super::{ClusterError, KubeCluster, optional, within};
use crate::custom_resource::{ImageCache, ImageCacheStatus};

/// What the owner of the image caches does at the API server.
#[async_trait]
pub trait ImageCacheApi: Send + Sync + std::fmt::Debug {
    /// All ImageCache objects.
    fn watch_image_caches(&self) -> WatchStream<ImageCache>;

    /// Makes an object.
    async fn create_image_cache(&self, cache: &ImageCache) -> Result<ImageCache, ClusterError>;

    /// Writes the whole status of an object.
    async fn write_image_cache_status(&self, name: &str, status: &ImageCacheStatus)
    -> Result<ImageCache, ClusterError>;

    /// Removes the object with this UID. One that is not there any more, or is another by now, is not an error.
    async fn remove_image_cache(&self, name: &str, uid: &str) -> Result<(), ClusterError>;

    /// Sets the finalizers of an object, which must not have changed since. Without any, one that is deleted is gone.
    async fn set_finalizers(&self, cache: &ImageCache, finalizers: &[String]) -> Result<ImageCache, ClusterError>;

    /// A Secret, if it is there.
    async fn read_secret(&self, namespace: &str, name: &str) -> Result<Option<ObjectContent>, ClusterError>;
}

impl KubeCluster {
    fn image_caches(&self) -> Api<ImageCache> {
        Api::all(self.client())
    }
}

#[async_trait]
impl ImageCacheApi for KubeCluster {
    fn watch_image_caches(&self) -> WatchStream<ImageCache> {
        follow("image caches".to_owned(), self.image_caches(), watcher::Config::default())
    }

    async fn create_image_cache(&self, cache: &ImageCache) -> Result<ImageCache, ClusterError> {
        let api = self.image_caches();
        within(|| "create image cache".to_owned(), api.create(&PostParams::default(), cache)).await
    }

    async fn write_image_cache_status(
        &self,
        name: &str,
        status: &ImageCacheStatus,
    ) -> Result<ImageCache, ClusterError> {
        let (api, patch) = (self.image_caches(), Patch::Merge(status_patch(status)));
        let what = || format!("write status of image cache {name}");
        within(what, api.patch_status(name, &PatchParams::default(), &patch)).await
    }

    async fn remove_image_cache(&self, name: &str, uid: &str) -> Result<(), ClusterError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = self.image_caches();
        match within(|| format!("remove image cache {name}"), api.delete(name, &params)).await {
            Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn set_finalizers(&self, cache: &ImageCache, finalizers: &[String]) -> Result<ImageCache, ClusterError> {
        let metadata = &cache.metadata;
        let (api, name) = (self.image_caches(), metadata.name.clone().unwrap_or_default());
        // Whoever else has a finalizer may have added it meanwhile.
        let patch = Patch::Merge(json!({"metadata": {
            "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers,
        }}));
        let what = || format!("set the finalizers of image cache {name}");
        within(what, api.patch(&name, &PatchParams::default(), &patch)).await
    }

    async fn read_secret(&self, namespace: &str, name: &str) -> Result<Option<ObjectContent>, ClusterError> {
        let api: Api<Secret> = Api::namespaced(self.client(), namespace);
        let secret = optional(within(|| format!("get secret {namespace}/{name}"), api.get(name)).await)?;
        Ok(secret.map(ObjectContent::from))
    }
}

/// A merge patch that leaves nothing of an earlier status: fields that the status does not have become null.
fn status_patch(status: &ImageCacheStatus) -> Value {
    const OPTIONAL: [&str; 12] = [
        "imageCacheId",
        "reason",
        "imageCacheSize",
        "startTime",
        "lastUpdatedTime",
        "expireDateTime",
        "lastMatchedTime",
        "observedGeneration",
        "observedSettings",
        "readyHosts",
        "hosts",
        "events",
    ];
    let mut fields = json!(status);
    if let Value::Object(fields) = &mut fields {
        for field in OPTIONAL {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    json!({ "status": fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_status_clears_everything() {
        let patch = status_patch(&ImageCacheStatus::default());
        let schema = crate::custom_resource::definition();
        let schema = schema.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let fields = schema.properties.as_ref().unwrap()["status"].properties.as_ref().unwrap();
        for field in fields.keys() {
            assert!(patch["status"].get(field).is_some(), "{field} of an earlier status would stay");
        }
    }
}
