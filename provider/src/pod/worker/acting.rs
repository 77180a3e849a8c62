//! What a worker does: one call or a few, and what it remembers of how they went.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use tokio::time::Instant;

use super::{AgentInput, ApiInput, Sent, Settled, StatusPatch, Worker};
use crate::agent::{AgentError, RunPod, Stopping};
use crate::cluster::events::{HELD_AT_MOST, regarding_pod};
use crate::cluster::{ClusterError, EventNote, Source};
use crate::meters::Outcome;
use crate::pod::PROVIDER_FAILED;
use crate::pod::acted_on;
use crate::pod::agent_pods::AgentPod;
use crate::pod::cache_choice::{Admitted, CacheDecision, Notice, Refusal};
use crate::pod::content::Gathered;
use crate::pod::next_action::{Action, StopSent};
use crate::pod::out_of_memory;
use crate::pod::resize;
use crate::pod::status::{self, Failure};

/// How long something that is refused for good is left alone before it is tried again all the same: the agent may have
/// been replaced by one that can.
const REFUSED: Duration = Duration::from_secs(300);

/// Until the stream of an agent must have said that it has a pod which it was handed.
const ON_RECORD: Duration = Duration::from_secs(10);

/// How long the API server is not told that a pod which was just handed over is on its way. One whose images are cached runs
/// well within it, and is then told of once; what is told of the way there would be in its way.
const IN_SIGHT: Duration = Duration::from_millis(150);
/// How much longer that is for each pod that was handed over before and is still on its way: about what the start of one takes
/// of the processors of a small host, on which they have their turn one after the other.
const TURN: Duration = Duration::from_millis(25);
/// How long it is at most, however many there are.
const IN_SIGHT_AT_MOST: Duration = Duration::from_secs(3);

impl Worker {
    /// Does what was decided.
    pub(super) async fn act(&mut self, action: Action, patch: Option<StatusPatch>) {
        match action {
            Action::Rest { .. } | Action::Forget => {}
            Action::HandOver => self.hand_over().await,
            Action::Stop { grace } => self.stop(grace).await,
            Action::WriteStatus => {
                if let Some(patch) = patch {
                    self.write_status(patch).await;
                }
            }
            Action::Annotate => self.annotate().await,
            Action::Remove => self.remove().await,
        }
    }

    async fn hand_over(&mut self) {
        let ApiInput::Present(pod) = self.api.clone() else { return };
        let runs = matches!(self.agent, AgentInput::Known(AgentPod::State(_)));
        let began = Instant::now();
        let before = u32::try_from(self.means.events.held_by()).unwrap_or(u32::MAX);
        self.hold = (!runs).then(|| self.means.events.hold(HELD_AT_MOST));
        let outcome = self.try_hand_over(&pod, runs).await;
        let how = match &outcome {
            Ok(()) => Outcome::Done,
            Err(failure) if failure.permanent => Outcome::Refused,
            Err(_) => Outcome::Failed,
        };
        self.means.meters.hand_overs.record(how, began.elapsed());
        match outcome {
            Ok(()) => {
                self.failure = None;
                self.blocked.hand_over = None;
                self.backoff.hand_over.reset();
                self.nothing_runs = false;
                self.awaited = Some(self.moment() + ON_RECORD);
                if !runs {
                    let in_sight = IN_SIGHT.saturating_add(TURN.saturating_mul(before)).min(IN_SIGHT_AT_MOST);
                    self.in_sight = Some(self.moment() + in_sight);
                    self.marks_by = Some(self.moment() + HELD_AT_MOST);
                    self.hold = Some(self.means.events.hold(HELD_AT_MOST));
                }
            }
            Err(failure) => {
                self.hold = None;
                self.not_handed_over(failure, runs);
            }
        }
    }

    async fn try_hand_over(&mut self, pod: &Arc<Pod>, runs: bool) -> Result<(), Failure> {
        let held = resize::held_back(pod, &self.allocated());
        let chosen = async {
            match (&self.admitted, runs) {
                (Some(admitted), _) => Ok((admitted.clone(), false)),
                (None, true) => Ok((self.means.caches.recall(&self.means.node, &held), false)),
                (None, false) => match self.means.caches.choose(&self.means.node, pod).await {
                    CacheDecision::Run(admitted) => Ok((admitted, true)),
                    CacheDecision::Refuse(refusal) => Err((refusal, true)),
                    CacheDecision::Later(refusal) => Err((refusal, false)),
                },
            }
        };
        // Both only ask; neither waits for the other.
        let (chosen, gathered) = tokio::join!(chosen, self.content.gather(pod));
        let admitted = match chosen {
            Ok((admitted, fresh)) => self.admit(admitted, fresh, pod),
            Err((refusal, permanent)) => {
                self.waits_for_choice = !permanent;
                return Err(self.refuse(refusal, permanent, pod));
            }
        };
        let gathered = gathered?;
        for (secret, why) in &gathered.unusable_pull_secrets {
            self.note(pod, self.kubelet(), true, "FailedToRetrieveImagePullSecret", &unusable(secret, why));
        }
        let marked = self.with_marks(&held);
        let (run, contents) = run_pod(marked.clone(), admitted, gathered);
        self.means.agent.run_pod(&run).await.map_err(failure_of)?;
        self.sent = Some(Sent { pod: marked, contents });
        Ok(())
    }

    /// Says that a resize is not done, once for each: when it is written for the first time.
    fn say_infeasible(&self) {
        let ApiInput::Present(pod) = &self.api else { return };
        let Some(pending) = resize::pending(pod, &self.allocated()) else { return };
        let mut told = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_told = |told: &PodCondition| {
            told.type_ == pending.type_ && told.observed_generation == pending.observed_generation
        };
        if !told.any(is_told) {
            self.note(pod, self.kubelet(), true, "ResizeInfeasible", &resize::infeasible(pod, &pending));
        }
    }

    /// Says that a container was killed for want of memory, when that is written for the first time.
    fn say_out_of_memory(&self, answered: &Pod) {
        let ApiInput::Present(before) = &self.api else { return };
        let Some(after) = &answered.status else { return };
        if out_of_memory::is_new(before.status.as_ref(), after) {
            let (reason, message) = out_of_memory::EVENT;
            self.note(answered, Source::EciService, true, reason, message);
        }
    }

    fn admit(&mut self, admitted: Admitted, fresh: bool, pod: &Pod) -> Admitted {
        if fresh {
            self.notices(pod, &admitted.notices);
        }
        self.waits_for_choice = false;
        self.admitted = Some(admitted.clone());
        admitted
    }

    fn refuse(&mut self, refusal: Refusal, permanent: bool, pod: &Pod) -> Failure {
        self.notices(pod, &refusal.notices);
        Failure { reason: refusal.reason, message: refusal.message, permanent }
    }

    fn not_handed_over(&mut self, failure: Failure, runs: bool) {
        tracing::info!(permanent = failure.permanent, message = failure.message, "pod is not handed over");
        let wait = self.backoff.hand_over.next();
        let wait = if failure.permanent { wait.max(REFUSED) } else { wait };
        self.blocked.hand_over = Some(self.moment() + wait);
        if let ApiInput::Present(pod) = &self.api {
            let reason = if runs { "ProviderUpdateFailed" } else { "ProviderCreateFailed" };
            let repeated = self.failure.as_ref() == Some(&failure);
            if !repeated || failure.permanent {
                self.note(pod, Source::EciService, true, reason, &failure.message);
            }
        }
        self.failure = Some(failure);
    }

    async fn stop(&mut self, grace: Option<Duration>) {
        match self.means.agent.stop_pod(&self.name.uid, grace).await {
            Ok(answer) => {
                self.backoff.stop.reset();
                self.stop = Some(StopSent { grace, at: self.moment() });
                self.nothing_runs = answer == Stopping::Unknown;
                if answer == Stopping::Begun && !matches!(self.agent, AgentInput::Known(_)) {
                    // The agent has it after all, and its stream is about to say so.
                    self.blocked.stop = Some(self.moment() + Duration::from_secs(1));
                }
                tracing::info!(?grace, ?answer, "asked the agent to end the pod");
            }
            Err(error) => {
                let wait = self.backoff.stop.next();
                self.blocked.stop = Some(self.moment() + wait);
                tracing::warn!(%error, "agent does not take the wish to end the pod");
            }
        }
    }

    async fn write_status(&mut self, patch: StatusPatch) {
        let began = Instant::now();
        let answer = self.means.pods.patch_pod_status(&self.name, patch.patch).await;
        self.means.meters.status_writes.record(how(&answer), began.elapsed());
        match answer {
            Ok(pod) => {
                self.backoff.write_status.reset();
                let answered = status::canonical(pod.status.as_ref().unwrap_or(&Default::default()));
                self.settled = Some(Settled { wanted: patch.wanted, answered });
                self.say_infeasible();
                self.say_out_of_memory(&pod);
                self.take_answer(pod);
            }
            Err(error) => {
                let refused = matches!(error, ClusterError::Refused { .. });
                self.not_written(&error, "status");
                let wait = self.backoff.write_status.next();
                // A status that the API server finds invalid stays so until the agent says something else.
                self.blocked.write_status = Some(self.moment() + if refused { wait.max(REFUSED) } else { wait });
                if let (true, ApiInput::Present(pod)) = (refused, &self.api) {
                    let answered = status::canonical(pod.status.as_ref().unwrap_or(&Default::default()));
                    self.settled = Some(Settled { wanted: patch.wanted, answered });
                    self.blocked.write_status = None;
                }
            }
        }
    }

    async fn annotate(&mut self) {
        let (marks, ignored) = (self.marks(), self.ignored());
        match self.means.pods.annotate_pod(&self.name, &marks).await {
            Ok(pod) => {
                self.backoff.annotate.reset();
                self.settled_marks = Some(marks);
                if let Some(ignored) = ignored {
                    self.note(&pod, Source::EciService, true, acted_on::REASON, &ignored.message());
                }
                self.take_answer(pod);
            }
            Err(error) => {
                if matches!(error, ClusterError::Refused { .. }) {
                    self.settled_marks = Some(marks);
                }
                self.not_written(&error, "annotations");
                let wait = self.backoff.annotate.next();
                self.blocked.annotate = Some(self.moment() + wait);
            }
        }
    }

    async fn remove(&mut self) {
        let began = Instant::now();
        let answer = self.means.pods.remove_pod(&self.name).await;
        self.means.meters.removals.record(how(&answer), began.elapsed());
        match answer {
            Ok(()) => {
                self.backoff.remove.reset();
                self.removed = true;
                tracing::info!("nothing of the pod runs, removed its object");
            }
            Err(error) => {
                self.not_written(&error, "removal");
                let wait = self.backoff.remove.next();
                self.blocked.remove = Some(self.moment() + wait);
            }
        }
    }

    fn not_written(&self, error: &ClusterError, what: &str) {
        match error {
            // Gone or replaced: the watch is about to say so.
            ClusterError::NotFound { .. } | ClusterError::Conflict { .. } => {
                tracing::debug!(%error, what, "the pod is not there any more");
            }
            ClusterError::Refused { .. } | ClusterError::Unavailable { .. } => {
                tracing::warn!(%error, what, "API server does not take it");
            }
        }
    }

    /// An answer to a write is newer than what the watch has said so far.
    fn take_answer(&mut self, pod: Pod) {
        if pod.metadata.uid.as_ref() == Some(&self.name.uid) {
            self.echo.answered(&pod);
            self.api = ApiInput::Present(Arc::new(pod));
        }
    }

    fn kubelet(&self) -> Source {
        Source::Kubelet { node: self.means.node.clone() }
    }

    fn notices(&self, pod: &Pod, notices: &[Notice]) {
        for notice in notices {
            self.note(pod, Source::EciService, notice.warning, &notice.reason, &notice.message);
        }
    }

    fn note(&self, pod: &Pod, source: Source, warning: bool, reason: &str, message: &str) {
        self.means.events.record(EventNote {
            regarding: regarding_pod(pod),
            source,
            warning,
            reason: reason.to_owned(),
            message: message.to_owned(),
            time: None,
        });
    }
}

fn how<T>(answer: &Result<T, ClusterError>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Done,
        Err(ClusterError::Unavailable { .. }) => Outcome::Failed,
        Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. } | ClusterError::Refused { .. }) => {
            Outcome::Refused
        }
    }
}

fn unusable(secret: &str, why: &str) -> String {
    format!("Unable to use image pull secret {secret}: {why}; attempting to pull the image may not succeed.")
}

fn failure_of(error: AgentError) -> Failure {
    Failure { reason: PROVIDER_FAILED.to_owned(), message: error.to_string(), permanent: error.is_permanent() }
}

fn run_pod(pod: Arc<Pod>, admitted: Admitted, gathered: Gathered) -> (RunPod, crate::pod::content::Contents) {
    let run = RunPod {
        pod,
        config_maps: gathered.config_maps,
        secrets: gathered.secrets,
        tokens: gathered.tokens,
        service_env: gathered.service_env,
        credentials: gathered.credentials,
        image_cache: admitted.image_cache,
        plain_http_registries: admitted.plain_http_registries,
        insecure_registries: admitted.insecure_registries,
    };
    (run, gathered.contents)
}
