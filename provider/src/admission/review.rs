//! Pure: no I/O, no clock, no randomness.
//!
//! What a pod that is meant for the virtual nodes is given when it is created: the nodeSelector and the tolerations that
//! bring it there. It is idempotent, and takes nothing away that the user has set.
//!
//! A pod is meant for the virtual nodes when its label `alibabacloud.com/eci` (or the older `eci`) is `true`, or when it has
//! neither label and lives in a namespace that is labelled so, or when a selector of the profile selects it. Whoever calls
//! this has looked at the namespace and at the selectors. Any other value of the pod's label means no, whatever they say.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration};
use serde_json::{Value, json};

use crate::profile::{Effect, effect};

/// The label that brings a pod, or the pods of a namespace, to the virtual nodes.
pub const LABEL: &str = "alibabacloud.com/eci";
/// Its older name. Counts only where the new one is not there.
pub const LABEL_LEGACY: &str = "eci";

/// The node conditions that evict pods, as taints.
const EVICTING: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// How long a pod stays on such a node by the API server's own default, in seconds.
const DEFAULT_SECONDS: i64 = 300;

/// What brings a pod to a virtual node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Labels of the virtual nodes.
    pub selector: BTreeMap<String, String>,
    /// Taints of the virtual nodes.
    pub taints: Vec<Taint>,
    /// Their names.
    pub nodes: Vec<String>,
}

impl Placement {
    /// For virtual nodes with these taints, whose names nobody knows.
    pub fn new(taints: Vec<Taint>) -> Self {
        let selector = BTreeMap::from([("type".to_owned(), "virtual-kubelet".to_owned())]);
        Self { selector, taints, nodes: vec![] }
    }
}

/// The answer for a pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Review {
    /// What is changed; empty for nothing.
    pub patch: Patch,
    /// What the user is told.
    pub warnings: Vec<String>,
}

/// Looks at a pod that is being created.
pub fn review(pod: &Pod, placement: &Placement) -> Review {
    let Some(spec) = &pod.spec else { return Review::default() };
    if !is_meant(pod) || is_placed(pod, spec) {
        return Review::default();
    }
    let mut review = Review::default();
    select(spec, placement, &mut review);
    tolerate(spec, placement, &mut review);
    review
}

/// Looks at a pod that is being created and that a selector of the profile has selected: it goes to the virtual nodes, and
/// these effects are written on it.
pub fn review_selected<'a>(pod: &Pod, placement: &Placement, effects: impl IntoIterator<Item = &'a Effect>) -> Review {
    let mut review = review(pod, placement);
    if may_go_there(pod, placement) {
        review.patch.0.extend(effect::additions(pod, effects));
    }
    review
}

/// Looks at a pod that is being created and that goes to a virtual node anyway: these effects are written on it.
pub fn review_bound<'a>(pod: &Pod, placement: &Placement, effects: impl IntoIterator<Item = &'a Effect>) -> Review {
    let mut review = Review::default();
    if is_meant(pod) && is_bound(pod, placement) {
        review.patch.0.extend(effect::additions(pod, effects));
    }
    review
}

/// Whether the pod goes to a virtual node.
pub fn is_bound(pod: &Pod, placement: &Placement) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let selected = spec
        .node_selector
        .as_ref()
        .is_some_and(|selector| placement.selector.iter().all(|(key, value)| selector.get(key) == Some(value)));
    selected || spec.node_name.as_ref().is_some_and(|name| placement.nodes.contains(name))
}

/// Whether a pod that something has selected may go to a virtual node: its own labels do not say no, and its node is not
/// settled elsewhere.
pub(super) fn may_go_there(pod: &Pod, placement: &Placement) -> bool {
    is_meant(pod) && pod.spec.as_ref().is_some_and(|spec| !is_placed(pod, spec) || is_bound(pod, placement))
}

fn is_meant(pod: &Pod) -> bool {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    label(LABEL).or_else(|| label(LABEL_LEGACY)).is_none_or(|value| value == "true")
}

/// Whether the pod's node is settled: a selector would only make that node refuse it. The pods of a DaemonSet are each
/// pinned to their node by an affinity.
fn is_placed(pod: &Pod, spec: &PodSpec) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    spec.node_name.as_deref().is_some_and(|name| !name.is_empty())
        || owners.iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet")
}

fn select(spec: &PodSpec, placement: &Placement, review: &mut Review) {
    let empty = BTreeMap::new();
    let present = spec.node_selector.as_ref().unwrap_or(&empty);
    let missing: BTreeMap<_, _> = placement.selector.iter().filter(|(key, _)| !present.contains_key(*key)).collect();
    for (key, value) in &placement.selector {
        if let Some(kept) = present.get(key).filter(|kept| *kept != value) {
            review.warnings.push(format!(
                "nodeSelector {key}={kept} is kept, so the pod is not scheduled to a virtual node, which has {key}={value}"
            ));
        }
    }
    if spec.node_selector.is_none() && !missing.is_empty() {
        add(review, &["spec", "nodeSelector"], json!(missing));
        return;
    }
    for (key, value) in missing {
        add(review, &["spec", "nodeSelector", key], json!(value));
    }
}

fn tolerate(spec: &PodSpec, placement: &Placement, review: &mut Review) {
    let present = spec.tolerations.as_deref().unwrap_or_default();
    // Pods stay on a virtual node that does not answer: its host runs them whether or not we can be heard. The API server
    // has already written its default of 300 s where the user has set nothing; that default, to the letter, is lifted.
    for (at, toleration) in present.iter().enumerate() {
        if is_default_eviction(toleration) {
            let at = at.to_string();
            let path = PointerBuf::from_tokens(["spec", "tolerations", at.as_str(), "tolerationSeconds"]);
            review.patch.0.push(PatchOperation::Remove(RemoveOperation { path }));
        }
    }
    let evicting =
        EVICTING.map(|key| Taint { key: key.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() });
    add_tolerations(spec, missing_tolerations(spec, placement.taints.iter().chain(&evicting)), review);
}

/// The tolerations that a pod lacks to be scheduled past these taints.
pub(super) fn missing_tolerations<'a>(spec: &PodSpec, taints: impl IntoIterator<Item = &'a Taint>) -> Vec<Toleration> {
    let present = spec.tolerations.as_deref().unwrap_or_default();
    taints
        .into_iter()
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .filter(|taint| !present.iter().any(|toleration| tolerates(toleration, taint)))
        .map(toleration_of)
        .collect()
}

pub(super) fn add_tolerations(spec: &PodSpec, missing: Vec<Toleration>, review: &mut Review) {
    if missing.is_empty() {
        return;
    }
    if spec.tolerations.is_none() {
        add(review, &["spec", "tolerations"], json!(missing));
        return;
    }
    for toleration in missing {
        add(review, &["spec", "tolerations", "-"], json!(toleration));
    }
}

fn add(review: &mut Review, path: &[&str], value: Value) {
    let path = PointerBuf::from_tokens(path.iter().copied());
    review.patch.0.push(PatchOperation::Add(AddOperation { path, value }));
}

fn is_default_eviction(toleration: &Toleration) -> bool {
    toleration.key.as_deref().is_some_and(|key| EVICTING.contains(&key))
        && toleration.operator.as_deref() == Some("Exists")
        && toleration.effect.as_deref() == Some("NoExecute")
        && toleration.toleration_seconds == Some(DEFAULT_SECONDS)
}

/// As the scheduler sees it.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect_fits = set(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key_fits = set(&toleration.key).is_none_or(|key| key == taint.key);
    let value_fits = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => set(&toleration.value) == set(&taint.value),
        Some(_) => false,
    };
    effect_fits && key_fits && value_fits
}

fn toleration_of(taint: &Taint) -> Toleration {
    let value = taint.value.clone().filter(|value| !value.is_empty());
    Toleration {
        key: Some(taint.key.clone()),
        operator: Some(if value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        value,
        effect: Some(taint.effect.clone()),
        toleration_seconds: None,
    }
}

#[cfg(test)]
mod tests;
