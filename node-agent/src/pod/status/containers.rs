//! Statuses of the containers.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, ContainerUser, LinuxContainerUser, Pod, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{Facts, seconds};
use crate::{
    pod::{
        lifecycle::{ContainerKind, Failure, Image, Machine, Node, Phase, Run},
        restart::go_seconds,
    },
    runtime::users::ProcessUser,
};

/// The exit code of a container of which nobody knows how it ended.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// Statuses of the app containers, in order of their names.
pub(super) fn app_statuses(pod: &Pod, machine: &Machine, facts: &Facts<'_>) -> Vec<ContainerStatus> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let indexes = machine.of_kind(ContainerKind::App);
    let mut statuses: Vec<_> = containers
        .zip(indexes)
        .map(|(container, index)| container_status(pod, container, index, machine, facts))
        .collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// Statuses of the init containers, in the pod's order.
pub(super) fn init_statuses(pod: &Pod, machine: &Machine, facts: &Facts<'_>) -> Vec<ContainerStatus> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let indexes = machine.of_kind(ContainerKind::Init);
    containers.zip(indexes).map(|(container, index)| container_status(pod, container, index, machine, facts)).collect()
}

/// In a pod whose processes are gone every container that may have run has ended, whether its end was seen or not.
pub(super) fn end_all(initialized: bool, init: &mut [ContainerStatus], app: &mut [ContainerStatus]) {
    if initialized {
        app.iter_mut().for_each(end_unknown);
    }
    let last_begun = init.iter().rposition(|status| !is_waiting(status) || last_exit(status).is_some()).unwrap_or(0);
    init.iter_mut().take(last_begun + 1).for_each(end_unknown);
}

fn end_unknown(status: &mut ContainerStatus) {
    if state(status).is_some_and(|state| state.terminated.is_some()) {
        return;
    }
    let terminated = ContainerStateTerminated {
        exit_code: UNKNOWN_EXIT_CODE,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        ..ContainerStateTerminated::default()
    };
    status.state = Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
    status.ready = false;
    status.started = Some(false);
}

fn is_waiting(status: &ContainerStatus) -> bool {
    state(status).is_none_or(|state| state.waiting.is_some())
}

fn state(status: &ContainerStatus) -> Option<&ContainerState> {
    status.state.as_ref()
}

fn last_exit(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref().and_then(|state| state.terminated.as_ref())
}

fn container_status(
    pod: &Pod,
    container: &Container,
    index: usize,
    machine: &Machine,
    facts: &Facts<'_>,
) -> ContainerStatus {
    let plan = machine.plan.containers[index];
    let (run, _) = machine.nodes[index].shown_runs();
    let (state, last_state) = states(pod, container, index, machine, facts);
    let running = state.running.is_some();
    let succeeded = state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0);
    let created = run.filter(|run| !run.id.is_empty());
    ContainerStatus {
        name: container.name.clone(),
        image: run
            .map(|run| run.image.clone())
            .filter(|image| !image.is_empty())
            .unwrap_or_else(|| container.image.clone().unwrap_or_default()),
        image_id: run.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: run.and_then(|run| full_id(run, facts)),
        ready: match plan.kind {
            ContainerKind::App => running,
            ContainerKind::Init => succeeded,
        },
        started: Some(running),
        restart_count: run.map_or(0, |run| i32::try_from(run.attempt).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state,
        resources: created.and(container.resources.clone()),
        allocated_resources: created
            .and(container.resources.as_ref())
            .and_then(|resources| resources.requests.clone())
            .filter(|requests| !requests.is_empty()),
        volume_mounts: volume_mounts(container),
        user: run.and_then(|run| run.user.as_ref()).map(container_user),
        ..ContainerStatus::default()
    }
}

/// The container's state and its last one.
fn states(
    pod: &Pod,
    container: &Container,
    index: usize,
    machine: &Machine,
    facts: &Facts<'_>,
) -> (ContainerState, Option<ContainerState>) {
    let node = &machine.nodes[index];
    let (current, previous) = node.shown_runs();
    let current = current.and_then(|run| terminated(run, facts));
    let previous = previous.and_then(|run| terminated(run, facts));
    if let Phase::Running { since, .. } = node.phase {
        return (running(seconds(since)), previous);
    }
    let waiting = waiting_reason(pod, container, index, machine);
    match (waiting, current) {
        (Some(failure), last) => (waiting_state(failure), last.or(previous)),
        // About to run again, or ended for good: how it ended is what there is to say.
        (None, Some(ended)) => (ended, previous),
        (None, None) => (waiting_state(default_waiting(machine)), previous),
    }
}

/// Why the container waits, when that is worth more than how it ended.
fn waiting_reason(pod: &Pod, container: &Container, index: usize, machine: &Machine) -> Option<Failure> {
    match &machine.nodes[index].phase {
        Phase::StartFailed { failure, .. } => Some(failure.clone()),
        Phase::BackOff { error_shows_until: Some(_), .. } => {
            let exit = machine.nodes[index].current.as_ref().and_then(|run| run.exit.as_ref());
            let message = exit.map(|exit| exit.message.clone()).unwrap_or_default();
            Some(Failure { reason: "RunContainerError".to_owned(), message })
        }
        Phase::BackOff { retry, .. } => Some(Failure {
            reason: "CrashLoopBackOff".to_owned(),
            message: format!(
                "back-off {} restarting failed container={} pod={}",
                go_seconds(retry.delay),
                container.name,
                describe(pod)
            ),
        }),
        Phase::Waiting => image_failure(container, index, machine),
        Phase::Starting | Phase::Launched | Phase::Running { .. } | Phase::Ended => None,
    }
}

/// The image's failure, once it is the container's turn.
fn image_failure(container: &Container, index: usize, machine: &Machine) -> Option<Failure> {
    let image = machine.images.get(machine.plan.containers[index].image)?;
    let Image::Failed { failure, error_shows_until, .. } = image else { return None };
    let its_turn = match machine.plan.containers[index].kind {
        ContainerKind::App => machine.is_initialized(),
        ContainerKind::Init => {
            machine.of_kind(ContainerKind::Init).take_while(|i| *i < index).all(|i| is_done(&machine.nodes[i]))
        }
    };
    if !its_turn {
        return None;
    }
    if error_shows_until.is_some() || failure.reason != "ErrImagePull" {
        return Some(failure.clone());
    }
    let name = container.image.as_deref().unwrap_or_default();
    let message = format!("Back-off pulling image \"{name}\": {}: {}", failure.reason, failure.message);
    Some(Failure { reason: "ImagePullBackOff".to_owned(), message })
}

fn is_done(node: &Node) -> bool {
    node.phase == Phase::Ended
}

fn default_waiting(machine: &Machine) -> Failure {
    let has_init = machine.of_kind(ContainerKind::Init).next().is_some();
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    Failure { reason: reason.to_owned(), message: String::new() }
}

fn waiting_state(failure: Failure) -> ContainerState {
    let message = Some(failure.message).filter(|message| !message.is_empty());
    let waiting = ContainerStateWaiting { reason: Some(failure.reason), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn running(started_at: Time) -> ContainerState {
    let running = ContainerStateRunning { started_at: Some(started_at) };
    ContainerState { running: Some(running), ..ContainerState::default() }
}

fn terminated(run: &Run, facts: &Facts<'_>) -> Option<ContainerState> {
    let exit = run.exit.as_ref()?;
    let terminated = ContainerStateTerminated {
        exit_code: exit.exit_code,
        signal: exit.signal,
        reason: Some(exit.reason.clone()).filter(|reason| !reason.is_empty()),
        message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
        started_at: exit.started_at.map(seconds),
        finished_at: Some(seconds(exit.finished_at)),
        container_id: full_id(run, facts),
    };
    Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() })
}

fn full_id(run: &Run, facts: &Facts<'_>) -> Option<String> {
    (!run.id.is_empty()).then(|| format!("{}://{}", facts.runtime, run.id))
}

fn container_user(user: &ProcessUser) -> ContainerUser {
    let linux = LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: Some(user.additional_gids.iter().copied().map(i64::from).collect()),
    };
    ContainerUser { linux: Some(linux) }
}

/// Who a container ran as, by a status that was told; none when its numbers are no user's.
pub(crate) fn process_user(told: &ContainerUser) -> Option<ProcessUser> {
    let linux = told.linux.as_ref()?;
    let groups = linux.supplemental_groups.iter().flatten().map(|gid| u32::try_from(*gid).ok());
    Some(ProcessUser {
        uid: u32::try_from(linux.uid).ok()?,
        gid: u32::try_from(linux.gid).ok()?,
        additional_gids: groups.collect::<Option<_>>()?,
    })
}

/// `name_namespace(uid)`, as the kubelet's messages have it.
pub(crate) fn describe(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    format!(
        "{}_{}({})",
        metadata.name.as_deref().unwrap_or_default(),
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.uid.as_deref().unwrap_or_default()
    )
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let statuses = mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        // Only plain read-only mounts are made, which leaves mounts below them writable.
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| "Disabled".to_owned()),
        volume_status: None,
    });
    Some(statuses.collect())
}
