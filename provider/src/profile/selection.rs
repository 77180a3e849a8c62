//! Pure: no I/O, no clock, no randomness.
//!
//! Which selectors of a profile write on a pod. The API server looks at labels and calls once for each selector that
//! matches, in their order; here is what each call has to do so that the outcome is as if all had been tried in order:
//!
//! - a selector with neither namespace nor object labels writes on every pod that goes to the virtual nodes anyway. Whether a
//!   pod does is known once a selector behind it matches; so the call for that one writes first what stands before it.
//! - the last call, for every pod that goes there, writes what such selectors have left.

use super::effect::Effect;
use super::parse::Profile;

/// What the call for the selector of this digest writes, in order; nothing when there is no such selector.
pub fn of_selector<'a>(profile: &'a Profile, digest: &str) -> Option<Vec<&'a Effect>> {
    let at = profile.selectors.iter().position(|selector| !selector.is_effect_only() && selector.digest() == digest)?;
    let before = profile.selectors[..at].iter().filter(|selector| selector.is_effect_only());
    Some(before.chain([&profile.selectors[at]]).map(|selector| &selector.effect).collect())
}

/// What the last call writes, in order.
pub fn of_all(profile: &Profile) -> Vec<&Effect> {
    profile.selectors.iter().filter(|selector| selector.is_effect_only()).map(|selector| &selector.effect).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use json_patch::Patch;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use proptest::prelude::*;

    use super::*;
    use crate::profile::effect::additions;
    use crate::profile::parse::Selector;

    fn effect() -> impl Strategy<Value = Effect> {
        proptest::collection::btree_map("[abcd]", "[0-9]", 0..3)
            .prop_map(|annotations| Effect { annotations, labels: BTreeMap::new() })
    }

    /// A profile, and of each selector whether it matches the pod.
    fn profile() -> impl Strategy<Value = (Profile, Vec<bool>)> {
        let one = (effect(), any::<bool>(), any::<bool>());
        proptest::collection::vec(one, 0..6).prop_map(|selectors| {
            let matched = selectors.iter().map(|(_, _, matched)| *matched).collect();
            let selector = |(n, (effect, is_effect_only, _)): (usize, (Effect, bool, bool))| Selector {
                name: format!("s{n}"),
                namespace: None,
                object: (!is_effect_only).then(LabelSelector::default),
                effect,
            };
            (Profile { selectors: selectors.into_iter().enumerate().map(selector).collect() }, matched)
        })
    }

    fn write(pod: &mut Pod, effects: &[&Effect]) {
        let mut value = serde_json::to_value(&*pod).unwrap();
        json_patch::patch(&mut value, &Patch(additions(pod, effects.iter().copied()))).unwrap();
        *pod = serde_json::from_value(value).unwrap();
    }

    proptest! {
        /// Against the words: tried in order, every match adds its effect, the earlier wins.
        #[test]
        fn the_calls_together_are_all_selectors_in_order((profile, matched) in profile()) {
            let mut called = Pod::default();
            for (selector, matched) in profile.selectors.iter().zip(&matched) {
                if *matched && !selector.is_effect_only() {
                    write(&mut called, &of_selector(&profile, &selector.digest()).unwrap());
                }
            }
            write(&mut called, &of_all(&profile));

            let mut wanted = BTreeMap::new();
            for (selector, matched) in profile.selectors.iter().zip(&matched) {
                if selector.is_effect_only() || *matched {
                    for (key, value) in &selector.effect.annotations {
                        wanted.entry(key.clone()).or_insert_with(|| value.clone());
                    }
                }
            }
            prop_assert_eq!(called.metadata.annotations.unwrap_or_default(), wanted);
        }

        #[test]
        fn an_unknown_selector_writes_nothing((profile, _) in profile()) {
            prop_assert_eq!(of_selector(&profile, "0"), None);
        }
    }
}
