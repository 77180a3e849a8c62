//! A cluster with virtual nodes, as a user has it: control plane, registry, agents and provider, each a process of its own.
//!
//! The registry is reached through a proxy that misbehaves on demand and notes every request.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Secret, ServiceAccount};
use kube::api::Api;
use kube::{Client, runtime::wait::await_condition};
use larder_dev::conditions::node_is_ready;
use larder_dev::control_plane::{self, ControlPlane, kube_proxy};
use larder_dev::kubeconfig::{self, Identity};
use larder_dev::larder::{Agent, Listen, Provider};
use larder_dev::pki::PairFiles;
use larder_dev::process::{self, Process};
use larder_dev::{images, manifests, ports, prerequisites, registry, workspace};

use crate::registry_proxy::RegistryProxy;
use crate::{figures, mutual_tls};

/// The registry of the documented Deployments.
pub const SAMPLE_REGISTRY: &str = "registry.cn-shanghai.aliyuncs.com";
/// A registry that does not exist: everything in it comes from the mirror.
pub const TEST_REGISTRY: &str = "registry.larder.test";
/// The busybox of the samples.
pub const BUSYBOX: &str = "registry.cn-shanghai.aliyuncs.com/eci_open/busybox:1.30";
/// The nginx of the samples.
pub const NGINX: &str = "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2";

/// Where Larder's own objects are.
const NAMESPACE: &str = "larder-system";
const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
/// How the cgroups of all agents begin.
pub(crate) const CGROUPS: &str = "larder-e2e-";

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the cluster's bridges and cgroups apart from those of others; one letter or digit.
    pub tag: char,
    /// Second byte of the pods' addresses, `10.<net>.<node>.0/24`, which also keeps clusters apart.
    pub net: u8,
    /// Number of virtual nodes.
    pub nodes: u8,
    /// Further flags of each agent.
    pub agent_flags: Vec<String>,
    /// Give the agents' stores a file system of their own of so many bytes.
    pub small_disk: Option<u64>,
    /// Run kube-proxy, of which a machine can have only one.
    pub kube_proxy: bool,
    /// Provider and agents speak mutual TLS over TCP, as between hosts.
    pub mutual_tls: bool,
}

impl Options {
    /// One virtual node, and nothing out of the ordinary.
    #[must_use]
    pub fn new(tag: char, net: u8) -> Self {
        Self { tag, net, nodes: 1, agent_flags: Vec::new(), small_disk: None, kube_proxy: false, mutual_tls: false }
    }
}

/// A running cluster.
pub struct Cluster {
    /// For the administrator.
    pub client: Client,
    /// What stands between the nodes and the registry.
    pub registry: RegistryProxy,
    /// The control plane's processes.
    pub control_plane: ControlPlane,
    /// The agents, one a virtual node.
    pub agents: Vec<Agent>,
    provider: Provider,
    upstream: SocketAddr,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts everything and waits until the virtual nodes are Ready.
    ///
    /// # Errors
    /// When something does not start; the message holds the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-e2e-").tempdir().context("make a folder")?;
        let (upstream, registry) = start_registry(folder.path()).await?;
        let programs = workspace::state().join("bin");
        ensure!(
            programs.join("kube-apiserver").exists(),
            "{} has no control plane: run hack/test e2e",
            programs.display()
        );
        let net = options.net;
        let config = control_plane::Config {
            bind_address: Ipv4Addr::UNSPECIFIED,
            advertise_address: Some(Ipv4Addr::new(192, 0, 2, 10)),
            pod_cidr: format!("10.{net}.0.0/16"),
            ..control_plane::Config::new(folder.path(), &programs)
        };
        let control_plane = ControlPlane::prepare(config.on_free_ports()?)?;
        control_plane.start().await?;
        let client = manifests::client(&control_plane.kubeconfig()).await?;
        let kubeconfig = apply_larder(&client, &control_plane, folder.path()).await?;
        if let Some(bytes) = options.small_disk {
            mount_small_disk(folder.path(), bytes)?;
        }
        let agents = (0..options.nodes).map(|index| agent(folder.path(), &options, index));
        let mut agents: Vec<Agent> = agents.collect::<Result<_>>()?;
        let mut provider = provider(folder.path(), &control_plane, kubeconfig)?;
        if options.mutual_tls {
            provider.agent_tls = Some(mutual_tls::between(&folder.path().join("pki"), &mut agents)?);
        }
        provider.agents = agents.iter().map(|agent| (agent.node.clone(), agent.endpoint())).collect();
        let cluster = Self { client, registry, control_plane, agents, provider, upstream, folder };
        for index in 0..cluster.agents.len() {
            cluster.start_agent(index)?;
        }
        cluster.start_provider()?;
        for agent in &cluster.agents {
            cluster.wait_node_ready(&agent.node, true).await?;
        }
        if options.kube_proxy {
            let node = cluster.node(0).to_owned();
            kube_proxy::start(cluster.control_plane.config(), &node)?;
        }
        Ok(cluster)
    }

    /// The name of a virtual node.
    #[must_use]
    pub fn node(&self, index: usize) -> &str {
        &self.agents[index].node
    }

    /// Starts an agent, or leaves it if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, index: usize) -> Result<Process> {
        Ok(self.agents[index].start()?)
    }

    /// The process of an agent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn agent_process(&self, index: usize) -> Result<Process> {
        let agent = &self.agents[index];
        process::find(&agent.dir, &agent.name()).with_context(|| format!("agent {} does not run", agent.node))
    }

    /// Starts the provider, or leaves it if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_provider(&self) -> Result<Process> {
        Ok(self.provider.start()?)
    }

    /// Gives the provider these flags beside its usual ones, and starts it anew with them.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn set_provider_flags(&mut self, flags: &[&str]) -> Result<Process> {
        // The first ones say where it serves its figures.
        self.provider.extra.truncate(figures::FLAGS);
        self.provider.extra.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.start_provider()
    }

    /// The process of the provider.
    ///
    /// # Errors
    /// When it does not run.
    pub fn provider_process(&self) -> Result<Process> {
        process::find(&self.provider.dir, Provider::NAME).context("the provider does not run")
    }

    /// Waits until a node is Ready, or not.
    ///
    /// # Errors
    /// When it is not so in time.
    pub async fn wait_node_ready(&self, node: &str, wanted: bool) -> Result<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let is_so = |node: Option<&Node>| node.is_some_and(|node| node_is_ready(node) == wanted);
        let found = tokio::time::timeout(PATIENCE, await_condition(nodes, node, is_so)).await;
        let found = found.with_context(|| format!("{node} is not Ready={wanted} in time\n{}", self.log_tails()))??;
        found.with_context(|| format!("node {node} is gone"))
    }

    /// The ends of the logs of our own processes, for the message of a test that fails.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tails = process::all(&self.run_dir())
            .into_iter()
            .filter(|process| process.name().starts_with("larder") || process.name() == "kube-proxy");
        tails.map(|process| format!("--- {}\n{}\n", process.name(), process.log_tail(30))).collect()
    }

    /// Runs `kubectl` as the administrator and gives what it printed.
    ///
    /// # Errors
    /// When it fails; the message has its words.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let program = self.control_plane.config().programs.join("kubectl");
        let mut command = tokio::process::Command::new(program);
        command.arg("--kubeconfig").arg(self.control_plane.kubeconfig()).args(args).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("kubectl takes too long")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// Makes a copy of the sample busybox under another name in [`TEST_REGISTRY`], whose layers no other image has, and gives
    /// its reference. So a test has a repository that it alone breaks.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn own_image(&self, repository: &str) -> Result<String> {
        crate::own_image::push(self.upstream, repository).await?;
        Ok(format!("{TEST_REGISTRY}/{repository}:1"))
    }

    /// A figure of the provider's, by its name with its labels as `/metrics` has it; 0 where it has none.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub async fn provider_figure(&self, name: &str) -> Result<f64> {
        figures::read(&self.provider.extra, name).await
    }

    /// A figure of an agent's, likewise.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub async fn agent_figure(&self, index: usize, name: &str) -> Result<f64> {
        figures::read(&self.agents[index].extra, name).await
    }

    /// The store of an agent.
    #[must_use]
    pub fn store(&self, index: usize) -> &Path {
        &self.agents[index].root
    }

    /// What the provider shows to agents with mutual TLS, and the authority that signed theirs.
    #[must_use]
    pub fn agent_tls(&self) -> Option<&(PairFiles, PathBuf)> {
        self.provider.agent_tls.as_ref()
    }

    /// Ends everything. What it forgets, the end of the tests' process namespace ends.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn stop(self) -> Result<()> {
        for process in process::all(&self.run_dir()) {
            process.stop(GRACE)?;
        }
        self.control_plane.stop()
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("folder", &self.folder.path()).finish_non_exhaustive()
    }
}

/// Puts a new file system under the agents' stores. It goes with the mount namespace of the tests.
fn mount_small_disk(folder: &Path, bytes: u64) -> Result<()> {
    let (image, stores) = (folder.join("disk.ext4"), folder.join("agents"));
    fs::create_dir(&stores).context("make the stores' folder")?;
    fs::File::create(&image)?.set_len(bytes).context("make a disk")?;
    for (program, args) in [("mkfs.ext4", ["-q", "-m", "0"]), ("mount", ["-o", "loop", "-n"])] {
        let mut command = Command::new(program);
        command.args(args).arg(&image);
        if program == "mount" {
            command.arg(&stores);
        }
        let output = command.output().with_context(|| format!("run {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Starts a registry with the sample images, and a proxy before it.
async fn start_registry(folder: &Path) -> Result<(SocketAddr, RegistryProxy)> {
    let [port] = ports::free()?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let config = registry::Config {
        dir: folder.join("run"),
        storage: folder.join("registry"),
        listen,
        program: prerequisites::find("docker-registry")
            .context("docker-registry is not installed: run hack/test e2e")?,
    };
    registry::start(&config).await?;
    let layouts = workspace::state().join("images");
    images::push(&layouts, &format!("http://{listen}"), images::Set::Small, &mut |_| ()).await?;
    let proxy = RegistryProxy::start(listen).await?;
    for host in [SAMPLE_REGISTRY, TEST_REGISTRY] {
        registry::write_mirror(&folder.join("registries"), host, proxy.address())?;
    }
    Ok((listen, proxy))
}

/// Applies what the provider needs and writes its kubeconfig.
async fn apply_larder(client: &Client, control_plane: &ControlPlane, folder: &Path) -> Result<PathBuf> {
    let deploy = workspace::root().join("hack/deploy");
    for name in ["namespace.yaml", "crd.yaml", "rbac.yaml", "provider-token.yaml", "kubelet-client.yaml"] {
        let text = fs::read_to_string(deploy.join(name)).with_context(|| format!("read {name}"))?;
        manifests::apply(client, &text, NAMESPACE).await?;
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let filled = await_condition(secrets, "larder-provider-token", |secret: Option<&Secret>| {
        secret.and_then(|secret| secret.data.as_ref()).is_some_and(|data| data.contains_key("token"))
    });
    let secret = tokio::time::timeout(PATIENCE, filled).await.context("the provider's token is not made")??;
    let token = secret.and_then(|secret| secret.data?.remove("token")).context("the token is gone")?;
    let identity = Identity::Token(String::from_utf8(token.0)?);
    let path = folder.join("provider.kubeconfig");
    kubeconfig::write(&path, &control_plane.url(), control_plane.authority().certificate(), &identity)?;
    wait_default_account(client, "default").await?;
    Ok(path)
}

/// Waits for the service account without which no pod is admitted; a controller makes it a moment after the namespace.
pub(crate) async fn wait_default_account(client: &Client, namespace: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
    tokio::time::timeout(PATIENCE, made).await.context("the default service account is not made")??;
    Ok(())
}

fn agent(folder: &Path, options: &Options, index: u8) -> Result<Agent> {
    let Options { tag, net, .. } = options;
    let [metrics] = ports::free()?;
    Ok(Agent {
        program: workspace::target().join("release/larder-node-agent"),
        dir: folder.join("run"),
        node: format!("virtual-node-eci-{index}"),
        root: folder.join(format!("agents/{index}/root")),
        // Short, because a socket's path has 107 bytes at most.
        run_dir: PathBuf::from(format!("/run/larder-{tag}{index}")),
        log_root: folder.join("logs"),
        pod_cidr: format!("10.{net}.{index}.0/24"),
        cluster_cidr: Some(format!("10.{net}.0.0/16")),
        listen: Listen::Socket,
        bridge: format!("larder-{tag}{index}"),
        cgroup_parent: format!("{CGROUPS}{tag}{index}"),
        registry_config: folder.join("registries"),
        cluster_dns: Vec::new(),
        extra: figures::flags(metrics).into_iter().chain(options.agent_flags.clone()).collect(),
        env: Vec::new(),
    })
}

fn provider(folder: &Path, control_plane: &ControlPlane, kubeconfig: PathBuf) -> Result<Provider> {
    let [kubelet, webhook, metrics] = ports::free()?;
    let names = [Ipv4Addr::LOCALHOST.to_string()];
    Ok(Provider {
        program: workspace::target().join("release/larder-provider"),
        dir: folder.join("run"),
        kubeconfig,
        agents: Vec::new(),
        agent_tls: None,
        node_ip: Ipv4Addr::LOCALHOST.into(),
        listen: format!("127.0.0.1:{kubelet}"),
        serving: Some(control_plane.kubelet_serving_pair("larder", &names)?),
        client_authority: Some(control_plane.authority().files().certificate.clone()),
        webhook_listen: format!("127.0.0.1:{webhook}"),
        webhook_url: Some(format!("https://127.0.0.1:{webhook}")),
        extra: figures::flags(metrics),
        env: Vec::new(),
    })
}
