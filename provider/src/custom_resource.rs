//! The `ImageCache` custom resource: its Rust type, from which `hack/deploy/crd.yaml` is made.
//!
//! Cluster-scoped, `imagecaches.eci.alibabacloud.com/v1`, with the fields, columns and limits of ECI's. Where ECI raises a
//! value silently (a size below 20 GiB), the schema takes it and [`ImageCacheSpec::size_gib`] raises it.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Days to keep the cache, for specs that leave `retentionDays` out.
pub const RETENTION_ANNOTATION: &str = "k8s.aliyun.com/imc-retention-days";
/// Size in GiB, for specs that leave `imageCacheSize` out.
pub const SIZE_ANNOTATION: &str = "k8s.aliyun.com/imc-size";
/// Registries that are spoken to over plain http.
pub const PLAIN_HTTP_ANNOTATION: &str = "k8s.aliyun.com/plain-http-registry";
/// Registries whose certificate is not verified.
pub const INSECURE_ANNOTATION: &str = "k8s.aliyun.com/insecure-registry";

/// On an ImageCache that was made for a pod that matched none.
pub const AUTOMATIC_LABEL: &str = "eci.alibabacloud.com/automatic";
/// On an automatic ImageCache: the key of the set of images that it was made for.
pub const IMAGE_SET_LABEL: &str = "eci.alibabacloud.com/image-set";

/// The smallest cache, in GiB; smaller wishes are raised to it. Also the default.
pub const SMALLEST_GIB: u64 = 20;
/// The largest cache, in GiB.
pub const LARGEST_GIB: u64 = 32_768;
/// The size of an automatic cache, in GiB.
pub const AUTOMATIC_GIB: u64 = 30;
/// The longest retention, in days.
pub const LONGEST_RETENTION_DAYS: u32 = 65_536;
/// The most images in one cache.
pub const MOST_IMAGES: usize = 20;

/// What an image cache is to hold.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[kube(
    group = "eci.alibabacloud.com",
    version = "v1",
    kind = "ImageCache",
    plural = "imagecaches",
    singular = "imagecache",
    shortname = "ic",
    shortname = "imc",
    category = "all",
    status = "ImageCacheStatus",
    derive = "PartialEq",
    doc = "A set of container images that the hosts of the virtual nodes keep complete, so that pods start without pulling.",
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name": "CacheId", "type": "string", "jsonPath": ".status.imageCacheId"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Progress", "type": "string", "jsonPath": ".status.progress"}"#,
    printcolumn = r#"{"name": "Images", "type": "string", "jsonPath": ".spec.images", "priority": 1}"#,
    printcolumn = r#"{"name": "Size", "type": "integer", "jsonPath": ".status.imageCacheSize", "priority": 1}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason", "priority": 1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheSpec {
    /// The images to cache, 1 to 20.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 1024)))]
    pub images: Vec<String>,
    /// Secrets with registry logins, each written `namespace:secretName`; only private images need them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))
    )]
    pub image_pull_secrets: Vec<String>,
    /// Size in GiB, 20 to 32768; 20 when left out, and smaller values count as 20. Twice the size of the images is a good
    /// value. The build fails when the images do not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32768))]
    pub image_cache_size: Option<i64>,
    /// Days until the cache is deleted, 1 to 65536; it is kept for ever when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub retention_days: Option<i64>,
}

/// Where an image cache stands.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheStatus {
    /// The id by which pods name the cache: `imc-` and 20 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_cache_id: Option<String>,
    /// Pending, Creating, Ready, Failed, Updating or UpdateFailed.
    #[serde(default)]
    pub phase: Phase,
    /// Why the build failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Progress of the build, `0%` to `100%`.
    #[serde(default = "no_progress")]
    pub progress: String,
    /// The size in GiB that holds, after defaults and limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_cache_size: Option<i64>,
    /// When the build began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it last made a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_time: Option<Time>,
    /// When the cache will be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_date_time: Option<Time>,
    /// When a pod last started from the cache, to the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_matched_time: Option<Time>,
    /// The generation of the object that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The newest steps of the build, oldest first, 50 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub events: Vec<BuildEvent>,
}

/// The stages of a cache's life.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// No host has begun.
    #[default]
    Pending,
    /// Images are being pulled.
    Creating,
    /// A host holds every image.
    Ready,
    /// The build failed.
    Failed,
    /// It is being built again with other images; the old ones go on serving.
    Updating,
    /// That failed; the old images go on serving.
    UpdateFailed,
}

/// A step of a build.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BuildEvent {
    /// The image that it is about, or the cache's name.
    pub name: String,
    /// What happened, for people.
    pub message: String,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
    /// What happened, in one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The virtual node whose host made the step.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
}

fn no_progress() -> String {
    "0%".to_owned()
}

impl ImageCacheSpec {
    /// The size in GiB: the spec's, else the annotation's, else the default; raised to the smallest.
    pub fn size_gib(&self, annotations: &BTreeMap<String, String>) -> u64 {
        let annotated = || annotations.get(SIZE_ANNOTATION).and_then(|value| value.trim().parse().ok());
        let wanted = self.image_cache_size.and_then(|size| u64::try_from(size).ok()).or_else(annotated);
        wanted.unwrap_or(SMALLEST_GIB).clamp(SMALLEST_GIB, LARGEST_GIB)
    }

    /// The days until the cache expires: the spec's, else the annotation's. None: it never does.
    pub fn retention(&self, annotations: &BTreeMap<String, String>) -> Option<u32> {
        let annotated = || annotations.get(RETENTION_ANNOTATION).and_then(|value| value.trim().parse().ok());
        let wanted: Option<u32> = self.retention_days.and_then(|days| u32::try_from(days).ok()).or_else(annotated);
        wanted.filter(|days| (1..=LONGEST_RETENTION_DAYS).contains(days))
    }
}

/// The definition as it is given to a cluster.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = ImageCache::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let status = schema.and_then(|schema| schema.properties.as_mut()).and_then(|fields| fields.get_mut("status"));
        if let Some(status) = status {
            // As in ECI's definition: whoever writes a status says at least where the cache stands.
            status.required = Some(vec!["phase".to_owned(), "progress".to_owned()]);
        }
    }
    definition
}

#[cfg(test)]
mod tests;
