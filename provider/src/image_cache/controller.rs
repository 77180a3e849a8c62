//! The one task that owns the image caches: it compares the ImageCache objects with what the hosts say, and has done what
//! is missing.
//!
//! It never waits for a call: each runs as a job, at most one about the same thing at a time, and every outcome leads to a
//! fresh look at all that is known of what it was about ([`super::plan`]). So it does not matter what was lost on the way, a
//! connection, a host's store or this process: the next look finds what is to be done. Whatever changes something that a
//! look reads puts it on the [`agenda`]. Only three things live in memory alone: when a failed call may be repeated, which
//! pods asked for a cache that is being made, and the last hour's uses of caches.

mod agenda;
mod askers;
mod look;
mod objects;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::agenda::{Agenda, Spot};
use self::askers::{Askers, record};
use self::objects::{Objects, name_of};
use super::figures::Builds;
use super::follow::{Heard, follow, follow_labels};
use super::handle::{ImageCaches, Message, PATIENCE};
use super::hosts::Host;
use super::jobs::{BuildError, Outcome, ReadLogins, SecretRule, Subject};
use super::object_events::object_events;
use super::plan::{Told, Version, id_of, retry_after};
use super::quota;
use super::request::NodeDefault;
use super::snapshot::Snapshot;
use crate::agent::{AgentClient, CacheChange};
use crate::cluster::{ClusterError, EventRecorder, ImageCacheApi, NodeApi, Watched};
use crate::custom_resource::{ImageCache, ImageCacheStatus};
use crate::meters::Meters;
use crate::parts::{PartError, Parts};

/// Messages of pods that wait for the controller.
const INBOX: usize = 1024;
/// Changes of hosts that wait for the controller; the hosts' streams wait behind them.
const HEARD: usize = 256;

/// What the controller works with.
#[derive(Debug)]
pub struct Surroundings {
    /// The API server.
    pub api: Arc<dyn ImageCacheApi>,
    /// The API server, for the labels of the virtual nodes.
    pub nodes: Arc<dyn NodeApi>,
    /// The agents, by the name of their virtual node.
    pub agents: BTreeMap<String, Arc<dyn AgentClient>>,
    /// Takes events for pods.
    pub events: EventRecorder,
    /// Reads pull Secrets.
    pub read_logins: ReadLogins,
    /// Which Secrets may be read.
    pub secret_rule: SecretRule,
    /// How many image caches there may be; 0 for any number.
    pub most: usize,
    /// What holds for pods that do not say themselves whether they are matched.
    pub default: NodeDefault,
    /// Counts choices and builds.
    pub meters: Meters,
}

/// The task.
#[derive(Debug)]
pub struct ImageCacheController {
    around: Surroundings,
    inbox: mpsc::Receiver<Message>,
    seen: watch::Sender<Arc<Snapshot>>,
    /// Nothing until they have been listed.
    caches: Option<Objects>,
    hosts: BTreeMap<String, Host>,
    /// What the next look goes over.
    agenda: Agenda,
    /// For whom there was no room at the last look, and who was to go.
    room: quota::Plan,
    /// The hosts that nobody counted on at the last look.
    away: BTreeSet<String>,
    /// By virtual node and id.
    told: BTreeMap<(String, String), Told>,
    /// When a pod last used a cache, by id.
    used: BTreeMap<String, Timestamp>,
    askers: Askers,
    /// Automatic caches that go to make room, by name.
    evicted: BTreeSet<String>,
    jobs: JoinSet<Outcome>,
    running: BTreeMap<Subject, tokio::task::Id>,
    /// How often a job failed in a row, and when it may run again.
    failed: BTreeMap<Subject, (u32, Timestamp)>,
    builds: Builds,
}

impl ImageCacheController {
    /// The task, which its owner must run, and the handle for those who ask.
    pub fn new(around: Surroundings) -> (ImageCaches, Self) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let (seen, receiver) = watch::channel(Arc::default());
        let hosts = around.agents.keys().map(|node| (node.clone(), Host::default())).collect();
        let (default, meters) = (around.default, around.meters.clone());
        let controller = Self {
            around,
            inbox,
            seen,
            caches: None,
            hosts,
            agenda: Agenda::default(),
            room: quota::Plan::default(),
            away: BTreeSet::new(),
            told: BTreeMap::new(),
            used: BTreeMap::new(),
            askers: Askers::default(),
            evicted: BTreeSet::new(),
            jobs: JoinSet::new(),
            running: BTreeMap::new(),
            failed: BTreeMap::new(),
            builds: Builds::default(),
        };
        let patience = Instant::now() + PATIENCE;
        (ImageCaches { seen: receiver, inbox: sender, patience, default, meters }, controller)
    }

    /// Works until `stop`. Jobs that are under way are given up then; each can be repeated.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PartError> {
        let (sender, heard) = mpsc::channel(HEARD);
        let mut parts = Parts::default();
        for (node, agent) in &self.around.agents {
            let follower = follow(node.clone(), Arc::clone(agent), sender.clone());
            parts.spawn(format!("the stream of the image caches of {node}"), follower);
            let follower = follow_labels(node.clone(), Arc::clone(&self.around.nodes), sender.clone());
            parts.spawn(format!("the watch of the labels of {node}"), follower);
        }
        let ended = self.work(&mut parts, heard, &stop).await;
        parts.shutdown().await;
        self.jobs.shutdown().await;
        ended
    }

    async fn work(
        &mut self,
        parts: &mut Parts,
        mut heard: mpsc::Receiver<(String, Heard)>,
        stop: &CancellationToken,
    ) -> Result<(), PartError> {
        let mut objects = self.around.api.watch_image_caches();
        loop {
            let wake = self.look(Timestamp::now());
            // Every arm takes one element from a queue or stream that keeps it until it is taken, or only waits, so
            // dropping the others loses nothing.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                missing = parts.missing(stop) => return Err(missing),
                change = objects.next() => {
                    self.take_object(change.ok_or_else(|| PartError::ended("the watch of image caches"))?);
                }
                Some((node, said)) = heard.recv() => self.take_heard(&node, said, Timestamp::now()),
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => self.take_done(done),
                Some(message) = self.inbox.recv() => self.take_message(message),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn take_object(&mut self, change: Watched<ImageCache>) {
        match change {
            Watched::All(all) => {
                self.caches = Some(all.into_iter().collect());
                self.agenda.touch_all();
            }
            Watched::Applied(cache) => self.put(cache),
            Watched::Deleted(cache) => {
                let name = name_of(&cache);
                let known = self.caches.get_or_insert_default().get(&name);
                // An object of the same name may have come since.
                if known.is_some_and(|known| known.metadata.uid == cache.metadata.uid) {
                    self.drop_object(&name);
                }
            }
        }
    }

    /// Takes a state of an object in. The answer to a write of ours may have come before what led to it.
    fn put(&mut self, cache: ImageCache) {
        let name = name_of(&cache);
        let known = self.caches.get_or_insert_default().get(&name);
        // What we wrote comes back a moment later, and is nothing new.
        if known.is_some_and(|known| is_older(&cache, known) || *known == cache) {
            return;
        }
        // Its old id, where it had another, is nobody's now.
        self.drop_object(&name);
        self.agenda.touch(Spot::Cache(id_of(&cache)));
        self.caches.get_or_insert_default().put(cache);
    }

    fn drop_object(&mut self, name: &str) {
        self.agenda.touch(Spot::Object(name.to_owned()));
        if let Some(gone) = self.caches.as_mut().and_then(|caches| caches.remove(name)) {
            self.agenda.touch(Spot::Cache(id_of(&gone)));
        }
    }

    fn take_heard(&mut self, node: &str, heard: Heard, now: Timestamp) {
        let Some(host) = self.hosts.get_mut(node) else { return };
        match heard {
            Heard::Lost => {
                host.lose(now);
                self.agenda.touch_all();
            }
            Heard::Labels(labels) => {
                host.labels = labels;
                self.agenda.touch_all();
            }
            Heard::Change(change) => {
                match &change {
                    CacheChange::List(_) => {
                        // An agent that comes back may be another version, which refuses less.
                        self.told.retain(|(of, _), told| of != node || told.refusal.is_none());
                        self.agenda.touch_all();
                    }
                    CacheChange::Changed(state) => self.agenda.touch(Spot::Cache(state.id.clone())),
                    CacheChange::Deleted(id) => self.agenda.touch(Spot::Cache(id.clone())),
                }
                host.take(change);
            }
        }
    }

    fn take_message(&mut self, message: Message) {
        match message {
            Message::Used { id, at } => {
                self.agenda.touch(Spot::Cache(id.clone()));
                self.used.insert(id, at);
            }
            Message::Ask(ask) => self.ask(*ask, Timestamp::now()),
        }
    }

    fn take_done(&mut self, done: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(subject) = self.running.iter().find(|(_, of)| **of == id).map(|(subject, _)| subject.clone()) else {
            return;
        };
        self.running.remove(&subject);
        self.agenda.touch_subject(&subject);
        match done {
            Ok((_, outcome)) => self.take_outcome(subject, outcome, Timestamp::now()),
            Err(error) => {
                let error = PartError::broken("a job of the image cache controller".to_owned(), error);
                tracing::error!(?subject, %error, "job of the image cache controller broke, trying again");
                if let Subject::Create { image_set } = &subject {
                    self.not_created(image_set, &error.to_string());
                }
                self.has_failed(subject, Timestamp::now());
            }
        }
    }

    fn take_outcome(&mut self, subject: Subject, outcome: Outcome, now: Timestamp) {
        let failure = match (&subject, outcome) {
            (Subject::Build { node, id }, Outcome::Built { of, unusable, result }) => {
                self.built((node.clone(), id.clone()), (of, unusable), result, now);
                None
            }
            (Subject::Create { image_set }, Outcome::Created(result)) => {
                self.created(&image_set.clone(), result);
                None
            }
            (_, Outcome::Written { before, result: Ok(cache) }) => {
                self.tell_of_object(&before, &cache);
                self.replace(*cache);
                None
            }
            (_, Outcome::Finalized(Ok(cache))) => {
                self.replace(*cache);
                None
            }
            (Subject::Forget { node, id }, Outcome::Forgotten(Ok(()))) => {
                // The host says so itself in a moment; it need not be asked again until then.
                self.hosts.entry(node.clone()).or_default().caches.remove(id);
                None
            }
            (_, Outcome::Forgotten(result)) => result.err().map(|error| error.to_string()),
            (_, Outcome::Removed(result)) => result.err().map(|error| error.to_string()),
            // An object that is gone is no fault; the watch will say so.
            (_, Outcome::Written { result: Err(error), .. } | Outcome::Finalized(Err(error))) => {
                // Nor is one that has changed meanwhile.
                let is_moved_on = error.is_gone() || matches!(error, ClusterError::Conflict { .. });
                Some(if is_moved_on { String::new() } else { error.to_string() })
            }
            (_, Outcome::Built { .. } | Outcome::Created(_)) => None,
        };
        match failure {
            None => {
                self.failed.remove(&subject);
            }
            Some(error) => {
                if !error.is_empty() {
                    tracing::warn!(?subject, error, "job of the image cache controller failed, trying again");
                }
                self.has_failed(subject, now);
            }
        }
    }

    fn built(
        &mut self,
        key: (String, String),
        (of, unusable): (Version, Vec<String>),
        result: Result<(), BuildError>,
        now: Timestamp,
    ) {
        let before = self.told.get(&key);
        // What the host has heard before and is told again came to nothing that time.
        let is_repeated = before.is_some_and(|told| told.of == of && !told.unheard);
        let came_to_nothing = result.is_err() || is_repeated;
        let failures = if came_to_nothing { before.map_or(0, |told| told.failures).saturating_add(1) } else { 0 };
        let refusal = result.as_ref().err().and_then(BuildError::refusal);
        if let Err(error) = &result {
            tracing::warn!(node = key.0, image_cache = key.1, %error, "host cannot be told to build an image cache");
        }
        let unheard = result.is_err() && refusal.is_none();
        self.told.insert(key, Told { of, at: now, failures, unheard, refusal, unusable });
    }

    fn has_failed(&mut self, subject: Subject, now: Timestamp) {
        let count = self.failed.get(&subject).map_or(0, |(count, _)| count.saturating_add(1));
        // A tenth of the wait for builds: these are small calls.
        let wait = retry_after(count).as_millis() / 10;
        let wait = jiff::SignedDuration::from_millis(i64::try_from(wait).unwrap_or(i64::MAX));
        self.failed.insert(subject, (count, now + wait));
    }

    /// Says on the object what has changed in its status.
    fn tell_of_object(&self, before: &ImageCacheStatus, cache: &ImageCache) {
        let regarding = ObjectReference {
            api_version: Some("eci.alibabacloud.com/v1".to_owned()),
            kind: Some("ImageCache".to_owned()),
            name: cache.metadata.name.clone(),
            uid: cache.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let Some(status) = &cache.status else { return };
        for note in object_events(before, status) {
            record(&self.around.events, &regarding, note);
        }
    }

    /// Takes what the API server answered for what the watch will say a moment later.
    fn replace(&mut self, cache: ImageCache) {
        let known = self.caches.as_ref().and_then(|caches| caches.get(&name_of(&cache)));
        if known.is_some_and(|known| known.metadata.uid == cache.metadata.uid) {
            self.put(cache);
        }
    }
}

/// Whether it is an earlier state of the same object.
fn is_older(cache: &ImageCache, known: &ImageCache) -> bool {
    let version =
        |cache: &ImageCache| cache.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    match (version(cache), version(known)) {
        (Some(version), Some(newest)) => cache.metadata.uid == known.metadata.uid && version < newest,
        _ => false,
    }
}

/// Waits for ever without a time.
async fn sleep_until(time: Option<Timestamp>) {
    let Some(time) = time else { return std::future::pending().await };
    let left = time.duration_since(Timestamp::now());
    tokio::time::sleep(left.try_into().unwrap_or_default()).await;
}

#[cfg(test)]
mod tests;
