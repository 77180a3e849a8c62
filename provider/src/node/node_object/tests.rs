//! Tables of the Node object.

use proptest::prelude::*;

use super::super::node_metadata::metadata_patch;
use super::*;
use crate::agent::HostImage;
use crate::cluster::fake::strategic;

fn identity() -> NodeIdentity {
    NodeIdentity {
        name: "virtual-node-eci-0".into(),
        address: "10.0.0.1".into(),
        port: 10250,
        region: Some("cn-beijing".into()),
        zone: Some("cn-beijing-i".into()),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        taints: Taints::default(),
        capacity: Capacity { pods: Some("7".into()), ..Capacity::default() },
        kubelet_version: "v1.37.2-larder.0.1.0".into(),
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        operating_system: "linux".into(),
        architecture: "amd64".into(),
        cpu_milli: 2000,
        memory_bytes: 8 << 30,
        max_pods: 110,
        images: vec![
            HostImage { names: vec!["small".into()], size_bytes: 1 },
            HostImage { names: vec!["big".into()], size_bytes: 9 },
        ],
        ..NodeFacts::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn applied(node: &Node, patch: Option<Value>) -> Node {
    let mut value = serde_json::to_value(node).unwrap();
    if let Some(patch) = patch {
        strategic(&mut value, &patch);
    }
    serde_json::from_value(value).unwrap()
}

fn ready_of(status: &NodeStatus) -> (String, String) {
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone().unwrap())
}

#[test]
fn a_node_looks_as_ecis() {
    let node = new_node(&identity(), &Host::Alive(facts()), at(5));
    let labels = node.metadata.labels.unwrap();
    for (key, value) in [
        ("type", "virtual-kubelet"),
        ("kubernetes.io/role", "agent"),
        ("kubernetes.io/hostname", "virtual-node-eci-0"),
        ("kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/zone", "cn-beijing-i"),
        ("failure-domain.beta.kubernetes.io/region", "cn-beijing"),
        ("alpha.service-controller.kubernetes.io/exclude-balancer", "true"),
        ("team", "a"),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    let taint = &node.spec.unwrap().taints.unwrap()[0];
    assert_eq!(
        (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
        ("virtual-kubelet.io/provider", Some("alibabacloud"), "NoSchedule")
    );
    let status = node.status.unwrap();
    let capacity = status.capacity.unwrap();
    assert_eq!((capacity["cpu"].0.as_str(), capacity["pods"].0.as_str()), ("2", "7"));
    assert_eq!(capacity["memory"].0, "8388608Ki");
    assert_eq!(status.images.unwrap()[0].names, Some(vec!["big".to_owned()]));
    assert_eq!(status.conditions.unwrap().len(), 5);
}

#[test]
fn what_others_wrote_lives_on() {
    let mut node = new_node(&identity(), &Host::Alive(facts()), at(5));
    node.metadata.labels.get_or_insert_default().insert("theirs".into(), "x".into());
    node.metadata.labels.get_or_insert_default().remove("type");
    let theirs = Taint { key: "theirs".into(), effect: "NoExecute".into(), ..Taint::default() };
    node.spec.as_mut().unwrap().taints = Some(vec![theirs.clone()]);
    let condition =
        NodeCondition { type_: "KernelDeadlock".into(), status: "False".into(), ..NodeCondition::default() };
    node.status.as_mut().unwrap().conditions.as_mut().unwrap().push(condition);

    let patched = applied(&node, metadata_patch(&node, &identity(), &Host::Alive(facts())));
    assert_eq!(patched.metadata.labels.as_ref().unwrap()["theirs"], "x");
    assert_eq!(patched.metadata.labels.as_ref().unwrap()["type"], "virtual-kubelet");
    let taints = patched.spec.clone().unwrap().taints.unwrap();
    assert_eq!((taints.len(), &taints[0]), (2, &theirs));
    assert_eq!(metadata_patch(&patched, &identity(), &Host::Alive(facts())), None);

    let lost = Host::Lost { last: facts(), message: "gone".into() };
    let wanted = status(&identity(), &lost, patched.status.as_ref().unwrap(), at(9));
    let patch = status_patch(patched.status.as_ref().unwrap(), &wanted, Heartbeat::NotDue);
    let after = applied(&patched, patch).status.unwrap();
    assert_eq!(ready_of(&after), ("False".into(), "AgentLost".into()));
    assert!(after.conditions.unwrap().iter().any(|condition| condition.type_ == "KernelDeadlock"));
    assert_eq!(after.capacity.unwrap()["cpu"].0, "2");
}

#[test]
fn nothing_is_written_when_nothing_changed_unless_a_heartbeat_is_due() {
    let node = new_node(&identity(), &Host::Alive(facts()), at(5));
    let current = node.status.unwrap();
    let wanted = status(&identity(), &Host::Alive(facts()), &current, at(50));
    assert_eq!(status_patch(&current, &wanted, Heartbeat::NotDue), None);
    let patch = status_patch(&current, &wanted, Heartbeat::Due).unwrap();
    let keys: Vec<_> = patch["status"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["conditions"]);
    assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:05Z");
    assert_eq!(patch["status"]["conditions"][0]["lastHeartbeatTime"], "1970-01-01T00:00:50Z");
}

#[test]
fn an_agent_that_cannot_run_pods_says_why() {
    let host = Host::Alive(NodeFacts { not_ready: Some("no crun in PATH".into()), ..facts() });
    let status = status(&identity(), &host, &NodeStatus::default(), at(1));
    assert_eq!(ready_of(&status), ("False".into(), "AgentNotReady".into()));
    let unknown = Host::Unknown { message: "nothing heard".into() };
    let status = super::status(&identity(), &unknown, &NodeStatus::default(), at(1));
    assert_eq!((ready_of(&status).1.as_str(), status.capacity), ("AgentNotConnected", None));
}

#[test]
fn quantities_are_written_as_the_api_server_does() {
    assert_eq!((cpu(2000).as_str(), cpu(1500).as_str()), ("2", "1500m"));
}

#[test]
fn pods_may_count_on_their_groups_policy() {
    let wanted = status(&identity(), &Host::Alive(facts()), &NodeStatus::default(), at(1));
    assert_eq!(wanted.features.clone().unwrap().supplemental_groups_policy, Some(true));
    let before = NodeStatus { features: None, ..wanted.clone() };
    let patch = status_patch(&before, &wanted, Heartbeat::NotDue);
    assert_eq!(patch, Some(json!({"status": {"features": {"supplementalGroupsPolicy": true}}})));
}

prop_compose! {
    fn any_facts()(
        cpu_milli in prop_oneof![Just(1500u64), Just(2000)], memory in 1u64..3, size_bytes in 1u64..3,
        not_ready in proptest::option::of("[ab]"), disk_pressure in proptest::option::of("[ab]"),
    ) -> NodeFacts {
        let images = vec![HostImage { names: vec!["i".into()], size_bytes }];
        NodeFacts { cpu_milli, memory_bytes: memory << 30, not_ready, disk_pressure, images, ..facts() }
    }
}

fn any_host() -> impl Strategy<Value = Host> {
    prop_oneof![
        "[ab]".prop_map(|message| Host::Unknown { message }),
        any_facts().prop_map(Host::Alive),
        (any_facts(), "[ab]").prop_map(|(last, message)| Host::Lost { last, message }),
    ]
}

proptest! {
    /// One write says all, and nothing of others goes: their conditions, and fields that are not ours.
    #[test]
    fn a_status_is_written_once_and_keeps_what_is_not_ours(hosts in proptest::collection::vec(any_host(), 1..6)) {
        let theirs = NodeCondition { type_: "theirs".into(), status: "False".into(), ..NodeCondition::default() };
        let status_before = NodeStatus {
            conditions: Some(vec![theirs.clone()]),
            volumes_in_use: Some(vec!["theirs".into()]),
            ..NodeStatus::default()
        };
        let mut node = Node { status: Some(status_before), ..Node::default() };
        for (second, host) in (0i64..).zip(&hosts) {
            let current = node.status.clone().unwrap();
            let wanted = status(&identity(), host, &current, at(second));
            node = applied(&node, status_patch(&current, &wanted, Heartbeat::NotDue));
            let after = node.status.clone().unwrap();
            let again = status(&identity(), host, &after, at(second + 9));
            prop_assert_eq!(status_patch(&after, &again, Heartbeat::NotDue), None);
            prop_assert_eq!(&after.volumes_in_use, &Some(vec!["theirs".to_owned()]));
            let conditions = after.conditions.clone().unwrap();
            prop_assert!(conditions.contains(&theirs) && conditions.len() == 6);
            prop_assert_eq!(ready_of(&after), ready_of(&wanted));
        }
    }
}
