//! Pure: no I/O, no clock, no randomness.
//!
//! What a pod said of image caches and registries when it was created. Its annotations act then and not later, so whoever
//! changes one of them on a pod that is there has to be told that it changes nothing: once for each change.
//!
//! Two marks on the pod remember it over restarts of the provider, [`ACTED_ON`] and [`TOLD`]. Both hold a digest of each of
//! the keys, and none of their values:
//!
//! ```text
//! eci.alibabacloud.com/acted-on: k8s.aliyun.com/eci-auto-imc=b5bea41b,k8s.aliyun.com/eci-imc-id=9f86d081
//! ```

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use sha2::{Digest as _, Sha256};

use crate::custom_resource::{INSECURE_ANNOTATION, PLAIN_HTTP_ANNOTATION};

/// The mark that says what was acted on.
pub const ACTED_ON: &str = "eci.alibabacloud.com/acted-on";
/// The mark that says of which state the user has been told that it is not acted on.
pub const TOLD: &str = "eci.alibabacloud.com/ignored";
/// Reason of the event.
pub const REASON: &str = "AnnotationIgnored";

/// The keys that count. Those of image caches are named here once more, since this part of the provider does not know that
/// one.
pub const KEYS: [&str; 8] = [
    "k8s.aliyun.com/eci-auto-imc",
    "k8s.aliyun.com/eci-image-cache",
    "k8s.aliyun.com/eci-imc-id",
    "k8s.aliyun.com/eci-image-snapshot-id",
    "k8s.aliyun.com/imc-perfect-match",
    "k8s.aliyun.com/imc-match-count-request",
    PLAIN_HTTP_ANNOTATION,
    INSECURE_ANNOTATION,
];

/// What a mark holds where none of the keys was there.
const NOTHING: &str = "none";
/// So many bytes of a digest are enough to see a change; nobody gains by a collision.
const SHOWN: usize = 4;

/// A change that comes too late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The keys that are not as they were.
    pub keys: Vec<String>,
    /// The mark for the state as it is now.
    pub now: String,
}

impl Ignored {
    /// The text of the event.
    pub fn message(&self) -> String {
        let keys = self.keys.join(", ");
        format!(
            "[eci.imagecache]Changing {keys} has no effect: annotations act when a pod is created; create the pod anew to \
             have it."
        )
    }
}

/// The mark for a pod with these annotations.
pub fn mark(annotations: Option<&BTreeMap<String, String>>) -> String {
    let entry = |key: &&str| {
        let digest = Sha256::digest(annotations?.get(*key)?.as_bytes());
        Some(format!("{key}={}", hex::encode(&digest[..SHOWN])))
    };
    let entries: Vec<String> = KEYS.iter().filter_map(entry).collect();
    if entries.is_empty() { NOTHING.to_owned() } else { entries.join(",") }
}

/// What is not as it was when the pod was admitted, as long as its user has not been told. `admitted` is what we write on
/// the pod; the mark is read there while it may not have come to the pod yet. A pod without a mark tells nothing.
pub fn ignored(admitted: &BTreeMap<String, String>, pod: &Pod) -> Option<Ignored> {
    let annotations = pod.metadata.annotations.as_ref();
    let written = |key: &str| annotations.and_then(|annotations| annotations.get(key));
    let before = admitted.get(ACTED_ON).or_else(|| written(ACTED_ON))?;
    let now = mark(annotations);
    if *before == now || written(TOLD) == Some(&now) {
        return None;
    }
    let (was, is) = (entries(before), entries(&now));
    let differs = |key: &&&str| was.get(**key) != is.get(**key);
    let keys: Vec<String> = KEYS.iter().filter(differs).map(|key| (*key).to_owned()).collect();
    // A mark that somebody has scribbled on may differ in nothing that we know.
    (!keys.is_empty()).then_some(Ignored { keys, now })
}

fn entries(mark: &str) -> BTreeMap<&str, &str> {
    mark.split(',').filter_map(|entry| entry.split_once('=')).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const AUTO: &str = KEYS[0];
    const PERFECT: &str = KEYS[4];

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(annotations: BTreeMap<String, String>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.annotations = Some(annotations);
        pod
    }

    #[test]
    fn a_change_is_named_until_it_has_been_told() {
        let admitted = set(&[(ACTED_ON, &mark(Some(&set(&[(AUTO, "true"), ("other", "1")]))))]);
        let same = pod(set(&[(AUTO, "true"), ("other", "2")]));
        assert_eq!(ignored(&admitted, &same), None);
        let mut changed = pod(set(&[(AUTO, "false"), (PERFECT, "true")]));
        let found = ignored(&admitted, &changed).unwrap();
        assert_eq!(found.keys, [AUTO, PERFECT]);
        assert_eq!(
            found.message(),
            "[eci.imagecache]Changing k8s.aliyun.com/eci-auto-imc, k8s.aliyun.com/imc-perfect-match has no effect: \
             annotations act when a pod is created; create the pod anew to have it."
        );
        let annotations = changed.metadata.annotations.as_mut().unwrap();
        annotations.insert(TOLD.to_owned(), found.now);
        assert_eq!(ignored(&admitted, &changed), None);
        // Another change is told again.
        changed.metadata.annotations.as_mut().unwrap().remove(PERFECT);
        assert_eq!(ignored(&admitted, &changed).unwrap().keys, [AUTO]);
    }

    #[test]
    fn after_a_restart_the_mark_is_read_from_the_pod() {
        let mut annotations = set(&[(AUTO, "false"), (ACTED_ON, &mark(None))]);
        assert_eq!(ignored(&BTreeMap::new(), &pod(annotations.clone())).unwrap().keys, [AUTO]);
        annotations.remove(ACTED_ON);
        assert_eq!(ignored(&BTreeMap::new(), &pod(annotations)), None);
    }

    #[test]
    fn the_mark_holds_no_value() {
        assert_eq!(mark(None), "none");
        assert_eq!(mark(Some(&set(&[("other", "x")]))), "none");
        assert_eq!(mark(Some(&set(&[(AUTO, "true")]))), "k8s.aliyun.com/eci-auto-imc=b5bea41b");
    }

    fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
        let key = proptest::sample::select(KEYS.iter().copied().chain(["other"]).collect::<Vec<_>>());
        proptest::collection::btree_map(key.prop_map(str::to_owned), ".{0,4}", 0..6)
    }

    proptest! {
        #[test]
        fn exactly_the_keys_that_differ_are_named(before in annotations(), after in annotations()) {
            let admitted = set(&[(ACTED_ON, &mark(Some(&before)))]);
            let differ: BTreeSet<&str> = KEYS.into_iter().filter(|key| before.get(*key) != after.get(*key)).collect();
            let found = ignored(&admitted, &pod(after));
            let named: BTreeSet<&str> = found.iter().flat_map(|found| &found.keys).map(String::as_str).collect();
            prop_assert_eq!(named, differ);
        }

        #[test]
        fn scribbles_do_no_harm(mark in ".{0,40}", after in annotations()) {
            ignored(&set(&[(ACTED_ON, &mark)]), &pod(after));
        }
    }
}
