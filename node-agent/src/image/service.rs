//! [`Images`] for pods: the one rule, carried out.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    EnsureImage, EnsureImageError, ImageProgress, Images, PresentImage, PullPolicy,
    bandwidth::Bandwidth,
    cache::{BuildCache, CacheError, CacheList, Held, Keeper, NodeImage},
    documents::Documents,
    fetch::Fetcher,
    mounts::{Mounts, Pin},
    partial::Partials,
    pull::{PullError, Puller},
    pull_plan::Platform,
    pull_records::PullRecords,
    pulls::{Moved, PullList, Pulls},
    resolve::{ResolveError, ResolvedImage, Resolver},
    turns::Turns,
    verification::{self, Rules, Verdict},
};
use crate::{
    chain::Chain,
    digest::Digest,
    meters::Meters,
    registry::{Entry, Reference, Registries, RegistryAccess, RegistryError, Repository},
    snapshot::{SnapshotError, Snapshotter},
    store::{
        Store, StoreError,
        pins::Holder,
        shortage::Shortage,
        sources::{self, Source},
    },
};

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// How many layers come from one registry at once.
    pub max_parallel_layers: usize,
    /// How many layers come from all registries at once.
    pub max_parallel_layers_in_all: usize,
    /// How many bytes a second may come from all registries together.
    pub registry_bandwidth: Option<NonZeroU64>,
    /// Downloads that take longer go on where they were after this process has ended.
    pub resume_over: Duration,
    /// What images are chosen for.
    pub platform: Platform,
    /// Whom images that are here are given to.
    pub rules: Rules,
    /// Where pulls are counted.
    pub meters: Meters,
}

/// The images and image caches of this host. Its tasks end with [`ImageService::shutdown`].
#[derive(Debug)]
pub struct ImageService {
    pub(super) engine: Arc<Engine>,
    pub(super) store: Arc<Store>,
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) rules: Rules,
    caches: Keeper,
    meters: Meters,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Held while the store is verified: once at a time.
    pub(super) verifying: tokio::sync::Mutex<()>,
}

/// What pods and caches pull with.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) registries: Arc<dyn Registries>,
    pub(super) resolver: Resolver,
    pub(super) fetcher: Fetcher,
    pub(super) mounts: Arc<Mounts>,
    pub(super) pulls: Pulls,
    pub(super) records: PullRecords,
    /// Where images came from is noted here.
    pub(super) store: Arc<Store>,
    pub(super) tasks: TaskTracker,
}

/// Why an image could not be had, before it is put into words for a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Pull(Arc<PullError>),
    #[error(transparent)]
    Mount(#[from] SnapshotError),
    #[error("{cause}; {shortage}")]
    Full { cause: String, shortage: Shortage },
    /// The image is here, and not for this pod.
    #[error(
        "{cause}; image cache {cache} has the image on this node, but gives it only to pods whose own login can pull it, \
         and that could not be verified: name a Secret that can in imagePullSecrets"
    )]
    Unverified { cause: String, cache: String },
}

impl EngineError {
    /// Whether another login may get what this one could not.
    pub(super) fn is_about_access(&self) -> bool {
        match self {
            Self::Registry(err) => err.is_about_access(),
            Self::Pull(err) | Self::Resolve(ResolveError::Pull(err)) => err.is_about_access(),
            Self::Resolve(_) | Self::Mount(_) | Self::Full { .. } | Self::Unverified { .. } => false,
        }
    }

    fn is_of_a_full_disk(&self) -> bool {
        match self {
            Self::Pull(err) => matches!(**err, PullError::Snapshot(SnapshotError::DiskFull { .. })),
            Self::Mount(err) => matches!(err, SnapshotError::DiskFull { .. }),
            Self::Registry(_) | Self::Resolve(_) | Self::Full { .. } | Self::Unverified { .. } => false,
        }
    }
}

/// An image whose layers are all here.
#[derive(Debug)]
struct Pulled {
    image: ResolvedImage,
    pin: Pin,
    /// When it was known what has to be fetched.
    planned: Instant,
    /// When the first layer had its turn.
    begun: Option<Instant>,
}

impl Engine {
    /// Asks the registry, fetches what is missing, pins it.
    async fn pull(
        &self,
        reference: &Reference,
        access: &RegistryAccess,
        report: impl FnMut(Moved),
    ) -> Result<Pulled, EngineError> {
        let repository = self.registries.open(reference, access).await?;
        let (image, entry) = self.resolve(reference, &repository).await?;
        // Pinned before looking what is here, so that nothing of it is evicted in between.
        let pin = self.mounts.pin(Holder::Pod, &image.image_layers()).await?;
        let plan = self.fetcher.plan(&image.layers).await;
        let planned = Instant::now();
        let fetch = self.fetcher.fetch(reference, &repository, &plan, report);
        // Beside the transfer: it waits for the disk.
        let (fetched, ()) = tokio::join!(fetch, self.note_pull(reference, access, image.manifest, entry));
        let fetched = match fetched {
            Ok(fetched) => fetched,
            // While it is pinned: what of it is here already counts as in use.
            Err(err) => return Err(self.with_shortage(EngineError::Pull(err)).await),
        };
        Ok(Pulled { image, pin, planned, begun: fetched.begun })
    }

    /// Asks the registry what the reference leads to. Of a manifest that is kept here, its registry has only said the digest,
    /// which anybody may have heard of: who has not been let in to pull it from this repository before has to be given it.
    pub(super) async fn resolve(
        &self,
        reference: &Reference,
        repository: &Arc<dyn Repository>,
    ) -> Result<(ResolvedImage, Entry), EngineError> {
        let (image, entry) = self.resolver.at_registry(reference, repository).await?;
        if !image.came {
            let pulled = self.records.of(image.manifest).await;
            if !verification::is_known(&pulled, &reference.name(), &entry) {
                repository.manifest(&image.manifest).await?;
            }
        }
        Ok((image, entry))
    }

    /// Notes where an image comes from, and who was let in there.
    pub(super) async fn note_pull(
        &self,
        reference: &Reference,
        access: &RegistryAccess,
        manifest: Digest,
        entry: Entry,
    ) {
        tokio::join!(self.note_source(reference, access, manifest), self.records.note(reference, manifest, entry));
    }

    /// Notes where an image comes from, for the day on which a layer of it has to be fetched again. The image is no worse
    /// for it where that fails.
    async fn note_source(&self, reference: &Reference, access: &RegistryAccess, manifest: Digest) {
        let registry = reference.registry().to_owned();
        let source = Source {
            reference: reference.to_string(),
            plain_http: access.plain_http.contains(&registry),
            insecure: access.insecure.contains(&registry),
        };
        let store = Arc::clone(&self.store);
        let noted = self.tasks.spawn_blocking(move || sources::note(store.layout(), &manifest, &source));
        if let Ok(Err(err)) = noted.await {
            tracing::warn!(%manifest, error = %Chain(&err), "note where an image comes from");
        }
    }

    /// Adds to an error of a full disk what of the disk is whose.
    pub(super) async fn with_shortage(&self, err: EngineError) -> EngineError {
        if !err.is_of_a_full_disk() {
            return err;
        }
        let store = Arc::clone(&self.store);
        match self.tasks.spawn_blocking(move || store.shortage()).await {
            Ok(Ok(shortage)) => EngineError::Full { cause: Chain(&err).to_string(), shortage },
            Ok(Err(_)) | Err(_) => err,
        }
    }

    /// Mounts an image whose layers are here.
    async fn present(
        &self,
        reference: &Reference,
        image: &ResolvedImage,
        pin: Pin,
        size_bytes: u64,
    ) -> Result<PresentImage, EngineError> {
        let mounted = match self.mounts.mount(&pin).await {
            Ok(mounted) => mounted,
            Err(err) => return Err(self.with_shortage(err.into()).await),
        };
        Ok(PresentImage {
            reference: reference.to_string(),
            image_id: format!("{}@{}", reference.name(), image.top),
            manifest: image.manifest,
            config: Arc::clone(&image.config),
            size_bytes,
            lower_dirs: mounted.lower_dirs,
            lease: pin.into(),
        })
    }
}

impl ImageService {
    /// Opens what the store holds: caches are found again, and builds that can go on do.
    ///
    /// # Errors
    /// When the caches cannot be read.
    pub async fn open(
        config: ImageConfig,
        store: Arc<Store>,
        registries: Arc<dyn Registries>,
        snapshotter: Arc<dyn Snapshotter>,
    ) -> Result<Arc<Self>, StoreError> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let documents = Documents(Arc::clone(&store));
        let meters = config.meters.clone();
        let pulls = Pulls::new(meters.clone(), tasks.clone());
        let turns = Turns::new(config.max_parallel_layers_in_all, config.max_parallel_layers);
        let puller = Puller {
            store: Arc::clone(&store),
            snapshotter: Arc::clone(&snapshotter),
            partials: Partials::new(Arc::clone(&store), config.resume_over),
            bandwidth: Arc::new(Bandwidth::new(config.registry_bandwidth)),
            meters: config.meters,
            tasks: tasks.clone(),
        };
        let engine = Arc::new(Engine {
            registries,
            resolver: Resolver::new(documents, config.platform, puller.clone(), tasks.clone()),
            fetcher: Fetcher::new(puller, turns, tasks.clone()),
            pulls,
            mounts: Mounts::new(Arc::clone(&store), Arc::clone(&snapshotter), tasks.clone(), stop.clone()),
            records: PullRecords::new(Arc::clone(&store), tasks.clone()),
            store: Arc::clone(&store),
            tasks: tasks.clone(),
        });
        let rules = config.rules;
        let caches = Keeper::open(Arc::clone(&engine), Arc::clone(&store), &tasks, stop.clone()).await?;
        let verifying = tokio::sync::Mutex::default();
        Ok(Arc::new(Self { engine, store, snapshotter, rules, caches, meters, tasks, stop, verifying }))
    }

    /// Starts to build a cache, or to rebuild it when its images differ. Returns when the build is on record; how it goes
    /// is seen in [`ImageService::watch_caches`].
    ///
    /// # Errors
    /// When it cannot be put on record.
    pub async fn build_cache(&self, wish: BuildCache) -> Result<(), CacheError> {
        self.caches.build(wish).await
    }

    /// Forgets a cache and unpins its layers. Running pods are untouched. One that is not there is not an error.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub async fn delete_cache(&self, id: &str) -> Result<(), CacheError> {
        self.caches.delete(id).await
    }

    /// All caches, as they are now and whenever they change. What happened between two looks is in [`super::changes`].
    pub fn watch_caches(&self) -> watch::Receiver<CacheList> {
        self.caches.watch()
    }

    /// The pulls under way, as they are now and whenever they change.
    pub fn watch_pulls(&self) -> watch::Receiver<PullList> {
        self.engine.pulls.watch()
    }

    /// The images of the caches, for the node's status.
    pub fn node_images(&self) -> Vec<NodeImage> {
        self.caches.serving().node_images()
    }

    /// Unmounts images that an earlier life of this process has left and nobody uses. For after the running containers
    /// have been adopted.
    pub async fn unmount_strangers(&self) {
        self.engine.mounts.unmount_strangers().await;
    }

    /// Ends what is under way and waits for it. Mounts stay: containers run on them.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[async_trait]
impl Images for ImageService {
    async fn ensure(
        &self,
        wish: EnsureImage,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EnsureImageError> {
        let reference: Reference = wish.reference.parse().map_err(|err| EnsureImageError::InvalidReference {
            reference: wish.reference.clone(),
            why: format!("{err}"),
        })?;
        let serving = self.caches.serving();
        let held = wish.cache.as_ref().and_then(|cache| Some((cache, serving.find(&cache.id, &reference)?)));
        let result = match (wish.policy, held) {
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {
                self.ensure_from_registry(&reference, &wish, &progress).await
            }
            (PullPolicy::Never, None) => {
                return Err(EnsureImageError::NeverPull { reference: wish.reference });
            }
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some((cache, held))) => {
                match self.verdict(&reference, cache, held, &wish).await {
                    Verdict::Serve => self.ensure_from_cache(&reference, held, &progress).await,
                    Verdict::Ask => self.ensure_after_asking(&reference, (cache, held), &wish, &progress).await,
                    Verdict::Refuse => {
                        let (reference, cache) = (wish.reference, cache.id.clone());
                        return Err(EnsureImageError::NeverVerified { reference, cache });
                    }
                }
            }
        };
        let reference = wish.reference;
        result.map_err(|err| EnsureImageError::Pull { reference, cause: Chain(&err).to_string() })
    }

    async fn adopt(&self, reference: &str, manifest: &Digest) -> Result<PresentImage, EnsureImageError> {
        let parsed: Reference = reference.parse().map_err(|err| EnsureImageError::InvalidReference {
            reference: reference.to_owned(),
            why: format!("{err}"),
        })?;
        let found = async {
            let image = self.engine.resolver.in_store(*manifest).await?;
            let pin = self.engine.mounts.pin(Holder::Pod, &image.image_layers()).await?;
            let size_bytes = self.engine.fetcher.unpacked_bytes(&image.layers).await;
            // Whoever waits until it is known what is in use waits for this.
            if let Err(err) = self.engine.mounts.mount_now(&pin).await {
                return Err(self.engine.with_shortage(err.into()).await);
            }
            self.engine.present(&parsed, &image, pin, size_bytes).await
        };
        found
            .await
            .map_err(|err| EnsureImageError::Pull { reference: reference.to_owned(), cause: Chain(&err).to_string() })
    }
}

impl ImageService {
    /// Asks nobody: the cache was chosen for this pod, it is complete, and it may be given to it.
    pub(super) async fn ensure_from_cache(
        &self,
        reference: &Reference,
        held: &Held,
        progress: &mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EngineError> {
        tell(progress, ImageProgress::AlreadyPresent).await;
        let size_bytes = held.cached.size_bytes;
        let present = self.engine.present(reference, &held.image, held.pin.clone(), size_bytes).await?;
        self.meters.saved(held.image.transfer_bytes);
        Ok(present)
    }

    pub(super) async fn ensure_from_registry(
        &self,
        reference: &Reference,
        wish: &EnsureImage,
        progress: &mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EngineError> {
        let wished = Instant::now();
        tell(progress, ImageProgress::Pulling).await;
        // Its end gives memory back, so it is held until the image is mounted.
        let pull = self.engine.pulls.begin(reference, wish.waiter.clone(), jiff::Timestamp::now());
        let report = |moved: Moved| {
            pull.moved(moved);
            // What is not read in time is out of date.
            let _ = progress.try_send(ImageProgress::Layers(moved));
        };
        let pulled = self.engine.pull(reference, &wish.access, report).await?;
        let waited = pulled.waited();
        let size_bytes = pulled.image.transfer_bytes;
        let unpacked = self.engine.fetcher.unpacked_bytes(&pulled.image.layers).await;
        let present = self.engine.present(reference, &pulled.image, pulled.pin, unpacked).await?;
        let took_with_waiting = wished.elapsed();
        let took = took_with_waiting.saturating_sub(waited);
        tell(progress, ImageProgress::Pulled { took, took_with_waiting, size_bytes }).await;
        Ok(present)
    }
}

impl Pulled {
    /// How long the first layer waited for its turn behind those of other images.
    fn waited(&self) -> std::time::Duration {
        self.begun.map(|begun| begun.saturating_duration_since(self.planned)).unwrap_or_default()
    }
}

/// A reader that has gone no longer wants to know.
async fn tell(progress: &mpsc::Sender<ImageProgress>, what: ImageProgress) {
    let _ = progress.send(what).await;
}
