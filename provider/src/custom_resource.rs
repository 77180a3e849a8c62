//! The `ImageCache` custom resource: its Rust type, from which `hack/deploy/crd.yaml` is made.
//!
//! Its comments are what `kubectl explain` shows.
//!
//! Cluster-scoped, `imagecaches.eci.alibabacloud.com/v1`, with the fields, columns and limits of ECI's. Where ECI raises a
//! value silently (a size below 20 GiB), the schema takes it and [`ImageCacheSpec::size_gib`] raises it.

pub mod selector;

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, ValidationRule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Days to keep the cache, for specs that leave `retentionDays` out.
pub const RETENTION_ANNOTATION: &str = "k8s.aliyun.com/imc-retention-days";
/// Size in GiB, for specs that leave `imageCacheSize` out.
pub const SIZE_ANNOTATION: &str = "k8s.aliyun.com/imc-size";
/// Registries that are spoken to over plain http.
pub const PLAIN_HTTP_ANNOTATION: &str = "k8s.aliyun.com/plain-http-registry";
/// Registries whose certificate is not verified.
pub const INSECURE_ANNOTATION: &str = "k8s.aliyun.com/insecure-registry";

/// Any text; another one has the images fetched again, for tags that have moved.
pub const REFRESH_ANNOTATION: &str = "eci.alibabacloud.com/refresh";

/// Which images of the cache are given to a pod only when its own credentials can pull them, in place of the hosts' policy.
pub const VERIFICATION_ANNOTATION: &str = "eci.alibabacloud.com/image-pull-credentials-verification-policy";

/// On a Secret: image caches may be built with it, where nobody checks who names it.
pub const SECRET_LABEL: &str = "eci.alibabacloud.com/image-cache";

/// Keeps a deleted object until its hosts have forgotten the cache.
pub const FINALIZER: &str = "eci.alibabacloud.com/imagecache";

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

/// What an image cache is to hold. Annotations of the object say more: `k8s.aliyun.com/imc-size` and
/// `k8s.aliyun.com/imc-retention-days` stand in for fields that are left out; `k8s.aliyun.com/plain-http-registry` and
/// `k8s.aliyun.com/insecure-registry` list registries, separated by commas, that are spoken to over http or whose certificate
/// is not verified; `eci.alibabacloud.com/node-selector` is a label selector of the virtual nodes whose hosts are to hold the
/// cache, `k8s.aliyun.com/imc-cpu-arch` (amd64 or arm64) and `k8s.aliyun.com/imc-os-type` (linux or windows) narrow it down;
/// another value of `eci.alibabacloud.com/refresh` has the images fetched again, for tags that have moved;
/// `eci.alibabacloud.com/image-pull-credentials-verification-policy` (NeverVerify, NeverVerifyPreloadedImages,
/// NeverVerifyAllowlistedImages or AlwaysVerify) says which images are given to a pod only when its own credentials can pull
/// them, in place of the hosts' policy.
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
    doc = "A set of container images that the hosts of the virtual nodes keep complete, so that pods of any namespace start without pulling.",
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name": "CacheId", "type": "string", "jsonPath": ".status.imageCacheId"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Progress", "type": "string", "jsonPath": ".status.progress"}"#,
    printcolumn = r#"{"name": "Hosts", "type": "string", "jsonPath": ".status.readyHosts", "priority": 1}"#,
    printcolumn = r#"{"name": "Images", "type": "string", "jsonPath": ".spec.images", "priority": 1}"#,
    printcolumn = r#"{"name": "Size", "type": "integer", "jsonPath": ".status.imageCacheSize", "priority": 1}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason", "priority": 1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheSpec {
    /// The images to cache, 1 to 20, written as in a pod. A change of the list builds the cache again; until that is done,
    /// the old images serve.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 1024)))]
    pub images: Vec<String>,
    /// Secrets with registry logins, each written `namespace:secretName`; only private images need them. Whoever names a
    /// Secret here must have the right to read it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 317)))]
    pub image_pull_secrets: Vec<String>,
    /// Size in GiB, 20 to 32768. Left out, the annotation `k8s.aliyun.com/imc-size` holds, else 20; smaller values count as
    /// 20. Twice the size of the images is a good value. The build fails when the images do not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32768))]
    pub image_cache_size: Option<i64>,
    /// Days until the cache is deleted, 1 to 65536. Left out, the annotation `k8s.aliyun.com/imc-retention-days` holds, else
    /// the cache is kept for ever.
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
    /// A key of the annotations that this status is about, as far as the build depends on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_settings: Option<String>,
    /// On how many of the hosts that are to hold the cache pods can start from it, as `2/3`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ready_hosts: String,
    /// Where each host stands by itself, 100 hosts at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub hosts: Vec<HostStatus>,
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

/// Where an image cache stands on one host.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The virtual node of the host.
    pub node: String,
    /// Pending, Creating, Ready, Failed, Updating or UpdateFailed.
    #[serde(default)]
    pub phase: Phase,
    /// Progress of the host's build, `0%` to `100%`.
    #[serde(default = "no_progress")]
    pub progress: String,
    /// Why its build failed, or that the host is away.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When its build last made a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_time: Option<Time>,
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
        let Some(fields) = schema.and_then(|schema| schema.properties.as_mut()) else { continue };
        if let Some(status) = fields.get_mut("status") {
            complete_status(status);
        }
        let secrets = fields.get_mut("spec").and_then(|spec| spec.properties.as_mut());
        if let Some(secrets) = secrets.and_then(|fields| fields.get_mut("imagePullSecrets")) {
            secrets.x_kubernetes_validations = Some(vec![secrets_rule()]);
        }
    }
    definition
}

/// As in ECI's definition: whoever writes a status says at least where the cache stands, and one that nobody has written
/// yet says that the cache is Pending.
fn complete_status(status: &mut JSONSchemaProps) {
    status.required = Some(vec!["phase".to_owned(), "progress".to_owned()]);
    let defaults = [("phase", json!(Phase::default())), ("progress", json!(no_progress()))];
    status.default = Some(JSON(defaults.iter().map(|(field, value)| ((*field).to_owned(), value.clone())).collect()));
    for (field, value) in defaults {
        if let Some(field) = status.properties.as_mut().and_then(|fields| fields.get_mut(field)) {
            field.default = Some(JSON(value));
        }
    }
}

/// A rule and not a pattern, because a pattern's refusal is the pattern.
fn secrets_rule() -> ValidationRule {
    ValidationRule {
        rule: r"self.all(entry, entry.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?$'))"
            .to_owned(),
        message: Some("each entry must be written namespace:secretName".to_owned()),
        ..ValidationRule::default()
    }
}

#[cfg(test)]
impl ImageCache {
    /// With these annotations and no others.
    pub(crate) fn annotated(mut self, annotations: &[(&str, &str)]) -> Self {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.metadata.annotations = Some(annotations.collect());
        self
    }
}

#[cfg(test)]
mod tests;
