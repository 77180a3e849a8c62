//! A look goes over what was touched alone, and finds what a look at everything would.

use proptest::prelude::*;

use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::custom_resource::{AUTOMATIC_LABEL, FINALIZER};
use crate::image_cache::placement::NODE_SELECTOR_ANNOTATION;

const NODES: [&str; 2] = ["a", "b"];
const MOST: usize = 3;

/// Something that the controller hears, or that happens to a job of it. Objects and jobs are named by numbers.
#[derive(Debug, Clone)]
enum Message {
    Object { name: usize, generation: i64, kind: usize },
    Leaving { name: usize },
    Deleted { name: usize },
    List,
    Host { node: usize, name: usize, phase: CachePhase },
    Forgot { node: usize, name: usize },
    Connected { node: usize },
    Lost { node: usize },
    Labels { node: usize, pool: usize },
    Used { name: usize },
    Succeeds { job: usize },
    Fails { job: usize },
    Passes { seconds: i64 },
}

fn message() -> impl Strategy<Value = Message> {
    let phases = [
        CachePhase::Creating,
        CachePhase::Ready,
        CachePhase::Failed,
        CachePhase::Updating,
        CachePhase::UpdateFailed,
        CachePhase::Interrupted,
    ];
    let phase = proptest::sample::select(phases.to_vec());
    prop_oneof![
        4 => (0..5usize, 1..4i64, 0..4usize).prop_map(|(name, generation, kind)| Message::Object { name, generation, kind }),
        1 => (0..5usize).prop_map(|name| Message::Leaving { name }),
        1 => (0..5usize).prop_map(|name| Message::Deleted { name }),
        1 => Just(Message::List),
        4 => (0..2usize, 0..6usize, phase).prop_map(|(node, name, phase)| Message::Host { node, name, phase }),
        1 => (0..2usize, 0..6usize).prop_map(|(node, name)| Message::Forgot { node, name }),
        2 => (0..2usize).prop_map(|node| Message::Connected { node }),
        1 => (0..2usize).prop_map(|node| Message::Lost { node }),
        1 => (0..2usize, 0..2usize).prop_map(|(node, pool)| Message::Labels { node, pool }),
        1 => (0..6usize).prop_map(|name| Message::Used { name }),
        6 => (0..8usize).prop_map(|job| Message::Succeeds { job }),
        3 => (0..8usize).prop_map(|job| Message::Fails { job }),
        3 => proptest::sample::select(vec![1, 3, 61, 3700, 90_000]).prop_map(|seconds| Message::Passes { seconds }),
    ]
}

/// A controller by hand, whose jobs never run: what becomes of them is a message.
struct Side {
    controller: ImageCacheController,
    generation: u64,
    _others: (ImageCaches, Arc<FakeCluster>),
}

impl Side {
    fn new() -> Self {
        let cluster = Arc::new(FakeCluster::default());
        let (events, _writer) = EventRecorder::new(cluster.clone());
        let agents = NODES.iter().map(|node| ((*node).to_owned(), Arc::<FakeAgent>::default() as Arc<dyn AgentClient>));
        let (caches, controller) = ImageCacheController::new(around(&cluster, agents.collect(), events, MOST));
        Self { controller, generation: 0, _others: (caches, cluster) }
    }

    fn take(&mut self, message: &Message, now: Timestamp) {
        let controller = &mut self.controller;
        self.generation += 1;
        match message {
            Message::Object { name, generation, kind } => {
                let mut cache = object(*name, *generation, *kind);
                let known = controller.caches.as_ref().and_then(|caches| caches.get(&format!("c{name}")));
                // As at the API server, a spec that changes keeps the status.
                cache.status = known.and_then(|known| known.status.clone());
                controller.take_object(Watched::Applied(cache));
            }
            Message::Leaving { name } => {
                let known = controller.caches.as_ref().and_then(|caches| caches.get(&format!("c{name}")));
                if let Some(mut cache) = known.cloned() {
                    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
                    cache.metadata.deletion_timestamp = Some(time);
                    controller.take_object(Watched::Applied(cache));
                }
            }
            Message::Deleted { name } => controller.take_object(Watched::Deleted(object(*name, 1, 0))),
            Message::List => {
                let all = controller.caches.iter().flat_map(|caches| caches.values().cloned()).collect();
                controller.take_object(Watched::All(all));
            }
            Message::Host { node, name, phase } => {
                let state = state(*name, *phase, self.generation);
                controller.take_heard(NODES[*node], Heard::Change(CacheChange::Changed(state)), now);
            }
            Message::Forgot { node, name } => {
                let id = id_of(&object(*name, 1, 0));
                controller.take_heard(NODES[*node], Heard::Change(CacheChange::Deleted(id)), now);
            }
            Message::Connected { node } => {
                let there = controller.hosts[NODES[*node]].caches.values().cloned().collect();
                controller.take_heard(NODES[*node], Heard::Change(CacheChange::List(there)), now);
            }
            Message::Lost { node } => controller.take_heard(NODES[*node], Heard::Lost, now),
            Message::Labels { node, pool } => {
                let labels = BTreeMap::from([("pool".to_owned(), pool.to_string())]);
                controller.take_heard(NODES[*node], Heard::Labels(Some(labels)), now);
            }
            Message::Used { name } => {
                let id = id_of(&object(*name, 1, 0));
                controller.take_message(crate::image_cache::handle::Message::Used { id, at: now });
            }
            Message::Succeeds { job } => self.ends(*job, true, now),
            Message::Fails { job } => self.ends(*job, false, now),
            Message::Passes { .. } => {}
        }
    }

    /// The job of this number, if there is one, has ended.
    fn ends(&mut self, job: usize, well: bool, now: Timestamp) {
        let controller = &mut self.controller;
        let Some(subject) = controller.running.keys().nth(job).cloned() else { return };
        controller.running.remove(&subject);
        controller.agenda.touch_subject(&subject);
        let known = |name: &str| controller.caches.as_ref().and_then(|caches| caches.get(name)).cloned();
        let away = || ClusterError::Unavailable { what: String::new(), message: String::new() };
        let outcome = match &subject {
            Subject::Build { id, .. } => {
                let objects = controller.caches.iter().flat_map(Objects::values);
                let of = objects.filter(|cache| id_of(cache) == *id).map(Version::of).next();
                let of = of.unwrap_or(Version { generation: None, settings: None });
                let result = if well { Ok(()) } else { Err(BuildError::Cluster(away())) };
                Outcome::Built { of, unusable: Vec::new(), result }
            }
            Subject::Forget { .. } => Outcome::Forgotten(if well {
                Ok(())
            } else {
                Err(crate::agent::AgentError::Unreachable { message: "away".to_owned() })
            }),
            Subject::Status { name } => {
                let written = known(name).map(|mut cache| {
                    cache.status.get_or_insert_default().phase = Phase::Creating;
                    Box::new(cache)
                });
                Outcome::Written { before: Box::default(), result: written.filter(|_| well).ok_or_else(away) }
            }
            Subject::Finalizers { name } => {
                let with = known(name).map(|mut cache| {
                    cache.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
                    Box::new(cache)
                });
                Outcome::Finalized(with.filter(|_| well).ok_or_else(away))
            }
            Subject::Remove { .. } | Subject::Create { .. } => {
                Outcome::Removed(if well { Ok(()) } else { Err(away()) })
            }
        };
        controller.take_outcome(subject, outcome, now);
    }

    fn seen(&self) -> (Vec<&Subject>, Arc<Snapshot>, &BTreeMap<String, Timestamp>, usize) {
        let controller = &self.controller;
        let snapshot = Arc::clone(&controller.seen.borrow());
        (controller.running.keys().collect(), snapshot, &controller.used, controller.told.len())
    }
}

fn object(name: usize, generation: i64, kind: usize) -> ImageCache {
    let images = vec![format!("image:{name}")];
    let mut cache = ImageCache::new(&format!("c{name}"), ImageCacheSpec { images, ..Default::default() });
    cache.metadata.uid = Some(format!("uid-{name}"));
    cache.metadata.generation = Some(generation);
    let created = Timestamp::from_second(1_000_000).unwrap();
    cache.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
    match kind {
        0 => cache,
        1 => cache.annotated(&[(NODE_SELECTOR_ANNOTATION, "pool=1")]),
        2 => {
            cache.spec.retention_days = Some(1);
            cache
        }
        _ => {
            cache.metadata.labels = Some([(AUTOMATIC_LABEL.to_owned(), "true".to_owned())].into());
            cache
        }
    }
}

/// Of the object of this number; there is none of the last one's.
fn state(name: usize, phase: CachePhase, generation: u64) -> CacheState {
    CacheState {
        id: id_of(&object(name, 1, 0)),
        phase,
        generation,
        images: vec![CachedImage { reference: format!("image:{name}"), ..CachedImage::default() }],
        last_updated: Some(Timestamp::from_second(1_000_000).unwrap()),
        ..CacheState::default()
    }
}

proptest! {
    #[test]
    fn a_look_at_what_was_touched_finds_what_a_look_at_everything_finds(
        messages in proptest::collection::vec(message(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let (mut touched, mut all) = (Side::new(), Side::new());
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        for side in [&mut touched, &mut all] {
            side.controller.take_object(Watched::All(Vec::new()));
        }
        for message in &messages {
            if let Message::Passes { seconds } = message {
                now += jiff::SignedDuration::from_secs(*seconds);
            }
            touched.take(message, now);
            all.take(message, now);
            all.controller.agenda.touch_all();
            let wakes = (touched.controller.look(now), all.controller.look(now));
            prop_assert_eq!(touched.seen(), all.seen(), "after {:?}", message);
            // Nothing is slept through.
            let never = Timestamp::MAX;
            prop_assert!(wakes.0.unwrap_or(never) <= wakes.1.unwrap_or(never), "{:?} after {:?}", wakes, message);
        }
    }
}

#[tokio::test]
async fn what_nobody_touched_is_not_looked_at() {
    let (mut controller, cache, _others) = by_hand();
    let another = ImageCache {
        metadata: ObjectMeta { name: Some("other".to_owned()), uid: Some("other".to_owned()), ..Default::default() },
        ..cache.clone()
    };
    controller.take_object(Watched::All(vec![cache.clone(), another]));
    let now = Timestamp::now();
    controller.take_heard("a", Heard::Change(CacheChange::List(Vec::new())), now);
    controller.look(now);
    let before = controller.running.len();
    assert!(before >= 4, "each is to be built and written: {before}");
    // Without a word of an outcome nobody looks at it again, though nothing is done.
    controller.running.clear();
    let state = CacheState { id: id_of(&cache), phase: CachePhase::Ready, generation: 1, ..CacheState::default() };
    controller.take_heard("a", Heard::Change(CacheChange::Changed(state)), now);
    controller.look(now);
    let is_of_other = |subject: &Subject| matches!(subject, Subject::Status { name } if name == "other");
    assert!(!controller.running.is_empty() && !controller.running.keys().any(is_of_other));
}
