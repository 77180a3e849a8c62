//! Makes room on the disk: carries out what [`crate::store::eviction`] has planned.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{SnapshotError, Snapshotter};
use crate::digest::Digest;
use crate::store::{Store, durable, eviction, note};

/// Removes layers that nobody uses until `needed_bytes` are freed or there are none left; says how many were. Blocks, and
/// keeps others from pinning layers for the moment in which these go out of sight.
///
/// # Errors
/// When the store cannot be read or a file cannot be removed; what was removed before stays removed.
pub fn make_room(store: &Store, snapshotter: &dyn Snapshotter, needed_bytes: u64) -> Result<u64, SnapshotError> {
    let mut hidden = Vec::new();
    let planned = store.pins().while_unchanged(|pinned| hide(store, snapshotter, pinned, needed_bytes, &mut hidden));
    // Also when hiding stopped in the middle.
    for path in hidden {
        durable::remove(&path).map_err(|error| SnapshotError::io("remove", &path, 0, error))?;
    }
    planned
}

fn hide(
    store: &Store,
    snapshotter: &dyn Snapshotter,
    pinned: &HashSet<Digest>,
    needed_bytes: u64,
    hidden: &mut Vec<PathBuf>,
) -> Result<u64, SnapshotError> {
    let unreadable = |error| SnapshotError::Unreadable { source: Box::new(error) };
    let (layers, images) = (store.layers().map_err(unreadable)?, store.images().map_err(unreadable)?);
    let plan = eviction::plan(&layers, &images, pinned, needed_bytes);
    for manifest in &plan.images {
        note(store.index().remove_image(manifest));
        snapshotter.remove_image(manifest)?;
    }
    for diff_id in &plan.layers {
        note(store.index().remove_layer(diff_id));
        hidden.extend(snapshotter.hide_layer(diff_id)?);
        tracing::info!(%diff_id, "removed a layer to make room");
    }
    Ok(plan.freed_bytes)
}
