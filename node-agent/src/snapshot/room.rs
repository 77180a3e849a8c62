//! Removes unused layers: carries out what [`crate::store::eviction`] has planned.

use std::path::PathBuf;

use super::{SnapshotError, Snapshotter};
use crate::store::eviction::{self, Plan, Rules, Stock};
use crate::store::index::{ImageRecord, LayerRecord};
use crate::store::steps::{Step, passed};
use crate::store::{Store, durable, note};

/// Removes layers that nobody uses until `needed_bytes` are freed or there are none left; says how many were. Removes none
/// where that could not be enough. Blocks, and keeps others from pinning layers for the moment in which these go out of sight.
///
/// # Errors
/// When the store cannot be read or a file cannot be removed; what was removed before stays removed.
pub fn make_room(store: &Store, snapshotter: &dyn Snapshotter, needed_bytes: u64) -> Result<u64, SnapshotError> {
    let free_bytes = store.free_bytes();
    Ok(remove(store, snapshotter, |stock| eviction::make_room(stock, free_bytes, needed_bytes))?.freed_bytes)
}

/// Removes everything that nobody uses; says what that was. Blocks, as [`make_room`] does.
///
/// # Errors
/// As [`make_room`] has them.
pub fn prune(store: &Store, snapshotter: &dyn Snapshotter) -> Result<Plan, SnapshotError> {
    remove(store, snapshotter, eviction::everything)
}

/// What [`prune`] would remove.
///
/// # Errors
/// When the store cannot be read.
pub fn plan_prune(store: &Store) -> Result<Plan, SnapshotError> {
    let (layers, images) = stock(store)?;
    let pinned = store.pins().pinned();
    Ok(eviction::everything(Stock { layers: &layers, images: &images, pinned: &pinned }))
}

/// What a collection has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// What was removed.
    pub plan: Plan,
    /// How many bytes would have had to go for the low water mark; 0 below the high one.
    pub wanted_bytes: u64,
}

/// Removes what goes by itself at this moment (seconds since 1970). Blocks, as [`make_room`] does.
///
/// # Errors
/// As [`make_room`] has them.
pub fn collect(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    rules: &Rules,
    now: u64,
) -> Result<Collected, SnapshotError> {
    let disk = store.disk().map_err(SnapshotError::unreadable)?;
    let mut wanted_bytes = 0;
    let plan = remove(store, snapshotter, |stock| {
        let (plan, wanted) = eviction::collect(stock, disk, rules, now);
        wanted_bytes = wanted;
        plan
    })?;
    Ok(Collected { plan, wanted_bytes })
}

fn remove(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    choose: impl FnOnce(Stock<'_>) -> Plan,
) -> Result<Plan, SnapshotError> {
    let mut hidden = Vec::new();
    let removed = store.pins().while_unchanged(|pinned| {
        // Looked at with the pins held: an image that is composed meanwhile would outlive its layers.
        let (layers, images) = stock(store)?;
        let plan = choose(Stock { layers: &layers, images: &images, pinned });
        hide(store, snapshotter, &plan, &mut hidden).map(|()| plan)
    });
    // Also when hiding stopped in the middle.
    for path in hidden {
        passed(Step::Mark("a layer is out of sight and not removed"));
        durable::remove(&path).map_err(|error| SnapshotError::io("remove", &path, 0, error))?;
    }
    // While it is not known what is in use, nothing is removed.
    removed.unwrap_or_else(|| Ok(Plan::default()))
}

fn hide(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    plan: &Plan,
    hidden: &mut Vec<PathBuf>,
) -> Result<(), SnapshotError> {
    for manifest in &plan.images {
        note(store.index().remove_image(manifest));
        passed(Step::Mark("an image is off the index and not removed"));
        snapshotter.remove_image(manifest)?;
    }
    for diff_id in &plan.layers {
        note(store.index().remove_layer(diff_id));
        passed(Step::Mark("a layer is off the index and not removed"));
        hidden.extend(snapshotter.hide_layer(diff_id)?);
        tracing::info!(%diff_id, "removed an unused layer");
    }
    Ok(())
}

fn stock(store: &Store) -> Result<(Vec<LayerRecord>, Vec<ImageRecord>), SnapshotError> {
    Ok((store.layers().map_err(SnapshotError::unreadable)?, store.images().map_err(SnapshotError::unreadable)?))
}
