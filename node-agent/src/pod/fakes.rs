//! A host in memory, for tests of the pods: it does what it is told, or fails as it is told to.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as PodContainer;
use tokio::sync::{mpsc, watch};

use super::{
    downward::NodeResources,
    files::{FilesError, PodFiles, ReadyFiles},
    host::{Clock, Parts, Settings},
    ledger::Ledger,
    network_files::DnsSettings,
    objects::PodObjects,
    publisher::Publisher,
    storage::DiskUse,
    wish::PodWish,
};
use crate::{
    digest::Digest,
    image::{
        EnsureImage, EnsureImageError, ImageLease, ImageProgress, Images, Lease, Moved, PresentImage, RegistryAccess,
    },
    runtime::{
        BindMount, Container, ContainerExit, ContainerId, ContainerSpec, ContainerState, Runtime, RuntimeError, Signal,
        users::ProcessUser,
    },
    sandbox::{PodNamespaces, Sandbox, SandboxError, SandboxSpec, Sandboxes},
};

/// The host. What it was asked is in the lists; what it does next is in the queues.
#[derive(Debug)]
pub(crate) struct FakeHost {
    state: Mutex<State>,
    clock: Clock,
    /// Tells that something was asked.
    pub(crate) asked: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<String>,
    /// Answers of the registry, in order; when it is empty every pull succeeds.
    pulls: VecDeque<Pull>,
    /// Failures of the volumes, in order; when it is empty every set-up succeeds.
    volumes: VecDeque<String>,
    containers: BTreeMap<String, (Container, watch::Sender<ContainerState>)>,
    sandboxes: HashMap<String, Sandbox>,
    /// Containers whose processes do not end when they are asked to.
    deaf: bool,
    /// The next start is a fault of ours.
    panics: bool,
    /// How often the containers cannot be listed.
    failing_lists: usize,
    /// What containers have written, by name.
    written: HashMap<String, u64>,
}

/// What a pull comes to.
#[derive(Debug, Clone)]
pub(crate) enum Pull {
    Fails(&'static str),
    Hangs,
    /// Takes a minute and a half, and tells every second how far it is.
    Creeps,
}

#[derive(Debug)]
struct NoLease;

impl Lease for NoLease {}

impl FakeHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock: clock(), asked: watch::Sender::default() })
    }

    fn note(&self, what: String) {
        self.state.lock().unwrap().log.push(what);
        self.asked.send_modify(|count| *count += 1);
    }

    /// What the host was asked, in order.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// How often it was asked something that begins so.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.log().iter().filter(|entry| entry.starts_with(what)).count()
    }

    pub(crate) fn next_pull(&self, pull: Pull) {
        self.state.lock().unwrap().pulls.push_back(pull);
    }

    pub(crate) fn next_volumes_fail(&self, why: &str) {
        self.state.lock().unwrap().volumes.push_back(why.to_owned());
    }

    /// The container of this name has written so much.
    pub(crate) fn write(&self, name: &str, bytes: u64) {
        self.state.lock().unwrap().written.insert(name.to_owned(), bytes);
    }

    pub(crate) fn next_start_panics(&self) {
        self.state.lock().unwrap().panics = true;
    }

    pub(crate) fn fail_lists(&self, times: usize) {
        self.state.lock().unwrap().failing_lists = times;
    }

    pub(crate) fn be_deaf(&self) {
        self.state.lock().unwrap().deaf = true;
    }

    /// Ends the newest run of a container.
    pub(crate) fn exit(&self, name: &str, exit_code: i32) {
        let state = self.state.lock().unwrap();
        let newest = state.containers.values().filter(|(container, _)| container.name == name);
        let (container, sender) =
            newest.max_by_key(|(container, _)| container.attempt).expect("the container is there");
        let started_at = match &*container.state.borrow() {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Starting | ContainerState::Exited(_) => None,
        };
        sender.send_replace(ContainerState::Exited(exited(exit_code, started_at, self.clock.now())));
    }

    pub(crate) fn containers(&self) -> usize {
        self.state.lock().unwrap().containers.len()
    }

    pub(crate) fn sandboxes(&self) -> usize {
        self.state.lock().unwrap().sandboxes.len()
    }

    /// Puts a container there that no pod knows.
    pub(crate) fn plant_stranger(&self) {
        let (sender, state) = watch::channel(ContainerState::Running { pid: 1, started_at: Timestamp::UNIX_EPOCH });
        let container = Container {
            id: ContainerId("stranger".into()),
            pod: crate::runtime::PodIdentity { uid: "nobody".into(), namespace: "x".into(), name: "x".into() },
            name: "x".into(),
            attempt: 0,
            annotations: BTreeMap::new(),
            user: None,
            state,
        };
        self.state.lock().unwrap().containers.insert("stranger".into(), (container, sender));
        self.state.lock().unwrap().sandboxes.insert("nobody".into(), sandbox());
    }

    /// The parts of an agent on this host, with its record below `folder` and a clock that follows the runtime's.
    pub(crate) fn parts(self: &Arc<Self>, folder: &std::path::Path) -> Parts {
        Parts {
            images: Arc::<Self>::clone(self) as Arc<dyn Images>,
            sandboxes: Arc::<Self>::clone(self) as Arc<dyn Sandboxes>,
            runtime: Arc::<Self>::clone(self) as Arc<dyn Runtime>,
            files: Arc::new(FakeFiles(Arc::clone(self))),
            ledger: Ledger::new(folder.join("pods")),
            publisher: Publisher::default(),
            clock: self.clock.clone(),
            meters: crate::meters::Meters::default(),
        }
    }
}

/// Time that passes as the paused time of the test does.
fn clock() -> Clock {
    let begin = tokio::time::Instant::now();
    Clock::new(move || {
        let passed = jiff::SignedDuration::try_from(begin.elapsed()).unwrap();
        Timestamp::from_second(1_700_000_000).unwrap() + passed
    })
}

pub(crate) fn settings(folder: &std::path::Path) -> Settings {
    Settings {
        max_parallel_starts: 2,
        log_root: folder.join("logs"),
        dns: DnsSettings {
            cluster_dns: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))],
            cluster_domain: "cluster.local".into(),
        },
        node: NodeResources { cpu_milli: 2000, memory_bytes: 4 << 30, ephemeral_storage_bytes: 1 << 30 },
    }
}

pub(crate) fn wish(uid: &str, spec: serde_json::Value) -> PodWish {
    let pod = serde_json::json!({"metadata": {"uid": uid, "name": "web", "namespace": "shop"}, "spec": spec});
    PodWish {
        pod: serde_json::from_value(pod).unwrap(),
        objects: PodObjects::default(),
        access: RegistryAccess::default(),
        cache: None,
    }
}

fn exited(exit_code: i32, started_at: Option<Timestamp>, finished_at: Timestamp) -> ContainerExit {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    ContainerExit { exit_code, signal: None, reason: reason.into(), message: String::new(), started_at, finished_at }
}

fn sandbox() -> Sandbox {
    Sandbox {
        ips: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))],
        namespaces: PodNamespaces { network: "/n".into(), ipc: "/i".into(), uts: "/u".into() },
        shm: "/shm".into(),
    }
}

fn present(reference: &str) -> PresentImage {
    PresentImage {
        reference: format!("docker.io/library/{reference}"),
        image_id: format!("docker.io/library/{reference}@sha256:00"),
        manifest: Digest::of(reference.as_bytes()),
        config: Arc::new(oci_spec::image::ImageConfiguration::default()),
        size_bytes: 1,
        lower_dirs: Vec::new(),
        lease: ImageLease::new(Arc::new(NoLease)),
    }
}

#[async_trait]
impl Images for FakeHost {
    async fn ensure(
        &self,
        wish: EnsureImage,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<PresentImage, EnsureImageError> {
        self.note(format!("ensure {}", wish.reference));
        if wish.cache.is_some() {
            progress.send(ImageProgress::AlreadyPresent).await.unwrap();
            return Ok(present(&wish.reference));
        }
        progress.send(ImageProgress::Pulling).await.unwrap();
        let pull = self.state.lock().unwrap().pulls.pop_front();
        match pull {
            Some(Pull::Fails(cause)) => {
                Err(EnsureImageError::Pull { reference: wish.reference, cause: cause.to_owned() })
            }
            Some(Pull::Hangs) => std::future::pending().await,
            Some(Pull::Creeps) => {
                for second in 0..90 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let (done_bytes, total_bytes) = (second << 20, 90 << 20);
                    let moved = Moved { done_bytes, total_bytes, done_layers: 1, total_layers: 2 };
                    progress.send(ImageProgress::Layers(moved)).await.unwrap();
                }
                let (took, size_bytes) = (Duration::from_secs(90), 90 << 20);
                let pulled = ImageProgress::Pulled { took, took_with_waiting: took, size_bytes };
                progress.send(pulled).await.unwrap();
                Ok(present(&wish.reference))
            }
            None => {
                let (took, size_bytes) = (Duration::from_secs(1), 42);
                let pulled = ImageProgress::Pulled { took, took_with_waiting: took, size_bytes };
                progress.send(pulled).await.unwrap();
                Ok(present(&wish.reference))
            }
        }
    }

    async fn adopt(&self, reference: &str, _: &Digest) -> Result<PresentImage, EnsureImageError> {
        self.note(format!("adopt {reference}"));
        Ok(present(reference))
    }
}

#[async_trait]
impl Sandboxes for FakeHost {
    async fn ensure(&self, spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        self.note("make sandbox".to_owned());
        self.state.lock().unwrap().sandboxes.insert(spec.uid, sandbox());
        Ok(sandbox())
    }

    async fn remove(&self, uid: &str) -> Result<(), SandboxError> {
        self.note("remove sandbox".to_owned());
        self.state.lock().unwrap().sandboxes.remove(uid);
        Ok(())
    }

    async fn list(&self) -> Result<HashMap<String, Sandbox>, SandboxError> {
        Ok(self.state.lock().unwrap().sandboxes.clone())
    }
}

#[async_trait]
impl Runtime for FakeHost {
    fn version(&self) -> String {
        "fake://1".to_owned()
    }

    async fn start(
        &self,
        spec: ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Container, RuntimeError> {
        self.note(format!("start {} {}", spec.name, spec.attempt));
        let panics = std::mem::take(&mut self.state.lock().unwrap().panics);
        assert!(!panics, "as the test wants it");
        let (sender, state) = watch::channel(ContainerState::Starting);
        let container = Container {
            id: spec.id.clone(),
            pod: spec.pod,
            name: spec.name,
            attempt: spec.attempt,
            annotations,
            user: Some(ProcessUser { uid: 1000, gid: 3000, additional_gids: vec![3000, 4000] }),
            state,
        };
        sender.send_replace(ContainerState::Running { pid: 1, started_at: self.clock.now() });
        self.state.lock().unwrap().containers.insert(spec.id.0, (container.clone(), sender));
        Ok(container)
    }

    async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<(), RuntimeError> {
        self.note(format!("signal {signal:?}"));
        let state = self.state.lock().unwrap();
        let Some((_, sender)) = state.containers.get(&id.0) else { return Err(RuntimeError::NotFound(id.clone())) };
        let now = self.clock.now();
        match signal {
            Signal::Stop if state.deaf => {}
            Signal::Stop => drop(sender.send_replace(ContainerState::Exited(exited(0, Some(now), now)))),
            Signal::Kill => drop(sender.send_replace(ContainerState::Exited(exited(137, Some(now), now)))),
        }
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.note("remove container".to_owned());
        self.state.lock().unwrap().containers.remove(&id.0);
        Ok(())
    }

    async fn disk_use(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        self.note("measure container".to_owned());
        let state = self.state.lock().unwrap();
        let Some((container, _)) = state.containers.get(&id.0) else { return Err(RuntimeError::NotFound(id.clone())) };
        Ok(state.written.get(&container.name).copied().unwrap_or_default())
    }

    async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        self.note("list containers".to_owned());
        let mut state = self.state.lock().unwrap();
        if let Some(left) = state.failing_lists.checked_sub(1) {
            state.failing_lists = left;
            let source = std::io::Error::other("as the test wants it");
            return Err(RuntimeError::Io { action: "list", path: "/run/containers".into(), source });
        }
        Ok(state.containers.values().map(|(container, _)| container.clone()).collect())
    }
}

#[derive(Debug)]
struct FakeFiles(Arc<FakeHost>);

#[derive(Debug)]
struct FakeReady;

impl PodFiles for FakeFiles {
    fn set_up(&self, _: &PodWish) -> Result<Arc<dyn ReadyFiles>, FilesError> {
        self.0.note("set up volumes".to_owned());
        match self.0.state.lock().unwrap().volumes.pop_front() {
            Some(why) => Err(FilesError::Scripted(why)),
            None => Ok(Arc::new(FakeReady)),
        }
    }

    fn tear_down(&self, _: &str) -> Result<(), FilesError> {
        self.0.note("tear down volumes".to_owned());
        Ok(())
    }

    fn disk_use(&self, _: &str) -> Result<DiskUse, FilesError> {
        Ok(DiskUse::default())
    }

    fn last_message(&self, _: &str, _: &str, _: u32) -> String {
        String::new()
    }
}

impl ReadyFiles for FakeReady {
    fn volumes(&self) -> Vec<String> {
        vec!["data".to_owned()]
    }

    fn mounts_for(&self, _: &PodWish, _: &PodContainer, _: u32, _: &[IpAddr]) -> Result<Vec<BindMount>, FilesError> {
        Ok(Vec::new())
    }
}
