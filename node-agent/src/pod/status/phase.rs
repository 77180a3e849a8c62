//! The phase, with reason and message.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{cause, is_final};
use crate::pod::{
    lifecycle::{Cause, ContainerKind, Machine, Node, Phase},
    restart::RestartPolicy,
    storage,
};

/// Phase, reason and message. A terminal phase never changes.
pub(super) fn phase(
    pod: &Pod,
    previous: &PodStatus,
    machine: &Machine,
) -> (&'static str, Option<String>, Option<String>) {
    let told = [previous, pod.status.as_ref().unwrap_or(previous)].into_iter().find(|status| is_final(status));
    if let Some(told) = told {
        return (known(told.phase.as_deref()), told.reason.clone(), told.message.clone());
    }
    match cause(machine) {
        Some(Cause::DeadlineExceeded) => {
            let message = "Pod was active on the node longer than the specified deadline";
            return ("Failed", Some("DeadlineExceeded".to_owned()), Some(message.to_owned()));
        }
        Some(Cause::Evicted(overuse)) => {
            return ("Failed", Some("Evicted".to_owned()), Some(storage::message(pod, overuse)));
        }
        Some(Cause::Finished) | None => {}
    }
    let phase = if machine.is_terminated() { end(machine) } else { alive(machine) };
    if previous.phase.as_deref() == Some(phase) {
        return (phase, previous.reason.clone(), previous.message.clone());
    }
    (phase, None, None)
}

fn known(phase: Option<&str>) -> &'static str {
    if phase == Some("Succeeded") { "Succeeded" } else { "Failed" }
}

/// The phase of a pod whose containers will not run again.
fn end(machine: &Machine) -> &'static str {
    let succeeded =
        |index: usize| exit_code(&machine.nodes[index]) == Some(0) && machine.nodes[index].phase == Phase::Ended;
    if machine.is_initialized() && machine.of_kind(ContainerKind::App).all(succeeded) {
        return "Succeeded";
    }
    "Failed"
}

/// The phase of a pod that is coming up, running or being stopped.
fn alive(machine: &Machine) -> &'static str {
    if machine.plan.restart_policy == RestartPolicy::Never && init_failed(machine) {
        return "Failed";
    }
    if !machine.is_initialized() {
        return "Pending";
    }
    let waits_for_first_run = |index: usize| {
        let node = &machine.nodes[index];
        !is_running(node) && node.shown_runs().0.is_none_or(|run| run.exit.is_none())
    };
    if machine.of_kind(ContainerKind::App).any(waits_for_first_run) {
        return "Pending";
    }
    "Running"
}

fn init_failed(machine: &Machine) -> bool {
    machine.of_kind(ContainerKind::Init).any(|index| exit_code(&machine.nodes[index]).is_some_and(|code| code != 0))
}

fn is_running(node: &Node) -> bool {
    matches!(node.phase, Phase::Running { .. })
}

fn exit_code(node: &Node) -> Option<i32> {
    node.current.as_ref().and_then(|run| run.exit.as_ref()).map(|exit| exit.exit_code)
}
