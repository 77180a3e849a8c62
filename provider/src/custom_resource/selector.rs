//! The `Selector` custom resource of clusters outside of Alibaba Cloud: its Rust type, from which a part of
//! `hack/deploy/crd.yaml` is made.
//!
//! Its comments are what `kubectl explain` shows.
//!
//! Namespaced, `selectors.eci.aliyun.com`, with the fields of Alibaba's open `eci-profile`. `v1` is stored; `v1beta1`, which
//! its README uses, is the same under another name.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version that is served beside the stored one.
const SERVED_TOO: &str = "v1beta1";

/// Which pods of the whole cluster, how they may be scheduled, and what is written on those that run on a virtual node. Of
/// all Selectors that select a pod, only the one of the highest priority acts; of the same priority, the one that comes first
/// by namespace and name. A Selector acts on pods of every namespace, wherever it lives itself.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "eci.aliyun.com",
    version = "v1",
    kind = "Selector",
    plural = "selectors",
    singular = "selector",
    namespaced,
    derive = "PartialEq",
    doc = "Brings pods to the virtual nodes, or keeps them from there, by their labels and their namespaces' when they are created.",
    printcolumn = r#"{"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"}"#,
    printcolumn = r#"{"name": "Policy", "type": "string", "jsonPath": ".spec.policy"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name": "Namespaces", "type": "string", "jsonPath": ".spec.namespaceLabels", "priority": 1}"#,
    printcolumn = r#"{"name": "Pods", "type": "string", "jsonPath": ".spec.objectLabels", "priority": 1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SelectorSpec {
    /// Labels of the pod's namespace. With objectLabels too, both must match; at least one of the two is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<LabelSelector>,
    /// Labels of the pod as it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_labels: Option<LabelSelector>,
    /// What is written on pods that run on a virtual node, over what they have themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<SelectorEffect>,
    /// How the pods may be scheduled, one of the fields. Without any, virtualNodeOnly holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySource>,
    /// Of the Selectors that select a pod, the one with the largest number acts. Left out, it is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

/// Annotations and labels to write.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
pub struct SelectorEffect {
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels. One by which a ReplicaSet or a Service finds the pod should not be among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How pods may be scheduled: one of these.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PolicySource {
    /// To ordinary and virtual nodes alike: the pod tolerates the virtual nodes' taint, and the scheduler decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fair: Option<NoSettings>,
    /// To ordinary nodes only: the pod is left as it is, and Selectors of lower priority do not act on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal_node_only: Option<NoSettings>,
    /// To a virtual node once the scheduler has said that no ordinary node takes the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal_node_prefer: Option<NormalNodePrefer>,
    /// To virtual nodes only: the pod is given their toleration and their nodeSelector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_node_only: Option<NoSettings>,
    /// Not honoured: it acts as virtualNodeOnly, and an event of the Selector says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_resource_limit: Option<NamespaceResourceLimit>,
}

/// A policy without settings, written `{}`.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
pub struct NoSettings {}

/// Settings of normalNodePrefer, none of which is honoured.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NormalNodePrefer {
    /// Not honoured; an event of the Selector says so.
    #[serde(rename = "cpuRatio", default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// Not honoured; an event of the Selector says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_ratio: Option<f64>,
}

/// Settings of namespaceResourceLimit, which is not honoured.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
pub struct NamespaceResourceLimit {
    /// A namespace.
    pub namespace: String,
    /// Quantities by resource.
    pub limits: BTreeMap<String, Quantity>,
}

/// The definition as it is given to a cluster.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = Selector::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        take_no_nulls(schema);
        let Some(spec) = schema.properties.as_mut().and_then(|fields| fields.get_mut("spec")) else { continue };
        spec.x_kubernetes_validations = Some(vec![rule(
            "has(self.objectLabels) || has(self.namespaceLabels)",
            "objectLabels or namespaceLabels is needed; an empty one, {}, selects everything",
        )]);
        if let Some(policy) = spec.properties.as_mut().and_then(|fields| fields.get_mut("policy")) {
            let has: Vec<String> =
                policy.properties.iter().flat_map(BTreeMap::keys).map(|field| format!("has(self.{field})")).collect();
            let at_most_one = format!("[{}].filter(given, given).size() <= 1", has.join(", "));
            policy.x_kubernetes_validations = Some(vec![rule(&at_most_one, "one policy can hold, not several")]);
        }
    }
    let also = definition.spec.versions.first().cloned().map(|mut version| {
        (version.name, version.storage) = (SERVED_TOO.to_owned(), false);
        version
    });
    definition.spec.versions.extend(also);
    definition
}

/// As in upstream's definition: a null is refused, so that rules see only what somebody has said.
fn take_no_nulls(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(BTreeMap::values_mut).for_each(take_no_nulls);
    if let Some(JSONSchemaPropsOrBool::Schema(more)) = &mut schema.additional_properties {
        take_no_nulls(more);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        take_no_nulls(items);
    }
}

fn rule(rule: &str, message: &str) -> ValidationRule {
    ValidationRule { rule: rule.to_owned(), message: Some(message.to_owned()), ..ValidationRule::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_served_and_the_newer_is_stored() {
        let definition = definition();
        let versions: Vec<_> = definition
            .spec
            .versions
            .iter()
            .map(|version| (version.name.as_str(), version.served, version.storage))
            .collect();
        assert_eq!(versions, [("v1", true, true), ("v1beta1", true, false)]);
        assert_eq!(definition.spec.versions[0].schema, definition.spec.versions[1].schema);
        assert_eq!(definition.metadata.name.as_deref(), Some("selectors.eci.aliyun.com"));
        assert_eq!(definition.spec.scope, "Namespaced");
        let text = serde_json::to_string(&definition).unwrap();
        assert!(!text.contains("nullable") && text.contains("has(self.namespaceResourceLimit)"), "{text}");
    }

    #[test]
    fn the_readme_of_upstream_is_read() {
        let text = r#"{"apiVersion": "eci.aliyun.com/v1beta1", "kind": "Selector", "metadata": {"name": "test-fair"},
            "spec": {"objectLabels": {"matchLabels": {"app": "nginx"}},
                "effect": {"annotations": {"k8s.aliyun.com/eci-with-eip": "true"}}, "policy": {"fair": {}}, "priority": 3}}"#;
        let selector: serde_json::Value = serde_json::from_str(text).unwrap();
        let spec: SelectorSpec = serde_json::from_value(selector["spec"].clone()).unwrap();
        assert_eq!(spec.priority, Some(3));
        assert!(spec.policy.unwrap().fair.is_some());
        assert_eq!(spec.effect.unwrap().annotations["k8s.aliyun.com/eci-with-eip"], "true");
    }
}
