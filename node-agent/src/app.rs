//! Puts the parts together and owns their tasks.
//!
//! Order of the start: folders, store, snapshots, images, sandboxes, runtime, pods of an earlier life, then calls. Order of
//! the end: no more calls, then pods (their containers live on), then images, runtime and sandboxes. A second signal ends
//! the process at once.

mod tasks;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::tasks::Tasks;
use crate::{
    config::{Config, ConfigError, SnapshotterChoice, VerificationPolicy},
    grpc::{self, ListenError, NodeReport, ServeError, Services},
    host::namespace,
    image::{
        ImageConfig, ImageService, Images,
        pull_plan::Platform,
        verification::{self, AllowList, AllowListError},
    },
    meters::Meters,
    metrics_server::MetricsServer,
    node::{self, HostFacts, NodeError},
    pod::{
        downward::NodeResources,
        figures::FigureSource,
        files::HostFiles,
        host::{Clock, Parts, Settings},
        ledger::Ledger,
        logs::LogSource,
        network_files::DnsSettings,
        publisher::Publisher,
        supervisor::{AdoptError, Pods, Supervisor},
        support::Policy,
    },
    registry::{CredentialProviders, ProviderConfigError, Proxies, RegistryClient, RegistryConfig},
    runtime::{
        Runtime, RuntimeError,
        oci::{OciRuntime, OciRuntimeConfig},
    },
    sandbox::{BridgeSandboxes, SandboxConfig, SandboxError, ipam::ParseCidrError},
    snapshot::{self, Driver, DriverChoice, Limits, Running, SnapshotError, Snapshotter},
    stats::Stats,
    store::{Store, StoreError, eviction::Rules},
};

/// How long the calls under way, and then the pods' tasks, have to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// A container's log is begun anew from this size on, and so many files are kept (`containerLogMaxSize`,
/// `containerLogMaxFiles` of the kubelet).
const LOG_MAX_BYTES: u64 = 10 << 20;
const LOG_MAX_FILES: u32 = 5;
/// The name of the task that owns the pods' networks.
const SANDBOXES: &str = "sandboxes";
/// Containers that are started at the same time, for each core. About half of a start is waiting: for the kernel's grace
/// periods, and for processes that wake each other.
const STARTS_PER_CORE: usize = 2;
/// How long the OCI runtime may take to start a container.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Why the agent cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The pod CIDR.
    #[error("read --pod-cidr")]
    PodCidr(#[from] ParseCidrError),
    /// A folder, or a signal that cannot be waited for.
    #[error("{action} {}", path.display())]
    Io {
        /// `create` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error("open store")]
    Store(#[from] StoreError),
    /// The snapshots.
    #[error("choose how layers are kept")]
    Snapshots(#[from] SnapshotError),
    /// The programs that give out registry logins.
    #[error("set up credential providers")]
    CredentialProviders(#[from] ProviderConfigError),
    /// Images that every pod is given.
    #[error(transparent)]
    AllowList(#[from] AllowListError),
    /// The network.
    #[error("set up the pods' network")]
    Network(#[from] SandboxError),
    /// The OCI runtime.
    #[error("set up the container runtime")]
    Runtime(#[from] RuntimeError),
    /// What this host is.
    #[error("find out what this host is")]
    Node(#[from] NodeError),
    /// The pods of an earlier life.
    #[error("adopt pods")]
    Adopt(#[from] AdoptError),
    /// The socket.
    #[error("listen for calls")]
    Listen(#[from] ListenError),
    /// The figures' address.
    #[error("listen for callers of metrics on {address}")]
    MetricsListen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The services.
    #[error("answer calls")]
    Serve(#[from] ServeError),
    /// A part ended that must not.
    #[error("{0} has ended unexpectedly")]
    PartEnded(&'static str),
    /// A part panicked.
    #[error("{part} broke off")]
    Panicked {
        /// Its name.
        part: &'static str,
        /// How.
        source: tokio::task::JoinError,
    },
}

/// Runs the agent until SIGTERM or SIGINT, or until a part fails. Containers live on.
///
/// # Errors
/// When the agent cannot start, or a part ends that must not.
pub async fn run(config: Config) -> Result<(), AppError> {
    config.check()?;
    let begun = tokio::time::Instant::now();
    make_folders(&config)?;
    let mut tasks = Tasks::default();
    let agent = build(&config, &mut tasks).await?;
    info!(
        runtime = agent.runtime.version(),
        snapshotter = ?agent.driver,
        took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "ready"
    );
    let result = wait(&mut tasks).await;
    agent.shut_down(tasks).await;
    result
}

/// What has to be ended in order.
struct Agent {
    runtime: Arc<OciRuntime>,
    images: Arc<ImageService>,
    driver: Driver,
    stop_calls: CancellationToken,
    stop_pods: CancellationToken,
    stop_sandboxes: CancellationToken,
}

async fn build(config: &Config, tasks: &mut Tasks) -> Result<Agent, AppError> {
    let meters = Meters::default();
    let store = Arc::new(Store::open(&config.root)?);
    meters.index_rebuilds.inc_by(store.recovered().index_rebuilds);
    // Until the pods of an earlier life are found again it is not known what they run on.
    let adopting = store.pins().hold();
    let snapshotter = open_snapshotter(config, &store)?;
    let driver = snapshotter.driver();
    let images = open_images(config, store, Arc::clone(&snapshotter), &meters).await?;
    let stop_sandboxes = CancellationToken::new();
    let sandboxes = open_sandboxes(config, tasks, stop_sandboxes.clone()).await?;
    let runtime = Arc::new(open_runtime(config).await?);
    let host = Arc::new(node::facts(&config.root)?);
    let resources = node_resources(&host);
    let settings = settings(config, resources);
    let parts = Parts {
        images: Arc::clone(&images) as Arc<dyn Images>,
        sandboxes,
        runtime: Arc::clone(&runtime) as Arc<dyn Runtime>,
        files: Arc::new(HostFiles {
            memory: config.run_dir.join("pods"),
            disk: config.root.join("pods"),
            dns: settings.dns.clone(),
            node: resources,
        }),
        ledger: Ledger::new(config.run_dir.join("pods")),
        publisher: Publisher::default(),
        clock: Clock::system(),
        meters: meters.clone(),
    };
    let stop_pods = CancellationToken::new();
    let (mut supervisor, pods) = Supervisor::new(parts, settings, stop_pods.clone());
    supervisor.adopt().await?;
    drop(adopting);
    images.unmount_strangers().await;
    images.collect_garbage(gc_rules(config), meters.clone());
    tasks.spawn("pods", async move {
        supervisor.run().await;
        Ok(())
    });
    let stop_calls = CancellationToken::new();
    let node = NodeReport {
        host,
        root: config.root.clone(),
        runtime_version: runtime.version(),
        max_pods: config.max_pods,
        pod_cidr: config.pod_cidr.clone(),
        snapshotter: driver.name(),
        images: Arc::clone(&images),
    };
    serve_metrics(config, tasks, meters, stop_calls.clone()).await?;
    let policy = Policy { allow_privileged: config.allow_privileged };
    let (logs, figures) = readers(config, &runtime, &pods);
    let services =
        Services { pods, logs, figures, images: Arc::clone(&images), policy, node, stop: stop_calls.clone() };
    let listening = grpc::listen(&config.listen, config.tls()?.as_ref()).await?;
    tasks.spawn("calls", async move { Ok(grpc::serve(listening, services).await?) });
    Ok(Agent { runtime, images, driver, stop_calls, stop_pods, stop_sandboxes })
}

fn gc_rules(config: &Config) -> Rules {
    Rules {
        high_percent: config.image_gc_high,
        low_percent: config.image_gc_low,
        min_age_seconds: config.image_gc_min_age.as_secs(),
        max_age_seconds: Some(config.image_gc_max_age.as_secs()).filter(|seconds| *seconds > 0),
    }
}

fn settings(config: &Config, node: NodeResources) -> Settings {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Settings {
        max_parallel_starts: config.max_parallel_starts.unwrap_or(STARTS_PER_CORE * cores),
        log_root: config.log_root.clone(),
        dns: DnsSettings { cluster_dns: config.cluster_dns.clone(), cluster_domain: config.cluster_domain.clone() },
        node,
    }
}

async fn serve_metrics(
    config: &Config,
    tasks: &mut Tasks,
    meters: Meters,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let Some(address) = config.metrics_listen else { return Ok(()) };
    let bound = MetricsServer::bind(address, meters).await;
    let server = bound.map_err(|source| AppError::MetricsListen { address, source })?;
    tasks.spawn("metrics", async move {
        server.run(stop).await;
        Ok(())
    });
    Ok(())
}

fn make_folders(config: &Config) -> Result<(), AppError> {
    for (path, mode) in [(&config.root, 0o711), (&config.run_dir, 0o711), (&config.log_root, 0o755)] {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(mode).create(path).map_err(io_error("create", path))?;
    }
    // Before anything is mounted below it: a mount that is older would be hidden.
    namespace::mount_run_folder(&config.run_dir).map_err(io_error("mount a tmpfs on", &config.run_dir))?;
    // Pods' secrets lie below it.
    let pods = config.run_dir.join("pods");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&pods).map_err(io_error("create", &pods))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AppError {
    let path = path.to_owned();
    move |source| AppError::Io { action, path, source }
}

fn open_snapshotter(config: &Config, store: &Store) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    let choice = match config.snapshotter {
        SnapshotterChoice::Auto => DriverChoice::Auto,
        SnapshotterChoice::Erofs => DriverChoice::Erofs,
        SnapshotterChoice::Directory => DriverChoice::Directory,
    };
    let limits = Limits {
        entries: config.max_layer_entries,
        metadata_bytes: config.max_layer_metadata_bytes,
        layer_bytes: config.max_layer_bytes,
        ..Limits::default()
    };
    // Gone after a restart of the host, and so are the pods.
    let has_pods = fs::read_dir(config.run_dir.join("pods")).is_ok_and(|mut pods| pods.next().is_some());
    let running = if has_pods { Running::Pods } else { Running::Nothing };
    snapshot::open_over(choice, store, &config.run_dir.join("images"), limits, running)
}

async fn open_images(
    config: &Config,
    store: Arc<Store>,
    snapshotter: Arc<dyn Snapshotter>,
    meters: &Meters,
) -> Result<Arc<ImageService>, AppError> {
    let credential_providers =
        match (&config.image_credential_provider_config, &config.image_credential_provider_bin_dir) {
            (Some(file), Some(programs)) => CredentialProviders::load(file, programs)?,
            (None, _) | (_, None) => CredentialProviders::default(),
        };
    let registries = Arc::new(RegistryClient::new(RegistryConfig {
        hosts: Some(config.registry_config.clone()),
        auth_file: Some(config.registry_auth_file.clone()),
        credential_providers,
        proxies: Proxies::from_environment(|name| std::env::var(name).ok()),
        stall: config.registry_stall,
    }));
    let image_config = ImageConfig {
        max_parallel_layers: config.max_parallel_layers,
        max_parallel_layers_in_all: config.max_parallel_layers_in_all,
        registry_bandwidth: config.registry_bandwidth,
        resume_over: config.resume_over,
        platform: Platform::host(),
        rules: verification_rules(config)?,
        meters: meters.clone(),
    };
    Ok(ImageService::open(image_config, store, registries, snapshotter).await?)
}

fn verification_rules(config: &Config) -> Result<verification::Rules, AppError> {
    use verification::Policy;
    let policy = match config.image_pull_credentials_verification_policy {
        VerificationPolicy::NeverVerify => Policy::NeverVerify,
        VerificationPolicy::NeverVerifyPreloadedImages => Policy::NeverVerifyPreloadedImages,
        VerificationPolicy::NeverVerifyAllowlistedImages => Policy::NeverVerifyAllowlistedImages,
        VerificationPolicy::AlwaysVerify => Policy::AlwaysVerify,
    };
    let patterns = config.preloaded_images_verification_allowlist.iter().map(String::as_str);
    Ok(verification::Rules { policy, allowed: AllowList::read(patterns)? })
}

async fn open_sandboxes(
    config: &Config,
    tasks: &mut Tasks,
    stop: CancellationToken,
) -> Result<Arc<BridgeSandboxes>, AppError> {
    let pod_cidr = config.pod_cidr.parse()?;
    let (sandboxes, task) = BridgeSandboxes::open(SandboxConfig {
        run_dir: config.run_dir.clone(),
        bridge: config.bridge.clone(),
        pod_cidr,
        cluster_cidr: config.cluster_cidr.clone().unwrap_or_else(|| config.pod_cidr.clone()),
        pool_size: config.network_pool_size,
    })
    .await?;
    tasks.spawn(SANDBOXES, async move {
        task.run(stop).await;
        Ok(())
    });
    Ok(sandboxes)
}

async fn open_runtime(config: &Config) -> Result<OciRuntime, AppError> {
    let own = std::env::current_exe().map_err(io_error("find", Path::new("this program")))?;
    let opened = OciRuntime::open(OciRuntimeConfig {
        run_dir: config.run_dir.clone(),
        root_dir: config.root.clone(),
        runtime: config.runtime.clone(),
        search_path: std::env::var("PATH").unwrap_or_default(),
        monitor: config.monitor(&own),
        cgroup_parent: config.cgroup_parent.clone(),
        log_max_size: LOG_MAX_BYTES,
        log_max_files: LOG_MAX_FILES,
        start_limit: START_LIMIT,
        spare_starts: config.spare_starts,
    });
    Ok(opened.await?)
}

fn readers(config: &Config, runtime: &Arc<OciRuntime>, pods: &Pods) -> (LogSource, FigureSource) {
    let containers = Arc::clone(runtime) as Arc<dyn Runtime>;
    let logs = LogSource::new(pods.publisher.clone(), Arc::clone(&containers), config.log_root.clone());
    let stats = Stats::new(runtime.cgroups().clone(), &config.cgroup_parent);
    (logs, FigureSource::new(containers, stats))
}

fn node_resources(host: &HostFacts) -> NodeResources {
    NodeResources {
        cpu_milli: host.cpu_milli,
        memory_bytes: host.memory_bytes,
        ephemeral_storage_bytes: host.storage_bytes,
    }
}

/// Waits for a signal; a part that ends before one comes is an error.
async fn wait(tasks: &mut Tasks) -> Result<(), AppError> {
    let path = Path::new("signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("wait for", path))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("wait for", path))?;
    tokio::select! {
        // Nothing is lost by dropping the others: the process is about to end.
        _ = terminate.recv() => info!("SIGTERM: shutting down, containers live on"),
        _ = interrupt.recv() => info!("SIGINT: shutting down, containers live on"),
        ended = tasks.next() => return Err(match ended {
            Some((part, Ok(()))) => AppError::PartEnded(part),
            Some((_, Err(error))) => error,
            None => AppError::PartEnded("everything"),
        }),
    }
    Ok(())
}

impl Agent {
    async fn shut_down(self, mut tasks: Tasks) {
        let orderly = async {
            self.stop_calls.cancel();
            self.stop_pods.cancel();
            // The sandboxes' task serves the pods to their end.
            tasks.join_all_but(Some(SANDBOXES)).await;
            self.images.shutdown().await;
            self.runtime.close().await;
            self.stop_sandboxes.cancel();
            tasks.join_all_but(None).await;
        };
        let second = async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
            let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return std::future::pending().await };
            // Whichever comes first; the other does not matter any more.
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        tokio::select! {
            // What does not end in time ends with the process.
            ended = tokio::time::timeout(DRAIN_LIMIT, orderly) => match ended {
                Ok(()) => info!("shut down"),
                Err(_) => error!(limit = ?DRAIN_LIMIT, "shutdown took too long, the rest ends with the process"),
            },
            () = second => error!("second signal: ending at once"),
        }
    }
}
