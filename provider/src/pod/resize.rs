//! In-place resize, which the agent cannot do: a pod keeps the resources that it was handed over with for as long as the agent
//! has it, and its status says that they are not the ones that are asked for now. So does a kubelet that cannot resize.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus, ResourceRequirements};
use serde_json::{Map, Value, json};

/// The condition of a pod whose resize has not been begun.
pub(super) const PENDING: &str = "PodResizePending";
/// Its reason when the node never will.
const INFEASIBLE: &str = "Infeasible";

/// What containers have, by name: the names of a pod's containers differ whatever their kind.
pub(super) type Allocated = BTreeMap<String, Option<ResourceRequirements>>;

/// What the containers have of a pod that the agent has: what it was handed, else what it says of those that it has made.
pub(super) fn allocated(sent: Option<&Pod>, reported: &PodStatus) -> Allocated {
    if let Some(sent) = sent {
        return containers(sent).map(|container| (container.name.clone(), container.resources.clone())).collect();
    }
    let made = |status: &&ContainerStatus| status.container_id.as_deref().is_some_and(|id| !id.is_empty());
    let init = reported.init_container_statuses.iter().flatten();
    let all = init.chain(reported.container_statuses.iter().flatten());
    all.filter(made).map(|status| (status.name.clone(), status.resources.clone())).collect()
}

/// The pod with the resources that it has.
pub(super) fn held_back(pod: &Arc<Pod>, allocated: &Allocated) -> Arc<Pod> {
    if changed(pod, allocated).next().is_none() {
        return pod.clone();
    }
    let mut held = Pod::clone(pod);
    let spec = held.spec.get_or_insert_default();
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(has) = allocated.get(&container.name) {
            container.resources.clone_from(has);
        }
    }
    Arc::new(held)
}

/// The condition of a pod that has other resources than it asks for.
pub(super) fn pending(pod: &Pod, allocated: &Allocated) -> Option<PodCondition> {
    let names: Vec<&str> = changed(pod, allocated).map(|container| container.name.as_str()).collect();
    (!names.is_empty()).then(|| PodCondition {
        type_: PENDING.to_owned(),
        status: "True".to_owned(),
        reason: Some(INFEASIBLE.to_owned()),
        message: Some(format!(
            "In-place resize is not supported on this node: containers [{}] keep the resources that they have; delete the pod, \
             and the one that replaces it has the new ones",
            names.join(" ")
        )),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    })
}

/// The text of the event `ResizeInfeasible`, as the kubelet writes it.
pub(super) fn infeasible(pod: &Pod, pending: &PodCondition) -> String {
    let list = |containers: &[Container]| -> Value {
        let all = containers.iter();
        all.map(|container| json!({"name": container.name, "resources": container.resources})).collect()
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let mut asked = Map::new();
    asked.insert("containers".to_owned(), list(&spec.containers));
    if let Some(init) = spec.init_containers.filter(|init| !init.is_empty()) {
        asked.insert("initContainers".to_owned(), list(&init));
    }
    asked.insert("generation".to_owned(), json!(pod.metadata.generation));
    asked.insert("error".to_owned(), json!(pending.message));
    format!("Pod resize Infeasible: {}", Value::Object(asked))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.chain(spec.into_iter().flat_map(|spec| &spec.containers))
}

/// The containers that ask for something else than they have.
fn changed<'a>(pod: &'a Pod, allocated: &'a Allocated) -> impl Iterator<Item = &'a Container> {
    containers(pod).filter(|container| {
        let has = allocated.get(&container.name);
        has.is_some_and(|has| amounts(has.as_ref()) != amounts(container.resources.as_ref()))
    })
}

/// What counts: nothing asked for is the same however it is written.
fn amounts(resources: Option<&ResourceRequirements>) -> Value {
    let map = |map: Option<&BTreeMap<_, _>>| json!(map.filter(|map| !map.is_empty()));
    let limits = map(resources.and_then(|resources| resources.limits.as_ref()));
    json!([limits, map(resources.and_then(|resources| resources.requests.as_ref()))])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(generation: i64, resources: &Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "generation": generation, "labels": {"generation": generation.to_string()}},
            "spec": {
                "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1"}}}],
                "containers": [{"name": "a", "resources": resources}, {"name": "b"}]
            }
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn cpu(amount: &str) -> Value {
        json!({"requests": {"cpu": amount}, "limits": {"memory": "64Mi"}})
    }

    #[test]
    fn a_resize_is_held_back_and_said() {
        let (before, after) = (pod(1, &cpu("1")), pod(2, &cpu("2")));
        let has = allocated(Some(&before), &PodStatus::default());
        let held = held_back(&after, &has);
        assert_eq!(held.spec, before.spec);
        assert_eq!(held.metadata, after.metadata);
        let pending = pending(&after, &has).unwrap();
        assert_eq!((pending.status.as_str(), pending.reason.as_deref()), ("True", Some("Infeasible")));
        assert_eq!(pending.observed_generation, Some(2));
        let message = pending.message.clone().unwrap();
        assert!(message.contains("not supported on this node: containers [a] keep"), "{message}");
        let event = infeasible(&after, &pending);
        let json: Value = serde_json::from_str(event.strip_prefix("Pod resize Infeasible: ").unwrap()).unwrap();
        assert_eq!((&json["generation"], &json["containers"][0]["resources"]), (&json!(2), &cpu("2")));
        assert_eq!((&json["error"], &json["initContainers"][0]["name"]), (&json!(message), &json!("i")));
    }

    #[test]
    fn what_is_made_keeps_what_it_has_and_what_is_not_gets_what_is_asked_for() {
        let after = pod(2, &cpu("2"));
        let status = |id: &str| -> PodStatus {
            let container = json!({
                "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": id,
                "resources": cpu("1")
            });
            serde_json::from_value(json!({"containerStatuses": [container]})).unwrap()
        };
        let has = allocated(None, &status("crun://1"));
        assert_eq!(held_back(&after, &has).spec, pod(1, &cpu("1")).spec);
        assert!(pending(&after, &has).is_some());
        let has = allocated(None, &status(""));
        assert_eq!((held_back(&after, &has), pending(&after, &has)), (after, None));
    }

    #[test]
    fn nothing_is_nothing_however_it_is_written() {
        for nothing in [json!(null), json!({}), json!({"limits": {}})] {
            let has = allocated(Some(&pod(1, &nothing)), &PodStatus::default());
            assert_eq!(pending(&pod(2, &json!({"requests": {}})), &has), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_pending_on_what_is_held_back(had in 1u8..4, asked in 1u8..4) {
            let (before, after) = (pod(1, &cpu(&had.to_string())), pod(2, &cpu(&asked.to_string())));
            let has = allocated(Some(&before), &PodStatus::default());
            prop_assert_eq!(pending(&after, &has).is_some(), had != asked);
            let held = held_back(&after, &has);
            prop_assert_eq!(pending(&held, &has), None);
            prop_assert_eq!(held_back(&held, &has), held);
        }
    }
}
