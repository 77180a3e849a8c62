//! The conditions that a kubelet owns. Those of others are kept.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use super::{Facts, seconds};
use crate::pod::lifecycle::{Machine, Part};

/// The condition types that a kubelet writes.
const OWNED: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A condition without its times.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, reason: None, message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { status: false, reason: Some(reason), message }
    }
}

/// All conditions of the pod, those of others first.
pub(super) fn conditions(
    pod: &Pod,
    previous: &PodStatus,
    machine: &Machine,
    (init, app): (&[ContainerStatus], &[ContainerStatus]),
    phase: &str,
    facts: &Facts<'_>,
) -> Vec<PodCondition> {
    let told = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<PodCondition> =
        told.filter(|condition| !OWNED.contains(&condition.type_.as_str())).cloned().collect();
    let ready = containers_ready(pod, app, phase);
    let verdicts = [
        ("PodReadyToStartContainers", ready_to_start(machine)),
        ("Initialized", initialized(init, app, phase)),
        ("Ready", pod_ready(pod, &conditions, &ready)),
        ("ContainersReady", ready),
        ("PodScheduled", Verdict::yes()),
    ];
    for (type_, verdict) in verdicts {
        conditions.push(dated(type_, verdict, pod, previous, facts));
    }
    conditions
}

/// The transition time is that of the last change of the condition's status.
fn dated(type_: &str, verdict: Verdict, pod: &Pod, previous: &PodStatus, facts: &Facts<'_>) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let told = [Some(previous), pod.status.as_ref()].into_iter().flatten();
    let mut told = told.flat_map(|status| status.conditions.iter().flatten());
    let same = told.find(|condition| condition.type_ == type_).filter(|condition| condition.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: Some(verdict.message).filter(|message| !message.is_empty()),
        last_transition_time: same
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(seconds(facts.now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

fn ready_to_start(machine: &Machine) -> Verdict {
    match machine.sandbox {
        Part::Ready | Part::Updating { .. } => Verdict::yes(),
        Part::Absent | Part::Making { .. } | Part::MakeFailed(_) => {
            Verdict::no("PodSandboxNotReady", "no pod sandbox exists".to_owned())
        }
        Part::Releasing | Part::ReleaseFailed(_) | Part::Released => {
            Verdict::no("PodSandboxNotReady", "pod sandbox is not ready".to_owned())
        }
    }
}

fn initialized(init: &[ContainerStatus], app: &[ContainerStatus], phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { reason: Some("PodCompleted"), ..Verdict::yes() };
    }
    let has_run = |status: &ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let incomplete = names(init.iter().filter(|status| !status.ready));
    if incomplete.is_empty() || app.iter().any(has_run) {
        return Verdict::yes();
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict::no("ContainersNotInitialized", message)
}

fn containers_ready(pod: &Pod, app: &[ContainerStatus], phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", String::new()),
        "Failed" => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    // Named in the pod's order, as a kubelet does.
    let unready: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter(|container| app.iter().any(|status| status.name == container.name && !status.ready))
        .map(|container| container.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
}

fn pod_ready(pod: &Pod, conditions: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict { status: false, reason: containers.reason, message: containers.message.clone() };
    }
    let mut unready = Vec::new();
    for gate in pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten()) {
        let type_ = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *type_) {
            None => unready.push(format!("corresponding condition of pod readiness gate \"{type_}\" does not exist.")),
            Some(condition) if condition.status != "True" => unready.push(format!(
                "the status of pod readiness gate \"{type_}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if unready.is_empty() { Verdict::yes() } else { Verdict::no("ReadinessGatesNotReady", unready.join(", ")) }
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> Vec<&'a str> {
    statuses.map(|status| status.name.as_str()).collect()
}
