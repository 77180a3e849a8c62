//! Image caches of this host: named, pinned sets of images whose layers are complete here.
//!
//! `caches/<id>.json` is the truth of a cache; the keeper's task owns all of them while the agent runs. A build pulls like
//! a pod does, through the same single flights. While a rebuild runs, and when it fails, the old content goes on serving.

mod build;
mod builds;
mod caches;
mod keeper;
mod record;
mod serving;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

pub(super) use self::{keeper::Keeper, serving::Held};
use super::RegistryAccess;
use crate::{digest::Digest, store::StoreError};

/// The newest events of a build that are kept, as ECI does.
const MAX_EVENTS: usize = 50;

/// What to cache.
#[derive(Debug, Clone)]
pub struct BuildCache {
    /// `imc-...`.
    pub id: String,
    /// The name of the ImageCache object.
    pub name: String,
    /// References as the user wrote them.
    pub images: Vec<String>,
    /// How to ask for them. Its logins never reach a disk.
    pub access: RegistryAccess,
    /// The most that the images may take unpacked; 0 for no limit.
    pub size_limit_bytes: u64,
    /// Another text than the last time has the images resolved and fetched again, also those that are here.
    pub refresh: String,
}

/// Where a cache stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum CachePhase {
    /// Images are being pulled.
    Creating,
    /// Every image is complete on this host.
    Ready,
    /// The first build failed.
    Failed,
    /// A rebuild is running; the old content serves.
    Updating,
    /// A rebuild failed; the old content serves.
    UpdateFailed,
}

/// What is known of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheState {
    /// `imc-...`.
    pub id: String,
    /// The name of the ImageCache object.
    pub name: String,
    /// Grows with each change of this cache, also over restarts.
    pub generation: u64,
    /// Where it stands.
    pub phase: CachePhase,
    /// 0 to 100.
    pub progress_percent: u8,
    /// Why the build failed; empty otherwise.
    pub reason: String,
    /// Whether it failed although its images are not to blame, and only whoever has the logins can have it built: a restart
    /// interrupted the build, or the host has lost what it held.
    pub ask_again: bool,
    /// The `refresh` of the newest build.
    pub refresh: String,
    /// What it holds.
    pub images: Vec<CachedImage>,
    /// The newest steps of the build, oldest first.
    pub events: Vec<BuildEvent>,
    /// When the build began.
    pub started: Timestamp,
    /// When it changed last.
    pub last_updated: Timestamp,
}

/// One image of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// As the user wrote it.
    pub reference: String,
    /// Digest of the platform's manifest.
    pub manifest: Digest,
    /// Digest of the index that it was chosen from.
    pub index: Option<Digest>,
    /// Unpacked bytes.
    pub size_bytes: u64,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BuildEvent {
    /// The image that it is about, or the cache's name.
    pub name: String,
    /// `Pulling`, `Pulled`, `Failed` ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether it is a warning.
    pub warning: bool,
    /// When.
    pub time: Timestamp,
}

/// All caches by id.
pub type CacheList = Arc<BTreeMap<String, Arc<CacheState>>>;

/// A difference between two lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheChange {
    /// It is new, or it has changed.
    Changed(Arc<CacheState>),
    /// It is gone.
    Deleted(String),
}

/// What happened from `before` to `after`: what a watcher has to be told.
pub fn changes(before: &CacheList, after: &CacheList) -> Vec<CacheChange> {
    let gone = before.keys().filter(|id| !after.contains_key(*id)).map(|id| CacheChange::Deleted(id.clone()));
    let changed = after
        .values()
        .filter(|state| before.get(&state.id).is_none_or(|old| old.generation != state.generation))
        .map(|state| CacheChange::Changed(Arc::clone(state)));
    gone.chain(changed).collect()
}

/// An image that the host holds, for the scheduler's image locality.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// `repo:tag` and `repo@sha256:...`.
    pub names: Vec<String>,
    /// Unpacked bytes.
    pub size_bytes: u64,
}

/// Why a cache cannot be built or removed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Its id could not be the name of a file.
    #[error("{0:?} cannot be the id of an image cache")]
    InvalidId(String),
    /// It names no images.
    #[error("image cache {0} names no images")]
    NoImages(String),
    /// It cannot be put on record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent is ending.
    #[error("image caches are closed: the agent is ending")]
    Closed,
}
