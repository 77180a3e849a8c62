//! What the store holds, for whoever runs the host, and the removal of what nobody uses at their word.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::service::ImageService;
use crate::{
    digest::Digest,
    host::disk_use,
    snapshot::{self, Driver, SnapshotError},
    store::{
        Recovered, StoreError,
        eviction::{Disk, Plan},
        index::LayerRecord,
        sources,
    },
};

/// A composed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of the platform's manifest.
    pub manifest: Digest,
    /// Under which references it was pulled, the newest first, and those that caches have for it.
    pub references: Vec<String>,
    /// Its layers, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// Bytes of the plain tars of its layers.
    pub size_bytes: u64,
    /// Ids of the image caches that hold it.
    pub caches: Vec<String>,
    /// Whether a pod, a cache or a pull uses it now.
    pub in_use: bool,
    /// When one of its layers was used last, in seconds since 1970.
    pub last_use: u64,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLayer {
    /// What the index knows.
    pub record: LayerRecord,
    /// Whether a pod, a cache or a pull uses it now.
    pub in_use: bool,
    /// How many composed images have it.
    pub images: usize,
}

/// What takes how much room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The store's folder.
    pub root: PathBuf,
    /// How layers are kept.
    pub driver: Driver,
    /// The file system.
    pub disk: Disk,
    /// How many layers there are.
    pub layers: usize,
    /// Bytes of all layers on disk.
    pub layer_bytes: u64,
    /// Bytes of the layers in use on disk.
    pub used_bytes: u64,
    /// How many composed images there are.
    pub images: usize,
    /// Bytes of what was composed.
    pub image_bytes: u64,
    /// Bytes of manifests and configurations.
    pub document_bytes: u64,
    /// Bytes of downloads and other things in progress.
    pub unfinished_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// What was found when the store was opened.
    pub recovered: Recovered,
}

/// Why the store does not say what it holds.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something cannot be removed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The agent is ending.
    #[error("the node agent is ending")]
    Closed,
}

impl ImageService {
    /// All composed images, by their first reference.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stored_images(&self) -> Result<Vec<StoredImage>, InventoryError> {
        let mut cached: HashMap<Digest, Vec<(String, String)>> = HashMap::new();
        for cache in self.watch_caches().borrow().values() {
            for image in &cache.images {
                cached.entry(image.manifest).or_default().push((cache.id.clone(), image.reference.clone()));
            }
        }
        let in_use: HashSet<Digest> = self.engine.mounts.manifests().into_iter().collect();
        let store = Arc::clone(&self.store);
        let list = move || {
            let layers: HashMap<Digest, LayerRecord> =
                store.layers()?.into_iter().map(|layer| (layer.diff_id, layer)).collect();
            let mut images = Vec::new();
            for image in store.images()? {
                let own: HashMap<&Digest, &LayerRecord> =
                    image.diff_ids.iter().filter_map(|diff_id| layers.get_key_value(diff_id)).collect();
                let held = cached.remove(&image.manifest).unwrap_or_default();
                let pulled = sources::of(store.layout(), &image.manifest).into_iter().map(|source| source.reference);
                let mut references: Vec<String> = pulled.collect();
                let further = held.iter().map(|(_, reference)| reference).filter(|one| !references.contains(one));
                let further: Vec<String> = further.cloned().collect();
                references.extend(further);
                images.push(StoredImage {
                    manifest: image.manifest,
                    references,
                    size_bytes: own.values().map(|layer| layer.size_bytes).sum(),
                    caches: held.into_iter().map(|(id, _)| id).collect(),
                    in_use: in_use.contains(&image.manifest),
                    last_use: own.values().map(|layer| layer.last_use).max().unwrap_or_default(),
                    diff_ids: image.diff_ids,
                });
            }
            images.sort_by(|a, b| (&a.references, a.manifest).cmp(&(&b.references, b.manifest)));
            Ok(images)
        };
        self.blocking(list).await
    }

    /// All layers, the largest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stored_layers(&self) -> Result<Vec<StoredLayer>, InventoryError> {
        let store = Arc::clone(&self.store);
        let list = move || {
            let mut images: BTreeMap<Digest, usize> = BTreeMap::new();
            for image in store.images()? {
                let distinct: HashSet<Digest> = image.diff_ids.into_iter().collect();
                distinct.into_iter().for_each(|diff_id| *images.entry(diff_id).or_default() += 1);
            }
            let pinned = store.pins().pinned();
            let layer = |record: LayerRecord| StoredLayer {
                in_use: pinned.contains(&record.diff_id),
                images: images.get(&record.diff_id).copied().unwrap_or_default(),
                record,
            };
            let mut layers: Vec<StoredLayer> = store.layers()?.into_iter().map(layer).collect();
            layers.sort_by_key(|layer| (std::cmp::Reverse(layer.record.disk_bytes), layer.record.diff_id));
            Ok(layers)
        };
        self.blocking(list).await
    }

    /// What takes how much room.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn usage(&self) -> Result<Usage, InventoryError> {
        let (store, driver) = (Arc::clone(&self.store), self.snapshotter.driver());
        let sum = move || {
            let (layers, pinned, layout) = (store.layers()?, store.pins().pinned(), store.layout());
            let bytes_within = |folder: &Path| disk_use::bytes_within(folder).unwrap_or_default();
            let used = layers.iter().filter(|layer| pinned.contains(&layer.diff_id));
            Ok(Usage {
                root: layout.root().to_owned(),
                driver,
                disk: store.disk()?,
                layers: layers.len(),
                layer_bytes: layers.iter().map(|layer| layer.disk_bytes).sum(),
                used_bytes: used.map(|layer| layer.disk_bytes).sum(),
                images: store.images()?.len(),
                image_bytes: bytes_within(&layout.images()),
                document_bytes: bytes_within(&layout.manifests()),
                unfinished_bytes: bytes_within(&layout.ingest()),
                index_bytes: bytes_within(&layout.index()),
                recovered: *store.recovered(),
            })
        };
        self.blocking(sum).await
    }

    /// Removes all layers and images that nobody uses, or says which ones these are.
    ///
    /// # Errors
    /// When the store cannot be read or something cannot be removed; what was removed before stays removed.
    pub async fn prune(&self, how: Prune) -> Result<Plan, InventoryError> {
        let (store, snapshotter) = (Arc::clone(&self.store), Arc::clone(&self.snapshotter));
        let prune = move || match how {
            Prune::Remove => Ok(snapshot::prune(&store, snapshotter.as_ref())?),
            Prune::OnlySay => Ok(snapshot::plan_prune(&store)?),
        };
        self.blocking(prune).await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, InventoryError> + Send + 'static,
    ) -> Result<T, InventoryError> {
        self.tasks.spawn_blocking(work).await.map_err(|_| InventoryError::Closed)?
    }
}

/// Whether what nobody uses goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// It does.
    Remove,
    /// It is only said what would go.
    OnlySay,
}
