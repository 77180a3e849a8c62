//! Pure: no I/O, no clock, no randomness.
//!
//! A Selector, read into a checked form. The API server has looked at its shape; what is checked here is what a webhook's
//! entry would be refused for, or a pod.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::custom_resource::selector::{PolicySource, SelectorSpec};
use crate::profile::effect::is_ours;
use crate::profile::{Effect, labels};

/// What is said of a key that is none.
const KEY: &str = "write name or prefix.example/name, of letters, digits, -, _ and ., each name at most 63 long";
/// What is said of a label's value that is none.
const VALUE: &str = "use at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit";

/// The longest effect, and the longest selector of labels, in JSON. The webhook's entry holds a hundred of the latter, and what
/// holds of broken Selectors besides.
const LONGEST_EFFECT: (usize, &str) = (16 << 10, "write at most 16 KiB");
const LONGEST_LABELS: (usize, &str) = (4 << 10, "write at most 4 KiB");

/// Where a Selector is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a pod may be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// To ordinary and virtual nodes alike.
    Fair,
    /// To ordinary nodes only.
    NormalNodeOnly,
    /// To a virtual node once no ordinary one takes it.
    NormalNodePrefer,
    /// To virtual nodes only.
    VirtualNodeOnly,
}

/// A Selector that can act.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Where it is.
    pub name: Name,
    /// The larger acts.
    pub priority: i32,
    /// Labels of the namespace.
    pub namespace: Option<LabelSelector>,
    /// Labels of the pod.
    pub object: Option<LabelSelector>,
    /// What is written on the pod.
    pub effect: Effect,
    /// How the pod may be scheduled.
    pub policy: Policy,
}

impl Rule {
    /// What tells it from other Selectors, and from this one as it was earlier.
    pub fn digest(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}").as_bytes());
        hex::encode(&digest[..8])
    }
}

/// A field that cannot be used, or that is of no avail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}; {remedy}")]
pub struct Fault {
    /// Where.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Reads a Selector.
///
/// # Errors
/// When a field cannot be used.
pub fn read(name: Name, spec: &SelectorSpec) -> Result<Rule, Fault> {
    let fault = |field: &str, what: &str, remedy| Fault { field: field.to_owned(), what: what.to_owned(), remedy };
    if spec.object_labels.is_none() && spec.namespace_labels.is_none() {
        return Err(fault("spec", "it selects nothing", "write objectLabels or namespaceLabels"));
    }
    let selectors = [("spec.objectLabels", &spec.object_labels), ("spec.namespaceLabels", &spec.namespace_labels)];
    for (field, selector) in selectors {
        let Some(selector) = selector else { continue };
        check_size(field, selector, LONGEST_LABELS)?;
        check_selector(field, selector)?;
    }
    let effect = spec.effect.clone().unwrap_or_default();
    check_size("spec.effect", &effect, LONGEST_EFFECT)?;
    check_labels("spec.effect.labels", &effect.labels)?;
    effect.annotations.keys().try_for_each(|key| check_key("spec.effect.annotations", key))?;
    effect.annotations.keys().try_for_each(|key| check_effect_key("spec.effect.annotations", key))?;
    effect.labels.keys().try_for_each(|key| check_effect_key("spec.effect.labels", key))?;
    let policy = spec.policy.as_ref().map_or(Ok(Policy::VirtualNodeOnly), |source| {
        policy(source).ok_or_else(|| fault("spec.policy", "it names several", "leave all but one out"))
    })?;
    Ok(Rule {
        name,
        priority: spec.priority.unwrap_or(0),
        namespace: spec.namespace_labels.clone(),
        object: spec.object_labels.clone(),
        effect: Effect { annotations: effect.annotations, labels: effect.labels },
        policy,
    })
}

/// What a Selector asks for in vain.
pub fn unhonoured(spec: &SelectorSpec) -> Vec<Fault> {
    let Some(policy) = &spec.policy else { return vec![] };
    let prefer = policy.normal_node_prefer.as_ref();
    let ratios = [
        ("cpuRatio", prefer.and_then(|prefer| prefer.cpu_ratio)),
        ("memoryRatio", prefer.and_then(|prefer| prefer.memory_ratio)),
    ];
    let ratios = ratios.into_iter().filter_map(|(field, ratio)| {
        ratio.map(|ratio| Fault {
            field: format!("spec.policy.normalNodePrefer.{field}"),
            what: format!("{ratio} is not honoured: pods go to a virtual node once no ordinary node takes them"),
            remedy: "leave it out",
        })
    });
    let limit = policy.namespace_resource_limit.iter().map(|_| Fault {
        field: "spec.policy.namespaceResourceLimit".to_owned(),
        what: "it is not honoured: the pods go to the virtual nodes only".to_owned(),
        remedy: "use another policy, and a ResourceQuota for the limits",
    });
    ratios.chain(limit).collect()
}

/// Nothing where there are several.
fn policy(source: &PolicySource) -> Option<Policy> {
    let given = [
        (source.fair.is_some(), Policy::Fair),
        (source.normal_node_only.is_some(), Policy::NormalNodeOnly),
        (source.normal_node_prefer.is_some(), Policy::NormalNodePrefer),
        (source.virtual_node_only.is_some(), Policy::VirtualNodeOnly),
        // As upstream's code has it: it knows no such policy, and falls back.
        (source.namespace_resource_limit.is_some(), Policy::VirtualNodeOnly),
    ];
    let mut given = given.into_iter().filter_map(|(is_given, policy)| is_given.then_some(policy));
    match (given.next(), given.next()) {
        (None, _) => Some(Policy::VirtualNodeOnly),
        (only, None) => only,
        (Some(_), Some(_)) => None,
    }
}

fn check_size(field: &str, value: &impl Serialize, (most, remedy): (usize, &'static str)) -> Result<(), Fault> {
    let size = serde_json::to_string(value).map_or(usize::MAX, |text| text.len());
    if size <= most {
        return Ok(());
    }
    Err(Fault { field: field.to_owned(), what: format!("{size} bytes are too many"), remedy })
}

fn check_selector(field: &str, selector: &LabelSelector) -> Result<(), Fault> {
    if let Some(labels) = &selector.match_labels {
        check_labels(&format!("{field}.matchLabels"), labels)?;
    }
    for (at, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        if let Some(what) = labels::fault(requirement) {
            let field = format!("{field}.matchExpressions[{at}]");
            return Err(Fault { field, what, remedy: "write it as the labels of Kubernetes are written" });
        }
    }
    Ok(())
}

fn check_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    for (key, value) in labels {
        check_key(field, key)?;
        if !labels::is_value(value) {
            let what = format!("{value:?} is no value of a label");
            return Err(Fault { field: format!("{field}[{key}]"), what, remedy: VALUE });
        }
    }
    Ok(())
}

fn check_key(field: &str, key: &str) -> Result<(), Fault> {
    if labels::is_key(key) {
        return Ok(());
    }
    Err(Fault { field: format!("{field}[{key}]"), what: format!("{key:?} is no key"), remedy: KEY })
}

fn check_effect_key(field: &str, key: &str) -> Result<(), Fault> {
    if !is_ours(key) {
        return Ok(());
    }
    let what = format!("{key:?} is for the virtual node alone to write");
    Err(Fault { field: format!("{field}[{key}]"), what, remedy: "leave it out" })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn spec(spec: Value) -> SelectorSpec {
        serde_json::from_value(spec).unwrap()
    }

    fn with_policy(policy: Value) -> SelectorSpec {
        spec(json!({"objectLabels": {}, "policy": policy}))
    }

    #[rstest]
    #[case(json!({}), Policy::VirtualNodeOnly)]
    #[case(json!({"fair": {}}), Policy::Fair)]
    #[case(json!({"normalNodeOnly": {}}), Policy::NormalNodeOnly)]
    #[case(json!({"normalNodePrefer": {"cpuRatio": 3, "memoryRatio": 0.5}}), Policy::NormalNodePrefer)]
    #[case(json!({"virtualNodeOnly": {}}), Policy::VirtualNodeOnly)]
    #[case(json!({"namespaceResourceLimit": {"namespace": "n", "limits": {"cpu": "1"}}}), Policy::VirtualNodeOnly)]
    fn policies(#[case] policy: Value, #[case] expected: Policy) {
        assert_eq!(read(Name::default(), &with_policy(policy)).unwrap().policy, expected);
    }

    #[test]
    fn without_a_policy_it_is_the_virtual_nodes_and_without_a_priority_zero() {
        let rule = read(Name::default(), &spec(json!({"namespaceLabels": {}}))).unwrap();
        assert_eq!((rule.policy, rule.priority), (Policy::VirtualNodeOnly, 0));
        assert_eq!((rule.namespace, rule.object), (Some(LabelSelector::default()), None));
    }

    #[rstest]
    #[case(json!({}), "spec: it selects nothing; write objectLabels or namespaceLabels")]
    #[case(json!({"objectLabels": {"matchLabels": {"a b": "c"}}}), "spec.objectLabels.matchLabels[a b]: \"a b\" is no key; ")]
    #[case(json!({"objectLabels": {"matchLabels": {"a": "b c"}}}), "spec.objectLabels.matchLabels[a]: \"b c\" is no value")]
    #[case(json!({"namespaceLabels": {"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "In"}]}}),
        "spec.namespaceLabels.matchExpressions[1]: In a needs values; ")]
    #[case(json!({"objectLabels": {}, "effect": {"labels": {"a": "b c"}}}), "spec.effect.labels[a]: ")]
    #[case(json!({"objectLabels": {}, "effect": {"annotations": {"/": "b c"}}}), "spec.effect.annotations[/]: ")]
    #[case(json!({"objectLabels": {}, "effect": {"annotations": {"a": "b".repeat(250 << 10)}}}),
        "spec.effect: 25")]
    #[case(json!({"objectLabels": {"matchExpressions": [{"key": "a", "operator": "In", "values": vec!["b".repeat(60); 100]}]}}),
        "spec.objectLabels: ")]
    #[case(json!({"objectLabels": {}, "effect": {"annotations": {"k8s.aliyun.com/eci-matched-image-cache": "imc-a"}}}),
        "spec.effect.annotations[k8s.aliyun.com/eci-matched-image-cache]: \"k8s.aliyun.com/eci-matched-image-cache\" is for \
         the virtual node alone to write; leave it out")]
    #[case(json!({"objectLabels": {}, "effect": {"labels": {"serverless.alibabacloud.com/virtual-node": "false"}}}),
        "spec.effect.labels[serverless.alibabacloud.com/virtual-node]: ")]
    #[case(json!({"objectLabels": {}, "policy": {"fair": {}, "normalNodeOnly": {}}}), "spec.policy: it names several; ")]
    fn faults_name_field_and_remedy(#[case] given: Value, #[case] begins: &str) {
        let fault = read(Name::default(), &spec(given)).unwrap_err();
        assert!(fault.to_string().starts_with(begins), "{fault}");
        assert!(!fault.remedy.is_empty());
    }

    #[test]
    fn what_is_asked_in_vain_is_named() {
        let asked = unhonoured(&with_policy(json!({"normalNodePrefer": {"cpuRatio": 3, "memoryRatio": 0.5}})));
        assert_eq!(asked.len(), 2);
        assert_eq!(
            asked[1].to_string(),
            "spec.policy.normalNodePrefer.memoryRatio: 0.5 is not honoured: pods go to a virtual node once no ordinary node \
             takes them; leave it out"
        );
        let limit = json!({"namespaceResourceLimit": {"namespace": "n", "limits": {}}});
        assert!(unhonoured(&with_policy(limit))[0].to_string().starts_with("spec.policy.namespaceResourceLimit: "));
        for quiet in [json!({"fair": {}}), json!({"normalNodePrefer": {}})] {
            assert_eq!(unhonoured(&with_policy(quiet)), []);
        }
    }
}
