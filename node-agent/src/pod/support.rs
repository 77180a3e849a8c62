//! What this agent does not offer. A pod that uses it is refused, with the field and the remedy: it is never run as if it
//! had been honoured.
//!
//! Pure: no I/O, no clock, no randomness.

#[cfg(test)]
mod tests;

use std::{collections::HashSet, path::Path};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext, Volume, VolumeMount};

/// Sysctls that act on the pod's own namespaces: IPC and network.
const NAMESPACED_SYSCTLS: [&str; 4] = ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."];

/// What the operator allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Containers may be privileged.
    pub allow_privileged: bool,
}

/// Why a pod is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}; {remedy}")]
pub struct Unsupported {
    /// `spec.containers[1].livenessProbe` ...
    pub field: String,
    /// What about it.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// The things that are refused, collected: the user learns of all of them at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node cannot run the pod: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "))]
pub struct Refusal(pub Vec<Unsupported>);

/// Checks a pod that is new to the node.
///
/// # Errors
/// When it uses something that is not offered.
pub fn check(pod: &Pod, policy: Policy) -> Result<(), Refusal> {
    let mut found = Findings(Vec::new());
    check_all(pod, policy, &mut found);
    let ephemeral = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref());
    let remedy = "this node runs no ephemeral containers; leave them out or use another node";
    found.refuse_if(ephemeral.is_some_and(|list| !list.is_empty()), "spec.ephemeralContainers", remedy);
    found.into_result()
}

/// Checks a newer wish for a pod that is on record. Ephemeral containers come later and cannot be taken out again, so they
/// are passed over, and not run: refused, they would keep new tokens and settings from the pod for the rest of its life.
///
/// # Errors
/// When it uses something else that is not offered.
pub fn check_known(pod: &Pod, policy: Policy) -> Result<(), Refusal> {
    let mut found = Findings(Vec::new());
    check_all(pod, policy, &mut found);
    found.into_result()
}

fn check_all(pod: &Pod, policy: Policy, found: &mut Findings) {
    match &pod.spec {
        None => found.add("spec", "is missing", "give the pod a spec"),
        Some(spec) => {
            check_pod(spec, found);
            check_volumes(spec, found);
            check_containers(spec, policy, found);
        }
    }
}

struct Findings(Vec<Unsupported>);

impl Findings {
    fn into_result(self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal(self.0)) }
    }

    fn add(&mut self, field: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Unsupported { field: field.into(), why: why.into(), remedy: remedy.into() });
    }

    fn refuse_if(&mut self, used: bool, field: impl Into<String>, remedy: &str) {
        if used {
            self.add(field, "is not supported by this node", remedy);
        }
    }
}

const LEAVE_OUT: &str = "leave it out or use another node";

fn check_pod(spec: &PodSpec, found: &mut Findings) {
    let set = |value: Option<bool>| value == Some(true);
    let shares = "pods of this node share nothing with the host; leave it out";
    found.refuse_if(set(spec.host_network), "spec.hostNetwork", shares);
    found.refuse_if(set(spec.host_pid), "spec.hostPID", shares);
    found.refuse_if(set(spec.host_ipc), "spec.hostIPC", shares);
    found.refuse_if(set(spec.share_process_namespace), "spec.shareProcessNamespace", LEAVE_OUT);
    found.refuse_if(spec.host_users == Some(false), "spec.hostUsers=false", LEAVE_OUT);
    let has = |list: Option<usize>| list.is_some_and(|length| length > 0);
    found.refuse_if(has(spec.resource_claims.as_ref().map(Vec::len)), "spec.resourceClaims", LEAVE_OUT);
    found.refuse_if(spec.resources.is_some(), "spec.resources", "give each container its own resources");
    found.refuse_if(spec.runtime_class_name.is_some(), "spec.runtimeClassName", LEAVE_OUT);
    let os = spec.os.as_ref().is_some_and(|os| os.name != "linux");
    found.refuse_if(os, "spec.os", "this node runs Linux");
    if spec.containers.is_empty() {
        found.add("spec.containers", "is empty", "a pod has at least one container");
    }
    let Some(security) = &spec.security_context else { return };
    found.refuse_if(security.se_linux_options.is_some(), "spec.securityContext.seLinuxOptions", LEAVE_OUT);
    found.refuse_if(security.windows_options.is_some(), "spec.securityContext.windowsOptions", LEAVE_OUT);
    let policy = security.supplemental_groups_policy.as_deref();
    let unknown_policy = !matches!(policy, None | Some("Merge" | "Strict"));
    found.refuse_if(unknown_policy, "spec.securityContext.supplementalGroupsPolicy", "use Merge or Strict");
    let app_armor = security.app_armor_profile.as_ref().is_some_and(|profile| profile.type_ != "Unconfined");
    found.refuse_if(app_armor, "spec.securityContext.appArmorProfile", "leave it out or use Unconfined");
    let seccomp = security.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Localhost");
    found.refuse_if(seccomp, "spec.securityContext.seccompProfile.type=Localhost", "use RuntimeDefault");
    for (index, sysctl) in security.sysctls.iter().flatten().enumerate() {
        let namespaced =
            NAMESPACED_SYSCTLS.iter().any(|prefix| sysctl.name.starts_with(prefix)) || sysctl.name == "kernel.sem";
        let field = format!("spec.securityContext.sysctls[{index}] {}", sysctl.name);
        found.refuse_if(!namespaced, field, "only settings of the pod's own namespaces can be made");
    }
}

fn check_volumes(spec: &PodSpec, found: &mut Findings) {
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let offered = volume.empty_dir.is_some()
            || volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        if !offered {
            found.add(
                format!("spec.volumes[{index}].{} (volume {})", kind(volume), volume.name),
                "is not supported by this node",
                "use emptyDir, configMap, secret, downwardAPI or projected",
            );
        }
        let huge_pages = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
        let huge_pages = huge_pages.filter(|medium| medium.starts_with("HugePages"));
        found.refuse_if(
            huge_pages.is_some(),
            format!("spec.volumes[{index}].emptyDir.medium"),
            "use Memory or leave it out",
        );
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for (place, source) in sources.enumerate() {
            let offered = source.config_map.is_some()
                || source.secret.is_some()
                || source.downward_api.is_some()
                || source.service_account_token.is_some();
            found.refuse_if(
                !offered,
                format!("spec.volumes[{index}].projected.sources[{place}]"),
                "use configMap, secret, downwardAPI or serviceAccountToken",
            );
        }
    }
}

/// The kind of a volume that is not offered, as the API names it.
fn kind(volume: &Volume) -> &'static str {
    let kinds = [
        (volume.host_path.is_some(), "hostPath"),
        (volume.persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.csi.is_some(), "csi"),
        (volume.nfs.is_some(), "nfs"),
        (volume.image.is_some(), "image"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.flex_volume.is_some(), "flexVolume"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map_or("of a kind that is not known", |(_, kind)| kind)
}

fn check_containers(spec: &PodSpec, policy: Policy, found: &mut Findings) {
    let groups =
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)];
    let mut names = HashSet::new();
    for (group, containers) in groups {
        for (index, container) in containers.iter().enumerate() {
            let at = format!("spec.{group}[{index}]");
            if !is_label(&container.name) || !names.insert(&container.name) {
                found.add(
                    format!("{at}.name"),
                    "is not a name of its own",
                    "use a DNS label that no other container has",
                );
            }
            if container.image.as_deref().unwrap_or_default().is_empty() {
                found.add(format!("{at}.image"), "is missing", "name an image");
            }
            check_container(container, &at, found);
            check_mounts(container, &at, found);
            if let Some(security) = &container.security_context {
                check_security(security, &at, policy, found);
            }
        }
    }
}

/// A container's name is part of paths on the host, so it is not taken on trust.
fn is_label(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(valid)
}

fn check_container(container: &Container, at: &str, found: &mut Findings) {
    let later = "leave it out until this node has it, or use another node";
    found.refuse_if(container.liveness_probe.is_some(), format!("{at}.livenessProbe"), later);
    found.refuse_if(container.readiness_probe.is_some(), format!("{at}.readinessProbe"), later);
    found.refuse_if(container.startup_probe.is_some(), format!("{at}.startupProbe"), later);
    if let Some(lifecycle) = &container.lifecycle {
        found.refuse_if(lifecycle.post_start.is_some(), format!("{at}.lifecycle.postStart"), later);
        found.refuse_if(lifecycle.pre_stop.is_some(), format!("{at}.lifecycle.preStop"), later);
        found.refuse_if(lifecycle.stop_signal.is_some(), format!("{at}.lifecycle.stopSignal"), later);
    }
    found.refuse_if(container.restart_policy.is_some(), format!("{at}.restartPolicy"), "use the pod's restartPolicy");
    let rules = container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty());
    found.refuse_if(rules, format!("{at}.restartPolicyRules"), "use the pod's restartPolicy");
    let devices = container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty());
    found.refuse_if(devices, format!("{at}.volumeDevices"), LEAVE_OUT);
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let used = port.host_port.is_some_and(|port| port != 0);
        found.refuse_if(used, format!("{at}.ports[{index}].hostPort"), "reach the pod by its own address or a Service");
    }
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    for name in limits.map(|(name, _)| name) {
        let offered = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        found.refuse_if(!offered, format!("{at}.resources.limits {name}"), LEAVE_OUT);
    }
    let claims = container.resources.as_ref().and_then(|resources| resources.claims.as_ref());
    found.refuse_if(claims.is_some_and(|claims| !claims.is_empty()), format!("{at}.resources.claims"), LEAVE_OUT);
}

fn check_mounts(container: &Container, at: &str, found: &mut Findings) {
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        let used = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        found.refuse_if(used(&mount.sub_path), format!("{at}.subPath"), "mount the whole volume");
        found.refuse_if(used(&mount.sub_path_expr), format!("{at}.subPathExpr"), "mount the whole volume");
        let propagates = mount.mount_propagation.as_deref().is_some_and(|mode| mode != "None");
        found.refuse_if(propagates, format!("{at}.mountPropagation"), "use None");
        let recursive = mount.recursive_read_only.as_deref() == Some("Enabled");
        found.refuse_if(recursive, format!("{at}.recursiveReadOnly=Enabled"), "use IfPossible");
        let options = mount.bind_mount_options.as_ref().is_some_and(|options| !options.is_empty());
        found.refuse_if(options, format!("{at}.bindMountOptions"), LEAVE_OUT);
        check_path(mount, &at, found);
    }
}

/// What is mounted over the root or where the runtime mounts things itself would break the container in odd ways.
fn check_path(mount: &VolumeMount, at: &str, found: &mut Findings) {
    let path = Path::new(&mount.mount_path);
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        found.add(format!("{at}.mountPath"), "has a .. in it", "write the path without");
    }
}

fn check_security(security: &SecurityContext, at: &str, policy: Policy, found: &mut Findings) {
    let at = format!("{at}.securityContext");
    if security.privileged == Some(true) && !policy.allow_privileged {
        found.add(
            format!("{at}.privileged"),
            "is not allowed on this node",
            "add the capabilities that are needed, or start the agent with --allow-privileged",
        );
    }
    found.refuse_if(security.se_linux_options.is_some(), format!("{at}.seLinuxOptions"), LEAVE_OUT);
    found.refuse_if(security.windows_options.is_some(), format!("{at}.windowsOptions"), LEAVE_OUT);
    let proc_mount = security.proc_mount.as_deref().is_some_and(|mode| mode != "Default");
    found.refuse_if(proc_mount, format!("{at}.procMount"), "use Default");
    let app_armor = security.app_armor_profile.as_ref().is_some_and(|profile| profile.type_ != "Unconfined");
    found.refuse_if(app_armor, format!("{at}.appArmorProfile"), "leave it out or use Unconfined");
    let seccomp = security.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Localhost");
    found.refuse_if(seccomp, format!("{at}.seccompProfile.type=Localhost"), "use RuntimeDefault");
}
