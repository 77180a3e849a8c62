//! Pure: no I/O, no clock, no randomness.
//!
//! How labels and annotations are written over those that a pod has: what differs from the effects of the ConfigMap, which
//! only fill up.

use std::collections::BTreeMap;

use json_patch::PatchOperation;
use k8s_openapi::api::core::v1::Pod;

use crate::profile::Effect;
use crate::profile::effect::put;

/// What brings all of it onto the pod.
pub fn overwriting(pod: &Pod, effect: &Effect) -> Vec<PatchOperation> {
    let annotations = over("annotations", pod.metadata.annotations.as_ref(), &effect.annotations);
    let labels = over("labels", pod.metadata.labels.as_ref(), &effect.labels);
    annotations.into_iter().chain(labels).collect()
}

fn over(
    field: &str,
    there: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> Vec<PatchOperation> {
    let differs = |(key, value): &(&String, &String)| there.and_then(|there| there.get(*key)) != Some(*value);
    let differing = wanted.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone()));
    put(field, there.is_some(), differing.collect())
}

#[cfg(test)]
mod tests {
    use json_patch::Patch;
    use proptest::prelude::*;

    use super::*;

    fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map("[abc]|x/[ab]|~1", "[01]", 0..4)
    }

    fn pod() -> impl Strategy<Value = Pod> {
        (proptest::option::of(map()), proptest::option::of(map())).prop_map(|(annotations, labels)| {
            let mut pod = Pod::default();
            (pod.metadata.annotations, pod.metadata.labels) = (annotations, labels);
            pod
        })
    }

    fn written(pod: &Pod, effect: &Effect) -> Pod {
        let mut value = serde_json::to_value(pod).unwrap();
        json_patch::patch(&mut value, &Patch(overwriting(pod, effect))).unwrap();
        serde_json::from_value(value).unwrap()
    }

    proptest! {
        #[test]
        fn the_effect_wins_and_the_rest_stays(pod in pod(), annotations in map(), labels in map()) {
            let effect = Effect { annotations, labels };
            let after = written(&pod, &effect);
            for (there, wanted, now) in [
                (pod.metadata.annotations, &effect.annotations, after.metadata.annotations),
                (pod.metadata.labels, &effect.labels, after.metadata.labels),
            ] {
                let mut expected = there.unwrap_or_default();
                expected.extend(wanted.clone());
                prop_assert_eq!(now.unwrap_or_default(), expected);
            }
        }

        #[test]
        fn twice_is_once(pod in pod(), annotations in map(), labels in map()) {
            let effect = Effect { annotations, labels };
            prop_assert_eq!(overwriting(&written(&pod, &effect), &effect), vec![]);
        }
    }
}
