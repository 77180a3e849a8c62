//! Sandboxes: what the containers of one pod share. A network namespace with the pod's own address, an IPC and a UTS
//! namespace, and `/dev/shm`. There is no pause process: the namespaces are pinned by bind mounts.

use std::{collections::HashMap, fs, io, net::IpAddr, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::{
    firewall::Rules,
    ipam::PodCidr,
    pool::{Pool, PoolConfig, Request},
    slot::Slot,
};
use crate::host::{namespace, netlink};

mod firewall;
pub mod ipam;
mod pool;
mod slot;

/// What a pod needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The pod's UID.
    pub uid: String,
    /// What `hostname` prints.
    pub hostname: String,
    /// What `domainname` prints; empty for the kernel's default.
    pub domainname: String,
    /// Namespaced kernel settings, `net.core.somaxconn` -> `1024`.
    pub sysctls: Vec<(String, String)>,
}

/// What the containers of a pod are put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Namespace files to join.
    pub namespaces: PodNamespaces,
    /// A tmpfs for `/dev/shm`, shared by the containers.
    pub shm: PathBuf,
}

/// Files under which a pod's namespaces are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNamespaces {
    /// Network.
    pub network: PathBuf,
    /// System V IPC and POSIX message queues.
    pub ipc: PathBuf,
    /// Host name.
    pub uts: PathBuf,
}

/// Makes and removes sandboxes.
#[async_trait]
pub trait Sandboxes: Send + Sync + std::fmt::Debug {
    /// Makes a pod's sandbox, or finds the one that an earlier life of this process made.
    ///
    /// # Errors
    /// When the host refuses, or no address is free.
    async fn ensure(&self, spec: SandboxSpec) -> Result<Sandbox, SandboxError>;

    /// Takes a pod's sandbox away; links and namespaces may go in the background. One that is not there is no error.
    ///
    /// # Errors
    /// When the host refuses; calling again resumes.
    async fn remove(&self, uid: &str) -> Result<(), SandboxError>;

    /// The sandboxes on this host, by pod UID: what a start after a crash compares with its pods.
    ///
    /// # Errors
    /// When the run folder cannot be read.
    async fn list(&self) -> Result<HashMap<String, Sandbox>, SandboxError>;
}

/// What can go wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The pod CIDR is used up.
    #[error("no free address in {cidr}: {used} are in use")]
    NoAddress {
        /// The node's pod CIDR.
        cidr: String,
        /// How many pods hold one.
        used: usize,
    },
    /// The host refused while the node's network was set up.
    #[error("{action} {what}")]
    Setup {
        /// `create bridge` ...
        action: &'static str,
        /// Which one.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The owner of the sandboxes has ended: the agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
    /// The host refused.
    #[error("{action} for pod {uid}")]
    Host {
        /// `create network namespace` ...
        action: &'static str,
        /// The pod.
        uid: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Settings of [`BridgeSandboxes`].
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// A folder on tmpfs, `/run/larder`; a mount of its own that is shared, so that what is unmounted below it is unmounted
    /// everywhere.
    pub run_dir: PathBuf,
    /// Name of the bridge that the pods hang on.
    pub bridge: String,
    /// Addresses of the node's pods.
    pub pod_cidr: PodCidr,
    /// Addresses of all pods of the cluster: traffic to them keeps its source. `pod_cidr` for a node by itself.
    pub cluster_cidr: String,
    /// How many sandboxes are made beforehand.
    pub pool_size: usize,
}

/// Sandboxes on a bridge of our own, made by netlink.
#[derive(Debug)]
pub struct BridgeSandboxes {
    requests: mpsc::Sender<Request>,
}

/// The task that owns the sandboxes; whoever opened them runs it.
#[derive(Debug)]
pub struct SandboxTask {
    pool: Pool,
    requests: mpsc::Receiver<Request>,
}

impl SandboxTask {
    /// Runs until `stop`. Pods keep their sandboxes.
    pub async fn run(self, stop: CancellationToken) {
        self.pool.run(self.requests, stop).await;
    }
}

impl BridgeSandboxes {
    /// Sets up bridge, forwarding and packet filter, finds the sandboxes of an earlier life, and sweeps what is not whole.
    ///
    /// # Errors
    /// When the host refuses; the message says what.
    pub async fn open(config: SandboxConfig) -> Result<(Arc<Self>, SandboxTask), SandboxError> {
        let folder = config.run_dir.join("sandboxes");
        fs::create_dir_all(&folder).map_err(setup("create folder", &folder.display().to_string()))?;
        let address = netlink::Ipv4Net { address: config.pod_cidr.gateway(), prefix_len: config.pod_cidr.prefix_len() };
        let bridge_index =
            netlink::ensure_bridge(&config.bridge, address).await.map_err(setup("create bridge", &config.bridge))?;
        namespace::set_sysctl("net.ipv4.ip_forward", "1").map_err(setup("turn on", "net.ipv4.ip_forward"))?;
        let pod_cidr = config.pod_cidr.to_string();
        let rules = Rules { bridge: &config.bridge, pod_cidr: &pod_cidr, cluster_cidr: &config.cluster_cidr };
        netlink::apply_nft(&rules.install()).await.map_err(setup("install packet filter for", &config.bridge))?;
        let found = sweep(&folder).map_err(setup("read folder", &folder.display().to_string()))?;
        let pool_config = PoolConfig { folder, cidr: config.pod_cidr, bridge_index, size: config.pool_size };
        let (sender, requests) = mpsc::channel(64);
        let task = SandboxTask { pool: Pool::new(pool_config, found), requests };
        Ok((Arc::new(Self { requests: sender }), task))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, SandboxError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SandboxError::Stopping)?;
        answer.await.map_err(|_| SandboxError::Stopping)
    }
}

#[async_trait]
impl Sandboxes for BridgeSandboxes {
    async fn ensure(&self, spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        self.ask(|reply| Request::Ensure(spec, reply)).await?
    }

    async fn remove(&self, uid: &str) -> Result<(), SandboxError> {
        self.ask(|reply| Request::Remove(uid.to_owned(), reply)).await?
    }

    async fn list(&self) -> Result<HashMap<String, Sandbox>, SandboxError> {
        self.ask(Request::List).await
    }
}

fn setup(action: &'static str, what: &str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Setup { action, what: what.to_owned(), source }
}

/// The whole sandboxes in `folder`; removes the others.
fn sweep(folder: &std::path::Path) -> io::Result<Vec<Slot>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match Slot::find(path.clone()) {
            Some(slot) => found.push(slot),
            None => slot::remove_folder(&path)?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
