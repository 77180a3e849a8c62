//! Brings the pods of one node to their workers: the API server's watch and the agent's stream, joined by UID.
//!
//! It owns the workers. One that ends while there still is something of its pod is begun anew; one that panics as well, but
//! later each time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::agent_link::{self, LinkEvent};
use super::agent_pods::{AgentPod, AgentPods};
use super::backoff::Backoff;
use super::cache_choice::CacheChoice;
use super::worker::{AgentInput, ApiInput, Inputs, Means, Worker};
use crate::agent::{AgentClient, PodChange, PodEvent};
use crate::cluster::pods::PodName;
use crate::cluster::{EventNote, EventRecorder, ObjectApi, ObjectStore, PodApi, Source, Watched};
use crate::meters::Meters;
use crate::parts::{PartError, Parts};

/// How long after a panic of its worker a pod is taken up again: at first, and at most.
const TAKE_UP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A worker that has gone on for so long counts as well again.
const WELL: Duration = Duration::from_secs(600);

/// What the pods of a node are carried with.
#[derive(Debug, Clone)]
pub struct PodServices {
    /// Pods at the API server.
    pub pods: Arc<dyn PodApi>,
    /// What pods refer to.
    pub objects: Arc<dyn ObjectApi>,
    /// Watches over what pods refer to, shared by all nodes.
    pub store: ObjectStore,
    /// Kubernetes events.
    pub events: EventRecorder,
    /// Decides how a pod starts.
    pub caches: Arc<dyn CacheChoice>,
    /// Counts and times it.
    pub meters: Meters,
}

/// Answers which pods a node has.
#[derive(Debug, Clone)]
pub struct PodDirectory {
    questions: mpsc::Sender<Question>,
}

#[derive(Debug)]
enum Question {
    Find { namespace: String, name: String, answer: oneshot::Sender<Option<Arc<Pod>>> },
    All { answer: oneshot::Sender<Vec<Arc<Pod>>> },
}

impl PodDirectory {
    /// The pod of this name.
    pub async fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let (answer, receiver) = oneshot::channel();
        let question = Question::Find { namespace: namespace.to_owned(), name: name.to_owned(), answer };
        self.questions.send(question).await.ok()?;
        receiver.await.ok().flatten()
    }

    /// All pods of the node.
    pub async fn all(&self) -> Vec<Arc<Pod>> {
        let (answer, receiver) = oneshot::channel();
        if self.questions.send(Question::All { answer }).await.is_err() {
            return vec![];
        }
        receiver.await.unwrap_or_default()
    }
}

/// The owner of the pods of one node.
#[derive(Debug)]
pub struct PodController {
    means: Means,
    questions: mpsc::Receiver<Question>,
    /// How often the API server's pods have been listed.
    listings: u64,
    api_pods: BTreeMap<String, Arc<Pod>>,
    agent_pods: AgentPods,
    connection: u64,
    workers: HashMap<String, watch::Sender<Inputs>>,
    tasks: JoinSet<()>,
    task_pods: HashMap<Id, Begun>,
    /// Pods whose worker has panicked, by UID.
    broken: HashMap<String, Backoff>,
}

/// A worker's pod, and from when on the worker works.
#[derive(Debug)]
struct Begun {
    name: PodName,
    at: Instant,
}

impl PodController {
    /// A controller for the pods of `node`, and the directory that answers for it.
    pub fn new(
        node: &str,
        host_ip: Option<String>,
        agent: Arc<dyn AgentClient>,
        services: PodServices,
    ) -> (Self, PodDirectory) {
        let means = Means {
            node: node.to_owned(),
            host_ip,
            agent,
            pods: services.pods,
            objects: services.objects,
            store: services.store,
            events: services.events,
            caches: services.caches,
            meters: services.meters,
        };
        let (sender, questions) = mpsc::channel(64);
        let controller = Self {
            means,
            questions,
            listings: 0,
            api_pods: BTreeMap::new(),
            agent_pods: AgentPods::default(),
            connection: 0,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            task_pods: HashMap::new(),
            broken: HashMap::new(),
        };
        (controller, PodDirectory { questions: sender })
    }

    /// Works until `stop`, then ends the workers.
    ///
    /// # Errors
    /// When it lacks one of its parts.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PartError> {
        let (sender, link) = mpsc::channel(256);
        let mut parts = Parts::default();
        let follow = agent_link::follow(self.means.agent.clone(), sender);
        parts.spawn("the stream of the agent's pods", follow.in_current_span());
        let ended = self.work(&mut parts, link, &stop).await;
        parts.shutdown().await;
        // A worker stops between two steps or in the midst of one; both are safe.
        self.tasks.shutdown().await;
        ended
    }

    async fn work(
        &mut self,
        parts: &mut Parts,
        mut link: mpsc::Receiver<LinkEvent>,
        stop: &CancellationToken,
    ) -> Result<(), PartError> {
        let mut watched = self.means.pods.watch_pods(&self.means.node);
        loop {
            // Each arm takes one element from something that keeps the rest.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                missing = parts.missing(stop) => return Err(missing),
                change = watched.next() => {
                    let change = change.ok_or_else(|| PartError::ended("the watch of pods"))?;
                    self.take_from_cluster(change, stop);
                }
                Some(event) = link.recv() => self.take_from_agent(event, stop),
                Some(question) = self.questions.recv() => self.answer(question),
                Some(ended) = self.tasks.join_next_with_id() => self.worker_ended(ended, stop),
            }
        }
    }

    fn take_from_cluster(&mut self, change: Watched<Pod>, stop: &CancellationToken) {
        match change {
            Watched::All(pods) => {
                self.listings += 1;
                let known = std::mem::take(&mut self.api_pods);
                self.api_pods = pods.into_iter().map(|pod| (PodName::of(&pod).uid, Arc::new(pod))).collect();
                let mut touched: BTreeSet<_> = known.into_keys().collect();
                touched.extend(self.api_pods.keys().cloned());
                touched.extend(self.agent_pods.uids().cloned());
                touched.extend(self.workers.keys().cloned());
                for uid in touched {
                    self.update(&uid, stop);
                }
            }
            Watched::Applied(pod) => {
                let uid = PodName::of(&pod).uid;
                self.api_pods.insert(uid.clone(), Arc::new(pod));
                self.update(&uid, stop);
            }
            Watched::Deleted(pod) => {
                let uid = PodName::of(&pod).uid;
                self.api_pods.remove(&uid);
                self.update(&uid, stop);
            }
        }
    }

    fn take_from_agent(&mut self, event: LinkEvent, stop: &CancellationToken) {
        match event {
            LinkEvent::Lost => {
                if self.agent_pods.listed() {
                    self.agent_pods.lose();
                    self.update_all(stop);
                }
            }
            LinkEvent::Change(change) => self.take_change(*change, stop),
        }
    }

    fn take_change(&mut self, change: PodChange, stop: &CancellationToken) {
        match change {
            PodChange::List(states) => {
                self.connection += 1;
                self.agent_pods.list(states);
                self.update_all(stop);
            }
            PodChange::Changed(state) => {
                let uid = state.uid.clone();
                if self.agent_pods.changed(state) {
                    self.update(&uid, stop);
                }
            }
            PodChange::Gone(gone) => {
                let uid = gone.uid.clone();
                if self.agent_pods.gone(gone) {
                    self.update(&uid, stop);
                }
            }
            PodChange::Event(event) => self.record(event),
        }
    }

    fn update_all(&mut self, stop: &CancellationToken) {
        let mut uids: BTreeSet<_> = self.workers.keys().cloned().collect();
        uids.extend(self.agent_pods.uids().cloned());
        for uid in uids {
            self.update(&uid, stop);
        }
    }

    /// Tells the pod's worker the newest of both sides, beginning it where there is something to work on.
    fn update(&mut self, uid: &str, stop: &CancellationToken) {
        let inputs = self.inputs(uid);
        if let Some(worker) = self.workers.get(uid) {
            worker.send_if_modified(|known| {
                let differs = *known != inputs;
                *known = inputs;
                differs
            });
        } else if let Some(name) = self.name(uid) {
            self.begin(name, inputs, Duration::ZERO, stop);
        }
    }

    fn inputs(&self, uid: &str) -> Inputs {
        let api = match self.api_pods.get(uid) {
            Some(pod) => ApiInput::Present(pod.clone()),
            None if self.listings > 0 => ApiInput::Absent,
            None => ApiInput::Unlisted,
        };
        let agent = match self.agent_pods.get(uid) {
            // An end is final, whether or not the agent can be reached now.
            Some(pod @ AgentPod::Gone(_)) => AgentInput::Known(pod.clone()),
            Some(pod) if self.agent_pods.listed() => AgentInput::Known(pod.clone()),
            None if self.agent_pods.listed() => AgentInput::Absent,
            Some(_) | None => AgentInput::Unlisted,
        };
        Inputs { api, listing: self.listings, agent, connection: self.connection }
    }

    /// The pod's name, when there is anything of it that needs a worker.
    fn name(&self, uid: &str) -> Option<PodName> {
        if let Some(pod) = self.api_pods.get(uid) {
            return Some(PodName::of(pod));
        }
        match self.agent_pods.get(uid) {
            Some(AgentPod::State(state)) => {
                Some(PodName { namespace: state.namespace.clone(), name: state.name.clone(), uid: state.uid.clone() })
            }
            Some(AgentPod::Gone(_)) | None => None,
        }
    }

    /// Begins a worker that works from `delay` on.
    fn begin(&mut self, name: PodName, inputs: Inputs, delay: Duration, stop: &CancellationToken) {
        let span = tracing::info_span!("pod", namespace = name.namespace, name = name.name, pod_uid = name.uid);
        let (sender, receiver) = watch::channel(inputs);
        self.workers.insert(name.uid.clone(), sender);
        let worker = Worker::new(self.means.clone(), name.clone(), receiver);
        let (at, stop) = (Instant::now() + delay, stop.clone());
        let work = async move {
            if !delay.is_zero() {
                tokio::time::sleep_until(at).await;
            }
            worker.run(stop).await;
        };
        let task = self.tasks.spawn(work.instrument(span));
        self.task_pods.insert(task.id(), Begun { name, at });
        self.means.meters.workers.inc();
    }

    fn worker_ended(&mut self, ended: Result<(Id, ()), JoinError>, stop: &CancellationToken) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(Begun { name, at }) = self.task_pods.remove(&id) else { return };
        self.workers.remove(&name.uid);
        self.means.meters.workers.dec();
        if !self.api_pods.contains_key(&name.uid) {
            self.agent_pods.forget(&name.uid);
        }
        if stop.is_cancelled() || self.name(&name.uid).is_none() {
            self.broken.remove(&name.uid);
            return;
        }
        let delay = match ended {
            Ok(_) => {
                self.broken.remove(&name.uid);
                Duration::ZERO
            }
            Err(error) => self.broke(&name, at, error),
        };
        let inputs = self.inputs(&name.uid);
        self.begin(name, inputs, delay, stop);
    }

    /// Says that a pod's worker has panicked, and when the pod is taken up again.
    fn broke(&mut self, name: &PodName, at: Instant, error: JoinError) -> Duration {
        let backoff = self.broken.entry(name.uid.clone()).or_insert_with(|| Backoff::new(TAKE_UP.0, TAKE_UP.1));
        if at.elapsed() >= WELL {
            backoff.reset();
        }
        let delay = Duration::from_secs(backoff.next().as_secs());
        let error = PartError::broken("the pod's worker".to_owned(), error);
        let again = humantime::format_duration(delay);
        tracing::error!(pod_uid = name.uid, %error, %again, "worker of a pod broke, beginning it anew");
        self.record(PodEvent {
            uid: name.uid.clone(),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            warning: true,
            reason: "FailedSync".to_owned(),
            message: format!("Error syncing pod, skipping: {error}; trying again in {again}"),
            field_path: String::new(),
            time: None,
        });
        delay
    }

    fn record(&self, event: PodEvent) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(event.namespace),
            name: Some(event.name),
            uid: Some(event.uid),
            field_path: (!event.field_path.is_empty()).then_some(event.field_path),
            resource_version: None,
        };
        self.means.events.record(EventNote {
            regarding,
            source: Source::Kubelet { node: self.means.node.clone() },
            warning: event.warning,
            reason: event.reason,
            message: event.message,
            time: event.time,
        });
    }

    /// A caller that has gone needs no answer.
    fn answer(&self, question: Question) {
        match question {
            Question::Find { namespace, name, answer } => {
                let meant = |pod: &&Arc<Pod>| {
                    let metadata = &pod.metadata;
                    metadata.namespace.as_ref() == Some(&namespace) && metadata.name.as_ref() == Some(&name)
                };
                let _ = answer.send(self.api_pods.values().find(meant).cloned());
            }
            Question::All { answer } => {
                let _ = answer.send(self.api_pods.values().cloned().collect());
            }
        }
    }
}
