//! Containers through the monitor's own launcher, or an OCI runtime with the command line of runc: crun and its kin.
//!
//! Each container has a directory below `<run dir>/containers` (see `record` and [`larder_monitor::files`]), a directory for
//! its changes below `<root>/containers`, a monitor process, and one task here that listens to the monitor. The directory is
//! the truth: [`OciRuntime::open`] finds every container in it, whoever started it. Nothing in here restarts a container or
//! knows why it runs.

mod find_containers;
mod host_facts;
mod spares;
mod start_container;
mod watch_container;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::host_facts::HostFacts;
use self::spares::Spares;
use self::start_container::filter;
use super::monitor_client::MonitorProgram;
use super::oci_spec::Seccomp;
use super::program::Program;
use super::record::{ContainerDirs, Record};
use super::{
    Container, ContainerId, ContainerSpec, ContainerState, Runtime, RuntimeError, Signal, capabilities, rootfs,
};
use crate::host::process::{ProcessIdentity, send_signal};
use crate::host::{cgroup, disk_use};

/// How long a container may take to go away once it was killed. The monitor's own limits are shorter.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);
/// How long [`OciRuntime::open`] waits for the monitors that it finds to say where their containers stand.
const ADOPT_LIMIT: Duration = Duration::from_secs(5);

/// How containers are run on this host.
#[derive(Debug, Clone)]
pub struct OciRuntimeConfig {
    /// On a tmpfs; what is in it does not outlive a reboot.
    pub run_dir: PathBuf,
    /// On disk; takes what containers write.
    pub root_dir: PathBuf,
    /// The OCI runtime's program: a path, or a name to look for. `builtin` for none: the monitor starts containers by itself.
    pub runtime: PathBuf,
    /// Where a runtime that is given by its name is looked for, as in `PATH`.
    pub search_path: String,
    /// The monitor's program.
    pub monitor: PathBuf,
    /// The cgroup that all pods are put into.
    pub cgroup_parent: String,
    /// Size in bytes from which a container's log is begun anew.
    pub log_max_size: u64,
    /// How many log files a container may have.
    pub log_max_files: u32,
    /// How long the runtime may take to start a container.
    pub start_limit: Duration,
    /// How many starts are kept ready, where the runtime can wait for a container.
    pub spare_starts: usize,
}

/// Runs containers with one OCI runtime. When it is dropped, the containers stay.
#[derive(Debug)]
pub struct OciRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: OciRuntimeConfig,
    program: Program,
    /// What is executed for a monitor that starts a container.
    monitor: PathBuf,
    facts: HostFacts,
    /// The filter of a container with the default capabilities, which nearly all have.
    default_filter: (BTreeSet<String>, Seccomp),
    containers: Mutex<HashMap<String, Arc<Entry>>>,
    spares: Spares,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is known of one container.
#[derive(Debug)]
struct Entry {
    container: Container,
    record: Record,
    dirs: ContainerDirs,
    state: watch::Sender<ContainerState>,
    process: OnceLock<ProcessIdentity>,
    /// True once its monitor has ended and the runtime has let go of it.
    gone: watch::Sender<bool>,
}

impl Entry {
    fn new(record: Record, dirs: ContainerDirs) -> Arc<Self> {
        let (state, receiver) = watch::channel(ContainerState::Starting);
        let container = Container {
            id: record.container_id(),
            pod: record.pod(),
            name: record.name.clone(),
            attempt: record.attempt,
            annotations: record.annotations.clone(),
            user: record.process_user(),
            state: receiver,
        };
        Arc::new(Self { container, record, dirs, state, process: OnceLock::new(), gone: watch::Sender::new(false) })
    }
}

impl OciRuntime {
    /// Looks at the host and the runtime, and adopts the containers that are there: those that run, those that ended in the
    /// meantime, and those whose monitor was killed.
    ///
    /// # Errors
    /// When the runtime cannot be used, or the run directory cannot be read.
    pub async fn open(config: OciRuntimeConfig) -> Result<Self, RuntimeError> {
        let found = Program::find(&config.runtime, &config.search_path, &config.monitor).await;
        let program =
            found.map_err(|source| RuntimeError::Io { action: "use runtime", path: config.runtime.clone(), source })?;
        let facts = HostFacts::read().map_err(|source| RuntimeError::Io {
            action: "read",
            path: "/proc/self".into(),
            source,
        })?;
        let default_capabilities =
            capabilities::resolve(&super::SecuritySpec::default(), &facts.capabilities).unwrap_or_default();
        let filter = filter(&program, &default_capabilities)?;
        let spares = Spares::new(if program.can_wait() { config.spare_starts } else { 0 });
        let inner = Arc::new(Inner {
            monitor: program.monitor(&config.monitor),
            config,
            program,
            facts,
            default_filter: (default_capabilities, filter),
            containers: Mutex::new(HashMap::new()),
            spares,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let runtime = Self { inner };
        runtime.adopt().await?;
        // Not before: whoever adopts removes what has no record.
        runtime.inner.tasks.spawn(spares::keep(Arc::clone(&runtime.inner)));
        Ok(runtime)
    }

    /// Stops to listen to the monitors, and returns when nothing of it is at work any more. The containers stay.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The host's cgroups, in which the containers are.
    pub fn cgroups(&self) -> &cgroup::CgroupLayout {
        &self.inner.facts.cgroups
    }

    async fn adopt(&self) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let found = blocking(move || inner.find_containers()).await?;
        for entry in &found {
            Inner::look_after(&self.inner, entry, None);
        }
        let settled = async {
            for entry in found {
                let mut state = entry.state.subscribe();
                // An error would mean that the entry is gone, and with it the question.
                drop(state.wait_for(|state| *state != ContainerState::Starting).await);
            }
        };
        // Whoever has not answered by then is still starting, or is told of later, as always.
        drop(tokio::time::timeout(ADOPT_LIMIT, settled).await);
        Ok(())
    }
}

impl Drop for OciRuntime {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

#[async_trait]
impl Runtime for OciRuntime {
    fn version(&self) -> String {
        self.inner.program.version.clone()
    }

    async fn start(
        &self,
        spec: ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Container, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        // All of it happens on the blocking thread, so that a caller who goes away in the middle leaves no container behind
        // that nobody listens to.
        blocking(move || inner.start(&spec, annotations)).await
    }

    async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<(), RuntimeError> {
        let entry = self.inner.entry(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        self.inner.signal(&entry, signal).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(entry) = self.inner.entry(id) else { return Ok(()) };
        let failed = |action| failed(action, &entry.dirs.run);
        if !matches!(*entry.state.borrow(), ContainerState::Exited(_)) {
            self.inner.signal(&entry, Signal::Kill).await?;
        }
        let mut gone = entry.gone.subscribe();
        let waited = tokio::time::timeout(REMOVE_LIMIT, gone.wait_for(|gone| *gone)).await;
        waited.map_err(|late| failed("wait for the end of the monitor in")(late.into()))?.ok();
        let (inner, removing) = (Arc::clone(&self.inner), Arc::clone(&entry));
        let removed = blocking(move || inner.take_back(&removing.record, &removing.dirs));
        removed.await.map_err(failed("remove"))?;
        self.inner.containers().remove(&id.0);
        Ok(())
    }

    async fn disk_use(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        let entry = self.inner.entry(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        let path = entry.dirs.upper();
        let measured = path.clone();
        let bytes = blocking(move || disk_use::bytes_below(&measured)).await;
        bytes.map_err(|source| RuntimeError::Io { action: "measure", path, source })
    }

    async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        Ok(self.inner.containers().values().map(|entry| entry.container.clone()).collect())
    }
}

impl Inner {
    fn containers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        // A panic while it was held cannot have left the map half changed.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: &ContainerId) -> Option<Arc<Entry>> {
        self.containers().get(&id.0).cloned()
    }

    fn dirs(&self, id: &str) -> ContainerDirs {
        ContainerDirs::new(&self.containers_run_dir(), &self.containers_disk_dir(), id)
    }

    fn containers_run_dir(&self) -> PathBuf {
        self.config.run_dir.join("containers")
    }

    fn containers_disk_dir(&self) -> PathBuf {
        self.config.root_dir.join("containers")
    }

    fn monitor(&self) -> MonitorProgram<'_> {
        MonitorProgram { path: &self.monitor, sealed_runtime: self.program.sealed_runtime() }
    }

    /// Removes everything of a container that does not run, but its log.
    fn take_back(&self, record: &Record, dirs: &ContainerDirs) -> io::Result<()> {
        self.remove_cgroups(record)?;
        rootfs::remove(dirs)
    }

    fn remove_cgroups(&self, record: &Record) -> io::Result<()> {
        self.facts.cgroups.remove(&record.cgroup)?;
        self.facts.cgroups.remove_if_empty(&cgroup::pod_path(&self.config.cgroup_parent, &record.pod_uid));
        Ok(())
    }

    /// Removes the cgroups of a container that nothing was started in: the removal of its folders does not take them along.
    fn forget_cgroups(&self, record: &Record) {
        if let Err(err) = self.remove_cgroups(record) {
            tracing::warn!(container = record.id, %err, "the cgroups of a container that was not started stay");
        }
    }

    /// Puts a container into the books and listens to its monitor.
    fn look_after(self: &Arc<Self>, entry: &Arc<Entry>, monitor: Option<tokio::process::Child>) {
        self.containers().insert(entry.record.id.clone(), Arc::clone(entry));
        self.tasks.spawn(watch_container::watch(Arc::clone(self), Arc::clone(entry), monitor));
    }

    async fn signal(&self, entry: &Entry, signal: Signal) -> Result<(), RuntimeError> {
        let failed = |action, source| RuntimeError::Io { action, path: entry.dirs.run.clone(), source };
        let mut state = entry.state.subscribe();
        // There is nothing to send a signal to before the monitor says so, and it always says something in time.
        let limit = self.config.start_limit + REMOVE_LIMIT;
        let started = tokio::time::timeout(limit, state.wait_for(|state| *state != ContainerState::Starting)).await;
        started.map_err(|late| failed("wait for the start of the container in", late.into()))?.ok();
        let Some(process) = entry.process.get() else { return Ok(()) };
        let number = match signal {
            Signal::Stop => entry.record.stop_signal,
            Signal::Kill => libc::SIGKILL,
        };
        send_signal(*process, number).map_err(|source| failed("send a signal to the process of", source))
    }
}

/// The error of what was done to a path.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError + use<> {
    let path = path.to_owned();
    move |source| RuntimeError::Io { action, path, source }
}

/// Does blocking work on a thread for it. It is done to its end, also when the caller goes away.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Nobody aborts it, so it panicked; that is the caller's panic.
        Err(err) => std::panic::resume_unwind(err.into_panic()),
    }
}
