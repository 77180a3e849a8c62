//! From a container of a pod to what the runtime is given.
//!
//! Pure: no I/O, no clock, no randomness.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};

use super::{environment::Environment, quality};
use crate::{
    image::PresentImage,
    runtime::{BindMount, ContainerId, ContainerSpec, GroupsPolicy, PodIdentity, ResourceSpec, SecuritySpec},
    sandbox::Sandbox,
};

/// What a container is put together from, besides the pod.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// Its name on this host.
    pub(crate) id: ContainerId,
    /// Its pod.
    pub(crate) identity: PodIdentity,
    /// Which run this is.
    pub(crate) attempt: u32,
    /// What it runs on.
    pub(crate) image: &'a PresentImage,
    /// Variables, command and arguments.
    pub(crate) environment: Environment,
    /// What is mounted into it.
    pub(crate) mounts: Vec<BindMount>,
    /// What it shares with the pod's other containers.
    pub(crate) sandbox: &'a Sandbox,
    /// What `hostname` prints.
    pub(crate) hostname: String,
    /// The folder of all logs.
    pub(crate) log_root: &'a Path,
    /// What the kernel kills first when memory is short.
    pub(crate) oom_score_adj: i32,
}

/// Puts a container together.
pub(crate) fn container_spec(pod: &Pod, container: &Container, parts: Parts<'_>) -> ContainerSpec {
    let pod_security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let log_path = log_path(parts.log_root, &parts.identity, &container.name, parts.attempt);
    ContainerSpec {
        id: parts.id,
        pod: parts.identity,
        name: container.name.clone(),
        attempt: parts.attempt,
        image: parts.image.config.clone(),
        command: parts.environment.command,
        args: parts.environment.args,
        env: parts.environment.env,
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        tty: container.tty.unwrap_or_default(),
        stdin: container.stdin.unwrap_or_default(),
        security: security(pod_security, container.security_context.as_ref()),
        resources: resources(container, parts.oom_score_adj),
        mounts: parts.mounts,
        lower_dirs: parts.image.lower_dirs.clone(),
        namespaces: parts.sandbox.namespaces.clone(),
        shm: parts.sandbox.shm.clone(),
        hostname: parts.hostname,
        log_path,
    }
}

/// The folder of a pod's logs: `<log root>/<namespace>_<name>_<uid>`.
pub(crate) fn log_folder(log_root: &Path, pod: &PodIdentity) -> PathBuf {
    log_root.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// The log of one run of a container.
pub(crate) fn log_path(log_root: &Path, pod: &PodIdentity, container: &str, attempt: u32) -> PathBuf {
    log_folder(log_root, pod).join(container).join(format!("{attempt}.log"))
}

/// The container's security context with the pod's folded in; the container's word wins.
fn security(pod: Option<&PodSecurityContext>, container: Option<&SecurityContext>) -> SecuritySpec {
    let (pod_default, container_default) = (PodSecurityContext::default(), SecurityContext::default());
    let (pod, container) = (pod.unwrap_or(&pod_default), container.unwrap_or(&container_default));
    let capabilities = container.capabilities.clone().unwrap_or_default();
    let privileged = container.privileged.unwrap_or_default();
    let seccomp = container.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    let groups = pod.supplemental_groups.iter().flatten().chain(&pod.fs_group);
    SecuritySpec {
        run_as_user: container.run_as_user.or(pod.run_as_user).and_then(|id| u32::try_from(id).ok()),
        run_as_group: container.run_as_group.or(pod.run_as_group).and_then(|id| u32::try_from(id).ok()),
        run_as_non_root: container.run_as_non_root.or(pod.run_as_non_root).unwrap_or_default(),
        supplemental_groups: groups.filter_map(|id| u32::try_from(*id).ok()).collect(),
        groups_policy: match pod.supplemental_groups_policy.as_deref() {
            Some("Strict") => GroupsPolicy::Strict,
            _ => GroupsPolicy::Merge,
        },
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        allow_privilege_escalation: container.allow_privilege_escalation.unwrap_or(true),
        read_only_root: container.read_only_root_filesystem.unwrap_or_default(),
        privileged,
        seccomp_unconfined: seccomp.is_some_and(|profile| profile.type_ == "Unconfined"),
    }
}

fn resources(container: &Container, oom_score_adj: i32) -> ResourceSpec {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let cpu_limit_milli = quality::quantity_of(limits, "cpu").map(|quantity| quantity.milli());
    ResourceSpec {
        // As the API server has it: what is limited and asks for nothing asks for its limit.
        cpu_request_milli: quality::quantity_of(requests, "cpu").map(|quantity| quantity.milli()).or(cpu_limit_milli),
        cpu_limit_milli,
        memory_limit_bytes: quality::quantity_of(limits, "memory").map(|quantity| quantity.value()),
        oom_score_adj,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_word_wins_over_the_pods() {
        let pod = serde_json::from_value(serde_json::json!({
            "runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "supplementalGroupsPolicy": "Strict",
            "seccompProfile": {"type": "Unconfined"},
        }))
        .unwrap();
        let container = serde_json::from_value(serde_json::json!({
            "runAsUser": 9, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}, "allowPrivilegeEscalation": false,
        }))
        .unwrap();
        let security = security(Some(&pod), Some(&container));
        assert_eq!(
            security,
            SecuritySpec {
                run_as_user: Some(9),
                run_as_group: Some(2),
                supplemental_groups: vec![4, 3],
                groups_policy: GroupsPolicy::Strict,
                add_capabilities: vec!["NET_ADMIN".into()],
                drop_capabilities: vec!["ALL".into()],
                ..SecuritySpec::default()
            }
        );
    }

    #[test]
    fn limits_are_read_and_stand_in_for_requests() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}
        ]}}))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let resources = resources(container, 5);
        assert_eq!(resources.cpu_request_milli, Some(250));
        assert_eq!(resources.cpu_limit_milli, Some(250));
        assert_eq!(resources.memory_limit_bytes, Some(64 << 20));
    }
}
