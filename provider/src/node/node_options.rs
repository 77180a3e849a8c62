//! What of a node's labels and taints comes from options, as it is written down on the node for the next start.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

/// The annotation that it is written in.
pub(super) const OPTIONS: &str = "larder/node-options";

/// Labels and taints that come from options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeOptions {
    /// Labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Taints, as [`parts`] has them.
    pub(super) taints: BTreeSet<[String; 3]>,
}

impl NodeOptions {
    /// Those of the start that wrote on the node last. What somebody else has made unreadable says nothing.
    pub(super) fn written_on(node: &Node) -> Self {
        let text = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(OPTIONS));
        let value: Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Self {
            labels: serde_json::from_value(value["labels"].clone()).unwrap_or_default(),
            taints: serde_json::from_value(value["taints"].clone()).unwrap_or_default(),
        }
    }

    /// As it stands in the annotation.
    pub(super) fn to_text(&self) -> String {
        json!({"labels": self.labels, "taints": self.taints}).to_string()
    }
}

/// A taint as key, value and effect: what tells one from another.
pub(super) fn parts(taint: &Taint) -> [String; 3] {
    [taint.key.clone(), taint.value.clone().unwrap_or_default(), taint.effect.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_what_cannot_be_read_is_nothing() {
        let taint = Taint { key: "k".into(), effect: "NoExecute".into(), ..Taint::default() };
        let options = NodeOptions { labels: [("a".to_owned(), "b".to_owned())].into(), taints: [parts(&taint)].into() };
        let mut node = Node::default();
        node.metadata.annotations = Some([(OPTIONS.to_owned(), options.to_text())].into());
        assert_eq!(NodeOptions::written_on(&node), options);
        for text in ["", "[]", "{", r#"{"labels": 3, "taints": [["k"]]}"#] {
            node.metadata.annotations = Some([(OPTIONS.to_owned(), text.to_owned())].into());
            assert_eq!(NodeOptions::written_on(&node), NodeOptions::default(), "{text}");
        }
    }
}
