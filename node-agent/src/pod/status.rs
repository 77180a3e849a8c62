//! The pod's status, as a kubelet of the same version computes it (v1.37: `kubelet_pods.go`, `status/generate.go`,
//! `prober_manager.go`).
//!
//! Pure: no I/O, no clock, no randomness.

mod conditions;
mod containers;
mod phase;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{HostIP, Pod, PodIP, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

pub(crate) use self::containers::{describe, process_user};
use super::{
    lifecycle::{Cause, Machine, Stage, Then},
    quality,
};

/// What the status says that neither the pod nor its machine know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The pod's addresses, the primary one first; empty while there is no sandbox.
    pub ips: &'a [IpAddr],
    /// The runtime's name, the scheme of container ids: `crun`.
    pub runtime: &'a str,
    /// When the agent took the pod on.
    pub started_at: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// Computes the status of a pod. `previous` is the status told last, or the API server's.
pub fn status(pod: &Pod, previous: &PodStatus, machine: &Machine, facts: &Facts<'_>) -> PodStatus {
    let over = machine.is_terminated();
    let mut container_statuses = containers::app_statuses(pod, machine, facts);
    let mut init_statuses = containers::init_statuses(pod, machine, facts);
    if over {
        containers::end_all(machine.is_initialized(), &mut init_statuses, &mut container_statuses);
    }
    let (phase, reason, message) = phase::phase(pod, previous, machine);
    let conditions =
        conditions::conditions(pod, previous, machine, (&init_statuses, &container_statuses), phase, facts);
    let ips = known_ips(previous, facts);
    let host_ip = ips.first().cloned();
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        container_statuses: Some(container_statuses),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        // On ECI a pod is its own host: hostIP is the pod's own address.
        host_ips: host_ip.as_ref().map(|ip| vec![HostIP { ip: ip.clone() }]),
        host_ip,
        qos_class: Some(quality::class(pod).to_owned()),
        start_time: previous.start_time.clone().or(Some(seconds(facts.started_at))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: previous.nominated_node_name.clone(),
        resource_claim_statuses: previous.resource_claim_statuses.clone(),
        ..PodStatus::default()
    }
}

/// True when the status says that the pod has run to its end, so nothing of it may ever run again.
pub fn is_final(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// A pod keeps its addresses in the status after its sandbox is gone.
fn known_ips(previous: &PodStatus, facts: &Facts<'_>) -> Vec<String> {
    if !facts.ips.is_empty() {
        return facts.ips.iter().map(ToString::to_string).collect();
    }
    previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

/// The API keeps times in whole seconds.
fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// Why the machine ends or has ended the pod, if not by its own containers.
fn cause(machine: &Machine) -> Option<Cause> {
    match machine.stage {
        Stage::Stopping { then: Then::Keep(cause), .. } | Stage::Terminal(cause) => Some(cause),
        Stage::Stopping { then: Then::Remove, .. } | Stage::Active | Stage::Removing | Stage::Gone => None,
    }
}
