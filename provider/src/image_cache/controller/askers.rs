//! The pods that asked for a cache: told when it is being made, and when it could not be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;

use super::ImageCacheController;
use super::agenda::Spot;
use crate::cluster::{ClusterError, EventNote, EventRecorder, Source};
use crate::custom_resource::{ImageCache, Phase};
use crate::image_cache::automatic::{self, Answer, Ask};
use crate::image_cache::handle::{Note, auto_create_failed, note};
use crate::image_cache::jobs::{self, Subject};
use crate::image_cache::plan::{id_of, is_leaving};
use crate::image_cache::quota;
use crate::image_cache::status::has_failed;

/// The most pods that are remembered for one cache.
const MOST: usize = 1_000;

/// Pods that wait for nothing, but want to know.
#[derive(Debug, Default)]
pub(super) struct Askers {
    /// While the object is being created: by the key of the image set.
    creating: BTreeMap<String, Creating>,
    /// While an earlier object of the same name is on its way out: by that name.
    waiting: BTreeMap<String, Creating>,
    /// While the cache is being built: by the object's name.
    building: BTreeMap<String, Vec<ObjectReference>>,
}

/// An object that is to be made.
#[derive(Debug)]
struct Creating {
    ask: Ask,
    /// The first to ask first.
    pods: Vec<ObjectReference>,
}

impl ImageCacheController {
    /// Has a cache made for a pod, unless one is there or on its way.
    pub(super) fn ask(&mut self, ask: Ask, now: Timestamp) {
        if let Some(creating) = self.askers.creating.get_mut(&ask.image_set) {
            remember(&mut creating.pods, ask.pod);
            return;
        }
        let Some(caches) = &self.caches else { return };
        let replaced = match automatic::answer(&ask, caches.values(), now) {
            Answer::Nothing => return,
            Answer::Join { name } => {
                remember(self.askers.building.entry(name).or_default(), ask.pod);
                return;
            }
            Answer::Create => None,
            Answer::Replace { name, uid } => Some((name, uid)),
        };
        let given_up = replaced.as_ref().map(|(name, _)| name.as_str());
        let Some(room) = self.make_room(given_up, now) else {
            record(&self.around.events, &ask.pod, auto_create_failed(&quota::refusal(self.around.most)));
            return;
        };
        for name in room {
            self.agenda.touch(Spot::Object(name.clone()));
            self.evicted.insert(name);
        }
        let job = jobs::create(self.around.api.clone(), ask.cache.clone(), replaced);
        let subject = Subject::Create { image_set: ask.image_set.clone() };
        let pods = vec![ask.pod.clone()];
        self.askers.creating.insert(ask.image_set.clone(), Creating { ask, pods });
        self.start(subject, job);
    }

    /// Asks anew for what had to wait for an object of its name to go.
    pub(super) fn ask_again(&mut self, now: Timestamp) {
        let Some(caches) = &self.caches else { return };
        let is_free = |name: &String, _: &mut Creating| !caches.has(name);
        let free: Vec<Creating> = self.askers.waiting.extract_if(.., is_free).map(|(_, creating)| creating).collect();
        for Creating { ask, pods } in free {
            for pod in pods {
                self.ask(Ask { pod, ..ask.clone() }, now);
            }
        }
    }

    /// The objects that are being made, by the names that they will have.
    pub(super) fn in_the_making(&self) -> impl Iterator<Item = &str> {
        let names = self.askers.creating.values().filter_map(|creating| creating.ask.cache.metadata.name.as_deref());
        names.filter(|name| self.caches.as_ref().is_none_or(|caches| !caches.has(name)))
    }

    /// The object of an automatic cache is there, or could not be made.
    pub(super) fn created(&mut self, image_set: &str, result: Result<Box<ImageCache>, ClusterError>) {
        let Some(Creating { ask, pods }) = self.askers.creating.remove(image_set) else { return };
        match result {
            Ok(cache) => {
                if let Some(first) = pods.first() {
                    let message = format!("[eci.imagecache]Image cache {} is auto created", id_of(&cache));
                    record(&self.around.events, first, note(false, "ImageCacheAutoCreated", message));
                }
                let name = cache.metadata.name.clone().unwrap_or_default();
                self.askers.building.entry(name.clone()).or_default().extend(pods);
                if self.caches.as_ref().is_some_and(|caches| !caches.has(&name)) {
                    self.put(*cache);
                }
            }
            Err(ClusterError::Conflict { .. }) => {
                // The pod has asked before, in an earlier life of this process, or what came of that is on its way out.
                let name = ask.cache.metadata.name.clone().unwrap_or_default();
                let there = self.caches.as_ref().and_then(|caches| caches.get(&name));
                if there.is_some_and(|there| is_leaving(there) || has_failed(there)) {
                    self.askers.waiting.insert(name, Creating { ask, pods });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "automatic image cache cannot be made");
                self.tell_not_created(&pods, &error.to_string());
            }
        }
    }

    /// The job that was to make the object broke: whoever asks next has it tried again.
    pub(super) fn not_created(&mut self, image_set: &str, why: &str) {
        let pods = self.askers.creating.remove(image_set).map(|creating| creating.pods).unwrap_or_default();
        self.tell_not_created(&pods, why);
    }

    fn tell_not_created(&self, pods: &[ObjectReference], why: &str) {
        for pod in pods {
            record(&self.around.events, pod, auto_create_failed(why));
        }
    }

    /// Tells the pods that asked for a cache how it went, once it is decided.
    pub(super) fn tell_askers(&mut self) {
        let Some(caches) = &self.caches else { return };
        let events = &self.around.events;
        self.askers.building.retain(|name, pods| {
            let Some(cache) = caches.get(name).filter(|cache| !is_leaving(cache)) else { return false };
            let Some(status) = &cache.status else { return true };
            match status.phase {
                Phase::Pending | Phase::Creating => true,
                Phase::Ready | Phase::Updating | Phase::UpdateFailed => false,
                Phase::Failed => {
                    for pod in pods {
                        record(events, pod, auto_create_failed(&status.reason));
                    }
                    false
                }
            }
        });
    }
}

fn remember(pods: &mut Vec<ObjectReference>, pod: ObjectReference) {
    if pods.len() < MOST && !pods.contains(&pod) {
        pods.push(pod);
    }
}

pub(super) fn record(events: &EventRecorder, pod: &ObjectReference, note: Note) {
    events.record(EventNote {
        regarding: pod.clone(),
        source: Source::EciService,
        warning: note.warning,
        reason: note.reason.to_owned(),
        message: note.message,
        time: None,
    });
}
