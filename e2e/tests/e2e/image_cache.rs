//! Image caches: made by hand, pinned, matched, made by themselves.

mod objects;
mod pods;

use serde_json::{Value, json};

pub(crate) use objects::{as_kubectl_shows_it, gone_from_the_host_when_deleted, made_by_hand};
pub(crate) use pods::{
    invalid_annotations, made_when_missing, matched_without_the_registry, one_for_many_pods,
    pinned_to_one_in_the_making, pinned_to_one_that_is_missing, pinned_without_the_registry,
};

/// An object as it is written in YAML, with its kind.
fn merge_kind(mut object: Value) -> Value {
    object["apiVersion"] = json!("eci.alibabacloud.com/v1");
    object["kind"] = json!("ImageCache");
    object
}
