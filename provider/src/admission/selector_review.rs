//! Pure: no I/O, no clock, no randomness.
//!
//! What a Selector object does to a pod: when it is created, and after the scheduler has found no node for it.
//!
//! | policy | as it is created | unschedulable | as it starts on a virtual node |
//! |---|---|---|---|
//! | `virtualNodeOnly` | toleration, nodeSelector, effect | | |
//! | `fair` | toleration | toleration, where it lacks | effect |
//! | `normalNodePrefer` | | toleration | effect |
//! | `normalNodeOnly` | | | |
//!
//! In each case the pod is marked with the Selector's name as it is created. The effect waits for the start where only the
//! binding says whether the pod goes to a virtual node. A webhook for bindings could not write it: no selector of pods'
//! labels holds for a binding, so every pod of the cluster would wait for us, and labels of a binding do not come to the pod.

use json_patch::jsonptr::PointerBuf;
use json_patch::{PatchOperation, RemoveOperation};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::review::{Placement, Review, add_tolerations, may_go_there, missing_tolerations, review};
use crate::profile::Effect;
use crate::selector::mark::{EFFECT, SELECTOR, WRITTEN, has_effect};
use crate::selector::overwriting::overwriting;
use crate::selector::{Policy, Rule, Rules};

/// Looks at a pod that is being created and that the Selector of this digest has selected.
pub fn review_ruled(pod: &Pod, placement: &Placement, rules: &Rules, digest: &str) -> Review {
    let (Some(rule), Some(spec)) = (rules.acting(digest, pod), &pod.spec) else { return Review::default() };
    if !may_go_there(pod, placement) {
        return Review::default();
    }
    let mut review = match rule.policy {
        Policy::VirtualNodeOnly => review(pod, placement),
        Policy::Fair => {
            let mut review = Review::default();
            add_tolerations(spec, missing_tolerations(spec, &placement.taints), &mut review);
            review
        }
        Policy::NormalNodeOnly | Policy::NormalNodePrefer => Review::default(),
    };
    review.patch.0.extend(overwriting(pod, &marked(rule)));
    // A copy of another pod says what was written on that one.
    if rule.policy != Policy::VirtualNodeOnly && has_effect(pod) {
        let path = PointerBuf::from_tokens(["metadata", "annotations", EFFECT]);
        review.patch.0.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    review
}

/// What is written on a pod as it is created.
fn marked(rule: &Rule) -> Effect {
    let mut marked = Effect::default();
    if rule.policy == Policy::VirtualNodeOnly {
        marked = written(rule);
    }
    marked.annotations.insert(SELECTOR.to_owned(), rule.name.to_string());
    marked
}

/// The effect of a Selector, and that it is written.
pub fn written(rule: &Rule) -> Effect {
    let mut effect = rule.effect.clone();
    effect.annotations.remove(SELECTOR);
    effect.annotations.insert(EFFECT.to_owned(), WRITTEN.to_owned());
    effect
}

/// The tolerations of a pod that no node takes and that a Selector lets go to a virtual node then; nothing where there is
/// nothing to do. An existing pod can only be given more of them.
pub fn late_tolerations(pod: &Pod, rules: &Rules, taints: &[Taint]) -> Option<Vec<Toleration>> {
    let spec = pod.spec.as_ref().filter(|_| is_unschedulable(pod))?;
    match rules.of(pod)?.policy {
        Policy::NormalNodePrefer | Policy::Fair => {}
        Policy::NormalNodeOnly | Policy::VirtualNodeOnly => return None,
    }
    let missing = missing_tolerations(spec, taints);
    let all = spec.tolerations.iter().flatten().cloned();
    (!missing.is_empty()).then(|| all.chain(missing.clone()).collect())
}

fn is_unschedulable(pod: &Pod) -> bool {
    let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|name| !name.is_empty()));
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    !is_bound
        && pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
}

#[cfg(test)]
mod tests;
