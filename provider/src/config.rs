//! The command line: read, checked, and turned into values that need no more checking.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// The agent that is used when none is named.
const DEFAULT_AGENT: &str = "unix:///run/larder/agent.sock";

/// Registers virtual nodes in a Kubernetes cluster and carries their pods to Larder node agents.
#[derive(Debug, Clone, Parser)]
#[command(name = "larder-provider", version, max_term_width = 100)]
pub struct Args {
    /// Kubeconfig of the cluster; without it, KUBECONFIG, then the cluster that we run in.
    #[arg(long, env = "LARDER_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A node agent, repeatable: one virtual node an agent. NAME is the node's; only one agent may do without.
    #[arg(
        long = "agent",
        env = "LARDER_AGENT",
        value_name = "[NAME=]unix:///PATH|NAME=https://HOST:PORT",
        value_delimiter = ','
    )]
    pub agents: Vec<String>,
    /// Our certificate towards agents on other hosts.
    #[arg(long, env = "LARDER_AGENT_TLS_CERT", value_name = "FILE")]
    pub agent_tls_cert: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, env = "LARDER_AGENT_TLS_KEY", value_name = "FILE")]
    pub agent_tls_key: Option<PathBuf>,
    /// Authority that signed the certificates of agents on other hosts.
    #[arg(long, env = "LARDER_AGENT_TLS_CA", value_name = "FILE")]
    pub agent_tls_ca: Option<PathBuf>,
    /// Name of the node whose agent is given without one.
    #[arg(long, env = "LARDER_NODE_NAME", default_value = "virtual-node-eci-0")]
    pub node_name: String,
    /// Address at which the API server reaches us; without it, the one that we reach the API server from.
    #[arg(long, env = "LARDER_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Where the kubelet API of the first node is served; each further node takes the next port.
    #[arg(long, env = "LARDER_LISTEN", default_value = "0.0.0.0:10250", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Certificate of the kubelet API, read again when it changes; without it, one is made that nobody has signed.
    #[arg(long, env = "LARDER_TLS_CERT_FILE", value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, env = "LARDER_TLS_PRIVATE_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authority of the client certificates of the kubelet API; without it, callers need a token.
    #[arg(long, env = "LARDER_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Where the admission webhook is served.
    #[arg(long, env = "LARDER_WEBHOOK_LISTEN", default_value = "0.0.0.0:9443", value_name = "IP:PORT")]
    pub webhook_listen: SocketAddr,
    /// Where the API server finds the webhook; without it, the webhook is not registered.
    #[arg(long, env = "LARDER_WEBHOOK_URL", value_name = "https://HOST:PORT|service://NAMESPACE/NAME:PORT")]
    pub webhook_url: Option<String>,
    /// Region of the nodes.
    #[arg(long, env = "LARDER_REGION")]
    pub region: Option<String>,
    /// Zone of the nodes.
    #[arg(long, env = "LARDER_ZONE")]
    pub zone: Option<String>,
    /// More labels of the nodes.
    #[arg(long, env = "LARDER_LABELS", value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// More taints of the nodes.
    #[arg(long, env = "LARDER_TAINTS", value_name = "KEY=VALUE:EFFECT,...", value_delimiter = ',')]
    pub taints: Vec<String>,
    /// Leave out the taint virtual-kubelet.io/provider=alibabacloud:NoSchedule.
    #[arg(long, env = "LARDER_DISABLE_TAINT")]
    pub disable_taint: bool,
    /// Capacity of each node, where it is not to be the host's: cpu, memory, pods, ephemeral-storage.
    #[arg(long, env = "LARDER_CAPACITY", value_name = "RESOURCE=QUANTITY,...", value_delimiter = ',')]
    pub capacity: Vec<String>,
    /// Which pods are taken: what ECI takes, or whatever the agent can run.
    #[arg(long, env = "LARDER_POD_POLICY", default_value = "eci")]
    pub pod_policy: PodPolicyFlag,
    /// Install the definitions of ImageCache and Selector, or bring them up to date, before anything else.
    #[arg(long, env = "LARDER_INSTALL_CRDS")]
    pub install_crds: bool,
    /// How many image caches there may be, 0 for any number. One more that is made by hand fails; one that is made for a pod
    /// takes the place of the automatic one that was used least recently.
    #[arg(long, env = "LARDER_IMAGE_CACHES_MAX", default_value_t = 200, value_name = "NUMBER")]
    pub image_caches_max: usize,
    /// What holds for pods without the annotation k8s.aliyun.com/eci-auto-imc: whether they start from image caches, and
    /// whether a cache is made for them where none holds all their images. off holds for pods with it, too.
    #[arg(long, env = "LARDER_IMAGE_CACHE_AUTO", default_value = "create")]
    pub image_cache_auto: ImageCacheAutoFlag,
    /// DNS domain of the cluster.
    #[arg(long, env = "LARDER_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Form of the log.
    #[arg(long, env = "LARDER_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Where our own metrics are served, over plain http; without it, nowhere.
    #[arg(long, env = "LARDER_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Which pods are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PodPolicyFlag {
    /// What ECI takes.
    Eci,
    /// Whatever the agent can run.
    Kubelet,
}

/// What holds for pods that do not say whether they start from image caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageCacheAutoFlag {
    /// They do, and a cache is made where none holds all their images.
    Create,
    /// They do, and no cache is made.
    Match,
    /// No pod does, but for those that name a cache by its id.
    Off,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What is wrong with the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name that Kubernetes would not take.
    #[error("node name {name:?} is not a lower-case DNS name of at most 63 characters")]
    NodeName {
        /// As given.
        name: String,
    },
    /// Two agents for one node.
    #[error("two agents are given for node {name:?}; name them with --agent NAME=ADDRESS")]
    SameNode {
        /// The name.
        name: String,
    },
    /// A pair without its separator.
    #[error("--{flag} {value:?} is not of the form {form}")]
    Form {
        /// The flag.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is expected.
        form: &'static str,
    },
    /// A resource that nodes do not have.
    #[error("--capacity {name:?} is none of cpu, memory, pods, ephemeral-storage")]
    Resource {
        /// As given.
        name: String,
    },
    /// No port is left for a node.
    #[error("--listen {listen} leaves no port for {nodes} nodes; each takes the next one")]
    Ports {
        /// As given.
        listen: SocketAddr,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Part of the identity towards agents.
    #[error("--agent-tls-cert, --agent-tls-key and --agent-tls-ca are given together or not at all")]
    AgentTls,
}

/// An agent and the node that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentAddress {
    /// Name of the node.
    pub node: String,
    /// `unix:///PATH` or `https://HOST:PORT`.
    pub address: String,
    /// Where the node's kubelet API is served.
    pub listen: SocketAddr,
}

/// Files of our identity towards agents: certificate, key, authority.
pub type AgentTls = (PathBuf, PathBuf, PathBuf);

/// The command line, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agents, at least one.
    pub agents: Vec<AgentAddress>,
    /// Our identity towards agents on other hosts.
    pub agent_tls: Option<AgentTls>,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// More taints: key, value, effect.
    pub taints: Vec<(String, String, String)>,
    /// Quantities by resource.
    pub capacity: BTreeMap<String, String>,
    /// Everything that needs no check.
    pub args: Args,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let agent_tls = match (&args.agent_tls_cert, &args.agent_tls_key, &args.agent_tls_ca) {
            (Some(cert), Some(key), Some(ca)) => Some((cert.clone(), key.clone(), ca.clone())),
            (None, None, None) => None,
            _ => return Err(ConfigError::AgentTls),
        };
        Ok(Self {
            agents: agents(&args)?,
            agent_tls,
            labels: args.labels.iter().map(|pair| label(pair)).collect::<Result<_, _>>()?,
            taints: args.taints.iter().map(|taint| parse_taint(taint)).collect::<Result<_, _>>()?,
            capacity: args.capacity.iter().map(|pair| capacity(pair)).collect::<Result<_, _>>()?,
            args,
        })
    }
}

fn agents(args: &Args) -> Result<Vec<AgentAddress>, ConfigError> {
    let given = if args.agents.is_empty() { vec![DEFAULT_AGENT.to_owned()] } else { args.agents.clone() };
    let mut names = BTreeSet::new();
    let mut agents = vec![];
    for (index, agent) in given.iter().enumerate() {
        // An address may hold an equals sign itself, after its scheme.
        let named = agent.split_once('=').filter(|(name, _)| !name.contains(':'));
        let (node, address) = named.unwrap_or((&args.node_name, agent));
        if !is_node_name(node) {
            return Err(ConfigError::NodeName { name: node.to_owned() });
        }
        if !names.insert(node.to_owned()) {
            return Err(ConfigError::SameNode { name: node.to_owned() });
        }
        let mut listen = args.listen;
        // Port 0 leaves the choice to the system, for each node anew.
        if listen.port() != 0 {
            let port = u16::try_from(index).ok().and_then(|index| listen.port().checked_add(index));
            listen.set_port(port.ok_or(ConfigError::Ports { listen, nodes: given.len() })?);
        }
        agents.push(AgentAddress { node: node.to_owned(), address: address.to_owned(), listen });
    }
    Ok(agents)
}

/// A node's name is a label's value too, hence no longer than one.
fn is_node_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part =
        |part: &str| part.starts_with(inner) && part.ends_with(inner) && part.chars().all(|c| inner(c) || c == '-');
    name.len() <= 63 && name.split('.').all(part)
}

fn pair<'a>(flag: &'static str, text: &'a str, form: &'static str) -> Result<(&'a str, &'a str), ConfigError> {
    let bad = || ConfigError::Form { flag, value: text.to_owned(), form };
    text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(bad)
}

fn label(text: &str) -> Result<(String, String), ConfigError> {
    pair("labels", text, "KEY=VALUE").map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn parse_taint(text: &str) -> Result<(String, String, String), ConfigError> {
    let form = "KEY=VALUE:EFFECT, where EFFECT is NoSchedule, PreferNoSchedule or NoExecute";
    let bad = || ConfigError::Form { flag: "taints", value: text.to_owned(), form };
    let (what, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    if key.is_empty() || !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(bad());
    }
    Ok((key.to_owned(), value.to_owned(), effect.to_owned()))
}

fn capacity(text: &str) -> Result<(String, String), ConfigError> {
    let form = "RESOURCE=QUANTITY, as cpu=8 or memory=16Gi";
    let (name, quantity) = pair("capacity", text, form)?;
    if !["cpu", "memory", "pods", "ephemeral-storage"].contains(&name) {
        return Err(ConfigError::Resource { name: name.to_owned() });
    }
    let digits = quantity.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &quantity[digits.len()..];
    let number = !digits.is_empty() && digits.parse::<f64>().is_ok_and(|number| number >= 0.0);
    if !number || !["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"].contains(&suffix) {
        return Err(ConfigError::Form { flag: "capacity", value: text.to_owned(), form });
    }
    Ok((name.to_owned(), quantity.to_owned()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let args = Args::try_parse_from(["larder-provider"].iter().chain(flags)).map_err(|error| error.to_string())?;
        Config::try_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_there_is_one_node_with_ecis_name() {
        let config = parse(&[]).unwrap();
        let agent = &config.agents[0];
        assert_eq!((agent.node.as_str(), agent.address.as_str()), ("virtual-node-eci-0", DEFAULT_AGENT));
        assert_eq!(agent.listen.to_string(), "0.0.0.0:10250");
    }

    #[test]
    fn each_agent_is_a_node_with_a_port_of_its_own() {
        let flags =
            ["--agent", "a=unix:///a=1.sock", "--agent", "https://h:1", "--node-name", "b", "--listen", "1.2.3.4:5"];
        let config = parse(&flags).unwrap();
        let seen: Vec<_> = config.agents.iter().map(|a| format!("{} {} {}", a.node, a.address, a.listen)).collect();
        assert_eq!(seen, ["a unix:///a=1.sock 1.2.3.4:5", "b https://h:1 1.2.3.4:6"]);
    }

    #[test]
    fn lists_are_split() {
        let flags =
            ["--labels", "a=1,b=", "--taints", "k=v:NoSchedule,x:NoExecute", "--capacity", "cpu=1500m,memory=4Gi"];
        let config = parse(&flags).unwrap();
        assert_eq!(config.labels.len(), 2);
        assert_eq!(config.taints[1], ("x".to_owned(), String::new(), "NoExecute".to_owned()));
        assert_eq!(config.capacity["memory"], "4Gi");
    }

    #[rstest]
    #[case(&["--agent", "unix:///a", "--agent", "unix:///b"], "two agents")]
    #[case(&["--node-name", "Bad"], "node name")]
    #[case(&["--labels", "novalue"], "KEY=VALUE")]
    #[case(&["--taints", "k=v:Never"], "NoExecute")]
    #[case(&["--capacity", "cpu=much"], "RESOURCE=QUANTITY")]
    #[case(&["--capacity", "gpu=1"], "\"gpu\" is none of")]
    #[case(&["--pod-policy", "none"], "pod-policy")]
    #[case(&["--image-cache-auto", "yes"], "create, match, off")]
    #[case(&["--agent-tls-cert", "c"], "together")]
    #[case(&["--tls-cert-file", "c"], "tls-private-key-file")]
    #[case(&["--agent", "a=unix:///a,b=unix:///b", "--listen", "0.0.0.0:65535"], "no port")]
    fn mistakes_are_named(#[case] flags: &[&str], #[case] part: &str) {
        let error = parse(flags).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
