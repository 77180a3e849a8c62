//! The look at everything: what is missing is started as a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::ImageCacheController;
use crate::custom_resource::{FINALIZER, ImageCache, ImageCacheStatus};
use crate::image_cache::jobs::{self, Logins, Outcome, Subject};
use crate::image_cache::placement::{self, Place, Wanted};
use crate::image_cache::plan::{self, Release, Step, Version, id_of, is_leaving};
use crate::image_cache::status::{self, Around, Report};
use crate::image_cache::{quota, snapshot};

/// How exactly the last use of a cache is recorded, so that a busy cache is not written with every pod.
const USE_GRAIN: SignedDuration = SignedDuration::from_hours(1);

/// After so long without another try, earlier failures of a job count no more.
const FORGIVEN: SignedDuration = SignedDuration::from_mins(10);

/// What a look has found to do; the earliest time at which another look is due.
#[derive(Default)]
struct Found {
    forget: Vec<(String, String)>,
    build: Vec<(String, ImageCache)>,
    write: Vec<(ImageCache, ImageCacheStatus)>,
    remove: Vec<ImageCache>,
    finalizers: Vec<(ImageCache, Vec<String>)>,
    wake: Option<Timestamp>,
}

impl Found {
    fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |known| known.min(time)));
    }
}

impl ImageCacheController {
    /// Starts what is missing, and says when to look again without being asked.
    pub(super) fn look(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.ask_again(now);
        self.tell_askers();
        let mut found = Found::default();
        if let Some(caches) = &self.caches {
            let room = self.room(now);
            let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            for cache in caches.values() {
                let name = cache.metadata.name.as_deref().unwrap_or_default();
                if is_leaving(cache) {
                    self.look_at_leaving(cache, now, &mut found);
                    continue;
                }
                if room.evict.iter().any(|evicted| evicted == name) || self.evicted.contains(name) {
                    found.remove.push(cache.clone());
                }
                let mut place = placement::place(cache, &self.hosts);
                if room.refuse.contains(name) {
                    place.obstacle = Some(quota::refusal(self.around.most));
                }
                let id = id_of(cache);
                for (node, ..) in &place.hosts {
                    wanted.entry(*node).or_default().insert(id.clone());
                }
                self.look_at_hosts(cache, &place, now, &mut found);
                self.look_at_object(cache, &place, now, &mut found);
            }
            for (node, host) in &self.hosts {
                if let Some(from) = host.away_from().filter(|from| *from > now) {
                    found.wake_at(from);
                }
                let strays = plan::strays(&wanted.remove(node.as_str()).unwrap_or_default(), host);
                found.forget.extend(strays.into_iter().map(|id| (node.clone(), id)));
            }
            let ids: BTreeSet<String> = caches.values().map(id_of).collect();
            self.told.retain(|(_, id), _| ids.contains(id));
            self.used.retain(|id, _| ids.contains(id));
            self.evicted.retain(|name| caches.get(name).is_some_and(|cache| !is_leaving(cache)));
            self.failed.retain(|_, (_, until)| *until + FORGIVEN > now);
            let found = self.builds.look(caches.values(), now);
            let meters = &self.around.meters.image_caches;
            for (is_ready, took) in found.ended {
                meters.built(is_ready, took.try_into().unwrap_or_default());
            }
            for (phase, count) in found.phases {
                meters.in_phase(phase, count);
            }
        }
        let wake = self.act(found, now);
        self.publish();
        wake
    }

    /// What is deleted goes once its hosts have forgotten it, which [`plan::strays`] has them do.
    fn look_at_leaving(&self, cache: &ImageCache, now: Timestamp, found: &mut Found) {
        let Some(finalizers) = without_ours(cache) else { return };
        let deleted = cache.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
        match plan::release(deleted, &id_of(cache), &self.hosts, now) {
            Release::Now => found.finalizers.push((cache.clone(), finalizers)),
            Release::At(time) => found.wake_at(time),
        }
    }

    fn look_at_hosts(&self, cache: &ImageCache, place: &Place<'_>, now: Timestamp, found: &mut Found) {
        if place.obstacle.is_some() {
            return;
        }
        let id = id_of(cache);
        for (node, host, wanted) in &place.hosts {
            if *wanted != Wanted::Yes {
                continue;
            }
            let told = self.told.get(&((*node).to_owned(), id.clone()));
            let is_held = plan::is_held_elsewhere(cache, node, &self.hosts);
            match plan::step(cache, host, told, is_held, now) {
                Step::Build => found.build.push(((*node).to_owned(), cache.clone())),
                Step::Wait(until) => found.wake_at(until),
                Step::Nothing => {}
            }
        }
    }

    fn look_at_object(&self, cache: &ImageCache, place: &Place<'_>, now: Timestamp, found: &mut Found) {
        let id = id_of(cache);
        let version = Version::of(cache);
        let reports: Vec<Report<'_>> = place
            .hosts
            .iter()
            .map(|(node, host, wanted)| {
                let told = self.told.get(&((*node).to_owned(), id.clone())).filter(|told| told.of == version);
                Report {
                    node,
                    is_known: host.is_known && *wanted == Wanted::Yes,
                    is_away: host.away_from().is_some_and(|from| from <= now),
                    state: host.caches.get(&id),
                    is_told: told.is_some(),
                    refusal: told.and_then(|told| told.refusal.as_deref()),
                }
            })
            .collect();
        let last_matched = self.last_use(cache, &id);
        let obstacle = place.obstacle.as_deref();
        let unusable = self.unusable(&id, &version);
        let unusable = unusable.as_deref();
        let status =
            status::status(cache, &Around { id: &id, reports: &reports, obstacle, unusable, last_matched, now });
        if let Some(end) = &status.expire_date_time {
            if end.0 <= now {
                found.remove.push(cache.clone());
                return;
            }
            found.wake_at(end.0);
        }
        if !has_ours(cache) {
            let ours = std::iter::once(FINALIZER.to_owned());
            let all = cache.metadata.finalizers.iter().flatten().cloned().chain(ours).collect();
            found.finalizers.push((cache.clone(), all));
        }
        if cache.status.as_ref() != Some(&status) {
            found.write.push((cache.clone(), status));
        }
    }

    /// The Secrets that brought no login when hosts were told; nothing when none has been told yet.
    fn unusable(&self, id: &str, version: &Version) -> Option<Vec<String>> {
        let told = self.told.iter().filter(|((_, of), told)| of == id && told.of == *version && !told.unheard);
        let all: Vec<&Vec<String>> = told.map(|(_, told)| &told.unusable).collect();
        let mut texts: Vec<String> = all.first()?.to_vec();
        for text in all.into_iter().flatten() {
            if !texts.contains(text) {
                texts.push(text.clone());
            }
        }
        Some(texts)
    }

    /// The last use, where it is new enough to be written down.
    fn last_use(&self, cache: &ImageCache, id: &str) -> Option<Timestamp> {
        let written = cache.status.as_ref().and_then(|status| status.last_matched_time.as_ref()).map(|time| time.0);
        let used = self.used.get(id).copied()?;
        written.is_none_or(|written| written + USE_GRAIN <= used).then_some(used)
    }

    fn act(&mut self, found: Found, now: Timestamp) -> Option<Timestamp> {
        let mut wake = Found { wake: found.wake, ..Found::default() };
        let failed: BTreeMap<Subject, Timestamp> =
            self.failed.iter().map(|(subject, (_, until))| (subject.clone(), *until)).collect();
        let mut is_due = |subject: &Subject| match failed.get(subject) {
            Some(until) if *until > now => {
                wake.wake_at(*until);
                false
            }
            Some(_) | None => true,
        };
        for (node, id) in found.forget {
            let Some(agent) = self.around.agents.get(&node).cloned() else { continue };
            let subject = Subject::Forget { node, id: id.clone() };
            if is_due(&subject) {
                self.start(subject, jobs::forget(agent, id));
            }
        }
        let logins = Logins { read: self.around.read_logins, rule: self.around.secret_rule };
        for (node, cache) in found.build {
            let Some(agent) = self.around.agents.get(&node).cloned() else { continue };
            let subject = Subject::Build { node, id: id_of(&cache) };
            // How often a host is told is the plan's to say; here it counts only when the job itself broke.
            if is_due(&subject) {
                self.start(subject, jobs::build(self.around.api.clone(), agent, logins, cache));
            }
        }
        // Before the statuses, which would make their versions old.
        for (cache, finalizers) in found.finalizers {
            let subject = Subject::Finalizers { name: cache.metadata.name.clone().unwrap_or_default() };
            if is_due(&subject) {
                self.start(subject, jobs::finalizers(self.around.api.clone(), cache, finalizers));
            }
        }
        for (cache, status) in found.write {
            let name = cache.metadata.name.clone().unwrap_or_default();
            let subject = Subject::Status { name: name.clone() };
            if is_due(&subject) {
                let before = cache.status.unwrap_or_default();
                self.start(subject, jobs::write(self.around.api.clone(), name, before, status));
            }
        }
        for cache in found.remove {
            let name = cache.metadata.name.clone().unwrap_or_default();
            let subject = Subject::Remove { name: name.clone() };
            if is_due(&subject) {
                let uid = cache.metadata.uid.clone().unwrap_or_default();
                self.start(subject, jobs::remove(self.around.api.clone(), name, uid));
            }
        }
        wake.wake
    }

    /// Starts a job, unless one about the same runs already.
    pub(super) fn start(&mut self, subject: Subject, job: impl Future<Output = Outcome> + Send + 'static) {
        if !self.running.contains_key(&subject) {
            let id = self.jobs.spawn(job).id();
            self.running.insert(subject, id);
        }
    }

    fn publish(&self) {
        let snapshot = snapshot::take(self.caches.as_ref(), &self.hosts);
        self.seen.send_if_modified(|seen| {
            let is_new = **seen != snapshot;
            if is_new {
                *seen = Arc::new(snapshot);
            }
            is_new
        });
    }
}

fn has_ours(cache: &ImageCache) -> bool {
    cache.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// The finalizers of others, where ours is there to be taken away.
fn without_ours(cache: &ImageCache) -> Option<Vec<String>> {
    let others = cache.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != FINALIZER);
    has_ours(cache).then(|| others.cloned().collect())
}
