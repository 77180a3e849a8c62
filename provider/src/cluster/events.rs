//! Kubernetes events: recorded without waiting, written in the order of each object, repeats counted.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::event_series::{Decision, EventSeries, Identity};
use super::holds::{Hold, Holds};
use super::{ClusterError, KubeCluster, within};
use crate::parts::{PartError, Parts};

/// How many events are written at once; those of one object are written one after the other.
const LANES: usize = 4;
/// How many events wait in a lane before new ones are dropped.
const WAITING: usize = 4096;
/// How long an event waits before it is written. Seven tell of a start, and each costs the API server and its store as much
/// as the pod's own status does: on a small host they would take the time that the start needs. It carries the time at which
/// it happened, and a cached pod is Ready well within this.
const HELD: Duration = Duration::from_millis(200);
/// How long it waits at most where one start follows upon the other.
pub const HELD_AT_MOST: Duration = Duration::from_secs(5);
/// How often an event is tried while the API server is away.
const TRIES: usize = 8;

/// Writes events.
#[async_trait]
pub trait EventApi: Send + Sync + std::fmt::Debug {
    /// Writes an event.
    async fn create_event(&self, event: &Event) -> Result<(), ClusterError>;

    /// Counts a repeat onto an event.
    async fn count_event(&self, namespace: &str, name: &str, count: i32, last: Timestamp) -> Result<(), ClusterError>;
}

#[async_trait]
impl EventApi for KubeCluster {
    async fn create_event(&self, event: &Event) -> Result<(), ClusterError> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.bounded_client(), namespace);
        within(|| "create event".to_owned(), api.create(&PostParams::default(), event)).await.map(drop)
    }

    async fn count_event(&self, namespace: &str, name: &str, count: i32, last: Timestamp) -> Result<(), ClusterError> {
        let api: Api<Event> = Api::namespaced(self.bounded_client(), namespace);
        let patch = Patch::Merge(json!({"count": count, "lastTimestamp": Time(last)}));
        within(|| format!("count event {namespace}/{name}"), api.patch(name, &PatchParams::default(), &patch))
            .await
            .map(drop)
    }
}

/// Who says it: the source that `kubectl describe` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The node: what concerns containers.
    Kubelet {
        /// Name of the node.
        node: String,
    },
    /// The service behind the nodes: what concerns image caches and the pod as a whole.
    EciService,
}

impl Source {
    fn component(&self) -> &'static str {
        match self {
            Self::Kubelet { .. } => "kubelet",
            Self::EciService => "EciService",
        }
    }

    fn host(&self) -> Option<String> {
        match self {
            Self::Kubelet { node } => Some(node.clone()),
            Self::EciService => None,
        }
    }
}

/// An event to record.
#[derive(Debug, Clone, PartialEq)]
pub struct EventNote {
    /// What it is about.
    pub regarding: ObjectReference,
    /// Who says it.
    pub source: Source,
    /// True for a `Warning`.
    pub warning: bool,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it happened; now, when absent.
    pub time: Option<Timestamp>,
}

/// The reference to a pod that an event carries.
pub fn regarding_pod(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// An event on its way to the API server.
#[derive(Debug)]
struct Recorded {
    note: EventNote,
    happened: Timestamp,
    /// When it was recorded.
    at: Instant,
}

/// Takes events from anywhere. Cheap to clone; never waits and never fails.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    lanes: Arc<[mpsc::Sender<Recorded>]>,
    holds: Holds,
}

/// The task behind an [`EventRecorder`].
#[derive(Debug)]
pub struct EventWriter {
    api: Arc<dyn EventApi>,
    lanes: Vec<mpsc::Receiver<Recorded>>,
    holds: Holds,
}

impl EventRecorder {
    /// A recorder, and the task that its owner must run.
    pub fn new(api: Arc<dyn EventApi>) -> (Self, EventWriter) {
        let (senders, lanes): (Vec<_>, Vec<_>) = (0..LANES).map(|_| mpsc::channel(WAITING)).unzip();
        let holds = Holds::default();
        (Self { lanes: senders.into(), holds: holds.clone() }, EventWriter { api, lanes, holds })
    }

    /// Holds back what is recorded for as long as the answer lives, and for `at_most`: a start is under way.
    pub fn hold(&self, at_most: Duration) -> Hold {
        self.holds.begin(at_most)
    }

    /// How many starts are under way.
    pub fn held_by(&self) -> usize {
        self.holds.count()
    }

    /// Ends when no start is under way any more, or at `at_most`.
    pub async fn quiet(&self, at_most: Instant) {
        self.holds.quiet(at_most).await;
    }

    /// Records an event. When too many wait, it is dropped and the log says so.
    pub fn record(&self, note: EventNote) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&note.regarding.uid);
        let lane = usize::try_from(hash % LANES as u64).unwrap_or_default();
        let happened = note.time.unwrap_or_else(Timestamp::now);
        let recorded = Recorded { note, happened, at: Instant::now() };
        if let Err(error) = self.lanes[lane].try_send(recorded) {
            let (mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost)) = error;
            let note = lost.note;
            tracing::warn!(reason = note.reason, message = note.message, "too many events wait, dropped one");
        }
    }
}

impl EventWriter {
    /// Writes until `stop`, then what is still waiting, for as long as its owner lets it.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(self, stop: CancellationToken) -> Result<(), PartError> {
        let mut lanes = Parts::default();
        for (number, notes) in self.lanes.into_iter().enumerate() {
            let lane = Lane { api: self.api.clone(), series: EventSeries::default(), holds: self.holds.clone() };
            lanes.spawn(format!("lane {number} of the events"), lane.run(notes, stop.clone()));
        }
        lanes.join().await
    }
}

/// One call that is tried until it succeeds.
enum Writing<'a> {
    Create(&'a Event),
    Count { namespace: &'a str, name: &'a str, count: i32, last: Timestamp },
}

#[derive(Debug)]
struct Lane {
    api: Arc<dyn EventApi>,
    series: EventSeries,
    holds: Holds,
}

impl Lane {
    async fn run(mut self, mut waiting: mpsc::Receiver<Recorded>, stop: CancellationToken) {
        loop {
            // `recv` takes nothing when it is dropped.
            let recorded = tokio::select! {
                biased;
                recorded = waiting.recv() => recorded,
                () = stop.cancelled() => None,
            };
            let Some(Recorded { note, happened, at }) = recorded else { return };
            let out_of_the_way = async {
                tokio::time::sleep_until(at + HELD).await;
                self.holds.quiet(at + HELD_AT_MOST).await;
            };
            tokio::select! {
                () = out_of_the_way => {}
                // Nothing starts any more that it could be in the way of.
                () = stop.cancelled() => {}
            }
            self.write(note, happened).await;
        }
    }

    async fn write(&mut self, note: EventNote, happened: Timestamp) {
        let now = Timestamp::now();
        let identity = Identity {
            object_uid: note.regarding.uid.clone().unwrap_or_default(),
            field_path: note.regarding.field_path.clone().unwrap_or_default(),
            component: note.source.component().to_owned(),
            reason: note.reason.clone(),
            message: note.message.clone(),
        };
        let namespace = note.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        match self.series.decide(&identity, now) {
            Decision::Drop => return,
            Decision::Count { name, count } => {
                let counted =
                    self.persist(&Writing::Count { namespace: &namespace, name: &name, count, last: happened }).await;
                // Events live for an hour; one that is gone is written anew.
                if !matches!(counted, Err(ClusterError::NotFound { .. })) {
                    return;
                }
            }
            Decision::Write => {}
        }
        let event = event_object(&note, namespace, happened);
        let name = event.metadata.name.clone().unwrap_or_default();
        match self.persist(&Writing::Create(&event)).await {
            Ok(()) => self.series.written(identity, name, now),
            Err(error) => {
                tracing::warn!(%error, reason = note.reason, message = note.message, "event is not written");
            }
        }
    }

    /// Tries again while the API server is away.
    async fn persist(&self, writing: &Writing<'_>) -> Result<(), ClusterError> {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(15))
            .with_jitter()
            .with_max_times(TRIES)
            .build();
        loop {
            let answer = match writing {
                Writing::Create(event) => self.api.create_event(event).await,
                Writing::Count { namespace, name, count, last } => {
                    self.api.count_event(namespace, name, *count, *last).await
                }
            };
            match (answer, waits.next()) {
                (Err(ClusterError::Unavailable { .. }), Some(wait)) => tokio::time::sleep(wait).await,
                (answer, _) => return answer,
            }
        }
    }
}

fn event_object(note: &EventNote, namespace: String, happened: Timestamp) -> Event {
    let time = Some(Time(happened));
    let mut object = note.regarding.name.clone().unwrap_or_default();
    // Names end at 253 characters, and ours takes 17.
    object.truncate(230);
    let tag = uuid::Uuid::new_v4().simple().to_string();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{}", &tag[..16])),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: note.regarding.clone(),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.clone()),
        message: Some(shortened(&note.message)),
        count: Some(1),
        first_timestamp: time.clone(),
        last_timestamp: time,
        source: Some(EventSource { component: Some(note.source.component().to_owned()), host: note.source.host() }),
        reporting_component: Some(note.source.component().to_owned()),
        reporting_instance: note.source.host(),
        ..Event::default()
    }
}

/// The API server takes 1024 bytes.
fn shortened(message: &str) -> String {
    const LIMIT: usize = 1024;
    if message.len() <= LIMIT {
        return message.to_owned();
    }
    let end = (0..=LIMIT - 3).rev().find(|index| message.is_char_boundary(*index)).unwrap_or_default();
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_end_at_a_character() {
        let long = "é".repeat(1000);
        let short = shortened(&long);
        assert!(short.len() <= 1024 && short.ends_with("é..."));
        assert_eq!(shortened("x"), "x");
    }

    #[test]
    fn an_event_is_what_describe_shows() {
        let note = EventNote {
            regarding: ObjectReference { name: Some("p".into()), ..ObjectReference::default() },
            source: Source::Kubelet { node: "n".into() },
            warning: false,
            reason: "Pulled".into(),
            message: "m".into(),
            time: None,
        };
        let event = event_object(&note, "ns".into(), Timestamp::from_second(5).unwrap());
        let source = event.source.unwrap();
        assert_eq!((source.component.as_deref(), source.host.as_deref()), (Some("kubelet"), Some("n")));
        assert_eq!(event.first_timestamp.unwrap().0.as_second(), 5);
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }
}
