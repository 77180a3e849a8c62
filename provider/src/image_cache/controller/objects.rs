//! Pure: no I/O, no clock, no randomness.
//!
//! The ImageCache objects, by name and by the id of their cache, under which hosts speak of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::custom_resource::ImageCache;
use crate::image_cache::plan::id_of;

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Objects {
    by_name: BTreeMap<String, ImageCache>,
    /// The names of the objects of an id. There is one, unless somebody writes a status by hand.
    by_id: BTreeMap<String, BTreeSet<String>>,
}

impl Objects {
    /// The object of this name.
    pub(super) fn get(&self, name: &str) -> Option<&ImageCache> {
        self.by_name.get(name)
    }

    /// Whether there is an object of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All, in the order of their names.
    pub(super) fn values(&self) -> impl Iterator<Item = &ImageCache> {
        self.by_name.values()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The names of the objects whose cache has this id.
    pub(super) fn names_of(&self, id: &str) -> impl Iterator<Item = &String> {
        self.by_id.get(id).into_iter().flatten()
    }

    /// Whether the cache of any object has this id.
    pub(super) fn have_id(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// Takes an object in, in the place of one of its name.
    pub(super) fn put(&mut self, cache: ImageCache) {
        let name = name_of(&cache);
        self.remove(&name);
        self.by_id.entry(id_of(&cache)).or_default().insert(name.clone());
        self.by_name.insert(name, cache);
    }

    /// Takes an object away.
    pub(super) fn remove(&mut self, name: &str) -> Option<ImageCache> {
        let cache = self.by_name.remove(name)?;
        let id = id_of(&cache);
        if let Some(names) = self.by_id.get_mut(&id) {
            names.remove(name);
            if names.is_empty() {
                self.by_id.remove(&id);
            }
        }
        Some(cache)
    }
}

impl FromIterator<ImageCache> for Objects {
    fn from_iter<T: IntoIterator<Item = ImageCache>>(all: T) -> Self {
        let mut objects = Self::default();
        all.into_iter().for_each(|cache| objects.put(cache));
        objects
    }
}

/// The name of an object.
pub(super) fn name_of(cache: &ImageCache) -> String {
    cache.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::{ImageCacheSpec, ImageCacheStatus};

    fn cache(name: &str, id: &str) -> ImageCache {
        let mut cache = ImageCache::new(name, ImageCacheSpec::default());
        cache.status = Some(ImageCacheStatus { image_cache_id: Some(id.to_owned()), ..ImageCacheStatus::default() });
        cache
    }

    #[test]
    fn an_object_is_found_by_its_newest_id_alone() {
        let mut objects: Objects = [cache("a", "1"), cache("b", "2"), cache("c", "2")].into_iter().collect();
        assert_eq!(objects.names_of("2").collect::<Vec<_>>(), ["b", "c"]);
        objects.put(cache("b", "3"));
        assert_eq!(objects.names_of("2").collect::<Vec<_>>(), ["c"]);
        assert_eq!(objects.names_of("3").collect::<Vec<_>>(), ["b"]);
        objects.remove("c");
        assert!(!objects.have_id("2") && !objects.has("c") && objects.len() == 2);
        assert!(objects.remove("c").is_none());
    }
}
