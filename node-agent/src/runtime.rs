//! Containers: starting, watching and ending them through an OCI runtime (crun, runc, youki ...).
//!
//! Each container has a monitor process of its own that survives the agent, keeps the exit code and writes the log.

pub mod capabilities;
#[cfg(test)]
mod conformance;
pub mod exit;
mod monitor_client;
pub mod oci;
pub mod oci_spec;
mod program;
mod record;
mod rootfs;
pub mod seccomp;
mod syscalls;
pub mod users;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use self::users::ProcessUser;
use crate::sandbox::PodNamespaces;

/// Names a container on this host: 64 hexadecimal digits, as other runtimes have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// One that nobody has.
    pub fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 32]>()))
    }
}

/// Which pod a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Everything that is needed to run a container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Its name on this host, unless the runtime has something ready under another.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodIdentity,
    /// Its name in the pod.
    pub name: String,
    /// 0 for the first run, 1 for the first restart ...
    pub attempt: u32,
    /// What the image says of the process.
    pub image: Arc<::oci_spec::image::ImageConfiguration>,
    /// Overrides the image's entrypoint when not empty. Variables are expanded already.
    pub command: Vec<String>,
    /// Overrides the image's cmd when not empty. Variables are expanded already.
    pub args: Vec<String>,
    /// Environment; laid over the image's.
    pub env: Vec<(String, String)>,
    /// Overrides the image's working directory.
    pub working_dir: Option<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its standard input open.
    pub stdin: bool,
    /// Users, capabilities and the like.
    pub security: SecuritySpec,
    /// Processor and memory.
    pub resources: ResourceSpec,
    /// What is mounted into it, in order.
    pub mounts: Vec<BindMount>,
    /// Read-only directories of the image, highest first.
    pub lower_dirs: Vec<PathBuf>,
    /// The pod's namespaces.
    pub namespaces: PodNamespaces,
    /// The pod's `/dev/shm`.
    pub shm: PathBuf,
    /// What `hostname` prints.
    pub hostname: String,
    /// Where the log goes: `<log root>/<ns>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_path: PathBuf,
}

/// The security context of a container, with the pod's folded in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecuritySpec {
    /// Overrides the image's user.
    pub run_as_user: Option<u32>,
    /// Overrides the user's primary group.
    pub run_as_group: Option<u32>,
    /// Refuse to start as user 0.
    pub run_as_non_root: bool,
    /// Further groups, `fsGroup` among them.
    pub supplemental_groups: Vec<u32>,
    /// Where else groups come from.
    pub groups_policy: GroupsPolicy,
    /// Capabilities to add to the default set, without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Capabilities to take from the default set, without `CAP_`; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// False sets `no_new_privs`.
    pub allow_privilege_escalation: bool,
    /// Mount the root read-only.
    pub read_only_root: bool,
    /// All capabilities, no masks, no seccomp.
    pub privileged: bool,
    /// Run without the default seccomp profile.
    pub seccomp_unconfined: bool,
}

/// Whether the image has a say in a process' groups (`supplementalGroupsPolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// Those that the image's `/etc/group` puts the user into are added.
    #[default]
    Merge,
    /// Only what the pod names counts.
    Strict,
}

/// Limits of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceSpec {
    /// `resources.requests.cpu` in thousandths of a core.
    pub cpu_request_milli: Option<u64>,
    /// `resources.limits.cpu` in thousandths of a core.
    pub cpu_limit_milli: Option<u64>,
    /// `resources.limits.memory` in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// `oom_score_adj`, as the kubelet derives it from the pod's quality of service.
    pub oom_score_adj: i32,
}

/// One file or folder of the host, mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Without the right to write.
    pub read_only: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// The monitor is at work, no process yet.
    Starting,
    /// Its process runs.
    Running {
        /// Process id on the host.
        pid: u32,
        /// Since when.
        started_at: Timestamp,
    },
    /// It has ended, and its log is complete.
    Exited(ContainerExit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerExit {
    /// As a shell would have it: 128 + signal for a signal.
    pub exit_code: i32,
    /// The signal that ended it, when it was one.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerCannotRun`, `ContainerStatusUnknown`.
    pub reason: String,
    /// For people; the runtime's own words when the container could not start.
    pub message: String,
    /// When its process started; absent when none did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// A container that is under way. The newest state is in `state`; it closes only with the runtime.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name on this host.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodIdentity,
    /// Its name in the pod.
    pub name: String,
    /// Which run this is.
    pub attempt: u32,
    /// Free text that [`Runtime::start`] was given, found again after a restart of the agent.
    pub annotations: BTreeMap<String, String>,
    /// Who its first process runs as; absent when an agent that did not write it down started it.
    pub user: Option<ProcessUser>,
    /// Where it stands.
    pub state: watch::Receiver<ContainerState>,
}

/// A signal for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ask it to end: the image's stop signal, else SIGTERM.
    Stop,
    /// End it.
    Kill,
}

/// Runs containers.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Name and version, `crun://1.8.1`.
    fn version(&self) -> String;

    /// Starts a container. Returns once its monitor is at work; the rest is seen in [`Container::state`], a failure to
    /// start included.
    ///
    /// # Errors
    /// When not even the monitor can be started.
    async fn start(
        &self,
        spec: ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Container, RuntimeError>;

    /// Sends a signal. A container that has ended is not an error.
    ///
    /// # Errors
    /// When the container is not known or the host refuses.
    async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<(), RuntimeError>;

    /// Ends a container if it runs, and removes everything of it but its log.
    ///
    /// # Errors
    /// When the host refuses; calling again resumes.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Bytes on disk that a container has written to its root. Blocks nobody, and takes as long as it has written much.
    ///
    /// # Errors
    /// When the container is not known or the host refuses.
    async fn disk_use(&self, id: &ContainerId) -> Result<u64, RuntimeError>;

    /// The containers on this host, those of an earlier life of this process included, ended or not.
    ///
    /// # Errors
    /// When the run folder cannot be read.
    async fn list(&self) -> Result<Vec<Container>, RuntimeError>;
}

/// What can go wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The spec cannot be turned into an OCI bundle; the text says which field and why.
    #[error("{reason}: {message}")]
    InvalidSpec {
        /// The kubelet's reason for the waiting container, `CreateContainerConfigError` or `CreateContainerError`.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// No such container.
    #[error("container {} is not known", .0.0)]
    NotFound(ContainerId),
    /// The host refused.
    #[error("{action} {path}")]
    Io {
        /// `write`, `start monitor` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
