//! What passes between the provider and an agent, in the provider's own types.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

/// A pod to run, with what it refers to.
#[derive(Debug, Clone)]
pub struct RunPod {
    /// The pod as the API server has it.
    pub pod: Arc<Pod>,
    /// The ConfigMaps that it names; one that is missing here does not exist.
    pub config_maps: Vec<ResolvedObject>,
    /// The Secrets that it names; one that is missing here does not exist.
    pub secrets: Vec<ResolvedObject>,
    /// Tokens for its projected volumes.
    pub tokens: Vec<ServiceAccountToken>,
    /// Service variables, in order.
    pub service_env: Vec<(String, String)>,
    /// Registry logins, in the order in which they are to be tried.
    pub credentials: Vec<RegistryCredential>,
    /// The image cache that was chosen.
    pub image_cache: Option<ChosenCache>,
    /// Registry hosts that are spoken to over plain http.
    pub plain_http_registries: Vec<String>,
    /// Registry hosts whose certificate is not verified.
    pub insecure_registries: Vec<String>,
}

/// An image cache that was chosen for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenCache {
    /// `imc-...`.
    pub id: String,
    /// Whether it was made for a pod, with that pod's credentials.
    pub is_automatic: bool,
    /// Its own policy; none for the host's.
    pub policy: Option<VerificationPolicy>,
}

/// Which images that a cache holds are served only to pods whose own credentials can pull them: KEP-2535's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// None.
    NeverVerify,
    /// Those of automatic caches.
    NeverVerifyPreloadedImages,
    /// All but those that the host's list names.
    NeverVerifyAllowlistedImages,
    /// All.
    AlwaysVerify,
}

/// The content of a ConfigMap or a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ResolvedObject {
    /// Its name; the namespace is the pod's.
    pub name: String,
    /// Its keys and values.
    pub data: BTreeMap<String, Bytes>,
}

impl std::fmt::Debug for ResolvedObject {
    /// Keys only: values are secrets as often as not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResolvedObject").field("name", &self.name).field("keys", &self.data.keys()).finish()
    }
}

/// A bound token of a service account.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccountToken {
    /// The audience that the volume asked for; empty for the API server's own.
    pub audience: String,
    /// The lifetime that the volume asked for.
    pub expiration_seconds: i64,
    /// The token itself.
    pub token: String,
}

impl std::fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountToken")
            .field("audience", &self.audience)
            .field("expiration_seconds", &self.expiration_seconds)
            .finish_non_exhaustive()
    }
}

/// A registry login.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryCredential {
    /// The key of the entry in the Secret, as written.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Identity (refresh) token; empty for none.
    pub identity_token: String,
    /// Bearer token that is sent as it is; empty for none.
    pub registry_token: String,
}

impl std::fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredential")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What the agent says to a wish to end a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// It has begun; the end comes as [`PodChange::Gone`].
    Begun,
    /// The agent has no such pod, hence nothing of it runs.
    Unknown,
}

/// What the agent knows of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodState {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Grows with each change of this pod.
    pub generation: u64,
    /// Its status, as the API server shall see it.
    pub status: PodStatus,
    /// Every container has ended for good.
    pub terminated: bool,
}

/// The end of a pod: its processes, mounts and network are gone.
#[derive(Debug, Clone, PartialEq)]
pub struct PodGone {
    /// The pod's UID.
    pub uid: String,
    /// The generation after the last [`PodState`].
    pub generation: u64,
    /// Its last status.
    pub status: PodStatus,
}

/// Something to be recorded as a Kubernetes event on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// True for a `Warning`.
    pub warning: bool,
    /// `Pulling`, `Created` ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// The part of the pod that it is about, `spec.containers{nginx}`; empty for the pod as a whole.
    pub field_path: String,
    /// When it happened.
    pub time: Option<Timestamp>,
}

/// One element of the stream of pods.
#[derive(Debug, Clone, PartialEq)]
pub enum PodChange {
    /// All pods; the first element, and only the first.
    List(Vec<PodState>),
    /// A pod that is new or changed.
    Changed(PodState),
    /// A pod that has ended and is forgotten by the agent.
    Gone(PodGone),
    /// An event to record.
    Event(PodEvent),
}

/// Which log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The pod's UID.
    pub uid: String,
    /// The container.
    pub container: String,
    /// Go on with new lines until the container has ended.
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<i64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Put each line's time before it.
    pub timestamps: bool,
    /// End after so many bytes.
    pub limit_bytes: Option<i64>,
}

/// What a host is and how it fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The machine's UUID.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// Kernel version.
    pub kernel_version: String,
    /// Name of the distribution.
    pub os_image: String,
    /// `linux`.
    pub operating_system: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `crun://1.8.1`.
    pub container_runtime_version: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Processors, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Size of the store's file system, in bytes.
    pub ephemeral_storage_bytes: u64,
    /// How many pods the host takes.
    pub max_pods: u32,
    /// Addresses of the pods; empty when the agent gives none.
    pub pod_cidr: String,
    /// Images that the host's caches hold.
    pub images: Vec<HostImage>,
    /// Says how short the store is of room, when it is.
    pub disk_pressure: Option<String>,
    /// Says how short the host is of memory, when it is.
    pub memory_pressure: Option<String>,
    /// `erofs` or `directory`.
    pub snapshotter: String,
    /// Says why the agent cannot run pods, when it cannot.
    pub not_ready: Option<String>,
}

/// An image that a host holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostImage {
    /// `repo:tag` and `repo@sha256:...`.
    pub names: Vec<String>,
    /// Unpacked size in bytes.
    pub size_bytes: u64,
}

/// Use of processor and memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// When it was measured.
    pub time: Option<Timestamp>,
    /// Of the host.
    pub usage: Usage,
    /// Of each pod.
    pub pods: Vec<PodStats>,
}

/// Use by a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodStats {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Of each container.
    pub containers: Vec<ContainerStats>,
}

/// Use by a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// The container's name.
    pub name: String,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// Its use.
    pub usage: Usage,
}

/// What is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the start, in nanoseconds.
    pub cpu_core_nanoseconds: u64,
    /// Memory charged, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory charged less inactive file pages, in bytes.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, in bytes.
    pub memory_rss_bytes: u64,
}

/// An image cache to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageCacheBuild {
    /// `imc-...`.
    pub id: String,
    /// Name of the ImageCache object.
    pub name: String,
    /// References as the user wrote them.
    pub images: Vec<String>,
    /// Registry logins, in the order in which they are to be tried.
    pub credentials: Vec<RegistryCredential>,
    /// Registry hosts that are spoken to over plain http.
    pub plain_http_registries: Vec<String>,
    /// Registry hosts whose certificate is not verified.
    pub insecure_registries: Vec<String>,
    /// The most that the images may take, in bytes; 0 for no limit.
    pub size_limit_bytes: u64,
    /// Another text than before has the images fetched again, also those that the host holds.
    pub refresh: String,
}

/// One element of the stream of image caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheChange {
    /// All caches; the first element, and only the first.
    List(Vec<CacheState>),
    /// A cache that is new or changed.
    Changed(CacheState),
    /// The id of a cache that has been deleted.
    Deleted(String),
}

/// Where a build stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CachePhase {
    /// Images are being pulled.
    #[default]
    Creating,
    /// Every image is complete on the host.
    Ready,
    /// The first build failed.
    Failed,
    /// A rebuild runs; the old content serves.
    Updating,
    /// A rebuild failed; the old content serves.
    UpdateFailed,
    /// The first build came to no end, or the host has lost what it held; it waits to be asked again.
    Interrupted,
    /// A rebuild came to no end and waits to be asked for again; the old content serves.
    UpdateInterrupted,
}

/// What a host knows of an image cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheState {
    /// `imc-...`.
    pub id: String,
    /// Name of the ImageCache object.
    pub name: String,
    /// Grows with each change of this cache.
    pub generation: u64,
    /// Where the build stands.
    pub phase: CachePhase,
    /// 0 to 100.
    pub progress_percent: u32,
    /// Why the build failed; empty otherwise.
    pub reason: String,
    /// The `refresh` that the newest build was asked for with.
    pub refresh: String,
    /// What it holds, once known.
    pub images: Vec<CachedImage>,
    /// The newest steps of the build, oldest first.
    pub events: Vec<BuildEvent>,
    /// When the build began.
    pub started: Option<Timestamp>,
    /// When it last changed.
    pub last_updated: Option<Timestamp>,
    /// Whether the host finds out by itself which pods may have a private image.
    pub verifies_credentials: bool,
}

/// One image of a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachedImage {
    /// As the user wrote it.
    pub reference: String,
    /// Digest of the platform's manifest.
    pub manifest_digest: String,
    /// Digest of the index that the manifest was chosen from; empty for none.
    pub index_digest: String,
    /// Unpacked size in bytes.
    pub size_bytes: u64,
}

/// One step of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildEvent {
    /// The image that it is about, or the cache's name.
    pub name: String,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// True for a `Warning`.
    pub warning: bool,
    /// When it happened.
    pub time: Option<Timestamp>,
}
