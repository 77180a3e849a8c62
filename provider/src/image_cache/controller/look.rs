//! The look at what the agenda says: what is missing is started as a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::ImageCacheController;
use super::agenda::{Scope, Spot, spot_of};
use super::objects::name_of;
use crate::custom_resource::{FINALIZER, ImageCache, ImageCacheStatus};
use crate::image_cache::hosts::Host;
use crate::image_cache::jobs::{self, Logins, Outcome, Subject};
use crate::image_cache::placement::{self, Place, Wanted};
use crate::image_cache::plan::{self, Release, Step, Version, id_of, is_leaving};
use crate::image_cache::status::{self, Around, Report};
use crate::image_cache::{quota, snapshot};

/// How exactly the last use of a cache is recorded, so that a busy cache is not written with every pod.
const USE_GRAIN: SignedDuration = SignedDuration::from_hours(1);

/// After so long without another try, earlier failures of a job count no more.
const FORGIVEN: SignedDuration = SignedDuration::from_mins(10);

/// What a look goes over. Whoever has one of the ids is among the names, and whoever's name is there has an id that is.
#[derive(Debug)]
struct Looked {
    names: BTreeSet<String>,
    ids: BTreeSet<String>,
}

/// What a look has found to do, and when to look again without being asked.
#[derive(Default)]
struct Found {
    forget: Vec<(String, String)>,
    build: Vec<(String, ImageCache)>,
    write: Vec<(ImageCache, ImageCacheStatus)>,
    remove: Vec<ImageCache>,
    finalizers: Vec<(ImageCache, Vec<String>)>,
    wakes: Vec<(Spot, Timestamp)>,
}

impl Found {
    fn wake_at(&mut self, cache: &ImageCache, time: Timestamp) {
        self.wakes.push((Spot::Object(name_of(cache)), time));
    }
}

impl ImageCacheController {
    /// Starts what is missing, and says when to look again without being asked.
    pub(super) fn look(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.ask_again(now);
        self.tell_askers();
        // What was touched before they are known is looked at then.
        let Some(caches) = &self.caches else { return None };
        self.evicted.retain(|name| caches.get(name).is_some_and(|cache| !is_leaving(cache)));
        self.look_at_room(now);
        let away = self.look_at_absence(now);
        let scope = self.agenda.take(now);
        if scope != Scope::Some(BTreeSet::new()) {
            let is_all = scope == Scope::All;
            let looked = self.widen(scope);
            let found = self.find(&looked, now);
            self.let_go(&looked, now);
            self.count(&looked.names, now);
            self.publish(&looked.names, is_all);
            self.act(found, now);
        }
        [away, self.agenda.next()].into_iter().flatten().min()
    }

    /// Whoever is refused now and was not, or the other way round, is looked at.
    fn look_at_room(&mut self, now: Timestamp) {
        let room = self.room(now);
        if room == self.room {
            return;
        }
        let (after, before) = (&room, &self.room);
        let changed = after.refuse.symmetric_difference(&before.refuse).chain(&after.evict).chain(&before.evict);
        changed.for_each(|name| self.agenda.touch(Spot::Object(name.clone())));
        self.room = room;
    }

    /// A host that has been away for too long, or is back, concerns all. Says when the next one has been.
    fn look_at_absence(&mut self, now: Timestamp) -> Option<Timestamp> {
        let from = |(node, host): (&String, &Host)| Some((node.clone(), host.away_from()?));
        let (away, soon): (Vec<_>, Vec<_>) = self.hosts.iter().filter_map(from).partition(|(_, from)| *from <= now);
        let away = away.into_iter().map(|(node, _)| node).collect();
        if self.away != away {
            self.away = away;
            self.agenda.touch_all();
        }
        soon.into_iter().map(|(_, from)| from).min()
    }

    /// The names and ids in a scope.
    fn widen(&self, scope: Scope) -> Looked {
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let Some(caches) = &self.caches else { return Looked { names, ids } };
        match scope {
            Scope::All => {
                names.extend(caches.values().map(name_of));
                names.extend(self.builds.names().cloned());
                ids.extend(self.hosts.values().flat_map(|host| host.caches.keys().cloned()));
                ids.extend(self.told.keys().map(|(_, id)| id.clone()).chain(self.used.keys().cloned()));
            }
            Scope::Some(spots) => {
                for spot in spots {
                    match spot {
                        Spot::Object(name) => names.insert(name),
                        Spot::Cache(id) => ids.insert(id),
                    };
                }
            }
        }
        ids.extend(names.iter().filter_map(|name| caches.get(name)).map(id_of));
        names.extend(ids.iter().flat_map(|id| caches.names_of(id)).cloned());
        Looked { names, ids }
    }

    /// What is to be done about these.
    fn find(&self, looked: &Looked, now: Timestamp) -> Found {
        let mut found = Found::default();
        let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for cache in looked.names.iter().filter_map(|name| self.caches.as_ref()?.get(name)) {
            if is_leaving(cache) {
                self.look_at_leaving(cache, now, &mut found);
                continue;
            }
            let name = name_of(cache);
            if self.room.evict.contains(&name) || self.evicted.contains(&name) {
                found.remove.push(cache.clone());
            }
            let mut place = placement::place(cache, &self.hosts);
            if self.room.refuse.contains(&name) {
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
            let strays = plan::strays(&looked.ids, &wanted.remove(node.as_str()).unwrap_or_default(), host);
            found.forget.extend(strays.into_iter().map(|id| (node.clone(), id)));
        }
        found
    }

    /// Forgets what is known of ids that are nobody's any more.
    fn let_go(&mut self, looked: &Looked, now: Timestamp) {
        for name in &looked.names {
            self.agenda.forget(&Spot::Object(name.clone()));
        }
        for id in &looked.ids {
            self.agenda.forget(&Spot::Cache(id.clone()));
            if self.caches.as_ref().is_some_and(|caches| caches.have_id(id)) {
                continue;
            }
            self.used.remove(id);
            for node in self.around.agents.keys() {
                self.told.remove(&(node.clone(), id.clone()));
            }
        }
        self.failed.retain(|_, (_, until)| *until + FORGIVEN > now);
    }

    fn count(&mut self, names: &BTreeSet<String>, now: Timestamp) {
        let meters = &self.around.meters.image_caches;
        for name in names {
            let cache = self.caches.as_ref().and_then(|caches| caches.get(name));
            if let Some((is_ready, took)) = self.builds.look(name, cache, now) {
                meters.built(is_ready, took.try_into().unwrap_or_default());
            }
        }
        for (phase, count) in self.builds.phases() {
            meters.in_phase(phase, count);
        }
    }

    /// What is deleted goes once its hosts have forgotten it, which [`plan::strays`] has them do.
    fn look_at_leaving(&self, cache: &ImageCache, now: Timestamp, found: &mut Found) {
        let Some(finalizers) = without_ours(cache) else { return };
        let deleted = cache.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
        match plan::release(deleted, &id_of(cache), &self.hosts, now) {
            Release::Now => found.finalizers.push((cache.clone(), finalizers)),
            Release::At(time) => found.wake_at(cache, time),
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
                Step::Wait(until) => found.wake_at(cache, until),
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
            found.wake_at(cache, end.0);
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
        let told = self.hosts.keys().filter_map(|node| self.told.get(&(node.clone(), id.to_owned())));
        let told = told.filter(|told| told.of == *version && !told.unheard);
        let all: Vec<&Vec<String>> = told.map(|told| &told.unusable).collect();
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

    fn act(&mut self, found: Found, now: Timestamp) {
        for (spot, time) in found.wakes {
            self.agenda.wake_at(spot, time);
        }
        for (node, id) in found.forget {
            let Some(agent) = self.around.agents.get(&node).cloned() else { continue };
            self.start_when_due(Subject::Forget { node, id: id.clone() }, now, || jobs::forget(agent, id));
        }
        let logins = Logins { read: self.around.read_logins, rule: self.around.secret_rule };
        let api = Arc::clone(&self.around.api);
        for (node, cache) in found.build {
            let Some(agent) = self.around.agents.get(&node).cloned() else { continue };
            // How often a host is told is the plan's to say; here it counts only when the job itself broke.
            let subject = Subject::Build { node, id: id_of(&cache) };
            self.start_when_due(subject, now, || jobs::build(Arc::clone(&api), agent, logins, cache));
        }
        // Before the statuses, which would make their versions old.
        for (cache, finalizers) in found.finalizers {
            let subject = Subject::Finalizers { name: name_of(&cache) };
            self.start_when_due(subject, now, || jobs::finalizers(Arc::clone(&api), cache, finalizers));
        }
        for (cache, status) in found.write {
            let name = name_of(&cache);
            let before = cache.status.unwrap_or_default();
            let subject = Subject::Status { name: name.clone() };
            self.start_when_due(subject, now, || jobs::write(Arc::clone(&api), name, before, status));
        }
        for cache in found.remove {
            let (name, uid) = (name_of(&cache), cache.metadata.uid.unwrap_or_default());
            let subject = Subject::Remove { name: name.clone() };
            self.start_when_due(subject, now, || jobs::remove(Arc::clone(&api), name, uid));
        }
    }

    /// Starts a job, or has it looked at again when it may run after its failure.
    fn start_when_due<J>(&mut self, subject: Subject, now: Timestamp, job: impl FnOnce() -> J)
    where
        J: Future<Output = Outcome> + Send + 'static,
    {
        match self.failed.get(&subject) {
            Some((_, until)) if *until > now => {
                if let Some(spot) = spot_of(&subject) {
                    self.agenda.wake_at(spot, *until);
                }
            }
            Some(_) | None => self.start(subject, job()),
        }
    }

    /// Starts a job, unless one about the same runs already.
    pub(super) fn start(&mut self, subject: Subject, job: impl Future<Output = Outcome> + Send + 'static) {
        if !self.running.contains_key(&subject) {
            let id = self.jobs.spawn(job).id();
            self.running.insert(subject, id);
        }
    }

    fn publish(&self, names: &BTreeSet<String>, is_all: bool) {
        let Some(caches) = &self.caches else { return };
        self.seen.send_if_modified(|seen| {
            if is_all {
                let snapshot = snapshot::take(Some(caches.values().collect()), &self.hosts);
                let is_new = **seen != snapshot;
                if is_new {
                    *seen = Arc::new(snapshot);
                }
                return is_new;
            }
            let mut is_new = false;
            for name in names {
                is_new |= snapshot::retake(seen, name, caches.get(name), &self.hosts);
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
