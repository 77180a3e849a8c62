//! Wires the parts and owns the order of shutdown.
//!
//! ```text
//! app ─┬─ front: ImageCacheController, Webhook
//!      │         per node  NodeController (agent beat, lease), PodController (agent link, workers), kubelet API
//!      └─ back:  ObjectStore (watches), EventWriter
//! ```
//!
//! On SIGTERM or SIGINT the front stops first: no more work comes in, and workers end between two steps. Then the back
//! writes the events that wait. Each part has its time; what is late is ended. A second signal ends all at once. Pods,
//! nodes and leases stay as they are: the agents go on without us.
//!
//! One provider runs at a time. There is no election of a leader: two that serve the same node would both be right, since
//! every call is idempotent and keyed by UID, but would do everything twice.

mod metrics_server;
mod signals;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::metrics_server::MetricsServer;
use crate::admission::registration::TargetError;
use crate::admission::{self, Placement, Webhook, WebhookConfig, WebhookError};
use crate::agent::AgentClient;
use crate::agent::grpc::{self, GrpcAgent, TlsFiles};
use crate::cluster::{self, EventRecorder, KubeCluster, ObjectStore};
use crate::config::{AgentAddress, Config, ImageCacheAutoFlag, PodPolicyFlag};
use crate::custom_resource;
use crate::image_cache::installation::{InstallError, install};
use crate::image_cache::request::NodeDefault;
use crate::image_cache::{self, ImageCacheController, ImageCaches};
use crate::kubelet_api::{self, KubeletApi};
use crate::meters::Meters;
use crate::node::{Capacity, NodeController, NodeIdentity, NodeServices, Taints};
use crate::parts::{PartError, Parts};
use crate::pod::policy::PodPolicy;
use crate::pod::{CacheChoice, PodController, PodServices, eci_annotations};
use crate::pod_start::PodStart;

/// How long the front and the back each have to end.
const END: Duration = Duration::from_secs(5);

/// Why the provider cannot start, or has ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The API server cannot be used.
    #[error(transparent)]
    Cluster(#[from] cluster::ConnectError),
    /// An agent cannot be used.
    #[error(transparent)]
    Agent(#[from] grpc::ConnectError),
    /// The kubelet API cannot be served.
    #[error(transparent)]
    KubeletApi(#[from] kubelet_api::ServeError),
    /// Our own figures cannot be served.
    #[error("listen for metrics on {listen}")]
    MetricsListen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The webhook cannot be served.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// The webhook's address cannot be read.
    #[error("read --webhook-url")]
    WebhookUrl(#[source] TargetError),
    /// A definition cannot be installed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// No address is given and none can be found.
    #[error("find the address at which the API server reaches us; give --node-ip")]
    NodeIp(#[source] std::io::Error),
    /// Signals cannot be waited for.
    #[error("wait for signals")]
    Signals(#[source] std::io::Error),
    /// A part that must not end has ended.
    #[error(transparent)]
    Part(#[from] PartError),
}

/// Runs the provider until a signal ends it.
///
/// # Errors
/// When it cannot start, or when a part that must not end does.
pub async fn run(config: Config) -> Result<(), AppError> {
    let signals = signals::Signals::listen().map_err(AppError::Signals)?;
    let cluster = Arc::new(KubeCluster::connect(config.args.kubeconfig.as_deref()).await?);
    let address = match config.args.node_ip {
        Some(address) => address,
        None => own_address(cluster.server()).map_err(AppError::NodeIp)?,
    };
    let agents = connect(&config)?;
    if config.args.install_crds {
        install(&*cluster, custom_resource::definition()).await?;
        install(&*cluster, custom_resource::selector::definition()).await?;
    }
    let (front, back) = (CancellationToken::new(), CancellationToken::new());

    let (events, event_writer) = EventRecorder::new(cluster.clone());
    let (store, store_task) = ObjectStore::new(cluster.clone());
    let mut backs = Parts::default();
    backs.spawn_owner("the writer of events", event_writer.run(back.clone()));
    backs.spawn_owner("the watch of what pods refer to", store_task.run(back.clone()));

    let (server_version, meters) = (cluster.version().await, Meters::default());
    let around = around_image_caches(&config, &cluster, &agents, (&events, &meters));
    let (image_caches, image_cache_controller) = ImageCacheController::new(around);
    let webhook = match &config.args.webhook_url {
        Some(url) => Some(webhook(&config, url, &cluster, &events).await?),
        None => None,
    };
    let metrics = match config.args.metrics_listen {
        Some(listen) => {
            let bound = MetricsServer::bind(listen, meters.clone()).await;
            Some(bound.map_err(|source| AppError::MetricsListen { listen, source })?)
        }
        None => None,
    };
    let caches: Arc<dyn CacheChoice> = Arc::new(PodStart {
        selected: webhook.as_ref().map(Webhook::selected),
        ..pod_start(&config, image_caches, server_version.as_deref())
    });
    let pods = PodServices { pods: cluster.clone(), objects: cluster.clone(), store, events, caches, meters };
    let kubelet_version = kubelet_version(server_version.as_deref());
    let mut nodes = Nodes { config: &config, cluster, pods, address, kubelet_version, parts: Parts::default() };
    nodes.parts.spawn_owner("the controller of image caches", image_cache_controller.run(front.clone()));
    if let Some(metrics) = metrics {
        nodes.parts.spawn("the server of figures", metrics.run(front.clone()));
    }
    let mut registered = vec![];
    if let Some(webhook) = webhook {
        registered.push(webhook.registered());
        nodes.parts.spawn_owner("the webhook", webhook.run(front.clone()));
    }
    for (agent, client) in agents {
        registered.push(nodes.start(&agent, client, &front).await?);
    }
    let mut fronts = nodes.parts;
    let ended = tokio::select! {
        ended = until_the_end((&mut fronts, &front), (&mut backs, &back), signals.first()) => ended,
        // It only says something, once.
        never = report_ready(registered) => match never {},
    };
    front.cancel();
    shut_down(fronts, backs, &back, &signals).await;
    ended
}

/// Ends the front, which has been told already, then the back.
async fn shut_down(mut fronts: Parts, mut backs: Parts, back: &CancellationToken, signals: &signals::Signals) {
    let orderly = async {
        end(&mut fronts).await;
        back.cancel();
        end(&mut backs).await;
    };
    tokio::select! {
        () = orderly => tracing::info!("ended"),
        // Whoever asks twice wants it now.
        () = signals.second() => tracing::warn!("ended at once"),
    }
}

/// How pods start, as the command line has it.
fn pod_start(config: &Config, image_caches: ImageCaches, server_version: Option<&str>) -> PodStart {
    let surroundings = |agent: &AgentAddress| {
        let around = eci_annotations::Surroundings {
            zone: config.args.zone.clone().unwrap_or_default(),
            cluster_domain: config.args.cluster_domain.clone(),
            kubernetes_version: server_version.unwrap_or_default().to_owned(),
            stream_port: agent.listen.port(),
        };
        (agent.node.clone(), around)
    };
    let policy = match config.args.pod_policy {
        PodPolicyFlag::Eci => PodPolicy::Eci,
        PodPolicyFlag::Kubelet => PodPolicy::Kubelet,
    };
    PodStart { policy, image_caches, surroundings: config.agents.iter().map(surroundings).collect(), selected: None }
}

/// What the controller of image caches works with.
fn around_image_caches(
    config: &Config,
    cluster: &Arc<KubeCluster>,
    agents: &[Reached],
    (events, meters): (&EventRecorder, &Meters),
) -> image_cache::Surroundings {
    image_cache::Surroundings {
        api: cluster.clone(),
        agents: agents.iter().map(|(agent, client)| (agent.node.clone(), client.clone())).collect(),
        nodes: cluster.clone(),
        events: events.clone(),
        read_logins: crate::pod::pull_credentials::credentials,
        secret_rule: match config.args.webhook_url {
            Some(_) => image_cache::SecretRule::CheckedAtAdmission,
            None => image_cache::SecretRule::Labelled,
        },
        most: config.args.image_caches_max,
        default: match config.args.image_cache_auto {
            ImageCacheAutoFlag::Create => NodeDefault::Create,
            ImageCacheAutoFlag::Match => NodeDefault::Match,
            ImageCacheAutoFlag::Off => NodeDefault::Off,
        },
        meters: meters.clone(),
    }
}

/// The webhook, at its address but not serving yet.
async fn webhook(
    config: &Config,
    url: &str,
    cluster: &Arc<KubeCluster>,
    events: &EventRecorder,
) -> Result<Webhook, AppError> {
    let target = url.parse().map_err(AppError::WebhookUrl)?;
    let nodes = config.agents.iter().map(|agent| agent.node.clone()).collect();
    let placement = Placement { nodes, ..Placement::new(node_taints(config).all()) };
    let (entries, profiles, selectors, access) = (cluster.clone(), cluster.clone(), cluster.clone(), cluster.clone());
    let around = admission::Surroundings { entries, profiles, selectors, access, events: events.clone() };
    Ok(Webhook::bind(around, WebhookConfig { listen: config.args.webhook_listen, target, placement }).await?)
}

fn node_taints(config: &Config) -> Taints {
    Taints { without_eci: config.args.disable_taint, more: config.taints.clone() }
}

/// Waits for a signal, or for a part to end that must not.
async fn until_the_end(
    (fronts, front): (&mut Parts, &CancellationToken),
    (backs, back): (&mut Parts, &CancellationToken),
    signal: impl Future<Output = &'static str>,
) -> Result<(), AppError> {
    // Only one of these is taken, and it is the end of all.
    tokio::select! {
        name = signal => {
            tracing::info!(signal = name, "ending");
            Ok(())
        }
        missing = fronts.missing(front) => Err(missing.into()),
        missing = backs.missing(back) => Err(missing.into()),
    }
}

/// Joins parts that have been told to end, and ends those that are late.
async fn end(parts: &mut Parts) {
    let all = async {
        while let Err(error) = parts.join().await {
            tracing::error!(%error, "a part has not ended well");
        }
    };
    if tokio::time::timeout(END, all).await.is_err() {
        tracing::warn!(late = ?parts.names(), "not ended in time, ending them by force");
        parts.shutdown().await;
    }
}

/// Says once that every node is registered.
async fn report_ready(registered: Vec<watch::Receiver<bool>>) -> Infallible {
    for mut node in registered {
        if node.wait_for(|registered| *registered).await.is_err() {
            return std::future::pending().await;
        }
    }
    tracing::info!("ready");
    std::future::pending().await
}

/// An agent and the way to it.
type Reached = (AgentAddress, Arc<dyn AgentClient>);

fn connect(config: &Config) -> Result<Vec<Reached>, AppError> {
    let tls = config.agent_tls.clone().map(|(cert, key, ca)| TlsFiles { cert, key, ca });
    let mut clients = vec![];
    for agent in &config.agents {
        let client: Arc<dyn AgentClient> = Arc::new(GrpcAgent::new(&agent.address, tls.as_ref())?);
        clients.push((agent.clone(), client));
    }
    Ok(clients)
}

/// Starts what a node consists of.
struct Nodes<'a> {
    config: &'a Config,
    cluster: Arc<KubeCluster>,
    pods: PodServices,
    address: IpAddr,
    kubelet_version: String,
    parts: Parts,
}

impl Nodes<'_> {
    async fn start(
        &mut self,
        agent: &AgentAddress,
        client: Arc<dyn AgentClient>,
        stop: &CancellationToken,
    ) -> Result<watch::Receiver<bool>, AppError> {
        let span = tracing::info_span!("node", name = agent.node);
        let host_ip = Some(self.address.to_string());
        let (pods, directory) = PodController::new(&agent.node, host_ip, client.clone(), self.pods.clone());
        let api = KubeletApi {
            node: agent.node.clone(),
            address: self.address,
            listen: agent.listen,
            tls: self.config.args.tls_cert_file.clone().zip(self.config.args.tls_private_key_file.clone()),
            client_ca: self.config.args.client_ca_file.clone(),
            access: self.cluster.clone(),
            agent: client.clone(),
            pods: directory,
        };
        let serving = api.bind().await?;
        let identity = self.identity(&agent.node, serving.port());
        let services = NodeServices { api: self.cluster.clone(), agent: client };
        let (node, registered) = NodeController::new(identity, services);
        let (parts, name) = (&mut self.parts, &agent.node);
        let serving = serving.run(stop.clone()).instrument(span.clone());
        parts.spawn_owner(format!("the kubelet API of {name}"), serving);
        parts.spawn_owner(format!("the controller of {name}"), node.run(stop.clone()).instrument(span.clone()));
        parts.spawn_owner(format!("the controller of the pods of {name}"), pods.run(stop.clone()).instrument(span));
        Ok(registered)
    }

    fn identity(&self, name: &str, port: u16) -> NodeIdentity {
        let config = self.config;
        let capacity = |resource: &str| config.capacity.get(resource).cloned();
        NodeIdentity {
            name: name.to_owned(),
            address: self.address.to_string(),
            port,
            region: config.args.region.clone(),
            zone: config.args.zone.clone(),
            labels: config.labels.clone(),
            taints: node_taints(config),
            capacity: Capacity {
                cpu: capacity("cpu"),
                memory: capacity("memory"),
                pods: capacity("pods"),
                ephemeral_storage: capacity("ephemeral-storage"),
            },
            kubelet_version: self.kubelet_version.clone(),
        }
    }
}

/// The address that packets to the API server leave from. Nothing is sent.
fn own_address(server: Option<(String, u16)>) -> std::io::Result<IpAddr> {
    let (host, port) = server.ok_or_else(|| std::io::Error::other("the API server's address has no host"))?;
    let any: SocketAddr = if host.contains(':') { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect((host.as_str(), port))?;
    Ok(socket.local_addr()?.ip())
}

/// A kubelet's version as others can read it: the API server's, which a kubelet may not be newer than, with ours.
fn kubelet_version(server: Option<&str>) -> String {
    let plain = server.and_then(|version| version.split(['-', '+']).next()).filter(|version| version.starts_with('v'));
    format!("{}-larder.{}", plain.unwrap_or("v1.37.0"), env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_one_that_tools_can_read() {
        let ours = env!("CARGO_PKG_VERSION");
        assert_eq!(kubelet_version(Some("v1.36.1+k3s1")), format!("v1.36.1-larder.{ours}"));
        assert_eq!(kubelet_version(Some("v1.37.2-aliyun.1")), format!("v1.37.2-larder.{ours}"));
        assert_eq!(kubelet_version(None), format!("v1.37.0-larder.{ours}"));
    }

    #[tokio::test]
    async fn a_part_that_is_missing_ends_the_program_with_its_name() {
        let (stop, mut fronts, mut backs) = (CancellationToken::new(), Parts::default(), Parts::default());
        let running = stop.clone();
        fronts.spawn("the good", async move { running.cancelled().await });
        backs.spawn_owner("the writer", async { Err(PartError::ended("the pen")) });
        let never = std::future::pending();
        let ended = until_the_end((&mut fronts, &stop), (&mut backs, &stop), never).await.unwrap_err();
        let source = std::error::Error::source(&ended).unwrap().to_string();
        assert_eq!(
            (ended.to_string().as_str(), source.as_str()),
            ("the writer cannot go on", "the pen has ended unexpectedly")
        );
        fronts.spawn("the loud", async { panic!("out of ink") });
        let ended = until_the_end((&mut fronts, &stop), (&mut backs, &stop), std::future::pending()).await;
        assert_eq!(ended.unwrap_err().to_string(), "the loud has panicked: out of ink");
        let signalled = until_the_end((&mut fronts, &stop), (&mut backs, &stop), std::future::ready("SIGTERM")).await;
        assert!(signalled.is_ok());
        stop.cancel();
        end(&mut fronts).await;
        assert!(fronts.names().is_empty());
    }

    #[test]
    fn loopback_is_reached_from_loopback() {
        let address = own_address(Some(("127.0.0.1".into(), 6443))).unwrap();
        assert!(address.is_loopback());
        assert!(own_address(None).is_err());
    }
}
