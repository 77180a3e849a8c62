//! How many image caches there are, and for how many there is room.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::ImageCacheController;
use super::objects::Objects;
use crate::custom_resource::{ImageCache, Phase};
use crate::image_cache::plan::{id_of, is_leaving};
use crate::image_cache::quota::{self, Counted, Plan};
use crate::image_cache::retention::is_automatic;
use crate::image_cache::status::has_failed;

impl ImageCacheController {
    /// Which caches are refused, and which go.
    pub(super) fn room(&self, now: Timestamp) -> Plan {
        // What follows walks over all.
        let there = self.caches.as_ref().map_or(0, |caches| caches.len());
        if self.around.most == 0 || there + self.in_the_making().count() <= self.around.most {
            return Plan::default();
        }
        quota::plan(&self.counted(now), self.around.most)
    }

    /// The automatic caches that make room for one more, `given_up` being about to go anyway; nothing when there are none.
    pub(super) fn make_room(&self, given_up: Option<&str>, now: Timestamp) -> Option<Vec<String>> {
        if self.around.most == 0 {
            return Some(Vec::new());
        }
        let mut counted = self.counted(now);
        counted.retain(|cache| Some(cache.name.as_str()) != given_up);
        quota::make_room(&counted, self.around.most)
    }

    /// All caches that take up room; those too that are about to come, so that nobody else takes what was freed for them.
    fn counted(&self, now: Timestamp) -> Vec<Counted> {
        let told: BTreeSet<&str> = self.told.keys().map(|(_, id)| id.as_str()).collect();
        let caches = self.caches.iter().flat_map(Objects::values);
        let stays = |cache: &&ImageCache| {
            !is_leaving(cache) && cache.metadata.name.as_ref().is_none_or(|name| !self.evicted.contains(name))
        };
        let counted = |cache: &ImageCache| {
            let id = id_of(cache);
            let written = cache.status.as_ref().and_then(|status| status.last_matched_time.as_ref()).map(|time| time.0);
            Counted {
                name: cache.metadata.name.clone().unwrap_or_default(),
                is_automatic: is_automatic(cache),
                is_in: was_begun(cache)
                    || told.contains(id.as_str())
                    || self.hosts.values().any(|host| host.caches.contains_key(&id)),
                created: cache.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default(),
                last_used: written.max(self.used.get(&id).copied()),
            }
        };
        let coming = |name: &str| Counted {
            name: name.to_owned(),
            is_automatic: true,
            is_in: true,
            created: now,
            last_used: None,
        };
        caches.filter(stays).map(counted).chain(self.in_the_making().map(coming)).collect()
    }
}

/// Whether a build of it was begun, by what is on record.
fn was_begun(cache: &ImageCache) -> bool {
    match cache.status.as_ref().map(|status| status.phase).unwrap_or_default() {
        Phase::Creating | Phase::Ready | Phase::Updating | Phase::UpdateFailed => true,
        Phase::Failed => has_failed(cache),
        Phase::Pending => false,
    }
}
