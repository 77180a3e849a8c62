//! What caches serve to pods.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{CachedImage, NodeImage};
use crate::{
    digest::Digest,
    image::{mounts::Pin, resolve::ResolvedImage},
    registry::Reference,
};

/// An image that a cache holds.
#[derive(Debug, Clone)]
pub(in crate::image) struct Held {
    pub(in crate::image) cached: CachedImage,
    pub(in crate::image) reference: Reference,
    pub(in crate::image) image: Arc<ResolvedImage>,
    pub(in crate::image) pin: Pin,
}

/// What each cache serves, by id.
#[derive(Debug, Clone, Default)]
pub(in crate::image) struct Serving(pub(super) Arc<HashMap<String, Arc<Vec<Held>>>>);

impl Serving {
    /// The image that a cache has for a reference: the same name and tag, or the same repository and digest, whichever tag
    /// it was cached under.
    pub(in crate::image) fn find(&self, cache: &str, wanted: &Reference) -> Option<&Held> {
        let held = self.0.get(cache)?;
        let same_content = |held: &&Held| match wanted.digest() {
            Some(digest) => {
                let has = *digest == held.cached.manifest || Some(*digest) == held.cached.index;
                has && held.reference.name() == wanted.name()
            }
            None => false,
        };
        held.iter().find(|held| held.reference == *wanted).or_else(|| held.iter().find(same_content))
    }

    /// All images, each manifest once with all its names.
    pub(in crate::image) fn node_images(&self) -> Vec<NodeImage> {
        let mut by_manifest: BTreeMap<Digest, NodeImage> = BTreeMap::new();
        for held in self.0.values().flat_map(|held| held.iter()) {
            let size_bytes = held.cached.size_bytes;
            let image = by_manifest.entry(held.cached.manifest).or_insert(NodeImage { names: Vec::new(), size_bytes });
            let name = held.reference.name();
            let by_digest = format!("{name}@{}", held.cached.index.unwrap_or(held.cached.manifest));
            let by_tag = held.reference.tag().map(|tag| format!("{name}:{tag}"));
            image.names.extend([Some(by_digest), by_tag].into_iter().flatten());
        }
        let mut images: Vec<NodeImage> = by_manifest.into_values().collect();
        for image in &mut images {
            image.names.sort();
            image.names.dedup();
        }
        images
    }
}
