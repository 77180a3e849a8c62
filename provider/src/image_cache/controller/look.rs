//! The look at everything: what is missing is started as a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::ImageCacheController;
use crate::custom_resource::{ImageCache, ImageCacheStatus};
use crate::image_cache::jobs::{self, Outcome, Subject};
use crate::image_cache::plan::{self, Step, id_of};
use crate::image_cache::snapshot;
use crate::image_cache::status::{self, Report};

/// How exactly the last use of a cache is recorded, so that a busy cache is not written with every pod.
const USE_GRAIN: SignedDuration = SignedDuration::from_hours(1);

/// After so long without another try, earlier failures of a job count no more.
const FORGIVEN: SignedDuration = SignedDuration::from_mins(10);

/// What a look has found to do; the earliest time at which another look is due.
#[derive(Default)]
struct Found {
    forget: Vec<(String, String)>,
    build: Vec<(String, ImageCache)>,
    write: Vec<(String, ImageCacheStatus)>,
    remove: Vec<(String, String)>,
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
        self.tell_askers();
        let mut found = Found::default();
        if let Some(caches) = &self.caches {
            for cache in caches.values() {
                self.look_at_hosts(cache, now, &mut found);
                self.look_at_object(cache, now, &mut found);
            }
            for (node, host) in &self.hosts {
                found.forget.extend(plan::strays(caches, host).into_iter().map(|id| (node.clone(), id)));
            }
            let ids: BTreeSet<String> = caches.values().map(id_of).collect();
            self.told.retain(|(_, id), _| ids.contains(id));
            self.used.retain(|id, _| ids.contains(id));
            self.failed.retain(|_, (_, until)| *until + FORGIVEN > now);
        }
        let wake = self.act(found, now);
        self.publish();
        wake
    }

    fn look_at_hosts(&self, cache: &ImageCache, now: Timestamp, found: &mut Found) {
        let id = id_of(cache);
        for (node, host) in &self.hosts {
            let told = self.told.get(&(node.clone(), id.clone()));
            let is_held = plan::is_held_elsewhere(cache, node, &self.hosts);
            match plan::step(cache, host, told, is_held, now) {
                Step::Build => found.build.push((node.clone(), cache.clone())),
                Step::Wait(until) => found.wake_at(until),
                Step::Nothing => {}
            }
        }
    }

    fn look_at_object(&self, cache: &ImageCache, now: Timestamp, found: &mut Found) {
        let id = id_of(cache);
        let name = cache.metadata.name.clone().unwrap_or_default();
        let reports: Vec<Report<'_>> = self
            .hosts
            .iter()
            .map(|(node, host)| {
                let told = self.told.get(&(node.clone(), id.clone()));
                let told = told.filter(|told| told.generation == cache.metadata.generation);
                Report {
                    node,
                    is_known: host.is_known,
                    state: host.caches.get(&id),
                    is_told: told.is_some(),
                    refusal: told.and_then(|told| told.refusal.as_deref()),
                }
            })
            .collect();
        let status = status::status(cache, &id, &reports, self.last_use(cache, &id));
        if let Some(end) = &status.expire_date_time {
            if end.0 <= now {
                found.remove.push((name, cache.metadata.uid.clone().unwrap_or_default()));
                return;
            }
            found.wake_at(end.0);
        }
        if cache.status.as_ref() != Some(&status) {
            found.write.push((name, status));
        }
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
        for (node, cache) in found.build {
            let Some(agent) = self.around.agents.get(&node).cloned() else { continue };
            let subject = Subject::Build { node, id: id_of(&cache) };
            // How often a host is told is the plan's to say; here it counts only when the job itself broke.
            if is_due(&subject) {
                self.start(subject, jobs::build(self.around.api.clone(), agent, self.around.read_logins, cache));
            }
        }
        for (name, status) in found.write {
            let subject = Subject::Status { name: name.clone() };
            if is_due(&subject) {
                self.start(subject, jobs::write(self.around.api.clone(), name, status));
            }
        }
        for (name, uid) in found.remove {
            let subject = Subject::Remove { name: name.clone() };
            if is_due(&subject) {
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
