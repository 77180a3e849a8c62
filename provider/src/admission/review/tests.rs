//! Tables and properties of the review.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Map, Value, json};

use super::*;

fn placement() -> Placement {
    Placement::new(vec![Taint {
        key: "virtual-kubelet.io/provider".to_owned(),
        value: Some("alibabacloud".to_owned()),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }])
}

fn pod(metadata: Value, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    pod["spec"]["containers"] = json!([{"name": "c", "image": "nginx"}]);
    pod
}

/// The pod after the review, and what the user is told.
fn reviewed(pod: &Value) -> (Value, Vec<String>) {
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    let Review { patch, warnings } = review(&typed, &placement());
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).expect("the patch applies");
    (patched, warnings)
}

fn evicting() -> [Value; 2] {
    EVICTING.map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute"}))
}

fn provider_toleration() -> Value {
    json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "alibabacloud", "effect": "NoSchedule"})
}

#[test]
fn a_labelled_pod_is_brought_to_the_virtual_node() {
    let (patched, warnings) = reviewed(&pod(json!({"labels": {LABEL: "true"}}), json!({})));
    assert_eq!(patched["spec"]["nodeSelector"], json!({"type": "virtual-kubelet"}));
    let [not_ready, unreachable] = evicting();
    assert_eq!(patched["spec"]["tolerations"], json!([provider_toleration(), not_ready, unreachable]));
    assert!(warnings.is_empty());
}

#[rstest]
#[case(json!({"labels": {LABEL: "false"}}))]
#[case(json!({"labels": {LABEL: "True"}}))]
#[case(json!({"labels": {LABEL: ""}}))]
#[case(json!({"labels": {LABEL: "false", LABEL_LEGACY: "true"}}))]
#[case(json!({"labels": {LABEL_LEGACY: "no"}}))]
#[case(json!({"labels": {LABEL: "true"},
    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]}))]
fn these_are_left_alone(#[case] metadata: Value) {
    let pod = pod(metadata, json!({}));
    assert_eq!(reviewed(&pod), (pod, vec![]));
}

#[test]
fn a_pod_that_has_a_node_is_left_alone() {
    let pod = pod(json!({"labels": {LABEL: "true"}}), json!({"nodeName": "other"}));
    assert_eq!(reviewed(&pod), (pod, vec![]));
}

#[rstest]
#[case(json!({"labels": {LABEL_LEGACY: "true"}}))]
#[case(json!({"labels": {LABEL: "true", LABEL_LEGACY: "false"}}))]
#[case(json!({"labels": {"app": "x"}}))]
#[case(json!({}))]
fn these_are_brought(#[case] metadata: Value) {
    let (patched, _) = reviewed(&pod(metadata, json!({})));
    assert_eq!(patched["spec"]["nodeSelector"]["type"], "virtual-kubelet");
}

#[test]
fn the_users_own_selector_is_kept() {
    let (patched, warnings) = reviewed(&pod(json!({}), json!({"nodeSelector": {"disk": "ssd"}})));
    assert_eq!(patched["spec"]["nodeSelector"], json!({"disk": "ssd", "type": "virtual-kubelet"}));
    assert!(warnings.is_empty());
    let (patched, warnings) = reviewed(&pod(json!({}), json!({"nodeSelector": {"type": "gpu"}})));
    assert_eq!(patched["spec"]["nodeSelector"], json!({"type": "gpu"}));
    assert_eq!(warnings.len(), 1);
}

#[rstest]
#[case(json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]))]
#[case(json!([{"key": "virtual-kubelet.io/provider", "value": "alibabacloud", "effect": "NoSchedule"}]))]
#[case(json!([{"operator": "Exists", "effect": "NoSchedule"}]))]
fn a_toleration_that_is_there_is_enough(#[case] tolerations: Value) {
    let (patched, _) = reviewed(&pod(json!({}), json!({"tolerations": tolerations.clone()})));
    let mut expected = tolerations.as_array().unwrap().clone();
    expected.extend(evicting());
    assert_eq!(patched["spec"]["tolerations"], Value::Array(expected));
}

#[test]
fn a_pod_that_tolerates_everything_gets_nothing_more() {
    let spec = json!({"tolerations": [{"operator": "Exists"}], "nodeSelector": {"type": "virtual-kubelet"}});
    let pod = pod(json!({}), spec);
    assert_eq!(reviewed(&pod), (pod, vec![]));
}

#[test]
fn the_api_servers_default_eviction_is_lifted_and_the_users_own_is_kept() {
    let spec = json!({"tolerations": [
        {"key": EVICTING[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": EVICTING[1], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
    ]});
    let (patched, _) = reviewed(&pod(json!({}), spec));
    let [not_ready, _] = evicting();
    let kept = json!({"key": EVICTING[1], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60});
    assert_eq!(patched["spec"]["tolerations"], json!([not_ready, kept, provider_toleration()]));
}

fn some_toleration() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("".to_owned()),
        Just("virtual-kubelet.io/provider".to_owned()),
        Just(EVICTING[0].to_owned()),
        Just(EVICTING[1].to_owned()),
        Just("other/~key".to_owned()),
    ];
    let operator = prop_oneof![Just(""), Just("Equal"), Just("Exists"), Just("Lt")];
    let value = prop_oneof![Just(""), Just("alibabacloud"), Just("x")];
    let effect = prop_oneof![Just(""), Just("NoSchedule"), Just("NoExecute"), Just("PreferNoSchedule")];
    let seconds = prop_oneof![Just(None), Just(Some(300)), Just(Some(0)), Just(Some(60))];
    (key, operator, value, effect, seconds).prop_map(|(key, operator, value, effect, seconds)| {
        let mut toleration = Map::new();
        for (name, text) in [("key", key.as_str()), ("operator", operator), ("value", value), ("effect", effect)] {
            if !text.is_empty() {
                toleration.insert(name.to_owned(), json!(text));
            }
        }
        if let Some(seconds) = seconds {
            toleration.insert("tolerationSeconds".to_owned(), json!(seconds));
        }
        Value::Object(toleration)
    })
}

fn some_pod() -> impl Strategy<Value = Value> {
    let label = prop_oneof![Just(None), Just(Some("true")), Just(Some("false"))];
    let selector =
        proptest::option::of(proptest::collection::btree_map("(type|disk|a/b~c)", "(virtual-kubelet|x)", 0..3));
    let tolerations = proptest::option::of(proptest::collection::vec(some_toleration(), 0..5));
    (label, selector, tolerations).prop_map(|(label, selector, tolerations)| {
        let mut spec = json!({});
        if let Some(selector) = selector {
            spec["nodeSelector"] = json!(selector);
        }
        if let Some(tolerations) = tolerations {
            spec["tolerations"] = json!(tolerations);
        }
        pod(label.map_or(json!({}), |value| json!({"labels": {LABEL: value}})), spec)
    })
}

proptest! {
    #[test]
    fn twice_is_once(pod in some_pod()) {
        let (once, _) = reviewed(&pod);
        prop_assert_eq!(&reviewed(&once).0, &once);
    }

    #[test]
    fn nothing_of_the_users_is_lost(pod in some_pod()) {
        let (patched, _) = reviewed(&pod);
        for (key, value) in pod["spec"]["nodeSelector"].as_object().into_iter().flatten() {
            prop_assert_eq!(&patched["spec"]["nodeSelector"][key], value);
        }
        for (at, toleration) in pod["spec"]["tolerations"].as_array().into_iter().flatten().enumerate() {
            let typed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            if !is_default_eviction(&typed) {
                prop_assert_eq!(&patched["spec"]["tolerations"][at], toleration);
            }
        }
        prop_assert_eq!(&patched["metadata"], &pod["metadata"]);
    }

    #[test]
    fn a_meant_pod_tolerates_the_virtual_node(pod in some_pod()) {
        let (patched, _) = reviewed(&pod);
        let typed: Pod = serde_json::from_value(patched).unwrap();
        if is_meant(&typed) {
            let tolerations = typed.spec.unwrap().tolerations.unwrap();
            for taint in placement().taints {
                prop_assert!(tolerations.iter().any(|toleration| tolerates(toleration, &taint)));
            }
        }
    }
}
