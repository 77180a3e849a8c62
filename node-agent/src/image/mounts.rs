//! Who uses which image: pins, mounts and leases.
//!
//! An image is pinned from the moment that somebody wants it, mounted when somebody runs on it or a cache holds it, and
//! unmounted in the background when the last lease has ended. What is pinned is not evicted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{ImageLease, Lease, pull};
use crate::{
    digest::Digest,
    snapshot::{ImageLayers, MountedImage, SnapshotError, Snapshotter},
    store::{
        Store,
        pins::{self, Holder},
    },
};

/// All images in use.
#[derive(Debug)]
pub(super) struct Mounts {
    store: Arc<Store>,
    snapshotter: Arc<dyn Snapshotter>,
    slots: Mutex<HashMap<Digest, Arc<Slot>>>,
    /// Pins whose use has ended. To give one back may block while layers are being removed.
    ended: Mutex<Vec<pins::Pin>>,
    unused: Notify,
    /// Held for reading while something is being mounted.
    gate: tokio::sync::RwLock<()>,
    tasks: TaskTracker,
}

/// One image in use.
#[derive(Debug)]
struct Slot {
    layers: ImageLayers,
    /// Changed under the lock of [`Mounts::slots`] only.
    users: AtomicUsize,
    /// Held while the mount is being made or taken away.
    mounted: tokio::sync::Mutex<Option<MountedImage>>,
}

impl Slot {
    fn is_unused(&self) -> bool {
        self.users.load(Ordering::SeqCst) == 0
    }
}

/// One use of an image. Also a [`Lease`].
#[derive(Debug)]
struct Use {
    mounts: Weak<Mounts>,
    slot: Arc<Slot>,
    pin: Option<pins::Pin>,
}

impl Lease for Use {}

impl Drop for Use {
    fn drop(&mut self) {
        let Some(mounts) = self.mounts.upgrade() else { return };
        let slots = mounts.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.users.fetch_sub(1, Ordering::SeqCst);
        drop(slots);
        mounts.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(self.pin.take());
        mounts.unused.notify_one();
    }
}

/// A pin: the image's layers stay, whether it is mounted or not.
#[derive(Debug, Clone)]
pub(super) struct Pin(Arc<Use>);

impl From<Pin> for ImageLease {
    fn from(pin: Pin) -> Self {
        Self::new(pin.0)
    }
}

impl Mounts {
    /// Nothing in use. A task of `tasks` unmounts what has no user any more, until `stop`.
    pub(super) fn new(
        store: Arc<Store>,
        snapshotter: Arc<dyn Snapshotter>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let made = Arc::new(Self {
            store,
            snapshotter,
            slots: Mutex::default(),
            ended: Mutex::default(),
            unused: Notify::new(),
            gate: tokio::sync::RwLock::default(),
            tasks: tasks.clone(),
        });
        let mounts = Arc::clone(&made);
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    // A permit that is lost here is of no use to anybody: mounts stay when the process ends.
                    () = mounts.unused.notified() => mounts.release_unused().await,
                    () = stop.cancelled() => return,
                }
            }
        });
        made
    }

    /// Pins an image. What of it is found afterwards stays.
    pub(super) async fn pin(self: &Arc<Self>, holder: Holder, layers: &ImageLayers) -> Result<Pin, SnapshotError> {
        let (store, diff_ids) = (Arc::clone(&self.store), layers.diff_ids.clone());
        let pinned = self.tasks.spawn_blocking(move || store.pins().pin(holder, &diff_ids)).await;
        let pin = pinned.map_err(|err| interrupted("pin", &layers.manifest, err))?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(layers.manifest).or_insert_with(|| {
            let mounted = tokio::sync::Mutex::default();
            Arc::new(Slot { layers: layers.clone(), users: AtomicUsize::new(0), mounted })
        });
        slot.users.fetch_add(1, Ordering::SeqCst);
        Ok(Pin(Arc::new(Use { mounts: Arc::downgrade(self), slot: Arc::clone(slot), pin: Some(pin) })))
    }

    /// The images in use.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter(|(_, slot)| !slot.is_unused()).map(|(manifest, _)| *manifest).collect()
    }

    /// Mounts a pinned image whose layers are all here, or finds it mounted. Where that needs room, it waits until it is known
    /// what is in use.
    pub(super) async fn mount(&self, pin: &Pin) -> Result<MountedImage, SnapshotError> {
        let pins = self.store.pins();
        let could_make_room = pins.are_known();
        match self.mount_now(pin).await {
            Err(SnapshotError::DiskFull { .. }) if !could_make_room => {
                pins.known().await;
                self.mount_now(pin).await
            }
            other => other,
        }
    }

    /// The same without waiting: for those by whom it becomes known what is in use.
    pub(super) async fn mount_now(&self, pin: &Pin) -> Result<MountedImage, SnapshotError> {
        let slot = &pin.0.slot;
        let mut mounted = slot.mounted.lock().await;
        if let Some(mounted) = &*mounted {
            return Ok(mounted.clone());
        }
        let _gate = self.gate.read().await;
        let (store, snapshotter, layers) =
            (Arc::clone(&self.store), Arc::clone(&self.snapshotter), slot.layers.clone());
        let made = self.tasks.spawn_blocking(move || {
            pull::with_room(&store, snapshotter.as_ref(), 0, || snapshotter.compose(&layers))?;
            store.record_image(&layers.manifest, &layers.diff_ids, pull::unix_seconds());
            snapshotter.mount(&layers)
        });
        let made = made.await.map_err(|err| interrupted("mount", &slot.layers.manifest, err))??;
        *mounted = Some(made.clone());
        Ok(made)
    }

    /// Unmounts what an earlier life of this process has left mounted and nobody uses now.
    pub(super) async fn unmount_strangers(&self) {
        let snapshotter = Arc::clone(&self.snapshotter);
        let mounted = self.tasks.spawn_blocking(move || snapshotter.mounted()).await;
        let mounted = match mounted {
            Ok(Ok(mounted)) => mounted,
            Ok(Err(err)) => return tracing::warn!(error = %crate::chain::Chain(&err), "list mounted images"),
            Err(err) => return tracing::warn!(error = %err, "list mounted images"),
        };
        for manifest in mounted {
            let snapshotter = Arc::clone(&self.snapshotter);
            if let Err(err) = self.while_unused(&manifest, move || snapshotter.unmount(&manifest)).await {
                tracing::warn!(%manifest, error = %crate::chain::Chain(&err), "unmount image");
            }
        }
    }

    /// Runs `act` on a thread that may block where nobody uses the image; nothing is mounted meanwhile. Nothing is done
    /// where somebody does, or has until a moment ago.
    pub(super) async fn while_unused<T: Send + 'static>(
        &self,
        manifest: &Digest,
        act: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<Option<T>, SnapshotError> {
        let _nobody_mounts = self.gate.write().await;
        if self.slots.lock().unwrap_or_else(PoisonError::into_inner).contains_key(manifest) {
            return Ok(None);
        }
        let done = self.tasks.spawn_blocking(act).await.map_err(|err| interrupted("work on", manifest, err))?;
        done.map(Some)
    }

    async fn release_unused(&self) {
        let unused: Vec<Arc<Slot>> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.values().filter(|slot| slot.is_unused()).cloned().collect()
        };
        for slot in unused {
            self.release(&slot).await;
        }
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        // A panic in giving pins back would leave them pinned; there is nothing else to do about it.
        let _ = self.tasks.spawn_blocking(move || drop(ended)).await;
    }

    async fn release(&self, slot: &Arc<Slot>) {
        // Whoever pins it from now on waits for this lock before mounting.
        let mut mounted = slot.mounted.lock().await;
        let layers = slot.layers.clone();
        if mounted.is_some() && slot.is_unused() {
            let (store, snapshotter) = (Arc::clone(&self.store), Arc::clone(&self.snapshotter));
            let done = self.tasks.spawn_blocking(move || {
                // Unused from this moment on: what eviction goes by.
                store.touch(&layers.diff_ids, pull::unix_seconds());
                snapshotter.unmount(&layers.manifest)
            });
            match done.await {
                Ok(Ok(())) => *mounted = None,
                Ok(Err(err)) => {
                    let error = crate::chain::Chain(&err);
                    tracing::warn!(manifest = %slot.layers.manifest, %error, "unmount image");
                }
                Err(err) => tracing::warn!(manifest = %slot.layers.manifest, error = %err, "unmount image"),
            }
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if mounted.is_none() && slot.is_unused() {
            slots.remove(&slot.layers.manifest);
        }
    }
}

fn interrupted(action: &'static str, manifest: &Digest, err: tokio::task::JoinError) -> SnapshotError {
    SnapshotError::Io { action, path: manifest.to_string().into(), source: std::io::Error::other(err) }
}
