//! Starts Larder's own two processes the way a service manager would: with flags, as programs, never in process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::pki::PairFiles;
use crate::process::{self, Process, Spec};

/// How long a process of ours gets to drain.
const GRACE: Duration = Duration::from_secs(20);

/// Where the provider reaches an agent.
#[derive(Debug, Clone)]
pub enum Listen {
    /// A socket in its run folder: agent and provider on one host.
    Socket,
    /// TCP with mutual TLS: the provider on another host.
    MutualTls {
        /// Address and port.
        address: SocketAddr,
        /// The agent's certificate.
        serving: PairFiles,
        /// Who signs the provider's.
        client_authority: PathBuf,
    },
}

/// One agent: its folders and its network.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The program; `larder-monitor` lies beside it.
    pub program: PathBuf,
    /// Pid file and log.
    pub dir: PathBuf,
    /// The virtual node that this agent is.
    pub node: String,
    /// The store.
    pub root: PathBuf,
    /// Sockets, mounts, pods: on tmpfs.
    pub run_dir: PathBuf,
    /// Container logs.
    pub log_root: PathBuf,
    /// Addresses of its pods.
    pub pod_cidr: String,
    /// Addresses of all pods of the cluster, which are reached without address translation; its own alone when absent.
    pub cluster_cidr: Option<String>,
    /// Where it listens.
    pub listen: Listen,
    /// Its bridge; at most 15 bytes.
    pub bridge: String,
    /// Its cgroup, below which each pod has its own.
    pub cgroup_parent: String,
    /// Folder with one `hosts.toml` a registry.
    pub registry_config: PathBuf,
    /// Addresses of the cluster's name servers.
    pub cluster_dns: Vec<IpAddr>,
    /// Further flags.
    pub extra: Vec<String>,
    /// Variables, `RUST_LOG` among them.
    pub env: Vec<(String, String)>,
}

impl Agent {
    /// What the agent's process is called.
    #[must_use]
    pub fn name(&self) -> String {
        format!("larder-node-agent-{}", self.node)
    }

    /// Where the provider reaches it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match &self.listen {
            Listen::Socket => format!("unix://{}", self.run_dir.join("agent.sock").display()),
            Listen::MutualTls { address, .. } => format!("https://{address}"),
        }
    }

    /// Its command line.
    #[must_use]
    pub fn spec(&self) -> Spec {
        let mut spec = Spec::new(&self.name(), &self.dir, &self.program)
            .flag("--root", self.root.display())
            .flag("--run-dir", self.run_dir.display())
            .flag("--log-root", self.log_root.display())
            .flag("--listen", self.endpoint())
            .flag("--pod-cidr", &self.pod_cidr)
            .flag("--bridge", &self.bridge)
            .flag("--cgroup-parent", &self.cgroup_parent)
            .flag("--registry-config", self.registry_config.display());
        if let Listen::MutualTls { serving, client_authority, .. } = &self.listen {
            spec = spec
                .flag("--tls-cert", serving.certificate.display())
                .flag("--tls-key", serving.key.display())
                .flag("--tls-client-ca", client_authority.display());
        }
        if let Some(cidr) = &self.cluster_cidr {
            spec = spec.flag("--cluster-cidr", cidr);
        }
        for address in &self.cluster_dns {
            spec = spec.flag("--cluster-dns", address);
        }
        spec.args.extend(self.extra.iter().cloned());
        spec.env.extend(self.env.iter().cloned());
        spec
    }

    /// Starts it, or leaves it if it runs just so.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<Process, process::ProcessError> {
        process::ensure(&self.spec(), GRACE)
    }
}

/// The provider: one process for all virtual nodes.
#[derive(Debug, Clone)]
pub struct Provider {
    /// The program.
    pub program: PathBuf,
    /// Pid file and log.
    pub dir: PathBuf,
    /// Who it is to the API server.
    pub kubeconfig: PathBuf,
    /// Virtual nodes: each one's name and its agent's [endpoint](Agent::endpoint).
    pub agents: Vec<(String, String)>,
    /// What it shows to agents with mutual TLS, and who signs theirs.
    pub agent_tls: Option<(PairFiles, PathBuf)>,
    /// The address that the API server reaches it at.
    pub node_ip: IpAddr,
    /// Where the kubelet API listens, `ADDRESS:PORT`.
    pub listen: String,
    /// The kubelet API's certificate; self-signed when absent.
    pub serving: Option<PairFiles>,
    /// Who signs the clients of the kubelet API.
    pub client_authority: Option<PathBuf>,
    /// Where the webhook listens, `ADDRESS:PORT`.
    pub webhook_listen: String,
    /// The address that the API server calls the webhook at.
    pub webhook_url: Option<String>,
    /// Further flags.
    pub extra: Vec<String>,
    /// Variables, `RUST_LOG` among them.
    pub env: Vec<(String, String)>,
}

impl Provider {
    /// What the provider's process is called.
    pub const NAME: &str = "larder-provider";

    /// Its command line.
    #[must_use]
    pub fn spec(&self) -> Spec {
        let mut spec = Spec::new(Self::NAME, &self.dir, &self.program)
            .flag("--kubeconfig", self.kubeconfig.display())
            .flag("--node-ip", self.node_ip)
            .flag("--listen", &self.listen)
            .flag("--webhook-listen", &self.webhook_listen);
        for (node, endpoint) in &self.agents {
            spec = spec.flag("--agent", format!("{node}={endpoint}"));
        }
        if let Some((pair, authority)) = &self.agent_tls {
            spec = spec
                .flag("--agent-tls-cert", pair.certificate.display())
                .flag("--agent-tls-key", pair.key.display())
                .flag("--agent-tls-ca", authority.display());
        }
        if let Some(pair) = &self.serving {
            spec = spec.flag("--tls-cert-file", pair.certificate.display());
            spec = spec.flag("--tls-private-key-file", pair.key.display());
        }
        if let Some(authority) = &self.client_authority {
            spec = spec.flag("--client-ca-file", authority.display());
        }
        if let Some(url) = &self.webhook_url {
            spec = spec.flag("--webhook-url", url);
        }
        spec.args.extend(self.extra.iter().cloned());
        spec.env.extend(self.env.iter().cloned());
        spec
    }

    /// Starts it, or leaves it if it runs just so.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<Process, process::ProcessError> {
        process::ensure(&self.spec(), GRACE)
    }
}
