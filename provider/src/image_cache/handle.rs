//! What others hold of the image caches: a handle that tells a pod which cache it starts from.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::automatic::{self, Ask};
use super::catalog::{Catalog, Standing, Trust};
use super::matching::{self, Automatic, Choice, Coverage, Decision, MissReason, PodImages, Refusal};
use super::request::{self, Asked, NodeDefault, OnMiss, Wish};
use super::snapshot::Snapshot;
use crate::agent::ChosenCache;
use crate::meters::{ChoiceLabels, Meters};

/// How long after our start pods wait until the image caches are known. Later none waits: where the resource is not
/// installed, or may not be read, pods start without caches and without delay.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Reason of the event on pods whose automatic cache could not be made.
pub const AUTO_CREATE_FAILED: &str = "ImageCacheAutoCreateFailed";

/// Tells a pod which cache it starts from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageCaches {
    pub(super) seen: watch::Receiver<Arc<Snapshot>>,
    pub(super) inbox: mpsc::Sender<Message>,
    /// Until when pods wait for the image caches to be known.
    pub(super) patience: Instant,
    /// What holds for pods that do not say themselves whether they are matched.
    pub(super) default: NodeDefault,
    /// Counts the choices.
    pub(super) meters: Meters,
}

/// What the handle tells the controller.
#[derive(Debug)]
pub(super) enum Message {
    /// A pod asks for a cache of its images.
    Ask(Box<Ask>),
    /// A pod starts from a cache.
    Used { id: String, at: Timestamp },
}

/// Something to be recorded as an event of the pod, by `EciService`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// True for a `Warning`.
    pub warning: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What a pod starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The cache, or why the pod must wait; `Ok(None)` for normal pulls.
    pub start: Result<Option<ChosenCache>, Refusal>,
    /// What the user is told.
    pub notes: Vec<Note>,
}

impl ImageCaches {
    /// Decides for a pod that is about to start on `node`, and asks for a cache to be made where that is due.
    pub async fn choose(&self, node: &str, pod: &Pod) -> Chosen {
        let asked = self.asked(pod);
        let mut notes: Vec<Note> =
            asked.notices.into_iter().map(|notice| note(true, notice.reason, notice.message)).collect();
        let snapshot = match asked.wish {
            // Nobody need be asked.
            Wish::Nothing => Some(Arc::default()),
            Wish::Pinned { .. } | Wish::Automatic { .. } => self.known(node).await,
        };
        let none = Catalog::default();
        let candidates = snapshot.as_ref().and_then(|snapshot| snapshot.of(node)).map(|caches| &caches.candidates);
        let candidates = candidates.unwrap_or(&none);
        let decision = match snapshot {
            Some(_) => self.timed(&asked.wish, || decide(&asked.wish, pod, candidates)),
            None => unknown(asked.wish),
        };
        self.meters.image_caches.chosen(&labels(&decision.choice));
        let start = match decision.choice {
            Choice::Off => Ok(None),
            Choice::Pinned { id, coverage } | Choice::Hit { id, coverage } => {
                notes.extend(hit(&id, coverage));
                self.tell(Message::Used { id: id.clone(), at: Timestamp::now() });
                Ok(Some(with_trust(id, candidates)))
            }
            // Nothing is claimed about caches that nobody knows.
            Choice::Miss(MissReason::NotKnown) => Ok(None),
            Choice::Miss(reason) => {
                tracing::debug!(?reason, pod = pod.metadata.name, "no image cache is of use");
                notes.push(note(true, "ImageCacheMissed", "[eci.imagecache]Missed image cache.".to_owned()));
                Ok(None)
            }
            Choice::Refused(refusal) => Err(refusal),
        };
        if decision.automatic == Automatic::Build && asked.on_miss == OnMiss::Create {
            notes.extend(self.ask(pod));
        }
        Chosen { start, notes }
    }

    /// Decides, and counts the time where caches are looked through.
    fn timed(&self, wish: &Wish, decide: impl FnOnce() -> Decision) -> Decision {
        let begin = Instant::now();
        let decision = decide();
        match wish {
            Wish::Nothing => {}
            Wish::Pinned { .. } | Wish::Automatic { .. } => self.meters.image_caches.matched(begin.elapsed()),
        }
        decision
    }

    fn asked(&self, pod: &Pod) -> Asked {
        request::read(pod.metadata.annotations.as_ref(), self.default)
    }

    /// Ends when the cache that the pod names serves on `node`; never for a pod that names none.
    pub async fn until_ready(&self, node: &str, pod: &Pod) {
        let Wish::Pinned { id } = self.asked(pod).wish else { return std::future::pending().await };
        let serves = |snapshot: &Arc<Snapshot>| {
            let serves = |caches: &Catalog| caches.with_id(&id).any(|cache| cache.standing == Standing::Serving);
            snapshot.of(node).is_some_and(|caches| serves(&caches.candidates))
        };
        if self.seen.clone().wait_for(serves).await.is_err() {
            // The controller has ended, and with it everything soon.
            std::future::pending().await
        }
    }

    /// The snapshot once the caches of `node` are known; nothing when they are not in time.
    async fn known(&self, node: &str) -> Option<Arc<Snapshot>> {
        let mut seen = self.seen.clone();
        let known = seen.wait_for(|snapshot| snapshot.of(node).is_some());
        tokio::time::timeout_at(self.patience, known).await.ok()?.ok().map(|snapshot| Arc::clone(&snapshot))
    }

    fn ask(&self, pod: &Pod) -> Option<Note> {
        match automatic::ask(pod) {
            Ok(ask) => {
                self.tell(Message::Ask(Box::new(ask)));
                None
            }
            Err(error) => Some(auto_create_failed(&error.to_string())),
        }
    }

    /// Never waits: what is dropped here when thousands of pods come at once, the next pod says again.
    fn tell(&self, message: Message) {
        if self.inbox.try_send(message).is_err() {
            tracing::debug!("image cache controller is busy, one message is dropped");
        }
    }
}

/// The event of a cache that could not be made for a pod.
pub(super) fn auto_create_failed(why: &str) -> Note {
    note(true, AUTO_CREATE_FAILED, format!("[eci.imagecache]Image cache auto create failed for {why}"))
}

pub(super) fn note(warning: bool, reason: &'static str, message: String) -> Note {
    Note { warning, reason, message }
}

/// What the host is told of the cache that was chosen.
fn with_trust(id: String, candidates: &Catalog) -> ChosenCache {
    let Trust { is_automatic, policy } =
        candidates.with_id(&id).next().map(|candidate| candidate.trust).unwrap_or_default();
    ChosenCache { id, is_automatic, policy }
}

fn decide(wish: &Wish, pod: &Pod, candidates: &Catalog) -> Decision {
    let images = PodImages::read(automatic::images(pod)).pulled_with(automatic::secrets(pod));
    matching::decide(wish, &images, candidates)
}

/// A pod that names a cache waits; any other starts with normal pulls.
fn unknown(wish: Wish) -> Decision {
    let choice = match wish {
        Wish::Pinned { id } => Choice::Refused(Refusal::NotKnown { id }),
        Wish::Automatic { .. } => Choice::Miss(MissReason::NotKnown),
        Wish::Nothing => Choice::Off,
    };
    Decision { choice, automatic: Automatic::Nothing }
}

/// What a pod is told that starts from a cache.
fn hit(id: &str, coverage: Coverage) -> Vec<Note> {
    let message =
        format!("[eci.imagecache]Successfully hit image cache {id}, eci will be scheduled with this image cache.");
    let mut notes = vec![note(false, "SuccessfulHitImageCache", message)];
    if let Coverage::Partial { held, of } = coverage {
        let message =
            format!("[eci.imagecache]Image cache {id} holds {held} of {of} images of the pod, the others are pulled.");
        notes.push(note(false, "ImageCachePartiallyHit", message));
    }
    notes
}

/// How a choice is counted.
fn labels(choice: &Choice) -> ChoiceLabels {
    let (outcome, reason) = match choice {
        Choice::Off => ("off", ""),
        Choice::Hit { coverage: Coverage::Full, .. } => ("hit", ""),
        Choice::Hit { coverage: Coverage::Partial { .. }, .. } => ("partial", ""),
        Choice::Pinned { coverage: Coverage::Full, .. } => ("pinned", ""),
        Choice::Pinned { coverage: Coverage::Partial { .. }, .. } => ("pinned", "Partial"),
        Choice::Miss(MissReason::NoCandidate) => ("miss", "NoCandidate"),
        Choice::Miss(MissReason::RepositoryOnly) => ("miss", "RepositoryOnly"),
        Choice::Miss(MissReason::ConditionNotMet) => ("miss", "ConditionNotMet"),
        Choice::Miss(MissReason::NotReady) => ("miss", "NotReady"),
        Choice::Miss(MissReason::NotKnown) => ("miss", "NotKnown"),
        Choice::Refused(refusal) => ("refused", refusal.reason()),
    };
    ChoiceLabels { outcome, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_in_part_says_how_much() {
        let told: Vec<String> =
            hit("imc-a", Coverage::Partial { held: 1, of: 2 }).into_iter().map(|n| n.message).collect();
        assert_eq!(
            told,
            [
                "[eci.imagecache]Successfully hit image cache imc-a, eci will be scheduled with this image cache.",
                "[eci.imagecache]Image cache imc-a holds 1 of 2 images of the pod, the others are pulled."
            ]
        );
        assert_eq!(hit("imc-a", Coverage::Full).len(), 1);
    }
}
