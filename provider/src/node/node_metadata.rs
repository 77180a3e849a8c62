//! The patch that keeps a node's labels and taints as they should be.
//!
//! What follows from options is written down on the node itself, so that another start, with other options, can take away
//! what is no longer asked for. Only what still is as it was written is taken away: what others have changed is theirs.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};

use super::node_object::{Host, NodeIdentity, TAINT_EFFECT, TAINT_KEY, TAINT_VALUE, labels, options, taints};
use super::node_options::{NodeOptions, OPTIONS, parts};

/// The patch that puts our labels and taints on a node that lacks some, and takes away those of an earlier start; `None`
/// when there is nothing to do.
pub(super) fn metadata_patch(current: &Node, identity: &NodeIdentity, host: &Host) -> Option<Value> {
    let before = NodeOptions::written_on(current);
    let mut metadata = Map::new();
    let labels = label_changes(current, &labels(identity, host), &before);
    let takes_away = labels.values().any(Option::is_none);
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), json!(labels));
    }
    let options = options(identity);
    if before != options {
        metadata.insert("annotations".to_owned(), json!({OPTIONS: options.to_text()}));
    }
    let taints = taint_list(current, identity, &before);
    if takes_away || taints.is_some() {
        // What is taken away, and a list that is replaced as a whole, depend on what was read: the version says what.
        metadata.insert("resourceVersion".to_owned(), json!(current.metadata.resource_version));
    }
    let mut patch = Map::new();
    if !metadata.is_empty() {
        patch.insert("metadata".to_owned(), Value::Object(metadata));
    }
    if let Some(taints) = taints {
        patch.insert("spec".to_owned(), json!({"taints": taints}));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Labels to set, and with `None` those to take away.
fn label_changes(
    current: &Node,
    wanted: &BTreeMap<String, String>,
    before: &NodeOptions,
) -> BTreeMap<String, Option<String>> {
    let have = current.metadata.labels.clone().unwrap_or_default();
    let missing = wanted.iter().filter(|(key, value)| have.get(*key) != Some(value));
    let missing = missing.map(|(key, value)| (key.clone(), Some(value.clone())));
    let is_over = |key: &String, value: &String| !wanted.contains_key(key) && have.get(key) == Some(value);
    let over = before.labels.iter().filter(|(key, value)| is_over(key, value)).map(|(key, _)| (key.clone(), None));
    missing.chain(over).collect()
}

/// All taints of the node, when they are not as they should be.
fn taint_list(current: &Node, identity: &NodeIdentity, before: &NodeOptions) -> Option<Vec<Taint>> {
    let have = current.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = taints(identity);
    let same = |one: &Taint, other: &Taint| parts(one) == parts(other);
    let missing: Vec<&Taint> = wanted.iter().filter(|taint| !have.iter().any(|there| same(there, taint))).collect();
    // ECI's own taint may be there from a time in which it was not written down.
    let was_ours =
        |there: &Taint| before.taints.contains(&parts(there)) || (identity.taints.without_eci && is_eci(there));
    let is_over = |there: &Taint| was_ours(there) && !wanted.iter().any(|taint| same(there, taint));
    if missing.is_empty() && !have.iter().any(is_over) {
        return None;
    }
    let is_replaced =
        |there: &Taint| missing.iter().any(|taint| taint.key == there.key && taint.effect == there.effect);
    let kept = have.iter().filter(|there| !is_replaced(there) && !is_over(there));
    Some(kept.chain(missing.iter().copied()).cloned().collect())
}

fn is_eci(taint: &Taint) -> bool {
    parts(taint) == [TAINT_KEY, TAINT_VALUE, TAINT_EFFECT]
}

#[cfg(test)]
mod tests;
