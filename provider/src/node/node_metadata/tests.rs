//! Starts with other options than the last, on nodes that others write on, too.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::cluster::fake::strategic;
use crate::node::node_object::new_node;
use crate::node::{Capacity, Taints};

fn identity() -> NodeIdentity {
    NodeIdentity {
        name: "virtual-node-eci-0".into(),
        address: "10.0.0.1".into(),
        port: 10250,
        region: None,
        zone: None,
        labels: BTreeMap::new(),
        taints: Taints::default(),
        capacity: Capacity::default(),
        kubelet_version: "v1.37.2-larder.0.1.0".into(),
    }
}

fn node(identity: &NodeIdentity) -> Node {
    new_node(identity, &Host::Unheard, Timestamp::UNIX_EPOCH)
}

fn patch(node: &Node, identity: &NodeIdentity) -> Option<Value> {
    metadata_patch(node, identity, &Host::Unheard)
}

fn applied(node: &Node, patch: Option<Value>) -> Node {
    let mut value = serde_json::to_value(node).unwrap();
    if let Some(patch) = patch {
        strategic(&mut value, &patch);
    }
    serde_json::from_value(value).unwrap()
}

fn taints_of(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
}

#[test]
fn labels_and_taints_of_an_earlier_start_are_taken_away_and_others_stay() {
    let more = vec![("k".to_owned(), "v".to_owned(), "NoExecute".to_owned())];
    let labels: BTreeMap<_, _> = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())].into();
    let with =
        NodeIdentity { zone: Some("z".into()), labels, taints: Taints { without_eci: false, more }, ..identity() };
    let mut there = node(&with);
    there.metadata.resource_version = Some("7".into());
    there.metadata.labels.get_or_insert_default().insert("theirs".into(), "x".into());
    // Somebody has taken this one over.
    there.metadata.labels.get_or_insert_default().insert("c".into(), "theirs".into());
    let theirs = Taint { key: "theirs".into(), effect: "NoSchedule".into(), ..Taint::default() };
    there.spec.get_or_insert_default().taints.get_or_insert_default().push(theirs.clone());

    let changes = patch(&there, &identity()).unwrap();
    assert_eq!(changes["metadata"]["resourceVersion"], "7");
    let after = applied(&there, Some(changes));
    let labels = after.metadata.labels.clone().unwrap();
    assert!(!labels.contains_key("a") && !labels.contains_key("topology.kubernetes.io/zone"), "{labels:?}");
    assert_eq!((labels["theirs"].as_str(), labels["c"].as_str()), ("x", "theirs"));
    let keys: Vec<_> = taints_of(&after).into_iter().map(|taint| taint.key).collect();
    assert_eq!(keys, [TAINT_KEY, "theirs"]);
    assert_eq!(patch(&after, &identity()), None);
}

#[test]
fn a_node_of_a_start_that_wrote_nothing_down_keeps_what_it_has() {
    let with = NodeIdentity { labels: [("a".to_owned(), "b".to_owned())].into(), ..identity() };
    let mut there = node(&with);
    there.metadata.annotations = None;
    let after = applied(&there, patch(&there, &identity()));
    assert_eq!(after.metadata.labels.as_ref().unwrap()["a"], "b");
    assert_eq!(patch(&after, &identity()), None);
}

#[test]
fn a_taint_that_is_left_out_by_now_is_taken_away() {
    let mut node = node(&identity());
    // Made by a version that wrote nothing down.
    node.metadata.annotations = None;
    let without = NodeIdentity { taints: Taints { without_eci: true, more: vec![] }, ..identity() };
    let patched = applied(&node, patch(&node, &without));
    assert_eq!(patched.spec.clone().unwrap().taints.unwrap_or_default(), []);
    assert_eq!(patch(&patched, &without), None);
    // Asked for by hand it stays, as does another of the same key.
    let by_hand = (TAINT_KEY.to_owned(), TAINT_VALUE.to_owned(), "NoSchedule".to_owned());
    let asked = NodeIdentity { taints: Taints { without_eci: true, more: vec![by_hand] }, ..identity() };
    assert_eq!(taints_of(&applied(&node, patch(&node, &asked))), taints_of(&node));
    let mut other = node;
    let theirs = Taint { key: TAINT_KEY.into(), effect: "NoExecute".into(), ..Taint::default() };
    other.spec.as_mut().unwrap().taints = Some(vec![theirs]);
    assert_eq!(taints_of(&applied(&other, patch(&other, &without))), taints_of(&other));
}

fn any_identity() -> impl Strategy<Value = NodeIdentity> {
    let labels = proptest::collection::btree_map("[a-c]", "[xy]", 0..3);
    // The API server takes one taint of each key and effect.
    let taints = proptest::collection::btree_map(("[kt]", "No(Schedule|Execute)"), "[vw]?", 0..3);
    (labels, taints, any::<bool>(), proptest::option::of("[xy]")).prop_map(|(labels, taints, without_eci, zone)| {
        let more = taints.into_iter().map(|((key, effect), value)| (key, value, effect)).collect();
        NodeIdentity { labels, taints: Taints { without_eci, more }, zone, ..identity() }
    })
}

proptest! {
    /// Whatever the starts before, the node ends as the newest start alone would have it, with what others wrote.
    #[test]
    fn starts_leave_nothing_behind(starts in proptest::collection::vec(any_identity(), 1..5), effect in "No(Schedule|Execute)") {
        let mut there = node(&starts[0]);
        there.metadata.labels.get_or_insert_default().insert("theirs".into(), "x".into());
        let theirs = Taint { key: "theirs".into(), effect, ..Taint::default() };
        there.spec.get_or_insert_default().taints.get_or_insert_default().push(theirs.clone());
        for identity in &starts {
            there = applied(&there, patch(&there, identity));
            prop_assert_eq!(patch(&there, identity), None);

            let fresh = node(identity);
            let mut labels = fresh.metadata.labels.clone().unwrap_or_default();
            labels.insert("theirs".into(), "x".into());
            prop_assert_eq!(there.metadata.labels.as_ref(), Some(&labels));
            prop_assert_eq!(&there.metadata.annotations, &fresh.metadata.annotations);
            let sorted = |taints: Vec<Taint>| {
                let mut taints: Vec<_> = taints.iter().map(parts).collect();
                taints.sort();
                taints
            };
            let mut taints = taints_of(&fresh);
            taints.push(theirs.clone());
            prop_assert_eq!(sorted(taints_of(&there)), sorted(taints));
        }
    }
}
