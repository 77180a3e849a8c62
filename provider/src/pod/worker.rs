//! One pod's owner: it looks at what the API server and the agent say, decides, does one thing, and looks again.
//!
//! It holds all memory of the pod on this side. Nothing is lost when it is ended and begun anew: everything that it knows
//! can be read again from the API server and the agent.

mod acting;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::acted_on::{self, Ignored};
use super::agent_pods::AgentPod;
use super::backoff::Backoff;
use super::cache_choice::{Admitted, CacheChoice};
use super::content::{ContentWatch, Contents};
use super::next_action::{Action, AgentView, ApiPod, ApiView, Blocked, Content, Done, Moment, StopSent, next_action};
use super::resize::{self, Allocated};
use super::status::{self, Failure, Reported, Situation};
use crate::agent::AgentClient;
use crate::cluster::pods::{PodMarks, PodName};
use crate::cluster::{Echo, EventRecorder, Hold, ObjectApi, ObjectStore, PodApi};
use crate::meters::Meters;

/// What every worker of a node uses.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) node: String,
    pub(super) host_ip: Option<String>,
    pub(super) agent: Arc<dyn AgentClient>,
    pub(super) pods: Arc<dyn PodApi>,
    pub(super) objects: Arc<dyn ObjectApi>,
    pub(super) store: ObjectStore,
    pub(super) events: EventRecorder,
    pub(super) caches: Arc<dyn CacheChoice>,
    pub(super) meters: Meters,
}

/// What the controller tells a worker; only the newest counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inputs {
    pub(super) api: ApiInput,
    /// Grows with each list of the API server's pods.
    pub(super) listing: u64,
    pub(super) agent: AgentInput,
    /// Grows with each connection to the agent.
    pub(super) connection: u64,
}

/// The pod at the API server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ApiInput {
    /// Not listed yet.
    Unlisted,
    /// No such object.
    Absent,
    /// There it is.
    Present(Arc<Pod>),
}

/// The pod at the agent.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AgentInput {
    /// Not connected, or not listed yet.
    Unlisted,
    /// The agent does not have it.
    Absent,
    /// The agent has it, or had it to the end.
    Known(AgentPod),
}

/// The pod that was handed over last, and what it referred to.
#[derive(Debug)]
struct Sent {
    pod: Arc<Pod>,
    contents: Contents,
}

/// A status that was written, and what the API server made of it.
#[derive(Debug, PartialEq)]
struct Settled {
    wanted: Value,
    answered: Value,
}

/// One pod's owner.
#[derive(Debug)]
pub(super) struct Worker {
    means: Means,
    inputs: watch::Receiver<Inputs>,
    name: PodName,
    began: Instant,
    content: ContentWatch,
    /// The newest object, be it from the watch or from an answer to us.
    api: ApiInput,
    listing: u64,
    echo: Echo,
    agent: AgentInput,
    connection: u64,
    admitted: Option<Admitted>,
    /// The marks that the API server has taken, or has refused for good.
    settled_marks: Option<PodMarks>,
    failure: Option<Failure>,
    /// Whether the last answer to what it starts from was: later.
    waits_for_choice: bool,
    sent: Option<Sent>,
    settled: Option<Settled>,
    stop: Option<StopSent>,
    nothing_runs: bool,
    removed: bool,
    /// Until when the agent's stream is trusted to say that it has what it was just handed.
    awaited: Option<Moment>,
    /// Until when a pod that was just handed over may be on its way without a word of it at the API server.
    in_sight: Option<Moment>,
    /// Holds back what can wait, while this pod starts.
    hold: Option<Hold>,
    /// Until when what is written on the pod waits for other pods that start.
    marks_by: Option<Moment>,
    blocked: Blocked,
    backoff: Backoffs,
}

#[derive(Debug)]
struct Backoffs {
    hand_over: Backoff,
    stop: Backoff,
    write_status: Backoff,
    annotate: Backoff,
    remove: Backoff,
}

impl Default for Backoffs {
    fn default() -> Self {
        let quick = || Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        Self {
            hand_over: Backoff::new(Duration::from_millis(250), Duration::from_secs(60)),
            stop: quick(),
            write_status: quick(),
            annotate: quick(),
            remove: quick(),
        }
    }
}

impl Worker {
    pub(super) fn new(means: Means, name: PodName, inputs: watch::Receiver<Inputs>) -> Self {
        let content = ContentWatch::new(means.objects.clone(), means.store.clone());
        Self {
            means,
            inputs,
            name,
            began: Instant::now(),
            content,
            api: ApiInput::Unlisted,
            listing: 0,
            echo: Echo::default(),
            agent: AgentInput::Unlisted,
            connection: 0,
            admitted: None,
            settled_marks: None,
            failure: None,
            waits_for_choice: false,
            sent: None,
            settled: None,
            stop: None,
            nothing_runs: false,
            removed: false,
            awaited: None,
            in_sight: None,
            hold: None,
            marks_by: None,
            blocked: Blocked::default(),
            backoff: Backoffs::default(),
        }
    }

    /// Works until there is nothing left of the pod on either side, or until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.look();
            let patch = self.status_patch();
            if !self.starts(patch.is_some()) {
                self.hold = None;
            }
            let marks_wait = self.marks_wait_until();
            let done = self.done(patch.is_some(), marks_wait);
            let action = next_action(self.api_view(), self.agent_view(), &done, self.moment());
            tracing::debug!(?action, api = ?self.api_view(), agent = ?self.agent_view(), "next");
            match action {
                Action::Forget => return,
                Action::Rest { until } => {
                    // What is held back for it is let go of when it has taken too long.
                    let until = until.into_iter().chain(self.in_sight.filter(|_| self.hold.is_some())).min();
                    let (choice, quiet) = (self.until_choice(), self.until_quiet(marks_wait));
                    // All of these only wait for something that stays true until it is read.
                    tokio::select! {
                        () = choice => self.blocked.hand_over = None,
                        () = quiet => {}
                        changed = self.inputs.changed() => if changed.is_err() { return },
                        () = self.content.changed(), if self.sent.is_some() => {}
                        () = wait_until(self.began, until) => {}
                        () = stop.cancelled() => return,
                    }
                }
                // Each of these can be dropped half-way: what it asks for can be asked for again.
                Action::HandOver | Action::Stop { .. } | Action::WriteStatus | Action::Annotate | Action::Remove => {
                    tokio::select! {
                        () = self.act(action, patch) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Ends when a pod that waits for its image cache is worth another try; never for other pods.
    fn until_choice(&self) -> impl Future<Output = ()> + use<> {
        let waiting = match &self.api {
            ApiInput::Present(pod) if self.waits_for_choice => Some(pod.clone()),
            ApiInput::Present(_) | ApiInput::Absent | ApiInput::Unlisted => None,
        };
        let (caches, node) = (self.means.caches.clone(), self.means.node.clone());
        async move {
            match waiting {
                Some(pod) => caches.until_worth_asking(&node, &pod).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Ends when what is to be written on the pod is in no start's way; never for a pod on which nothing waits for that.
    fn until_quiet(&self, marks_wait: Option<Moment>) -> impl Future<Output = ()> + use<> {
        let by = marks_wait.filter(|_| self.marks_missing());
        let (by, events) = (by.map(|by| self.began + by), self.means.events.clone());
        async move {
            match by {
                Some(by) => events.quiet(by).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Until when what is written on the pod waits at most, while pods start.
    fn marks_wait_until(&self) -> Option<Moment> {
        self.marks_by.filter(|by| *by > self.moment() && self.means.events.held_by() > 0)
    }

    /// Whether the pod, just handed over, is on its way, or the API server still has to hear that it runs.
    fn starts(&self, status_differs: bool) -> bool {
        let underway = self.agent == AgentInput::Absent || self.is_on_its_way() || status_differs;
        underway && self.in_sight.is_some_and(|until| until > self.moment())
    }

    fn moment(&self) -> Moment {
        self.began.elapsed()
    }

    /// Takes in the newest of what the controller says.
    fn look(&mut self) {
        let inputs = self.inputs.borrow_and_update().clone();
        if inputs.connection != self.connection {
            self.connection = inputs.connection;
            // Another agent, or the same one begun anew: ask it again, and at once.
            self.stop = None;
            self.awaited = None;
            self.blocked.hand_over = None;
            self.blocked.stop = None;
        }
        if inputs.listing != self.listing {
            self.listing = inputs.listing;
            self.echo.listed();
        }
        self.look_at_api(inputs.api);
        self.agent = inputs.agent;
        if matches!(self.agent, AgentInput::Known(AgentPod::State(_))) {
            self.nothing_runs = false;
        }
    }

    fn look_at_api(&mut self, api: ApiInput) {
        if let ApiInput::Present(new) = &api {
            if self.echo.is_behind(&**new) {
                return;
            }
            let is_changed = matches!(&self.api, ApiInput::Present(known) if !same_content(new, known));
            if self.failure.is_some() && is_changed {
                // What was refused has been changed: try at once.
                self.blocked.hand_over = None;
                self.admitted = None;
            }
        }
        self.api = api;
    }

    fn api_view(&self) -> ApiView {
        match &self.api {
            ApiInput::Unlisted => ApiView::Unlisted,
            ApiInput::Absent => ApiView::Absent,
            ApiInput::Present(pod) => ApiView::Present(ApiPod {
                deletion: deletion_grace(pod),
                terminal: status::is_terminal(pod.status.as_ref().and_then(|status| status.phase.as_deref())),
                lost: status::is_lost_without_agent(pod),
            }),
        }
    }

    fn agent_view(&self) -> AgentView {
        match &self.agent {
            AgentInput::Unlisted => AgentView::Unlisted,
            AgentInput::Absent => AgentView::Absent,
            AgentInput::Known(AgentPod::Gone(_)) => AgentView::Gone,
            AgentInput::Known(AgentPod::State(state)) => {
                AgentView::Present { over: state.terminated || status::is_terminal(state.status.phase.as_deref()) }
            }
        }
    }

    fn done(&mut self, status_differs: bool, marks_wait: Option<Moment>) -> Done {
        let mut blocked = self.blocked;
        if self.agent == AgentInput::Absent {
            blocked.hand_over = blocked.hand_over.max(self.awaited);
        }
        if self.is_on_its_way() {
            blocked.write_status = blocked.write_status.max(self.in_sight);
            blocked.annotate = blocked.annotate.max(self.in_sight);
        }
        blocked.annotate = blocked.annotate.max(marks_wait);
        Done {
            content: self.content_state(),
            stop: self.stop,
            nothing_runs: self.nothing_runs,
            status_differs,
            marks_missing: self.marks_missing(),
            removed: self.removed,
            blocked,
        }
    }

    fn is_on_its_way(&self) -> bool {
        matches!(&self.agent, AgentInput::Known(AgentPod::State(state)) if status::is_on_its_way(&state.status))
    }

    fn content_state(&mut self) -> Content {
        let (ApiInput::Present(pod), Some(sent)) = (&self.api, &self.sent) else { return Content::NeverSent };
        let wanted = self.with_marks(&resize::held_back(pod, &self.allocated()));
        if !same_content(&wanted, &sent.pod) || self.content.contents() != sent.contents {
            return Content::Changed;
        }
        let renew_at = self.content.renew_at().map(|at| at.saturating_duration_since(self.began));
        Content::Current { renew_at }
    }

    /// What the pod's containers have, as long as the agent has the pod.
    fn allocated(&self) -> Allocated {
        match &self.agent {
            AgentInput::Known(AgentPod::State(state)) => {
                resize::allocated(self.sent.as_ref().map(|sent| &*sent.pod), &state.status)
            }
            AgentInput::Known(AgentPod::Gone(_)) | AgentInput::Absent | AgentInput::Unlisted => Allocated::default(),
        }
    }

    fn marks(&self) -> PodMarks {
        let mut admitted = self.admitted.clone().unwrap_or_default();
        if let Some(ignored) = self.ignored() {
            admitted.annotations.insert(acted_on::TOLD.to_owned(), ignored.now);
        }
        PodMarks { labels: admitted.labels, annotations: admitted.annotations, cleared: admitted.cleared }
    }

    /// What was changed about image caches after the pod was admitted, as long as its user has not been told.
    fn ignored(&self) -> Option<Ignored> {
        let (ApiInput::Present(pod), Some(admitted)) = (&self.api, &self.admitted) else { return None };
        if self.settled_marks.is_some() {
            return acted_on::ignored(&admitted.annotations, pod);
        }
        // What we write ourselves may be on its way to the pod.
        let mut marked = Pod::clone(pod);
        marked.metadata.annotations.get_or_insert_default().extend(admitted.annotations.clone());
        acted_on::ignored(&admitted.annotations, &marked)
    }

    /// The pod as it will be once our labels and annotations are on it.
    fn with_marks(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let marks = self.marks();
        if marks.are_on(pod) {
            return pod.clone();
        }
        let mut marked = Pod::clone(pod);
        marks.put_on(&mut marked);
        Arc::new(marked)
    }

    fn marks_missing(&self) -> bool {
        let ApiInput::Present(pod) = &self.api else { return false };
        let marks = self.marks();
        self.settled_marks.as_ref() != Some(&marks) && !marks.are_on(pod)
    }

    /// What is to be written to the API server, with the whole status that it leads to.
    fn status_patch(&self) -> Option<StatusPatch> {
        let ApiInput::Present(pod) = &self.api else { return None };
        let reported = match &self.agent {
            AgentInput::Unlisted => return None,
            AgentInput::Absent => Reported::Nothing,
            AgentInput::Known(AgentPod::State(state)) => Reported::State(&state.status),
            AgentInput::Known(AgentPod::Gone(gone)) => Reported::Last(&gone.status),
        };
        let situation = Situation {
            pod,
            failure: self.failure.as_ref(),
            host_ip: self.means.host_ip.as_deref(),
            handed_over: self.sent.as_ref().and_then(|sent| sent.pod.metadata.generation),
            resize: resize::pending(pod, &self.allocated()),
            now: Timestamp::now(),
        };
        let wanted = status::canonical(&status::wanted(&situation, reported)?);
        let current = status::canonical(pod.status.as_ref().unwrap_or(&Default::default()));
        let patch = status::patch(&current, &wanted)?;
        let settled = self.settled.as_ref();
        if settled.is_some_and(|settled| {
            without_times(&settled.wanted) == without_times(&wanted) && settled.answered == current
        }) {
            return None;
        }
        Some(StatusPatch { patch, wanted })
    }
}

/// A patch, and the status that it leads to.
#[derive(Debug)]
struct StatusPatch {
    patch: Value,
    wanted: Value,
}

/// Transition times that we make up ourselves differ each time they are made up.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            condition.remove("lastTransitionTime");
        }
    }
    status
}

async fn wait_until(began: Instant, until: Option<Moment>) {
    match until {
        Some(until) => tokio::time::sleep_until(began + until).await,
        None => std::future::pending().await,
    }
}

/// True when the agent would be given the same. Its status tells the generation that it has seen; and whether the pod is
/// ready depends on conditions that others write, where the pod names them as its gates.
fn same_content(one: &Pod, other: &Pod) -> bool {
    let (a, b) = (&one.metadata, &other.metadata);
    one.spec == other.spec
        && a.generation == b.generation
        && a.labels == b.labels
        && a.annotations == b.annotations
        && gates(one) == gates(other)
}

/// How the readiness gates of a pod stand.
fn gates(pod: &Pod) -> Vec<Option<&str>> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let stands = |type_: &str| {
        let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
    };
    gates.map(|gate| stands(&gate.condition_type)).collect()
}

/// The grace period of a pod that is being deleted.
fn deletion_grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests;
