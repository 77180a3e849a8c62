//! Brings the pods of one node to their workers: the API server's watch and the agent's stream, joined by UID.
//!
//! It owns the workers. One that ends while there still is something of its pod, or that panics, is begun anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::agent_link::{self, LinkEvent};
use super::agent_pods::{AgentPod, AgentPods};
use super::cache_choice::CacheChoice;
use super::worker::{AgentInput, ApiInput, Inputs, Means, Worker};
use crate::agent::{AgentClient, PodChange, PodEvent};
use crate::cluster::pods::PodName;
use crate::cluster::{EventNote, EventRecorder, ObjectApi, ObjectStore, PodApi, Source, Watched};
use crate::meters::Meters;

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
    api_listed: bool,
    api_pods: BTreeMap<String, Arc<Pod>>,
    agent_pods: AgentPods,
    connection: u64,
    workers: HashMap<String, watch::Sender<Inputs>>,
    tasks: JoinSet<()>,
    task_pods: HashMap<Id, PodName>,
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
            api_listed: false,
            api_pods: BTreeMap::new(),
            agent_pods: AgentPods::default(),
            connection: 0,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            task_pods: HashMap::new(),
        };
        (controller, PodDirectory { questions: sender })
    }

    /// Works until `stop`, then ends the workers.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut watched = self.means.pods.watch_pods(&self.means.node);
        let (sender, mut link) = mpsc::channel(256);
        let mut links = JoinSet::new();
        links.spawn(agent_link::follow(self.means.agent.clone(), sender).in_current_span());
        loop {
            // Each arm takes one element from something that keeps the rest.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(change) = watched.next() => self.take_from_cluster(change, &stop),
                Some(event) = link.recv() => self.take_from_agent(event, &stop),
                Some(question) = self.questions.recv() => self.answer(question),
                Some(ended) = self.tasks.join_next_with_id() => self.worker_ended(ended, &stop),
            }
        }
        links.shutdown().await;
        // Every worker holds the same token, and stops between two steps or in the midst of one; both are safe.
        while self.tasks.join_next().await.is_some() {}
    }

    fn take_from_cluster(&mut self, change: Watched<Pod>, stop: &CancellationToken) {
        match change {
            Watched::All(pods) => {
                self.api_listed = true;
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
            self.begin(name, inputs, stop);
        }
    }

    fn inputs(&self, uid: &str) -> Inputs {
        let api = match self.api_pods.get(uid) {
            Some(pod) => ApiInput::Present(pod.clone()),
            None if self.api_listed => ApiInput::Absent,
            None => ApiInput::Unlisted,
        };
        let agent = match self.agent_pods.get(uid) {
            // An end is final, whether or not the agent can be reached now.
            Some(pod @ AgentPod::Gone(_)) => AgentInput::Known(pod.clone()),
            Some(pod) if self.agent_pods.listed() => AgentInput::Known(pod.clone()),
            None if self.agent_pods.listed() => AgentInput::Absent,
            Some(_) | None => AgentInput::Unlisted,
        };
        Inputs { api, agent, connection: self.connection }
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

    fn begin(&mut self, name: PodName, inputs: Inputs, stop: &CancellationToken) {
        let span = tracing::info_span!("pod", namespace = name.namespace, name = name.name, pod_uid = name.uid);
        let (sender, receiver) = watch::channel(inputs);
        self.workers.insert(name.uid.clone(), sender);
        let worker = Worker::new(self.means.clone(), name.clone(), receiver);
        let task = self.tasks.spawn(worker.run(stop.clone()).instrument(span));
        self.task_pods.insert(task.id(), name);
        self.means.meters.workers.inc();
    }

    fn worker_ended(&mut self, ended: Result<(Id, ()), JoinError>, stop: &CancellationToken) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(name) = self.task_pods.remove(&id) else { return };
        if let Err(error) = ended {
            tracing::error!(pod_uid = name.uid, %error, "worker of a pod has failed, beginning it anew");
        }
        self.workers.remove(&name.uid);
        self.means.meters.workers.dec();
        if !self.api_pods.contains_key(&name.uid) {
            self.agent_pods.forget(&name.uid);
        }
        if !stop.is_cancelled() && self.name(&name.uid).is_some() {
            let inputs = self.inputs(&name.uid);
            self.begin(name, inputs, stop);
        }
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
