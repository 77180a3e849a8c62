//! Another driver over a store that has layers already: after a change of `--snapshotter`, or of the kernel.
//!
//! A layer is of the driver that wrote it, and neither reads the other's. Where no pod runs, the layers of the other one are
//! removed and come again when they are wanted; what pods run on is not taken from under them.

use std::path::Path;
use std::sync::Arc;

use super::{DirectorySnapshotter, Driver, DriverChoice, ErofsSnapshotter, Limits, SnapshotError, Snapshotter, open};
use crate::digest::Digest;
use crate::store::{FoundLayer, Store, note};

/// Whether pods of an earlier life of this process may run on what the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// They may.
    Pods,
    /// None does: the host has restarted, or all have ended.
    Nothing,
}

/// Opens the driver that is wished for over a store that was just opened, as [`open`] does, and removes the layers of the
/// other one. Blocks.
///
/// # Errors
/// When pods may run on layers of the other driver and this one was asked for by name; else as [`open`] has them, or when
/// something cannot be removed.
pub fn open_over(
    choice: DriverChoice,
    store: &Store,
    mounts: &Path,
    limits: Limits,
    running: Running,
) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    let kept = Kept::of(store.found());
    let snapshotter = open(kept.settle(choice, store.layout().root(), running)?, store.layout(), mounts, limits)?;
    let other: &dyn Snapshotter = match snapshotter.driver() {
        Driver::Erofs => &DirectorySnapshotter::new(store.layout().clone(), limits),
        Driver::Directory => &ErofsSnapshotter::new(store.layout().clone(), mounts.to_owned(), limits),
    };
    remove(store, other, kept.of_driver(other.driver()))?;
    Ok(snapshotter)
}

/// The layers of a store by who wrote them.
struct Kept {
    erofs: Vec<Digest>,
    directory: Vec<Digest>,
}

impl Kept {
    fn of(layers: &[FoundLayer]) -> Self {
        let mut kept = Self { erofs: Vec::new(), directory: Vec::new() };
        for layer in layers {
            match layer.driver.as_str() {
                super::erofs_driver::NAME => kept.erofs.push(layer.record.diff_id),
                super::directory::NAME => kept.directory.push(layer.record.diff_id),
                _ => {}
            }
        }
        kept
    }

    fn of_driver(&self, driver: Driver) -> &[Digest] {
        match driver {
            Driver::Erofs => &self.erofs,
            Driver::Directory => &self.directory,
        }
    }

    /// What becomes of a wish.
    fn settle(&self, choice: DriverChoice, root: &Path, running: Running) -> Result<DriverChoice, SnapshotError> {
        let refuse = |found: Driver| {
            let (root, layers) = (root.to_owned(), self.of_driver(found).len());
            Err(SnapshotError::OtherDriver { root, layers, found })
        };
        match (running, choice) {
            (Running::Nothing, _) => Ok(choice),
            (Running::Pods, DriverChoice::Erofs) if !self.directory.is_empty() => refuse(Driver::Directory),
            (Running::Pods, DriverChoice::Directory) if !self.erofs.is_empty() => refuse(Driver::Erofs),
            (Running::Pods, DriverChoice::Auto) if !self.directory.is_empty() => {
                let layers = self.directory.len();
                tracing::info!(layers, "layers stay unpacked directories as long as pods may run on them");
                Ok(DriverChoice::Directory)
            }
            (Running::Pods, DriverChoice::Erofs | DriverChoice::Directory | DriverChoice::Auto) => Ok(choice),
        }
    }
}

/// Removes layers of a driver that is not used any more, with what was made of them.
fn remove(store: &Store, driver: &dyn Snapshotter, layers: &[Digest]) -> Result<(), SnapshotError> {
    for image in store.images().map_err(SnapshotError::unreadable)? {
        if image.diff_ids.iter().any(|diff_id| layers.contains(diff_id)) {
            note(store.index().remove_image(&image.manifest));
            driver.remove_image(&image.manifest)?;
        }
    }
    for manifest in driver.mounted()? {
        driver.unmount(&manifest)?;
    }
    for diff_id in layers {
        note(store.index().remove_layer(diff_id));
        driver.remove_layer(diff_id)?;
    }
    if !layers.is_empty() {
        tracing::warn!(layers = layers.len(), driver = ?driver.driver(), "removed the layers of a driver that is not used any more");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
