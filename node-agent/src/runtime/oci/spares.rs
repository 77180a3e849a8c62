//! Starts that are kept ready.
//!
//! Half of the time in which a container starts goes to what is the same for all: executing the monitor, copying the host's
//! mounts for the runtime where it must not see some of them, executing the runtime and linking it. A spare start has that
//! behind it. It is a container's directory with its monitor and, where there is one, a runtime that reads `config.json` there,
//! which is a fifo. Whoever starts a container takes one, puts the container together around it, and feeds the fifo.
//!
//! Without a runtime the monitor itself waits, for the end of the connection that keeps it: it then looks whether there is a
//! container.
//!
//! A spare ends when its connection to us does, so none outlives the agent, however that ends; its directory has no record,
//! and is removed at the next start as anything half made is.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_monitor::files::{self, CONFIG_FILE, FED_FILE, SPEC_FILE};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use tokio::process::Child;
use tokio::sync::Notify;

use super::{Inner, blocking};
use crate::runtime::record::ContainerDirs;
use crate::runtime::{ContainerId, ContainerSpec, monitor_client, rootfs};

/// How long after the last start spares are made again: a container whose image is there runs within it, and making one costs
/// the processors about what it saves.
const REFILL_AFTER: Duration = Duration::from_millis(150);
/// How long a spare that is not wanted may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The spares of a runtime.
#[derive(Debug)]
pub(super) struct Spares {
    wanted: usize,
    ready: Mutex<VecDeque<Spare>>,
    /// A container is being started.
    started: Notify,
}

/// A monitor and a runtime that wait for a container.
#[derive(Debug)]
struct Spare {
    id: String,
    monitor: Child,
    /// Both end when this does, unless there is a container by then.
    connection: Option<UnixStream>,
}

/// A spare that was taken for a container.
#[derive(Debug)]
pub(super) struct Taken {
    spare: Spare,
    /// Where the runtime waits, if there is one.
    fifo: Option<File>,
}

impl Spares {
    pub(super) fn new(wanted: usize) -> Self {
        Self { wanted, ready: Mutex::default(), started: Notify::new() }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Spare>> {
        // A panic while it was held cannot have left the queue half changed.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The name of the container that it is for.
    pub(super) fn id(&self) -> &String {
        &self.spare.id
    }

    /// Has the container started that was put together in `dirs`, and gives a runtime its specification. Blocks until that has
    /// read it; the monitor, which hears of the container now, sees to it that this is not for ever.
    pub(super) fn feed(&mut self, dirs: &ContainerDirs) -> io::Result<()> {
        if self.fifo.is_none() && !matches!(self.spare.monitor.try_wait(), Ok(None)) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.spare.connection = None;
        let Some(fifo) = &mut self.fifo else { return Ok(()) };
        let spec = fs::read(dirs.run.join(SPEC_FILE))?;
        let (last, before) = spec.split_last().ok_or(io::ErrorKind::UnexpectedEof)?;
        fifo.write_all(before)?;
        // Before the last byte: nothing may start of which it is not known that it was to.
        File::create(dirs.run.join(FED_FILE))?;
        fifo.write_all(&[*last])
    }

    /// The monitor of the container. Tells the runtime that it has read all.
    pub(super) fn begin(self) -> Child {
        self.spare.monitor
    }
}

impl Inner {
    /// A spare for a container, where there is one that will do.
    pub(super) fn take_spare(self: &Arc<Self>, spec: &ContainerSpec) -> Option<Taken> {
        self.spares.started.notify_one();
        if !self.can_wait_for(spec) {
            return None;
        }
        let there = self.spares.ready().len();
        for _ in 0..there {
            let mut spare = self.spares.ready().pop_front()?;
            if self.program.is_built_in {
                if matches!(spare.monitor.try_wait(), Ok(None)) {
                    return Some(Taken { spare, fifo: None });
                }
                self.tasks.spawn(dismiss(Arc::clone(self), spare));
                continue;
            }
            let fifo = self.dirs(&spare.id).run.join(SPEC_FILE);
            // It can be opened for writing as long as somebody reads.
            let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
            match File::options().write(true).custom_flags(flags).open(&fifo).and_then(blocks) {
                Ok(fifo) => return Some(Taken { spare, fifo: Some(fifo) }),
                // Its runtime is on the way there.
                Err(_) if matches!(spare.monitor.try_wait(), Ok(None)) => self.spares.ready().push_back(spare),
                Err(err) => {
                    tracing::debug!(container = spare.id, %err, "a spare start is of no use");
                    self.tasks.spawn(dismiss(Arc::clone(self), spare));
                }
            }
        }
        None
    }

    /// Lets go of a spare for which no container could be put together.
    pub(super) fn put_away(self: &Arc<Self>, taken: Taken) {
        let Taken { spare, fifo } = taken;
        // The runtime reads nothing, and complains.
        drop(fifo);
        self.tasks.spawn(dismiss(Arc::clone(self), spare));
    }

    /// Whether the runtime of a spare, which has been started before anything of the container was known, can start it.
    fn can_wait_for(&self, spec: &ContainerSpec) -> bool {
        if self.program.is_built_in {
            return true;
        }
        // Where it lives in mounts of its own, it sees of the host's newer ones only those below our own folders.
        let ours = [&self.config.run_dir, &self.config.root_dir];
        let sees = |source: &Path| ours.iter().any(|folder| source.starts_with(folder));
        let sees_all = self.hidden_mounts().is_empty() || spec.mounts.iter().all(|mount| sees(&mount.source));
        !spec.tty && !spec.stdin && sees_all
    }

    fn make_spare(&self) -> io::Result<Spare> {
        let ContainerId(id) = ContainerId::random();
        let dirs = self.dirs(&id);
        self.make_folder(&dirs)?;
        let made = if self.program.is_built_in {
            Ok(())
        } else {
            mkfifoat(CWD, dirs.run.join(SPEC_FILE), Mode::RUSR | Mode::WUSR).map_err(io::Error::from)
        };
        let made = made.and_then(|()| {
            // It is told where its log is once it has a container.
            let config = self.monitor_config(&id, &dirs, dirs.run.join("unknown.log"));
            files::write_json(&dirs.run, CONFIG_FILE, &config).map_err(io::Error::other)?;
            monitor_client::start_spare(self.monitor(), &dirs.run)
        });
        match made {
            Ok((monitor, connection)) => Ok(Spare { id, monitor, connection: Some(connection) }),
            Err(err) => {
                // The first error is the one to tell.
                drop(rootfs::remove(&dirs));
                Err(err)
            }
        }
    }
}

/// A file whose reads and writes wait.
fn blocks(file: File) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Keeps as many spares as are wanted, until the runtime is closed.
pub(super) async fn keep(inner: Arc<Inner>) {
    // What is under way is done to its end, and found in the queue then.
    while inner.spares.wanted > 0 && !inner.stop.is_cancelled() {
        fill(&inner).await;
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = until_calm(&inner.spares.started) => {}
        }
    }
    loop {
        let Some(spare) = inner.spares.ready().pop_front() else { return };
        dismiss(Arc::clone(&inner), spare).await;
    }
}

/// Waits for a start, and then until there has been none for a while.
async fn until_calm(started: &Notify) {
    started.notified().await;
    while tokio::time::timeout(REFILL_AFTER, started.notified()).await.is_ok() {}
}

async fn fill(inner: &Arc<Inner>) {
    while inner.spares.ready().len() < inner.spares.wanted && !inner.stop.is_cancelled() {
        let making = Arc::clone(inner);
        match blocking(move || making.make_spare()).await {
            Ok(spare) => inner.spares.ready().push_back(spare),
            Err(err) => {
                // Whoever starts a container does without, and hears of it if that fails for the same reason.
                tracing::warn!(%err, "a spare start cannot be made");
                return;
            }
        }
    }
}

/// Lets a spare go, and removes its directory.
async fn dismiss(inner: Arc<Inner>, spare: Spare) {
    let Spare { id, mut monitor, connection } = spare;
    drop(connection);
    if tokio::time::timeout(END_LIMIT, monitor.wait()).await.is_err() {
        tracing::warn!(container = id, "the monitor of a spare start does not end by itself");
        if let Err(err) = monitor.kill().await {
            tracing::warn!(container = id, %err, "nor can it be killed");
        }
    }
    let dirs = inner.dirs(&id);
    let folder = dirs.run.clone();
    if let Err(err) = blocking(move || rootfs::remove(&dirs)).await {
        tracing::warn!(%err, folder = %folder.display(), "the directory of a spare start is not removed");
    }
}

#[cfg(test)]
impl super::OciRuntime {
    /// Puts a container together around a spare, and goes no further, as a process that is killed.
    pub(in crate::runtime) fn break_off(&self, spec: &ContainerSpec) {
        let spare = self.inner.take_spare(spec).expect("a spare");
        let dirs = self.inner.dirs(spare.id());
        self.inner.put_together(spare.id(), spec, std::collections::BTreeMap::new(), &dirs).unwrap();
    }

    pub(in crate::runtime) fn spare_count(&self) -> usize {
        self.inner.spares.ready().len()
    }

    /// Loses the spares as a process does that is killed: without waiting for them, and without removing anything.
    pub(in crate::runtime) fn lose_spares(&self) {
        self.inner.spares.ready().clear();
    }
}
