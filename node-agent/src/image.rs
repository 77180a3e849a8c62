//! Images: from a reference to something that a container can be started on.
//!
//! One rule: only a matched image cache makes an image "already present", and a private one only for pods that may have it
//! ([`verification`]). Everything else is resolved at the registry with the pod's own credentials, and only the layers that
//! the store does not hold are transferred.

mod bandwidth;
mod cache;
mod cached;
mod collector;
#[cfg(test)]
mod crash_tests;
mod documents;
mod fetch;
mod inflate;
pub mod inventory;
mod mounts;
mod partial;
mod pull;
pub mod pull_plan;
mod pull_records;
mod pulls;
mod receive;
mod resolve;
mod route;
mod service;
mod single_flight;
#[cfg(test)]
mod test_snapshotter;
#[cfg(test)]
mod tests;
mod turns;
mod unpack;
pub mod verification;
pub mod verify;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use self::{
    cache::{
        BuildCache, BuildEvent, CacheChange, CacheError, CacheList, CachePhase, CacheState, CachedImage, NodeImage,
        changes,
    },
    pulls::{Moved, PullList, PullState, Waiter},
    service::{ImageConfig, ImageService},
    verification::ChosenCache,
};
use crate::digest::Digest;
pub use crate::registry::{Credential, Login, RegistryAccess};

/// `imagePullPolicy`, as core/v1 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry for the manifest, also on a cache hit.
    Always,
    /// Take it from the matched cache, else ask the registry.
    IfNotPresent,
    /// Take it from the matched cache or fail; the registry is not asked whether the pod may have it either.
    Never,
}

/// A wish for an image.
#[derive(Debug, Clone)]
pub struct EnsureImage {
    /// The reference as the pod has it.
    pub reference: String,
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// How to ask.
    pub access: RegistryAccess,
    /// The image cache that was chosen for the pod.
    pub cache: Option<ChosenCache>,
    /// Whose wish it is, for whoever looks at the pulls.
    pub waiter: Waiter,
}

/// An image that is whole on this host and mounted.
#[derive(Debug, Clone)]
pub struct PresentImage {
    /// The reference in full (`docker.io/library/nginx:latest`), for `status.containerStatuses[].image`.
    pub reference: String,
    /// `repository@sha256:...`, for `status.containerStatuses[].imageID`.
    pub image_id: String,
    /// Digest of the platform's manifest.
    pub manifest: Digest,
    /// What the image says of the process to run.
    pub config: Arc<oci_spec::image::ImageConfiguration>,
    /// Unpacked bytes.
    pub size_bytes: u64,
    /// Lower directories for an overlay, highest first.
    pub lower_dirs: Vec<std::path::PathBuf>,
    /// While a clone of it lives, neither the mount nor the layers go away.
    pub lease: ImageLease,
}

/// Keeps an image from being unmounted or evicted while a clone of it lives.
#[derive(Debug, Clone)]
pub struct ImageLease(#[expect(dead_code, reason = "held for its drop")] Arc<dyn Lease>);

/// What ends with the last clone of an [`ImageLease`].
pub trait Lease: Send + Sync + std::fmt::Debug {}

impl ImageLease {
    /// A lease that ends when `inner` is dropped.
    pub fn new(inner: Arc<dyn Lease>) -> Self {
        Self(inner)
    }
}

/// What happens to an image on its way, in order; a pod turns it into events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageProgress {
    /// The registry is being asked.
    Pulling,
    /// Some of the layers are here.
    Layers(Moved),
    /// The image came from the registry.
    Pulled {
        /// Time for this image, without waiting for others.
        took: Duration,
        /// Time from the wish.
        took_with_waiting: Duration,
        /// Size of the image in bytes, as the kubelet reports it (compressed layers and configuration).
        size_bytes: u64,
    },
    /// The matched cache had it.
    AlreadyPresent,
}

/// Source of images for pods. One transfer a digest, however many ask.
#[async_trait]
pub trait Images: Send + Sync + std::fmt::Debug {
    /// Brings the image here and mounts it. Dropping the future gives up the wish; the transfer ends when nobody wishes
    /// for it any more.
    ///
    /// # Errors
    /// See [`EnsureImageError`]; nothing is left in the store by a failure but layers that are whole.
    async fn ensure(
        &self,
        wish: EnsureImage,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EnsureImageError>;

    /// Finds an image that a container of an earlier life of this process runs on, by its manifest; no registry is asked.
    ///
    /// # Errors
    /// When the store no longer has it.
    async fn adopt(&self, reference: &str, manifest: &Digest) -> Result<PresentImage, EnsureImageError>;
}

/// Why an image is not to be had. The kubelet's reasons are in [`EnsureImageError::reason`].
#[derive(Debug, thiserror::Error)]
pub enum EnsureImageError {
    /// The reference cannot be read.
    #[error("couldn't parse image name {reference:?}: {why}")]
    InvalidReference {
        /// As the pod has it.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// `imagePullPolicy: Never`, and no cache holds it.
    #[error("container image {reference:?} is not present with pull policy of Never")]
    NeverPull {
        /// As the pod has it.
        reference: String,
    },
    /// `imagePullPolicy: Never`, and the cache that holds it does not give it to this pod.
    #[error(
        "container image {reference:?} is not present with pull policy of Never: image cache {cache} has it on this node, \
         but gives it only to pods whose own login is known to pull it: name a Secret that can in imagePullSecrets, and \
         let the pull policy be IfNotPresent"
    )]
    NeverVerified {
        /// As the pod has it.
        reference: String,
        /// The cache.
        cache: String,
    },
    /// The registry did not give it; the text has the cause in full.
    #[error("failed to pull image {reference:?}: {cause}")]
    Pull {
        /// As the pod has it.
        reference: String,
        /// The whole chain of causes.
        cause: String,
    },
}

impl EnsureImageError {
    /// The kubelet's reason for a container that waits because of this (`kubelet/images/types.go`).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidReference { .. } => "InvalidImageName",
            Self::NeverPull { .. } | Self::NeverVerified { .. } => "ErrImageNeverPull",
            Self::Pull { .. } => "ErrImagePull",
        }
    }
}
