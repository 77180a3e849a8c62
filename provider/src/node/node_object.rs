//! The Node object of a virtual node, as ECI's look, and the patch that keeps its status so.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeSpec,
    NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Map, Value, json};

use super::node_options::{NodeOptions, OPTIONS, parts};
use crate::agent::{HostImage, NodeFacts};

/// The taint that keeps pods away which do not mean to run on ECI.
pub const TAINT_KEY: &str = "virtual-kubelet.io/provider";
/// Its value.
pub const TAINT_VALUE: &str = "alibabacloud";
/// What it does to them.
pub(super) const TAINT_EFFECT: &str = "NoSchedule";
/// How many images a Node object names at most: the kubelet's bound.
const IMAGES: usize = 50;

/// What a virtual node is, apart from its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Name of the Node object.
    pub name: String,
    /// Address at which the API server reaches our kubelet interface.
    pub address: String,
    /// Port of that interface.
    pub port: u16,
    /// Region, when given.
    pub region: Option<String>,
    /// Zone, when given.
    pub zone: Option<String>,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Taints,
    /// What of the host's capacity is overridden.
    pub capacity: Capacity,
    /// Version of the Kubernetes that pods can count on, with ours: `v1.37.2-larder.0.1.0`.
    pub kubelet_version: String,
}

/// Taints of a virtual node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taints {
    /// Leave out ECI's own taint.
    pub without_eci: bool,
    /// More taints: key, value, effect.
    pub more: Vec<(String, String, String)>,
}

impl Taints {
    /// The taints as the node bears them.
    pub fn all(&self) -> Vec<Taint> {
        let eci = (TAINT_KEY.to_owned(), TAINT_VALUE.to_owned(), TAINT_EFFECT.to_owned());
        let eci = (!self.without_eci).then_some(eci);
        let taint = |(key, value, effect): (String, String, String)| Taint {
            key,
            value: (!value.is_empty()).then_some(value),
            effect,
            time_added: None,
        };
        eci.into_iter().chain(self.more.iter().cloned()).map(taint).collect()
    }
}

/// What of a host's capacity is overridden; `None` takes the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Processors, as a quantity.
    pub cpu: Option<String>,
    /// Memory, as a quantity.
    pub memory: Option<String>,
    /// Number of pods.
    pub pods: Option<String>,
    /// Disk, as a quantity.
    pub ephemeral_storage: Option<String>,
}

/// What is known of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The agent has not had its time to answer yet.
    Unheard,
    /// Nothing has ever been heard.
    Unknown {
        /// Why, for people.
        message: String,
    },
    /// The agent lives.
    Alive(NodeFacts),
    /// The agent lived.
    Lost {
        /// What it said last.
        last: NodeFacts,
        /// What has become of it, for people.
        message: String,
    },
}

impl Host {
    fn facts(&self) -> Option<&NodeFacts> {
        match self {
            Self::Unheard | Self::Unknown { .. } => None,
            Self::Alive(facts) | Self::Lost { last: facts, .. } => Some(facts),
        }
    }
}

/// The labels that are ours.
pub fn labels(identity: &NodeIdentity, host: &Host) -> BTreeMap<String, String> {
    let facts = host.facts().cloned().unwrap_or_default();
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |keys: &[&str], value: &str| {
        if !value.is_empty() {
            labels.extend(keys.iter().map(|key| ((*key).to_owned(), value.to_owned())));
        }
    };
    set(&["type"], "virtual-kubelet");
    set(&["kubernetes.io/role"], "agent");
    set(&["kubernetes.io/hostname"], &identity.name);
    let os = if facts.operating_system.is_empty() { "linux" } else { &facts.operating_system };
    set(&["kubernetes.io/os", "beta.kubernetes.io/os"], os);
    set(&["kubernetes.io/arch", "beta.kubernetes.io/arch"], &facts.architecture);
    let no_balancer = [
        "node.kubernetes.io/exclude-from-external-load-balancers",
        "alpha.service-controller.kubernetes.io/exclude-balancer",
        "service.beta.kubernetes.io/exclude-node",
    ];
    set(&no_balancer, "true");
    labels.extend(optional_labels(identity));
    labels
}

/// Those of our labels that another start may be without: they follow from options.
fn optional_labels(identity: &NodeIdentity) -> BTreeMap<String, String> {
    let region = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
    let zone = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
    let places = [(region, &identity.region), (zone, &identity.zone)];
    let places = places.into_iter().flat_map(|(keys, place)| {
        let place = place.as_ref().filter(|place| !place.is_empty());
        keys.into_iter().filter_map(move |key| Some((key.to_owned(), place?.clone())))
    });
    places.chain(identity.labels.clone()).collect()
}

/// The taints that are ours.
pub fn taints(identity: &NodeIdentity) -> Vec<Taint> {
    identity.taints.all()
}

/// What of it comes from options.
pub(super) fn options(identity: &NodeIdentity) -> NodeOptions {
    NodeOptions { labels: optional_labels(identity), taints: taints(identity).iter().map(parts).collect() }
}

/// The node as it is made.
pub fn new_node(identity: &NodeIdentity, host: &Host, now: Timestamp) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            labels: Some(labels(identity, host)),
            annotations: Some([(OPTIONS.to_owned(), options(identity).to_text())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: Some(taints(identity)), ..NodeSpec::default() }),
        status: Some(status(identity, host, &NodeStatus::default(), now)),
    }
}

/// The status that the node should have.
pub fn status(identity: &NodeIdentity, host: &Host, current: &NodeStatus, now: Timestamp) -> NodeStatus {
    let capacity = host.facts().map(|facts| capacity(&identity.capacity, facts));
    NodeStatus {
        addresses: Some(addresses(identity)),
        allocatable: capacity.clone(),
        capacity,
        conditions: Some(conditions(host, current, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(identity.port) }),
        }),
        // What pods may count on from the runtime: their `supplementalGroupsPolicy` is honoured.
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        images: host.facts().map(images),
        node_info: Some(node_info(identity, &host.facts().cloned().unwrap_or_default())),
        ..NodeStatus::default()
    }
}

/// The patch from the current status to the one that should be; `None` when only the time of the heartbeat differs and
/// `heartbeat` does not ask for it.
pub fn status_patch(current: &NodeStatus, wanted: &NodeStatus, heartbeat: Heartbeat) -> Option<Value> {
    let value = |status: &NodeStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    };
    let (current, wanted) = (value(current), value(wanted));
    let mut patch = Map::new();
    for (key, value) in wanted {
        let before = current.get(&key).unwrap_or(&Value::Null);
        let differs = match key.as_str() {
            "conditions" => heartbeat == Heartbeat::Due || conditions_differ(before, &value),
            // The API server adds fields of its own.
            "nodeInfo" => value.as_object().is_some_and(|info| info.iter().any(|(key, value)| before[key] != *value)),
            "images" => *before != value && !(before.is_null() && value.as_array().is_some_and(Vec::is_empty)),
            _ => *before != value,
        };
        if differs {
            patch.insert(key, value);
        }
    }
    (!patch.is_empty()).then(|| json!({"status": patch}))
}

/// Whether the time of the heartbeat is to be written for its own sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// It is.
    Due,
    /// Only along with something else.
    NotDue,
}

fn conditions_differ(current: &Value, wanted: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let current = list(current);
    list(wanted).iter().any(|wanted| {
        // Messages tell amounts that change all the time; only that of Ready is worth a write of its own.
        let keys: &[&str] = if wanted["type"] == "Ready" {
            &["type", "status", "reason", "message"]
        } else {
            &["type", "status", "reason"]
        };
        let same = |before: &&Value| keys.iter().all(|key| before[key] == wanted[key]);
        !current.iter().any(|before| same(&before))
    })
}

/// The API server asks for `Hostname` first unless it is told otherwise, and a virtual node's name resolves nowhere: so
/// the address stands there too.
fn addresses(identity: &NodeIdentity) -> Vec<NodeAddress> {
    let address = |type_: &str| NodeAddress { address: identity.address.clone(), type_: type_.to_owned() };
    vec![address("InternalIP"), address("Hostname")]
}

fn capacity(overridden: &Capacity, facts: &NodeFacts) -> BTreeMap<String, Quantity> {
    let own = |given: &Option<String>, host: String| Quantity(given.clone().unwrap_or(host));
    BTreeMap::from([
        ("cpu".to_owned(), own(&overridden.cpu, cpu(facts.cpu_milli))),
        ("memory".to_owned(), own(&overridden.memory, format!("{}Ki", facts.memory_bytes / 1024))),
        ("pods".to_owned(), own(&overridden.pods, facts.max_pods.to_string())),
        (
            "ephemeral-storage".to_owned(),
            own(&overridden.ephemeral_storage, format!("{}Ki", facts.ephemeral_storage_bytes / 1024)),
        ),
    ])
}

/// As the API server writes it.
fn cpu(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

fn images(facts: &NodeFacts) -> Vec<ContainerImage> {
    let mut images: Vec<&HostImage> = facts.images.iter().filter(|image| !image.names.is_empty()).collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    let image = |image: &HostImage| ContainerImage {
        names: Some(image.names.clone()),
        size_bytes: Some(i64::try_from(image.size_bytes).unwrap_or(i64::MAX)),
    };
    images.into_iter().take(IMAGES).map(image).collect()
}

fn node_info(identity: &NodeIdentity, facts: &NodeFacts) -> NodeSystemInfo {
    let os = if facts.operating_system.is_empty() { "linux" } else { &facts.operating_system };
    NodeSystemInfo {
        architecture: facts.architecture.clone(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: facts.container_runtime_version.clone(),
        kernel_version: facts.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: identity.kubelet_version.clone(),
        machine_id: facts.machine_id.clone(),
        operating_system: os.to_owned(),
        os_image: facts.os_image.clone(),
        system_uuid: facts.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

fn conditions(host: &Host, current: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let condition = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let before = current.conditions.iter().flatten().find(|before| before.type_ == type_);
        let unchanged = before.filter(|before| before.status == status);
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: unchanged.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    let (ready, reason, message) = ready(host);
    let facts = host.facts().cloned().unwrap_or_default();
    let memory = match &facts.memory_pressure {
        Some(how) => condition("MemoryPressure", true, "KubeletHasInsufficientMemory", how),
        None => condition("MemoryPressure", false, "KubeletHasSufficientMemory", "the host has memory to spare"),
    };
    let disk = match &facts.disk_pressure {
        Some(how) => condition("DiskPressure", true, "KubeletHasDiskPressure", how),
        None => condition("DiskPressure", false, "KubeletHasNoDiskPressure", "the image store has room to spare"),
    };
    vec![
        condition("Ready", ready, reason, &message),
        memory,
        disk,
        condition("PIDPressure", false, "KubeletHasSufficientPID", "the host has process ids to spare"),
        condition("NetworkUnavailable", false, "RouteCreated", "the node agent gives pods their addresses"),
    ]
}

fn ready(host: &Host) -> (bool, &'static str, String) {
    match host {
        Host::Unheard => (false, "AgentNotConnected", "waiting for the node agent".to_owned()),
        Host::Unknown { message } => (false, "AgentNotConnected", message.clone()),
        Host::Lost { message, .. } => (false, "AgentLost", message.clone()),
        Host::Alive(facts) => match &facts.not_ready {
            Some(why) => (false, "AgentNotReady", why.clone()),
            None => (true, "KubeletReady", "the node agent is posting ready status".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests;
