//! What the API server's status of a pod should be, and the patch that makes it so.
//!
//! The agent computes a pod's status; here it is laid over what the API server has, so that what others have written there
//! (conditions, `PodScheduled`, a phase that is final) lives on.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::resize;

/// Tells on ECI whether the instance behind a pod could be made.
const INSTANCE_CREATED: &str = "ContainerInstanceCreated";
/// The conditions that the agent decides.
const OWNED: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
/// What the kubelet says of a container whose end nobody saw.
const UNKNOWN_END: (&str, i32) = ("ContainerStatusUnknown", 137);

/// Why a pod that is wanted does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// In one word.
    pub(super) reason: String,
    /// For people.
    pub(super) message: String,
    /// Trying again as it is does not help.
    pub(super) permanent: bool,
}

/// What the agent says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reported<'a> {
    /// It does not have the pod.
    Nothing,
    /// The pod is at this point.
    State(&'a PodStatus),
    /// The pod has ended, last seen at this point.
    Last(&'a PodStatus),
}

/// Everything that the status follows from, besides what the agent says.
#[derive(Debug, Clone)]
pub(super) struct Situation<'a> {
    /// The pod at the API server.
    pub(super) pod: &'a Pod,
    /// Why it does not run.
    pub(super) failure: Option<&'a Failure>,
    /// Address of the node.
    pub(super) host_ip: Option<&'a str>,
    /// The newest generation of the pod that the agent has been given.
    pub(super) handed_over: Option<i64>,
    /// Says that a resize is not done.
    pub(super) resize: Option<PodCondition>,
    /// The time.
    pub(super) now: Timestamp,
}

/// True for the phases that are final.
pub(super) fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// True for the status of a pod whose containers are being made for the first time, of which there is nothing else to say.
pub(super) fn is_on_its_way(status: &PodStatus) -> bool {
    let waits = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.map(|waiting| waiting.reason.as_deref().unwrap_or_default());
        container.restart_count == 0
            && container.last_state.as_ref().is_none_or(|last| last.terminated.is_none())
            && matches!(reason, Some("" | "ContainerCreating" | "PodInitializing"))
    };
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    matches!(status.phase.as_deref(), None | Some("Pending")) && status.reason.is_none() && all.into_iter().all(waits)
}

fn never_restarts(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never")
}

/// True when a pod had containers once and may not have them started again: what is lost of it stays lost.
pub(super) fn is_lost_without_agent(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let began = |container: &ContainerStatus| {
        container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    never_restarts(pod) && !is_terminal(status.phase.as_deref()) && all.into_iter().any(began)
}

/// What the status should be; `None` when there is nothing to say beyond what is there.
pub(super) fn wanted(situation: &Situation<'_>, reported: Reported<'_>) -> Option<PodStatus> {
    let current = situation.pod.status.clone().unwrap_or_default();
    let final_phase = current.phase.clone().filter(|phase| is_terminal(Some(phase)));
    let mut status = match reported {
        Reported::State(status) => status.clone(),
        Reported::Last(status) => ended(status.clone()),
        Reported::Nothing if final_phase.is_some() => return None,
        Reported::Nothing if situation.pod.metadata.deletion_timestamp.is_some() => never_ran(situation.pod, &current)?,
        Reported::Nothing if is_lost_without_agent(situation.pod) => ended(lost(current.clone())),
        Reported::Nothing => return situation.failure.map(|failure| failed(situation, &current, failure)),
    };
    if final_phase.is_some() {
        status.phase = final_phase;
        status.reason.clone_from(&current.reason);
        status.message.clone_from(&current.message);
    }
    // The agent gives back the conditions of others as they were when it was handed the pod. Written again, they would
    // undo what their owners, we among them, have said since.
    status.conditions.get_or_insert_default().retain(|condition| OWNED.contains(&condition.type_.as_str()));
    if let Some(condition) = find(&current, INSTANCE_CREATED).filter(|condition| condition.status != "True") {
        let made = PodCondition { type_: condition.type_.clone(), status: "True".into(), ..PodCondition::default() };
        status.conditions.get_or_insert_default().push(made);
    }
    status.conditions.get_or_insert_default().extend(situation.resize.clone());
    if status.observed_generation.is_none() {
        status.observed_generation = situation.handed_over.max(current.observed_generation);
    }
    Some(laid_over(&current, status, situation))
}

fn find<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// Keeps what the agent cannot know.
fn laid_over(current: &PodStatus, mut status: PodStatus, situation: &Situation<'_>) -> PodStatus {
    status.qos_class = current.qos_class.clone().or(status.qos_class);
    status.start_time = current.start_time.clone().or(status.start_time);
    status.host_ip = status.host_ip.or_else(|| situation.host_ip.map(str::to_owned)).or(current.host_ip.clone());
    status.host_ips = match (&status.host_ips, &status.host_ip) {
        (Some(given), _) if !given.is_empty() => Some(given.clone()),
        (_, Some(address)) => Some(vec![HostIP { ip: address.clone() }]),
        (_, None) => None,
    };
    status.pod_ips = match (&status.pod_ips, &status.pod_ip) {
        (Some(given), _) if !given.is_empty() => Some(given.clone()),
        (_, Some(address)) => Some(vec![PodIP { ip: address.clone() }]),
        (_, None) => None,
    };
    let conditions = status.conditions.take().unwrap_or_default();
    let conditions = conditions.into_iter().map(|mut condition| {
        match find(current, &condition.type_) {
            Some(before) if before.status == condition.status => {
                condition.last_transition_time.clone_from(&before.last_transition_time);
            }
            Some(_) | None => {
                condition.last_transition_time.get_or_insert(Time(situation.now));
            }
        }
        condition
    });
    status.conditions = Some(conditions.collect());
    status
}

/// Everything that has no end yet gets one, and the phase is final.
fn ended(mut status: PodStatus) -> PodStatus {
    let init = status.init_container_statuses.iter_mut().flatten();
    let plain = status.container_statuses.iter_mut().flatten();
    for container in init.chain(plain).chain(status.ephemeral_container_statuses.iter_mut().flatten()) {
        let has_end = container.state.as_ref().is_some_and(|state| state.terminated.is_some());
        if !has_end {
            let (reason, exit_code) = UNKNOWN_END;
            let terminated = ContainerStateTerminated {
                exit_code,
                reason: Some(reason.to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                ..ContainerStateTerminated::default()
            };
            container.state = Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
        }
        container.ready = false;
        container.started = Some(false);
    }
    if !is_terminal(status.phase.as_deref()) {
        let succeeded = |container: &ContainerStatus| {
            container.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|end| end.exit_code == 0)
        };
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let success = !containers.is_empty() && containers.iter().all(succeeded);
        status.phase = Some(if success { "Succeeded" } else { "Failed" }.to_owned());
        let reason = if success { "PodCompleted" } else { "PodFailed" };
        for condition in status.conditions.iter_mut().flatten() {
            if matches!(condition.type_.as_str(), "Ready" | "ContainersReady") {
                condition.status = "False".to_owned();
                condition.reason = Some(reason.to_owned());
                condition.message = None;
            }
        }
    }
    status
}

fn lost(mut status: PodStatus) -> PodStatus {
    status.message = Some("The node has lost the pod's containers, and its restart policy is Never".to_owned());
    status
}

/// A pod that is deleted before it ran: controllers that hold it by a finalizer wait for a final phase.
fn never_ran(pod: &Pod, current: &PodStatus) -> Option<PodStatus> {
    let held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    held.then(|| ended(current.clone()))
}

fn failed(situation: &Situation<'_>, current: &PodStatus, failure: &Failure) -> PodStatus {
    let gives_up = failure.permanent && never_restarts(situation.pod);
    let not_made = PodCondition {
        type_: INSTANCE_CREATED.to_owned(),
        status: "False".to_owned(),
        reason: Some(failure.reason.clone()),
        message: Some(failure.message.clone()),
        ..PodCondition::default()
    };
    let status = PodStatus {
        phase: Some(if gives_up { "Failed" } else { "Pending" }.to_owned()),
        reason: Some(failure.reason.clone()),
        message: Some(failure.message.clone()),
        conditions: Some(vec![not_made]),
        ..current.clone()
    };
    laid_over(current, status, situation)
}

/// Fields that are taken away when they are no longer wanted.
const CLEARED: [&str; 7] = [
    "reason",
    "message",
    "podIP",
    "podIPs",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
];
/// The list that is merged by type, so that others can have theirs in it.
const CONDITIONS: &str = "conditions";
/// Conditions that are taken away when they are no longer wanted. All others stay: they may be somebody else's.
const TAKEN_BACK: [&str; 1] = [resize::PENDING];
/// Lists that a strategic merge would join, and that are to be replaced.
const REPLACED: [&str; 2] = ["podIPs", "hostIPs"];

/// A status as the API server would give it back: without what is empty.
pub(super) fn canonical(status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    prune(&mut value);
    value
}

/// Takes away what JSON of the API server leaves out; `false` and `0` stay.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, inner| !is_empty(inner));
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The strategic merge patch from one status to another; `None` when nothing differs.
pub(super) fn patch(current: &Value, wanted: &Value) -> Option<Value> {
    let mut change = Map::new();
    let empty = Map::new();
    let (current, wanted) = (current.as_object().unwrap_or(&empty), wanted.as_object().unwrap_or(&empty));
    for (key, value) in wanted.iter().filter(|(key, _)| *key != CONDITIONS) {
        if current.get(key) != Some(value) {
            change.insert(key.clone(), replacing(key, value));
        }
    }
    let differing = differing_conditions(current.get(CONDITIONS), wanted.get(CONDITIONS));
    if !differing.is_empty() {
        change.insert(CONDITIONS.to_owned(), Value::Array(differing));
    }
    for key in CLEARED {
        if current.contains_key(key) && !wanted.contains_key(key) {
            change.insert(key.to_owned(), Value::Null);
        }
    }
    (!change.is_empty()).then(|| json!({"status": change}))
}

fn replacing(key: &str, value: &Value) -> Value {
    if let (Value::Array(list), true) = (value, REPLACED.contains(&key)) {
        return list.iter().cloned().chain([json!({"$patch": "replace"})]).collect();
    }
    value.clone()
}

fn differing_conditions(current: Option<&Value>, wanted: Option<&Value>) -> Vec<Value> {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let (current, wanted) = (list(current), list(wanted));
    let names = |all: &[Value], type_: &str| all.iter().any(|condition| condition["type"] == type_);
    let over = TAKEN_BACK.iter().filter(|type_| names(&current, type_) && !names(&wanted, type_));
    let over: Vec<Value> = over.map(|type_| json!({"$patch": "delete", "type": type_})).collect();
    let differing = wanted.into_iter().filter(|condition| !current.contains(condition));
    differing.map(|condition| clearing(&current, condition)).chain(over).collect()
}

/// A merge keeps the reason of the condition before, unless it is taken away.
fn clearing(current: &[Value], mut condition: Value) -> Value {
    let before = current.iter().find(|before| before["type"] == condition["type"]);
    for key in ["reason", "message"] {
        if condition.get(key).is_none() && before.is_some_and(|before| before.get(key).is_some()) {
            condition[key] = Value::Null;
        }
    }
    condition
}

#[cfg(test)]
mod tests;
