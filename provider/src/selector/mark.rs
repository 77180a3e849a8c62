//! Pure: no I/O, no clock, no randomness.
//!
//! What a pod remembers of the Selector that acts on it. The API server calls the webhook once for each Selector that selects
//! a pod, the first by priority first; the first one leaves its name on the pod, so that the later ones leave it alone, and
//! whoever looks at the pod after it was created need not know the labels of its namespace.
//!
//! Whoever makes a pod may write the mark, too. That gains nothing that its labels would not: a pod is where its author says,
//! and a mark only counts where the Selector that it names is there and selects the pod's labels.

use k8s_openapi::api::core::v1::Pod;

use super::rule::Name;

/// The annotation that names the Selector: `namespace/name`.
pub const SELECTOR: &str = "eci.alibabacloud.com/selector";
/// The annotation that says that its effect is on the pod.
pub const EFFECT: &str = "eci.alibabacloud.com/selector-effect";
/// The value of [`EFFECT`].
pub const WRITTEN: &str = "written";

/// The Selector that a pod names.
pub fn selector_of(pod: &Pod) -> Option<Name> {
    let (namespace, name) = annotation(pod, SELECTOR)?.split_once('/')?;
    Some(Name { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Whether the effect is on the pod.
pub fn has_effect(pod: &Pod) -> bool {
    annotation(pod, EFFECT).is_some()
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
