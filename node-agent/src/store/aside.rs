//! A damaged layer that somebody uses, set aside while it is fetched again: `ingest/<diff id>.damaged`.
//!
//! Its place is free for the new one meanwhile. Mounts go on reading the old tar, which is made right in place once the new
//! one is there. What ends in between is settled at the next start: nothing that was in use is lost by a repair.

use super::layout::{LayerPaths, Layout};
use super::{StoreError, durable, recovery};
use crate::digest::Digest;

/// What has become of a layer that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// A new one is in its place, and whoever has the old one mounted reads the same bytes.
    Replaced,
    /// No new one has come: it is where it was, as damaged as before. That is no worse for anybody.
    PutBack,
}

/// Sets a layer aside.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(layout: &Layout, diff_id: &Digest) -> Result<(), StoreError> {
    let place = layout.layer(diff_id);
    durable::rename(place.directory(), &layout.damaged(diff_id)).map_err(StoreError::io("set aside", place.directory()))
}

/// Ends it.
///
/// # Errors
/// When the disk does not give the new one, or does not take it; the old one stays aside then.
pub fn settle(layout: &Layout, diff_id: &Digest) -> Result<Settled, StoreError> {
    let (aside, place) = (layout.damaged(diff_id), layout.layer(diff_id));
    if recovery::layer_at(place.directory())?.is_none() {
        // What is there, if anything, is no layer.
        durable::remove(place.directory()).map_err(StoreError::io("remove", place.directory()))?;
        durable::rename(&aside, place.directory()).map_err(StoreError::io("put back", &aside))?;
        return Ok(Settled::PutBack);
    }
    let (old, new) = (LayerPaths::at(&aside).tar(), place.tar());
    if old.exists() && new.exists() {
        durable::overwrite(&new, &old).map_err(StoreError::io("repair", &old))?;
    }
    durable::remove(&aside).map_err(StoreError::io("remove", &aside))?;
    Ok(Settled::Replaced)
}
