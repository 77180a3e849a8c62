//! Pure: no I/O, no clock, no randomness.
//!
//! Which pods a virtual node takes. ECI gives every pod a machine of its own, so nothing of a host can be asked for; the
//! policy `eci` refuses the same things, and says what, where in the pod, and what to do about it. The policy `kubelet`
//! leaves it all to the agent.

use std::fmt;

use k8s_openapi::api::core::v1::{Capabilities, Pod, PodSpec, SecurityContext, Sysctl};

use super::unhonoured::{Weight, unhonoured};

/// Which pods a virtual node takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodPolicy {
    /// What ECI takes.
    #[default]
    Eci,
    /// What the agent can run.
    Kubelet,
}

/// Something that a pod asks for and does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where it stands: `spec.volumes[0].hostPath`.
    pub field: String,
    /// What it is.
    pub what: String,
    /// What to do instead.
    pub remedy: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.what, self.remedy)
    }
}

/// The capabilities that a container may add, as ECI lists them.
const CAPABILITIES: [&str; 16] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "KILL",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "SYS_CHROOT",
    "SYS_PTRACE",
];

/// Sysctls of a pod's own namespaces, as ECI lists them: a name, or the beginning of one.
const SYSCTLS: [&str; 5] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "net."];

/// What a pod asks for that the policy does not grant, in the order of the pod's fields. Empty: it is taken.
pub fn violations(policy: PodPolicy, pod: &Pod) -> Vec<Violation> {
    if policy == PodPolicy::Kubelet {
        return Vec::new();
    }
    let mut found = Found(Vec::new());
    found.owner(pod);
    if let Some(spec) = &pod.spec {
        found.host_namespaces(spec);
        found.volumes(spec);
        found.sysctls(spec);
        found.containers(spec);
    }
    for asked in unhonoured(pod).into_iter().filter(|asked| asked.weight == Weight::Decides) {
        found.add(asked.field, &asked.what, asked.remedy);
    }
    found.0
}

/// All violations in one text.
pub fn explain(violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
    format!("Pod is not supported on a virtual node. {}.", all.join(". "))
}

struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, field: impl Into<String>, what: &str, remedy: &str) {
        self.0.push(Violation { field: field.into(), what: what.to_owned(), remedy: remedy.to_owned() });
    }

    fn owner(&mut self, pod: &Pod) {
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let position = owners.iter().position(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
        if let Some(at) = position {
            self.add(
                format!("metadata.ownerReferences[{at}]"),
                "pods of a DaemonSet do not run here",
                "use a sidecar container, and keep the DaemonSet away with a node affinity \"type NotIn [virtual-kubelet]\"",
            );
        }
    }

    fn host_namespaces(&mut self, spec: &PodSpec) {
        if spec.host_network == Some(true) {
            self.add(
                "spec.hostNetwork",
                "the host's network is not available",
                "remove it; the pod has an address of its own",
            );
        }
        if spec.host_pid == Some(true) {
            self.add(
                "spec.hostPID",
                "the host's processes are not available",
                "remove it; use shareProcessNamespace inside the pod",
            );
        }
        if spec.host_ipc == Some(true) {
            self.add(
                "spec.hostIPC",
                "the host's IPC is not available",
                "remove it; containers of a pod share their IPC",
            );
        }
    }

    fn volumes(&mut self, spec: &PodSpec) {
        for (at, volume) in spec.volumes.iter().flatten().enumerate() {
            if volume.host_path.is_some() {
                self.add(
                    format!("spec.volumes[{at}].hostPath"),
                    &format!("volume {:?} is a path of the host, which is not available", volume.name),
                    "use an emptyDir, or storage with a claim",
                );
            }
        }
    }

    fn sysctls(&mut self, spec: &PodSpec) {
        let sysctls = spec.security_context.iter().filter_map(|context| context.sysctls.as_deref()).flatten();
        for (at, sysctl) in sysctls.enumerate().filter(|(_, sysctl)| !is_sysctl_granted(sysctl)) {
            self.add(
                format!("spec.securityContext.sysctls[{at}]"),
                &format!("sysctl {:?} is not one of a pod", sysctl.name),
                "remove it",
            );
        }
    }

    fn containers(&mut self, spec: &PodSpec) {
        for (at, container) in spec.init_containers.iter().flatten().enumerate() {
            self.container(&format!("spec.initContainers[{at}]"), container.security_context.as_ref());
        }
        for (at, container) in spec.containers.iter().enumerate() {
            self.container(&format!("spec.containers[{at}]"), container.security_context.as_ref());
            for (port_at, port) in container.ports.iter().flatten().enumerate() {
                if port.host_port.is_some_and(|port| port > 0) && spec.host_network != Some(true) {
                    self.add(
                        format!("spec.containers[{at}].ports[{port_at}].hostPort"),
                        "ports of the host are not available",
                        "remove it; reach the pod at its own address or through a Service",
                    );
                }
            }
        }
        for (at, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
            self.container(&format!("spec.ephemeralContainers[{at}]"), container.security_context.as_ref());
        }
    }

    fn container(&mut self, field: &str, context: Option<&SecurityContext>) {
        let Some(context) = context else { return };
        if context.privileged == Some(true) {
            self.add(
                format!("{field}.securityContext.privileged"),
                "privileged containers are not available",
                "remove it, and add the capabilities that are needed",
            );
        }
        for name in context.capabilities.iter().flat_map(refused_capabilities) {
            self.add(
                format!("{field}.securityContext.capabilities.add"),
                &format!("capability {name:?} is not available"),
                &format!("remove it; these are: {}", CAPABILITIES.join(", ")),
            );
        }
    }
}

fn refused_capabilities(capabilities: &Capabilities) -> impl Iterator<Item = &str> {
    let added = capabilities.add.iter().flatten().map(String::as_str);
    added.filter(|name| {
        let upper = name.to_ascii_uppercase();
        !CAPABILITIES.contains(&upper.strip_prefix("CAP_").unwrap_or(&upper))
    })
}

fn is_sysctl_granted(sysctl: &Sysctl) -> bool {
    // The API takes slashes for dots, too.
    let name = sysctl.name.replace('/', ".");
    name == "vm.min_free_kbytes"
        || (name != "net.ipv4.tcp_syncookies" && SYSCTLS.iter().any(|granted| name.starts_with(granted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn pod(metadata: Value, mut spec: Value) -> Pod {
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c", "image": "nginx"}]);
        }
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn with_context(context: Value) -> Value {
        json!({"containers": [{"name": "c", "image": "nginx", "securityContext": context}]})
    }

    #[rstest]
    #[case(json!({"hostNetwork": true}), "spec.hostNetwork")]
    #[case(json!({"hostPID": true}), "spec.hostPID")]
    #[case(json!({"hostIPC": true}), "spec.hostIPC")]
    #[case(json!({"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/"}}]}),
        "spec.volumes[1].hostPath")]
    #[case(with_context(json!({"privileged": true})), "spec.containers[0].securityContext.privileged")]
    #[case(with_context(json!({"capabilities": {"add": ["NET_ADMIN", "SYS_ADMIN"]}})),
        "spec.containers[0].securityContext.capabilities.add")]
    #[case(with_context(json!({"capabilities": {"add": ["ALL"]}})),
        "spec.containers[0].securityContext.capabilities.add")]
    #[case(json!({"initContainers": [{"name": "i", "image": "x", "securityContext": {"privileged": true}}]}),
        "spec.initContainers[0].securityContext.privileged")]
    #[case(json!({"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        "spec.containers[0].ports[0].hostPort")]
    #[case(json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}),
        "spec.securityContext.sysctls[0]")]
    #[case(json!({"containers": [{"name": "c", "image": "x", "env": [{"name": "ECI_CONTAINER_TYPE", "value": "sidecar"}]}]}),
        "spec.containers[0].env[0]")]
    #[case(json!({"securityContext": {"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]}}),
        "spec.securityContext.sysctls[0]")]
    fn refused(#[case] spec: Value, #[case] field: &str) {
        let pod = pod(json!({}), spec);
        let fields: Vec<_> = violations(PodPolicy::Eci, &pod).into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, [field]);
        assert_eq!(violations(PodPolicy::Kubelet, &pod), []);
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"hostNetwork": false, "volumes": [{"name": "a", "emptyDir": {}}]}))]
    #[case(with_context(json!({"privileged": false, "capabilities": {"add": ["CAP_NET_ADMIN", "sys_ptrace"], "drop": ["ALL"]}})))]
    #[case(json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "9"}, {"name": "kernel.shmmax", "value": "1"}]}}))]
    fn taken(#[case] spec: Value) {
        assert_eq!(violations(PodPolicy::Eci, &pod(json!({}), spec)), []);
    }

    #[test]
    fn daemon_set_pods_are_refused_and_others_are_not() {
        let owned = |kind: &str| {
            pod(
                json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "d", "uid": "u", "controller": true}]}),
                json!({}),
            )
        };
        assert_eq!(violations(PodPolicy::Eci, &owned("DaemonSet"))[0].field, "metadata.ownerReferences[0]");
        assert_eq!(violations(PodPolicy::Eci, &owned("ReplicaSet")), []);
    }

    #[test]
    fn the_text_says_what_where_and_what_to_do() {
        let pod = pod(json!({}), json!({"hostNetwork": true, "hostPID": true}));
        let text = explain(&violations(PodPolicy::Eci, &pod));
        assert_eq!(
            text,
            "Pod is not supported on a virtual node. spec.hostNetwork: the host's network is not available; remove it; the pod \
             has an address of its own. spec.hostPID: the host's processes are not available; remove it; use \
             shareProcessNamespace inside the pod."
        );
    }
}
