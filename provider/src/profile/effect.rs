//! Pure: no I/O, no clock, no randomness.
//!
//! What selectors write on a pod: labels and annotations that it does not have. Nothing that is there is changed, so the
//! pod's own word stands, that of an earlier selector stands against a later one's, and writing twice is writing once.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// Labels and annotations to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effect {
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The keys that only a virtual node, or whoever marks pods for it, writes. Those who write and read them are above this
/// part of the provider and name them themselves; a test compares.
const OURS: [&str; 17] = [
    "ProviderCreate",
    "eci.alibabacloud.com/acted-on",
    "eci.alibabacloud.com/ignored",
    "eci.alibabacloud.com/selector",
    "eci.alibabacloud.com/selector-effect",
    "k8s.aliyun.com/cluster-domain",
    "k8s.aliyun.com/eci-instance-cpu",
    "k8s.aliyun.com/eci-instance-id",
    "k8s.aliyun.com/eci-instance-mem",
    "k8s.aliyun.com/eci-instance-spec",
    "k8s.aliyun.com/eci-instance-zone",
    "k8s.aliyun.com/eci-matched-image-cache",
    "k8s.aliyun.com/eci-request-id",
    "k8s.aliyun.com/k8s-version",
    "k8s.aliyun.com/vk-version",
    "kubernetes.io/pod-stream-port",
    "serverless.alibabacloud.com/virtual-node",
];

/// Whether no effect may write this key: what it says of a pod would not be so.
pub fn is_ours(key: &str) -> bool {
    OURS.contains(&key)
}

impl Effect {
    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.annotations.is_empty() && self.labels.is_empty()
    }
}

/// What is added to the pod for these effects, the earlier before the later.
pub fn additions<'a>(pod: &Pod, effects: impl IntoIterator<Item = &'a Effect>) -> Vec<PatchOperation> {
    let mut wanted = Effect::default();
    for effect in effects {
        fill_up(&mut wanted.annotations, &effect.annotations);
        fill_up(&mut wanted.labels, &effect.labels);
    }
    let annotations = missing("annotations", pod.metadata.annotations.as_ref(), wanted.annotations);
    let labels = missing("labels", pod.metadata.labels.as_ref(), wanted.labels);
    annotations.into_iter().chain(labels).collect()
}

fn fill_up(there: &mut BTreeMap<String, String>, more: &BTreeMap<String, String>) {
    for (key, value) in more {
        there.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

fn missing(
    field: &str,
    there: Option<&BTreeMap<String, String>>,
    mut wanted: BTreeMap<String, String>,
) -> Vec<PatchOperation> {
    wanted.retain(|key, _| there.is_none_or(|there| !there.contains_key(key)));
    put(field, there.is_some(), wanted)
}

/// What puts these labels or annotations on a pod, over those of the same keys, whether it has the field or not.
pub fn put(field: &str, is_there: bool, wanted: BTreeMap<String, String>) -> Vec<PatchOperation> {
    let add = |path: &[&str], value| {
        PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
    };
    if !is_there && !wanted.is_empty() {
        return vec![add(&["metadata", field], json!(wanted))];
    }
    wanted.into_iter().map(|(key, value)| add(&["metadata", field, &key], json!(value))).collect()
}

#[cfg(test)]
mod tests {
    use json_patch::Patch;
    use proptest::prelude::*;

    use super::*;

    fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map("[abc]|x/[ab]|~1", "[01]", 0..4)
    }

    fn effect() -> impl Strategy<Value = Effect> {
        (map(), map()).prop_map(|(annotations, labels)| Effect { annotations, labels })
    }

    fn pod() -> impl Strategy<Value = Pod> {
        (proptest::option::of(map()), proptest::option::of(map())).prop_map(|(annotations, labels)| {
            let mut pod = Pod::default();
            (pod.metadata.annotations, pod.metadata.labels) = (annotations, labels);
            pod
        })
    }

    fn written<'a>(pod: &Pod, effects: impl IntoIterator<Item = &'a Effect>) -> Pod {
        let mut value = serde_json::to_value(pod).unwrap();
        json_patch::patch(&mut value, &Patch(additions(pod, effects))).unwrap();
        serde_json::from_value(value).unwrap()
    }

    proptest! {
        #[test]
        fn the_pods_own_keys_win(pod in pod(), effects in proptest::collection::vec(effect(), 0..4)) {
            let after = written(&pod, &effects);
            for (key, value) in pod.metadata.annotations.iter().flatten() {
                prop_assert_eq!(&after.metadata.annotations.as_ref().unwrap()[key], value);
            }
            for (key, value) in pod.metadata.labels.iter().flatten() {
                prop_assert_eq!(&after.metadata.labels.as_ref().unwrap()[key], value);
            }
        }

        #[test]
        fn earlier_selectors_win_and_every_key_is_there(pod in pod(), effects in proptest::collection::vec(effect(), 0..4)) {
            let after = written(&pod, &effects);
            for key in effects.iter().flat_map(|effect| effect.labels.keys()) {
                let own = pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
                let first = effects.iter().find_map(|effect| effect.labels.get(key));
                prop_assert_eq!(after.metadata.labels.as_ref().unwrap().get(key), own.or(first));
            }
        }

        #[test]
        fn twice_is_once(pod in pod(), effects in proptest::collection::vec(effect(), 0..4)) {
            let after = written(&pod, &effects);
            prop_assert!(additions(&after, &effects).is_empty());
        }

        /// The API server calls once for each selector.
        #[test]
        fn one_after_the_other_is_all_at_once(pod in pod(), effects in proptest::collection::vec(effect(), 0..4)) {
            let mut stepwise = pod.clone();
            for effect in &effects {
                stepwise = written(&stepwise, [effect]);
            }
            prop_assert_eq!(stepwise, written(&pod, &effects));
        }
    }
}
