//! Pure: no I/O, no clock, no randomness.
//!
//! Which Selector acts on a pod: the first by priority, the larger first, then by namespace and name. The API server looks at
//! labels and calls once for each Selector that selects the pod, in that order; so whoever is called acts, unless the pod
//! already bears the name of one before it.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::Pod;

use super::mark;
use super::rule::{Name, Policy, Rule};
use crate::profile::labels;

/// The most Selectors that act. Each is a webhook of its own, and a pod that all of them select waits for all of them.
pub const MOST: usize = 100;

/// The Selectors that act, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Of these, and those that are too many.
    pub fn ranked(mut rules: Vec<Rule>) -> (Self, Vec<Name>) {
        rules.sort_by(|a, b| (Reverse(a.priority), &a.name).cmp(&(Reverse(b.priority), &b.name)));
        let too_many = rules.split_off(rules.len().min(MOST));
        (Self(rules), too_many.into_iter().map(|rule| rule.name).collect())
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// Whether the Selector of this digest is among them.
    pub fn knows(&self, digest: &str) -> bool {
        self.0.iter().any(|rule| rule.digest() == digest)
    }

    /// The Selector of this digest, if it is the one that acts on the pod.
    pub fn acting(&self, digest: &str, pod: &Pod) -> Option<&Rule> {
        let at = self.0.iter().position(|rule| rule.digest() == digest)?;
        let is_taken = self.0[..at].iter().any(|earlier| is_marked(pod, earlier));
        (!is_taken).then(|| &self.0[at])
    }

    /// The Selector that a pod bears the name of.
    pub fn of(&self, pod: &Pod) -> Option<&Rule> {
        self.0.iter().find(|rule| is_marked(pod, rule))
    }

    /// The Selector whose effect is still to be written on a pod that runs on a virtual node.
    pub fn outstanding(&self, pod: &Pod) -> Option<&Rule> {
        self.of(pod).filter(|rule| rule.policy != Policy::NormalNodeOnly && !mark::has_effect(pod))
    }
}

fn is_marked(pod: &Pod, rule: &Rule) -> bool {
    mark::selector_of(pod).as_ref() == Some(&rule.name)
        && (mark::has_effect(pod)
            || rule.object.as_ref().is_none_or(|object| labels::matches(object, pod.metadata.labels.as_ref())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use proptest::prelude::*;

    use super::*;

    fn rule(namespace: &str, name: &str, priority: i32, label: Option<&str>) -> Rule {
        let object = label.map(|label| LabelSelector {
            match_labels: Some(BTreeMap::from([(label.to_owned(), "1".to_owned())])),
            match_expressions: None,
        });
        Rule {
            name: Name { namespace: namespace.to_owned(), name: name.to_owned() },
            priority,
            namespace: None,
            object,
            effect: crate::profile::Effect::default(),
            policy: Policy::Fair,
        }
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let one = ("[ab]", "[abc]", -2..3_i32, proptest::option::of("[xyz]"));
        proptest::collection::vec(one, 0..6).prop_map(|all| {
            let named: BTreeMap<_, _> = all.into_iter().map(|(ns, name, p, label)| ((ns, name), (p, label))).collect();
            named.into_iter().map(|((ns, name), (p, label))| rule(&ns, &name, p, label.as_deref())).collect()
        })
    }

    fn pod() -> impl Strategy<Value = Pod> {
        proptest::collection::btree_set("[xyz]", 0..3).prop_map(|keys| {
            let mut pod = Pod::default();
            pod.metadata.labels = Some(keys.into_iter().map(|key| (key, "1".to_owned())).collect());
            pod
        })
    }

    fn selects(rule: &Rule, pod: &Pod) -> bool {
        rule.object.as_ref().is_none_or(|object| labels::matches(object, pod.metadata.labels.as_ref()))
    }

    /// What the API server does: one call for each Selector that selects the pod, in their order.
    fn called(rules: &Rules, mut pod: Pod) -> Pod {
        for rule in rules.iter() {
            if !selects(rule, &pod) {
                continue;
            }
            if let Some(acting) = rules.acting(&rule.digest(), &pod) {
                let mark = (mark::SELECTOR.to_owned(), acting.name.to_string());
                pod.metadata.annotations.get_or_insert_default().extend([mark]);
            }
        }
        pod
    }

    proptest! {
        /// Against the words: of all that select the pod, the highest priority, then the first by namespace and name.
        #[test]
        fn the_highest_priority_acts_alone(given in rules(), pod in pod()) {
            let best = given.iter().filter(|rule| selects(rule, &pod)).min_by_key(|rule| {
                (-rule.priority, rule.name.namespace.clone(), rule.name.name.clone())
            });
            let (rules, _) = Rules::ranked(given.clone());
            let after = called(&rules, pod);
            prop_assert_eq!(mark::selector_of(&after), best.map(|rule| rule.name.clone()));
            prop_assert_eq!(rules.of(&after), best);
        }

        #[test]
        fn the_order_in_which_they_are_given_is_of_no_account(given in rules()) {
            let mut reversed = given.clone();
            reversed.reverse();
            prop_assert_eq!(Rules::ranked(given), Rules::ranked(reversed));
        }

        /// The API server calls again when somebody else has changed the pod, and others may bring a mark along.
        #[test]
        fn calling_again_changes_nothing_and_a_mark_of_nobody_counts_for_nothing(given in rules(), pod in pod()) {
            let (rules, _) = Rules::ranked(given);
            let once = called(&rules, pod.clone());
            prop_assert_eq!(&called(&rules, once.clone()), &once);
            let mut copied = pod;
            let stale = (mark::SELECTOR.to_owned(), "a/gone".to_owned());
            copied.metadata.annotations = Some([stale].into());
            prop_assert_eq!(rules.of(&called(&rules, copied)), rules.of(&once));
        }
    }

    #[test]
    fn those_of_the_lowest_priority_are_too_many() {
        let many = (0..102).map(|n| rule("n", &format!("r{n:03}"), n, None)).collect();
        let (rules, too_many) = Rules::ranked(many);
        assert_eq!(rules.iter().count(), MOST);
        assert_eq!(too_many.iter().map(|name| name.name.as_str()).collect::<Vec<_>>(), ["r001", "r000"]);
    }

    #[test]
    fn an_effect_is_outstanding_until_it_is_written() {
        let mut prefers = rule("n", "a", 0, Some("x"));
        let (rules, _) = Rules::ranked(vec![prefers.clone()]);
        let mut pod = Pod::default();
        assert_eq!(rules.outstanding(&pod), None);
        pod.metadata.labels = Some([("x".to_owned(), "1".to_owned())].into());
        pod.metadata.annotations = Some([(mark::SELECTOR.to_owned(), "n/a".to_owned())].into());
        assert_eq!(rules.outstanding(&pod), Some(&prefers));
        let mut written = pod.clone();
        written.metadata.annotations.get_or_insert_default().insert(mark::EFFECT.to_owned(), mark::WRITTEN.to_owned());
        assert_eq!(rules.outstanding(&written), None);
        prefers.policy = Policy::NormalNodeOnly;
        assert_eq!(Rules::ranked(vec![prefers]).0.outstanding(&pod), None);
    }
}
