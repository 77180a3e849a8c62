//! An agent in memory, for tests of whatever uses an [`AgentClient`].
//!
//! It keeps what it was sent, does nothing by itself and reports what a test tells it to. It never runs anything.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::MutexGuard;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;

use super::{
    AgentClient, AgentError, AgentStream, CacheChange, CacheState, ImageCacheBuild, LogQuery, NodeFacts, NodeStats,
    PodChange, PodEvent, PodGone, PodState, RunPod, Stopping,
};
use crate::observed::{Observed, Summary};

/// Broken connections reach the readers as this element.
type Sent<T> = Result<T, AgentError>;

/// What the fake holds; tests read it through [`FakeAgent::see`].
#[derive(Debug, Default)]
pub struct Record {
    /// Every `run_pod`, in order.
    pub runs: Vec<RunPod>,
    /// Every `stop_pod`, in order.
    pub stops: Vec<(String, Option<Duration>)>,
    /// Every `build_image_cache`, in order.
    pub builds: Vec<ImageCacheBuild>,
    /// Every `delete_image_cache`, in order.
    pub cache_deletes: Vec<String>,
    /// Every `read_logs`, in order.
    pub log_queries: Vec<LogQuery>,
    /// The pods on record.
    pub pods: BTreeMap<String, PodState>,
    /// The image caches on record.
    pub caches: BTreeMap<String, CacheState>,
    /// Answers for the next `run_pod` calls, before they succeed.
    pub run_failures: VecDeque<AgentError>,
    /// What `read_logs` returns.
    pub log: Vec<Bytes>,
    /// What `stats` returns.
    pub stats: NodeStats,
    offline: bool,
}

/// An agent in memory.
#[derive(Debug)]
pub struct FakeAgent {
    record: Observed<Record>,
    facts: watch::Sender<NodeFacts>,
    pods: broadcast::Sender<Sent<PodChange>>,
    caches: broadcast::Sender<Sent<CacheChange>>,
    broken: watch::Sender<u64>,
}

impl Default for FakeAgent {
    fn default() -> Self {
        let facts = NodeFacts {
            hostname: "host".into(),
            operating_system: "linux".into(),
            architecture: "amd64".into(),
            cpu_milli: 2000,
            memory_bytes: 4 << 30,
            ephemeral_storage_bytes: 20 << 30,
            max_pods: 110,
            ..NodeFacts::default()
        };
        Self {
            record: Observed::new(Record::default()),
            facts: watch::Sender::new(facts),
            pods: broadcast::Sender::new(1024),
            caches: broadcast::Sender::new(1024),
            broken: watch::Sender::default(),
        }
    }
}

impl Deref for FakeAgent {
    type Target = Observed<Record>;

    fn deref(&self) -> &Self::Target {
        &self.record
    }
}

impl Summary for Record {
    fn summary(&self) -> String {
        format!("{} runs, stops {:?}, pods {:?}", self.runs.len(), self.stops, self.pods.keys())
    }
}

impl FakeAgent {
    fn online(&self) -> Result<MutexGuard<'_, Record>, AgentError> {
        let record = self.lock();
        if record.offline { Err(unreachable_error()) } else { Ok(record) }
    }

    /// Breaks all streams and answers no more calls.
    pub fn go_offline(&self) {
        self.lock().offline = true;
        let _ = self.pods.send(Err(unreachable_error()));
        let _ = self.caches.send(Err(unreachable_error()));
        self.broken.send_modify(|count| *count += 1);
        self.touch();
    }

    /// Answers again.
    pub fn go_online(&self) {
        self.lock().offline = false;
        self.touch();
    }

    /// Changes the facts of the host.
    pub fn set_facts(&self, change: impl FnOnce(&mut NodeFacts)) {
        self.facts.send_modify(change);
    }

    /// Reports a new status of a pod that is on record, under the next generation.
    pub fn report(&self, uid: &str, status: PodStatus) {
        let mut record = self.lock();
        let Some(state) = record.pods.get_mut(uid) else { return };
        state.generation += 1;
        state.terminated = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        state.status = status;
        let _ = self.pods.send(Ok(PodChange::Changed(state.clone())));
    }

    /// Sends an element as it is, whatever the record says.
    pub fn send(&self, change: PodChange) {
        let _ = self.pods.send(Ok(change));
    }

    /// Reports a Kubernetes event.
    pub fn event(&self, event: PodEvent) {
        self.send(PodChange::Event(event));
    }

    /// Forgets a pod and says that it is gone.
    pub fn gone(&self, uid: &str) {
        let mut record = self.lock();
        let Some(state) = record.pods.remove(uid) else { return };
        let gone = PodGone { uid: state.uid, generation: state.generation + 1, status: state.status };
        let _ = self.pods.send(Ok(PodChange::Gone(gone)));
        drop(record);
        self.touch();
    }

    /// Reports the state of an image cache.
    pub fn report_cache(&self, state: CacheState) {
        self.lock().caches.insert(state.id.clone(), state.clone());
        let _ = self.caches.send(Ok(CacheChange::Changed(state)));
        self.touch();
    }
}

fn unreachable_error() -> AgentError {
    AgentError::Unreachable { message: "offline".into() }
}

/// The list, then what is sent from now on. A reader that is too slow loses the connection, as it would in truth.
fn list_then<T: Clone + Send + 'static>(list: T, changes: broadcast::Receiver<Sent<T>>) -> AgentStream<T> {
    let changes = BroadcastStream::new(changes).map(|item| item.unwrap_or_else(|_| Err(unreachable_error())));
    stream::once(async move { Ok(list) }).chain(changes).boxed()
}

#[async_trait]
impl AgentClient for FakeAgent {
    fn address(&self) -> &str {
        "unix:///fake/agent.sock"
    }

    async fn run_pod(&self, pod: &RunPod) -> Result<(), AgentError> {
        let mut record = self.online()?;
        if let Some(failure) = record.run_failures.pop_front() {
            drop(record);
            self.touch();
            return Err(failure);
        }
        record.runs.push(pod.clone());
        let metadata = &pod.pod.metadata;
        let uid = metadata.uid.clone().unwrap_or_default();
        let state = record.pods.entry(uid.clone()).or_insert_with(|| PodState {
            uid,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            generation: 1,
            status: PodStatus { phase: Some("Pending".into()), ..PodStatus::default() },
            terminated: false,
        });
        let _ = self.pods.send(Ok(PodChange::Changed(state.clone())));
        drop(record);
        self.touch();
        Ok(())
    }

    async fn stop_pod(&self, uid: &str, grace: Option<Duration>) -> Result<Stopping, AgentError> {
        let mut record = self.online()?;
        record.stops.push((uid.to_owned(), grace));
        let answer = if record.pods.contains_key(uid) { Stopping::Begun } else { Stopping::Unknown };
        drop(record);
        self.touch();
        Ok(answer)
    }

    async fn watch_pods(&self) -> Result<AgentStream<PodChange>, AgentError> {
        self.panic_if_broken("watch_pods");
        let record = self.online()?;
        Ok(list_then(PodChange::List(record.pods.values().cloned().collect()), self.pods.subscribe()))
    }

    async fn read_logs(&self, query: &LogQuery) -> Result<AgentStream<Bytes>, AgentError> {
        let mut record = self.online()?;
        if !record.pods.contains_key(&query.uid) {
            return Err(AgentError::NotFound { message: format!("no pod {}", query.uid) });
        }
        record.log_queries.push(query.clone());
        Ok(stream::iter(record.log.clone().into_iter().map(Ok)).boxed())
    }

    async fn node_facts(&self) -> Result<NodeFacts, AgentError> {
        drop(self.online()?);
        Ok(self.facts.borrow().clone())
    }

    async fn watch_node(&self) -> Result<AgentStream<NodeFacts>, AgentError> {
        self.panic_if_broken("watch_node");
        drop(self.online()?);
        let (mut facts, mut broken) = (self.facts.subscribe(), self.broken.subscribe());
        broken.mark_unchanged();
        facts.mark_changed();
        let beat = stream::unfold(Some((facts, broken)), |state| async move {
            let (mut facts, mut broken) = state?;
            // All three only wait for a value that stays where it is, so dropping the losers loses nothing.
            tokio::select! {
                biased;
                _ = broken.changed() => Some((Err(unreachable_error()), None)),
                _ = facts.changed() => {
                    let value = facts.borrow_and_update().clone();
                    Some((Ok(value), Some((facts, broken))))
                }
                () = tokio::time::sleep(Duration::from_secs(3)) => {
                    let value = facts.borrow().clone();
                    Some((Ok(value), Some((facts, broken))))
                }
            }
        });
        Ok(beat.boxed())
    }

    async fn stats(&self) -> Result<NodeStats, AgentError> {
        Ok(self.online()?.stats.clone())
    }

    async fn build_image_cache(&self, build: &ImageCacheBuild) -> Result<(), AgentError> {
        self.panic_if_broken("build_image_cache");
        self.online()?.builds.push(build.clone());
        self.touch();
        Ok(())
    }

    async fn delete_image_cache(&self, id: &str) -> Result<(), AgentError> {
        let mut record = self.online()?;
        record.cache_deletes.push(id.to_owned());
        if record.caches.remove(id).is_some() {
            let _ = self.caches.send(Ok(CacheChange::Deleted(id.to_owned())));
        }
        drop(record);
        self.touch();
        Ok(())
    }

    async fn watch_image_caches(&self) -> Result<AgentStream<CacheChange>, AgentError> {
        self.panic_if_broken("watch_image_caches");
        let record = self.online()?;
        Ok(list_then(CacheChange::List(record.caches.values().cloned().collect()), self.caches.subscribe()))
    }
}
