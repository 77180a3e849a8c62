//! All caches of this host, and what becomes of each by a wish, by what a build tells and by its end.
//!
//! ```text
//! (nothing) --build--> Creating --all here--> Ready --build, other images--> Updating --all here--> Ready
//!                         |                     ^                                |
//!                         '--> Failed --build---'             UpdateFailed <-----'
//! ```
//! A cache is Ready only once its file is durable, and a file is written only once the layers that it names are: so a new
//! record is given away to be written, and put here when it has been. After a restart a build that was under way goes on by
//! itself, unless it had logins: those are not kept, so it has failed, and says that it is to be asked for again. So does a
//! cache whose content the host has lost.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::{
    BuildCache, BuildEvent, CacheList, CachePhase, CachedImage,
    build::Report,
    record::{Record, Request},
};
use crate::image::RegistryAccess;

/// All caches, by id.
#[derive(Debug, Default)]
pub(super) struct Caches(BTreeMap<String, Cache>);

#[derive(Debug)]
struct Cache {
    record: Record,
    progress_percent: u8,
    /// The number of the build under way. What others tell is out of date.
    build: Option<u64>,
}

impl Caches {
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Takes up the cache that an earlier life of this process has left under this id; `lost` says why its content is no
    /// longer here, if it is not. Gives the build that goes on by itself.
    pub(super) fn take_up(
        &mut self,
        id: String,
        mut record: Record,
        lost: Option<String>,
        now: Timestamp,
    ) -> Option<BuildCache> {
        record.id = id;
        let was_building = record.is_building();
        if let Some(reason) = lost {
            record.images.clear();
            record.break_off(reason, now);
        }
        let goes_on = was_building && !record.request.with_logins;
        if goes_on {
            record.resume(now);
        } else if was_building {
            interrupt(&mut record, now);
        }
        // Whoever watched before must not take what it knew for this.
        record.bump_generation(now);
        let build = goes_on.then(|| request_of(&record));
        self.0.insert(record.id.clone(), Cache { record, progress_percent: 0, build: None });
        build
    }

    /// What a wish makes of its cache; none when that is as wished, or on its way.
    pub(super) fn wished(&self, wish: &BuildCache, now: Timestamp) -> Option<Record> {
        let cache = self.0.get(&wish.id);
        let mut record = cache.map_or_else(|| Record::new(wish, now), |cache| cache.record.clone());
        let request = Request::from(wish);
        let same = record.request.is_same(&request);
        // One that began without logins may fail for want of those that come now.
        let gains_logins = request.with_logins && !record.request.with_logins;
        let is_under_way = cache.is_some_and(|cache| cache.build.is_some());
        if same && (record.phase == CachePhase::Ready || is_under_way && !gains_logins) {
            return None;
        }
        record.begin(wish, now);
        Some(record)
    }

    /// Takes in a record that is durable. Gives the build that it ends or replaces.
    pub(super) fn put(&mut self, record: Record) -> Option<u64> {
        match self.0.get_mut(&record.id) {
            Some(cache) => {
                cache.record = record;
                cache.build.take()
            }
            None => {
                self.0.insert(record.id.clone(), Cache { record, progress_percent: 0, build: None });
                None
            }
        }
    }

    /// A cache that is here is being built.
    pub(super) fn begin(&mut self, id: &str, number: u64) {
        if let Some(cache) = self.0.get_mut(id) {
            cache.progress_percent = 0;
            cache.build = Some(number);
        }
    }

    /// Forgets a cache. Gives the build that has become useless.
    pub(super) fn remove(&mut self, id: &str) -> Option<u64> {
        self.0.remove(id)?.build
    }

    /// Takes in what a build tells; whether that is news.
    pub(super) fn note(&mut self, id: &str, number: u64, report: Report, now: Timestamp) -> bool {
        let Some(cache) = self.0.get_mut(id).filter(|cache| cache.build == Some(number)) else { return false };
        match report {
            Report::Progress(percent) if percent <= cache.progress_percent => return false,
            Report::Progress(percent) => {
                cache.progress_percent = percent;
                cache.record.touch(now);
            }
            Report::Event { name, reason, message, warning } => {
                let reason = reason.to_owned();
                cache.record.add_event(BuildEvent { name, reason, message, warning, time: now }, now);
            }
        }
        true
    }

    /// What the end of a build makes of its cache: what came, or why it did not. None when nobody waits for it any more.
    pub(super) fn ended(
        &self,
        id: &str,
        number: u64,
        came: Result<Vec<CachedImage>, String>,
        now: Timestamp,
    ) -> Option<Record> {
        let cache = self.0.get(id).filter(|cache| cache.build == Some(number))?;
        let mut record = cache.record.clone();
        match came {
            Ok(images) => {
                let message = "All images are complete on this host.".to_owned();
                add_event(&mut record, "Ready", message, false, now);
                record.succeed(&images, now);
            }
            Err(why) => {
                add_event(&mut record, "Failed", why.clone(), true, now);
                record.fail(why, now);
            }
        }
        Some(record)
    }

    /// A build has ended, but what came of it cannot be made durable: what served before goes on.
    pub(super) fn not_recorded(&mut self, mut record: Record, why: &str, now: Timestamp) {
        if let Some(cache) = self.0.get(&record.id) {
            record.images.clone_from(&cache.record.images);
        }
        record.fail(format!("put on record: {why}"), now);
        self.put(record);
    }

    /// What others see. What has not changed is shared with the list before.
    pub(super) fn list(&self, before: &CacheList) -> CacheList {
        let state = |(id, cache): (&String, &Cache)| {
            let same = before.get(id).filter(|state| state.generation == cache.record.generation);
            let state = same.cloned().unwrap_or_else(|| Arc::new(cache.record.state(cache.progress_percent)));
            (id.clone(), state)
        };
        Arc::new(self.0.iter().map(state).collect())
    }
}

/// A build that cannot go on by itself ends.
fn interrupt(record: &mut Record, now: Timestamp) {
    let message = "the build was interrupted by a restart of the node agent".to_owned();
    add_event(record, "Interrupted", message.clone(), true, now);
    record.break_off(message, now);
}

fn add_event(record: &mut Record, reason: &str, message: String, warning: bool, now: Timestamp) {
    let (name, reason) = (record.name.clone(), reason.to_owned());
    record.add_event(BuildEvent { name, reason, message, warning, time: now }, now);
}

/// The wish that a record was made for, without logins.
fn request_of(record: &Record) -> BuildCache {
    let request = record.request.clone();
    BuildCache {
        id: record.id.clone(),
        name: record.name.clone(),
        images: request.images,
        access: RegistryAccess { credentials: Vec::new(), plain_http: request.plain_http, insecure: request.insecure },
        size_limit_bytes: request.size_limit_bytes,
        refresh: request.refresh,
    }
}

#[cfg(test)]
mod tests;
