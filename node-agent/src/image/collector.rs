//! The task that removes what nobody uses: layers by the rules of [`crate::store::eviction`], and the documents of images
//! that are gone.
//!
//! It looks when a layer has come, which is when the disk gets fuller by our doing, and every few minutes, because time
//! passes and others write to the disk without a word.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::MissedTickBehavior;

use super::{
    pull,
    service::{Engine, ImageService},
};
use crate::{
    chain::Chain,
    digest::Digest,
    meters::Meters,
    snapshot::{self, Collected, SnapshotError, Snapshotter},
    store::{Store, eviction::Rules},
};

/// How often it looks when nothing has come (the kubelet's `ImageGCPeriod`).
const EVERY: Duration = Duration::from_secs(5 * 60);
/// A document that no image here needs stays so long: the image that needs it may be on its way.
const DOCUMENT_AGE: Duration = Duration::from_secs(60 * 60);

impl ImageService {
    /// Begins to remove what nobody uses, until the service is shut down. For after the running containers have been
    /// adopted: what they run on must be pinned by then.
    pub fn collect_garbage(&self, rules: Rules, meters: Meters) {
        let collector = Collector {
            store: Arc::clone(&self.store),
            snapshotter: Arc::clone(&self.snapshotter),
            engine: Arc::clone(&self.engine),
            caches: self.watch_caches(),
            rules,
            meters,
            short_of_bytes: 0,
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                // What is being removed is removed to its end, on a blocking thread.
                () = collector.run() => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

struct Collector {
    store: Arc<Store>,
    snapshotter: Arc<dyn Snapshotter>,
    engine: Arc<Engine>,
    caches: tokio::sync::watch::Receiver<super::CacheList>,
    rules: Rules,
    meters: Meters,
    /// What the last collection could not find, so that it is told once.
    short_of_bytes: u64,
}

impl Collector {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Neither loses anything by being dropped: a tick comes again, what has come is seen with it.
                _ = tick.tick() => self.sweep_documents().await,
                () = self.store.grown() => {}
            }
            self.collect().await;
        }
    }

    async fn collect(&mut self) {
        let (store, snapshotter, rules) = (Arc::clone(&self.store), Arc::clone(&self.snapshotter), self.rules);
        let collect = move || snapshot::collect(&store, snapshotter.as_ref(), &rules, pull::unix_seconds());
        let result: Result<Collected, SnapshotError> = match self.engine.tasks.spawn_blocking(collect).await {
            Ok(result) => result,
            // The process ends, or it panicked and has been told of.
            Err(_) => return,
        };
        match result {
            Ok(collected) => self.tell(&collected),
            Err(error) => tracing::warn!(error = %Chain(&error), "remove unused layers"),
        }
    }

    fn tell(&mut self, Collected { plan, wanted_bytes }: &Collected) {
        self.meters.evicted(plan.layers.len() as u64, plan.freed_bytes);
        let short_of_bytes = wanted_bytes.saturating_sub(plan.freed_bytes);
        if short_of_bytes > 0 && self.short_of_bytes == 0 {
            tracing::warn!(
                wanted_bytes,
                freed_bytes = plan.freed_bytes,
                "the disk is fuller than --image-gc-high, and what else is on it is in use or young: delete image caches, \
                 or make room beside the store"
            );
        }
        self.short_of_bytes = short_of_bytes;
    }

    /// Removes manifests, configurations and sources of images that are neither composed, nor cached, nor in use.
    async fn sweep_documents(&self) {
        let cached = self.caches.borrow().clone();
        let cached = cached.values().flat_map(|cache| &cache.images);
        let mut keep: HashSet<Digest> =
            cached.flat_map(|image| [Some(image.manifest), image.index]).flatten().collect();
        keep.extend(self.engine.mounts.manifests());
        let store = Arc::clone(&self.store);
        let documents = super::documents::Documents(Arc::clone(&store));
        let sweep = move || {
            keep.extend(store.images()?.iter().map(|image| image.manifest));
            #[expect(clippy::disallowed_methods, reason = "compared with the times of files")]
            let now = SystemTime::now();
            documents.sweep(&keep, now.checked_sub(DOCUMENT_AGE).unwrap_or(SystemTime::UNIX_EPOCH))
        };
        match self.engine.tasks.spawn_blocking(sweep).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(removed)) => tracing::info!(removed, "removed documents of images that are gone"),
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "remove documents of images that are gone"),
        }
    }
}

#[cfg(test)]
mod tests;
