//! Where the cluster that `hack/up` makes keeps what: names and paths only, and the one file that says what is up.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::larder::{Agent, Listen};
use crate::workspace;

/// The registry whose images come from the local one, so that the documented manifests run to the letter.
pub const MIRRORED_REGISTRY: &str = "registry.cn-shanghai.aliyuncs.com";

/// The paths below one state folder.
#[derive(Debug, Clone)]
pub struct Layout {
    state: PathBuf,
}

impl Layout {
    /// A cluster in this folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// The folder itself; also that of the control plane.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The control plane's programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// Pid files and logs of every process.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// The provider's.
    #[must_use]
    pub fn provider_kubeconfig(&self) -> PathBuf {
        self.state.join("provider.kubeconfig")
    }

    /// `hosts.toml` files, one a registry.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.state.join("registries")
    }

    /// The registry's blobs.
    #[must_use]
    pub fn registry_storage(&self) -> PathBuf {
        self.state.join("registry")
    }

    /// Where the registry listens.
    #[must_use]
    pub fn registry_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 5000).into()
    }

    /// The sample images as an OCI layout.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The folder that holds one folder an agent.
    #[must_use]
    pub fn agents(&self) -> PathBuf {
        self.state.join("agents")
    }

    /// Larder's own programs.
    #[must_use]
    pub fn release(program: &str) -> PathBuf {
        workspace::target().join("release").join(program)
    }

    /// The i-th agent of a cluster of ours; for one that may be somebody else's see [`Settings::agent`].
    #[must_use]
    pub fn agent(&self, index: u8) -> Agent {
        Agent {
            program: Self::release("larder-node-agent"),
            dir: self.run(),
            node: format!("{NODE_NAME}-{index}"),
            root: self.agents().join(index.to_string()).join("root"),
            run_dir: PathBuf::from(format!("/run/larder/{index}")),
            log_root: PathBuf::from("/var/log/pods"),
            pod_cidr: format!("10.244.{index}.0/24"),
            cluster_cidr: Some(OWN_PODS.to_string()),
            listen: Listen::Socket,
            bridge: format!("larder{index}"),
            cgroup_parent: format!("larder-{index}"),
            registry_config: self.registries(),
            cluster_dns: Vec::new(),
            extra: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// What virtual nodes are called before their number.
pub const NODE_NAME: &str = "virtual-node-eci";
/// Addresses of pods in a cluster of ours.
pub const OWN_PODS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
/// Addresses of our pods in somebody else's, unless others are named: not those that flannel and kind take by themselves.
pub const GUEST_PODS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 245, 0, 0), 16);
/// The prefix length of one agent's addresses.
const AGENT_PREFIX: u8 = 24;

/// The address that the first agent's bridge has: it is on this machine, pods reach it, and it is not loopback.
pub const FIRST_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// What is up, or is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Number of agents.
    pub nodes: u8,
    /// The kubeconfig of a cluster that is not ours; none when the control plane is.
    pub external: Option<PathBuf>,
    /// The address of the virtual nodes.
    pub node_ip: Ipv4Addr,
    /// What the virtual nodes are called before their number.
    pub node_name: String,
    /// Addresses of the pods of all agents.
    pub pods: Ipv4Net,
    /// What `net.ipv4.ip_forward` was before.
    pub ip_forward: String,
}

impl Settings {
    /// Settings of a cluster that is not up yet.
    pub(super) fn new(nodes: u8, external: Option<PathBuf>, node_ip: Ipv4Addr) -> anyhow::Result<Self> {
        let ip_forward = fs::read_to_string(IP_FORWARD).with_context(|| format!("read {IP_FORWARD}"))?;
        let pods = if external.is_some() { GUEST_PODS } else { OWN_PODS };
        let (node_name, ip_forward) = (NODE_NAME.to_owned(), ip_forward.trim().to_owned());
        Ok(Self { nodes, external, node_ip, node_name, pods, ip_forward })
    }

    /// Whether each agent has addresses.
    ///
    /// # Errors
    /// When there are more agents than networks; the message says how many there are.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let networks = self.pods.subnets(AGENT_PREFIX).map_or(0, Iterator::count);
        ensure!(
            usize::from(self.nodes) <= networks,
            "{} agents need a /{AGENT_PREFIX} each, and {} has {networks}: name more addresses with --pod-cidr",
            self.nodes,
            self.pods
        );
        Ok(())
    }

    /// The i-th agent.
    #[must_use]
    pub fn agent(&self, layout: &Layout, index: u8) -> Agent {
        let own = layout.agent(index);
        let network = self.pods.subnets(AGENT_PREFIX).ok().and_then(|mut all| all.nth(index.into()));
        Agent {
            node: format!("{}-{index}", self.node_name),
            pod_cidr: network.map_or(own.pod_cidr, |network| network.to_string()),
            cluster_cidr: Some(self.pods.to_string()),
            ..own
        }
    }

    /// All agents.
    pub fn agents(&self, layout: &Layout) -> impl Iterator<Item = Agent> {
        (0..self.nodes).map(|index| self.agent(layout, index))
    }

    /// What is up in this folder, if anything is.
    ///
    /// # Errors
    /// When something is and it cannot be read, so that nobody takes it for nothing.
    pub fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let file = Self::file(layout);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err).with_context(|| format!("read {}", file.display())),
        };
        let settings = serde_json::from_slice(&text).with_context(|| {
            format!("read {}: another version wrote it; run hack/down of the version that ran hack/up", file.display())
        })?;
        Ok(Some(settings))
    }

    /// Writes down what is up.
    pub(super) fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        fs::create_dir_all(layout.state()).context("create the state folder")?;
        let (file, text) = (Self::file(layout), serde_json::to_vec_pretty(self)?);
        let fresh = file.with_extension("json.new");
        // Renamed, so that it is whole or not there.
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &file)).context("write down what is up")
    }

    /// The file that says what is up.
    #[must_use]
    pub fn file(layout: &Layout) -> PathBuf {
        layout.state().join("up.json")
    }
}

/// Whether the kernel forwards packets; the agents turn it on.
pub const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Any address beyond this machine; this one is for documentation (RFC 5737).
const ELSEWHERE: &str = "192.0.2.1:9";

/// The address that an API server reaches this machine at: the one this machine would reach it from, `HOST:PORT`. One that
/// is on this machine, or in a container of it behind a published port, does not take a node at a loopback address ("address
/// not allowed"); for it, and where no server is named, the one this machine reaches others from. Loopback where there is none.
pub(super) fn own_address(server: Option<&str>) -> Ipv4Addr {
    let towards = server.map_or(Ipv4Addr::LOCALHOST, route_to);
    if towards.is_loopback() { route_to(ELSEWHERE) } else { towards }
}

/// The address that this machine would reach that one from; loopback where it would not.
fn route_to(towards: &str) -> Ipv4Addr {
    // Connecting a UDP socket only looks up the route, nothing is sent.
    let address = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(towards)?;
        socket.local_addr()
    });
    match address {
        Ok(SocketAddr::V4(address)) if !address.ip().is_unspecified() => *address.ip(),
        Ok(SocketAddr::V4(_) | SocketAddr::V6(_)) | Err(_) => Ipv4Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_share_nothing() {
        let layout = Layout::new(Path::new("/state"));
        let (first, second) = (layout.agent(0), layout.agent(1));
        assert_ne!(first.root, second.root);
        assert_ne!(first.run_dir, second.run_dir);
        assert_ne!(first.bridge, second.bridge);
        assert_ne!(first.pod_cidr, second.pod_cidr);
        assert_ne!(first.cgroup_parent, second.cgroup_parent);
        assert_ne!(first.node, second.node);
    }

    #[test]
    fn an_api_server_on_this_machine_is_not_given_a_loopback_address() {
        assert_eq!(own_address(Some("127.0.0.1:6443")), own_address(None));
    }

    #[test]
    fn settings_are_read_back() {
        let dir = tempfile::tempdir().expect("make a folder");
        let layout = Layout::new(dir.path());
        assert_eq!(Settings::read(&layout).expect("read"), None);
        let settings = Settings::new(2, None, Ipv4Addr::LOCALHOST).expect("make settings");
        settings.write(&layout).expect("write");
        assert_eq!(Settings::read(&layout).expect("read"), Some(settings));
        fs::write(Settings::file(&layout), "{").expect("spoil it");
        assert!(Settings::read(&layout).is_err(), "a cluster that may be up is not taken for none");
    }

    #[test]
    fn agents_of_a_guest_have_the_addresses_and_names_that_were_asked_for() {
        let layout = Layout::new(Path::new("/state"));
        let guest = Settings::new(4, Some("/kubeconfig".into()), Ipv4Addr::LOCALHOST).expect("make settings");
        let guest = Settings { pods: "10.9.4.0/22".parse().expect("a network"), node_name: "edge".to_owned(), ..guest };
        let last = guest.agent(&layout, 3);
        assert_eq!((last.node.as_str(), last.pod_cidr.as_str()), ("edge-3", "10.9.7.0/24"));
        assert_eq!(last.cluster_cidr.as_deref(), Some("10.9.4.0/22"));
        guest.check().expect("four networks for four agents");
        let said = Settings { nodes: 5, ..guest }.check().expect_err("one too many").to_string();
        assert!(said.contains("10.9.4.0/22 has 4"), "{said}");
    }

    #[test]
    fn agents_of_an_own_cluster_are_the_same_either_way() {
        let layout = Layout::new(Path::new("/state"));
        let own = Settings::new(2, None, Ipv4Addr::LOCALHOST).expect("make settings");
        assert_eq!(own.agent(&layout, 1).spec().args, layout.agent(1).spec().args);
    }
}
