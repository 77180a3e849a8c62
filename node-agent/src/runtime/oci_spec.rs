//! From a container of ours to the runtime specification of the Open Container Initiative (`config.json`): what a kubelet with
//! containerd would put there.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use larder_monitor::files::FILTER_ANNOTATION;
use serde_json::{Value, json};

use super::capabilities;
use super::users::ProcessUser;
use super::{BindMount, ContainerSpec, ResourceSpec};
use crate::host::cgroup::CgroupFeatures;
use crate::host::cgroup::limits::{CPU_PERIOD, CPU_SHARES, CgroupLimits};

/// The search path of a container whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Parts of `/proc` and `/sys` that a container does not get to see, as a kubelet's default `procMount` has it.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Parts of `/proc` that a container must not write to.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The least quota of a period, in microseconds, that the kernel takes.
const MIN_CPU_QUOTA: u64 = 1_000;

/// What the specification needs besides the container itself: what the host is like, and what was looked up.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The mounted root file system.
    pub rootfs: &'a Path,
    /// Who the process runs as.
    pub user: &'a ProcessUser,
    /// The container's cgroup, below the root of every hierarchy.
    pub cgroups_path: &'a str,
    /// Which cgroups the host has.
    pub cgroups: CgroupFeatures,
    /// The capabilities that this host lets us give away, as `CAP_...`.
    pub available_capabilities: &'a BTreeSet<String>,
    /// The least `oom_score_adj` that we may set.
    pub oom_score_floor: i32,
    /// The system call filter.
    pub seccomp: Seccomp,
}

/// A system call filter, in the form that the runtime takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Seccomp {
    /// No filter.
    Unconfined,
    /// A program that crun loads as it is, in base64.
    Program(String),
    /// A profile that the runtime compiles.
    Profile(Value),
}

/// The container cannot be described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the pod nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// There is no such capability.
    #[error("unknown capability to {verb} \"{name}\"")]
    UnknownCapability {
        /// `add` or `drop`.
        verb: &'static str,
        /// As the pod has it.
        name: String,
    },
    /// A path that has to begin with a slash does not.
    #[error("{what} {path:?} is not an absolute path")]
    RelativePath {
        /// Which path this is.
        what: &'static str,
        /// As it was given.
        path: String,
    },
}

/// Describes a container for the runtime.
///
/// # Errors
/// When the pod or the image ask for what cannot be.
pub fn describe(spec: &ContainerSpec, surroundings: &Surroundings<'_>) -> Result<Value, SpecError> {
    let mut linux = json!({
        "cgroupsPath": surroundings.cgroups_path,
        "namespaces": namespaces(spec, surroundings.cgroups),
        "resources": resources(spec, surroundings.cgroups),
    });
    if !spec.security.privileged {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READONLY_PATHS);
    }
    let mut annotations = annotations(spec);
    match &surroundings.seccomp {
        Seccomp::Unconfined => {}
        Seccomp::Program(program) => {
            annotations.insert(FILTER_ANNOTATION.into(), program.clone());
        }
        Seccomp::Profile(profile) => linux["seccomp"] = profile.clone(),
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": surroundings.rootfs, "readonly": spec.security.read_only_root },
        "process": process(spec, surroundings)?,
        "mounts": mounts(spec)?,
        "linux": linux,
        "annotations": annotations,
    }))
}

fn process(spec: &ContainerSpec, surroundings: &Surroundings<'_>) -> Result<Value, SpecError> {
    let user = surroundings.user;
    let capabilities = capabilities::resolve(&spec.security, surroundings.available_capabilities)?;
    Ok(json!({
        "terminal": spec.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
        "args": arguments(spec)?,
        "env": environment(spec),
        "cwd": working_dir(spec)?,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "noNewPrivileges": !spec.security.allow_privilege_escalation,
        "oomScoreAdj": spec.resources.oom_score_adj.clamp(surroundings.oom_score_floor.clamp(-1000, 1000), 1000),
    }))
}

fn image_config(spec: &ContainerSpec) -> Option<&::oci_spec::image::Config> {
    spec.image.config().as_ref()
}

/// What to run: the pod's `command` replaces the image's entrypoint and its cmd, the pod's `args` only the cmd.
fn arguments(spec: &ContainerSpec) -> Result<Vec<String>, SpecError> {
    let image = |part: fn(&::oci_spec::image::Config) -> &Option<Vec<String>>| {
        image_config(spec).and_then(|config| part(config).clone()).unwrap_or_default()
    };
    let (mut command, mut args) = (spec.command.clone(), spec.args.clone());
    if command.is_empty() {
        if args.is_empty() {
            args = image(::oci_spec::image::Config::cmd);
        }
        command = image(::oci_spec::image::Config::entrypoint);
    }
    command.append(&mut args);
    if command.is_empty() { Err(SpecError::NoCommand) } else { Ok(command) }
}

/// The environment: defaults, under the image's, under the pod's. The order is kept, a later value replaces an earlier one.
fn environment(spec: &ContainerSpec) -> Vec<String> {
    let mut variables: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    variables.push(("HOSTNAME".into(), spec.hostname.clone()));
    if spec.tty {
        variables.push(("TERM".into(), "xterm".into()));
    }
    let image = image_config(spec).and_then(|config| config.env().as_deref()).unwrap_or_default();
    let image = image.iter().filter_map(|entry| entry.split_once('='));
    let image = image.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in image.chain(spec.env.iter().cloned()) {
        match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => variables.push((name, value)),
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn working_dir(spec: &ContainerSpec) -> Result<String, SpecError> {
    let image = || image_config(spec).and_then(|config| config.working_dir().clone());
    let dir = spec.working_dir.clone().filter(|dir| !dir.is_empty()).or_else(image).filter(|dir| !dir.is_empty());
    match dir {
        None => Ok("/".into()),
        Some(dir) if dir.starts_with('/') => Ok(dir),
        Some(path) => Err(SpecError::RelativePath { what: "working directory", path }),
    }
}

/// The pod's namespaces are joined; processes and mounts are the container's own.
fn namespaces(spec: &ContainerSpec, cgroups: CgroupFeatures) -> Value {
    let pod = &spec.namespaces;
    let mut namespaces = vec![
        json!({ "type": "pid" }),
        json!({ "type": "mount" }),
        json!({ "type": "network", "path": pod.network }),
        json!({ "type": "ipc", "path": pod.ipc }),
        json!({ "type": "uts", "path": pod.uts }),
    ];
    if cgroups.unified {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    Value::Array(namespaces)
}

/// The limits of a container's cgroups.
pub fn limits(spec: &ContainerSpec, cgroups: CgroupFeatures) -> CgroupLimits {
    let wanted = &spec.resources;
    let quota = |milli: u64| (milli.saturating_mul(CPU_PERIOD) / 1000).max(MIN_CPU_QUOTA);
    let memory_bytes = wanted.memory_limit_bytes.filter(|limit| *limit > 0);
    CgroupLimits {
        cpu_shares: cpu_shares(wanted),
        cpu_quota: wanted.cpu_limit_milli.filter(|limit| *limit > 0).map(quota),
        memory_bytes,
        no_swap: cgroups.swap && memory_bytes.is_some(),
        all_devices: spec.security.privileged,
    }
}

fn resources(spec: &ContainerSpec, cgroups: CgroupFeatures) -> Value {
    let limits = limits(spec, cgroups);
    let mut resources = json!({
        "devices": [{ "allow": limits.all_devices, "access": "rwm" }],
        "cpu": { "shares": limits.cpu_shares },
    });
    if let Some(quota) = limits.cpu_quota {
        resources["cpu"]["quota"] = json!(quota);
        resources["cpu"]["period"] = json!(CPU_PERIOD);
    }
    if let Some(limit) = limits.memory_bytes {
        resources["memory"] = json!({ "limit": limit });
        if limits.no_swap {
            // Memory and swap together, so that no swap can be used.
            resources["memory"]["swap"] = json!(limit);
        }
        if cgroups.unified {
            resources["unified"] = json!({ "memory.oom.group": "1" });
        }
    }
    resources
}

/// The processor's weight as a kubelet computes it: from the request, else from the limit, else the least there is.
fn cpu_shares(wanted: &ResourceSpec) -> u64 {
    let milli = wanted.cpu_request_milli.or(wanted.cpu_limit_milli).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(CPU_SHARES.0, CPU_SHARES.1)
}

/// The default mounts, without those that the pod replaces, and then the pod's, parents first.
fn mounts(spec: &ContainerSpec) -> Result<Vec<Value>, SpecError> {
    let mut mounts: Vec<Value> = default_mounts(spec)
        .into_iter()
        .filter(|(destination, _)| !spec.mounts.iter().any(|mount| mount.destination == Path::new(destination)))
        .map(|(_, mount)| mount)
        .collect();
    let mut ordered: Vec<&BindMount> = spec.mounts.iter().collect();
    ordered.sort_by_key(|mount| mount.destination.components().count());
    for mount in ordered {
        if !mount.destination.is_absolute() {
            let path = mount.destination.display().to_string();
            return Err(SpecError::RelativePath { what: "mount destination", path });
        }
        mounts.push(bind(
            &mount.destination.to_string_lossy(),
            &mount.source,
            if mount.read_only { "ro" } else { "rw" },
        ));
    }
    Ok(mounts)
}

fn default_mounts(spec: &ContainerSpec) -> Vec<(&'static str, Value)> {
    let access = if spec.security.privileged { "rw" } else { "ro" };
    let special = |destination: &'static str, kind: &str, source: &str, options: &[&str]| {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        (destination, mount)
    };
    vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        special("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        ("/dev/shm", bind("/dev/shm", &spec.shm, "rw")),
    ]
}

fn bind(destination: &str, source: &Path, access: &str) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", access] })
}

/// Who a container belongs to, for people and programs that look at the runtime's state.
fn annotations(spec: &ContainerSpec) -> BTreeMap<String, String> {
    let entries = [
        ("io.kubernetes.cri.container-name", &spec.name),
        ("io.kubernetes.cri.sandbox-name", &spec.pod.name),
        ("io.kubernetes.cri.sandbox-namespace", &spec.pod.namespace),
        ("io.kubernetes.cri.sandbox-uid", &spec.pod.uid),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

#[cfg(test)]
mod tests;
