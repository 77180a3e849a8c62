//! Tables and properties of what Selectors do to pods.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::selector::Name;
use crate::selector::rule::read;

fn placement() -> Placement {
    let taint = |key: &str, effect: &str| Taint {
        key: key.to_owned(),
        value: Some("v".to_owned()),
        effect: effect.to_owned(),
        ..Taint::default()
    };
    let taints = vec![taint("virtual", "NoSchedule"), taint("soft", "PreferNoSchedule"), taint("more", "NoExecute")];
    Placement { nodes: vec!["ours".to_owned()], ..Placement::new(taints) }
}

fn rule(name: &str, priority: i32, policy: Value) -> Rule {
    let effect = json!({"annotations": {"k": name}, "labels": {"l": name}});
    let spec = json!({"objectLabels": {"matchLabels": {"app": "x"}}, "effect": effect, "policy": policy});
    let name = Name { namespace: "ns".to_owned(), name: name.to_owned() };
    Rule { priority, ..read(name, &serde_json::from_value(spec).unwrap()).unwrap() }
}

fn one(policy: Value) -> Rules {
    Rules::ranked(vec![rule("a", 0, policy)]).0
}

fn pod(metadata: Value, spec: Value) -> Pod {
    let mut pod = json!({"metadata": metadata, "spec": spec});
    pod["metadata"]["labels"]["app"] = json!("x");
    pod["spec"]["containers"] = json!([{"name": "c"}]);
    serde_json::from_value(pod).unwrap()
}

fn reviewed(pod: &Pod, rules: &Rules, digest: &str) -> Pod {
    let mut value = serde_json::to_value(pod).unwrap();
    json_patch::patch(&mut value, &review_ruled(pod, &placement(), rules, digest).patch).expect("the patch applies");
    serde_json::from_value(value).unwrap()
}

/// The pod after a call for each Selector, in their order.
fn called(pod: &Pod, rules: &Rules) -> Pod {
    rules.iter().fold(pod.clone(), |pod, rule| reviewed(&pod, rules, &rule.digest()))
}

fn at(pod: &Pod, pointer: &str) -> Value {
    serde_json::to_value(pod).unwrap().pointer(pointer).cloned().unwrap_or_default()
}

fn keys(pod: &Pod) -> Vec<String> {
    let tolerations = pod.spec.as_ref().unwrap().tolerations.iter().flatten();
    tolerations.map(|toleration| toleration.key.clone().unwrap_or_default()).collect()
}

#[test]
fn virtual_node_only_brings_the_pod_there_with_its_effect_over_the_pods_own() {
    let before = pod(json!({"annotations": {"k": "own"}, "labels": {"l": "own"}}), json!({}));
    let after = called(&before, &one(json!({})));
    assert_eq!(at(&after, "/spec/nodeSelector"), json!({"type": "virtual-kubelet"}));
    assert_eq!(keys(&after)[..2], ["virtual", "more"]);
    assert_eq!(at(&after, "/metadata/annotations"), json!({"k": "a", SELECTOR: "ns/a", EFFECT: WRITTEN}));
    assert_eq!(at(&after, "/metadata/labels/l"), "a");
}

#[rstest]
#[case(json!({"fair": {}}), &["virtual", "more"])]
#[case(json!({"normalNodePrefer": {}}), &[])]
#[case(json!({"normalNodeOnly": {}}), &[])]
fn the_others_leave_the_effect_for_later(#[case] policy: Value, #[case] tolerations: &[&str]) {
    // A copy of a pod on which an effect was written.
    let before = pod(json!({"annotations": {"k": "own", EFFECT: WRITTEN}}), json!({}));
    let after = called(&before, &one(policy));
    assert_eq!(at(&after, "/spec/nodeSelector"), Value::Null);
    assert_eq!(keys(&after), tolerations);
    assert_eq!(at(&after, "/metadata/annotations"), json!({"k": "own", SELECTOR: "ns/a"}));
    assert_eq!(at(&after, "/metadata/labels/l"), Value::Null);
}

#[rstest]
#[case(json!({"labels": {"alibabacloud.com/eci": "false"}}), json!({}))]
#[case(json!({}), json!({"nodeName": "other"}))]
#[case(json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]}),
    json!({}))]
fn these_are_left_alone(#[case] metadata: Value, #[case] spec: Value) {
    let pod = pod(metadata, spec);
    for policy in [json!({}), json!({"fair": {}})] {
        assert_eq!(called(&pod, &one(policy)), pod);
    }
}

#[test]
fn a_pod_on_a_node_of_ours_is_marked() {
    let after = called(&pod(json!({}), json!({"nodeName": "ours"})), &one(json!({"fair": {}})));
    assert_eq!(at(&after, "/metadata/annotations"), json!({SELECTOR: "ns/a"}));
}

#[test]
fn a_selector_that_nobody_knows_does_nothing() {
    let pod = pod(json!({}), json!({}));
    assert_eq!(review_ruled(&pod, &placement(), &one(json!({})), "0"), Review::default());
}

fn unscheduled(reason: &str, annotations: Value) -> Pod {
    let mut pod = pod(json!({"annotations": annotations}), json!({"tolerations": [{"key": "own"}]}));
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason});
    pod.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
    pod
}

#[rstest]
#[case(json!({"normalNodePrefer": {}}), Some(&["own", "virtual", "more"][..]))]
#[case(json!({"fair": {}}), Some(&["own", "virtual", "more"][..]))]
#[case(json!({"normalNodeOnly": {}}), None)]
#[case(json!({}), None)]
fn an_unschedulable_pod_is_given_more_tolerations(#[case] policy: Value, #[case] expected: Option<&[&str]>) {
    let (rules, taints) = (one(policy), placement().taints);
    let mut pod = unscheduled("Unschedulable", json!({SELECTOR: "ns/a"}));
    let given = late_tolerations(&pod, &rules, &taints);
    pod.spec.as_mut().unwrap().tolerations = given.clone();
    assert_eq!(given.map(|_| keys(&pod)), expected.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect()));
    // Once is enough.
    assert_eq!(late_tolerations(&pod, &rules, &taints).filter(|_| expected.is_some()), None);
}

#[test]
fn only_a_pod_that_waits_for_a_node_is() {
    let (rules, taints) = (one(json!({"normalNodePrefer": {}})), placement().taints);
    let marked = json!({SELECTOR: "ns/a"});
    let late = |pod: &Pod| late_tolerations(pod, &rules, &taints);
    assert_eq!(late(&unscheduled("SchedulingGated", marked.clone())), None);
    assert_eq!(late(&unscheduled("Unschedulable", json!({}))), None);
    assert_eq!(late(&unscheduled("Unschedulable", json!({SELECTOR: "ns/other"}))), None);
    let mut bound = unscheduled("Unschedulable", marked.clone());
    assert!(late(&bound).is_some());
    bound.spec.as_mut().unwrap().node_name = Some("n".to_owned());
    assert_eq!(late(&bound), None);
    let mut leaving = unscheduled("Unschedulable", marked);
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(late(&leaving), None);
}

fn policy() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"fair": {}})),
        Just(json!({"normalNodePrefer": {}})),
        Just(json!({"normalNodeOnly": {}}))
    ]
}

proptest! {
    /// Of several, one alone changes the pod; and calling again, as the API server may, changes nothing more.
    #[test]
    fn the_first_acts_alone_and_once(policies in proptest::collection::vec((policy(), 0..3_i32), 1..5), own in any::<bool>()) {
        let all: Vec<Rule> = policies
            .into_iter()
            .enumerate()
            .map(|(n, (policy, priority))| rule(&format!("r{n}"), priority, policy))
            .collect();
        let (rules, _) = Rules::ranked(all);
        let best = rules.iter().next().unwrap().clone();
        let annotations = if own { json!({"k": "own"}) } else { json!({}) };
        let pod = pod(json!({"annotations": annotations}), json!({}));
        let after = called(&pod, &rules);
        prop_assert_eq!(&after, &called(&pod, &Rules::ranked(vec![best]).0));
        prop_assert_eq!(&called(&after, &rules), &after);
    }
}
