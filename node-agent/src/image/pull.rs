//! Pulling one layer: receive and hash | inflate | write, each on a thread of its own, through bounded channels of recycled
//! buffers. Nothing of a layer is visible before its compressed bytes are verified and its writer has finished.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{
    bandwidth::Bandwidth,
    partial::{Lease, Partials},
    pull_plan::{Content, LayerKeeper, PlannedLayer},
    receive::{Kept, Sink, Stopped, Transfer},
    route::{Route, Verdict},
    single_flight::Progress,
    unpack::Unpack,
};
use crate::{
    digest::Digest,
    meters::Meters,
    registry::{RegistryError, Repository},
    snapshot::{self, Layer, SnapshotError, Snapshotter},
    store::Store,
};

/// Compressed pieces on their way to the inflater. A piece is what one read from the connection gave, half a megabyte at
/// most.
const PIECES: usize = 4;
/// The largest image configuration.
const MAX_CONFIG: u64 = 8 << 20;

/// Why a layer could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry does not keep it, and need not.
    #[error(
        "layer {digest} is foreign, its registry need not have it and does not: push the image with its foreign layers"
    )]
    Foreign {
        /// Of the layer's blob.
        digest: Digest,
        /// What the registry says.
        source: Box<RegistryError>,
    },
    /// It could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It is not compressed as it should be.
    #[error("decompress layer {digest}")]
    Inflate {
        /// Of the layer's blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A thread of the pull ended without a word.
    #[error("pull of {0} ended unexpectedly")]
    Interrupted(Digest),
}

impl PullError {
    /// Whether another login may get what this one could not.
    pub(super) fn is_about_access(&self) -> bool {
        match self {
            Self::Registry(err) => err.is_about_access(),
            Self::Foreign { source, .. } => source.is_about_access(),
            Self::Snapshot(_) | Self::Inflate { .. } | Self::Interrupted(_) => false,
        }
    }
}

/// What pulls need.
#[derive(Debug, Clone)]
pub(super) struct Puller {
    pub(super) store: Arc<Store>,
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) partials: Partials,
    pub(super) bandwidth: Arc<Bandwidth>,
    pub(super) meters: Meters,
    pub(super) tasks: TaskTracker,
}

/// How one pass over a layer ended, when not well.
enum Pass {
    /// Again, from the first byte or from what is kept.
    Again,
    Failed(PullError),
    /// It failed, and what was kept of an earlier transfer may be the cause: it may be torn.
    Doubtful(PullError),
    /// The errors are the sources'.
    Unserved,
}

impl Pass {
    /// The end of a pass that began with what was kept: it fails before all has come, and so before its digest tells.
    fn of_kept(err: PullError) -> Self {
        let may_be_torn = matches!(
            err,
            PullError::Inflate { .. }
                | PullError::Snapshot(SnapshotError::MalformedTar(_) | SnapshotError::LimitExceeded(_))
        );
        if may_be_torn { Self::Doubtful(err) } else { Self::Failed(err) }
    }
}

impl Puller {
    /// Brings a layer into the store, unless it is there.
    ///
    /// # Errors
    /// After a few tries; nothing of it is visible then.
    pub(super) async fn layer(
        &self,
        repository: &dyn Repository,
        layer: &PlannedLayer,
        progress: &Progress,
    ) -> Result<Layer, PullError> {
        // It may have come since the plan was made.
        let (snapshotter, diff_id) = (Arc::clone(&self.snapshotter), layer.diff_id);
        if let Ok(Some(here)) = self.tasks.spawn_blocking(move || snapshotter.layer(&diff_id)).await {
            return Ok(here);
        }
        self.admit(layer)?;
        let mut route = Route::new(repository.sources()?);
        // Held over all passes, so that nobody else takes up what is kept in between.
        let mut lease = self.partials.lease(&layer.blob);
        loop {
            match self.one_pass(repository, layer, progress, &mut route, lease.as_ref()).await {
                Ok(layer) => {
                    self.meters.layers.inc();
                    return Ok(layer);
                }
                Err(Pass::Again) => progress.set(0),
                Err(Pass::Failed(PullError::Snapshot(SnapshotError::DiskFull { needed_bytes, .. })))
                    if self.make_room(needed_bytes.saturating_add(kept_bytes(lease.as_ref(), layer))).await =>
                {
                    progress.set(0);
                }
                Err(Pass::Doubtful(err)) => {
                    let blob = layer.blob.digest;
                    tracing::warn!(%blob, error = %crate::chain::Chain(&err), "what was kept of a download is no good");
                    // Without a lease nothing is kept, so this comes once.
                    self.forget_partial(lease.take().as_ref(), layer.blob.digest).await;
                    progress.set(0);
                }
                Err(Pass::Failed(err)) => {
                    // What is kept would end in the same way, or takes room that the layer needs.
                    let kept = lease.is_some();
                    self.forget_partial(lease.take().as_ref(), layer.blob.digest).await;
                    if !kept || !matches!(err, PullError::Snapshot(SnapshotError::DiskFull { .. })) {
                        return Err(err);
                    }
                    progress.set(0);
                }
                Err(Pass::Unserved) => return Err(unserved_layer(route, repository, layer)),
            }
        }
    }

    /// Refuses what is too large by what its manifest says: before anything is fetched, or goes to make room for it.
    fn admit(&self, layer: &PlannedLayer) -> Result<(), PullError> {
        let (claimed, limit) = (layer.plain_bytes_at_least(), self.snapshotter.largest_layer_bytes());
        if claimed <= limit {
            return Ok(());
        }
        let what = format!(
            "the manifest says that {} has {claimed} bytes, more than {limit}, the bound set by --max-layer-bytes",
            layer.blob.digest
        );
        Err(SnapshotError::LimitExceeded(what).into())
    }

    async fn one_pass(
        &self,
        repository: &dyn Repository,
        layer: &PlannedLayer,
        progress: &Progress,
        route: &mut Route,
        lease: Option<&Lease>,
    ) -> Result<Layer, Pass> {
        let partial = match lease.cloned() {
            Some(lease) => {
                let (partials, content) = (self.partials.clone(), layer.blob);
                self.tasks.spawn_blocking(move || partials.open(&content, lease)).await.ok().flatten()
            }
            None => None,
        };
        let kept = partial.as_ref().map(|partial| Kept { path: partial.path().to_owned(), bytes: partial.bytes() });
        let begins_with_kept = kept.as_ref().is_some_and(|kept| kept.bytes > 0);
        let failed: fn(PullError) -> Pass = if begins_with_kept { Pass::of_kept } else { Pass::Failed };
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpack =
            Unpack { store: Arc::clone(&self.store), snapshotter: Arc::clone(&self.snapshotter), layer: *layer };
        let unpacking = self.tasks.spawn_blocking(move || unpack.run(receiver, partial));
        let transfer = self.transfer(repository, layer.blob, progress);
        let received = transfer.receive(route, kept, Sink::Layer(&sender)).await;
        drop(sender);
        // The writer takes back what it wrote; whoever tries again must not meet it.
        let unpacked = unpacking.await;
        let stopped = match received {
            // The other side is gone because it failed, and knows why; or it is done.
            Ok(()) | Err(Stopped::Closed) => {
                let interrupted = PullError::Interrupted(layer.blob.digest);
                return unpacked.unwrap_or(Err(interrupted)).map_err(failed);
            }
            Err(stopped) => stopped,
        };
        // What the disk has no room for does not fit whatever a source had to say.
        if let Ok(Err(err @ PullError::Snapshot(SnapshotError::DiskFull { .. }))) = unpacked {
            return Err(Pass::Failed(err));
        }
        if matches!(stopped, Stopped::Wrong(_) | Stopped::Abandoned(Verdict::BeginAnew)) {
            tracing::warn!(blob = %layer.blob.digest, repository = repository.name(), ?stopped, "wrong content is taken back");
            self.forget_partial(lease, layer.blob.digest).await;
        }
        match stopped {
            Stopped::Wrong(Verdict::BeginAnew) | Stopped::Abandoned(Verdict::BeginAnew) => Err(Pass::Again),
            Stopped::Wrong(Verdict::GiveUp) | Stopped::Abandoned(Verdict::GiveUp) | Stopped::Closed => {
                Err(Pass::Unserved)
            }
        }
    }

    fn transfer<'a>(
        &'a self,
        repository: &'a dyn Repository,
        content: Content,
        progress: &'a Progress,
    ) -> Transfer<'a> {
        Transfer { repository, content, progress, bandwidth: &self.bandwidth, meters: &self.meters }
    }

    async fn forget_partial(&self, lease: Option<&Lease>, digest: Digest) {
        if let Some(lease) = lease {
            let (partials, _held) = (self.partials.clone(), lease);
            // One that stays is found wrong again.
            let _ = self.tasks.spawn_blocking(move || partials.remove(&digest)).await;
        }
    }

    /// Removes what nobody uses; says whether there was any. Waits until it is known what is in use.
    async fn make_room(&self, needed_bytes: u64) -> bool {
        let partials = self.partials.clone();
        if self.tasks.spawn_blocking(move || partials.remove_idle() > 0).await.unwrap_or(false) {
            return true;
        }
        self.store.pins().known().await;
        let (store, snapshotter) = (Arc::clone(&self.store), Arc::clone(&self.snapshotter));
        self.tasks.spawn_blocking(move || free(&store, snapshotter.as_ref(), needed_bytes)).await.unwrap_or(false)
    }

    /// Brings a small blob into memory.
    ///
    /// # Errors
    /// After a few tries.
    pub(super) async fn config(&self, repository: &dyn Repository, content: &Content) -> Result<Bytes, PullError> {
        if content.size > MAX_CONFIG {
            let limit_bytes = MAX_CONFIG;
            let what = format!("configuration {}", content.digest);
            let url = repository.name().to_owned();
            return Err(RegistryError::TooLong { what, url, limit_bytes }.into());
        }
        let mut route = Route::new(repository.sources()?);
        let progress = Progress::default();
        let transfer = self.transfer(repository, *content, &progress);
        loop {
            let mut bytes = Vec::new();
            match transfer.receive(&mut route, None, Sink::Memory(&mut bytes)).await {
                Ok(()) => return Ok(bytes.into()),
                Err(Stopped::Wrong(Verdict::BeginAnew) | Stopped::Abandoned(Verdict::BeginAnew)) => {}
                Err(Stopped::Wrong(Verdict::GiveUp) | Stopped::Abandoned(Verdict::GiveUp) | Stopped::Closed) => break,
            }
        }
        Err(unserved(route, repository, content))
    }
}

/// What each source had to say of a layer.
fn unserved_layer(route: Route, repository: &dyn Repository, layer: &PlannedLayer) -> PullError {
    match (layer.keeper, unserved(route, repository, &layer.blob)) {
        (LayerKeeper::Foreign, PullError::Registry(source)) if source.is_not_found() => {
            PullError::Foreign { digest: layer.blob.digest, source: Box::new(source) }
        }
        (LayerKeeper::Foreign | LayerKeeper::Registry, err) => err,
    }
}

/// What the partial download of a layer may come to, where it has one.
fn kept_bytes(lease: Option<&Lease>, layer: &PlannedLayer) -> u64 {
    lease.map_or(0, |_| layer.blob.size)
}

/// What each source had to say.
fn unserved(route: Route, repository: &dyn Repository, content: &Content) -> PullError {
    let otherwise = || RegistryError::Malformed {
        url: repository.name().to_owned(),
        why: format!("{} is served by nobody", content.digest),
    };
    route.into_error(otherwise).into()
}

/// Does something that takes disk space; where there is none, again after unused layers have made room. Blocks.
pub(super) fn with_room<T>(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    more_bytes: u64,
    act: impl Fn() -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    loop {
        match act() {
            Err(SnapshotError::DiskFull { path, needed_bytes, free_bytes }) => {
                // Each round has fewer layers left, so it ends.
                if !free(store, snapshotter, needed_bytes.saturating_add(more_bytes)) {
                    return Err(SnapshotError::DiskFull { path, needed_bytes, free_bytes });
                }
            }
            other => return other,
        }
    }
}

/// Removes unused layers; says whether there were any. Blocks.
fn free(store: &Store, snapshotter: &dyn Snapshotter, needed_bytes: u64) -> bool {
    match snapshot::make_room(store, snapshotter, needed_bytes.max(1)) {
        Ok(freed_bytes) => freed_bytes > 0,
        Err(err) => {
            tracing::warn!(error = %crate::chain::Chain(&err), "make room in the store");
            false
        }
    }
}

/// Now, for the store's record of last use.
pub(super) fn unix_seconds() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}
