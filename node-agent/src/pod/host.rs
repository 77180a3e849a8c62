//! What the workers of all pods share: the parts that do the work, and the node's settings.

use std::{fmt, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::{
    downward::NodeResources, files::PodFiles, ledger::Ledger, network_files::DnsSettings, publisher::Publisher,
};
use crate::{image::Images, meters::Meters, runtime::Runtime, sandbox::Sandboxes};

/// Tells the time of day.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's.
    pub fn system() -> Self {
        Self::new(Timestamp::now)
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The parts that do the work for pods.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Images.
    pub images: Arc<dyn Images>,
    /// Namespaces and network.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Volumes and the like.
    pub files: Arc<dyn PodFiles>,
    /// What survives the agent.
    pub ledger: Ledger,
    /// Where statuses and events go.
    pub publisher: Publisher,
    /// The time of day.
    pub clock: Clock,
    /// What is counted.
    pub meters: Meters,
}

/// The node's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many containers are started at the same time at most.
    pub max_parallel_starts: usize,
    /// The folder of all logs.
    pub log_root: PathBuf,
    /// How names are resolved.
    pub dns: DnsSettings,
    /// What a container without limits is told.
    pub node: NodeResources,
}

/// What the workers share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) parts: Parts,
    pub(crate) settings: Settings,
    /// The runtime's name, the scheme of container ids.
    pub(crate) runtime_name: String,
    /// Permits to start a container, given in the order in which they were asked for.
    pub(crate) starts: Arc<Semaphore>,
    /// The permit to measure a pod's use of the disk.
    pub(crate) measurements: Arc<Semaphore>,
}

impl Host {
    pub(crate) fn new(parts: Parts, settings: Settings) -> Self {
        let version = parts.runtime.version();
        let runtime_name = version.split("://").next().unwrap_or_default().to_owned();
        let starts = Arc::new(Semaphore::new(settings.max_parallel_starts.max(1)));
        Self { parts, settings, runtime_name, starts, measurements: Arc::new(Semaphore::new(1)) }
    }
}
