//! From a reference to a manifest for this platform and its configuration, at the registry or from what is kept here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use oci_spec::image::ImageConfiguration;
use tokio_util::task::TaskTracker;

use super::{
    documents::Documents,
    pull::{PullError, Puller},
    pull_plan::{self, Content, Document, Manifest, PlanError, PlannedLayer, Platform},
    single_flight::Flights,
};
use crate::{
    digest::Digest,
    registry::{Entry, Reference, Repository, Resolve},
    snapshot::ImageLayers,
    store::StoreError,
};

/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 3;
/// Documents that are looked at for one image. An index may have any number of entries that do not say what they are for.
const MAX_DOCUMENTS: usize = 32;
/// References whose last digest is remembered.
const MAX_REMEMBERED: usize = 4096;

/// An image, known in full.
#[derive(Debug, Clone)]
pub(super) struct ResolvedImage {
    /// What the reference led to: the index where there is one, else the manifest.
    pub(super) top: Digest,
    /// The platform's manifest.
    pub(super) manifest: Digest,
    /// Whether the manifest's content came from the registry just now, and not from what is kept here.
    pub(super) came: bool,
    pub(super) config: Arc<ImageConfiguration>,
    /// Lowest first.
    pub(super) layers: Vec<PlannedLayer>,
    /// Compressed layers and configuration, what engines report as an image's size.
    pub(super) transfer_bytes: u64,
}

impl ResolvedImage {
    pub(super) fn image_layers(&self) -> ImageLayers {
        let diff_ids = self.layers.iter().map(|layer| layer.diff_id).collect();
        ImageLayers { manifest: self.manifest, diff_ids }
    }
}

/// Why an image is not known in full.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ResolveError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Pull(Arc<PullError>),
    #[error(transparent)]
    File(Arc<StoreError>),
    /// It is not kept here.
    #[error("{0} is not in the store")]
    Missing(Digest),
    /// A task ended without a word.
    #[error("{0} was not read: the agent is ending")]
    Interrupted(Digest),
}

/// Resolves images.
#[derive(Debug)]
pub(super) struct Resolver {
    platform: Platform,
    own: Keeper,
    configs: Flights<(String, Digest), Result<Bytes, ResolveError>>,
    /// What references led to last: a hint that the content is likely here.
    last: Mutex<HashMap<String, Digest>>,
}

/// A manifest or index.
#[derive(Debug)]
struct Found {
    bytes: Bytes,
    /// From the registry, just now.
    came: bool,
}

/// Brings small documents and keeps them.
#[derive(Debug, Clone)]
struct Keeper {
    documents: Documents,
    puller: Puller,
    tasks: TaskTracker,
}

impl Resolver {
    pub(super) fn new(documents: Documents, platform: Platform, puller: Puller, tasks: TaskTracker) -> Self {
        let configs = Flights::new(tasks.clone());
        Self { platform, own: Keeper { documents, puller, tasks }, configs, last: Mutex::default() }
    }

    /// Asks the registry what the reference leads to, and says what the request was let in with. What has been read before
    /// is not transferred again.
    pub(super) async fn at_registry(
        &self,
        reference: &Reference,
        repository: &Arc<dyn Repository>,
    ) -> Result<(ResolvedImage, Entry), ResolveError> {
        let name = reference.to_string();
        let hint = self.last.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
        let how = if hint { Resolve::DigestOnly } else { Resolve::WithContent };
        let pull_error = |err| ResolveError::Pull(Arc::new(PullError::Registry(err)));
        let found = repository.resolve(&reference.target(), how).await.map_err(pull_error)?;
        let top = found.digest;
        let content = match found.content {
            Some(content) => {
                self.own.keep(top, content.clone()).await?;
                Found { bytes: content, came: true }
            }
            None => self.document(top, Some(repository)).await?,
        };
        let image = self.behind_document(top, content, Some(repository)).await?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MAX_REMEMBERED {
            last.clear();
        }
        last.insert(name, top);
        Ok((image, found.entry))
    }

    /// The image from what is kept here alone.
    pub(super) async fn in_store(&self, digest: Digest) -> Result<ResolvedImage, ResolveError> {
        let content = self.document(digest, None).await?;
        self.behind_document(digest, content, None).await
    }

    async fn behind_document(
        &self,
        top: Digest,
        content: Found,
        repository: Option<&Arc<dyn Repository>>,
    ) -> Result<ResolvedImage, ResolveError> {
        // What is still to be looked at, the next one last; with how many indexes each lies in.
        let (mut ahead, mut known, mut failure) = (vec![(top, 0)], Some(content), None);
        for _ in 0..MAX_DOCUMENTS {
            let Some((digest, depth)) = ahead.pop() else { break };
            let content = match known.take() {
                Some(content) => content,
                None => self.document(digest, repository).await?,
            };
            let tried = match pull_plan::read_document(&content.bytes, digest)? {
                Document::Index(_) if depth == MAX_DEPTH => {
                    let why = format!("more than {MAX_DEPTH} indexes lie within each other");
                    return Err(PlanError::Malformed { digest: top, why }.into());
                }
                Document::Index(entries) => pull_plan::choose(&entries, &self.platform, digest).map(|chosen| {
                    ahead.extend(chosen.into_iter().rev().map(|digest| (digest, depth + 1)));
                    None
                }),
                Document::Image(manifest) => match self.image(top, digest, &manifest, repository).await {
                    Ok(image) => Ok(Some(ResolvedImage { came: content.came, ..image })),
                    Err(ResolveError::Plan(err)) => Err(err),
                    Err(other) => return Err(other),
                },
            };
            match tried {
                Ok(Some(image)) => return Ok(image),
                Ok(None) => {}
                // Another entry may be for this host: one that does not say what it is for was a guess.
                Err(err) if err.is_for_others() => failure = failure.or(Some(err)),
                Err(err) => return Err(err.into()),
            }
        }
        let why = || format!("none of the first {MAX_DOCUMENTS} documents behind it is an image for this host");
        Err(failure.unwrap_or_else(|| PlanError::Malformed { digest: top, why: why() }).into())
    }

    async fn image(
        &self,
        top: Digest,
        digest: Digest,
        manifest: &Manifest,
        repository: Option<&Arc<dyn Repository>>,
    ) -> Result<ResolvedImage, ResolveError> {
        let bytes = self.config(&manifest.config, repository).await?;
        let config: ImageConfiguration = serde_json::from_slice(&bytes)
            .map_err(|err| PlanError::Malformed { digest: manifest.config.digest, why: err.to_string() })?;
        let layers = pull_plan::layers(manifest, &config, &self.platform, digest)?;
        let transfer_bytes = layers.iter().map(|layer| layer.blob.size).fold(manifest.config.size, u64::saturating_add);
        Ok(ResolvedImage { top, manifest: digest, came: false, config: Arc::new(config), layers, transfer_bytes })
    }

    /// A manifest or index, from here or from the repository.
    async fn document(&self, digest: Digest, repository: Option<&Arc<dyn Repository>>) -> Result<Found, ResolveError> {
        if let Some(bytes) = self.own.kept(digest).await? {
            return Ok(Found { bytes, came: false });
        }
        let repository = repository.ok_or(ResolveError::Missing(digest))?;
        let bytes = repository.manifest(&digest).await;
        let bytes = bytes.map_err(|err| ResolveError::Pull(Arc::new(PullError::Registry(err))))?;
        self.own.keep(digest, bytes.clone()).await?;
        Ok(Found { bytes, came: true })
    }

    async fn config(&self, wanted: &Content, repository: Option<&Arc<dyn Repository>>) -> Result<Bytes, ResolveError> {
        if let Some(content) = self.own.kept(wanted.digest).await? {
            return Ok(content);
        }
        let repository = repository.ok_or(ResolveError::Missing(wanted.digest))?;
        let key = (repository.name().to_owned(), wanted.digest);
        let passenger = self.configs.join(key, |_| {
            let (this, repository, wanted) = (self.own.clone(), Arc::clone(repository), *wanted);
            async move {
                // It may have come since we looked.
                if let Some(content) = this.kept(wanted.digest).await? {
                    return Ok(content);
                }
                let content = this.puller.config(repository.as_ref(), &wanted).await;
                let content = content.map_err(|err| ResolveError::Pull(Arc::new(err)))?;
                this.keep(wanted.digest, content.clone()).await?;
                Ok(content)
            }
        });
        passenger.outcome().await.ok_or(ResolveError::Interrupted(wanted.digest))?
    }
}

impl Keeper {
    async fn kept(&self, digest: Digest) -> Result<Option<Bytes>, ResolveError> {
        let documents = self.documents.clone();
        let read = self.tasks.spawn_blocking(move || documents.get(&digest)).await;
        Ok(read.map_err(|_| ResolveError::Interrupted(digest))?.map(Bytes::from))
    }

    async fn keep(&self, digest: Digest, content: Bytes) -> Result<(), ResolveError> {
        let documents = self.documents.clone();
        let kept = self.tasks.spawn_blocking(move || documents.put(&digest, &content)).await;
        kept.map_err(|_| ResolveError::Interrupted(digest))?.map_err(|err| ResolveError::File(Arc::new(err)))
    }
}
