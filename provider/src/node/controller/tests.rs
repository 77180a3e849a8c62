//! The controller against an API server and an agent in memory, with time paused.

use k8s_openapi::api::core::v1::NodeCondition;

use rstest::rstest;
use tokio::task::JoinSet;

use super::*;
use crate::agent::fake::FakeAgent;
use crate::cluster::fake::{FakeCluster, Record};
use crate::node::{Capacity, Taints};

const NODE: &str = "virtual-node-eci-0";

struct Bench {
    cluster: Arc<FakeCluster>,
    agent: Arc<FakeAgent>,
    tasks: JoinSet<Result<(), PartError>>,
    stop: CancellationToken,
}

fn identity() -> NodeIdentity {
    NodeIdentity {
        name: NODE.into(),
        address: "10.0.0.1".into(),
        port: 10250,
        region: None,
        zone: None,
        labels: std::collections::BTreeMap::new(),
        taints: Taints::default(),
        capacity: Capacity::default(),
        kubelet_version: "v1.37.2-larder.0.1.0".into(),
    }
}

impl Bench {
    fn start(prepare: impl FnOnce(&FakeCluster, &FakeAgent)) -> Self {
        let (cluster, agent) = (Arc::new(FakeCluster::default()), Arc::new(FakeAgent::default()));
        prepare(&cluster, &agent);
        let services = NodeServices { api: cluster.clone(), agent: agent.clone() };
        let (controller, _) = NodeController::new(identity(), services);
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(controller.run(stop.clone()));
        Self { cluster, agent, tasks, stop }
    }

    async fn ready(&self, status: &str, reason: &str) {
        self.cluster.wait(reason, |record| ready_of(record) == Some((status.into(), reason.into()))).await;
    }
}

fn ready_of(record: &Record) -> Option<(String, String)> {
    let conditions = record.nodes.get(NODE)?.status.as_ref()?.conditions.clone()?;
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status, ready.reason?))
}

#[tokio::test(start_paused = true)]
async fn a_node_is_registered_with_a_lease_of_its_own() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    bench.cluster.wait("lease", |record| record.leases.contains_key(NODE)).await;
    let (node, lease) = bench.cluster.see(|record| (record.nodes[NODE].clone(), record.leases[NODE].clone()));
    assert_eq!(lease.metadata.owner_references.unwrap()[0].uid, node.metadata.uid.unwrap());
    let renewed = lease.spec.unwrap().renew_time.unwrap();
    let newer = |record: &Record| record.leases[NODE].spec.as_ref().unwrap().renew_time.as_ref().unwrap().0 > renewed.0;
    let began = Instant::now();
    bench.cluster.wait("renewal", newer).await;
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_deleted_is_made_again_at_once() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    let old = bench.cluster.see(|record| record.nodes[NODE].metadata.uid.clone());
    bench.cluster.drop_node(NODE);
    let began = Instant::now();
    let is_new = |record: &Record| record.nodes.get(NODE).is_some_and(|node| node.metadata.uid != old);
    bench.cluster.wait("a new node", is_new).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    let new = bench.cluster.see(|record| record.nodes[NODE].metadata.uid.clone());
    let owner = |record: &Record| {
        let owners = record.leases[NODE].metadata.owner_references.clone().unwrap_or_default();
        owners.into_iter().next().map(|owner| owner.uid)
    };
    bench.cluster.wait("the lease follows", |record| owner(record) == new).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_agent_shows_within_ten_seconds_and_the_lease_goes_on() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    bench.agent.go_offline();
    let began = Instant::now();
    bench.ready("False", "AgentLost").await;
    let after = began.elapsed();
    assert!(after > Duration::from_secs(4) && after < Duration::from_secs(10), "{after:?}");
    let message = bench.cluster.see(|record| {
        let conditions = record.nodes[NODE].status.clone().unwrap().conditions.unwrap();
        conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap().message.unwrap()
    });
    assert!(message.contains("unix:///fake/agent.sock"), "{message}");
    let version = bench.cluster.see(|record| record.leases[NODE].metadata.resource_version.clone());
    bench.cluster.wait("renewal", |record| record.leases[NODE].metadata.resource_version != version).await;
    bench.agent.go_online();
    bench.ready("True", "KubeletReady").await;
}

#[tokio::test(start_paused = true)]
async fn a_short_break_of_the_agent_changes_nothing() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    let version = bench.cluster.see(|record| record.nodes[NODE].metadata.resource_version.clone());
    bench.agent.go_offline();
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.agent.go_online();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.cluster.see(|record| record.nodes[NODE].metadata.resource_version.clone()), version);
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_says_is_written_at_once_and_a_heartbeat_now_and_then() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    bench.agent.set_facts(|facts| facts.not_ready = Some("no crun in PATH".into()));
    bench.ready("False", "AgentNotReady").await;
    let version = bench.cluster.see(|record| record.nodes[NODE].metadata.resource_version.clone());
    let began = Instant::now();
    bench.cluster.wait("heartbeat", |record| record.nodes[NODE].metadata.resource_version != version).await;
    assert!(began.elapsed() >= Duration::from_secs(290), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_there_is_adopted_with_what_others_wrote() {
    let theirs = NodeCondition { type_: "KernelDeadlock".into(), status: "False".into(), ..NodeCondition::default() };
    let bench = Bench::start(|cluster, _| {
        let mut node = Node::default();
        node.metadata.name = Some(NODE.into());
        node.metadata.uid = Some("theirs".into());
        node.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
        node.status.get_or_insert_default().conditions = Some(vec![theirs.clone()]);
        cluster.set(|record| {
            record.nodes.insert(NODE.into(), node);
        });
    });
    bench.ready("True", "KubeletReady").await;
    let node = bench.cluster.see(|record| record.nodes[NODE].clone());
    let labels = node.metadata.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels["type"].as_str()), ("a", "virtual-kubelet"));
    assert_eq!(node.metadata.uid.as_deref(), Some("theirs"));
    assert!(node.status.unwrap().conditions.unwrap().contains(&theirs));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_goes_back_to_a_backup_is_believed() {
    let bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    let labelled = |record: &Record, key: &str| {
        record.nodes[NODE].metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key))
    };
    bench.cluster.restore(|record| {
        let node = record.nodes.get_mut(NODE).unwrap();
        node.metadata.labels.as_mut().unwrap().remove("type");
        node.status = None;
    });
    bench.cluster.wait("its label", |record| labelled(record, "type")).await;
    bench.ready("True", "KubeletReady").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_provider_never_shows_the_node_not_ready() {
    let mut bench = Bench::start(|_, _| {});
    bench.ready("True", "KubeletReady").await;
    bench.stop.cancel();
    while bench.tasks.join_next().await.is_some() {}
    let version = bench.cluster.see(|record| record.nodes[NODE].metadata.resource_version.clone());
    let services = NodeServices { api: bench.cluster.clone(), agent: bench.agent.clone() };
    let (controller, _) = NodeController::new(identity(), services);
    let stop = CancellationToken::new();
    bench.tasks.spawn(controller.run(stop.clone()));
    let written = |record: &Record| record.nodes[NODE].metadata.resource_version != version;
    bench.cluster.wait("the first write", written).await;
    assert_eq!(bench.cluster.see(ready_of), Some(("True".into(), "KubeletReady".into())));
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_the_node_says_so_and_an_api_server_that_is_away_is_waited_for() {
    let mut bench = Bench::start(|cluster, agent| {
        agent.go_offline();
        cluster.go_offline();
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.cluster.go_online();
    bench.ready("False", "AgentNotConnected").await;
    bench.stop.cancel();
    while bench.tasks.join_next().await.is_some() {}
    assert!(bench.cluster.see(|record| record.nodes.contains_key(NODE)));
}

#[rstest]
#[case("lease", "the renewal of the lease")]
#[case("watch_node", "the stream of what the host says")]
#[tokio::test(start_paused = true)]
async fn a_part_that_panics_ends_it_with_its_name(#[case] call: &'static str, #[case] part: &str) {
    let mut bench = Bench::start(|cluster, agent| {
        cluster.break_call(call);
        agent.break_call(call);
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), bench.tasks.join_next()).await.expect("in time");
    let error = ended.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), format!("{part} has panicked: {call} is broken"));
}
