//! A pod's machine, rebuilt from what is left of an earlier life: the record of this agent and the containers on the host,
//! or, after a reboot of the host, the status that the API server kept.
//!
//! Pure: no I/O, no clock, no randomness.

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use super::{
    ledger::Record,
    lifecycle::{Cause, ContainerKind, Event, Machine, Node, Part, Phase, Plan, Run, Stage},
    status,
};
use crate::runtime::{ContainerExit, ContainerState};

/// The exit code of a container of which nobody knows how it ended.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// The newest container of a name that was found on the host.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Its place in the plan.
    pub(crate) index: usize,
    /// Which run it is, and on what.
    pub(crate) run: Run,
    /// Where it stands.
    pub(crate) state: ContainerState,
}

/// Rebuilds the machine of a pod that an earlier life of this process ran. The events are still to be taken in.
pub(crate) fn resume(plan: Plan, record: Option<Record>, seen: &[Seen], now: Timestamp) -> (Machine, Vec<Event>) {
    let mut machine = Machine::new(plan);
    if let Some(record) = record {
        machine.stage = record.stage;
        for (node, recorded) in machine.nodes.iter_mut().zip(record.nodes) {
            *node = recorded;
        }
    }
    let mut events = Vec::new();
    for (index, node) in machine.nodes.iter_mut().enumerate() {
        match seen.iter().find(|seen| seen.index == index) {
            Some(seen) => meet(node, seen),
            // It was there, and nobody removed it: whatever it was doing, it is over.
            None if node.phase == Phase::Launched => {
                events.push(Event::Exited(index, lost(now)));
                continue;
            }
            None => continue,
        }
        if node.phase == Phase::Launched {
            events.extend(state_event(index, seen));
        }
    }
    (machine, events)
}

/// Brings a record in line with the container that was found.
fn meet(node: &mut Node, seen: &Seen) {
    match &node.current {
        Some(run) if run.attempt > seen.run.attempt => {}
        // Its end is on record, and what follows from it, too.
        Some(run) if run.attempt == seen.run.attempt && run.exit.is_some() => {}
        Some(run) if run.attempt == seen.run.attempt => node.phase = Phase::Launched,
        Some(_) | None => {
            node.previous = node.current.take();
            node.current = Some(seen.run.clone());
            node.phase = Phase::Launched;
        }
    }
}

fn state_event(index: usize, seen: &[Seen]) -> Option<Event> {
    match &seen.iter().find(|seen| seen.index == index)?.state {
        ContainerState::Starting => None,
        ContainerState::Running { started_at, .. } => Some(Event::Running(index, *started_at)),
        ContainerState::Exited(exit) => Some(Event::Exited(index, exit.clone())),
    }
}

fn lost(now: Timestamp) -> ContainerExit {
    ContainerExit {
        exit_code: UNKNOWN_EXIT_CODE,
        signal: None,
        reason: "ContainerStatusUnknown".to_owned(),
        message: "The container could not be located on the host. It used to be running".to_owned(),
        started_at: None,
        finished_at: now,
    }
}

/// The machine of a pod that is new to this agent. The events are still to be taken in.
///
/// A pod that the API server knows to be over never runs again. One whose containers have run before, on this host before
/// its reboot, goes on counting from there.
pub(crate) fn begin(plan: Plan, pod: &Pod, now: Timestamp) -> (Machine, Vec<Event>) {
    let mut machine = Machine::new(plan);
    let Some(status) = &pod.status else { return (machine, Vec::new()) };
    let over = status::is_final(status);
    let mut events = Vec::new();
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let containers = init.chain(spec.into_iter().flat_map(|spec| &spec.containers));
    for (index, container) in containers.enumerate() {
        let Some((run, exit)) = find(status, &container.name).and_then(|told| past_run(told, now)) else { continue };
        let node = &mut machine.nodes[index];
        if over {
            node.current = Some(Run { exit: Some(exit), ..run });
            node.phase = Phase::Ended;
            continue;
        }
        match machine.plan.containers[index].kind {
            // The sandbox is a new one, so initialisation is done anew.
            ContainerKind::Init => node.current = Some(Run { exit: Some(exit), ..run }),
            ContainerKind::App => {
                node.current = Some(run);
                node.phase = Phase::Launched;
                events.push(Event::Exited(index, exit));
            }
        }
    }
    if over {
        machine.stage = Stage::Terminal(Cause::Finished);
        machine.remains = Part::Absent;
    }
    (machine, events)
}

/// The status that a new pod starts from: what the API server has, less what was true of another sandbox.
pub(crate) fn first_status(pod: &Pod) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    if !status::is_final(&status) {
        status.pod_ip = None;
        status.pod_ips = None;
    }
    status
}

fn find<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let app = status.container_statuses.iter().flatten();
    app.chain(status.init_container_statuses.iter().flatten()).find(|status| status.name == name)
}

/// The last run of a container as the API server has it, and how it ended.
fn past_run(told: &ContainerStatus, now: Timestamp) -> Option<(Run, ContainerExit)> {
    let ended = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
        state.and_then(|state| state.terminated.as_ref()).map(|terminated| exit_of(terminated, now))
    };
    let was_running = told.state.as_ref().is_some_and(|state| state.running.is_some());
    let exit =
        if was_running { lost(now) } else { ended(told.state.as_ref()).or_else(|| ended(told.last_state.as_ref()))? };
    let id = told.container_id.as_deref().unwrap_or_default();
    let run = Run {
        id: id.split_once("://").map_or(id, |(_, id)| id).to_owned(),
        attempt: u32::try_from(told.restart_count).unwrap_or_default(),
        image: told.image.clone(),
        image_id: told.image_id.clone(),
        user: told.user.as_ref().and_then(status::process_user),
        exit: None,
    };
    Some((run, exit))
}

fn exit_of(terminated: &ContainerStateTerminated, now: Timestamp) -> ContainerExit {
    ContainerExit {
        exit_code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone().unwrap_or_default(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated.finished_at.as_ref().map_or(now, |time| time.0),
    }
}
